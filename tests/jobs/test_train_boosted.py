"""train_boosted, and predict with its models: local, and with a real Ray."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import xgboost
from pydantic import ValidationError

from ray_jobs import boosting, models, outcome, predict, tables, train_boosted, train_forest
from ray_jobs.boosting import Learned, Parts, Plan, Round
from ray_jobs.command import JobError
from ray_jobs.train_boosted import Boosted, Trained

FAST = {"rounds": 60, "learning_rate": 0.3, "max_depth": 4, "patience": 10, "cpus": 2}
DEAR: dict[str, Any] = {"target": "dear", "features": ["city", "size"]}


def houses(rows: int = 1500) -> pandas.DataFrame:
    """The price hangs on the city most, which is text; some sizes are missing. `noise` says nothing."""
    chance = numpy.random.default_rng(5)
    city = chance.choice(["ulm", "bonn", "kiel"], rows)
    size = chance.uniform(20, 200, rows)
    price = size * 2 + pandas.Series(city).map({"ulm": 0, "bonn": 500, "kiel": 250}) + chance.normal(0, 10, rows)
    return pandas.DataFrame({
        "city": pandas.Series(city).mask(chance.random(rows) < 0.03), "noise": chance.normal(size=rows),
        "size": pandas.Series(size).mask(chance.random(rows) < 0.03), "id": [f"h{number}" for number in range(rows)],
        "built": pandas.Timestamp("2020-01-01"), "price": price, "dear": (price > 480).map({True: "yes", False: "no"}),
    })  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> str:
    houses().to_parquet(tmp_path / "houses.parquet", index=False)
    return str(tmp_path / "houses.parquet")


def train(data: str = "", local: bool = True, **more: Any) -> Trained:
    return train_boosted.run(Boosted(data=data, **{**FAST, **more}), local=local)


def test_it_beats_guessing_by_far(data: str) -> None:
    made = train(data, target="dear", features=["noise", "size", "city"], most_labels=10)
    dummy = houses().dear.value_counts(normalize=True).max()
    assert dummy < 0.7
    assert 0.93 < made.metrics["accuracy"] < 1
    assert made.classes == ["no", "yes"] and made.task == "classification"
    assert (made.train_rows, made.validation_rows, made.test_rows) == (900, 300, 300)
    assert list(made.importances.values()) == sorted(made.importances.values(), reverse=True)
    assert next(iter(made.importances)) == "city"
    assert made.importances["noise"] < 0.1
    assert sum(made.importances.values()) == pytest.approx(1, abs=0.001)


def test_numbers_are_regression_and_more_classes_than_two_work(data: str) -> None:
    wanted = ["city", "size", "noise"]
    made = train(data, target="price", features=wanted)
    # The noise is 10; who says the mean is off by some 230.
    assert made.task == "regression" and made.metrics["rmse"] < 90 and made.metrics["r2"] > 0.85
    made = train(data, target="city", features=["price", "size"])
    assert made.classes == ["bonn", "kiel", "ulm"] and made.metrics["accuracy"] > 0.9


def test_what_a_target_of_numbers_is_taken_for() -> None:
    taken = {
        tuple(values): train_boosted.aim(pandas.Series(values), "auto", "label")[0]
        for values in ([0, 1, 2] * 9, [0.0, 1.0] * 9, [0.5, 1.5] * 9, list(range(21)))
    }
    assert list(taken.values()) == ["classification", "classification", "regression", "regression"]


def test_metrics_are_of_rows_that_it_has_not_seen() -> None:
    """Of a target that is pure chance nothing can be learned, though the training rows can be known by heart."""
    table = pandas.DataFrame(numpy.random.default_rng(1).normal(size=(900, 5)), columns=list("abcde"))
    y = numpy.random.default_rng(2).integers(0, 2, 900)
    parts = Parts(numpy.arange(500), numpy.arange(500, 600), numpy.arange(600, 900))
    about = {"task": "classification", "features": list("abcde"), "classes": [0, 1]}
    settings = {**boosting.objective("classification", 2), "max_depth": 10, "learning_rate": 0.5}
    *_, made = boosting.learn(table, y, parts, Plan(about, [], settings, 40, 40), 1)
    assert isinstance(made, Learned)
    assert 0.35 < made.metrics["accuracy"] < 0.65
    # The best of these rounds by the validation part: the first ones, before it knows rows by heart.
    assert made.rounds < 20


@pytest.mark.parametrize("target", ["dear", "price"])
def test_rows_are_in_one_part_only(data: str, target: str) -> None:
    wanted = Boosted(data=data, target=target, folds=4)
    _, y, classes = train_boosted.aim(houses()[target], "auto", target)
    whole, folds = train_boosted.parted(y, wanted, classes)
    for parts in (whole, *folds):
        assert len(numpy.unique(numpy.concatenate(parts))) == sum(map(len, parts))
    assert sum(map(len, whole)) == 1500
    # The folds measure each other row once, and never see the test part.
    measured = numpy.sort(numpy.concatenate([fold.test for fold in folds]))
    assert (measured == numpy.sort(numpy.concatenate([whole.train, whole.validation]))).all()
    if classes:
        # As many of each class in every part.
        shares = [y[rows].mean() for parts in (whole, *folds) for rows in parts]
        assert max(shares) - min(shares) < 0.01
    for fold in folds:
        assert not numpy.isin(whole.test, numpy.concatenate(fold)).any()


def test_it_is_what_xgboost_itself_does(data: str) -> None:
    """Our rounds, which tell how far they are, against xgboost.train with its early stopping."""
    table = houses()
    parts = train_boosted.parted(table.price.to_numpy(), Boosted(), [])[0]
    about = {"task": "regression", "features": ["city", "size", "noise"], "classes": []}
    settings = {**boosting.objective("regression", 0), "learning_rate": 0.3, "subsample": 0.8, "seed": 3}
    said = list(boosting.learn(table, table.price.to_numpy(), parts, Plan(about, ["city"], settings, 200, 7), 2))
    learned = said[-1]
    assert isinstance(learned, Learned) and all(isinstance(step, Round) for step in said[:-1]) and len(said) > 2
    labels = {**about, "labels": {"city": ["bonn", "kiel", "ulm"]}}
    sets = [boosting.rows(table.iloc[part], labels, table.price.to_numpy()[part], 2) for part in parts]
    theirs = xgboost.train({**settings, "nthread": 2}, sets[0], 200, evals=[(sets[1], "v")], early_stopping_rounds=7,
                           verbose_eval=False)  # fmt: skip
    assert learned.rounds == theirs.best_iteration + 1 < 180
    assert max(step.number for step in said if isinstance(step, Round)) <= learned.rounds + 7
    ours = xgboost.Booster(model_file=bytearray(learned.model))
    assert ours.num_boosted_rounds() == learned.rounds
    assert ours.feature_types == ["c", "q", "q"]
    best = theirs.predict(sets[2], iteration_range=(0, theirs.best_iteration + 1))
    assert ours.predict(sets[2]).tolist() == best.tolist()


def test_left_out_is_what_cannot_be_learned_from(data: str) -> None:
    made = train(data, target="dear", most_labels=10, rounds=3)
    assert made.features == ["city", "noise", "size", "price"]
    assert made.left_out == ["id", "built"]


def test_folds_say_how_far_a_metric_can_be_trusted(data: str) -> None:
    made = train(data, **DEAR, folds=3)
    spread = made.cross_validation["accuracy"]
    assert 0.9 < spread.mean < 1
    assert 0 < spread.deviation < 0.1
    assert set(made.cross_validation) == set(made.metrics)


def test_a_model_is_kept_and_predicts_as_it_was_measured(data: str, tmp_path: Path) -> None:
    wanted: dict[str, Any] = {
        "target": "dear",
        "features": ["city", "size"],
        "models": str(tmp_path / "models"),
        "version": "v1",
    }
    made = train(data, **wanted)
    # The same version again keeps what is there.
    file = tmp_path / "models/boosted/v1" / boosting.FILE
    before = file.stat().st_mtime_ns
    assert train(data, **wanted, seed=1).model == made.model == str(file.parent)
    assert file.stat().st_mtime_ns == before
    assert sorted(path.name for path in file.parent.parent.iterdir()) == ["latest", "v1"]
    about = json.loads((file.parent / "model.json").read_text())
    assert about["kind"] == "boosted" and about["labels"] == {"city": ["bonn", "kiel", "ulm"]}
    y = train_boosted.aim(houses().dear, "auto", "dear")[1]
    test = train_boosted.parted(y, Boosted(data=data), ["no", "yes"])[0].test
    houses().iloc[test].drop(columns=["dear", "price"]).to_csv(tmp_path / "new.csv", index=False)
    said = predicted(tmp_path, tmp_path / "new.csv")
    assert len(said) == 300
    assert (said.prediction.to_numpy() == houses().dear.iloc[test]).mean() == pytest.approx(made.metrics["accuracy"])


def predicted(folder: Path, data: Path, name: str = "boosted") -> pandas.DataFrame:
    model = str(folder / "models" / name / "latest")
    answer = predict.run(predict.Predict(model=model, data=str(data), target=str(folder / "out")), local=True)
    table: pandas.DataFrame = pandas.read_parquet(answer.files[0])
    return table


def test_an_unknown_text_is_a_missing_value(data: str, tmp_path: Path) -> None:
    train(data, target="price", features=["city", "size"], models=str(tmp_path / "models"))
    rows = pandas.DataFrame({"city": ["bonn", "ulm", None, "atlantis"], "size": 100.0})
    rows.to_parquet(tmp_path / "new.parquet")
    bonn, ulm, missing, unknown = predicted(tmp_path, tmp_path / "new.parquet").prediction
    assert abs(bonn - ulm) > 300
    assert unknown == missing
    x = tables.matrix(rows, ["city"], {"city": ["bonn", "ulm"]})[:, 0]
    assert x[:2].tolist() == [0, 1] and numpy.isnan(x[2:]).all()


def test_only_what_the_training_rows_have_is_known() -> None:
    """Else the test part would be measured with what a later unknown text does not have."""
    table, parts = houses(), Parts(numpy.arange(900), numpy.arange(900, 1200), numpy.arange(1200, 1500))
    table.loc[1200:, "city"] = "atlantis"
    about = {"task": "regression", "features": ["city", "size"], "classes": []}
    *_, made = boosting.learn(
        table, table.price.to_numpy(), parts, Plan(about, ["city"], boosting.objective("regression", 0), 5, 5), 1
    )
    assert isinstance(made, Learned) and made.labels == {"city": ["bonn", "kiel", "ulm"]}


def test_texts_that_look_like_numbers_stay_texts(tmp_path: Path) -> None:
    """Trained with postal codes of which some have letters; asked about a file in which none has."""
    code = numpy.array(["0123", "123", "B7"] * 200)
    pandas.DataFrame({"code": code, "label": code == "0123"}).to_csv(tmp_path / "codes.csv", index=False)
    train(str(tmp_path / "codes.csv"), models=str(tmp_path / "models"))
    pandas.DataFrame({"code": ["0123", "123"]}).to_csv(tmp_path / "new.csv", index=False)
    assert predicted(tmp_path, tmp_path / "new.csv").prediction.tolist() == [True, False]
    # And a file without rows is no mistake.
    pandas.DataFrame({"code": []}).to_csv(tmp_path / "none.csv", index=False)
    assert predicted(tmp_path, tmp_path / "none.csv").columns.tolist() == ["code", "prediction"]


def test_truth_with_gaps_is_numbers(tmp_path: Path) -> None:
    truth = [True, False, None] * 200
    table = pandas.DataFrame({"a": pandas.Series(truth, dtype=object), "b": pandas.array(truth, "boolean"),
                              "c": pandas.array([1, 0, None] * 200, "Int64")})  # fmt: skip
    assert tables.features(table, [], "label") == (["a", "b", "c"], [])
    x = tables.matrix(table.head(3), ["a", "b", "c"])
    assert x[:2].tolist() == [[1, 1, 1], [0, 0, 0]] and numpy.isnan(x[2]).all()


def test_a_folder_is_its_parquet_files(data: str, tmp_path: Path) -> None:
    """Also where `process` has set rows aside beside them, and where something is just being written."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.parquet", "b.parquet"):
        shutil.copy(data, folder / name)
    (folder / "a.rejected.csv").write_text("row,reason\n1,bad\n")
    (folder / ".c.parquet").write_text("half")
    assert len(tables.read(str(folder), "dear")) == 3000


def bad(mistake: str, **parameters: Any) -> Any:
    return pytest.param(mistake, parameters, id=mistake)


@pytest.mark.parametrize(
    ("mistake", "parameters"),
    [
        bad("data: .*nowhere.csv is not there", data="nowhere.csv"),
        bad("data: no Parquet file in", data="empty"),
        bad("target: no column 'colour' in", target="colour"),
        bad("target: built is neither numbers nor text", target="built"),
        bad("target: dear is text; regression needs numbers", target="dear", task="regression"),
        bad("target: same is the same in all rows", target="same"),
        bad("features: no column colour in the data", features=["colour"]),
        bad("features: dear is the target", features=["size", "dear"]),
        bad("features: built is not numbers or text", features=["built"]),
        bad("features: id has 1500 different texts, more than 1000", features=["id"]),
        bad("data: column endless has infinite values", features=["endless"]),
        bad("data: 1500 rows cannot be split.*5 folds, but one class has only 2 rows", target="rare", folds=5),
        bad("data: 1500 rows cannot be split.*least populated class", target="once"),
        bad("models: .* cannot be made", models="houses.parquet/models"),
    ],
)
def test_a_mistake_is_one_line_before_the_work(
    data: str, monkeypatch: pytest.MonkeyPatch, mistake: str, parameters: dict[str, Any]
) -> None:
    monkeypatch.chdir(Path(data).parent)
    table = houses().assign(same=1, endless=numpy.inf, rare=["rare"] * 3 + ["often"] * 1497)
    table["once"] = ["once"] + ["often"] * 1499
    table.to_parquet("houses.parquet")
    Path("empty").mkdir()
    monkeypatch.setattr(boosting, "learn", lambda *_: pytest.fail("it has begun"))
    with pytest.raises(JobError, match=mistake) as caught:
        train(**{"data": data, **DEAR, **parameters})
    assert "\n" not in str(caught.value)


def test_parameters_that_cannot_be() -> None:
    for wrong in ({"folds": 1}, {"test_share": 0.5, "validation_share": 0.5}, {"rounds": 0}, {"name": "../up"}):
        with pytest.raises(ValidationError):
            Boosted.model_validate(wrong)


def test_models_that_predict_cannot_use(data: str, tmp_path: Path) -> None:
    train(data, **DEAR, models=str(tmp_path / "models"), rounds=2)
    houses(5).drop(columns=["size"]).to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(JobError, match=r"no column size, which the model was trained with.*new\.csv"):
        predicted(tmp_path, tmp_path / "new.csv")
    with pytest.raises(JobError, match=r"holds no model\.json"):
        predicted(tmp_path, tmp_path / "new.csv", "other")
    about = tmp_path / "models/boosted/latest/model.json"
    about.write_text('{"kind": "oracle"}')
    with pytest.raises(JobError, match="is of the kind oracle; known here are forest, boosted"):
        predicted(tmp_path, tmp_path / "new.csv")


def test_a_forest_of_before_is_still_known(data: str, tmp_path: Path) -> None:
    """Models that were kept when there was one kind only do not say which they are."""
    wanted = train_forest.Forest(data=data, target="dear", trees=5, models=str(tmp_path / "models"))
    train_forest.run(wanted, local=True)
    about = tmp_path / "models/forest/latest/model.json"
    said = json.loads(about.read_text())
    assert said.pop("kind") == "forest"
    about.write_text(json.dumps(said))
    found = predicted(tmp_path, Path(data), "forest")
    assert (found.prediction == found.dear).mean() > 0.9
    with pytest.raises(JobError, match="features: city is not numbers; leave it out"):
        train_forest.run(train_forest.Forest(data=data, target="dear", features=["city"]), local=True)


def test_a_model_that_could_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError("disk full")

    with pytest.raises(JobError, match=r"models: .* cannot be written: disk full"):
        models.save(str(tmp_path), "boosted", "v1", {}, write)
    assert list((tmp_path / "boosted").iterdir()) == []


def told(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.startswith(outcome.PROGRESS)]
    return [json.loads(line.removeprefix(outcome.PROGRESS)) for line in lines]


def test_ray_makes_what_this_process_makes(
    ray_here: None, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted: dict[str, Any] = {
        "target": "dear",
        "features": ["city", "size"],
        "folds": 3,
        "models": str(tmp_path / "models"),
    }
    here, there = train(data, **wanted, version="here"), train(data, local=False, **wanted, version="there")
    same: Callable[[Trained], Any] = lambda made: made.model_dump(exclude={"seconds", "model"})  # noqa: E731
    assert same(here) == same(there)
    first, second = (Path(made.model or "") / boosting.FILE for made in (here, there))
    assert first.read_bytes() == second.read_bytes()
    notes = told(capsys.readouterr().out)
    assert "when one server has 2 free CPUs" in notes[0]["note"]
    assert [step["done"] for step in notes if step["note"].startswith("folds")] == [1, 2, 3]
    assert sum("on the validation rows" in step["note"] for step in notes) >= 3
    assert notes[-1]["done"] == notes[-1]["total"] == there.rounds


def test_by_default_it_takes_the_largest_server_and_never_more(ray_here: None, data: str) -> None:
    assert train(data, local=False, target="dear", features=["size"], rounds=2, cpus=0).cpus == 2
    with pytest.raises(JobError, match="cpus: 64, but the largest server has 2"):
        train(data, local=False, target="dear", cpus=64)


def test_a_mistake_in_prediction_on_ray_is_one_line(ray_here: None, data: str, tmp_path: Path) -> None:
    train(data, **DEAR, models=str(tmp_path / "models"), rounds=2)
    wanted = predict.Predict(model=str(tmp_path / "models/boosted/latest"), data=data, target=str(tmp_path / "out"))
    assert predict.run(wanted).rows == 1500
    houses(5).drop(columns=["size"]).to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(JobError, match="no column size"):
        predict.run(wanted.model_copy(update={"data": str(tmp_path / "new.csv")}))
