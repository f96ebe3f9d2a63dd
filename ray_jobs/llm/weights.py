"""A model with its tokenizer, from a folder or from the hub, ready to answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs import afar
from ray_jobs.command import JobError
from ray_jobs.llm.config import PLAIN, Model
from ray_jobs.llm.decoders import Causal, Decoder, EncoderDecoder


class AskedError(ValueError):
    """What was asked cannot be answered by this model."""


@dataclass(frozen=True)
class Loaded:
    """What turns text into tokens and back, and the model between the two."""

    tokenizer: Any
    decoder: Decoder
    ends: tuple[int, ...]
    chat: str | None

    def prompt(self, asked: str | list[dict[str, str]]) -> list[int]:
        """The tokens of a text or a chat."""
        if isinstance(asked, str):
            tokens = self.tokenizer(asked)["input_ids"]
        else:
            try:
                text = self.tokenizer.apply_chat_template(
                    asked, chat_template=self.chat, tokenize=False, add_generation_prompt=True
                )
            except Exception as error:  # Jinja's, and what the template itself refuses: roles in a wrong order
                raise AskedError(f"messages: the model's chat template refuses them: {error}") from error
            # The template has written the marks of begin and end itself.
            tokens = self.tokenizer(text, add_special_tokens=self.chat == PLAIN)["input_ids"]
        if not tokens:
            raise AskedError("prompt: there is nothing in it")
        room = self.decoder.context
        if room is not None and len(tokens) >= room:
            raise AskedError(f"prompt: it has {len(tokens)} tokens, and prompt and answer together {room} at most")
        return list(tokens)

    def room(self, prompt: list[int], most: int) -> int:
        """How many tokens the answer can have."""
        return most if self.decoder.context is None else min(most, self.decoder.context - len(prompt))

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def load(model: Model) -> Loaded:
    """The model on this node."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    if model.path and not Path(model.path).is_dir():
        raise JobError(f"{model.name}: {model.path} is not there on {afar.here()}: all nodes need the shared storage")
    torch.set_num_threads(model.cpus)
    here = {"local_files_only": bool(model.path)}
    config = AutoConfig.from_pretrained(model.source, **here)
    tokenizer = AutoTokenizer.from_pretrained(model.source, **here)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    weights = kind.from_pretrained(model.source, dtype=torch.float32, **here).eval()
    chat = {"plain": PLAIN, "template": None}.get(model.chat, model.chat)
    if chat is None and not tokenizer.chat_template:
        raise JobError(f"{model.name}: chat=template, but the model has no template of its own: use plain")
    ends = weights.generation_config.eos_token_id
    decoder: Decoder = EncoderDecoder(weights) if config.is_encoder_decoder else Causal(weights)
    return Loaded(
        tokenizer=tokenizer,
        decoder=decoder,
        ends=tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,),
        chat=chat,
    )
