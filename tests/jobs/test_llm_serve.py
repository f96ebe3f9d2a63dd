"""Models behind Serve, as OpenAI's own client sees them: on a cluster of a head and a server."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest

from . import llm_models
from .llm_cluster import MARK

PROMPT = "The statement"
LONG = 500


class Served:
    """The cluster, and clients of what it serves."""

    def __init__(self, folder: Path) -> None:
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/llm"
        self.model = os.fspath(llm_models.make(folder / "wild" / "v1", layers=4, width=256))
        self.log = (folder / "log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.llm_cluster"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            # A raylet that gave up does so long before; llm_cluster.py starts another.
            env={**os.environ, "MUSTER_SERVE_PORT": str(port), "RAY_raylet_start_wait_time_s": "45"},
        )  # fmt: skip
        # What the job said besides its answers.
        self.said: list[str] = []
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300)

    def run(self, **parameters: Any) -> dict[str, Any]:
        """The job llm_serve."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(parameters) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(MARK):
                found: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return found
            self.said.append(line)
        self.log.seek(0)
        raise AssertionError(f"the cluster ended:\n{self.log.read()[-5000:]}")

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"{self.url}/{path}", timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, None

    def status(self, model: str = "two") -> dict[str, Any]:
        found: dict[str, Any] = self.get("status")[1]["models"][model]
        return found

    def until(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 120
        while not true():
            assert time.monotonic() < deadline, f"{what}: {self.get('status')}"
            time.sleep(0.05)

    def say(self, prompt: str = PROMPT, model: str = "two", **more: Any) -> Any:
        return self.client.completions.create(model=model, prompt=prompt, **{"temperature": 0, **more})

    def end(self) -> None:
        self._process.communicate(timeout=120)
        self.log.close()


def wanted(served: Served) -> list[dict[str, Any]]:
    return [
        {"name": "two", "path": served.model, "replicas": 2, "max_tokens": LONG},
        {"name": "narrow", "path": served.model, "batch": 1, "queue": 1, "max_tokens": LONG, "chat": "template"},
    ]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    found = Served(tmp_path_factory.mktemp("llm"))
    try:
        said = found.run(models=wanted(found))
        assert said.get("models") == {"two": 2, "narrow": 1} and said["changed"], said
        assert any('"done":3,"total":3' in line for line in found.said), found.said
        yield found
    finally:
        found.end()


def alone(served: Served, prompt: str, most: int) -> str:
    """What transformers itself makes of it."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(served.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(served.model)
    tokens = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        found = model.generate(**tokens, max_new_tokens=most, do_sample=False)[0]
    return str(tokenizer.decode(found[tokens["input_ids"].shape[1] :]))


def test_openais_client_lists_completes_and_chats(served: Served) -> None:
    models = served.client.models.list()
    assert [model.id for model in models] == ["two", "narrow"]
    assert served.client.models.retrieve("narrow").id == "narrow"
    said = served.say(max_tokens=40)
    assert said.choices[0].text == alone(served, PROMPT, 40)
    assert said.choices[0].finish_reason == "length" and said.usage.completion_tokens == 40
    assert said.usage.total_tokens == said.usage.prompt_tokens + 40
    assert said.model_extra["muster"]["node"] == "server1/worker-1"
    # OpenAI's default, which its clients rely on.
    assert served.say().usage.completion_tokens == 16
    chat = served.client.chat.completions.create(
        model="narrow",
        messages=[
            {"role": "system", "content": "The"},
            {"role": "user", "content": [{"type": "text", "text": "class"}]},
        ],
        temperature=0,
        max_completion_tokens=20,
    )
    assert chat.choices[0].message.content == alone(served, "The\nclass\n", 20)
    assert chat.choices[0].message.role == "assistant"
    word = said.choices[0].text[10:14]
    stopped = served.say(max_tokens=40, stop=word)
    assert stopped.choices[0].text == said.choices[0].text[: said.choices[0].text.index(word)]
    assert stopped.choices[0].finish_reason == "stop"
    drawn = [served.say(max_tokens=20, temperature=1, seed=seed).choices[0].text for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_stream_says_the_same_in_pieces_and_then_what_it_used(served: Served) -> None:
    whole = served.say(max_tokens=30)
    chunks = list(served.say(max_tokens=30, stream=True, stream_options={"include_usage": True}))
    *texts, last = chunks
    assert "".join(chunk.choices[0].text for chunk in texts) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in texts] == [None] * (len(texts) - 1) + ["length"]
    assert last.choices == [] and last.usage == whole.usage
    assert all(chunk.model_extra["muster"]["node"] == "server1/worker-1" for chunk in chunks)
    messages: Any = [{"role": "user", "content": "class"}]
    chat = list(
        served.client.chat.completions.create(model="two", messages=messages, temperature=0, max_tokens=9, stream=True)
    )
    assert chat[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chat) == alone(served, "class\n", 9)


@pytest.mark.parametrize(
    ("more", "kind", "said"),
    [({"model": "none"}, "NotFoundError", "model: there is no none; there are two, narrow"),
     ({"temperature": -1}, "BadRequestError", "temperature: Input should be greater than or equal to 0"),
     ({"n": 2}, "BadRequestError", "n: "), ({"max_tokens": 0}, "BadRequestError", "max_tokens: "),
     ({"max_tokens": 501}, "BadRequestError", "max_tokens: 501 are wanted, two gives 500 at most"),
     ({"prompt": ["a", "b"]}, "BadRequestError", "prompt: "), ({"prompt": ""}, "BadRequestError", "nothing in it"),
     ({"prompt": "word " * 2000, "stream": True}, "BadRequestError", "1024 at most"),
     ({"extra_body": {"top_q": 1}}, "BadRequestError", "top_q: Extra inputs")],
)  # fmt: skip
def test_a_mistake_is_one_line_of_openais_kind(served: Served, more: dict[str, Any], kind: str, said: str) -> None:
    with pytest.raises(getattr(openai, kind)) as found:
        served.say(**{"max_tokens": 5, **more})
    body = found.value.body
    assert isinstance(body, dict) and said in body["message"] and "\n" not in body["message"]
    assert body["type"] and "code" in body
    assert found.value.response.json()["muster"]["node"] == "server1/worker-1"


def test_many_at_once_hear_what_each_would_alone_from_replicas_on_the_server_only(served: Served) -> None:
    prompts = [f"{word} {number}" for word in ("The", "class", "import") for number in range(4)]
    singly = [served.say(prompt, max_tokens=60).choices[0].text for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(lambda prompt: served.say(prompt, max_tokens=60), prompts))
    assert [said.choices[0].text for said in together] == singly
    assert len(set(singly)) == len(singly), "they all say the same: this shows nothing"
    replicas = {each["replica"]: each["node"] for each in served.status()["replicas"]}
    assert {said.model_extra["muster"]["replica"] for said in together} == set(replicas)
    assert len(replicas) == 2 and set(replicas.values()) == {"server1/worker-1"}
    code, health = served.get("health")
    # The door in front of the models must not be on the head either.
    assert (code, health["status"], health["muster"]["node"]) == (200, "ok", "server1/worker-1")


def test_a_replica_that_is_killed_while_it_speaks_is_not_noticed(served: Served) -> None:
    whole = served.say(max_tokens=LONG)
    pids = {each["replica"]: each["pid"] for each in served.status()["replicas"]}
    stream = served.say(max_tokens=LONG, stream=True, stream_options={"include_usage": True})
    chunks = [next(stream) for _ in range(3)]
    os.kill(pids[chunks[0].model_extra["muster"]["replica"]], signal.SIGKILL)
    chunks += stream
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert len({chunk.model_extra["muster"]["replica"] for chunk in chunks}) == 2, "it had said all before it died"
    served.until(lambda: len(served.status()["replicas"]) == 2, "no new replica")


def test_who_leaves_frees_a_place_and_one_too_many_is_told_to_wait(served: Served) -> None:
    before = served.status("narrow")["replicas"][0]["tokens"]
    with ThreadPoolExecutor(4) as pool:
        first = served.say(model="narrow", max_tokens=LONG, stream=True)
        next(first)
        # One may wait; the others are told at once, while the first still speaks.
        others = [pool.submit(served.say, model="narrow", max_tokens=5) for _ in range(4)]
        refused = wait(others, return_when=FIRST_COMPLETED).done.pop().exception()
        first.close()
        answers = [other.result() for other in others if not other.exception()]
    assert isinstance(refused, openai.RateLimitError), refused
    assert "narrow: 2 requests are there already" in str(refused)
    assert refused.response.headers["retry-after"] == "1"
    assert answers and all(answer.choices[0].finish_reason == "length" for answer in answers)
    served.until(lambda: served.status("narrow")["running"] == 0, "its place is not free")
    spoken = served.status("narrow")["replicas"][0]["tokens"]
    assert spoken - before < LONG, "the first was spoken to its end"
    with pytest.raises(openai.APITimeoutError):
        impatient = served.client.with_options(timeout=0.3)
        impatient.completions.create(model="narrow", prompt=PROMPT, temperature=0, max_tokens=LONG)
    served.until(lambda: served.status("narrow")["running"] == 0, "its place is not free")
    assert served.status("narrow")["replicas"][0]["tokens"] - spoken < LONG, "nobody listened, and it spoke on"


def test_what_is_served_already_is_left_alone(served: Served) -> None:
    def replicas() -> set[str]:
        return {one["replica"] for model in ("two", "narrow") for one in served.status(model)["replicas"]}

    before = replicas()
    assert served.run(models=wanted(served))["changed"] is False
    assert replicas() == before and len(before) == 3
    two, narrow = wanted(served)
    assert served.run(models=[two, {**narrow, "max_tokens": 7}])["changed"]
    with pytest.raises(openai.BadRequestError, match="narrow gives 7 at most"):
        served.say(model="narrow", max_tokens=8)


def test_bad_models_change_nothing_and_stop_ends_it(served: Served) -> None:
    there = {"name": "two", "path": served.model}
    assert "no config.json" in served.run(models=[{"name": "x", "path": "/nowhere"}])["error"]
    assert "64 CPUs are wanted of one server, the largest has 5" in served.run(models=[{**there, "cpus": 64}])["error"]
    assert served.get("health")[0] == 200
    assert served.run(stop=True)["route"] is None
    served.until(lambda: served.get("health")[0] == 404, "it still answers")
