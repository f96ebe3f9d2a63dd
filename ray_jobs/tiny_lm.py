"""A small GPT-2 with a tokenizer of its own, made of nothing but text, and kept as Hugging Face's libraries load it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from pydantic import Field, model_validator

from ray_jobs import command
from ray_jobs.command import JobError
from ray_jobs.texts import BLOCK, END, blocks

# What one process may take for its training: the job is meant for a CPU and minutes.
MEMORY = 8 * 2**30


class Recipe(command.Parameters):
    """A model's size, and how it is trained."""

    layers: int = Field(default=4, ge=1, le=24)
    width: int = Field(default=192, ge=8, le=1024, description="numbers per token; divisible by heads")
    heads: int = Field(default=4, ge=1, le=64)
    vocabulary: int = Field(default=1024, ge=260, le=50_000, description="tokens at most, of which 256 are the bytes")
    context: int = Field(default=128, ge=16, le=1024, description="tokens that it sees at once")
    steps: int = Field(default=600, ge=1, le=100_000)
    batch: int = Field(default=12, ge=1, le=256, description="pieces of text per step, each as long as the context")
    learning_rate: float = Field(default=2e-3, gt=0, le=0.1)
    test_share: float = Field(default=0.05, gt=0, le=0.5, description="of the text that is held out")
    checkpoint_every: int = Field(default=100, ge=1, le=10_000, description="steps")
    cpus: int = Field(default=1, ge=1, le=64, description="of one server")
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def fits(self) -> Recipe:
        """Heads share the width, and a training needs memory."""
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not divisible by heads={self.heads}")
        weights = (self.vocabulary + self.context) * self.width + self.layers * 12 * self.width**2
        # Weights, gradients and two moments; then what a step keeps for its way back, by rule of thumb.
        needed = 16 * weights + self.batch * self.context * (12 * self.vocabulary + 200 * self.layers * self.width)
        if needed > MEMORY:
            raise ValueError(
                f"this needs about {needed / 2**30:.0f} GiB, {MEMORY >> 30} at most: "
                "fewer layers, or less width, vocabulary, context or batch"
            )
        return self


def learn_tokens(text: str, size: int) -> str:
    """A byte-level BPE tokenizer for this text, as JSON: there is nothing that it cannot write."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(blocks(text, BLOCK), trainer)
    return str(tokenizer.to_str())


def encode(tokenizer: str, text: str) -> Any:
    """The text as a tensor of tokens."""
    import torch
    from tokenizers import Tokenizer

    pieces = Tokenizer.from_str(tokenizer).encode_batch(list(blocks(text, BLOCK)))
    return torch.tensor([token for piece in pieces for token in piece.ids], dtype=torch.long)


def untrained(recipe: Recipe, vocabulary: int) -> Any:
    """The model before its first step, the same for the same seed."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary, n_positions=recipe.context, n_embd=recipe.width, n_layer=recipe.layers,
        n_head=recipe.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return GPT2LMHeadModel(config)


def perplexity(model: Any, tokens: Any, context: int) -> float:
    """How many tokens the model wavers between, on average; 1 is certainty."""
    import torch

    total = 0.0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, context):
            window = tokens[start : start + context + 1]
            logits = model(input_ids=window[None, :-1]).logits[0]
            total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    return math.exp(total / (len(tokens) - 1))


def unigram(learn: Any, held: Any, vocabulary: int) -> float:
    """The perplexity of who knows how often each token comes, and nothing of what stands before it."""
    import torch

    counts = torch.bincount(learn, minlength=vocabulary).double() + 1
    return math.exp(-(counts / counts.sum()).log()[held[1:]].mean().item())


def rate(recipe: Recipe, step: int) -> float:
    """The learning rate of a step: up within a few steps, then down to a tenth."""
    warm = min(50, max(1, recipe.steps // 10))
    wave = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    return recipe.learning_rate * min(1.0, (step + 1) / warm) * (0.1 + 0.9 * wave)


def step(model: Any, optimizer: Any, tokens: Any, recipe: Recipe, number: int) -> float:
    """One step, the same whenever it is done: a training that goes on ends as one that was never stopped."""
    import torch

    chance = torch.Generator().manual_seed(recipe.seed * 1_000_003 + number)
    starts = torch.randint(len(tokens) - recipe.context, (recipe.batch,), generator=chance)
    windows = torch.stack([tokens[start : start + recipe.context + 1] for start in starts])
    for group in optimizer.param_groups:
        group["lr"] = rate(recipe, number)
    logits = model(input_ids=windows[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.item())


def steps(
    model: Any, tokens: Any, recipe: Recipe, state: dict[str, Any] | None
) -> Iterator[tuple[int, float, dict[str, Any]]]:
    """All that a state leaves to do: after each step the steps done, the loss, and a state to go on from."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    first = 0
    if state:
        first = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    model.train()
    for number in range(first, recipe.steps):
        loss = step(model, optimizer, tokens, recipe, number)
        if not math.isfinite(loss):
            raise JobError(f"learning_rate: the loss is {loss} at step {number + 1}: try a smaller one")
        weights = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        yield number + 1, loss, {"step": number + 1, **weights}


def size(tokenizer: str) -> int:
    """How many tokens it came to: a short text has no use for all that it may have."""
    from tokenizers import Tokenizer

    return int(Tokenizer.from_str(tokenizer).get_vocab_size())


def go_on(model: Any, tokenizer: str, prompt: Any, most: int, seed: int) -> tuple[str, str]:
    """A prompt, and how the model goes on with it."""
    import torch
    from tokenizers import Tokenizer

    words = Tokenizer.from_str(tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokens = model.generate(
            input_ids=prompt[None], attention_mask=torch.ones_like(prompt[None]), max_new_tokens=most,
            do_sample=True, top_k=20, temperature=0.8,
        )[0].tolist()  # fmt: skip
    return str(words.decode(tokens[: len(prompt)])), str(words.decode(tokens[len(prompt) :]))
