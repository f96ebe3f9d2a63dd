"""The same configuration for hosts with GPUs: what Ray Serve LLM and vLLM want to know of each model.

Nothing here imports vLLM: it is on the nodes with GPUs only, in the image profile `gpu`.
"""

from __future__ import annotations

from typing import Any

from ray_jobs import afar
from ray_jobs.command import JobError, needs
from ray_jobs.llm.config import PLAIN, Config, Model


def translate(model: Model) -> dict[str, Any]:
    """One model as an LLMConfig."""
    engine: dict[str, Any] = {"tensor_parallel_size": model.gpus, "max_num_seqs": model.batch}
    if model.chat != "template":
        engine["chat_template"] = PLAIN if model.chat == "plain" else model.chat
    return {
        "model_loading_config": {"model_id": model.name, "model_source": model.source},
        "engine_kwargs": engine,
        # All GPUs of a replica are on one host: the firewall shuts the ports that vLLM's workers choose between hosts.
        "placement_group_config": {"bundle_per_worker": {"CPU": model.cpus, "GPU": 1}, "strategy": "STRICT_PACK"},
        "deployment_config": {
            **model.scale(),
            "placement_group_bundle_label_selector": [model.place()],
            "max_ongoing_requests": model.batch,
            "max_queued_requests": model.queue or 1,
            "health_check_period_s": 5,
            "graceful_shutdown_timeout_s": min(20, model.seconds),
        },
    }


def translate_all(config: Config) -> dict[str, Any]:
    """All of them as Ray Serve LLM's OpenAI application takes them."""
    return {
        "llm_configs": [translate(model) for model in config.models],
        "ingress_deployment_config": {"ray_actor_options": {"num_cpus": 0.1, "label_selector": afar.SERVER}},
    }


def build(config: Config) -> Any:
    """The application."""
    try:
        needs("vllm")
    except JobError as error:
        raise JobError("engine vllm: vllm is not installed here: it needs the `gpu` image with ray[llm]") from error
    from ray.serve.llm import build_openai_app

    return build_openai_app(translate_all(config))
