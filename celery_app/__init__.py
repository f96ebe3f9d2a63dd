"""The Celery application. Shipped to every node together with ray_jobs; light, because the controller imports it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_app.application import app as app

__all__ = ["app"]


def __getattr__(name: str) -> Any:
    # `from celery_app import app` makes the app when it is asked for: without Celery the rest of the package works.
    if name in ("app", "celery"):
        from celery_app.application import app

        return app
    raise AttributeError(name)
