"""Train a small GPT-2 and its tokenizer on text, in minutes on a CPU, kept as transformers and vLLM load models.

As a job:    ray job submit -- python -m ray_jobs.llm_train_tiny -p data=/srv/muster/datasets/notes -p name=notes
As a module: ray_jobs.llm_train_tiny.run(ray_jobs.llm_train_tiny.Tiny(data=..., steps=2000))
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from pydantic import BaseModel, Field

from ray_jobs import afar, command, lm_training, outcome, texts, tiny_lm
from ray_jobs.command import JobError
from ray_jobs.models import Name


class Tiny(tiny_lm.Recipe):
    """What to learn from, how, and where the model goes. Without data, what Python says about its language."""

    data: str = Field(default="", description="text in UTF-8: a file, or a folder of .txt and .md files")
    models: str = Field(
        default="", description="folder of models; empty: models/llm on the shared storage; without one it is not kept"
    )
    name: Name = "tiny"
    version: Name | None = Field(default=None, description="of the model; empty: the run's date and id")


class Trained(BaseModel):
    """What came out. The perplexities are of held-out text, of which neither model nor tokenizer has seen anything."""

    perplexity: float
    perplexity_unigram: float = Field(description="of who knows only how often each token comes")
    perplexity_untrained: float
    steps: int
    resumed: int = Field(description="the step after which its last start went on")
    weights: int
    vocabulary: int
    train_tokens: int
    test_tokens: int
    tokens_per_second: float = Field(description="since its last start")
    prompt: str
    sample: str = Field(description="how the model goes on after the prompt, which is held-out text")
    node: str
    seconds: float
    model: str | None


def place(parameters: Tiny) -> lm_training.Place:
    """Where this run's checkpoint and model go; made here, so that a node without the storage is noticed."""
    folder = command.folder()
    data = os.environ.get("MUSTER_DATA")
    models = parameters.models or (os.fspath(Path(data) / "models/llm") if data else "")
    # The same name for a run that is started again, and another for every other.
    run = folder.name if folder else f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:12]}"
    found = lm_training.Place(
        run=run,
        checkpoint=folder / "checkpoint.pt" if folder else None,
        model=Path(models).absolute() / parameters.name / (parameters.version or run) if models else None,
    )
    if found.model:
        try:
            found.model.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JobError(f"models: {models} cannot be written: {error}") from error
    if found.taken():
        raise JobError(f"version: {found.model} is there already and stays: choose another")
    return found


def run(parameters: Tiny, local: bool = False) -> Trained:
    """Train on one server, or here."""
    command.needs("torch", "transformers", "tokenizers")
    start = time.perf_counter()
    where = place(parameters)
    learn, held = texts.split(texts.read(parameters.data), parameters.test_share, parameters.seed)
    recipe = tiny_lm.Recipe(**parameters.model_dump(include=set(tiny_lm.Recipe.model_fields)))
    if local:
        found = lm_training.train(recipe, learn, held, where, outcome.progress)
    else:
        found = afar.call(lm_training.train, recipe, learn, held, where, cpus=parameters.cpus)
    seconds = round(time.perf_counter() - start, 3)
    return Trained(**found, seconds=seconds, model=os.fspath(where.model) if where.model else None)


def show(trained: Trained) -> str:
    """The answer for people."""
    return "\n".join(
        [
            f"perplexity of {trained.test_tokens} held-out tokens: {trained.perplexity:.1f}; by how often each token "
            f"comes {trained.perplexity_unigram:.1f}, untrained {trained.perplexity_untrained:.1f}",
            f"{trained.weights:,} weights, {trained.vocabulary} tokens in the vocabulary, {trained.steps} steps on "
            f"{trained.train_tokens:,} tokens"
            + (f", of which the last start went on after {trained.resumed}" if trained.resumed else ""),
            f"{trained.seconds:.0f} s on {trained.node}, {trained.tokens_per_second:,.0f} tokens/s",
            f"model: {trained.model or 'not kept (models=FOLDER keeps it)'}",
            f"sample: {trained.prompt.strip()} [...] {trained.sample.strip()}",
        ]
    )


JOB = command.Job("llm_train_tiny", __doc__ or "", Tiny, run, show)

if __name__ == "__main__":
    raise SystemExit(JOB.main())
