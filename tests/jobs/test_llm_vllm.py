"""The configuration for hosts with GPUs, as Ray Serve LLM's own models read it. No GPU has run it."""

from __future__ import annotations

import importlib

from ray_jobs.llm import config, vllm


def test_ray_serve_llm_takes_what_is_made_for_it() -> None:
    found = config.check(
        {
            "models": [
                {"name": "a", "path": "/m/a", "engine": "vllm", "gpus": 2, "cpus": 3, "queue": 0},
                {"name": "b", "path": "/m/b", "engine": "vllm", "gpus": 1, "replicas": {"min": 1, "max": 3}},
            ]
        }
    )
    # `ray.serve.llm` itself cannot be imported without vLLM; these are the models that it checks with.
    configs = importlib.import_module("ray.llm._internal.serve.core.configs.llm_config")
    placement = importlib.import_module("ray.llm._internal.common.placement")
    serve = importlib.import_module("ray.serve")
    said = vllm.translate_all(found)
    for values, model in zip(said["llm_configs"], found.models, strict=True):
        made = configs.LLMConfig.model_validate(values)
        assert made.model_id == model.name
        wanted = placement.PlacementGroupConfig.model_validate(values["placement_group_config"])
        bundles = [wanted.bundle_per_worker.model_dump()] * model.gpus
        # As LLMServer hands it to Serve, whose checks are in `options`.
        deployment = serve.deployment(type("Server", (), {})).options(
            placement_group_bundles=bundles, placement_group_strategy=wanted.strategy, **made.deployment_config
        )
        assert bundles[0]["GPU"] == 1 and bundles[0]["CPU"] == model.cpus
        scaled = made.deployment_config.get("autoscaling_config", {"max_replicas": deployment.num_replicas})
        assert scaled["max_replicas"] == model.replicas.max
    serve.deployment(type("Door", (), {})).options(**said["ingress_deployment_config"])
