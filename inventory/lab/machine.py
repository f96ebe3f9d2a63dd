#!/usr/bin/env python3
"""What the lab takes from the machine it runs on, as variables: an inventory script.

Image builds on a machine behind a proxy that inspects TLS need its authority, and one that has wheels in a folder
should use them. MUSTER_EXTRA_CA and NODE_IMAGE_WHEELHOUSE say so; else what pip itself is configured with counts.
"""

import json
import os
from collections.abc import Mapping
from configparser import ConfigParser, Error
from pathlib import Path

PIP_FILES = ("/etc/pip.conf", "~/.config/pip/pip.conf", "~/.pip/pip.conf")


def pip_settings(files: tuple[str, ...] = PIP_FILES) -> dict[str, str]:
    """The [global] part of pip's configuration; files that pip could not read count as empty."""
    parser = ConfigParser(interpolation=None)
    for name in files:
        try:
            parser.read(Path(name).expanduser())
        except Error:
            continue
    return dict(parser["global"]) if parser.has_section("global") else {}


def extra_ca(environ: Mapping[str, str], pip: Mapping[str, str]) -> str:
    """A PEM bundle, or nothing. The machine's own default bundle counts only where something asks for it."""
    if "MUSTER_EXTRA_CA" in environ:
        return environ["MUSTER_EXTRA_CA"]
    candidates = (environ.get("PIP_CERT"), environ.get("SSL_CERT_FILE"), pip.get("cert"))
    return next((path for path in candidates if path and Path(path).is_file()), "")


def wheelhouse(environ: Mapping[str, str], pip: Mapping[str, str]) -> str:
    """The first of pip's find-links that is a folder here, or nothing."""
    if "NODE_IMAGE_WHEELHOUSE" in environ:
        return environ["NODE_IMAGE_WHEELHOUSE"]
    candidates = (environ.get("PIP_FIND_LINKS", "") + " " + pip.get("find-links", "")).split()
    return next((path for path in candidates if Path(path).is_dir()), "")


if __name__ == "__main__":
    pip = pip_settings()
    variables = {"muster_extra_ca": extra_ca(os.environ, pip), "node_image_wheelhouse": wheelhouse(os.environ, pip)}
    print(json.dumps({"all": {"vars": variables}, "_meta": {"hostvars": {}}}, indent=2))
