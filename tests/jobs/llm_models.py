"""Small models with random weights: quick to make, and what they write depends on every token before it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ray_jobs import lm_training, texts, tiny_lm

TEXT = 60_000
# The chance of two tokens must never be the same to the last digits: batches round otherwise than single rows.
SPREAD = 0.15


def wild(model: Any, seed: int = 1) -> Any:
    """Weights so large that no two prompts are gone on with alike; and no end before it is asked for."""
    torch = importlib.import_module("torch")
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.copy_(torch.randn(weights.shape, generator=chance) * SPREAD)
        model.get_output_embeddings().weight[0] = 0
    return model


def make(folder: Path, **more: int) -> Path:
    """A GPT-2 as llm_train_tiny keeps it."""
    recipe = tiny_lm.Recipe(**{"layers": 2, "width": 64, "heads": 2, "vocabulary": 400, "context": 1024, **more})
    tokenizer = tiny_lm.learn_tokens("\n".join(texts.read(""))[:TEXT], recipe.vocabulary)
    model = wild(tiny_lm.untrained(recipe, tiny_lm.size(tokenizer)))
    folder.parent.mkdir(parents=True, exist_ok=True)
    lm_training.keep(model, tokenizer, recipe, lm_training.Place("test", model=folder), {})
    return folder
