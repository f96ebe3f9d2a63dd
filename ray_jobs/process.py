"""CSV, Parquet or JSON lines in, typed Parquet out: columns computed, scaled, encoded; bad rows set aside and counted.

As a job:    muster run process -p source=/srv/muster/datasets/raw -p target=/srv/muster/datasets/typed
As a module: ray_jobs.process.convert(Path("a.csv"), Path("a.parquet"), Process(source="", target=""))

Every file is read as a stream, by a task of its own. What to scale and to encode is read twice: to learn, and to write.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, model_validator

from ray_jobs import command, figures
from ray_jobs.columns import formula, kinds, learned, rows, sift, split
from ray_jobs.columns.files import Over, files_of, here, on_ray
from ray_jobs.columns.kinds import Kind as Kind
from ray_jobs.columns.output import Output
from ray_jobs.columns.rows import BadFileError as BadFileError
from ray_jobs.command import JobError


def _formula(text: str) -> str:
    try:
        formula.parse(text)
    except JobError as error:
        raise ValueError(str(error)) from error
    return text


class Process(command.Parameters):
    """What to read, where to write, and what to make of the columns."""

    source: str = Field(description="a file of CSV, Parquet (.parquet) or JSON lines (.jsonl), or a folder of them")
    target: str = Field(description="folder for the Parquet files, one per file of the source")
    columns: dict[str, Kind] = Field(default={}, description="type by column; CSV's others are guessed")
    required: list[str] = Field(default=[], description="columns that may not be empty")
    computed: dict[str, Annotated[str, AfterValidator(_formula)]] = Field(
        default={}, description='formula by new column: {"total": "price * quantity"}'
    )
    scale: dict[str, learned.Scaling] = Field(default={}, description="standard or minmax, by column")
    encode: list[str] = Field(default=[], description="columns whose labels become numbers")
    test_share: float = Field(default=0, ge=0, lt=1, description="share of the rows for target/test; 0: no split")
    seed: int = Field(default=0, description="another one, another split")
    delimiter: str = Field(default=",", pattern=r'^[^"\r\n]$', description="between the values of CSV")
    bad_share: float = Field(default=0.5, ge=0, le=1, description="with more bad rows than this the file is refused")

    @model_validator(mode="after")
    def one_change_per_column(self) -> Process:
        if both := [name for name in self.encode if name in self.scale]:
            raise ValueError(f"{', '.join(both)}: scale or encode, not both")
        return self


class File(BaseModel):
    """What became of one file."""

    source: str
    target: str
    rows: int
    bad_rows: int
    rejected: str | None
    columns: dict[str, Kind]
    test: str | None = None
    test_rows: int = 0


class Processed(BaseModel):
    """What became of all of them."""

    rows: int
    test_rows: int
    bad_rows: int
    files: list[File]
    seconds: float


class Plan(BaseModel):
    """What is the same for all files: types, and what was learned, which is kept beside the Parquet files."""

    columns: dict[str, Kind]
    computed: dict[str, str] = {}
    scale: dict[str, learned.Scale] = {}
    encode: dict[str, list[int] | list[str]] = {}
    seed: int = 0
    test_share: float = 0


def look(source: Path, parameters: Process) -> dict[str, Kind | None]:
    """The type of each column of a file, from its first rows; None for one that is empty there."""
    found = rows.header(source, parameters.delimiter)
    used = [name for text in parameters.computed.values() for name in formula.names(formula.parse(text))]
    asked = [*parameters.columns, *parameters.required, *parameters.scale, *parameters.encode, *used]
    there = {*found.names, *parameters.computed}
    if missing := [name for name in dict.fromkeys(asked) if name not in there]:
        raise BadFileError(f"{source.name} lacks the column {', '.join(missing)}")
    if double := [name for name in parameters.computed if name in found.names]:
        raise BadFileError(f"{source.name} has a column {', '.join(double)}: give the computed one another name")
    known = {**found.kinds, **parameters.columns}
    if all(name in known for name in found.names):
        return {name: known[name] for name in found.names}
    for batch in rows.batches(source, found, parameters.delimiter):
        if len(batch.numbers):
            first = {name: values.slice(0, rows.SAMPLE) for name, values in batch.columns.items()}
            return {name: known.get(name) or kinds.guess(values) for name, values in first.items()}
    raise BadFileError(f"{source.name} has no good row")


def sieve(parameters: Process, plan: Plan) -> sift.Sieve:
    return sift.Sieve(plan.columns, parameters.required, parameters.computed, parameters.delimiter)


def for_test(table: Any, names: Sequence[str], parameters: Process) -> Any:
    return split.for_test(table, names, parameters.seed, parameters.test_share)


def learn(source: Path, parameters: Process, plan: Plan) -> learned.Learned:
    """What one file teaches: the same rows count as are written later."""
    known = learned.Learned()
    found = rows.header(source, parameters.delimiter)
    for table in sieve(parameters, plan).good(source, found, lambda *_: None):
        training = ~for_test(table, found.names, parameters) if parameters.test_share else None
        known.take(table, training, parameters.scale, parameters.encode)
    return known


def planned(sources: Sequence[Path], parameters: Process, over: Over) -> Plan:
    """Look at all files, check what is asked against what they hold, and learn where something is to be learned."""
    seen = over(look, [(source, parameters) for source in sources], "looked at")
    names = dict.fromkeys(name for columns in seen for name in columns)
    columns = {name: kinds.widest(columns.get(name) for columns in seen) for name in names}
    columns |= sift.made(parameters.computed, columns, parameters.columns)
    if text := [name for name in parameters.scale if columns[name] not in ("int", "float")]:
        raise JobError(f"scale: {text[0]} is {columns[text[0]]}, not a number")
    if other := [name for name in parameters.encode if columns[name] not in ("int", "str")]:
        raise JobError(f"encode: {other[0]} is {columns[other[0]]}: only str and int are labels")
    plan = Plan(columns=columns, computed=parameters.computed, seed=parameters.seed, test_share=parameters.test_share)
    if not parameters.scale and not parameters.encode:
        return plan
    known = learned.Learned()
    for one in over(learn, [(source, parameters, plan) for source in sources], "learned from"):
        known = known.and_of(one)
    scale = {name: learned.scale(name, how, known.figures[name]) for name, how in parameters.scale.items()}
    encode = {name: sorted(known.labels[name]) for name in parameters.encode}
    return plan.model_copy(update={"scale": scale, "encode": encode})


def changed(table: Any, plan: Plan) -> Any:
    """The rows with what was learned applied to them."""
    for name, scale in plan.scale.items():
        table = table.set_column(table.column_names.index(name), name, scale.apply(table[name]))
    for name, labels in plan.encode.items():
        table = table.set_column(table.column_names.index(name), name, learned.encoded(name, table[name], labels))
    return table


def convert(source: Path, final: Path, parameters: Process, plan: Plan | None = None) -> File:
    """Convert one file. Parquet and rejected rows appear complete or not at all."""
    command.needs("pandas", "pyarrow")
    plan = plan or planned([source], parameters, here)
    found = rows.header(source, parameters.delimiter)
    with Output(final, found.names, split=bool(parameters.test_share)) as output:
        for table in sieve(parameters, plan).good(source, found, output.refuse):
            test = for_test(table, found.names, parameters) if parameters.test_share else None
            output.write(changed(table, plan), test)
            figures.add(rows=len(table))
        good, bad = sum(output.rows), output.bad
        if not good:
            raise BadFileError(f"{source.name} has no good row ({bad} bad)")
        if bad > parameters.bad_share * (good + bad):
            raise BadFileError(
                f"{source.name}: {bad} of {good + bad} rows are bad, more than {parameters.bad_share:.0%}"
            )
        output.publish()
    names = {column.name: kinds.kind_of(column.type) or "str" for column in output.schema}
    target, *test_part = map(os.fspath, output.parts)
    return File(
        source=os.fspath(source), target=target, rows=output.rows[0], bad_rows=bad,
        rejected=os.fspath(output.rejected) if bad else None, columns=names,
        test=test_part[0] if test_part else None, test_rows=sum(output.rows[1:]),
    )  # fmt: skip


def run(parameters: Process, local: bool = False) -> Processed:
    """Convert every file, each as a task that may be repeated."""
    command.needs("pandas", "pyarrow")
    start = time.perf_counter()
    target = Path(parameters.target)
    files = files_of(Path(parameters.source), target)
    over = here if local else on_ray
    plan = planned(files, parameters, over)
    target.mkdir(parents=True, exist_ok=True)
    pairs = [(path, target / f"{path.stem}.parquet", parameters, plan) for path in files]
    done = over(convert, pairs, "written")
    # Whoever reads the folder as one table leaves out what begins with an underscore.
    about = target / "_columns.json"
    if plan.scale or plan.encode:
        partial = target / f".{about.name}.{uuid.uuid4().hex}"
        partial.write_text(json.dumps(plan.model_dump(), indent=2) + "\n")
        partial.replace(about)
    else:
        # Of an earlier run.
        about.unlink(missing_ok=True)
    return Processed(
        rows=sum(file.rows for file in done), test_rows=sum(file.test_rows for file in done),
        bad_rows=sum(file.bad_rows for file in done), files=done[:200], seconds=round(time.perf_counter() - start, 3),
    )  # fmt: skip


JOB = command.Job("process", __doc__ or "", Process, run)

if __name__ == "__main__":
    raise SystemExit(JOB.main())
