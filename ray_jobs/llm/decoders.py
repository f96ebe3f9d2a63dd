"""Models of transformers step by step: rows join and leave between two steps, each step gives every row's next logits.

`join` begins rows with their tokens, `step` goes on with one token for each, `keep` lets the others go. Rows keep their
order, the new ones come last. Call them within torch.inference_mode().
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol


class Decoder(Protocol):
    """What the engine knows of a model."""

    # The most tokens that prompt and answer have together; None where the model sets none.
    context: int | None

    def join(self, rows: Sequence[tuple[list[int], list[int]]]) -> Any:
        """Begin rows, each with a prompt and what was already answered."""

    def step(self, tokens: Sequence[int]) -> Any: ...

    def keep(self, rows: Sequence[int]) -> None: ...


def _left(tensor: Any, width: int) -> Any:
    """Keys or values with empty places before them, up to a width."""
    import torch

    missing = width - tensor.shape[2]
    return torch.nn.functional.pad(tensor, (0, 0, missing, 0)) if missing else tensor


class Causal:
    """GPT-2, Llama and their like: one batch, padded on the left, with the keys and values of all its rows."""

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        takes = inspect.signature(model.forward).parameters
        self._positions = "position_ids" in takes
        # Without it a long prompt with a large vocabulary would cost gigabytes of logits that nobody reads.
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._cache: Any = None
        self._mask: Any = None

    def _forward(self, tokens: Any, mask: Any, cache: Any) -> Any:
        more = dict(self._last)
        if self._positions:
            more["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        said = self.model(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **more)
        return said.logits[:, -1].float()

    def join(self, rows: Sequence[tuple[list[int], list[int]]]) -> Any:
        import torch
        from transformers import DynamicCache

        texts = [prompt + done for prompt, done in rows]
        longest = max(map(len, texts))
        tokens = torch.tensor([[0] * (longest - len(text)) + text for text in texts])
        mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
        cache = DynamicCache()
        logits = self._forward(tokens, mask, cache)
        if self._cache is None:
            self._cache, self._mask = cache, mask
            return logits
        width = max(longest, self._mask.shape[1])
        for there, new in zip(self._cache.layers, cache.layers, strict=True):
            there.keys = torch.cat([_left(there.keys, width), _left(new.keys, width)])
            there.values = torch.cat([_left(there.values, width), _left(new.values, width)])
        pad = torch.nn.functional.pad
        self._mask = torch.cat([pad(part, (width - part.shape[1], 0)) for part in (self._mask, mask)])
        return logits

    def step(self, tokens: Sequence[int]) -> Any:
        import torch

        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        return self._forward(torch.tensor(tokens)[:, None], self._mask, self._cache)

    def keep(self, rows: Sequence[int]) -> None:
        import torch

        if not rows:
            self._cache = self._mask = None
            return
        index = torch.tensor(rows)
        mask = self._mask[index]
        # What is padding for all that stay was the place of a longer one that left.
        empty = int(mask.argmax(1).min())
        self._mask = mask[:, empty:]
        for layer in self._cache.layers:
            layer.keys = layer.keys[index, :, empty:]
            layer.values = layer.values[index, :, empty:]


class EncoderDecoder:
    """T5 and its like: every row has a cache of its own, so rows take turns instead of sharing a step."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.context: int | None = None
        self._rows: list[dict[str, Any]] = []

    def _forward(self, tokens: list[int], row: dict[str, Any]) -> Any:
        import torch

        said = self.model(decoder_input_ids=torch.tensor([tokens]), use_cache=True, **row)
        row["past_key_values"] = said.past_key_values
        return said.logits[:, -1].float()

    def join(self, rows: Sequence[tuple[list[int], list[int]]]) -> Any:
        import torch

        logits = []
        for prompt, done in rows:
            row = {"encoder_outputs": self.model.get_encoder()(input_ids=torch.tensor([prompt]))}
            logits.append(self._forward([self.model.config.decoder_start_token_id, *done], row))
            self._rows.append(row)
        return torch.cat(logits)

    def step(self, tokens: Sequence[int]) -> Any:
        import torch

        return torch.cat([self._forward([token], row) for token, row in zip(tokens, self._rows, strict=True)])

    def keep(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[row] for row in rows]
