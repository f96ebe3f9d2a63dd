"""What jobs share: a name, checked parameters as JSON or key=value, a command line, and a record of each run."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError

from ray_jobs import figures, outcome, runs, track


class JobError(Exception):
    """Something the person who started the job can mend; told in one line, without a traceback."""


class Parameters(BaseModel):
    """What a job takes. A name that is not known is a mistake, not a hint."""

    model_config = ConfigDict(extra="forbid", frozen=True)


P = TypeVar("P", bound=Parameters)
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


def folder() -> Path | None:
    """Where this run may leave files; None where nothing is kept (runs.py)."""
    return _folder.get()


def needs(*libraries: str) -> None:
    """Stop with one clear line when the image lacks what this job is made of."""
    from importlib.util import find_spec

    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        raise JobError(
            f"{', '.join(missing)} not installed here: this job needs the `ml` image (node_image_profile: ml)"
        )


def mistakes(error: ValidationError) -> str:
    """What pydantic found, in one line."""
    return mistakes_of(error.errors())


def mistakes_of(items: Iterable[Mapping[str, Any]]) -> str:
    """The same from where only pydantic's list of it is."""
    places = ((".".join(map(str, item["loc"])) or "parameters", item["msg"]) for item in items)
    return "; ".join(f"{place}: {text.removeprefix('Value error, ')}" for place, text in places)


def parse(model: type[P], text: str, pairs: Sequence[str]) -> P:
    """Parameters from JSON, then from key=value pairs, whose values are JSON where they can be."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise JobError(f"--params is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise JobError("--params is not a JSON object")
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise JobError(f"-p {pair}: write name=value")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise JobError(mistakes(error)) from error


def connect() -> None:
    """Join the cluster this runs in, unless somebody has."""
    import ray

    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False, logging_level="ERROR")


def returned(references: Any) -> Any:
    """What tasks returned; a mistake that one of them found is told as if it were found here."""
    import ray

    try:
        return ray.get(references)
    except ray.exceptions.RayTaskError as error:
        # Ray's own text of it is a traceback.
        if isinstance(error.cause, JobError):
            raise error.cause from None
        raise


@dataclass(frozen=True)
class Job:
    """One job of the library: what it is called, what it takes, and what it does with it."""

    name: str
    # The module's docstring: its first line says what the job does.
    doc: str
    model: type[Parameters]
    run: Callable[[Any, bool], BaseModel]
    # What came out, for people; without it every field is a line.
    show: Callable[[Any], str] | None = None
    # MLflow is told of its runs (track.py).
    tracked: bool = False

    @property
    def line(self) -> str:
        return self.doc.splitlines()[0]

    @property
    def answer(self) -> type[BaseModel]:
        """The model of what comes out."""
        found: type[BaseModel] = get_type_hints(self.run)["return"]
        return found

    def parameters(self) -> list[tuple[str, str, str]]:
        """Name, default and meaning of each."""
        return [
            (name, "required" if field.is_required() else json.dumps(field.get_default()), field.description or "")
            for name, field in self.model.model_fields.items()
        ]

    def entrypoint(self, parameters: Parameters) -> str:
        """The command that runs it on a node. Parameters travel as one quoted word: a shell runs the command."""
        text = json.dumps(parameters.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return f"python -m ray_jobs.{self.name} --params {shlex.quote(text)}"

    def text(self, answer: BaseModel) -> str:
        if self.show is not None:
            return self.show(answer)
        values = answer.model_dump(mode="json")
        width = max(map(len, values))
        return "\n".join(f"{key:<{width}}  {value}" for key, value in values.items())

    def perform(self, parameters: Parameters, local: bool) -> BaseModel:
        """Run it, and keep what it was and what came out (runs.py)."""
        from ray_jobs.library import code_hash

        if not local:
            connect()
        values, code = parameters.model_dump(mode="json"), code_hash()
        kept = runs.begin(self.name, values, code)
        run = kept.about["id"] if kept else os.environ.get("MUSTER_RAY_JOB", "")
        figures.begin({"job_name": self.name, "run": run})
        if not self.tracked:
            return self._kept(parameters, local, kept)
        with track.run(self.name, values, code, kept.folder if kept else None) as story:
            answer = self._kept(parameters, local, kept)
            story.answer = answer.model_dump(mode="json")
        return answer

    def _kept(self, parameters: Parameters, local: bool, kept: runs.Run | None) -> BaseModel:
        token = _folder.set(kept.folder if kept else None)
        try:
            answer = self.run(parameters, local)
        except BaseException as error:
            if kept:
                kept.ended("failed", error=str(error)[:2000] or type(error).__name__)
            raise
        finally:
            _folder.reset(token)
        if kept:
            kept.ended("succeeded", metrics=answer.model_dump(mode="json"))
        return answer

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run it from the command line. Status 2: the parameters are wrong; 1: the job could not do it."""
        shown = ", ".join(f"{name}={default}" for name, default, _ in self.parameters())
        parser = argparse.ArgumentParser(
            prog=f"python -m ray_jobs.{self.name}", description=self.line, epilog=f"parameters: {shown}"
        )
        parser.add_argument("--params", default="{}", metavar="JSON", help="the parameters as one JSON object")
        parser.add_argument("-p", dest="pairs", action="append", default=[], metavar="NAME=VALUE", help="one parameter")
        parser.add_argument("--local", action="store_true", help="without a cluster, in this process")
        parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
        options = parser.parse_args(argv)
        try:
            parameters = parse(self.model, options.params, options.pairs)
        except JobError as error:
            print(error, file=sys.stderr)
            return 2
        try:
            answer = self.perform(parameters, options.local)
        except JobError as error:
            print(error, file=sys.stderr)
            return 1
        # Set by who submitted it: he wants the answer in a form that noise around it cannot break.
        if os.environ.get("MUSTER_RAY_JOB"):
            outcome.result(answer.model_dump(mode="json"))
        elif options.json:
            print(json.dumps(answer.model_dump(mode="json")))
        else:
            print(self.text(answer))
        return 0
