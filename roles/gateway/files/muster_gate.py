"""The gateway's door: Caddy asks it about every request, and it knows who is logged in.

GET  /gate/check    200 and X-Muster-User for a session or a personal token; else the login page (browsers) or 401
GET  /gate/login    the page; POST with user, password and next: a session
POST /gate/logout   ends it

Own code, as Debian has nothing that does it: Caddy's basic login slows nobody down and has no tokens, and a proxy with
accounts elsewhere needs somebody who keeps them. Python's standard library and nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import json
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

COOKIE = "__Host-muster"
# Seconds that a session lasts: a working day.
SESSION = 12 * 3600
# From the fifth wrong password on each costs twice the time of the one before: up to a quarter of an hour where they
# come from, and half a minute for the name, so that nobody is kept out by somebody else's guesses.
FREE, LONGEST, LONGEST_FOR_NAME, REMEMBERED = 5, 900.0, 30.0, 10_000
NAME = "name "
MOST_BODY = 4096
SAFE = ("GET", "HEAD", "OPTIONS")


def scrypt(password: str, salt: str) -> str:
    """As the role writes it (muster/logins.py)."""
    return hashlib.scrypt(password.encode(), salt=salt.encode(), n=2**14, r=8, p=1).hex()


class Brake:
    """Slows down who guesses: by address, and by name from wherever it is tried."""

    def __init__(self) -> None:
        self.wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self.lock = threading.Lock()

    def wait(self, *keys: str) -> float:
        """Seconds until the next try counts."""
        now = time.monotonic()
        with self.lock:
            return max(0.0, *(self._until(key) - now for key in keys))

    def _until(self, key: str) -> float:
        times, last = self.wrong.get(key, (0, 0.0))
        most = LONGEST_FOR_NAME if key.startswith(NAME) else LONGEST
        return last + min(most, 2.0 ** min(times - FREE, 20)) if times >= FREE else 0.0

    def failed(self, *keys: str) -> None:
        with self.lock:
            for key in keys:
                self.wrong[key] = (self.wrong.pop(key, (0, 0.0))[0] + 1, time.monotonic())
            while len(self.wrong) > REMEMBERED:
                self.wrong.popitem(last=False)

    def passed(self, *keys: str) -> None:
        with self.lock:
            for key in keys:
                self.wrong.pop(key, None)


@dataclass
class Gate:
    """Who may pass; read again when the file changes."""

    file: Path
    brake: Brake = field(default_factory=Brake)
    read_at: float = -1.0
    data: dict[str, Any] = field(default_factory=dict)

    def known(self) -> dict[str, Any]:
        changed = self.file.stat().st_mtime
        if changed != self.read_at:
            self.data, self.read_at = json.loads(self.file.read_text()), changed
        return self.data

    def password_is(self, user: str, password: str) -> bool:
        known = self.known()
        # An unknown name costs the same time.
        wanted = known["users"].get(user, "")
        found = scrypt(password, known["salt"] + user)
        return hmac.compare_digest(found, wanted) and bool(wanted)

    def token_of(self, token: str) -> str:
        """Whose personal token it is."""
        digest = hashlib.sha256(token.encode()).hexdigest()
        for name, wanted in self.known()["tokens"].items():
            if hmac.compare_digest(digest, wanted):
                return str(name)
        return ""

    def signature(self, user: str, until: str) -> str:
        known = self.known()
        # With the password's hash in it a new password ends the old sessions.
        text = f"{user}\n{until}\n{known['users'].get(user, '')}"
        return hmac.new(known["key"].encode(), text.encode(), "sha256").hexdigest()

    def session(self, user: str) -> str:
        until = str(int(time.time()) + SESSION)
        return f"{quote(user, safe='')}.{until}.{self.signature(user, until)}"

    def who(self, cookie: str) -> str:
        """Whose session it is; nobody's when it is over or made up."""
        name, _, rest = cookie.partition(".")
        until, _, signature = rest.partition(".")
        users = self.known()["users"]
        user = next((user for user in users if quote(user, safe="") == name), "")
        if not user or not until.isdecimal() or not hmac.compare_digest(signature, self.signature(user, until)):
            return ""
        return user if time.time() < int(until) else ""


def same_site(headers: Mapping[str, str]) -> bool:
    """What a browser sends for another site's page says so."""
    origin = headers.get("Origin", "")
    if origin:
        return urlsplit(origin).netloc == headers.get("X-Forwarded-Host", headers.get("Host", ""))
    return headers.get("Sec-Fetch-Site", "same-origin") in ("same-origin", "none")


def inside(path: str) -> str:
    """Where to go on after the login: on this host, or to its first page."""
    good = path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if good and not path.startswith("/gate/") else "/"


class Handler(BaseHTTPRequestHandler):
    """One request of Caddy's."""

    gate: Gate
    page: str
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "muster", ""
    timeout = 30

    def do_GET(self) -> None:
        path = urlsplit(self.path)
        if path.path == "/gate/check":
            self.check()
        elif path.path == "/gate/login":
            self.login_page(HTTPStatus.OK, inside(parse_qs(path.query).get("next", ["/"])[0]))
        elif path.path == "/gate/health":
            self.gate.known()
            self.answer(HTTPStatus.OK, "well\n")
        else:
            self.answer(HTTPStatus.NOT_FOUND, "not here\n")

    def do_POST(self) -> None:
        if not same_site(self.headers):
            self.answer(HTTPStatus.FORBIDDEN, "this form is of another site\n")
        elif self.path == "/gate/login":
            self.login()
        elif self.path == "/gate/logout":
            self.go("/gate/login", {"Set-Cookie": f"{COOKIE}=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Lax"})
        else:
            self.answer(HTTPStatus.NOT_FOUND, "not here\n")

    def check(self) -> None:
        """Caddy passes what the client sent; method and address of the request are in X-Forwarded-*."""
        method = self.headers.get("X-Forwarded-Method", "GET")
        bearer = self.headers.get("Authorization", "").partition(" ")
        if bearer[0].lower() == "bearer":
            address = self.address()
            if self.gate.brake.wait(address):
                self.answer(HTTPStatus.TOO_MANY_REQUESTS, "too many wrong tokens\n")
            elif name := self.gate.token_of(bearer[2].strip()):
                self.answer(HTTPStatus.OK, "", {"X-Muster-User": name})
            else:
                self.gate.brake.failed(address)
                self.answer(HTTPStatus.UNAUTHORIZED, "this token is of nobody\n", {"WWW-Authenticate": "Bearer"})
            return
        user = self.gate.who(self.cookie())
        browser = "text/html" in self.headers.get("Accept", "")
        upgrade = self.headers.get("Upgrade", "")
        if not user and method == "GET" and browser and not upgrade:
            self.go(f"/gate/login?next={quote(inside(self.headers.get('X-Forwarded-Uri', '/')), safe='')}")
        elif not user:
            self.answer(HTTPStatus.UNAUTHORIZED, "log in first\n", {"WWW-Authenticate": "Bearer"})
        elif (method not in SAFE or upgrade) and not same_site(self.headers):
            self.answer(HTTPStatus.FORBIDDEN, "this comes from another site's page\n")
        else:
            self.answer(HTTPStatus.OK, "", {"X-Muster-User": user})

    def login(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        if size > MOST_BODY:
            self.close_connection = True
            self.answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too much\n")
            return
        form = parse_qs(self.rfile.read(size).decode(errors="replace"))
        user, password = form.get("user", [""])[0].strip(), form.get("password", [""])[0]
        to, keys = inside(form.get("next", ["/"])[0]), (self.address(), NAME + user)
        if (wait := self.gate.brake.wait(*keys)) > 0:
            text = f"Too many wrong passwords. Try again in {wait:.0f} seconds."
            self.login_page(HTTPStatus.TOO_MANY_REQUESTS, to, text, {"Retry-After": str(int(wait) + 1)})
        elif self.gate.password_is(user, password):
            self.gate.brake.passed(*keys)
            self.go(to, {"Set-Cookie": self.fresh(user)})
        else:
            self.gate.brake.failed(*keys)
            self.log(f"wrong password for {user!r} from {keys[0]}")
            self.login_page(HTTPStatus.UNAUTHORIZED, to, "Wrong name or password.")

    def fresh(self, user: str) -> str:
        return f"{COOKIE}={self.gate.session(user)}; Path=/; Max-Age={SESSION}; Secure; HttpOnly; SameSite=Lax"

    def cookie(self) -> str:
        try:
            found = SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        except CookieError:
            return ""
        return found.value if found else ""

    def address(self) -> str:
        """Whose request it is: Caddy writes it, and what a client wrote there itself stands before that."""
        return self.headers.get("X-Forwarded-For", self.client_address[0]).rpartition(",")[2].strip()

    def login_page(self, status: HTTPStatus, to: str, problem: str = "", more: Mapping[str, str] | None = None) -> None:
        text = self.page.replace("@next@", html.escape(to, quote=True)).replace("@problem@", html.escape(problem))
        self.answer(status, text, {"Content-Type": "text/html; charset=utf-8", **(more or {})})

    def go(self, to: str, more: Mapping[str, str] | None = None) -> None:
        self.answer(HTTPStatus.SEE_OTHER, "", {"Location": to, **(more or {})})

    def answer(self, status: HTTPStatus, text: str, more: Mapping[str, str] | None = None) -> None:
        body = text.encode()
        self.send_response(status)
        headers = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store", **(more or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log(self, text: str) -> None:
        print(time.strftime("%Y-%m-%dT%H:%M:%S"), text, file=sys.stderr, flush=True)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Caddy's log has all requests."""


def serve(file: Path, page: Path, port: int) -> ThreadingHTTPServer:
    """On loopback: only Caddy may ask, and says truly who asked it."""
    handler = type("Bound", (Handler,), {"gate": Gate(file), "page": page.read_text(encoding="utf-8")})
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


def main() -> None:
    folder = Path(os.environ.get("MUSTER_GATE", "/etc/muster"))
    serve(folder / "live/logins.json", folder / "login.html", int(sys.argv[1])).serve_forever()


if __name__ == "__main__":
    main()
