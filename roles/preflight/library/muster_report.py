#!/usr/bin/python
"""Documentation of the action plugin that does the work: writing reports needs no connection and no module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: muster_report
short_description: Writes files beside the playbook, without a connection
description:
  - A report about the cluster is no change to it, so this never reports a change. In check mode it writes nothing.
options:
  folder:
    description: Folder on the controller; made when it is missing.
    type: path
    required: true
  files:
    description: File name to content.
    type: dict
    required: true
author: Muster
"""
EXAMPLES = r"""
- name: The report is written
  muster_report:
    folder: "{{ muster_reports_dir }}"
    files: {hardware.md: "{{ text }}"}
"""
RETURN = r""" # """
