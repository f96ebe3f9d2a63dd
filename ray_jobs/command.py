"""The command line that jobs share: parameters as JSON or key=value, checked by the job's own model."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ray_jobs import outcome


class JobError(Exception):
    """Something the person who started the job can mend; told in one line, without a traceback."""


class Parameters(BaseModel):
    """What a job takes. A name that is not known is a mistake, not a hint."""

    model_config = ConfigDict(extra="forbid", frozen=True)


P = TypeVar("P", bound=Parameters)


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
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'parameters'}: {item['msg']}" for item in error.errors())


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


def main(module: str, doc: str, model: type[P], run: Callable[[P, bool], BaseModel], argv: Sequence[str] | None) -> int:
    """Run a job from the command line. Status 2: the parameters are wrong; 1: the job could not do it."""
    shown = ", ".join(
        f"{name}={'(required)' if field.is_required() else field.default!r}"
        for name, field in model.model_fields.items()
    )
    parser = argparse.ArgumentParser(
        prog=f"python -m ray_jobs.{module}", description=doc.splitlines()[0], epilog=f"parameters: {shown}"
    )
    parser.add_argument("--params", default="{}", metavar="JSON", help="the parameters as one JSON object")
    parser.add_argument("-p", dest="pairs", action="append", default=[], metavar="NAME=VALUE", help="one parameter")
    parser.add_argument("--local", action="store_true", help="without a cluster, in this process")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    options = parser.parse_args(argv)
    try:
        parameters = parse(model, options.params, options.pairs)
    except JobError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        if not options.local:
            connect()
        answer: dict[str, Any] = run(parameters, options.local).model_dump(mode="json")
    except JobError as error:
        print(error, file=sys.stderr)
        return 1
    # Set by the watcher (celery_app/ray_bridge.py): it wants the answer in a form that noise around it cannot break.
    if os.environ.get("MUSTER_RAY_JOB"):
        outcome.result(answer)
    elif options.json:
        print(json.dumps(answer))
    else:
        width = max(map(len, answer))
        print("\n".join(f"{key:<{width}}  {value}" for key, value in answer.items()))
    return 0
