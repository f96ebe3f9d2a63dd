"""rl learns its world, goes on where it was, and says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ray_jobs import rl
from ray_jobs.command import JobError

# A third of what is possible is far from what trying at random earns: about -1.6 in this world.
SMALL = {"size": 4, "batch": 1000, "runners": 1, "episodes": 40}


def test_the_best_is_what_the_shortest_ways_earn() -> None:
    from ray_jobs.grid import MOVES, Grid

    world = Grid({"size": 6})
    earned = []
    for seed in range(300):
        world.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            down = world.place[0] < 5
            _, reward, over, late, _ = world.step(MOVES.index((1, 0) if down else (0, 1)))
            total += reward
            assert not late
        earned.append(total)
    assert sum(earned) / 300 == pytest.approx(Grid.best(6), abs=0.02)


def test_it_learns_and_a_second_start_goes_on(ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSTER_DATA", str(tmp_path))
    monkeypatch.setenv("MUSTER_RAY_JOB", "rl-1")
    first = rl.JOB.perform(rl.Learn(**SMALL, iterations=1), local=False)
    assert isinstance(first, rl.Learned)
    assert (first.iterations, first.resumed_at, first.reached_goal) == (1, 0, False)
    second = rl.JOB.perform(rl.Learn(**SMALL, iterations=30), local=False)
    assert isinstance(second, rl.Learned)
    assert second.resumed_at == 1 < second.iterations
    assert second.reached_goal and second.earned >= 0.9 * second.possible > first.earned
    assert second.steps > first.steps
    (run,) = tmp_path.glob("results/rl/*/run.json")
    assert json.loads(run.read_text())["starts"] == 2
    assert {path.name for path in run.parent.iterdir()} == {"run.json", "checkpoint"}


def test_more_runners_than_cpus_are_refused(ray_here: None) -> None:
    with pytest.raises(JobError, match="runners: 50 need a CPU each, the servers have 2"):
        rl.run(rl.Learn(runners=50))
