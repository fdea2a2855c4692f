"""CloudWatch: the metrics of training jobs over time, as TrainingJobAnalytics and `aws cloudwatch` read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from luthier.api.description import to_timestamp
from luthier.api.service import Service
from luthier.jobs.metric_history import MetricPoint, metric_points
from luthier.jobs.states import TRAINING_JOB
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

NAMESPACE = "/aws/sagemaker/TrainingJobs"
MAX_DATAPOINTS = 1440
MINUTE = 60
STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "SampleCount": len,
    "Average": lambda values: math.fsum(values) / len(values),
    "Sum": math.fsum,
    "Minimum": min,
    "Maximum": max,
}


def get_statistics(call: Call, service: Service) -> dict[str, Any]:
    """Periods without a value have no datapoint; a metric or job that is unknown has none, as in CloudWatch."""
    request = call.parameters
    statistics = _statistics(request)
    start, end = _window(request)
    points = [point for point in _points(call, service) if start <= point.time < end]
    return {
        "Label": request["MetricName"],
        "Datapoints": [
            {"Timestamp": begin, "Unit": "None"} | {name: float(STATISTICS[name](values)) for name in statistics}
            for begin, values in _periods(points, request["Period"], start)
        ],
    }


def _statistics(request: dict[str, Any]) -> list[str]:
    if "ExtendedStatistics" in request:
        raise WireError("InvalidParameterValue", "ExtendedStatistics (percentiles) are not supported; use Statistics.")
    if not request.get("Statistics"):
        raise WireError("MissingParameter", "The parameter Statistics is required.")
    return list(request["Statistics"])


def _window(request: dict[str, Any]) -> tuple[float, float]:
    """The requested time in seconds since 1970; CloudWatch rounds its start down to a minute."""
    period = request["Period"]
    if period not in (1, 5, 10, 30) and period % MINUTE:
        raise WireError("InvalidParameterValue", "The parameter Period must be 1, 5, 10, 30 or a multiple of 60.")
    start, end = (to_timestamp(request[name]) or 0.0 for name in ("StartTime", "EndTime"))
    if start >= end:
        raise WireError("InvalidParameterValue", "The parameter StartTime must be less than the parameter EndTime.")
    count = math.ceil((end - start) / period)
    if count > MAX_DATAPOINTS:
        raise WireError(
            "InvalidParameterCombination",
            f"You have requested up to {count:,} datapoints, which exceeds the limit of {MAX_DATAPOINTS:,}. "
            "You may reduce the datapoints requested by increasing Period, or decreasing the time range.",
        )
    return start - start % MINUTE, end


def _points(call: Call, service: Service) -> list[MetricPoint]:
    request = call.parameters
    dimensions = {one["Name"]: one["Value"] for one in request.get("Dimensions", [])}
    if request["Namespace"] != NAMESPACE or set(dimensions) != {"TrainingJobName"}:
        return []
    job = service.store.find(TRAINING_JOB, (call.account, call.region), dimensions["TrainingJobName"])
    if job is None:
        return []
    definitions = job.request.get("AlgorithmSpecification", {}).get("MetricDefinitions", [])
    return metric_points(service.settings.jobs / job.id, request["MetricName"], definitions)


def _periods(points: Sequence[MetricPoint], period: int, start: float) -> list[tuple[float, list[float]]]:
    """The values in each period since `start` that has any, with the time of its beginning."""
    periods: dict[float, list[float]] = {}
    for point in points:
        periods.setdefault(start + (point.time - start) // period * period, []).append(point.value)
    return sorted(periods.items())


OPERATIONS = {"GetMetricStatistics": get_statistics}
