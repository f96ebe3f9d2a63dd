"""Learn to act by trying: PPO of RLlib on a small world of its own (grid.py), sampled by all servers.

The template for a world of yours: what it looks like is in grid.py, everything here stays. What was learned is played
on fresh starts without any more trying, and that is what counts.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from ray_jobs import command, outcome
from ray_jobs.command import JobError

MODULE = "learner_group/learner/rl_module/default_policy"
# Its name starts with a dot while it is written.
KEPT = "checkpoint"


class Learn(command.Parameters):
    """How large the world is, and when it has been learned."""

    size: int = Field(default=5, ge=3, le=20, description="of the grid")
    goal: float = Field(default=0.9, gt=0, le=1, description="learned when it earns this share of what can be earned")
    iterations: int = Field(default=40, ge=1, le=10_000, description="at most")
    batch: int = Field(default=2000, ge=100, le=1_000_000, description="steps in the world per iteration")
    runners: int = Field(default=2, ge=1, le=1000, description="processes that try, each with a CPU of a server")
    episodes: int = Field(default=100, ge=1, le=10_000, description="starts on which it is judged at the end")
    seed: int = Field(default=0, ge=0, lt=2**31)


class Learned(BaseModel):
    """What it earns when it does what it learned, and what could be earned."""

    earned: float = Field(description="on average, on starts of its own")
    possible: float
    reached_goal: bool
    iterations: int
    resumed_at: int = Field(description="the iteration at which this start of the job went on")
    steps: int = Field(description="in the world, by all runners together, of all starts")
    checkpoint: str | None
    seconds: float


@contextmanager
def here(cpus: int) -> Iterator[None]:
    """RLlib is made of Ray: without a cluster one is started for this process alone."""
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def build(parameters: Learn) -> Any:
    """The algorithm, which starts its runners."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    from ray_jobs.grid import Grid

    config = PPOConfig().environment(Grid, env_config={"size": parameters.size})
    # One that asks for a CPU is kept off laptops, which offer none.
    config = config.env_runners(
        num_env_runners=parameters.runners, num_cpus_per_env_runner=1, num_envs_per_env_runner=4,
        rollout_fragment_length="auto",
    )  # fmt: skip
    config = config.learners(num_learners=0, num_gpus_per_learner=0)
    config = config.training(
        train_batch_size_per_learner=parameters.batch, minibatch_size=min(256, parameters.batch), num_epochs=6,
        lr=1e-3, gamma=0.98, lambda_=0.95, entropy_coeff=0.01,
    )  # fmt: skip
    config = config.rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64]))
    # A server that dies takes its runner along; another one is started in its place.
    config = config.fault_tolerance(restart_failed_env_runners=True).debugging(seed=parameters.seed)
    return config.build_algo()


def keep(algorithm: Any, folder: Path) -> None:
    """Save it beside the last one, then in its place."""
    with tempfile.TemporaryDirectory(prefix=".checkpoint-", dir=folder) as partial:
        algorithm.save_to_path(Path(partial) / "new")
        if (folder / KEPT).exists():
            (folder / KEPT).rename(Path(partial) / "old")
        (Path(partial) / "new").rename(folder / KEPT)


def play(checkpoint: Path, parameters: Learn) -> float:
    """What the saved module earns when it does what it thinks best."""
    import torch
    from ray.rllib.core.rl_module.rl_module import RLModule

    from ray_jobs.grid import Grid

    module = RLModule.from_checkpoint(os.fspath(checkpoint / MODULE))
    world, earned = Grid({"size": parameters.size}), 0.0
    for episode in range(parameters.episodes):
        # Starts that training, whose seeds are below, has hardly had in this order.
        seen, _ = world.reset(seed=2**31 + parameters.seed + episode)
        over = False
        while not over:
            with torch.no_grad():
                judged = module.forward_inference({"obs": torch.from_numpy(seen[None])})["action_dist_inputs"]
            seen, reward, there, late, _ = world.step(int(judged.argmax(-1)[0]))
            earned, over = earned + reward, there or late
    return earned / parameters.episodes


def train(parameters: Learn, folder: Path) -> tuple[int, int, int]:
    """Iterations, those of an earlier start, and steps; the result is the checkpoint in the folder."""
    from ray_jobs.grid import Grid

    possible = Grid.best(parameters.size)
    algorithm = build(parameters)
    try:
        if (folder / KEPT).exists():
            algorithm.restore_from_path(os.fspath(folder / KEPT))
        begun, steps, result = algorithm.iteration, 0, {}
        while algorithm.iteration < parameters.iterations:
            result = algorithm.train()
            steps = int(result["num_env_steps_sampled_lifetime"])
            earned = float(result["env_runners"].get("episode_return_mean", float("nan")))
            keep(algorithm, folder)
            note = f"earns {earned:.2f} of {possible:.2f}"
            outcome.progress(algorithm.iteration, parameters.iterations, note, score=earned, steps=steps)
            if earned >= parameters.goal * possible:
                break
        return int(algorithm.iteration), int(begun), steps
    finally:
        algorithm.stop()


def run(parameters: Learn, local: bool = False) -> Learned:
    """Learn until it is good enough, then see how good."""
    command.needs("gymnasium", "torch")
    start = time.perf_counter()
    with here(parameters.runners + 1), tempfile.TemporaryDirectory() as own:
        import ray

        from ray_jobs.grid import Grid

        if (cpus := ray.cluster_resources().get("CPU", 0)) < parameters.runners:
            raise JobError(f"runners: {parameters.runners} need a CPU each, the servers have {cpus:g}: take fewer")
        folder = command.folder() or Path(own)
        iterations, begun, steps = train(parameters, folder)
        earned, possible = play(folder / KEPT, parameters), Grid.best(parameters.size)
    return Learned(
        earned=round(earned, 4), possible=round(possible, 4), reached_goal=earned >= parameters.goal * possible,
        iterations=iterations, resumed_at=begun, steps=steps,
        checkpoint=os.fspath(folder / KEPT) if command.folder() else None,
        seconds=round(time.perf_counter() - start, 3),
    )  # fmt: skip


JOB = command.Job("rl", __doc__ or "", Learn, run)

if __name__ == "__main__":
    raise SystemExit(JOB.main())
