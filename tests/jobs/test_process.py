"""process: from files to files, in this process and as tasks of a real Ray."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from ray_jobs import process
from ray_jobs.columns import csv_rows, json_rows, learned
from ray_jobs.command import JobError

from ..conftest import ROOT

SHOP = "id,price,quantity,city,day\n" + "".join(
    f"{index},{index * 7 % 50 + 0.5},{index % 9},{('Wien', 'Bern', 'Graz')[index % 3]},2024-01-{index % 28 + 1:02d}\n"
    for index in range(1000)
)


def made(tmp_path: Path, files: dict[str, str], **options: Any) -> process.Processed:
    """Process these files, in this process."""
    for name, text in files.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text(text)
    wanted = process.Process(source=os.fspath(tmp_path / "in"), target=os.fspath(tmp_path / "out"), **options)
    return process.run(wanted, local=True)


def table(path: Path) -> Any:
    """The rows of a folder as one table."""
    return pyarrow.concat_tables(parquet.read_table(part) for part in sorted(path.glob("*.parquet")))


def aside(path: Path) -> list[list[str]]:
    with path.open(newline="") as text:
        return list(csv.reader(text))[1:]


def test_all_formats_say_the_same(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "columns": {"day": "datetime"}, "computed": {"total": "price * quantity"}, "scale": {"price": "standard"},
        "encode": ["city"], "test_share": 0.3, "seed": 4,
    }  # fmt: skip
    records = list(csv.DictReader(io.StringIO(SHOP)))
    typed = [
        {**row, "id": int(row["id"]), "price": float(row["price"]), "quantity": int(row["quantity"])} for row in records
    ]
    for name in ("csv", "jsonl", "parquet"):
        (tmp_path / name / "in").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(typed), tmp_path / "parquet/in/a.parquet")
    made(tmp_path / "csv", {"a.csv": SHOP}, **options)
    made(tmp_path / "jsonl", {"a.jsonl": "".join(json.dumps(row) + "\n" for row in typed)}, **options)
    made(tmp_path / "parquet", {}, **options)
    for part in ("train", "test"):
        first, *others = (table(tmp_path / name / "out" / part) for name in ("csv", "jsonl", "parquet"))
        assert all(other.equals(first) for other in others)
    about = [json.loads((tmp_path / name / "out/_columns.json").read_text()) for name in ("csv", "jsonl", "parquet")]
    assert about[0] == about[1] == about[2]


def test_lines_that_are_no_objects_are_set_aside(tmp_path: Path) -> None:
    lines = [
        '{"a": 1, "b": "x"}',
        "",
        "[1]",
        '{"a": 2',
        '{"a": "3", "b": 7}',
        '{"a": NaN}',
        '{"a": "four"}',
        '{"b": null}',
    ]
    done = made(tmp_path, {"a.jsonl": "\n".join(lines)}, columns={"a": "int"}, bad_share=1)
    assert table(tmp_path / "out").to_pydict() == {"a": [1, 3, None], "b": ["x", "7", None]}
    assert [row[:2] for row in aside(tmp_path / "out/a.rejected.csv")] == [
        ["3", "not a JSON object"], ["4", "not a JSON object"], ["6", "not a JSON object"], ["7", "a is not int"]
    ]  # fmt: skip
    assert (done.rows, done.bad_rows) == (3, 4)


def test_a_key_that_comes_late_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "SAMPLE", 2)
    made(tmp_path, {"a.jsonl": '{"a": 1}\n{"a": 2}\n{"a": 3, "b": 1}\n'})
    assert table(tmp_path / "out").to_pydict() == {"a": [1, 2]}
    assert aside(tmp_path / "out/a.rejected.csv") == [["3", "no column b in the first 2 rows", '{"a": 3, "b": 1}']]


def test_parquet_with_lists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    parquet.write_table(pyarrow.table({"a": [[1]]}), tmp_path / "in/a.parquet")
    with pytest.raises(JobError, match=r"a is list<.*not a number"):
        made(tmp_path, {})
    (tmp_path / "in/a.parquet").write_text("no Parquet")
    with pytest.raises(JobError, match=r"a.parquet is not Parquet"):
        made(tmp_path, {})


def test_files_of_one_folder_get_the_same_types(tmp_path: Path) -> None:
    made(tmp_path, {"a.csv": "x,y,z\n1,1,\n", "b.csv": "x,y,z\n2.5,k,3\n"})
    found = table(tmp_path / "out")
    assert [str(column.type) for column in found.schema] == ["double", "string", "int64"]
    assert found.to_pydict() == {"x": [1.0, 2.5], "y": ["1", "k"], "z": [None, 3]}


def test_what_cannot_be_computed_is_set_aside_and_what_is_empty_stays_empty(tmp_path: Path) -> None:
    text = "a,b\n1,2\n1,0\n-4,1\n,1\n4,\n"
    done = made(tmp_path, {"a.csv": text}, computed={"c": "a / b", "d": "sqrt(a) + c", "e": "c > 1"}, bad_share=1)
    assert table(tmp_path / "out").to_pydict() == {
        "a": [1, None, 4], "b": [2, 1, None], "c": [0.5, None, None], "d": [1.5, None, None], "e": [False, None, None]
    }  # fmt: skip
    assert aside(tmp_path / "out/a.rejected.csv") == [
        ["3", "c cannot be computed: a / b", "1", "0"], ["4", "d cannot be computed: sqrt(a) + c", "-4", "1"]
    ]  # fmt: skip
    assert done.files[0].columns == {"a": "int", "b": "int", "c": "float", "d": "float", "e": "bool"}


def test_what_may_not_be_empty_is_set_aside_by_its_first_fault(tmp_path: Path) -> None:
    text = "a,b\n1,x\n2, \n,y\nz,\n"
    done = made(tmp_path, {"a.csv": text}, columns={"a": "int"}, required=["b", "a"], bad_share=1)
    assert table(tmp_path / "out").to_pydict() == {"a": [1], "b": ["x"]}
    # An empty value, as it was in the file.
    assert aside(tmp_path / "out/a.rejected.csv") == [
        ["3", "b is empty", "2", " "], ["4", "a is empty", "", "y"], ["5", "a is not int", "z", ""]
    ]  # fmt: skip
    assert done.bad_rows == 3


def test_a_computed_column_may_have_a_type(tmp_path: Path) -> None:
    made(tmp_path, {"a.csv": "a\n4\n3\n"}, computed={"half": "a / 2"}, columns={"half": "int"})
    assert table(tmp_path / "out").to_pydict() == {"a": [4], "half": [2]}
    assert aside(tmp_path / "out/a.rejected.csv") == [["3", "half is not int", "3"]]


# What is learned.


def test_scaling_is_learned_from_all_files(tmp_path: Path) -> None:
    chance = random.Random(1)
    numbers = [1e9 + chance.gauss(0, 3) for _ in range(2000)]
    files = {f"{part}.csv": "x,y\n" + "".join(f"{value!r},7\n" for value in numbers[part::4]) for part in range(4)}
    made(tmp_path, files, scale={"x": "standard", "y": "minmax"})
    about = json.loads((tmp_path / "out/_columns.json").read_text())["scale"]["x"]
    mean = math.fsum(numbers) / 2000
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in numbers) / 2000)
    assert (about["offset"], about["width"]) == (pytest.approx(mean, rel=1e-12), pytest.approx(deviation, rel=1e-6))
    found = table(tmp_path / "out")
    assert found["x"].to_pylist() == pytest.approx(
        [(value - mean) / deviation for part in range(4) for value in numbers[part::4]], abs=1e-5
    )
    assert set(found["y"].to_pylist()) == {0.0}


def test_how_to_scale_is_learned_from_rows_to_train_with(tmp_path: Path) -> None:
    made(tmp_path, {"a.csv": SHOP}, scale={"price": "minmax"}, test_share=0.98)
    train, test = (table(tmp_path / "out" / part)["price"].to_pylist() for part in ("train", "test"))
    assert (min(train), max(train)) == (0.0, 1.0)
    assert max(test) > 1.0 or min(test) < 0.0


def test_labels_become_numbers_the_same_in_all_files(tmp_path: Path) -> None:
    made(tmp_path, {"a.csv": "c,n\nx,30\n,4\nb,4\n", "b.csv": "c,n\na,200\nx,\n"}, encode=["c", "n"])
    about = json.loads((tmp_path / "out/_columns.json").read_text())
    assert about["encode"] == {"c": ["a", "b", "x"], "n": [4, 30, 200]}
    assert table(tmp_path / "out").to_pydict() == {"c": [2, None, 1, 0, 2], "n": [1, 0, 0, 2, None]}


def test_too_many_labels_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "MOST_LABELS", 3)
    with pytest.raises(JobError, match="n has more than 3 different values"):
        made(tmp_path, {"a.csv": "n\n1\n2\n", "b.csv": "n\n3\n4\n"}, encode=["n"])


# The split.


def sides(tmp_path: Path, files: dict[str, str], **options: Any) -> tuple[set[int], set[int]]:
    tmp_path.mkdir()
    made(tmp_path, files, **{"test_share": 0.25, **options})
    train, test = (set(table(tmp_path / "out" / part)["id"].to_pylist()) for part in ("train", "test"))
    assert not train & test and len(train | test) == 1000
    return train, test


def test_the_split_depends_on_rows_and_seed_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "BLOCK", 5000)
    head, *lines = SHOP.splitlines()
    _, test = first = sides(tmp_path / "one", {"a.csv": SHOP})
    assert 200 < len(test) < 300
    random.Random(3).shuffle(lines)
    parts = {f"{part}.csv": "\n".join([head, *lines[part::5]]) for part in range(5)}
    assert sides(tmp_path / "many", parts) == first
    monkeypatch.setattr(csv_rows, "BLOCK", 10_000_000)
    assert sides(tmp_path / "big", parts, computed={"x": "price + 1"}, scale={"price": "standard"}) == first
    assert sides(tmp_path / "other", parts, seed=1) != first


# Parameters and files.


@pytest.mark.parametrize(
    ("options", "said"),
    [({"scale": {"city": "standard"}}, "scale: city is str"), ({"encode": ["price"]}, "encode: price is float"),
     ({"scale": {"nothing": "minmax"}}, "lacks the column nothing"),
     ({"encode": ["nothing"]}, "lacks the column nothing"),
     ({"computed": {"x": "city + 1"}}, "computed: x: the column city is str"),
     ({"computed": {"x": "day > 1"}}, "computed: x: the column day is datetime"),
     ({"computed": {"x": "y"}}, "lacks the column y"),
     ({"computed": {"x": "y", "y": "id"}}, "computed: x: there is no column y"),
     ({"computed": {"price": "id + 1"}}, "has a column price"),
     ({"required": ["nothing"]}, "lacks the column nothing")],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError) as error:
        made(tmp_path, {"a.csv": SHOP}, **options)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pair", ['encode=["a"]', "test_share=1", 'delimiter="\\n"', 'scale={"b": "robust"}'])
def test_a_wrong_parameter_is_status_2(pair: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["-p", "source=a", "-p", "target=b", "-p", 'scale={"a": "minmax"}', "-p", pair]
    assert process.JOB.main(["--local", *given]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_files_that_would_write_over_each_other_or_themselves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="differ only in their ending"):
        made(tmp_path, {"a.csv": "x\n1\n", "a.jsonl": '{"x": 1}\n'})
    parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "b.parquet")
    wanted = process.Process(source=os.fspath(tmp_path / "b.parquet"), target=os.fspath(tmp_path))
    with pytest.raises(JobError, match="the source itself"):
        process.run(wanted, local=True)
    wanted = process.Process(source=os.fspath(tmp_path / "in"), target=os.fspath(tmp_path / "out/../in"))
    with pytest.raises(JobError, match="is the source, too"):
        process.run(wanted, local=True)


def test_a_second_run_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    made(tmp_path, {"a.csv": "x\n1\n2\nz\n"}, columns={"x": "int"}, scale={"x": "minmax"})
    assert (tmp_path / "out/a.rejected.csv").exists() and (tmp_path / "out/_columns.json").exists()
    made(tmp_path, {"a.csv": "x\n1\n2\n"}, columns={"x": "int"})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.parquet"]


def test_a_failure_leaves_no_halves(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="2 of 3 rows are bad"):
        made(tmp_path, {"a.csv": "x\n1\ny\nz\n"}, columns={"x": "int"}, test_share=0.5)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


# On Ray.


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Path]:
    head, *lines = SHOP.splitlines()
    (tmp_path / "in").mkdir()
    for part in range(3):
        (tmp_path / f"in/{part}.csv").write_text("\n".join([head, *lines[part::3], "bad,row"]))
    yield tmp_path


def test_tasks_write_what_one_process_writes(ray_here: None, shop: Path) -> None:
    options: dict[str, Any] = {
        "source": os.fspath(shop / "in"), "computed": {"total": "price * quantity"}, "scale": {"total": "standard"},
        "encode": ["city"], "test_share": 0.25,
    }  # fmt: skip
    process.run(process.Process(target=os.fspath(shop / "here"), **options), local=True)
    # As the cluster runs it: the module is __main__, which its tasks cannot import.
    given = json.dumps({**options, "target": os.fspath(shop / "there")})
    ran = subprocess.run(
        [sys.executable, "-m", "ray_jobs.process", "--json", "--params", given],
        cwd=ROOT, env={**os.environ, "MUSTER_DATA": os.fspath(shop)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert '"total":3,"note":"files written"' in ran.stdout
    done = json.loads(ran.stdout.splitlines()[-1])
    assert (done["rows"] + done["test_rows"], done["bad_rows"], len(done["files"])) == (1000, 3, 3)
    for part in ("train", "test"):
        assert table(shop / "there" / part).equals(table(shop / "here" / part))
    assert (shop / "there/_columns.json").read_text() == (shop / "here/_columns.json").read_text()
    (run,) = shop.glob("results/process/*/run.json")
    assert json.loads(run.read_text())["metrics"]["rows"] == done["rows"]


def test_a_bad_file_among_the_tasks_is_one_line(ray_here: None, shop: Path) -> None:
    (shop / "in/x.csv").write_text("id\n1\n")
    wanted = process.Process(source=os.fspath(shop / "in"), target=os.fspath(shop / "out"), required=["price"])
    with pytest.raises(JobError, match=r"^x.csv lacks the column price$"):
        process.run(wanted)
