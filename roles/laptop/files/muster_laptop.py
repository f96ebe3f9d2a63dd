"""A laptop's agent: it decides whether the laptop works now, tells its services so, and reports to the broker.

muster-laptop pause [MINUTES] | resume | status    the owner's; anybody on the laptop may ask
muster-laptop run | sleep | wake                   systemd's: the agent itself, and the hook around every sleep

Nothing but Python's standard library, 3.9 or newer, and little of that: it is always there.
"""

from __future__ import annotations

import json
import os
import select
import socket
import ssl
import struct
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS = Path(os.environ.get("MUSTER_LAPTOP_SETTINGS", "/etc/muster/laptop/laptop.json"))
LAPTOPS = "muster:laptops"
POLL, REPORT = 1.0, 10.0
# Seconds for one answer of the broker; for how long it is asked again at once after waking, and how often later.
ANSWER, EAGER, LATER = 2.0, 60.0, 5.0
# What runs may take so long when the host is about to sleep; how long the hook waits for all services.
HASTE, SLEEP = 2.5, 4.5
# What runs may take so long when the network is another one.
BRIEF = 4.0
# A loop that stood still for so long was away. So long after waking it may work on unseen, as the lease is still good.
GAP, TRUST = 8.0, 3.0
# An answer is written to said/ at least every five seconds: an older one is of a service that is gone.
GONE = 15.0
# A sleep that was announced and never came.
NO_SLEEP = 120.0
# What was too hot must cool down by so much, in degrees; a battery that was too low must gain so much, in percent.
COOLER, FULLER = 5.0, 5
NEVER = float("inf")
# Minutes of a year: an owner who wants a longer pause says `pause` alone.
LONGEST = 525_600


# What is seen of the laptop. Everything is read below `root`, which tests replace.


def read(path: Path) -> str:
    """A small file's text; empty when it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(256).strip()
    except OSError:
        return ""


def entries(folder: Path) -> list[Path]:
    """What a directory has."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def read_power(root: Path) -> tuple[int | None, bool | None]:
    """Percent in the batteries, and whether it is plugged in; None for what it has not."""
    charge: list[int] = []
    plugs: list[bool] = []
    draining = False
    for supply in entries(root / "sys/class/power_supply"):
        kind = read(supply / "type")
        # A mouse has a battery, too.
        if kind == "Battery" and read(supply / "scope") != "Device":
            percent = number(read(supply / "capacity"))
            charge += [] if percent is None else [percent]
            draining = draining or read(supply / "status") == "Discharging"
        elif kind in ("Mains", "USB", "Wireless"):
            online = read(supply / "online")
            plugs += [online != "0"] if online else []
    battery = sum(charge) // len(charge) if charge else None
    if plugs:
        return battery, any(plugs)
    return battery, not draining if charge else None


def read_temperature(root: Path) -> float | None:
    """The hottest of the processor's sensors, or of all where none is the processor's."""
    zones = [zone for zone in entries(root / "sys/class/thermal") if zone.name.startswith("thermal_zone")]
    own = [zone for zone in zones if read(zone / "type").startswith(("x86_pkg_temp", "cpu", "soc"))]
    found = [number(read(zone / "temp")) for zone in own or zones]
    # Sensors that are asleep say 0, broken ones what no processor survives.
    return max((value / 1000 for value in found if value is not None and 0 < value < 150_000), default=None)


def read_lid(root: Path) -> str | None:
    for lid in entries(root / "proc/acpi/button/lid"):
        word = read(lid / "state").rpartition(":")[2].strip()
        if word in ("open", "closed"):
            return word
    return None


def local_address(host: str, port: int) -> str:
    """From which of its addresses it would speak to the broker; nothing is sent."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def boottime() -> float:
    """A clock that goes on while the host sleeps and that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def asleep_for() -> float:
    """How long the host has slept since it was started."""
    return boottime() - time.monotonic()


# What is decided.


@dataclass(frozen=True)
class Policy:
    """The owner's and the operator's wishes, from the inventory. Hours: weekdays, from and to in minutes of the day."""

    on_battery: str = "pause"
    min_battery: int = 30
    max_temperature: float = 90.0
    hours: tuple[tuple[tuple[int, ...], int, int], ...] = ()
    lid: str = "suspend"
    clock_tolerance: float = 5.0
    grace: float = 30.0

    @classmethod
    def of(cls, given: dict[str, Any]) -> Policy:
        hours = tuple((tuple(days), int(start), int(end)) for days, start, end in given.get("hours", ()))
        return cls(**{**given, "hours": hours})


@dataclass(frozen=True)
class Seen:
    """The laptop at a moment. `paused` is until when its owner wants peace; `unsure` why the broker is not trusted."""

    battery: int | None = None
    plugged: bool | None = None
    temperature: float | None = None
    lid: str | None = None
    paused: float = 0.0
    sleeping: bool = False
    hot: bool = False
    low: bool = False
    unsure: str = ""
    clock_off: float | None = None


@dataclass(frozen=True)
class Decision:
    """Whether to work; if not, for how many seconds what runs may go on, and why."""

    work: bool
    within: float = 0.0
    why: str = ""


def decide(policy: Policy, seen: Seen, now: float) -> Decision:
    """The first reason not to work, in the order in which an owner would name them."""
    if seen.sleeping:
        return Decision(False, HASTE, "going to sleep")
    if seen.lid == "closed" and policy.lid == "suspend":
        return Decision(False, HASTE, "the lid is closed")
    why = ""
    if seen.paused > now:
        why = "paused by its owner" + ("" if seen.paused == NEVER else f" until {clock(seen.paused, now)}")
    elif seen.hot:
        why = f"too hot: {seen.temperature or 0:.0f} C, the limit is {policy.max_temperature:.0f} C"
    elif seen.plugged is False and policy.on_battery == "pause":
        why = "on battery"
    elif seen.plugged is False and seen.low:
        why = f"on battery, and that has {seen.battery} %, less than {policy.min_battery} %"
    elif policy.hours and not within_hours(policy.hours, now):
        why = "outside its hours"
    elif seen.clock_off is not None and abs(seen.clock_off) > policy.clock_tolerance:
        side = "ahead" if seen.clock_off > 0 else "behind"
        why = f"its clock is {abs(seen.clock_off):.0f} s {side}"
    elif seen.unsure:
        # The connections of what runs are most likely dead.
        return Decision(False, min(policy.grace, BRIEF), seen.unsure)
    return Decision(not why, policy.grace if why else 0.0, why)


def within_hours(hours: tuple[tuple[tuple[int, ...], int, int], ...], now: float) -> bool:
    """Whether one of the ranges has this moment of local time; one that ends before it begins goes over midnight."""
    moment = time.localtime(now)
    minute, today, yesterday = moment.tm_hour * 60 + moment.tm_min, moment.tm_wday, (moment.tm_wday - 1) % 7
    for days, start, end in hours:
        if start < end:
            if today in days and start <= minute < end:
                return True
        elif (today in days and minute >= start) or (yesterday in days and minute < end):
            return True
    return False


def too_hot(policy: Policy, temperature: float | None, before: bool) -> bool:
    """Hotter than allowed; what was so stays it until it is some degrees cooler."""
    return temperature is not None and temperature > policy.max_temperature - (COOLER if before else 0)


def too_low(policy: Policy, battery: int | None, before: bool) -> bool:
    return battery is not None and battery < policy.min_battery + (FULLER if before else 0)


def clock(moment: float, now: float) -> str:
    """A time of today, or with its date."""
    near = time.strftime("%x", time.localtime(moment)) == time.strftime("%x", time.localtime(now))
    return time.strftime("%H:%M" if near else "%Y-%m-%d %H:%M", time.localtime(moment))


# The broker.


class RefusedError(Exception):
    """Redis answered, with an error."""


class Redis:
    """As much of a client as this needs: a login, questions, answers; one connection, made when it is needed."""

    def __init__(self, place: dict[str, Any]) -> None:
        self.place = place
        self.socket: socket.socket | None = None
        self.file: Any = None

    def close(self) -> None:
        for what in (self.file, self.socket):
            try:
                if what is not None:
                    what.close()
            except OSError:
                pass
        self.socket = self.file = None

    def ask(self, *command: str) -> Any:
        """One question. After any trouble with the connection the next one makes a new one."""
        try:
            if self.socket is None:
                self.connect()
            return self.exchange(*command)
        except OSError:
            self.close()
            raise

    def connect(self) -> None:
        place = self.place
        plain = socket.create_connection((place["host"], int(place["port"])), timeout=ANSWER)
        self.socket = plain
        if place.get("ca"):
            # Read anew each time: certificates are renewed.
            context = ssl.create_default_context(cafile=place["ca"])
            context.load_cert_chain(place["cert"], place["key"])
            self.socket = context.wrap_socket(plain, server_hostname=place["host"])
        self.file = self.socket.makefile("rb")
        if place.get("user"):
            try:
                self.exchange("AUTH", place["user"], read(Path(place["password_file"])))
            except RefusedError:
                self.close()
                raise

    def exchange(self, *command: str) -> Any:
        assert self.socket
        parts = [part.encode() for part in command]
        lines = [b"*%d\r\n" % len(parts)] + [b"$%d\r\n%s\r\n" % (len(part), part) for part in parts]
        self.socket.sendall(b"".join(lines))
        return self.answer()

    def answer(self) -> Any:
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the broker closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            raise RefusedError(rest.decode(errors="replace"))
        if kind == b"+":
            return rest.decode()
        if kind == b":":
            return int(rest)
        if kind == b"$":
            if int(rest) < 0:
                return None
            body = self.file.read(int(rest) + 2)
            if len(body) < int(rest) + 2:
                raise ConnectionError("the broker closed the connection")
            return body[:-2].decode()
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        raise ConnectionError("this is no Redis")


class Broker(threading.Thread):
    """Reports to Redis beside the agent's loop: a network that is gone holds nobody up."""

    def __init__(self, redis: Redis, name: str) -> None:
        super().__init__(daemon=True)
        self.redis, self.name = redis, name
        self.changed = threading.Condition()
        self.report: dict[str, Any] = {}
        self.hurry = self.anew = False
        self.sent: dict[str, Any] = {}
        self.since: float | None = None
        # What the last question showed: when it was answered (the boot clock), how far this host's clock is ahead of
        # Redis', and what was wrong.
        self.good_at = self.begun_at = -NEVER
        self.clock_off: float | None = None
        self.error = ""
        self.patient_at = boottime()

    def post(self, report: dict[str, Any], *, hurry: bool = False, anew: bool = False) -> None:
        """What is to be reported from now on; at once if it is new. `anew`: not over the connection of before."""
        with self.changed:
            if report != self.report or hurry or anew:
                self.report, self.hurry = report, True
            if anew:
                self.anew, self.patient_at = True, boottime()
            if self.hurry:
                self.changed.notify_all()

    def wait_sent(self, report: dict[str, Any], seconds: float) -> bool:
        """Whether this report has arrived, after so long at most."""
        with self.changed:
            return self.changed.wait_for(lambda: self.sent == report, timeout=seconds)

    def run(self) -> None:
        while True:
            with self.changed:
                eager = boottime() - self.patient_at < EAGER
                self.changed.wait_for(
                    lambda: self.hurry, timeout=REPORT if not self.error else POLL if eager else LATER
                )
                report, self.hurry, anew = dict(self.report), False, self.anew
                self.anew = False
            if not report:
                continue
            begun = boottime()
            try:
                if anew:
                    self.redis.close()
                self.tell(report)
                error = ""
            except Exception as problem:  # whatever it is, the next report may be better
                error = str(problem) or type(problem).__name__
            with self.changed:
                if error != self.error:
                    print(f"the broker does not answer: {error}" if error else "the broker answers", flush=True)
                self.error = error
                if not error:
                    self.sent, self.begun_at, self.good_at = report, begun, boottime()
                self.changed.notify_all()

    def tell(self, report: dict[str, Any]) -> None:
        before = time.time()
        seconds, micros = self.redis.ask("TIME")
        now = int(seconds) + int(micros) / 1e6
        self.clock_off = (before + time.time()) / 2 - now
        if self.since is None:
            # A former life of this agent may have said the same.
            found = json.loads(self.redis.ask("HGET", LAPTOPS, self.name) or "{}")
            self.sent = found if isinstance(found, dict) else {}
            self.since = float(self.sent.get("since") or now)
        if any(report[key] != self.sent.get(key) for key in ("state", "why")):
            self.since = now
        self.redis.ask("HSET", LAPTOPS, self.name, json.dumps({**report, "since": self.since, "at": now}))


# The agent.


def write(path: Path, value: dict[str, Any]) -> None:
    """In one step: who reads it sees the old or the new, and so does the next boot."""
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.chmod(0o644)
    fresh.replace(path)


def load(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def services(folder: Path) -> dict[str, dict[str, Any]]:
    """What the services of this laptop last said, without those that are gone."""
    said = {}
    for path in entries(folder / "said"):
        try:
            fresh = abs(time.time() - path.stat().st_mtime) < GONE
        except OSError:
            continue
        if path.suffix == ".json" and fresh:
            said[path.stem] = load(path)
    return said


class Agent:
    """One look after the other at the laptop; what is decided is written down for its services."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.name = settings, settings["name"]
        self.policy = Policy.of(settings["policy"])
        self.folder, self.root = Path(settings["directory"]), Path(settings["root"])
        self.want, self.owner = self.folder / "want", self.folder / "owner"
        self.broker = Broker(Redis(settings["redis"]), self.name)
        paused = load(self.owner).get("paused_until", 0)
        self.paused = NEVER if paused is None else float(paused)
        self.sleeping_since: float | None = None
        self.asleep = self.hot = self.low = False
        # Since when, and for how long that is no reason to stop, and what happened.
        self.unsure: tuple[float, float, str] | None = None
        self.last, self.slept, self.ahead = boottime(), asleep_for(), time.time() - boottime()
        self.address = ""
        self.seen, self.decision = Seen(), Decision(True)
        self.written: Decision | None = None

    def look(self) -> None:
        """See, decide, tell."""
        time.tzset()
        self.notice()
        battery, plugged = read_power(self.root)
        temperature = read_temperature(self.root)
        self.hot = too_hot(self.policy, temperature, self.hot)
        self.low = too_low(self.policy, battery, self.low)
        self.seen = Seen(
            battery=battery,
            plugged=plugged,
            temperature=temperature,
            lid=read_lid(self.root),
            paused=self.paused,
            sleeping=self.sleeping_since is not None,
            hot=self.hot,
            low=self.low,
            unsure=self.doubt(),
            clock_off=self.broker.clock_off,
        )
        self.decision = decide(self.policy, self.seen, time.time())
        self.tell()

    def notice(self) -> None:
        """What happened since the last look: a sleep, another network, a clock that was set."""
        now, slept, ahead = boottime(), asleep_for(), time.time() - boottime()
        here = self.settings["redis"]
        address = local_address(here["host"], int(here["port"]))
        away = now - self.last
        moved = bool(address and self.address and address != self.address)
        if away > GAP or slept - self.slept > 1:
            print(f"was away for {away:.0f} s", flush=True)
            # Announced or not, it is over.
            announced, self.sleeping_since, self.asleep = self.sleeping_since is not None, None, False
            self.doubts(0 if announced or moved else TRUST, "woke up")
        elif moved:
            self.doubts(0, f"its address is {address} now")
        elif abs(ahead - self.ahead) > 1:
            # Its clock was set: how it stands is known from the next answer.
            self.broker.post(self.broker.report, hurry=True)
        elif self.sleeping_since is not None and now - self.sleeping_since > NO_SLEEP:
            self.wake()
        self.last, self.slept, self.ahead = boottime(), slept, ahead
        self.address = address or self.address

    def doubts(self, trust: float, what: str) -> None:
        """Nothing is known of clock, network and broker until they are asked again."""
        self.unsure = (boottime(), trust, what)
        self.broker.clock_off = None
        if self.broker.report:
            self.broker.post(self.broker.report, anew=True)

    def doubt(self) -> str:
        """Why it should not work, since it woke or moved; empty as soon as the broker has answered."""
        if self.unsure is None:
            return ""
        since, trust, what = self.unsure
        if self.broker.begun_at >= since:
            self.unsure = None
            return ""
        if boottime() - since < trust:
            return ""
        return f"{what}; waits for the broker" + (f" ({self.broker.error})" if self.broker.error else "")

    def tell(self) -> None:
        decision = self.decision
        if decision != self.written or not self.want.exists():
            write(
                self.want,
                {"work": decision.work, "within": decision.within, "why": decision.why, "at": time.time()},
            )
            print("works" if decision.work else f"takes no work: {decision.why}", flush=True)
            self.written = decision
        # A clock that is wrong may be right at any moment.
        self.broker.post(self.report(), hurry="clock" in decision.why)

    def report(self) -> dict[str, Any]:
        return {
            "state": "asleep" if self.asleep else "ready" if self.decision.work else "draining",
            "why": "" if self.asleep else self.decision.why,
            "battery": self.seen.battery,
            "plugged": self.seen.plugged,
            "lid": self.seen.lid,
            "address": self.address,
        }

    # What it is told, by the words of the command.

    def obey(self, words: list[str], *, root: bool) -> str:
        """The answer to one command; it begins with `error:` when it was none."""
        if words[:1] == ["status"]:
            return "\n".join(self.status())
        if words[:1] == ["pause"]:
            return self.pause(words[1:])
        if words[:1] == ["resume"]:
            self.keep(0.0)
            return f"{self.name} works again" if self.decision.work else f"{self.name} waits: {self.decision.why}"
        if words[0:1] not in (["sleep"], ["asleep"], ["wake"]):
            return "error: say pause [MINUTES], resume or status"
        if not root:
            return f"error: only root may say {words[0]}"
        if words == ["sleep"]:
            self.sleeping_since = boottime()
            self.look()
        elif words == ["asleep"]:
            self.asleep = self.sleeping_since is not None
            report = self.report()
            self.broker.post(report, hurry=True)
            self.broker.wait_sent(report, 1.0)
            self.last = boottime()
        else:
            self.wake()
            self.look()
        return self.decision.why

    def wake(self) -> None:
        if self.sleeping_since is not None:
            self.sleeping_since, self.asleep = None, False
            self.doubts(0, "woke up")

    def pause(self, words: list[str]) -> str:
        try:
            minutes = float(words[0]) if words else NEVER
            if not (0 < minutes <= LONGEST or minutes == NEVER) or len(words) > 1:
                raise ValueError
        except ValueError:
            return "error: say pause, or pause MINUTES as in pause 90"
        self.keep(time.time() + minutes * 60)
        until = "" if minutes == NEVER else f" until {clock(self.paused, time.time())}"
        grace = f"what runs may end within {self.policy.grace:.0f} s, then another host gets it"
        return f"{self.name} takes no more work{until}; {grace}"

    def keep(self, until: float) -> None:
        """The owner's wish outlasts a boot."""
        self.paused = until
        write(self.owner, {"paused_until": None if until == NEVER else until})
        self.look()

    def status(self) -> list[str]:
        seen, decision = self.seen, self.decision
        power = {True: "plugged in", False: "on battery", None: "no word of its power"}[seen.plugged]
        parts = [power] + ([f"battery {seen.battery} %"] if seen.battery is not None else [])
        parts += [f"{seen.temperature:.0f} C"] if seen.temperature is not None else []
        parts += [f"lid {seen.lid}"] if seen.lid else []
        running = [
            f"{name.partition('_')[2]}: {', '.join(task.get('task', '?') for task in said.get('running', []))}"
            for name, said in services(self.folder).items()
            if said.get("running")
        ]
        resting = [
            f"{name.partition('_')[2]}: {said['why']}"
            for name, said in services(self.folder).items()
            if decision.work and not said.get("work") and said.get("why")
        ]
        broker, off = self.broker, self.broker.clock_off
        answers = f"does not answer ({broker.error})" if broker.error else "answers"
        return [
            f"{self.name} works" if decision.work else f"{self.name} takes no work: {decision.why}",
            f"runs     {'; '.join(running) or 'nothing'}",
            *(f"rests    {line}" for line in resting),
            f"laptop   {', '.join(parts)}",
            f"network  {self.address or 'none'}; the broker {answers}"
            + ("" if off is None or broker.error else f"; clock {abs(off):.1f} s off"),
        ]

    # Its life.

    def serve(self) -> None:
        path = Path(self.settings["socket"])
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(8)
        self.broker.start()
        while True:
            self.look()
            if select.select([listener], [], [], POLL)[0]:
                self.hear(listener)

    def hear(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
            with connection:
                # Nobody may keep the agent waiting.
                connection.settimeout(0.5)
                _, user, _ = struct.unpack(
                    "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                )
                words = connection.recv(256).decode(errors="replace").split()
                # It may have slept since: what is answered is of now.
                self.look()
                connection.settimeout(2)
                connection.sendall(self.obey(words, root=user == 0).encode())
        except OSError as error:
            print(f"a command was not heard: {error}", flush=True)


# The command.


def say(settings: dict[str, Any], *words: str) -> str:
    """What the agent answers to a command."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(4)
        connection.connect(settings["socket"])
        connection.sendall(" ".join(words).encode())
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(4096):
            answer += part
    return answer.decode()


def go_to_sleep(settings: dict[str, Any]) -> None:
    """All that runs here goes back, within seconds, and the broker hears that the laptop sleeps."""
    start, folder = time.monotonic(), Path(settings["directory"])
    try:
        say(settings, "sleep")
    except OSError:
        # The agent is away; the services obey all the same. It says otherwise when it is back.
        write(folder / "want", {"work": False, "within": HASTE, "why": "going to sleep", "at": time.time()})
    while time.monotonic() - start < SLEEP and any(said.get("work") for said in services(folder).values()):
        time.sleep(0.1)
    left = [name for name, said in services(folder).items() if said.get("work")]
    print(f"{', '.join(left)} did not let go" if left else f"let go after {time.monotonic() - start:.1f} s", flush=True)
    say(settings, "asleep")


def main(words: list[str]) -> int:
    if words[:1] in ([], ["help"], ["-h"], ["--help"]):
        print((__doc__ or "").partition("\n\n")[2].rpartition("\n\n")[0])
        return 0 if words else 2
    settings = load(SETTINGS)
    if not settings:
        print(f"muster-laptop: {SETTINGS} cannot be read: is this laptop set up?", file=sys.stderr)
        return 1
    try:
        if words == ["run"]:
            Agent(settings).serve()
        elif words == ["sleep"] and os.geteuid() == 0:
            go_to_sleep(settings)
        else:
            answer = say(settings, *words)
            wrong = answer.startswith("error: ")
            print(answer.replace("error: ", "muster-laptop: ", 1), file=sys.stderr if wrong else sys.stdout)
            return 2 if wrong else 0
    except OSError as error:
        print(f"muster-laptop: the agent does not answer: {error}; see systemctl status muster-laptop", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
