"""Monte Carlo on all CPUs, the template to copy: value at risk of a portfolio, or the price of an option.

What makes it a good citizen, and what to keep in a copy:
- shared data is put once (`ray.put`) and travels once to each node, not with every task;
- a part is worth the milliseconds that a task costs, and what comes back is small: sums, and the worst outcomes;
- `guests.each` has as many parts in flight as there are CPUs, and uses laptops: every part bears repetition;
- a part's random numbers come from the seed and the part's number. So the result does not depend on how many nodes
  there are, on which one runs what, or on how often a part is begun. It is the same without a cluster.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import ceil, fsum, isfinite, sqrt
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, model_validator

from ray_jobs import command, guests, outcome
from ray_jobs.command import JobError

# Trading days.
YEAR = 252


class MonteCarlo(command.Parameters):
    """What is at stake, and how many futures to look at."""

    data: str = Field(
        default="",
        description="CSV or Parquet file of daily returns (0.01: one percent), a column per asset; "
        "its days are drawn; empty: geometric Brownian motion",
    )
    weights: dict[str, float] = Field(
        default={}, max_length=1000, description="share of the money by column; empty: all columns of numbers alike"
    )
    drift: float = Field(default=0.05, ge=-5, le=5, description="a year, without data; an option's interest rate")
    volatility: float = Field(default=0.2, gt=0, le=5, description="a year, without data")
    value: float = Field(default=100, gt=0, le=1e15, description="today, of the portfolio or what the option is for")
    option: Literal["", "call", "put"] = Field(default="", description="price this European option, without data")
    strike: float = Field(default=100, gt=0, le=1e15, description="of the option")
    days: int = Field(default=10, ge=1, le=2520, description="trading days ahead, 252 a year")
    paths: int = Field(default=1_000_000, ge=1000, le=100_000_000)
    part: int = Field(default=100_000, ge=1000, le=1_000_000, description="paths per task; another one is another draw")
    confidence: list[Annotated[float, Field(ge=0.5, le=0.9999)]] = Field(
        default=[0.95, 0.99], min_length=1, max_length=10, description="of the value at risk"
    )
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _one_or_the_other(self) -> MonteCarlo:
        if self.data and self.option:
            raise ValueError("an option is priced with drift and volatility: leave data or option away")
        if self.weights and not self.data:
            raise ValueError("weights name columns of data: give data, or leave weights away")
        return self


class Risk(BaseModel):
    """What may be lost."""

    confidence: float
    value_at_risk: float = Field(description="this share of the paths loses no more; below zero it is a gain")
    expected_shortfall: float = Field(description="what the other paths lose, on average")


class Simulated(BaseModel):
    """The mean is the option's price, or the portfolio's gain; all in the money that `value` is in."""

    mean: float
    standard_error: float = Field(description="of the mean; a quarter of it takes sixteen times the paths")
    risks: list[Risk] = Field(description="of a portfolio")
    paths: int
    parts: int
    seconds: float


class Part(NamedTuple):
    """What is kept of some of the paths."""

    paths: int
    mean: float
    squares: float
    # Sorted, the worst first.
    worst: Any


def history(parameters: MonteCarlo) -> Any:
    """The portfolio's logarithmic return of each day of the data. It is kept at its weights from day to day."""
    import numpy
    import pandas

    path = Path(parameters.data)
    if not path.exists():
        raise JobError(f"data: {path} is not there (is the shared storage mounted on this node?)")
    try:
        table = pandas.read_csv(path) if path.suffix == ".csv" else pandas.read_parquet(path)
    except (ValueError, OSError) as error:
        raise JobError(f"data: {path} cannot be read: {error}") from error
    names = list(parameters.weights) or [str(name) for name in table.select_dtypes("number")]
    if unknown := [name for name in names if name not in table]:
        raise JobError(f"weights: no column {', '.join(unknown)} in {path}; there are {', '.join(map(str, table))}")
    if not names:
        raise JobError(f"data: {path} has no column of numbers")
    weights = list(parameters.weights.values()) or [1 / len(names)] * len(names)
    try:
        days = table[names].dropna().to_numpy(dtype=float) @ numpy.array(weights)
    except ValueError as error:
        raise JobError(f"data: {path}: {error}") from error
    if len(days) < 2:
        raise JobError(f"data: {path} has {len(days)} days with a return of every asset; two are the least")
    if not numpy.isfinite(days).all() or days.min() <= -1 or abs(days).mean() > 0.5:
        raise JobError(
            f"data: {path} holds no daily returns of such a portfolio: from {days.min():g} to {days.max():g}; "
            "0.01 is one percent; name the columns with weights where there are others"
        )
    return numpy.log1p(days)


def outcomes(past: Any, wanted: MonteCarlo, number: int) -> Any:
    """What comes out of each path of one part: the portfolio's gain, or what the option pays, as money of today."""
    import numpy

    random = numpy.random.default_rng((wanted.seed, number))
    size = min(wanted.part, wanted.paths - number * wanted.part)
    mean = (wanted.drift - wanted.volatility**2 / 2) / YEAR
    deviation = wanted.volatility / sqrt(YEAR)
    grown = numpy.zeros(size)
    # Day by day for all paths: no more memory than one number per path.
    for _ in range(wanted.days):
        if past is None:
            grown += mean + deviation * random.standard_normal(size)
        else:
            grown += past[random.integers(len(past), size=size)]
    end = wanted.value * numpy.exp(grown)
    if not wanted.option:
        return end - wanted.value
    pays = end - wanted.strike if wanted.option == "call" else wanted.strike - end
    return numpy.maximum(pays, 0) * numpy.exp(-wanted.drift * wanted.days / YEAR)


def simulate(past: Any, wanted: MonteCarlo, number: int) -> Part:
    """One part. The same number gives the same part, on whatever node."""
    import numpy

    # What grows beyond any number is told once, at the end.
    with numpy.errstate(over="ignore", invalid="ignore"):
        found = outcomes(past, wanted, number)
        mean = float(found.mean())
        squares = float(((found - mean) ** 2).sum())
    # Its share of the worst of all, and far more than chance adds to it: `risk` sees whether it was enough.
    share = 0 if wanted.option else len(found) * (1 - min(wanted.confidence))
    worst = numpy.sort(found)[: ceil(share + 10 * sqrt(share)) + 10].copy()
    return Part(len(found), mean, squares, worst)


def risk(parts: Sequence[Part], confidence: float) -> Risk:
    """Exactly what all paths together would say, from the worst of each part."""
    import numpy

    number = max(1, round(sum(part.paths for part in parts) * (1 - confidence)))
    worst = numpy.sort(numpy.concatenate([part.worst for part in parts]))[:number]
    # A part that was cut has shown all that are worse than the limit, unless the last it shows is worse itself.
    if len(worst) < number or any(len(part.worst) < part.paths and part.worst[-1] < worst[-1] for part in parts):
        raise RuntimeError("a part kept too few of its worst paths: are its random numbers not independent?")
    return Risk(confidence=confidence, value_at_risk=-float(worst[-1]), expected_shortfall=-float(worst.mean()))


def merge(parts: Sequence[Part]) -> tuple[float, float]:
    """Mean and standard error of all paths."""
    paths = sum(part.paths for part in parts)
    mean = fsum(part.paths * part.mean for part in parts) / paths
    squares = fsum(part.squares + part.paths * (part.mean - mean) ** 2 for part in parts)
    return mean, sqrt(squares / (paths - 1) / paths)


def run(parameters: MonteCarlo, local: bool = False) -> Simulated:
    """Simulate all parts, wherever there is a CPU, and merge them in their order."""
    command.needs("numpy", *(["pandas", "pyarrow"] if parameters.data else []))
    start = time.perf_counter()
    past = history(parameters) if parameters.data else None
    numbers = range(ceil(parameters.paths / parameters.part))
    if local:
        parts = [simulate(past, parameters, number) for number in numbers]
    else:
        import ray

        there = ray.put(past)
        parts = guests.each(
            simulate,
            [(there, parameters, number) for number in numbers],
            done=lambda count: outcome.progress(count, len(numbers), "parts"),
        )
    mean, error = merge(parts)
    if not isfinite(mean) or not isfinite(error):
        raise JobError(f"days: after {parameters.days} of them some paths are beyond any number; take fewer")
    return Simulated(
        mean=mean,
        standard_error=error,
        risks=[] if parameters.option else [risk(parts, confidence) for confidence in parameters.confidence],
        paths=sum(part.paths for part in parts),
        parts=len(parts),
        seconds=round(time.perf_counter() - start, 3),
    )


def show(simulated: Simulated) -> str:
    """The answer for people."""
    lines = [f"mean {simulated.mean:.6g}, standard error {simulated.standard_error:.2g}"]
    if simulated.risks:
        lines.append("confidence  value at risk  expected shortfall")
        lines += [
            f"{risk.confidence:<10g}  {risk.value_at_risk:>13.6g}  {risk.expected_shortfall:>18.6g}"
            for risk in simulated.risks
        ]
    lines.append(f"{simulated.paths} paths in {simulated.parts} parts, {simulated.seconds} s")
    return "\n".join(lines)


JOB = command.Job("montecarlo", __doc__ or "", MonteCarlo, run, show)

if __name__ == "__main__":
    raise SystemExit(JOB.main())
