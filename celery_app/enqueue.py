"""`python -m celery_app.enqueue JOB PARAMETERS`: send a job of the library through Celery, and print the id."""

from __future__ import annotations

import json
import sys

from celery_app import app


def main(arguments: list[str]) -> None:
    """The parameters have been checked by who asks, and are again by the task."""
    job, parameters = arguments
    print(app.send_task("celery_app.tasks.ml.run", args=[job, json.loads(parameters)], queue="ml").id)


if __name__ == "__main__":
    main(sys.argv[1:])
