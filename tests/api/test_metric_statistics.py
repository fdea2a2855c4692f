"""CloudWatch's metrics of training jobs, by the calls of the SDK's TrainingJobAnalytics."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from api.wire_client import OWNER, WireClient, training_job

from luthier.api.description import drop_none

NAMESPACE = "/aws/sagemaker/TrainingJobs"
START = 1_700_000_040.0  # a whole minute
DEFINITIONS = [
    {"Name": "huggingface-textgeneration:train-loss", "Regex": "unused"},
    {"Name": "speed", "Regex": r"speed ([0-9.]+|fast)"},
    {"Name": "broken", "Regex": "("},
]


@pytest.fixture
def job(wire: WireClient) -> WireClient:
    """A service with a job `job` that trained for 150 seconds."""
    wire.client().create_training_job(
        **training_job("job", AlgorithmSpecification={
            "TrainingImage": "image", "TrainingInputMode": "File", "MetricDefinitions": DEFINITIONS,
        })
    )  # fmt: skip
    stored = wire.store.find("training-job", OWNER, "job")
    assert stored is not None
    folder = wire.service.settings.jobs / stored.id
    (folder / "logs").mkdir(parents=True)
    lines: list[dict[str, Any]] = [
        {"time": START + 10 * step, "step": step, "loss": 4 - step / 10} for step in range(15)
    ]
    lines += [{"time": START + 61, "step": 6, "eval_loss": 2.0}, {"time": START + 62, "step": 7, "loss": math.inf}]
    torn = '{"time": 1, "lo'  # the disk was full, or the engine is writing
    (folder / "metrics.jsonl").write_text(f"{torn}\n" + "".join(json.dumps(line) + "\n" for line in lines) + torn)
    events = [
        {"timestamp": (START + 5) * 1000 + n, "message": f"speed {text}"} for n, text in enumerate(("8.5", "fast"))
    ]
    (folder / "logs" / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return wire


def statistics(wire: WireClient, name: str, job: str = "job", **more: Any) -> list[dict[str, Any]]:
    request = {
        "Namespace": NAMESPACE, "MetricName": name, "Dimensions": [{"Name": "TrainingJobName", "Value": job}],
        "StartTime": datetime.fromtimestamp(START + 7, UTC), "EndTime": datetime.fromtimestamp(START + 200, UTC),
        "Period": 60, "Statistics": ["Average"],
    } | more  # fmt: skip
    answer = wire.client("cloudwatch").get_metric_statistics(**request)
    assert answer["Label"] == name
    points: list[dict[str, Any]] = answer["Datapoints"]
    return points


def test_a_loss_is_averaged_by_minute(job: WireClient) -> None:
    points = statistics(job, "huggingface-textgeneration:train-loss", Statistics=["Average", "Maximum", "SampleCount"])
    assert [point["Timestamp"].timestamp() - START for point in points] == [0, 60, 120]
    assert [point["Average"] for point in points] == pytest.approx([3.75, 3.15, 2.7])
    assert [(point["Maximum"], point["SampleCount"], point["Unit"]) for point in points] == [
        (4.0, 6, "None"), (3.4, 6, "None"), (2.8, 3, "None"),
    ]  # fmt: skip


def test_each_step_has_its_point_with_a_short_period(job: WireClient) -> None:
    points = statistics(job, "train-loss", Period=10, EndTime=datetime.fromtimestamp(START + 30, UTC))
    assert [point["Average"] for point in points] == pytest.approx([4.0, 3.9, 3.8])


def test_perplexity_follows_from_the_loss(job: WireClient) -> None:
    assert [point["Average"] for point in statistics(job, "x:eval-ppl")] == pytest.approx([math.exp(2)])
    assert [point["Average"] for point in statistics(job, "x:eval-loss")] == [2.0]


def test_a_metric_of_the_request_is_read_from_the_log(job: WireClient) -> None:
    assert [point["Average"] for point in statistics(job, "speed")] == [8.5]


@pytest.mark.parametrize(("name", "job_name"), [("speedy", "job"), ("train-loss", "other")])
def test_what_is_unknown_has_no_points(job: WireClient, name: str, job_name: str) -> None:
    assert statistics(job, name, job_name) == []


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"MetricName": "broken"}, "InvalidParameterValue", "metric broken: its Regex cannot be read"),
        ({"Period": 7}, "InvalidParameterValue", "multiple of 60"),
        ({"Period": 1, "StartTime": datetime.fromtimestamp(START - 9000, UTC)}, "InvalidParameterCombination", "1,440"),
        ({"EndTime": datetime.fromtimestamp(START, UTC)}, "InvalidParameterValue", "less than"),
        ({"Statistics": None}, "MissingParameter", "Statistics"),
        ({"ExtendedStatistics": ["p90"]}, "InvalidParameterValue", "percentiles"),
    ],
)
def test_what_cannot_be_answered_is_refused(job: WireClient, more: dict[str, Any], code: str, words: str) -> None:
    request = {
        "Namespace": NAMESPACE, "MetricName": "train-loss", "Period": 60, "Statistics": ["Average"],
        "Dimensions": [{"Name": "TrainingJobName", "Value": "job"}],
        "StartTime": datetime.fromtimestamp(START, UTC), "EndTime": datetime.fromtimestamp(START + 200, UTC),
    } | more  # fmt: skip
    refused = job.refusal(job.client("cloudwatch").get_metric_statistics, **drop_none(request))
    assert refused[0] == code
    assert words in refused[1]
