"""Continuous batching in this process: what a batch says is what each request would have heard alone."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.llm.config import Model
from ray_jobs.llm.decoders import Causal, Decoder, EncoderDecoder
from ray_jobs.llm.engine import HALF, Engine, Piece, Request, Writer
from ray_jobs.llm.weights import AskedError, Loaded, load

from . import llm_models

PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13], [300, 301], [42] * 20, [9, 8, 7], [1, 2, 3, 4]]
MOST = [24, 5, 30, 11, 1, 18]


class Told:
    """What an engine says to one request."""

    def __init__(self) -> None:
        self.said, self.ended = Piece(), threading.Event()
        self.pieces = 0

    def __call__(self, piece: Piece) -> None:
        self.said += piece
        self.pieces += 1
        if piece.finish or piece.error:
            self.ended.set()

    def wait(self) -> Piece:
        assert self.ended.wait(120), "it never ended"
        return self.said


def plain(tokens: list[int]) -> str:
    return "".join(f"<{token}>" for token in tokens)


def request(told: Told, prompt: list[int], most: int, **more: Any) -> Request:
    return Request(prompt, Writer(plain, more.pop("stop", ())), told, most=most, **more)


def alone(decoder: Decoder, wanted: Sequence[Request]) -> None:
    """One after another."""
    engine = Engine(decoder, [0], 1)
    for each in wanted:
        engine.submit(each)
        assert isinstance(each.tell, Told)
        each.tell.wait()


def gpt2() -> tuple[Any, type[Causal]]:
    transformers = importlib.import_module("transformers")
    config = transformers.GPT2Config(
        vocab_size=400, n_positions=128, n_embd=32, n_layer=2, n_head=2, eos_token_id=0, bos_token_id=0
    )
    return llm_models.wild(transformers.GPT2LMHeadModel(config).eval()), Causal


def llama() -> tuple[Any, type[Causal]]:
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    return llm_models.wild(transformers.LlamaForCausalLM(config).eval()), Causal


def t5() -> tuple[Any, type[EncoderDecoder]]:
    transformers = importlib.import_module("transformers")
    config = transformers.T5Config(
        vocab_size=400, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return llm_models.wild(transformers.T5ForConditionalGeneration(config).eval()), EncoderDecoder


@pytest.mark.parametrize("make", [gpt2, llama, t5])
def test_a_batch_that_is_joined_and_left_says_what_each_would_alone(make: Any) -> None:
    torch = importlib.import_module("torch")
    model, kind = make()
    engine = Engine(kind(model), [0], 3)
    told = [Told() for _ in PROMPTS]
    wanted = [request(*each) for each in zip(told, PROMPTS, MOST, strict=True)]
    for each in wanted[:2]:
        engine.submit(each)
    # The others come while these are on their way.
    told[1].wait()
    for each in wanted[2:]:
        engine.submit(each)
    for prompt, most, heard in zip(PROMPTS, MOST, told, strict=True):
        found = model.generate(torch.tensor([prompt]), max_new_tokens=most, do_sample=False)[0].tolist()
        found = found[1:] if model.config.is_encoder_decoder else found[len(prompt) :]
        said = heard.wait()
        assert list(said.tokens) == [token for token in found if token != 0]
        assert said.finish == ("stop" if 0 in found else "length")
        assert said.text == plain(list(said.tokens))
    assert len({each.said.tokens for each in told}) == len(told), "they all say the same: this shows nothing"
    assert (engine.running, engine.waiting) == (0, 0)


def test_chance_is_the_seeds_whoever_goes_on_and_in_whatever_company() -> None:
    model, kind = gpt2()
    sampled: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "seed": 7}
    told = [Told() for _ in range(4)]
    alone(kind(model), [request(told[0], PROMPTS[1], 30, **sampled)])
    whole = told[0].said
    engine = Engine(kind(model), [0], 8)
    engine.submit(request(told[1], PROMPTS[3], 40, **{**sampled, "seed": 8}))
    engine.submit(request(told[2], PROMPTS[1], 30, **sampled))
    # Another goes on after ten tokens, of which the reader has seen nine and a half.
    seen = len(plain(list(whole.tokens[:9]))) + 2
    engine.submit(request(told[3], PROMPTS[1], 30, **sampled, done=list(whole.tokens[:10]), shown=seen))
    assert told[2].wait() == whole
    assert told[3].wait() == Piece(whole.text[seen:], whole.tokens[10:], whole.finish)
    assert told[1].wait().tokens[:30] != whole.tokens
    greedy = [Told() for _ in range(2)]
    alone(kind(model), [request(greedy[0], [5], 9), request(greedy[1], [5], 9, temperature=1.0, top_p=1e-9)])
    assert greedy[0].said == greedy[1].said != Piece()


def test_who_leaves_or_waits_too_long_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    model, kind = gpt2()
    engine = Engine(kind(model), [], 1)
    first, late, last = Told(), Told(), Told()
    begun, go_on = threading.Event(), threading.Event()

    def tell(piece: Piece) -> None:
        begun.set()
        assert go_on.wait(60)
        first(piece)

    long = Request([1], Writer(plain), tell, most=100)
    engine.submit(long)
    assert begun.wait(60)
    # While the first is on its way, two wait; one has no time.
    engine.submit(request(late, [2], 5, until=time.monotonic() - 1))
    engine.submit(request(last, [3], 5))
    assert (engine.running, engine.waiting) == (1, 2)
    long.left = True
    go_on.set()
    assert late.wait() == Piece(finish="timeout")
    assert last.wait().finish == "length"
    assert first.pieces < 100 and not first.ended.is_set()
    over = Told()
    engine.submit(request(over, [2], 100, until=time.monotonic() + 0.02))
    assert over.wait().finish in ("length", "timeout") and len(over.said.tokens) < 100


def test_a_step_that_fails_is_told_and_the_next_request_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    model, kind = gpt2()
    decoder = kind(model)
    engine = Engine(decoder, [], 2)
    step = decoder.step

    def fails(tokens: Sequence[int]) -> Any:
        raise MemoryError("no more")

    monkeypatch.setattr(decoder, "step", fails)
    told = Told()
    engine.submit(request(told, [1, 2], 5))
    assert told.wait().error == "MemoryError: no more"
    monkeypatch.setattr(decoder, "step", step)
    again = Told()
    engine.submit(request(again, [1, 2], 5))
    assert len(again.wait().tokens) == 5


def write(texts: Sequence[str], stop: Sequence[str]) -> tuple[list[str], bool]:
    """What is shown after each token."""
    writer = Writer(lambda tokens: "".join(texts[token] for token in tokens), stop)
    shown = []
    for token in range(len(texts)):
        writer.add(token)
        shown.append(writer.text[: writer.sure()])
        if writer.stopped:
            break
    return shown, writer.stopped


def test_nothing_of_a_stop_word_is_shown() -> None:
    assert write(["a", "b\n", "Us", "er", ":", " x"], ["\nUser:"]) == (["a", "ab", "ab", "ab", "ab"], True)
    assert write(["a", "b\n", "Us", "e", "d"], ["\nUser:"]) == (["a", "ab", "ab", "ab", "ab\nUsed"], False)
    assert write(["xENDy"], ["D", "EN"]) == (["x"], True)


def test_a_character_is_shown_when_all_of_it_is_there() -> None:
    whole = "né∞"
    data = whole.encode()

    def decode(tokens: list[int]) -> str:
        return bytes(data[token] for token in tokens).decode(errors="replace")

    writer = Writer(decode)
    shown = []
    for token in range(len(data)):
        writer.add(token)
        shown.append(writer.text)
    assert shown == ["n", "n", "né", "né", "né", "né∞"]
    cut = Writer(decode)
    cut.add(1, last=True)
    assert cut.text == HALF


def test_a_folder_of_llm_train_tiny_answers_texts_and_chats(tmp_path: Path) -> None:
    folder = llm_models.make(tmp_path / "wild", context=64)
    loaded = load(Model(name="wild", path=str(folder)))
    tokenizer = loaded.tokenizer
    assert loaded.ends == (0,)
    assert loaded.prompt("The class") == tokenizer("The class")["input_ids"]
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "you"}]
    assert tokenizer.decode(loaded.prompt(chat)) == "Hello\nyou\n"
    assert loaded.room(list(range(60)), 10) == 4
    with pytest.raises(AskedError, match=r"prompt: it has \d+ tokens, .* 64 at most"):
        loaded.prompt("word " * 80)
    with pytest.raises(AskedError, match="nothing in it"):
        loaded.prompt("")
    own = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    spoken: Loaded = load(Model(name="wild", path=str(folder), chat=own))
    assert tokenizer.decode(spoken.prompt(chat)) == "<|endoftext|>[user]Hello[assistant]you"
    strict = load(Model(name="wild", path=str(folder), chat="{{ raise_exception('no such role') }}"))
    with pytest.raises(AskedError, match="chat template refuses them: no such role"):
        strict.prompt(chat)
