"""Tables that models learn from and speak about: CSV, Parquet, or a folder of Parquet files, as rows of numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_jobs.command import JobError


def made_up(target: str, seed: int, regression: bool = False) -> Any:
    """20,000 rows to try the cluster with."""
    import pandas
    from sklearn.datasets import make_classification, make_regression

    if regression:
        x, y = make_regression(n_samples=20_000, n_features=20, n_informative=15, noise=10, random_state=seed)
    else:
        x, y = make_classification(n_samples=20_000, n_features=20, n_informative=15, n_redundant=5, random_state=seed)
    return pandas.DataFrame(x, columns=[f"feature{index}" for index in range(x.shape[1])]).assign(**{target: y})


def file(path: Path, texts: Collection[str] = ()) -> Any:
    """One file. Columns of `texts` stay text, though what stands in this file may look like numbers."""
    import pandas

    try:
        if path.suffix == ".csv":
            # The kind of a column is found from all of it, not anew for each piece.
            return pandas.read_csv(path, dtype=dict.fromkeys(texts, "str"), low_memory=False)
        return pandas.read_parquet(path)
    except (ValueError, OSError) as error:
        raise JobError(f"data: {path} cannot be read: {error}") from error


def read(data: str, target: str) -> Any:
    """The rows that have a target."""
    import pandas

    path = Path(data)
    if not path.exists():
        raise JobError(f"data: {path} is not there (is the shared storage mounted on this node?)")
    if path.is_dir() and not any(path.rglob("*.parquet")):
        raise JobError(f"data: no Parquet file in {path}")
    # Not the folder as a whole: beside its files may lie what `process` set aside. Folders in it are partitions.
    files = sorted(each for each in path.glob("*.parquet") if not each.name.startswith("."))
    table = pandas.concat([file(each) for each in files], ignore_index=True) if files else file(path)
    if target not in table:
        raise JobError(f"target: no column {target!r} in {path}; there are {', '.join(map(str, table))}")
    table = table.dropna(subset=[target]).reset_index(drop=True)
    if table.empty:
        raise JobError(f"data: no row in {path} has a value in {target}")
    return table


def kind(column: Any) -> str | None:
    """`number` or `text`; None for what models cannot learn from as it is, such as times and lists."""
    from pandas.api import types

    if types.is_numeric_dtype(column):
        return "number"
    # Truth with gaps and exact decimals come as objects.
    found = types.infer_dtype(column, skipna=True)
    return {"boolean": "number", "decimal": "number", "string": "text", "categorical": "text"}.get(found)


def numbers(table: Any, name: str) -> Any:
    """A column as floats; what is missing is NaN."""
    import numpy
    import pandas

    try:
        found = pandas.to_numeric(table[name]).to_numpy(dtype=float, na_value=numpy.nan)
    except (ValueError, TypeError) as error:
        raise JobError(f"data: column {name} is not numbers: {error}") from error
    if numpy.isinf(found).any():
        raise JobError(f"data: column {name} has infinite values; leave them empty, or leave the column out")
    return found


def features(table: Any, wanted: Sequence[str], target: str, most_labels: int = 0) -> tuple[list[str], list[str]]:
    """Columns to learn from, and which of them are text. None wanted: all numbers, and text that says few things.

    Few is `most_labels`; 0 is for models that take no text.
    """
    if unknown := [name for name in wanted if name not in table]:
        raise JobError(f"features: no column {', '.join(unknown)} in the data")
    if target in wanted:
        raise JobError(f"features: {target} is the target")
    names, texts = [], []
    for name in wanted or [str(name) for name in table if name != target]:
        is_a = kind(table[name])
        if is_a == "number":
            numbers(table, name)
        elif is_a == "text" and 0 < table[name].nunique() <= most_labels:
            texts.append(name)
        elif not wanted:
            continue
        elif is_a == "text" and most_labels:
            raise JobError(f"features: {name} has {table[name].nunique()} different texts, more than {most_labels}")
        else:
            raise JobError(f"features: {name} is not numbers{' or text' if most_labels else ''}; leave it out")
        names.append(name)
    if not names:
        raise JobError(f"features: nothing to learn from but {target}: no other column has numbers or few texts")
    return names, texts


def labels(table: Any, texts: Sequence[str]) -> dict[str, list[str]]:
    """What stands in columns of text, in an order that gives each its number."""
    return {name: sorted(table[name].astype("str").dropna().unique().tolist()) for name in texts}


def matrix(table: Any, names: Sequence[str], known: Mapping[str, list[str]] | None = None) -> Any:
    """The rows as floats. A text is the place it has in `known`; one that is not there is missing."""
    import numpy
    import pandas

    known = known or {}
    if missing := [name for name in names if name not in table]:
        raise JobError(f"data: no column {', '.join(missing)}, which the model was trained with")
    columns = []
    for name in names:
        if name in known:
            codes = pandas.Index(known[name], dtype="str").get_indexer(table[name].astype("str"))
            columns.append(numpy.where(codes < 0, numpy.nan, codes))
        else:
            columns.append(numbers(table, name))
    return numpy.column_stack(columns)
