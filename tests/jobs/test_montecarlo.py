"""montecarlo against what formulas say, and the same result wherever and however often its parts run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import exp, log, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from ray_jobs import guests, montecarlo
from ray_jobs.command import JobError
from ray_jobs.montecarlo import MonteCarlo

NORMAL = NormalDist()
SMALL: dict[str, Any] = {"paths": 12_500, "part": 2000, "days": 3}


def same(simulated: montecarlo.Simulated) -> dict[str, Any]:
    return simulated.model_dump(exclude={"seconds"})


def black_scholes(wanted: MonteCarlo) -> float:
    years = wanted.days / 252
    spread = wanted.volatility * sqrt(years)
    up = (log(wanted.value / wanted.strike) + (wanted.drift + wanted.volatility**2 / 2) * years) / spread
    discounted = wanted.strike * exp(-wanted.drift * years)
    call = wanted.value * NORMAL.cdf(up) - discounted * NORMAL.cdf(up - spread)
    return call if wanted.option == "call" else call - wanted.value + discounted


@pytest.mark.parametrize("option", ["call", "put"])
@pytest.mark.parametrize("strike", [90, 100, 115])
def test_an_option_costs_what_black_and_scholes_say(option: Any, strike: float) -> None:
    wanted = MonteCarlo(option=option, strike=strike, drift=0.2, volatility=0.3, days=63, paths=50_000, part=9000)
    found = montecarlo.run(wanted, local=True)
    assert (found.paths, found.parts, found.risks) == (50_000, 6, [])
    # An error that is too large would make everything agree.
    assert 0 < found.standard_error < 0.1
    assert abs(found.mean - black_scholes(wanted)) < 4 * found.standard_error


def test_the_risk_of_made_up_prices_is_that_of_the_lognormal_distribution() -> None:
    wanted = MonteCarlo(value=1000, drift=0.1, volatility=0.25, days=21, paths=100_000, part=30_000)
    found = montecarlo.run(wanted, local=True)
    years, spread = 21 / 252, 0.25 * sqrt(21 / 252)
    centre = (0.1 - 0.25**2 / 2) * years
    assert abs(found.mean - 1000 * (exp(0.1 * years) - 1)) < 4 * found.standard_error
    assert [risk.confidence for risk in found.risks] == [0.95, 0.99]
    for risk in found.risks:
        tail = 1 - risk.confidence
        point = NORMAL.inv_cdf(tail)
        limit = 1000 * exp(centre + spread * point)
        # The standard error of a quantile: from the density where it lies.
        error = sqrt(tail * risk.confidence / wanted.paths) / (NORMAL.pdf(point) / (limit * spread))
        assert abs(risk.value_at_risk - (1000 - limit)) < 4 * error
        below = 1000 * exp(0.1 * years) * NORMAL.cdf(point - spread) / tail
        assert abs(risk.expected_shortfall - (1000 - below)) < 8 * error
        assert risk.expected_shortfall > risk.value_at_risk


def test_parts_say_together_what_all_paths_say() -> None:
    import numpy

    wanted = MonteCarlo(**SMALL, confidence=[0.9, 0.992])
    parts = [montecarlo.simulate(None, wanted, number) for number in range(7)]
    whole = numpy.concatenate([montecarlo.outcomes(None, wanted, number) for number in range(7)])
    assert len(whole) == len(set(whole)) == 12_500
    mean, error = montecarlo.merge(parts)
    assert mean == pytest.approx(whole.mean(), rel=1e-12)
    assert error == pytest.approx(whole.std(ddof=1) / sqrt(12_500), rel=1e-12)
    for confidence, number in ((0.9, 1250), (0.992, 100)):
        risk = montecarlo.risk(parts, confidence)
        assert risk.value_at_risk == -numpy.sort(whole)[number - 1]
        assert risk.expected_shortfall == pytest.approx(-numpy.sort(whole)[:number].mean(), rel=1e-12)
    # ... without keeping them.
    assert sum(len(part.worst) for part in parts) < len(whole) / 4


def test_a_part_that_kept_too_few_is_found_out() -> None:
    wanted = MonteCarlo(**SMALL)
    parts = [montecarlo.simulate(None, wanted, number) for number in range(7)]
    parts[3] = parts[3]._replace(worst=parts[3].worst[:50])
    with pytest.raises(RuntimeError, match="too few"):
        montecarlo.risk(parts, 0.95)
    with pytest.raises(RuntimeError, match="too few"):
        montecarlo.risk(parts[3:4], 0.95)


def test_a_part_depends_on_the_seed_and_its_number_only() -> None:
    wanted, other = MonteCarlo(**SMALL), MonteCarlo(**SMALL, seed=1)
    first = montecarlo.outcomes(None, wanted, 2)
    assert (montecarlo.outcomes(None, wanted, 2) == first).all()
    assert not (montecarlo.outcomes(None, wanted, 3) == first).any()
    assert not (montecarlo.outcomes(None, other, 2) == first).any()


@pytest.fixture
def returns(tmp_path: Path) -> Path:
    """Two assets that always do the same, a name, and a day on which one was not traded."""
    path = tmp_path / "returns.csv"
    lines = [f"2026-01-{day:02},up,0.03,-0.01" for day in range(1, 10)]
    path.write_text("\n".join(["day,mood,a,b", *lines, "2026-01-10,down,0.5,", ""]))
    return path


def test_days_are_drawn_from_the_file_and_weighed(returns: Path, tmp_path: Path) -> None:
    import pandas

    plain = montecarlo.run(MonteCarlo(data=os.fspath(returns), **SMALL), local=True)
    assert plain.mean == pytest.approx(100 * (1.01**3 - 1))
    assert plain.standard_error == pytest.approx(0, abs=1e-12)
    parquet = tmp_path / "returns.parquet"
    pandas.read_csv(returns).to_parquet(parquet)
    weighed = MonteCarlo(data=os.fspath(parquet), weights={"b": 0.5, "a": 0.25}, **SMALL)
    assert montecarlo.run(weighed, local=True).mean == pytest.approx(100 * (1.0025**3 - 1))


def test_drawn_days_have_the_mean_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "returns.csv"
    path.write_text("a\n0.1\n-0.05\n0.02\n-0.04\n")
    found = montecarlo.run(MonteCarlo(data=os.fspath(path), paths=50_000, part=20_000, days=5), local=True)
    # Each day grows by 0.75 % on average, whatever the days before.
    assert abs(found.mean - 100 * (1.0075**5 - 1)) < 4 * found.standard_error
    assert found.standard_error < 0.1


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("a\n0.1\n0.2\n", {"weights": {"b": 1}}, "no column b"),
        ("a\nx\ny\n", {}, "no column of numbers"),
        ("a\nx\ny\n", {"weights": {"a": 1}}, "could not convert"),
        ("a\n0.1\n", {}, "two are the least"),
        ("a\n101.5\n102.5\n", {}, "0.01 is one percent"),
        ("a\n-1\n0.1\n0.1\n", {}, "0.01 is one percent"),
        ("", {}, "cannot be read"),
        ("a\n0.1\n1e300\n-0.1\n", {}, "0.01 is one percent"),
        ("a\n0.4\n0.45\n", {"days": 2520}, "beyond any number"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path: Path, text: str, more: dict[str, Any], said: str) -> None:
    path = tmp_path / "returns.csv"
    path.write_text(text)
    with pytest.raises(JobError, match=said) as error:
        montecarlo.run(MonteCarlo(**{"data": os.fspath(path), **SMALL, **more}), local=True)
    assert str(error.value).startswith(("data: ", "weights: ", "days: "))


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["paths=10"], "paths"),
        (["confidence=[1]"], "confidence.0"),
        (["confidence=[]"], "confidence"),
        (["option=straddle"], "option"),
        (["option=call", "data=a.csv"], "leave data or option away"),
        (['weights={"a": 1}'], "weights name columns of data"),
        (["seed=-1"], "seed"),
    ],
)
def test_a_wrong_parameter_is_one_line_and_status_2(
    pairs: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert montecarlo.JOB.main(["--local", *(word for pair in pairs for word in ("-p", pair))]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_from_the_command_line_without_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--local", "-p", "paths=5000", "-p", "part=1000"]
    assert montecarlo.JOB.main(words) == 0
    assert "expected shortfall" in capsys.readouterr().out
    assert montecarlo.JOB.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"] == 5
    assert montecarlo.JOB.main(["--local", "-p", "data=/nowhere/a.csv"]) == 1
    assert "is not there" in capsys.readouterr().err


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, ray_jobs.montecarlo, ray_jobs.benchmark;"
        "sys.exit(any(name in sys.modules for name in ('ray', 'numpy', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_cluster_says_exactly_what_one_process_says(ray_here: None, returns: Path) -> None:
    for wanted in (MonteCarlo(**SMALL), MonteCarlo(data=os.fspath(returns), weights={"a": 0.1, "b": 2}, **SMALL)):
        there, here = montecarlo.run(wanted), montecarlo.run(wanted, local=True)
        assert same(there) == same(here)
        assert there.parts == 7


def test_a_part_whose_worker_dies_is_repeated_and_the_same(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = MonteCarlo(**SMALL)
    mark = tmp_path / "died"
    begun = guests.each

    def dies_once(past: Any, parameters: MonteCarlo, number: int) -> montecarlo.Part:
        if number == 4 and not mark.exists():
            mark.touch()
            os._exit(1)
        return montecarlo.simulate(past, parameters, number)

    monkeypatch.setattr(guests, "each", lambda function, *rest, **more: begun(dies_once, *rest, **more))
    there = montecarlo.run(wanted)
    assert mark.exists()
    monkeypatch.undo()
    assert same(there) == same(montecarlo.run(wanted, local=True))
