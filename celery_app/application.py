"""The app itself: how it delivers is said here, why in transport, lease and task."""

from __future__ import annotations

import importlib.util
from typing import Any

from celery import Celery
from kombu import Queue
from kombu.transport import TRANSPORT_ALIASES

from celery_app.config import PRIORITIES, Settings
from celery_app.task import MusterTask

TRANSPORT_ALIASES["muster"] = "celery_app.transport:Transport"
MODULES = ("default", "data", "ml")


def make(settings: Settings) -> Celery:
    """An app with these settings; there is one, but for tests."""
    url = settings.url
    app = Celery("celery_app", task_cls=MusterTask, set_as_current=True)
    app.loader.override_backends = dict.fromkeys(("redis", "rediss"), "celery_app.results:Backend")
    options: dict[str, Any] = {
        "priority_steps": sorted(PRIORITIES.values()),
        "queue_order_strategy": "priority",
        "visibility_timeout": settings.visibility_timeout,
        "socket_keepalive": True,
        "socket_connect_timeout": 5,
        "health_check_interval": 10,
    }
    if settings.worker:
        key = settings.unacked
        options |= {"unacked_key": key, "unacked_index_key": f"{key}:index", "unacked_mutex_key": f"{key}:mutex"}
        options |= {"fence": settings.worker}
    app.conf.update(
        broker_write_url=url,
        # Who takes tasks does it by our transport; who sends them needs nothing but Celery.
        broker_read_url="muster://" + url.partition("://")[2] if settings.heartbeat else url,
        broker_use_ssl=settings.tls or None,
        redis_backend_use_ssl=settings.tls or None,
        broker_transport_options=options,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        result_backend=settings.result_backend or (_with_tls(url, settings)),
        result_expires=int(settings.result_days * 86400),
        result_extended=True,
        # A result outlasts a broker that starts anew.
        result_backend_always_retry=True,
        result_backend_base_sleep_between_retries_ms=100,
        result_backend_max_sleep_between_retries_ms=1000,
        result_backend_max_retries=120,
        redis_socket_keepalive=True,
        redis_retry_on_timeout=True,
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        enable_utc=True,
        timezone=settings.timezone,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_acks_on_failure_or_timeout=True,
        task_track_started=True,
        task_time_limit=settings.time_limit,
        task_soft_time_limit=settings.soft_time_limit,
        task_default_queue="default",
        task_default_priority=PRIORITIES["normal"],
        task_queues=[Queue(name, routing_key=name) for name in MODULES],
        task_routes={f"celery_app.tasks.{name}.*": {"queue": name} for name in MODULES},
        worker_prefetch_multiplier=settings.prefetch,
        worker_concurrency=settings.concurrency,
        worker_max_memory_per_child=settings.child_memory_mb * 1024 or None,
        worker_send_task_events=True,
        task_send_sent_event=True,
        worker_hijack_root_logger=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        include=[
            *(name for name in (f"celery_app.tasks.{module}" for module in MODULES) if importlib.util.find_spec(name)),
            *(part.strip() for part in settings.include.split(",") if part.strip()),
        ],
    )
    if settings.heartbeat:
        from celery_app.worker import Audit, Events, Heartbeat, Reclaim

        app.steps["worker"].add(Heartbeat)
        app.steps["consumer"] |= {Reclaim, Audit, Events}
    return app


def _with_tls(url: str, settings: Settings) -> str:
    # Celery's Redis backend wants this in the address, whatever redis_backend_use_ssl says.
    return f"{url}?ssl_cert_reqs=required" if settings.tls else url


app = make(Settings.read())
