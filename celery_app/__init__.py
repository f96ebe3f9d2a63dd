"""The Celery application: its tasks and schedules will live here. Shipped to every node together with ray_jobs."""
