"""No secret is in a support bundle, however it is written there."""

import base64
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, strategies

from muster import support
from muster.errors import MusterError

PASSWORD, TOKEN = "Gr3at/secret+word", "x9" * 24
KEY = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg
d2hvZXZlcnJlYWRz
-----END PRIVATE KEY-----
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pki").mkdir()
    (tmp_path / "app_password").write_text(f"{PASSWORD} salt=abcdefgh\n")
    (tmp_path / "tokens.json").write_text(json.dumps({"anna": TOKEN}))
    (tmp_path / "pki/ca.key").write_text(KEY)
    (tmp_path / "pki/ca.crt").write_text("-----BEGIN CERTIFICATE-----\ncertificate of all\n")
    return tmp_path


def members(archive: str) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(base64.b64decode(archive)))) as tar:
        return {one.name: tar.extractfile(one).read().decode() for one in tar}  # type: ignore[union-attr]


def told(folder: Path, text: str, **more: str) -> str:
    return members(support.bundle({"head": {"files": {"log": text}}}, {}, str(folder), list(more.values())))[
        "support/head/log"
    ]


def test_it_has_what_hosts_say_and_names_who_says_nothing(folder: Path) -> None:
    answers: dict[str, dict[str, Any]] = {
        "head": {"files": {"disk.txt": "full"}},
        "server1": {"unreachable": True, "msg": "no route\n"},
        "b": {},
    }
    found = members(support.bundle(answers, {"nodes": []}, str(folder)))
    assert set(found) == {"support/hosts.txt", "support/status.json", "support/head/disk.txt"}
    lines = ["b: no answer: it was not asked", "head: answered", "server1: no answer: no route"]
    assert found["support/hosts.txt"].splitlines() == lines
    assert json.loads(found["support/status.json"]) == {"nodes": []}


@pytest.mark.parametrize(
    "text",
    [
        f"password={PASSWORD}",
        f"rediss://app:{quote(PASSWORD, safe='')}@head",
        json.dumps({"token": TOKEN}),
        KEY,
        "the key MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg",
        "abcdefgh",
    ],
)
def test_a_secret_is_stars(folder: Path, text: str) -> None:
    said = told(folder, f"before {text} after")
    assert said.startswith("before ") and said.endswith(" after") and "***" in said
    for secret in (PASSWORD, quote(PASSWORD, safe=""), TOKEN, "MIGHAgEAMBM", "d2hvZXZlcnJlYWRz", "abcdefgh"):
        assert secret not in said


@given(strategies.binary(max_size=8), strategies.binary(max_size=8))
def test_so_it_is_within_base64(before: bytes, after: bytes) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(before + TOKEN.encode() + after)
        clean = support.hidden(text, support.forms([TOKEN]))
        assert b"***" in clean
        # Not more than the two ends, which are of what is beside it, too.
        assert len(clean.replace(b"***", b"")) <= len(text) - len(TOKEN) + 4


def test_a_variables_secret_and_an_addresss_password_go_too(folder: Path) -> None:
    said = told(
        folder, "mail: smtp://me:letmein77@mail.example.org, letmein77", smtp="smtp://me:letmein77@mail.example.org"
    )
    assert said == "mail: ***, ***"


def test_what_everybody_may_know_stays(folder: Path) -> None:
    assert told(folder, "certificate of all, app, of anna") == "certificate of all, app, of anna"


def test_it_fails_rather_than_to_leak(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "hidden", lambda text, hide: text)
    with pytest.raises(MusterError, match="head/log would hold a secret"):
        told(folder, PASSWORD)
