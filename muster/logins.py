"""The gateway's logins as it reads them: hashes only, of passwords that are made at the first run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from muster.inventory import value

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,40}")
LEAST = 10


def mistakes(variables: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with who may log in, and what to do; passwords are not repeated."""
    users = value(variables, "gateway_users", ["admin"])
    given = {"gateway_users": users, "gateway_tokens": value(variables, "gateway_tokens", users)}
    for what, names in given.items():
        if not isinstance(names, list):
            yield f"{what} is no list", f"write it like {what}: [anna, bert]"
            continue
        for name in names:
            if not NAME.fullmatch(str(name)) and (what == "gateway_users" or name not in users):
                yield f"{what} has the name {name!r}", "use small letters, digits, dots and hyphens"
    passwords = value(variables, "gateway_passwords", {})
    for name, secret in passwords.items() if isinstance(passwords, Mapping) else ():
        if name not in users:
            yield (
                f"gateway_passwords has {name}, who is not in gateway_users",
                "add the name there, or take it out here",
            )
        elif len(str(secret)) < LEAST:
            yield f"gateway_passwords: that of {name} has fewer than {LEAST} characters", "give a longer one"


def logins(passwords: Mapping[str, str], tokens: Mapping[str, str], salt: str, key: str) -> dict[str, Any]:
    """Users with slow hashes of their passwords, and holders of personal tokens, which are long and random."""
    return {
        "salt": salt,
        "key": key,
        "users": {name: hashed(str(secret), salt + name) for name, secret in sorted(passwords.items())},
        "tokens": {name: hashlib.sha256(str(secret).encode()).hexdigest() for name, secret in sorted(tokens.items())},
    }


def hashed(password: str, salt: str) -> str:
    """As muster_gate.py compares it."""
    return hashlib.scrypt(password.encode(), salt=salt.encode(), n=2**14, r=8, p=1).hex()
