"""A support bundle: what hosts tell, without what must stay here."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from muster.errors import MusterError

HIDDEN = b"***"
# Shorter words would be found everywhere; nothing that is generated is that short.
SHORTEST = 6
PUBLIC = {".crt", ".csr", ".pub", ".version"}


def bundle(
    answers: Mapping[str, Mapping[str, Any]], status: Mapping[str, Any], folder: str, more: Sequence[str] = ()
) -> str:
    """A compressed tar archive in base64. answers: what each host said, `files` or why there are none (`msg`)."""
    away = {host: _why(answer) for host, answer in answers.items() if "files" not in answer}
    members = {"status.json": json.dumps(status, indent=2, default=str) + "\n", "hosts.txt": _hosts(answers, away)}
    for host, answer in answers.items():
        members |= {f"{host}/{name}": str(text) for name, text in answer.get("files", {}).items()}
    hide = forms([*kept(Path(folder)), *given(more)])
    clean = {name: hidden(text.encode(), hide) for name, text in members.items()}
    refuse(clean, hide)
    return base64.b64encode(_archive(clean)).decode()


def kept(folder: Path) -> Iterator[str]:
    """Every secret in a folder: each word, so that one in a structure is found, too."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix not in PUBLIC:
            text = file.read_text(errors="replace")
            yield text.strip()
            for line in text.splitlines():
                if not line.startswith("-----"):
                    yield from re.split(r"[\s\"',:={}\[\]]+", line)


def given(values: Iterable[str]) -> Iterator[str]:
    """Secrets that are variables; of an address its password, too."""
    for value in values:
        yield str(value)
        yield urlsplit(str(value)).password or ""


def forms(secrets: Iterable[str]) -> list[bytes]:
    """How a secret may be written: as it is, in a URL, and within something in base64; the longest first."""
    found = set()
    for secret in {one.strip() for one in secrets}:
        if len(secret) < SHORTEST:
            continue
        found |= {secret.encode(), quote(secret, safe="").encode(), json.dumps(secret)[1:-1].encode()}
        found |= {form for form in _base64(secret.encode()) if len(form) >= SHORTEST}
    return sorted(found, key=lambda form: (-len(form), form))


def hidden(text: bytes, hide: Sequence[bytes]) -> bytes:
    """The text with stars in place of every secret."""
    for form in hide:
        text = text.replace(form, HIDDEN)
    return text


def refuse(members: Mapping[str, bytes], hide: Sequence[bytes]) -> None:
    """The last look, also at the names."""
    for name, text in members.items():
        if any(form in text or form in name.encode() for form in hide):
            raise MusterError(f"{name} would hold a secret", fix="nothing was written; report this as a bug")


def _base64(secret: bytes) -> Iterator[bytes]:
    """What base64 makes of it wherever it begins in a text, without the ends that depend on what is beside it."""
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + secret)
        end = (before + len(secret)) // 3 * 4
        core = encoded[(0, 2, 3)[before] : end]
        yield core
        yield core.translate(bytes.maketrans(b"+/", b"-_"))


def _why(answer: Mapping[str, Any]) -> str:
    return " ".join(str(answer.get("msg") or "it was not asked").split())


def _hosts(answers: Mapping[str, Any], away: Mapping[str, str]) -> str:
    return "".join(
        f"{host}: {'no answer: ' + away[host] if host in away else 'answered'}\n" for host in sorted(answers)
    )


def _archive(members: Mapping[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name in sorted(members):
            member = tarfile.TarInfo(f"support/{name}")
            member.size, member.mode = len(members[name]), 0o644
            tar.addfile(member, io.BytesIO(members[name]))
    return gzip.compress(raw.getvalue(), mtime=0)
