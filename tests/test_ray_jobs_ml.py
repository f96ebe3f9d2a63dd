"""Forest, predict and process: parameters anywhere; the work where scikit-learn and pandas are (the ml image)."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from celery_app.tasks import ml
from ray_jobs import command, predict, process, train_forest


def test_a_wrong_parameter_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_forest.JOB.main(["-p", "trees=0", "-p", "colour=red"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "trees" in said
    assert "colour" in said
    assert train_forest.JOB.main(["--params", "[1]"]) == 2
    assert train_forest.JOB.main(["-p", "name=../up"]) == 2


def test_a_missing_library_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert train_forest.JOB.main(["--local"]) == 1
    assert "ml` image" in capsys.readouterr().err


def test_trees_are_split_evenly_and_no_part_is_empty() -> None:
    assert train_forest.split(10, 4) == [3, 3, 2, 2]
    assert train_forest.split(2, 8) == [1, 1]


def test_jobs_import_nothing_heavy() -> None:
    code = (
        "import sys, ray_jobs.train_forest, ray_jobs.train_boosted, ray_jobs.process, ray_jobs.predict;"
        "sys.exit(any(name in sys.modules for name in ('ray', 'pandas', 'sklearn', 'pyarrow', 'xgboost')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_jobs_command_survives_the_shell() -> None:
    wanted = train_forest.Forest(data="/a b/it's $HOME.csv", features=["x y"])
    words = shlex.split(train_forest.JOB.entrypoint(wanted))
    assert words[:3] == ["python", "-m", "ray_jobs.train_forest"]
    assert command.parse(train_forest.Forest, words[4], []) == wanted


def test_a_bad_parameter_never_reaches_ray() -> None:
    with pytest.raises(ValueError, match="trees"):
        ml.checked(train_forest.Forest, {"trees": "many"})


def test_models_are_due_when_old_or_when_their_data_changed(tmp_path: Path) -> None:
    now = time.time()
    data = tmp_path / "data.csv"
    data.write_text("a")
    for name, trained in (("old", now - 8 * 86_400), ("stale", now - 100), ("fresh", now - 10)):
        version = tmp_path / "models" / name / "v1"
        version.mkdir(parents=True)
        (version / "model.json").write_text(json.dumps({"parameters": {"data": os.fspath(data), "version": "v1"}}))
        os.utime(version / "model.json", (trained, trained))
        (version.parent / "latest").symlink_to("v1")
    (tmp_path / "models/torch/latest").mkdir(parents=True)
    (tmp_path / "models/torch/latest/model.json").write_text(json.dumps({"kind": "torch", "parameters": {}}))
    os.utime(tmp_path / "models/torch/latest/model.json", (now - 8 * 86_400, now - 8 * 86_400))
    os.utime(data, (now - 50, now - 50))
    found = ml.due(tmp_path / "models", now, 7)
    assert [name for name, _ in found] == ["old", "stale"]
    assert found[0][1]["version"] is None
    # What is trained anew is trained by the job that made it.
    parameters = {"data": os.fspath(data), "folds": 3}
    (tmp_path / "models/stale/v1/model.json").write_text(json.dumps({"kind": "boosted", "parameters": parameters}))
    os.utime(tmp_path / "models/stale/v1/model.json", (now - 100, now - 100))
    assert [name for name, _ in ml.due(tmp_path / "models", now, 7)] == ["old"]
    assert ml.due(tmp_path / "models", now, 7, "boosted") == [("stale", {**parameters, "version": None})]


def test_a_model_is_trained_anew_by_the_job_that_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, parameters in (("forest", {"trees": 7}), ("boosted", {"folds": 3})):
        (tmp_path / "models" / kind / "latest").mkdir(parents=True)
        about = tmp_path / "models" / kind / "latest/model.json"
        about.write_text(json.dumps({"kind": kind, "parameters": parameters}))
        os.utime(about, (0, 0))
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(ml, "DATA", tmp_path)
    monkeypatch.setattr(ml, "ray_job", lambda entrypoint: entrypoint)
    monkeypatch.setattr(ml.train, "apply_async", lambda **options: sent.append(options))
    assert set(ml.retrain_due.apply().get()) == {"forest", "boosted"}
    entrypoints = [ml.train.apply(args=options["args"], task_id=options["task_id"]).get() for options in sent]
    (forest, boosted) = (shlex.split(entrypoint) for entrypoint in entrypoints)
    assert forest[2] == "ray_jobs.train_forest" and json.loads(forest[4])["trees"] == 7
    assert boosted[2] == "ray_jobs.train_boosted" and json.loads(boosted[4])["folds"] == 3
    assert json.loads(boosted[4])["version"] == sent[1]["task_id"]


CSV = "id,price,zip,ok,when\n1,2.5,01234,true,2024-01-01\n2,x,0999,no,2024-01-02\n3,4,111\n4,1e3,222,yes,2024-01-03\n"


def test_rows_that_do_not_fit_are_set_aside_and_counted(tmp_path: Path) -> None:
    parquet = importlib.import_module("pyarrow.parquet")
    source = tmp_path / "a.csv"
    source.write_text(CSV)
    made = process.run(
        process.Process(source=os.fspath(source), target=os.fspath(tmp_path / "out"), columns={"price": "float"}),
        local=True,
    )
    assert (made.rows, made.bad_rows) == (2, 2)
    table = parquet.read_table(tmp_path / "out/a.parquet")
    assert [str(field.type) for field in table.schema] == ["int64", "double", "string", "bool", "timestamp[us, tz=UTC]"]
    assert table.column("zip").to_pylist() == ["01234", "222"]
    aside = (tmp_path / "out/a.rejected.csv").read_text().splitlines()
    assert sorted(line.split(",")[:2] for line in aside[1:]) == [["3", "price is not float"], ["4", '"3 values']]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.parquet", "a.rejected.csv"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "no header"), ("a,a\n1,2\n", "no header"), ("a\n", "no good row"), ("b\n1\n", "lacks the column a"),
     ("a\nx\ny\n", "no good row"), ("a\n1\nx\ny\nz\n", "3 of 4 rows are bad"), (b"a\n\xff\xfe\n", "not CSV in UTF-8")],
)  # fmt: skip
def test_a_file_that_is_no_use_leaves_nothing(tmp_path: Path, text: str | bytes, reason: str) -> None:
    source = tmp_path / "a.csv"
    source.write_bytes(text if isinstance(text, bytes) else text.encode())
    wanted = process.Process(source=os.fspath(source), target=os.fspath(tmp_path), columns={"a": "int"})
    with pytest.raises(process.BadFileError, match=reason):
        process.convert(source, tmp_path / "a.parquet", wanted)
    assert list(tmp_path.iterdir()) == [source]


def test_a_forest_learns_is_kept_and_predicts(tmp_path: Path) -> None:
    pandas = importlib.import_module("pandas")
    from sklearn.datasets import make_classification

    x, y = make_classification(n_samples=1500, n_features=6, n_informative=4, random_state=1)
    table = pandas.DataFrame(x, columns=list("abcdef")).assign(label=["yes" if value else "no" for value in y])
    table.to_parquet(tmp_path / "train.parquet")
    models = os.fspath(tmp_path / "models")
    wanted = train_forest.Forest(data=os.fspath(tmp_path / "train.parquet"), trees=30, models=models, version="v1")
    made = train_forest.run(wanted, local=True)
    assert made.accuracy > 0.85
    assert (made.trees, made.classes, made.test_rows) == (30, ["no", "yes"], 300)
    # The same version again keeps what is there.
    assert train_forest.run(wanted, local=True).model == made.model == f"{models}/forest/v1"
    said = predict.run(
        predict.Predict(
            model=f"{models}/forest/latest",
            data=os.fspath(tmp_path / "train.parquet"),
            target=os.fspath(tmp_path / "o"),
        ),
        local=True,
    )
    assert said.rows == 1500
    written = pandas.read_parquet(said.files[0])
    assert (written.prediction == written.label).mean() > 0.9
