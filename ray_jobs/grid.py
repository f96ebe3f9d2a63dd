"""The world in which the job `rl` learns: a grid with a goal in its far corner. Replace it by your own."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy

STEP, GOAL = -0.05, 1.0
MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))


class Grid(gymnasium.Env[Any, Any]):
    """Start anywhere but at the goal; each step costs, the goal pays; whoever wanders for too long has lost."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.size = int((config or {}).get("size", 5))
        self.longest = 10 * self.size
        self.action_space = gymnasium.spaces.Discrete(len(MOVES))
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (2,), numpy.float32)
        self.place, self.steps = [0, 0], 0

    @staticmethod
    def best(size: int) -> float:
        """What the shortest ways bring on average: `size` steps, of which the last one is paid."""
        return GOAL + STEP * (size - 1)

    def _seen(self) -> Any:
        return (numpy.array(self.place) / (self.size - 1)).astype(numpy.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A new start."""
        super().reset(seed=seed)
        self.place = [int(value) for value in self.np_random.integers(0, self.size - 1, 2)]
        self.steps = 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One move; walls hold."""
        self.place = [
            min(max(at + by, 0), self.size - 1) for at, by in zip(self.place, MOVES[int(action)], strict=True)
        ]
        self.steps += 1
        there = self.place == [self.size - 1, self.size - 1]
        return self._seen(), GOAL if there else STEP, there, self.steps >= self.longest, {}
