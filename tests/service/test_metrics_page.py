"""Prometheus' page: requests as observed, jobs as the store has them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from luthier.jobs.resource import new_resource
from luthier.jobs.store import Store
from luthier.service.metrics import Metrics

OWNER = ("123456789012", "us-west-2")


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Every sample of the page, by its name and its labels' values."""
    families = text_string_to_metric_families(metrics.page().decode())
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def test_requests_are_counted_and_timed(store: Store) -> None:
    metrics = Metrics(store, lambda: 1.5)
    metrics.observe("s3", "PutObject", 200, 0.02)
    metrics.observe("s3", "PutObject", 200, 20)
    metrics.observe("s3", "PutObject", 403, 0.001)
    found = samples(metrics)
    # Labels come in the order in which they are sorted by name: code, operation, service.
    assert found["luthier_requests_total", "200", "PutObject", "s3"] == 2
    assert found["luthier_requests_total", "403", "PutObject", "s3"] == 1
    assert found["luthier_request_seconds_count", "PutObject", "s3"] == 3
    assert found["luthier_supervisor_beat_age_seconds",] == 1.5


def test_jobs_are_those_of_the_store(store: Store) -> None:
    metrics = Metrics(store, lambda: None)
    jobs = [store.create("training-job", OWNER, f"job-{number}", {}) for number in range(3)]
    automl_job = new_resource("automl-job", OWNER, "tuned", {})
    store.insert(automl_job, new_resource("training-job", OWNER, "tuned-tr-1", {}, parent=automl_job.id))
    store.create("endpoint", OWNER, "door", {})
    store.create("model", OWNER, "model", {})
    store.claim("me", ["training-job"], 2e9)
    store.update(jobs[2].id, "Failed")
    found = samples(metrics)
    assert found["luthier_jobs", "training-job", "InProgress"] == 3
    assert found["luthier_jobs", "training-job", "Failed"] == 1
    assert found["luthier_jobs", "automl-job", "InProgress"] == 1
    assert found["luthier_endpoints", "Creating"] == 1
    assert found["luthier_queue_length",] == 2
    assert ("luthier_supervisor_beat_age_seconds",) not in found
