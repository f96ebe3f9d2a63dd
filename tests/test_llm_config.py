"""Which models are served: the configuration, what it means to Serve and to vLLM, and what OpenAI's clients may ask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ray_jobs import llm_serve
from ray_jobs.command import JobError
from ray_jobs.llm import config, vllm, wire

GPT2: dict[str, Any] = {"name": "gpt2", "hub": "openai-community/gpt2"}


@pytest.mark.parametrize(
    ("models", "said"),
    [([], "models: List should have at least 1 item"), ([{"name": "a"}], "a: give either path, a folder, or hub"),
     ([{**GPT2, "path": "/x"}], "gpt2: give either path"), ([{"name": "a", "path": "x"}], "path=x must be absolute"),
     ([{**GPT2, "name": "a b"}], "models.0.name: "), ([{**GPT2, "colour": 1}], "models.0.colour: Extra inputs"),
     ([GPT2, GPT2], "the same name twice: gpt2"), ([{**GPT2, "replicas": 0}], "replicas.min: "),
     ([{**GPT2, "replicas": {"min": 3, "max": 2}}], "min=3 is more than max=2"),
     ([{**GPT2, "gpus": 1}], "gpus=1 needs engine=vllm"), ([{**GPT2, "engine": "vllm"}], "vllm needs gpus=1"),
     ([{**GPT2, "chat": "plian"}], "plain, template, or a template in Jinja"),
     ([{**GPT2, "labels": {"node": "head"}}], "never run on the head"), ([{**GPT2, "batch": 0}], "models.0.batch: "),
     ([GPT2, {**GPT2, "name": "b", "engine": "vllm", "gpus": 1}], "one engine, not transformers and vllm")],
)  # fmt: skip
def test_a_mistake_is_one_line(models: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(JobError) as found:
        config.check({"models": models})
    assert said in str(found.value) and "\n" not in str(found.value)


def only(**more: Any) -> config.Model:
    return config.check({"models": [{**GPT2, **more}]}).models[0]


def test_a_replica_goes_to_servers_and_to_laptops_only_where_it_says_so() -> None:
    assert only(cpus=2).actor() == {"num_cpus": 2, "label_selector": {"node": "!head", "class": "!laptop"}}
    fast = only(labels={"disk": "fast"}).actor()
    assert fast["label_selector"] == {"node": "!head", "class": "!laptop", "disk": "fast"}
    # A laptop's node offers no CPUs (guests.py).
    laptop = only(labels={"class": "laptop"}).actor()
    assert laptop == {
        "num_cpus": 0, "resources": {"laptop": 1}, "label_selector": {"node": "!head", "class": "laptop"},
    }  # fmt: skip


def test_replicas_are_a_number_or_a_range() -> None:
    assert only(replicas=3).scale() == {"num_replicas": 3}
    scale = only(replicas={"min": 1, "max": 4}, batch=16).scale()["autoscaling_config"]
    assert scale == {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 16}
    assert only(replicas={"min": 1, "max": 4}, batch=16, queue=10).most == 74
    assert only(name="google/flan-t5").deployment == "model-google--flan-t5"


def test_the_same_for_vllm() -> None:
    found = config.check(
        {"models": [{**GPT2, "engine": "vllm", "gpus": 2, "cpus": 3, "batch": 64, "queue": 9, "replicas": 2,
                     "chat": "template", "labels": {"gpu": "a100"}},
                    {"name": "b", "path": "/m/b", "engine": "vllm", "gpus": 1, "replicas": {"min": 1, "max": 3}}]}
    )  # fmt: skip
    said = vllm.translate_all(found)
    first, second = said["llm_configs"]
    assert first["model_loading_config"] == {"model_id": "gpt2", "model_source": "openai-community/gpt2"}
    assert first["engine_kwargs"] == {"tensor_parallel_size": 2, "max_num_seqs": 64}
    assert first["placement_group_config"] == {"bundle_per_worker": {"CPU": 3, "GPU": 1}, "strategy": "STRICT_PACK"}
    place = {"node": "!head", "class": "!laptop", "gpu": "a100"}
    deployed = first["deployment_config"]
    assert deployed["placement_group_bundle_label_selector"] == [place]
    assert (deployed["num_replicas"], deployed["max_ongoing_requests"], deployed["max_queued_requests"]) == (2, 64, 9)
    assert second["engine_kwargs"]["chat_template"] == config.PLAIN
    assert second["deployment_config"]["autoscaling_config"]["max_replicas"] == 3
    assert said["ingress_deployment_config"]["ray_actor_options"]["label_selector"]["node"] == "!head"


def test_a_model_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSTER_DATA", os.fspath(tmp_path))
    version = tmp_path / "models/llm/tiny/v1"
    version.mkdir(parents=True)
    (version / "config.json").touch()
    (version.parent / "latest").symlink_to("v1")
    wanted = llm_serve.wanted(llm_serve.Serving(model="tiny", replicas=2)).models[0]
    # Not `latest`: a replica that starts tomorrow shall have the weights of the others.
    assert (wanted.name, wanted.path, wanted.replicas.min) == ("tiny", os.fspath(version), 2)
    with pytest.raises(JobError, match="there is no tony; there are tiny"):
        llm_serve.wanted(llm_serve.Serving(model="tony"))
    with pytest.raises(JobError, match="give either models"):
        llm_serve.wanted(llm_serve.Serving())
    with pytest.raises(JobError, match=r"x: .*/nowhere holds no config.json"):
        llm_serve.wanted(llm_serve.Serving.model_validate({"models": [{"name": "x", "path": "/nowhere"}]}))
    monkeypatch.delenv("MUSTER_DATA")
    with pytest.raises(JobError, match="no shared storage"):
        llm_serve.wanted(llm_serve.Serving(model="tiny"))


def test_bad_parameters_are_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert llm_serve.JOB.main(["-p", 'models=[{"name": "a", "path": "b"}]']) == 2
    said = capsys.readouterr().err
    assert "path=b must be absolute" in said and said.count("\n") == 1


def test_what_clients_send_in_other_shapes_is_understood() -> None:
    asked = wire.Completion.model_validate(
        {"model": "a", "prompt": ["one"], "stop": "x", "temperature": None, "n": 1, "logit_bias": {}, "user": "me"}
    )
    assert (asked.prompt, asked.stop, asked.temperature, asked.most()) == ("one", ["x"], 1.0, 16)
    chat = wire.Chat.model_validate({"model": "a", "messages": [{"role": "user", "content": "b"}], "stop": None})
    assert (chat.stop, chat.most()) == ([], None)


@pytest.mark.parametrize(
    "more", [{"n": 2}, {"best_of": 2}, {"echo": True}, {"logprobs": 1}, {"suffix": "x"}, {"presence_penalty": 1},
             {"frequency_penalty": 0.5}, {"logit_bias": {"1": 1}}, {"tools": []}, {"stop": [""]}, {"seed": 1.5}]
)  # fmt: skip
def test_what_would_change_the_answer_and_is_not_done_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        wire.Completion.model_validate({"model": "a", "prompt": "b", **more})


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, ray_jobs.llm_serve, ray_jobs.llm.vllm, ray_jobs.llm.engine, ray_jobs.llm.weights;"
        "sys.exit(any(name in sys.modules for name in ('ray', 'torch', 'transformers', 'fastapi')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
