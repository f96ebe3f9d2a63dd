"""Backs up what this host's services keep, and brings it back. restic stores it: encrypted, and nothing twice.

muster_backup.py backup                        every night, by muster-backup.timer
muster_backup.py mend                          no container is left standing still, whatever became of the backup
muster_backup.py secrets SNAPSHOT              prints the sealed secrets of a backup
muster_backup.py restore SNAPSHOT [--replace]  into the folders of the services, which must be empty, or are put aside
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

SETTINGS = Path("/etc/muster/backup/settings.json")
SECRETS = SETTINGS.parent
# Files that are only ever added to: another name for the same file is a copy of what it holds now. A longer end than
# that of the moment does no harm: Redis and RocksDB read such a log up to its last whole entry.
GROWING = {".sst", ".log", ".aof", ".rdb"}
NO_REPOSITORY = 10
# restic of Debian 12 has no such code, but these words.
NO_REPOSITORY_WORDS = "Is there a repository at the following location?"
LOCKED = "already locked"
PATIENCE = 3600


class Failed(Exception):  # noqa: N818 (a line for people)
    """What went wrong, and how to go on."""


class Backup:
    """The repository and the services of this host."""

    def __init__(self, settings: dict[str, Any], data: Path) -> None:
        self.settings, self.data = settings, data
        self.staging = data / "now"

    def restic(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        options = ["--cache-dir", str(self.data / "cache"), "--quiet"]
        if self.settings["sftp"]:
            login = self.settings["repository"].removeprefix("sftp:").removeprefix("//").partition(":")[0]
            login, _, _ = login.partition("/")
            ssh = f"ssh -i {SECRETS}/ssh_key -o UserKnownHostsFile={SECRETS}/known_hosts -o BatchMode=yes"
            options += ["-o", f"sftp.command={ssh} {login} -s sftp"]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": "/root",
            "RESTIC_REPOSITORY": self.settings["repository"],
            "RESTIC_PASSWORD_FILE": str(SECRETS / "password"),
            **self.settings["environment"],
        }
        deadline = time.monotonic() + PATIENCE
        while True:
            done = subprocess.run(
                ["restic", *options, *words], env=environment, capture_output=True, text=True, check=False
            )
            # Another host is at it; the option for that is newer than Debian 12.
            if not (done.returncode and LOCKED in done.stderr) or time.monotonic() > deadline:
                break
            time.sleep(10)
        if check and done.returncode:
            raise Failed(f"restic {words[0]}: {' '.join(done.stderr.split())[-1000:]}")
        return done

    def prepare(self) -> None:
        """The repository is there, and opens with our password."""
        seen = self.restic("cat", "config", check=False)
        last = self.data / "last"
        known = json.loads(last.read_text() or "{}").get("repository") if last.exists() else None
        if seen.returncode == NO_REPOSITORY or NO_REPOSITORY_WORDS in seen.stderr:
            # A disk that is not mounted: a new repository would look like backups, and fill the wrong disk.
            if known == self.settings["repository"]:
                raise Failed(f"the repository {known} is not there any more: is its disk or share mounted?")
            self.restic("init")
        elif seen.returncode:
            said = " ".join(seen.stderr.split())[-600:]
            raise Failed(f"the repository {self.settings['repository']} cannot be opened: {said}")
        # Of a backup that was cut off; locks of those that run stay.
        self.restic("unlock")

    def backup(self) -> None:
        begin = time.monotonic()
        self.prepare()
        shutil.rmtree(self.staging, ignore_errors=True)
        pauses = {}
        for service in self.settings["services"]:
            pauses[service["name"]] = self.take(service)
        folders = [path for path in self.settings["folders"] if Path(path).is_dir()]
        paths = [str(self.staging), *folders, *filter(os.path.exists, [self.settings["secrets"]])]
        mine = ["--host", self.settings["host"]]
        said = self.restic("backup", *mine, "--tag", "muster", "--json", *paths).stdout
        summary = json.loads(said.splitlines()[-1])
        self.restic(
            "forget", *mine, "--tag", "muster", "--group-by", "host,tags",
            "--keep-within", f"{self.settings['days']}d", "--prune",
        )  # fmt: skip
        self.restic("check")
        shutil.rmtree(self.staging)
        report = {
            "repository": self.settings["repository"],
            "snapshot": summary["snapshot_id"][:8],
            "seconds": round(time.monotonic() - begin, 1),
            "files": summary["total_files_processed"],
            "bytes": summary["total_bytes_processed"],
            "added": summary["data_added"],
            "stood_still": {name: round(seconds, 3) for name, seconds in pauses.items()},
        }
        # Its time is what BackupTooOld looks at.
        (self.data / "last").write_text(json.dumps(report) + "\n")
        print(json.dumps(report))

    def take(self, service: dict[str, Any]) -> float:
        """A service's files as they are in one moment, in which it stands still; how long that was."""
        source, skip = Path(service["path"]), set(service.get("skip", ()))
        if not source.is_dir():
            return 0.0

        def copy(path: str, target: str) -> None:
            if Path(path).suffix in GROWING:
                os.link(path, target)
            else:
                shutil.copy2(path, target)
                own(path, target)

        def ignore(folder: str, names: list[str]) -> set[str]:
            return {name for name in names if name in skip or Path(folder, name).is_socket()}

        target = self.staging / service["name"]
        self.staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        with still(service["name"], service.get("service", "")):
            begin = time.monotonic()
            shutil.copytree(source, target, copy_function=copy, ignore=ignore, symlinks=True)
            pause = time.monotonic() - begin
        for folder in [target, *(inner for inner in target.rglob("*") if inner.is_dir())]:
            own(source / folder.relative_to(target), folder)
        return pause

    def secrets(self, snapshot: str) -> None:
        words = ["dump", "--host", self.settings["host"], "--tag", "muster", snapshot, self.settings["secrets"]]
        print(self.restic(*words).stdout, end="")

    def restore(self, snapshot: str, replace: bool) -> None:
        """Every service's folder as it was; of shared folders what is not there."""
        full = [service["path"] for service in self.settings["services"] if holds(Path(service["path"]))]
        if full and not replace:
            raise Failed(f"{', '.join(full)}: there is something already")
        mine = ["--host", self.settings["host"], "--tag", "muster"]
        found = json.loads(self.restic("snapshots", *mine, "--json", snapshot).stdout)
        if not found:
            raise Failed(f"there is no backup {snapshot} of {self.settings['host']} in {self.settings['repository']}")
        target = self.data / "restored"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(mode=0o700, parents=True)
        self.restic("restore", found[-1]["id"], "--target", str(target), "--include", str(self.staging))
        aside = self.data / f"before-{time.strftime('%Y%m%d-%H%M%S')}"
        back = []
        for service in self.settings["services"]:
            path, came = Path(service["path"]), Path(f"{target}{self.staging}", service["name"])
            if not came.is_dir():
                continue
            if holds(path):
                aside.mkdir(mode=0o700, exist_ok=True)
                shutil.move(path, aside / service["name"])
            elif path.is_dir():
                path.rmdir()
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(came, path)
            back.append(service["name"])
        files = sum(self.bring(found[-1]["id"], Path(folder)) for folder in self.settings["folders"])
        shutil.rmtree(target)
        wait = datetime.fromisoformat(stamp(found[-1]["time"])).timestamp() + self.settings["lease"] - time.time()
        time.sleep(max(wait, 0))
        report = {"snapshot": found[-1]["short_id"], "of": found[-1]["time"], "services": back, "files": files}
        print(json.dumps(report))

    def bring(self, snapshot: str, folder: Path) -> int:
        """What a shared folder had and has no more. What is there stays: runs and models are never written over."""
        if not folder.parent.is_dir():
            raise Failed(f"{folder.parent} is not there: mount it and run this again")
        # On the same file system, so that nothing is copied twice.
        target = folder.parent / f".restored-{snapshot[:8]}"
        count = 0
        try:
            self.restic("restore", snapshot, "--target", str(target), "--include", str(folder))
            root = Path(f"{target}{folder}")
            # The upper ones first: a folder that is not there at all is moved as a whole, with its owner.
            for came in [root, *sorted(root.rglob("*"))]:
                path = folder / came.relative_to(root)
                if os.path.lexists(came) and not os.path.lexists(path):
                    count += sum(1 for inner in [came, *came.rglob("*")] if not inner.is_dir())
                    came.rename(path)
        finally:
            shutil.rmtree(target, ignore_errors=True)
        return count


def own(like: str | Path, path: str | Path) -> None:
    """Give it the other's owner."""
    seen = Path(like).stat()
    os.chown(path, seen.st_uid, seen.st_gid)


def stamp(text: str) -> str:
    """RFC 3339 with nanoseconds as Python before 3.11 reads it."""
    whole, _, rest = text.partition(".")
    zone = rest.lstrip("0123456789") if rest else ""
    return f"{whole}{'+00:00' if zone == 'Z' else zone}" if rest else whole.replace("Z", "+00:00")


def holds(path: Path) -> bool:
    """Whether there are files, at any depth."""
    return any(not inner.is_dir() for inner in path.rglob("*"))


def containers(*filters: str) -> list[str]:
    words = [part for each in filters for part in ("--filter", each)]
    done = subprocess.run(["docker", "ps", "--quiet", *words], capture_output=True, text=True, check=False)
    return done.stdout.split()


@contextlib.contextmanager
def still(project: str, service: str) -> Iterator[None]:
    """Its container stands still meanwhile; one that does not run does so anyway."""
    label = "label=com.docker.compose"
    found = containers(f"{label}.project={project}", f"{label}.service={service}", "status=running") if service else []
    try:
        for container in found:
            subprocess.run(["docker", "pause", container], check=True, capture_output=True)
        yield
    finally:
        for container in found:
            subprocess.run(["docker", "unpause", container], check=False, capture_output=True)


def mend(settings: dict[str, Any]) -> None:
    for service in settings["services"]:
        for container in containers(f"label=com.docker.compose.project={service['name']}", "status=paused"):
            subprocess.run(["docker", "unpause", container], check=True)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["backup", "mend", "secrets", "restore"])
    parser.add_argument("snapshot", nargs="?", default="latest")
    parser.add_argument("--replace", action="store_true")
    options = parser.parse_args(arguments)
    settings = json.loads(SETTINGS.read_text())
    backup = Backup(settings, Path(settings["secrets"]).parent)
    try:
        if options.what == "backup":
            backup.backup()
        elif options.what == "mend":
            mend(settings)
        elif options.what == "secrets":
            backup.secrets(options.snapshot)
        else:
            backup.restore(options.snapshot, options.replace)
    except Failed as failed:
        sys.exit(f"muster_backup: {failed}")


if __name__ == "__main__":
    main(sys.argv[1:])
