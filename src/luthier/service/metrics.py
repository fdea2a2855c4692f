"""Prometheus metrics: requests, and the jobs now in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from luthier.jobs.schema import resources
from luthier.jobs.states import AUTOML_JOB, ENDPOINT, TRAINING_JOB
from luthier.jobs.store import Store

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


disable_created_metrics()  # type: ignore[no-untyped-call] # an extra line per series that nobody uses


class Metrics:
    """The metrics of one server; `heartbeat_age` gives the seconds since the supervisor's last heartbeat, if any."""

    def __init__(self, store: Store, heartbeat_age: Callable[[], float | None]) -> None:
        self._registry = CollectorRegistry()
        labels = ("service", "operation")
        self._requests = Counter(
            "luthier_requests", "Requests answered, by HTTP status.", (*labels, "code"), registry=self._registry
        )
        self._seconds = Histogram(
            "luthier_request_seconds", "Seconds until the answer began.", labels, buckets=SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._registry.register(_StoreCollector(store, heartbeat_age))

    def observe(self, service: str, operation: str, code: int, seconds: float) -> None:
        """Count one request; `operation` is one of botocore's, or "unknown", which bounds the number of labels."""
        self._requests.labels(service, operation, str(code)).inc()
        self._seconds.labels(service, operation).observe(seconds)

    def page(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _StoreCollector(Collector):
    """Counts jobs in the database at each scrape, so that the numbers are right after a restart."""

    def __init__(self, store: Store, heartbeat_age: Callable[[], float | None]) -> None:
        self._store, self._heartbeat_age = store, heartbeat_age

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("luthier_jobs", "Jobs by status.", labels=("kind", "status"))
        endpoints = GaugeMetricFamily("luthier_endpoints", "Endpoints by status.", labels=("status",))
        queue = GaugeMetricFamily("luthier_queue_length", "Jobs that wait for a device.")
        counted = sa.select(resources.c.kind, resources.c.status, sa.func.count()).where(
            resources.c.kind.in_((TRAINING_JOB, AUTOML_JOB, ENDPOINT))
        )
        waiting = sa.select(sa.func.count()).where(
            resources.c.open, resources.c.owner.is_(None), resources.c.kind == TRAINING_JOB
        )
        with self._store.engine.connect() as connection:
            for kind, status, count in connection.execute(counted.group_by(resources.c.kind, resources.c.status)):
                if kind == ENDPOINT:
                    endpoints.add_metric((status,), count)
                else:
                    jobs.add_metric((kind, status), count)
            queue.add_metric((), connection.execute(waiting).scalar_one())
        yield from (jobs, endpoints, queue)
        heartbeat = GaugeMetricFamily(
            "luthier_supervisor_beat_age_seconds", "Since the supervisor's last sign of life."
        )
        age = self._heartbeat_age()
        if age is not None:
            heartbeat.add_metric((), age)
        yield heartbeat
