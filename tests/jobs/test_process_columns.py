"""What `process` is made of: reading exactly and fast, types, and the language of formulas."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from ray_jobs import process
from ray_jobs.columns import csv_rows, formula, json_rows, kinds, parquet_rows, rows
from ray_jobs.command import JobError


def read(path: Path, delimiter: str = ",") -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """All rows with their numbers, and those refused."""
    found = rows.header(path, delimiter)
    good: list[tuple[Any, ...]] = []
    bad: list[tuple[Any, ...]] = []
    for batch in rows.batches(path, found, delimiter):
        columns = [[value or "" for value in column.to_pylist()] for column in batch.columns.values()]
        good += zip(batch.numbers.tolist(), *columns, strict=True)
        bad += [(number, reason, tuple(values)) for number, reason, values in batch.refused]
    return good, bad


def strictly(path: Path, width: int) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The same from Python's csv module alone."""
    with path.open(newline="", encoding="utf-8-sig") as text:
        numbered = [(number, row) for number, row in enumerate(csv.reader(text, strict=True), start=1) if row][1:]
    good = [(number, *row) for number, row in numbered if len(row) == width]
    bad = [(number, f"{len(row)} values, {width} columns", tuple(row)) for number, row in numbered if len(row) != width]
    return good, bad


def field(chance: random.Random, odd: float) -> str:
    text = "".join(chance.choice("ab ,\"\n\r'é1") for _ in range(chance.randrange(6)))
    plain = not any(sign in text for sign in ',"\n\r')
    if chance.random() < odd and not any(sign in text for sign in ",\n\r"):
        return f"x{text}"
    return text if plain and chance.random() < 0.7 else '"' + text.replace('"', '""') + '"'


@pytest.mark.parametrize("block", [16, 61, 4096])
def test_arrow_reads_what_the_csv_module_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(csv_rows, "BLOCK", block)
    monkeypatch.setattr(csv_rows, "CHUNK", 7)
    real = csv_rows.fast
    fast: list[rows.Batch | None] = []

    def noted(*given: Any) -> rows.Batch | None:
        fast.append(real(*given))
        return fast[-1]

    monkeypatch.setattr(csv_rows, "fast", noted)
    path = tmp_path / "a.csv"
    for seed in range(300):
        chance = random.Random(seed)
        end = chance.choice(["\n", "\r\n"])
        lines = [
            ",".join(field(chance, 0.1 * (seed % 4 == 0)) for _ in range(chance.choice([1, 2, 2, 2, 2, 2, 3])))
            if chance.random() < 0.97 or seed % 3
            else ""
            for _ in range(30)
        ]
        text = ("\ufeff" if seed % 5 == 0 else "") + end.join(["a,b", *lines]) + (end if seed % 3 else "")
        path.write_bytes(text.encode())
        try:
            wanted = strictly(path, 2)
        except csv.Error:
            with pytest.raises(rows.BadFileError, match="not CSV in UTF-8"):
                read(path)
            continue
        good, bad = read(path)
        assert (good, sorted(bad)) == (wanted[0], sorted(wanted[1])), (seed, text)
    assert sum(batch is not None for batch in fast) > 100


@pytest.mark.parametrize(
    ("text", "clean"),
    [('a,b\n1,"x\n2,y\n3,z\n', False), ('a,b\n1,"x"y\n', False), ('a,b\n1,5" pipe\n2,6" pipe\n', True),
     ('a,b\n1, "x"\n2,y\n', True), ("a,b\r1,2\r3,4\r", True), ("a\n\n\n1\n", True)],
)  # fmt: skip
def test_quotes_in_the_wrong_place_swallow_no_rows(tmp_path: Path, text: str, clean: bool) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    if not clean:
        with pytest.raises(rows.BadFileError, match="not CSV in UTF-8"):
            read(path)
        return
    width = text.split()[0].count(",") + 1
    assert read(path) == strictly(path, width)


@pytest.mark.parametrize("delimiter", [";", "\t", "§"])
def test_other_delimiters(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'a{delimiter}b\n1,5{delimiter}"x{delimiter}"\n2\n')
    assert read(path, delimiter) == ([(2, "1,5", f"x{delimiter}")], [(3, "1 values, 2 columns", ("2",))])


def test_a_file_is_never_whole_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, small in ((csv_rows, "BLOCK", 2**16), (json_rows, "CHUNK", 2000), (parquet_rows, "ROWS", 2000)):
        monkeypatch.setattr(module, name, small)
    count = 150_000
    text = "a,b,c\n" + "".join(f"{index},{index / 7},name {index}\n" for index in range(count))
    (tmp_path / "a.csv").write_text(text)
    lines = "".join(f'{{"a": {index}, "b": {index / 7}, "c": "name {index}"}}\n' for index in range(count))
    (tmp_path / "b.jsonl").write_text(lines)
    pool = pyarrow.default_memory_pool()
    other = pyarrow.system_memory_pool()
    pyarrow.set_memory_pool(other)
    try:
        for path in (tmp_path / "a.csv", tmp_path / "b.jsonl"):
            wanted = process.Process(source="", target="", scale={"b": "standard"}, computed={"d": "a + b"})
            done = process.convert(path, tmp_path / "out.parquet", wanted)
            assert done.rows == count
        assert other.max_memory() < len(text) / 2
    finally:
        pyarrow.set_memory_pool(pool)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [("int", " +5 ", 5), ("int", "-0012", -12), ("int", "0x10", ...), ("int", "1.0", ...), ("int", "9" * 19, ...),
     ("float", "+1.5e3", 1500.0), ("float", ".5", 0.5), ("float", "nan", ...), ("float", "inf", ...),
     ("float", "1e999", ...), ("float", "1,5", ...), ("float", "  ", None), ("int", "", None),
     ("bool", "YES", True), ("bool", " 0", False), ("bool", "maybe", ...), ("str", " x ", "x"), ("str", " ", None),
     ("datetime", "2024-02-30", ...), ("datetime", "2024-03-01T10:00:00+02:00", "2024-03-01 08:00:00+00:00"),
     ("datetime", " 2024-03-01", "2024-03-01 00:00:00+00:00"), ("datetime", "", None)],
)  # fmt: skip
@pytest.mark.parametrize("beside", [[], ["x"], ["1", "2024-01-01", "true"]])
def test_a_value_fits_or_not_whatever_is_beside_it(kind: kinds.Kind, text: str, value: Any, beside: list[str]) -> None:
    values, wrong = kinds.typed(pyarrow.array([text, *beside], pyarrow.string()), kind)
    assert values.type == kinds.arrow(kind)
    is_wrong = wrong is not None and bool(wrong[0].as_py())
    assert is_wrong == (value is ...)
    found = values[0].as_py()
    assert (str(found) if kind == "datetime" and found else found) == (None if value is ... else value)


@pytest.mark.parametrize(
    ("values", "kind", "wanted", "bad"),
    [([1.0, 2.5, None, math.nan, math.inf], "int", [1, None, None, None, None], [False, True, None, None, True]),
     ([1.5, math.nan, math.inf], "float", [1.5, None, None], [False, None, True]), ([1, 2], "float", [1.0, 2.0], None),
     ([1, 2], "str", ["1", "2"], None), ([True, None], "int", [1, None], None),
     ([1, 0], "bool", [True, False], None),
     ([None, None], "float", [None, None], None)],
)  # fmt: skip
def test_what_has_a_type_already_gets_another(values: list[Any], kind: kinds.Kind, wanted: Any, bad: Any) -> None:
    found, wrong = kinds.typed(pyarrow.array(values), kind)
    assert found.to_pylist() == wanted
    assert [bool(one) for one in (wrong.to_pylist() if wrong is not None else [])] == (
        [bool(one) for one in bad] if bad is not None else [False] * (0 if wrong is None else len(values))
    )


VALUES = {"a": [3.0, -2.0, 0.0, 7.5], "b": [2, -3, 5, 0], "ok": [True, False, True, False]}


@pytest.mark.parametrize(
    ("text", "by_row"),
    [("a * b + 1", lambda a, b, ok: a * b + 1), ("-a ** 2", lambda a, b, ok: -(a**2)),
     ("b % 4", lambda a, b, ok: b % 4), ("b // 2", lambda a, b, ok: b // 2), ("a - b / 4", lambda a, b, ok: a - b / 4),
     ("max(a, b, 1) - min(a, b)", lambda a, b, ok: max(a, b, 1) - min(a, b)), ("abs(b)", lambda a, b, ok: abs(b)),
     ("sqrt(exp(b)) + log(abs(a) + 1)", lambda a, b, ok: math.sqrt(math.exp(b)) + math.log(abs(a) + 1)),
     ("where(b > 0, a / b, 0)", lambda a, b, ok: a / b if b > 0 else 0), ("ok + ok", lambda a, b, ok: ok + ok),
     ("-3 <= b < a", lambda a, b, ok: -3 <= b < a), ("a != 0", lambda a, b, ok: a != 0), ("2", lambda a, b, ok: 2),
     ("(a > 0) + (b > 0)", lambda a, b, ok: (a > 0) + (b > 0)), ("where(ok, 1, b)", lambda a, b, ok: 1 if ok else b)],
)  # fmt: skip
def test_a_formula_is_what_python_would_say(text: str, by_row: Any) -> None:
    columns = {name: pyarrow.array(values) for name, values in VALUES.items()}
    found, wrong = formula.column(formula.parse(text), columns, 4)
    assert not wrong.any()
    assert found.to_pylist() == pytest.approx([by_row(*row) for row in zip(*VALUES.values(), strict=True)])
    assert str(found.type) == ("bool" if isinstance(by_row(1, 2, True), bool) else "double")


@pytest.mark.parametrize(
    ("text", "part"),
    [("__import__('os').system('x')", "__import__('os').system('x')"), ("a.b", "a.b"), ("a[0]", "a[0]"), ("'x'", "'x'"),
     ("a if b else c", "a if b else c"), ("[x for x in a]", "[x for x in a]"), ("lambda: 1", "lambda: 1"),
     ("a and b", "a and b"),
     ("a @ b", "a @ b"), ("True", "True"), ("1j", "1j"), ("a in b", "a in b"), ("eval(a)", "eval(a)"),
     ("max(*a, b)", "*a"),
     ("f'{a}'", "f'{a}'"), ("(b := a)", "(b := a)"), ("abs(a, b)", "abs takes 1"), ("max(a)", "max takes 2 or more"),
     ("where(a, b)", "where takes 3"), ("log(x=a)", "log(x=a)"), ("a +", "no formula"), ("", "no formula"),
     ("a; b", "no formula"),
     ("abs", "abs"), ("10 ** 400 + 1e999", "too large"), ("1" + "0" * 400, "too large"), ("-" * 990 + "a", "nested"),
     ("(" * 400 + "a" + ")" * 400, "parentheses"), ("a" * 1001, "1000 at most"), ("a\x00", "no formula")],
)  # fmt: skip
def test_what_is_not_of_the_language_is_named(text: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(JobError) as error:
        formula.parse(text)
    assert part in str(error.value)
    pair = f"computed={json.dumps({'x': text})}"
    assert process.JOB.main(["--local", "-p", "source=a", "-p", "target=b", "-p", pair]) == 2
    said = capsys.readouterr().err
    assert "computed.x" in said and said.count("\n") == 1
