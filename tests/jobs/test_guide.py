"""docs/guide.md is so: its Python runs and prints what it shows, its commands parse, its names exist.

A section's ```python blocks run one after the other in this session's Ray. `python driver` is a script of its own in
the section's folder, `python file=NAME` is written there; a file in ray_jobs/ becomes a job for the commands that
follow. `python cluster` needs a real cluster and is compiled only. The ```text after a block is what it prints, where
~N stands for any number; what outcome.progress says is left out. After ```sh it is what `muster run --local` prints.
"""

from __future__ import annotations

import functools
import gc
import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import ray_jobs
from muster import cli
from ray_jobs import command, library, outcome

from ..conftest import ROOT
from .snippets import Block, blocks, prints

TEXT = (ROOT / "docs/guide.md").read_text()
WORDS = " ".join(TEXT.split())
BLOCKS = blocks(TEXT)
SECTIONS = list(dict.fromkeys(block.section for block in BLOCKS))


def commands(program: str) -> list[list[str]]:
    """The guide's command lines that start with this, from its blocks and from `code` in its text."""
    lines = [line for block in BLOCKS if block.language == "sh" for line in block.code.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL))
    return [shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} ")]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for a section, and nothing of it afterwards: no module, no actor that holds a CPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MUSTER_DATA", raising=False)
    monkeypatch.setattr(library, "NAMES", library.NAMES)
    monkeypatch.setattr(ray_jobs, "__path__", [*ray_jobs.__path__, str(tmp_path / "ray_jobs")])
    yield tmp_path
    for path in tmp_path.glob("ray_jobs/*.py"):
        if sys.modules.pop(f"ray_jobs.{path.stem}", None):
            delattr(ray_jobs, path.stem)
    gc.collect()


def write(block: Block, folder: Path) -> None:
    """A file of the guide; one in ray_jobs/ is a job from now on."""
    path = folder / block.mark.removeprefix("file=")
    path.parent.mkdir(exist_ok=True)
    path.write_text(block.code)
    if path.parent.name == "ray_jobs":
        library.NAMES = (*library.NAMES, path.stem)  # type: ignore[assignment]


def alone(folder: Path, *words: str, **environment: str) -> str:
    """What a Python of its own prints: Ray writes to this one's output when it likes."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def local(block: Block, folder: Path) -> str:
    """What the commands of a block print that need no cluster."""
    typed = [words for line in block.code.splitlines() if "--local" in (words := shlex.split(line, comments=True))]
    assert typed, f"line {block.line} shows an output, and no command with --local"
    muster = (
        "import sys, ray_jobs; from ray_jobs import library; from muster import cli;"
        f"ray_jobs.__path__.append('ray_jobs'); library.NAMES = {library.NAMES}; sys.exit(cli.main(sys.argv[1:]))"
    )
    return "".join(alone(folder, "-c", muster, *words[1:]) for words in typed)


def run(block: Block, names: dict[str, Any], folder: Path) -> str:
    """Do what a block says, and return what it prints."""
    if block.language == "sh":
        return local(block, folder) if block.shows is not None else ""
    if block.mark == "driver":
        import ray

        (folder / "shop.py").write_text(block.code)
        return alone(folder, "shop.py", RAY_ADDRESS=ray.get_runtime_context().gcs_address)
    if block.mark.startswith("file="):
        write(block, folder)
    elif block.mark != "cluster":
        said = io.StringIO()
        names["print"] = functools.partial(print, file=said)
        exec(compile(block.code, f"docs/guide.md, {block.section!r}, from line {block.line}", "exec"), names)
        return said.getvalue()
    return ""


@pytest.mark.parametrize("section", SECTIONS)
def test_what_a_section_shows_is_what_happens(section: str, ray_here: None, here: Path) -> None:
    names: dict[str, Any] = {"__name__": "guide"}
    for block in BLOCKS:
        if block.section == section:
            printed = run(block, names, here)
            if block.mark != "cluster":
                assert prints(block.shows or "", printed), f"line {block.line} prints:\n{printed}"


def test_the_job_of_the_guide_is_the_same_on_ray(
    ray_here: None, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    (block,) = [block for block in BLOCKS if block.mark.startswith("file=ray_jobs/")]
    (shows,) = [block.shows for block in BLOCKS if block.language == "sh" and "run interval" in block.code]
    write(block, here)
    module = importlib.import_module("ray_jobs.interval")
    # The session's workers do not have this file, as nodes have it after site.yml --tags code.
    ray.cloudpickle.register_pickle_by_value(module)
    assert prints(shows or "", module.JOB.text(module.JOB.perform(module.Interval(), local=False)))
    assert outcome.last(outcome.PROGRESS, capsys.readouterr().out) == {"done": 20, "total": 20, "note": "medians"}


def test_the_job_of_the_guide_refuses_bad_parameters(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in BLOCKS if block.mark.startswith("file=ray_jobs/")]
    write(block, here)
    assert cli.main(["run", "interval", "--local", "-p", "draws=1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "draws" in said


def test_every_block_is_of_a_kind_that_is_looked_at() -> None:
    assert {block.language for block in BLOCKS} == {"python", "sh"}
    for block in BLOCKS:
        if block.language == "python":
            assert re.fullmatch(r"|driver|cluster|file=[a-z_/]+\.py", block.mark), f"line {block.line}: {block.mark}"
            compile(block.code, str(block.line), "exec")
            assert ("print(" in block.code) == (block.shows is not None) or block.mark, f"line {block.line}"
        else:
            assert not block.mark
    # None is lost: every fence belongs to a block, or to what a block shows.
    assert TEXT.count("\n```") == 2 * (len(BLOCKS) + sum(block.shows is not None for block in BLOCKS))


def test_muster_knows_the_commands(here: Path) -> None:
    for block in BLOCKS:
        if block.mark.startswith("file="):
            write(block, here)
    typed = commands("muster")
    assert len(typed) >= 5
    for words in typed:
        options = cli.parser().parse_args(words[1:])
        if options.command == "run" and options.name != "NAME":
            command.parse(library.get(options.name).model, options.params, options.pairs)


def test_ray_knows_the_commands() -> None:
    from ray.dashboard.modules.job.cli import job_cli_group

    typed = commands("ray job submit")
    assert len(typed) >= 2
    for words in typed:
        words = [word for word in words[3:] if word != "$v"]
        # What the text names without its program.
        words += [] if "--" in words else ["--", "true"]
        with job_cli_group.commands["submit"].make_context("submit", words) as context:
            json.loads(context.params["runtime_env_json"] or "{}")


def test_variables_alerts_and_files_exist() -> None:
    code = set(re.findall(r"`([^`\n]+)`", TEXT))
    defaults: set[str] = set()
    for path in [*ROOT.glob("group_vars/all/*.yml"), *ROOT.glob("roles/*/defaults/main.yml")]:
        defaults |= set(yaml.safe_load(path.read_text()) or {})
    variables = {name for name in code if re.fullmatch(r"(?:ray|node_image|gateway|celery|storage)_[a-z_]+", name)}
    variables.discard("ray_jobs")
    assert variables >= {"ray_worker_memory", "node_image_wheelhouse"}
    assert variables <= defaults
    rules = "".join(path.read_text() for path in ROOT.glob("roles/prometheus/files/rules/*.yml"))
    alerts = re.findall(r"alert `(\w+)`(?: or `(\w+)`)?", TEXT)
    assert len(alerts) == 2
    for alert in filter(None, sum(alerts, ())):
        assert f"- alert: {alert}\n" in rules
    for name in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / "docs" / name).is_file(), name
    for name in code:
        if re.fullmatch(r"[a-z_]+/[a-z_/]+\.[a-z]+", name) and not name.startswith("lib/"):
            assert (ROOT / name).is_file(), name


def test_what_it_says_of_pip_is_so() -> None:
    """Ray takes its options, and the image has what Ray needs; molecule/node_image runs it."""
    from ray.runtime_env import RuntimeEnv

    asked = [json.loads(code) for code in re.findall(r"`(\{\"pip\"[^`]+)`", WORDS)]
    assert [RuntimeEnv(**one).pip_config()["packages"] for one in asked] == [["vat"], ["vat"]]
    shared = yaml.safe_load((ROOT / "group_vars/all/storage.yml").read_text())["storage_volumes"]
    assert ":/srv/muster:" in shared
    assert asked[1]["pip"]["pip_install_options"] == ["--no-index", "--find-links=/srv/muster/wheels"]
    for path in ROOT.glob("images/node/*.txt"):
        assert re.search(r"^virtualenv==", path.read_text(), re.MULTILINE), path


def test_its_limits_are_those_of_the_libraries() -> None:
    import ray
    from ray._private.ray_constants import DEFAULT_TASK_MAX_RETRIES
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE
    from ray.dashboard.consts import DEFAULT_JOB_START_TIMEOUT_SECONDS

    from muster.sizing import OBJECT_STORE_SHARE

    assert ray.exceptions.ObjectStoreFullError and ray.exceptions.OutOfMemoryError
    assert f"{GCS_STORAGE_MAX_SIZE // 2**20} MiB at most" in WORDS
    assert f"After {DEFAULT_JOB_START_TIMEOUT_SECONDS // 60} minutes" in WORDS
    assert f"{100 * OBJECT_STORE_SHARE:.0f} % of its worker's memory" in WORDS
    assert DEFAULT_TASK_MAX_RETRIES == 3 and "three times unless you say else" in WORDS


def test_it_is_short_and_found() -> None:
    assert len(TEXT.splitlines()) < 300
    assert all(len(line) <= 120 for line in TEXT.splitlines() if not line.startswith("|"))
    assert "(docs/guide.md)" in (ROOT / "README.md").read_text()
    assert "(guide.md)" in (ROOT / "docs/jobs.md").read_text()


def test_an_output_that_differs_is_noticed() -> None:
    assert prints("~1.5 ms, 3 times: True\n", "17 ms, 3 times: True\n")
    assert prints("a\nb\n", f"a\n{outcome.PROGRESS}{{}}\nb\n")
    assert not prints("~1.5 ms, 3 times: True\n", "17 ms, 4 times: True\n")
    assert not prints("~1.5 ms\n", "quick ms\n")
    assert not prints("a\n", "a\nb\n")
    assert not prints("", "a\n")
