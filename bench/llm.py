"""Tokens per second of a small model behind Serve: 1, 8 and 32 clients at once, against one request at a time.

Prints JSON. `one at a time` is the same model with a batch of 1 and 8 clients; `bare` is transformers' own `generate`
in one process, against one client of Serve. All take turns within one run: on a machine that does other things, too,
the ratios are what to compare. It needs the libraries of the ml image: `.venv-jobs/bin/python bench/llm.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
os.environ |= {
    "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled",
    # A busy machine takes longer than Ray expects to start.
    "RAY_raylet_start_wait_time_s": "180",
}  # fmt: skip

from ray_jobs import llm_serve, lm_training, serving, texts, tiny_lm  # noqa: E402

CLIENTS = (1, 8, 32)
PROMPT = "The statement is "


def make(folder: Path) -> Path:
    """As llm_train_tiny would leave it; how fast it speaks is not a matter of training."""
    recipe = tiny_lm.Recipe(context=512)
    tokenizer = tiny_lm.learn_tokens("\n".join(texts.read(""))[:100_000], recipe.vocabulary)
    model = tiny_lm.untrained(recipe, tiny_lm.size(tokenizer))
    lm_training.keep(model, tokenizer, recipe, lm_training.Place("bench", model=folder / "tiny"), {})
    return folder / "tiny"


def bare(folder: Path, tokens: int) -> float:
    """Tokens per second of `generate`, one request after another."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")
    begin = time.perf_counter()
    with torch.inference_mode():
        # `min_new_tokens`: an end by chance would be no measure.
        model.generate(**prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    return tokens / (time.perf_counter() - begin)


async def served(model: str, clients: int, requests: int, tokens: int) -> float:
    """Tokens per second of so many clients, each of which asks again as soon as it is answered."""
    import aiohttp

    url = f"http://127.0.0.1:{serving.port()}/llm/v1/completions"
    asked = {"model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0}
    left = list(range(max(requests, clients)))
    got = 0

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal got
        while left:
            left.pop()
            async with session.post(url, json=asked) as answer:
                said: dict[str, Any] = await answer.json()
                got += said["usage"]["completion_tokens"]

    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        begin = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        return got / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=32, help="of each measure in each round")
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    import ray
    from ray import serve

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    rates: dict[str, list[float]] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = make(Path(folder))
            shared = {"path": str(model), "max_tokens": options.tokens, "seconds": 600}
            models = [{"name": "batch", "batch": 32, **shared}, {"name": "single", "batch": 1, **shared}]
            llm_serve.run(llm_serve.Serving.model_validate({"models": models}))
            for name in ("batch", "single"):
                asyncio.run(served(name, 1, 1, options.tokens))
            for _ in range(options.rounds):
                for clients in CLIENTS:
                    requests = options.requests if clients > 1 else options.requests // 8
                    rate = asyncio.run(served("batch", clients, requests, options.tokens))
                    rates.setdefault(f"{clients} clients", []).append(rate)
                rate = asyncio.run(served("single", 8, options.requests // 2, options.tokens))
                rates.setdefault("one at a time", []).append(rate)
                rates.setdefault("bare", []).append(bare(model, options.tokens * 2))
    finally:
        serve.shutdown()
        ray.shutdown()
    median = {name: round(statistics.median(found), 1) for name, found in rates.items()}
    ratios = {f"{clients} clients against one at a time": median[f"{clients} clients"] for clients in CLIENTS}
    print(
        json.dumps(
            {
                "tokens/s": median,
                **{name: round(rate / median["one at a time"], 2) for name, rate in ratios.items()},
                "one client of Serve against the bare model": round(median["1 clients"] / median["bare"], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
