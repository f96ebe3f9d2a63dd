"""All that a host's owner could miss or find too much, from before something and from after it.

python molecule/shared/snapshot.py SCENARIO HOST... keeps it for those hosts, before anything is done to them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection
from pathlib import Path

from ray_lab import ROOT, Lab

# What changes by itself, or by anything that is installed and removed.
VOLATILE = (
    # Lists of packages, of which files came with them, and what systemd and others remember of what ran.
    r"^/var/lib/(apt|dpkg|systemd|private|ucf|dbus|pam|polkit-1)(/|$)",
    # What an engine that was there before notes of its own while it runs.
    r"^/var/lib/(docker|containerd)/",
    # Caches of programs and of fonts, texts and types, which dpkg's triggers write.
    r"^/etc/ld.so.cache$|__pycache__|\.pyc$|^/etc/ssl/certs|^/usr/share/(doc|man|info|locale|bash-completion|lintian|mime)",
    # Mounted by what makes the hosts.
    r"^/etc/(mtab|resolv.conf|hosts|hostname)$",
    # Made at the first boot: a host that another test has made anew has others.
    r"^/etc/(machine-id|ssh/ssh_host_)",
    # Ansible's own, whatever a playbook does.
    r"^/root/\.ansible",
    # The files behind getent, below: a group that came and went leaves their copies in another order.
    r"^/etc/(\.pwd\.lock|(passwd|group|shadow|gshadow|subuid|subgid)-?$)",
)
LOOK = r"""
dpkg-query -W -f 'package ${db:Status-Status} ${binary:Package}\n' | grep -v 'not-installed'
getent passwd | sed 's/^/user /'; getent group | sed 's/^/group /'
places="/etc /usr /opt /srv /root /var/lib"
find $places -xdev -printf 'file %y %m %u %g %p %l\n'
find $places -xdev \( -path /var/lib/apt -o -path /var/lib/dpkg \) -prune -o -type f -print0 |
  xargs -0 sha256sum | sed 's/^/content /'
for p in iptables ip6tables; do for t in filter nat mangle raw; do
  # Without the ports of the resolver that the lab's Docker has in each host.
  command -v $p >/dev/null && $p -t $t -S | grep -v 127.0.0.11 | sed "s/^/$p $t /"
done; done
ip -oneline link | awk '{print "link", $2}' | sed 's/@.*//'
# Of this host alone: others are the machine's. How many connections there are is none.
sysctl -a 2>/dev/null | grep '^net\.' | grep -vE 'nf_conntrack_count|_tcp_fastopen_key' | sed 's/^/sysctl /'
systemctl list-unit-files --no-legend | awk '{print "unit", $1, $2}'
# ldconfig.service has run after the first boot only, and operate's hosts are rebooted.
systemctl list-units --all --plain --no-legend --type service,socket,timer,mount,automount,path |
  awk '$3 == "active" && $1 !~ /^(user|session|run-|user@|systemd-|apt-|dpkg-|ldconfig)/ {print "active", $1}'
"""


def look(lab: Lab, host: str) -> set[str]:
    """A line for each thing."""
    found = set()
    for line in lab.on(host, "sh", "-c", LOOK, check=False).splitlines():
        kind, _, rest = line.partition(" ")
        path = rest.partition(" /")[2].partition(" ")[0] if kind in ("file", "content") else ""
        if not (path and any(re.search(pattern, f"/{path}") for pattern in VOLATILE)):
            found.add(line.strip())
    return found


def keep(lab: Lab, hosts: Collection[str]) -> None:
    """For a test that comes later."""
    _kept(lab).write_text(json.dumps({host: sorted(look(lab, host)) for host in hosts}))


def kept(lab: Lab) -> dict[str, set[str]]:
    """What was there then, by host."""
    return {host: set(lines) for host, lines in json.loads(_kept(lab).read_text()).items()}


def changes(before: set[str], after: set[str]) -> list[str]:
    """What is missing, and what is new."""
    return [f"- {line}" for line in sorted(before - after)] + [f"+ {line}" for line in sorted(after - before)]


def _kept(lab: Lab) -> Path:
    return ROOT / f".lab/{lab.name}_before.json"


if __name__ == "__main__":
    keep(Lab(sys.argv[1]), sys.argv[2:])
