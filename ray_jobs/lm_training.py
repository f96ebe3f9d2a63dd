"""The training of a small language model from its first step or its last checkpoint to a folder of what came out."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs import afar, tiny_lm
from ray_jobs.command import JobError
from ray_jobs.texts import END
from ray_jobs.tiny_lm import Recipe

# Tokens of held-out text that are looked at: more change the third digit only.
MEASURED = 100_000
# How the text goes on after a prompt, to show in the answer.
PROMPT, SAMPLE = 8, 60
# Chat is not what it was trained for; with this whoever serves it can put a chat to it.
CHAT = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
ABOUT = "muster.json"

# As outcome.progress.
Tell = Callable[..., object]


@dataclass(frozen=True)
class Place:
    """Where a run leaves things: its checkpoint, and its model under the run's name. None: nowhere."""

    run: str
    checkpoint: Path | None = None
    model: Path | None = None

    def taken(self) -> bool:
        """Somebody else's model is there."""
        if self.model is None or not self.model.exists():
            return False
        try:
            return bool(json.loads((self.model / ABOUT).read_text())["run"] != self.run)
        except (OSError, ValueError, KeyError, TypeError):
            return True

    def check(self) -> None:
        """Notice now, not after the training, that this node has not the storage that the run began on."""
        for path in (self.checkpoint, self.model):
            if path and not path.parent.is_dir():
                raise JobError(f"{path.parent} is not there on {afar.here()}: all servers need the shared storage")


def save(path: Path, state: dict[str, Any]) -> None:
    """A checkpoint, complete or not at all."""
    import torch

    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
        partial.replace(path)
    except OSError as error:
        raise JobError(f"checkpoint: {path} cannot be written on {afar.here()}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path | None, identity: str) -> dict[str, Any] | None:
    """The run's last checkpoint; None when it has none."""
    import torch

    if path is None:
        return None
    # What a process left that was killed while it wrote.
    for partial in path.parent.glob(f".{path.name}.*"):
        partial.unlink(missing_ok=True)
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    # Another text is split in another way: what is held out now may have been trained on.
    if state["of"] != identity:
        raise JobError("data: the text or the recipe is not what this run began with: start a new run")
    return state


def train(recipe: Recipe, learn: str, held: str, place: Place, tell: Tell) -> dict[str, Any]:
    """Train the model, or go on with it; keep it; say what it is worth."""
    import torch

    place.check()
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.cpus)
    try:
        return _train(recipe, learn, held, place, tell)
    finally:
        torch.set_num_threads(before)


def _train(recipe: Recipe, learn: str, held: str, place: Place, tell: Tell) -> dict[str, Any]:
    identity = hashlib.sha256(f"{recipe.model_dump_json()}\n{learn}\n{held}".encode()).hexdigest()
    state = load(place.checkpoint, identity)
    tokenizer: str = state["tokenizer"] if state else tiny_lm.learn_tokens(learn, recipe.vocabulary)
    learn_ids, held_ids = (tiny_lm.encode(tokenizer, text) for text in (learn, held))
    if min(len(learn_ids), len(held_ids)) <= recipe.context:
        raise JobError(
            f"data: too little text: {len(learn_ids)} tokens to learn from and {len(held_ids)} held out, each must be "
            f"more than context={recipe.context}: give more text, a smaller context or a larger test_share"
        )
    held_ids = held_ids[:MEASURED]
    vocabulary = tiny_lm.size(tokenizer)
    model = tiny_lm.untrained(recipe, vocabulary)
    measured = {
        "perplexity_unigram": tiny_lm.unigram(learn_ids, held_ids, vocabulary),
        "perplexity_untrained": tiny_lm.perplexity(model, held_ids, recipe.context),
    }
    start = time.perf_counter()
    for done, loss, now in tiny_lm.steps(model, learn_ids, recipe, state):
        if place.checkpoint and (done % recipe.checkpoint_every == 0 or done == recipe.steps):
            save(place.checkpoint, {**now, "of": identity, "tokenizer": tokenizer})
        if done % max(1, recipe.steps // 100) == 0 or done == recipe.steps:
            tokens = done * recipe.batch * recipe.context
            tell(done, recipe.steps, f"loss {loss:.3f}", loss=loss, steps=done, tokens=tokens)
    seconds = time.perf_counter() - start
    resumed = state["step"] if state else 0
    measured["perplexity"] = tiny_lm.perplexity(model, held_ids, recipe.context)
    most = min(SAMPLE, recipe.context - PROMPT)
    prompt, sample = tiny_lm.go_on(model, tokenizer, held_ids[:PROMPT], most, recipe.seed)
    if place.model:
        keep(model, tokenizer, recipe, place, measured)
    return {
        **measured,
        "steps": recipe.steps,
        "resumed": resumed,
        "weights": sum(part.numel() for part in model.parameters()),
        "vocabulary": vocabulary,
        "train_tokens": len(learn_ids),
        "test_tokens": len(held_ids),
        "tokens_per_second": round((recipe.steps - resumed) * recipe.batch * recipe.context / seconds, 1),
        "prompt": prompt,
        "sample": sample,
        "node": afar.here(),
    }


def keep(model: Any, tokenizer: str, recipe: Recipe, place: Place, measured: dict[str, float]) -> None:
    """Model and tokenizer as `from_pretrained` of any machine loads them, complete or not at all."""
    from transformers import GPT2TokenizerFast

    assert place.model
    words = json.loads(tokenizer)["model"]
    fast = GPT2TokenizerFast(
        vocab=words["vocab"],
        merges=[tuple(pair) for pair in words["merges"]],
        pad_token=END,
        model_max_length=recipe.context,
    )
    fast.chat_template = CHAT
    partial = place.model.with_name(f".{place.model.name}.{uuid.uuid4().hex}")
    try:
        partial.mkdir()
        model.save_pretrained(partial)
        fast.save_pretrained(partial)
        about = {"run": place.run, "parameters": recipe.model_dump(), "metrics": measured}
        (partial / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
        try:
            partial.rename(place.model)
        except OSError:
            # What is there may be this run's own: it was started again after it had kept its model.
            if not place.model.is_dir() or place.taken():
                raise
        latest = partial.with_name(f".latest.{uuid.uuid4().hex}")
        latest.symlink_to(place.model.name)
        latest.rename(place.model.with_name("latest"))
    except OSError as error:
        raise JobError(f"models: {place.model} cannot be written on {afar.here()}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
