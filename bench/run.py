"""Measure the cluster that `make up` made and keep the figures: bench/figures.json, printed as a table.

`python bench/run.py` measures everything that exists; name some (`rerun scale code hello submit memory overhead
tls celery laptops watched llm rows search workers sizes operate`) for less. Times are of this machine and this hour:
the ratios in the last column are what to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "molecule/shared"))
from jobs import rows, search, sizes, workers  # noqa: E402
from operate import operate  # noqa: E402
from ray_lab import Lab  # noqa: E402
from watched import watched  # noqa: E402

FIGURES = ROOT / "bench/figures.json"
OLD_HELLO = 0.98  # tasks/s of the deployment that Muster replaces, 20 tasks of 1,000,000 iterations
Figure = dict[str, object]


def play(*arguments: str) -> tuple[float, int, str]:
    """Seconds, changes and output of one ansible-playbook run against the lab."""
    begin = time.perf_counter()
    run = subprocess.run(
        ["ansible-playbook", *arguments], cwd=ROOT, capture_output=True, text=True,
        env=dict(os.environ, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg")),
    )  # fmt: skip
    if run.returncode:
        raise SystemExit(f"ansible-playbook {' '.join(arguments)} failed:\n{run.stdout[-3000:]}{run.stderr[-1000:]}")
    changes = sum(int(count) for count in re.findall(r"changed=(\d+)", run.stdout))
    return time.perf_counter() - begin, changes, run.stdout


def inventory() -> dict[str, list[str]]:
    """The lab's hosts by group."""
    listing = subprocess.run(["ansible-inventory", "--list"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name: group.get("hosts", []) for name, group in json.loads(listing.stdout).items()}


def on(host: str, *command: str) -> str:
    return subprocess.run(
        ["docker", "exec", f"lab-{host}", *command], capture_output=True, text=True, check=True
    ).stdout


def image(name: str) -> str:
    """The image that the lab's hosts run."""
    names = on("head", "docker", "images", "--format", "{{.Repository}}:{{.Tag}}").split()
    return next(image for image in names if f"/{name}:" in image)


def rerun() -> Figure:
    """site.yml once more with nothing to do."""
    seconds, changes, _ = play("site.yml")
    return {"seconds": round(seconds, 1), "changed": changes}


def scale() -> Figure:
    """site.yml with nothing to do on 2, 4 and 8 of the lab's hosts (start it with LAB_SERVERS=6 for all three)."""
    groups = inventory()
    hosts = ["head", *(host for host in groups["server"] if host != "head"), *groups["laptop"]]
    times = {n: round(play("site.yml", "--limit", ",".join(hosts[:n]))[0], 1) for n in (2, 4, 8) if n <= len(hosts)}
    most, least = max(times), min(times)
    per_host = (times[most] - times[least]) / max(most - least, 1)
    return {"seconds by hosts": times, "seconds per added host": round(per_host, 2)}


def code() -> Figure:
    """A change in ray_jobs reaches every host; then Celery's services start anew with it and are well again."""
    marker = ROOT / "ray_jobs/bench_marker.py"
    times = {}
    try:
        for name, arguments in (("every host", ("--skip-tags", "celery")), ("with Celery's restart", ())):
            marker.write_text(f'"""Written by the benchmark at {time.time()}."""\n')
            times[f"seconds, {name}"] = round(play("site.yml", "--tags", "code", *arguments)[0], 1)
    finally:
        marker.unlink()
        play("site.yml", "--tags", "code")
    return times


def hello() -> Figure:
    """20 tasks of 1,000,000 iterations over the lab's workers."""
    command = ["docker", "exec", "ray_head-head-1", "python", "-m", "ray_jobs.hello", "--json"]
    rates = [20 / json.loads(on("head", *command).splitlines()[-1])["seconds"] for _ in range(4)][1:]
    rate = statistics.median(rates)
    return {"tasks/s": round(rate, 1), "times the old deployment": round(rate / OLD_HELLO, 1)}


def submit() -> Figure:
    """What a job costs beside its work: `muster run` through the gateway, Ray's own command, and none at all."""
    hello = ["ray_jobs.hello", "-p", "tasks=1", "-p", "iterations=0"]
    run = [sys.executable, "-m", "muster.cli", "run", "hello", *hello[1:]]
    inside = ["docker", "exec", "lab-head", "docker", "exec", "ray_head-head-1"]
    bare = [*inside, "python", "-m", *hello]
    rays = [*inside, "ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--", "python", "-m", *hello]
    ways = {"muster run": run, "ray job submit": rays, "the same in the head's container": bare}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(5):
        for name, command in ways.items():
            begin = time.perf_counter()
            subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    ratios = {f"{name} takes": f"x{seconds / medians['muster run']:.2f}" for name, seconds in medians.items()}
    return {"seconds": medians, **ratios}


def memory() -> Figure:
    """Memory of the head's and the workers' containers without jobs."""
    figures: Figure = {}
    for host in inventory()["server"]:
        for line in on(host, "docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}").splitlines():
            name, used = line.split()[:2]
            if name.startswith("ray_"):
                figures[f"{host}/{name}"] = used
    return figures


def median_of(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}


def inside(*prefix: str, options: tuple[str, ...] = ()) -> dict[str, float]:
    """Run bench/inside.py behind a prefix (a container, a chroot)."""
    argv = [*prefix, "timeout", "300", "python", "/bench/inside.py", *options]
    run = subprocess.run(argv, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"{' '.join(prefix)} failed:\n{run.stdout[-1000:]}{run.stderr[-3000:]}")
    figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return figures


def container(*more: str) -> list[str]:
    return ["docker", "run", "--rm", "--network", "host", "--shm-size", "2g", "-v", f"{ROOT}/bench:/bench:ro", *more,
            "--entrypoint", "", image("node")]  # fmt: skip


@contextmanager
def alone() -> Iterator[None]:
    """The lab's services stand still: those of a whole cluster would take turns with what is measured."""
    hosts = inventory()["server"] + inventory().get("laptop", [])
    for host in hosts:
        on(host, "sh", "-c", "docker pause $(docker ps -q)")
    try:
        yield
    finally:
        for host in hosts:
            on(host, "sh", "-c", "docker unpause $(docker ps -q --filter status=paused)")


def compare(one: Callable[[], dict[str, float]], other: Callable[[], dict[str, float]], rounds: int = 5) -> Figure:
    """Alternate two ways of doing the same and give medians and their ratio."""
    runs: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    with alone():
        for _ in range(rounds):
            runs[0].append(one())
            runs[1].append(other())
    first, second = median_of(runs[0]), median_of(runs[1])
    return {key: {"with": first[key], "without": second[key], "ratio": round(first[key] / second[key], 3)}
            for key in first}  # fmt: skip


def overhead() -> Figure:
    """Ray in a container against Ray in the same files without a container (a chroot on this machine)."""
    root = Path(tempfile.mkdtemp(prefix="muster-bench-"))
    made = subprocess.run(
        ["docker", "create", image("node")], capture_output=True, text=True, check=True
    ).stdout.strip()
    mounts = [root / "proc", root / "dev", root / "dev/shm", root / "sys"]
    try:
        subprocess.run(f"docker export {made} | tar -x -C {root}", shell=True, check=True)
        shutil.copytree(ROOT / "bench", root / "bench", ignore=shutil.ignore_patterns("figures*"))
        for kind, mount in zip(("proc", "devtmpfs", "tmpfs", "sysfs"), mounts, strict=True):
            mount.mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", kind, kind, mount], check=True)
        path = json.loads(
            subprocess.run(["docker", "inspect", made], capture_output=True, text=True, check=True).stdout
        )[0]["Config"]["Env"]  # fmt: skip
        bare = ["env", "-i", "HOME=/tmp", *path, "chroot", str(root)]
        ours = container()
        return compare(lambda: inside(*ours), lambda: inside(*bare))
    finally:
        for mount in reversed(mounts):
            subprocess.run(["umount", mount], check=False, capture_output=True)
        subprocess.run(["docker", "rm", made], check=False, capture_output=True)
        if not any(os.path.ismount(mount) for mount in mounts):
            shutil.rmtree(root)


def tls() -> Figure:
    """What TLS between the nodes costs: rates with it and without."""
    pki = ROOT / ".secrets/lab/pki"
    # Ray takes the machine's address for loopback, and the builder's certificate names this one of it.
    here = ("--address", "172.30.0.1")
    own = "hosts/controller_172.30.0.1"
    with tempfile.TemporaryDirectory() as folder:
        for name, source in (("ca.crt", "ca.crt"), ("host.crt", f"{own}.crt"), ("host.key", f"{own}.key")):
            shutil.copyfile(pki / source, Path(folder, name))
            Path(folder, name).chmod(0o644)
        Path(folder).chmod(0o755)
        mount = ["-v", f"{folder}:/tls:ro"]
        with_tls, without = container(*mount), container()
        return compare(
            lambda: inside(*with_tls, options=(*here, "--tls", "/tls")), lambda: inside(*without, options=here)
        )


def celery() -> Figure:
    """No-op tasks of a worker against stock Celery's, what each part costs, and an idle worker."""
    command = [sys.executable, str(ROOT / "bench/celery_tasks.py")]
    bursts, idle = (
        json.loads(subprocess.run([*command, *more], check=True, stdout=subprocess.PIPE).stdout)
        for more in ((), ("--idle", "--rounds", "2", "stock", "ours"))
    )
    return {"bursts": bursts, "idle": idle}


# A lease is there before the worker takes anything: what counts is an answer of the worker itself.
ANSWERS = """
import sys, time
from celery_app import app
end = time.monotonic() + 300
while not app.control.ping(destination=[f"default-data@{sys.argv[1]}"], timeout=0.3):
    if time.monotonic() > end:
        sys.exit("no answer within 300 s")
print(time.time())
"""


@contextmanager
def awaited(laptop: str) -> Iterator[list[float]]:
    """Seconds until the laptop's worker answers, from here on."""
    begin, found = time.time(), list[float]()
    yield found
    said = on("head", "docker", "exec", "celery_worker-default-data-1", "python3", "-c", ANSWERS, laptop)
    found.append(round(float(said.split()[-1]) - begin, 1))


def memory_of(laptop: str) -> dict[str, str]:
    """What the worker's container and the agent use."""
    stats = on(laptop, "docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}").splitlines()
    figures = {name: used for name, used, *_ in map(str.split, stats)}
    pid = on(laptop, "systemctl", "show", "--value", "-p", "MainPID", "muster-laptop").strip()
    rss = re.search(r"^VmRSS:\s+(\d+) kB", on(laptop, "cat", f"/proc/{pid}/status"), re.MULTILINE)
    assert rss
    return figures | {"agent": f"{int(rss[1]) / 1024:.1f}MiB"}


def laptops() -> Figure:
    """Spare hosts join one after another, one sleeps 40 s and wakes, all leave (start it with LAB_SPARES=8)."""
    spares = inventory().get("outside", [])
    if not spares:
        raise SystemExit("the lab has no spare hosts: make hosts LAB_SPARES=8")
    joined, runs = {}, {}
    for host in spares:
        with awaited(host) as found:
            runs[host] = round(play("add-laptop.yml", "-e", f"host={host}")[0], 1)
        joined[host] = found[0]
    first = spares[0]
    seconds, changed, _ = play("add-laptop.yml", "-e", f"host={first}")
    used = memory_of(first)
    lab = Lab("lab")
    lab.freeze(first)
    time.sleep(40)
    with awaited(first) as woken:
        lab.thaw(first)
    left = {host: round(play("remove-laptop.yml", "-e", f"host={host}")[0], 1) for host in spares}
    figures: Figure = {
        "seconds until it works": joined,
        "seconds of the run": runs,
        "seconds again": round(seconds, 1),
        "changed again": changed,
        "seconds until it works after 40 s of sleep": woken[0],
        "memory": used,
        "seconds to leave": left,
    }
    if len(spares) > 7:
        figures["8th against 2nd"] = round(joined[spares[7]] / joined[spares[1]], 2)
    return figures


def llm() -> Figure:
    """Tokens per second of a small language model behind Serve, on this machine: clients at once and one by one."""
    command = [str(ROOT / ".venv-jobs/bin/python"), str(ROOT / "bench/llm.py")]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: Figure = json.loads(run.stdout.splitlines()[-1])
    return figures


MEASURES: dict[str, Callable[[], Mapping[str, object]]] = {
    measure.__name__: measure
    for measure in (
        *(rerun, scale, code, hello, submit, memory, overhead, tls, celery, laptops, watched),
        *(llm, rows, search, workers, sizes, operate),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measures", nargs="*", metavar="measure", help=", ".join(MEASURES))
    chosen = parser.parse_args().measures or list(MEASURES)
    if unknown := [name for name in chosen if name not in MEASURES]:
        sys.exit(f"no such measure: {', '.join(unknown)}; there are {', '.join(MEASURES)}")
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for name in chosen:
        print(f"{name}: {MEASURES[name].__doc__}", flush=True)
        figures[name] = dict(MEASURES[name]()) | {"on": time.strftime("%Y-%m-%d")}
        print(json.dumps(figures[name], indent=2), flush=True)
        FIGURES.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
