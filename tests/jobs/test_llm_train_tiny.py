"""The small language model, in this process and on a real Ray."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import afar, command, llm_train_tiny, lm_training, outcome, texts, tiny_lm
from ray_jobs.llm_train_tiny import JOB, Tiny, Trained
from ray_jobs.lm_training import Place
from ray_jobs.tiny_lm import Recipe

SMALL: dict[str, Any] = {
    "layers": 1, "width": 32, "heads": 2, "vocabulary": 320, "context": 32, "steps": 80, "batch": 8,
    "learning_rate": 0.01, "test_share": 0.1, "checkpoint_every": 10,
}  # fmt: skip
STOPPED, SAVED = 35, 30


def sentence(chance: random.Random) -> str:
    """What comes next follows from what came before, which a count of the tokens does not know."""
    colour = chance.choice(["red", "green", "black", "white"])
    animal, plant = chance.choice([("horse", "grass"), ("rabbit", "clover"), ("mouse", "barley")])
    return f"The {colour} {animal} eats all the {plant} that grows near the river before the evening comes."


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Two documents of sentences."""
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(2):
        chance = random.Random(number)
        paragraphs = (" ".join(sentence(chance) for _ in range(6)) for _ in range(40))
        (folder / f"{number}.md").write_text("\n\n".join(paragraphs))
    (folder / "notes.csv").write_text("no,text\n" * 9)
    return folder


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shared storage."""
    folder = tmp_path / "store"
    folder.mkdir()
    monkeypatch.setenv("MUSTER_DATA", os.fspath(folder))
    return folder


def perform(text: Path, local: bool = True, **more: Any) -> Trained:
    answer = JOB.perform(Tiny(**{**SMALL, "data": os.fspath(text), **more}), local)
    assert isinstance(answer, Trained)
    return answer


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_learns_and_loads_anywhere_without_internet(
    text: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError(f"it wants to connect: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    made = perform(text)
    # The text's own chances, of four colours and three animals in a sentence, leave nobody less than 1.1.
    assert 1.1 < made.perplexity < 0.2 * made.perplexity_unigram
    assert made.perplexity_unigram < made.perplexity_untrained
    assert made.steps == SMALL["steps"] and made.resumed == 0
    assert made.model and Path(made.model).parent == store / "models/llm/tiny"

    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    latest = store / "models/llm/tiny/latest"
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names(latest)
    tokenizer = transformers.AutoTokenizer.from_pretrained(latest, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(latest, local_files_only=True)
    assert len(tokenizer) == model.config.vocab_size == made.vocabulary
    strange = "é∞ \n\tnever seen<|endoftext|>"
    assert tokenizer.decode(tokenizer(strange)["input_ids"]) == strange
    prompt = tokenizer("The red horse eats all the", return_tensors="pt")
    with torch.no_grad():
        written = tokenizer.decode(model.generate(**prompt, max_new_tokens=12, do_sample=False)[0])
    # These words follow each other in the text, and nowhere else.
    assert "that grows near the river" in written
    # What was kept is what was measured.
    _, held = texts.split(texts.read(os.fspath(text)), SMALL["test_share"], 0)
    held_ids = torch.tensor(tokenizer(held)["input_ids"])
    assert tiny_lm.perplexity(model, held_ids, SMALL["context"]) == pytest.approx(made.perplexity, rel=0.02)
    about = json.loads((latest / "muster.json").read_text())
    assert about["metrics"]["perplexity"] == made.perplexity
    shown = JOB.text(made)
    assert made.sample.strip() in shown and made.model in shown


def test_what_is_held_out_is_nowhere_in_what_is_learned(text: Path) -> None:
    documents = texts.read(os.fspath(text))
    # A copy of all of it, with other line ends: none may reach the other side.
    learn, held = texts.split([*documents, *(document.replace(" ", "\n") for document in documents)], 0.2, 3)
    paragraphs = {paragraph for document in documents for paragraph in document.split("\n\n")}
    whole = sum(len(paragraph) + 2 for paragraph in paragraphs)
    assert len(learn) + len(held) == pytest.approx(whole, rel=0.02)
    assert len(held) == pytest.approx(0.2 * whole, rel=0.2)
    complete = [paragraph for paragraph in paragraphs if paragraph in held]
    assert len(complete) > 5 and not any(paragraph in learn for paragraph in complete)
    assert texts.split(documents, 0.2, 3) != texts.split(documents, 0.2, 4)


def test_neither_tokenizer_nor_model_is_shown_what_is_held_out(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    learn_tokens, steps = tiny_lm.learn_tokens, tiny_lm.steps

    def reads(learn: str, size: int) -> str:
        seen.append(learn)
        return learn_tokens(learn, size)

    def learns(model: Any, tokens: Any, *more: Any) -> Any:
        seen.append(len(tokens))
        return steps(model, tokens, *more)

    monkeypatch.setattr(tiny_lm, "learn_tokens", reads)
    monkeypatch.setattr(tiny_lm, "steps", learns)
    recipe = Recipe(**{**SMALL, "steps": 1})
    learn, held = "one two three four " * 200, "five six seven eight " * 50
    made = lm_training.train(recipe, learn, held, Place("run"), lambda *said, **shown: None)
    assert seen == [learn, made["train_tokens"]]
    tokenizer = learn_tokens(learn, recipe.vocabulary)
    assert made["train_tokens"] == len(tiny_lm.encode(tokenizer, learn))
    assert made["test_tokens"] == len(tiny_lm.encode(tokenizer, held))


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The run ends when it has done so many steps, as when its process is killed; what it told is kept."""
    told: list[float] = []

    def progress(done: float, total: float, note: str = "", **shown: float) -> None:
        told.append(done)
        if done == steps:
            raise RuntimeError("killed")

    monkeypatch.setattr(outcome, "progress", progress)
    return told


def test_a_run_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    text: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = perform(text)
    monkeypatch.setenv("MUSTER_RAY_JOB", "tiny-1")
    stop_after(STOPPED, monkeypatch)
    with pytest.raises(RuntimeError, match="killed"):
        perform(text)
    assert len(list(store.glob("models/llm/tiny/2*"))) == 1, "a model of a run that did not end"
    (folder,) = store.glob("results/llm_train_tiny/*-tiny-1")
    (folder / ".checkpoint.pt.half-written").touch()
    told = stop_after(-1, monkeypatch)
    again = perform(text)
    assert (again.steps, again.resumed) == (SMALL["steps"], SAVED)
    assert told == list(range(SAVED + 1, SMALL["steps"] + 1))
    assert again.perplexity == pytest.approx(whole.perplexity, rel=1e-4)
    assert again.sample == whole.sample
    # Started once more after its end, it says the same and keeps its one model.
    once_more = perform(text)
    assert (once_more.resumed, once_more.model) == (SMALL["steps"], again.model)
    assert once_more.perplexity == pytest.approx(whole.perplexity, rel=1e-4)
    assert len(list(store.glob("models/llm/tiny/*"))) == 3  # two models and `latest`
    assert not list(store.rglob(".*"))
    assert json.loads((folder / "run.json").read_text())["starts"] == 3
    # Another text is held out elsewhere: nothing may go on with it.
    (text / "2.txt").write_text(" ".join(sentence(random.Random(9)) for _ in range(50)))
    with pytest.raises(command.JobError, match="start a new run"):
        perform(text)


def test_a_model_that_is_there_is_never_written_over(text: Path, store: Path) -> None:
    first = perform(text, version="v1", steps=2)
    assert first.model
    before = (Path(first.model) / "muster.json").read_text()
    with pytest.raises(command.JobError, match=r"version: .* is there already"):
        perform(text, version="v1", steps=3)
    assert (Path(first.model) / "muster.json").read_text() == before
    # One that came while this one trained, too.
    place = Place("another", model=Path(first.model))
    with pytest.raises(command.JobError, match="cannot be written"):
        lm_training.train(
            Recipe(**{**SMALL, "steps": 1}), "a b c " * 500, "a b " * 99, place, lambda *said, **shown: None
        )
    assert (Path(first.model) / "muster.json").read_text() == before
    assert names(Path(first.model).parent) == {"latest", "v1"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [("a.txt", None, "is not there"), ("a.csv", "", "no .txt or .md file"), ("a.txt", " \n\n ", "no text in it"),
     ("a.md", "A few words only.\n" * 9, r"too little text: \d+ tokens .* context=32"),
     ("a.txt", b"\xff\xfe\x00", "UTF-8")],
)  # fmt: skip
def test_text_that_is_no_use_is_one_line(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | bytes | None, reason: str
) -> None:
    folder = tmp_path / "text"
    if content is not None:
        folder.mkdir()
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    words = [f"{key}={value}" for key, value in {**SMALL, "data": folder}.items()]
    assert JOB.main(["--local", *(argument for word in words for argument in ("-p", word))]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    with pytest.raises(command.JobError, match=reason):
        raise command.JobError(said)
    assert not list(store.rglob("checkpoint.pt")) and not list(store.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [(["width=30", "heads=4"], "width=30 is not divisible by heads=4"), (["steps=0"], "steps"),
     (["vocabulary=200"], "vocabulary"), (["layers=24", "width=1024"], "GiB, 8 at most"), (["name=../up"], "name")],
)  # fmt: skip
def test_a_bad_parameter_is_one_line_before_any_work(
    pairs: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = ["data=/nowhere", *pairs]
    assert JOB.main(["--local", *(argument for pair in pairs for argument in ("-p", pair))]) == 2
    said = capsys.readouterr().err
    assert reason in said and said.count("\n") == 1


def test_without_a_storage_nothing_is_kept(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUSTER_DATA", raising=False)
    made = perform(text, steps=1)
    assert made.model is None
    assert "not kept" in JOB.text(made)


def test_every_machine_has_text_enough_for_the_defaults() -> None:
    tiny = Tiny()
    learn, held = texts.split(texts.read(tiny.data), tiny.test_share, tiny.seed)
    # A token of such a vocabulary is three characters or so.
    assert len(learn) > 2000 * tiny.context and len(held) > 100 * tiny.context


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, ray_jobs.llm_train_tiny;"
        "sys.exit(any(name in sys.modules for name in ('ray', 'torch', 'transformers', 'tokenizers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# On a real Ray.


def waits_until_seen(path: Path, tell: lm_training.Tell) -> str:
    tell(1, 2, "half", loss=0.25)
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, "nobody saw how far it is"
        time.sleep(0.1)
    return afar.here()


def test_how_far_it_is_is_seen_while_it_works(ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []

    def progress(*what: Any, **shown: float) -> None:
        said.append((what, shown))
        (tmp_path / "seen").touch()

    monkeypatch.setattr(outcome, "progress", progress)
    assert afar.call(waits_until_seen, tmp_path / "seen", cpus=1) == afar.here()
    assert said == [((1, 2, "half"), {"loss": 0.25})]


def dies_once(recipe: Recipe, learn: str, held: str, place: Place, tell: lm_training.Tell) -> dict[str, Any]:
    """The training, whose process is killed in the middle of it the first time."""
    assert place.checkpoint
    mark = place.checkpoint.with_name("died")

    def told(done: float, total: float, note: str, **shown: float) -> None:
        if done == STOPPED and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        tell(done, total, note, **shown)

    return lm_training.train(recipe, learn, held, place, told)


def test_a_killed_task_goes_on_from_its_checkpoint(
    ray_here: None, text: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = perform(text)
    monkeypatch.setattr(lm_training, "train", dies_once)
    there = perform(text, local=False)
    assert len(list(store.rglob("died"))) == 1
    assert (there.steps, there.resumed) == (SMALL["steps"], SAVED)
    # One server's answer is this process' answer, killed or not.
    assert there.perplexity == pytest.approx(here.perplexity, rel=1e-3)
    assert there.model and (Path(there.model) / "model.safetensors").exists()
    assert there.node == afar.here()


def test_on_ray_a_mistake_is_one_line_too(
    ray_here: None, tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("A few words only.\n" * 9)
    assert JOB.main(["-p", f"data={tmp_path / 'a.txt'}"]) == 1
    assert capsys.readouterr().err.startswith("data: too little text")
    assert JOB.main(["-p", "cpus=64"]) == 1
    assert capsys.readouterr().err == "cpus: 64 are wanted of one server, the largest has 2\n"
    assert llm_train_tiny.Tiny().cpus == 1
