"""The client and the commands that use it, against a real port with prepared responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from live_wire import Echo, LiveWire, live_wire
from typer.testing import CliRunner

from luthier.cli.app import app
from luthier.client.client import Client, ServiceUnreachableError
from luthier.errors import UserError
from luthier.protocol.call import Call, Principal
from luthier.protocol.errors import WireError

MADE, ENDED = datetime(2026, 11, 1, 12, tzinfo=UTC), datetime(2026, 11, 1, 12, 1, tzinfo=UTC)
ARN = "arn:aws:sagemaker:eu-west-1:123456789012:training-job/fine"


@pytest.fixture(scope="module")
def running() -> Iterator[LiveWire]:
    with live_wire(authenticate=lambda request, service: Principal()) as wire:
        yield wire


@pytest.fixture
def wire(running: LiveWire, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveWire]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    yield running
    running.reset()


def training_job(status: str = "Completed", **more: Any) -> dict[str, Any]:
    return {
        "TrainingJobName": "fine", "TrainingJobArn": ARN, "TrainingJobStatus": status, "SecondaryStatus": status,
        "CreationTime": MADE, "TrainingEndTime": ENDED, "ModelArtifacts": {"S3ModelArtifacts": "s3://b/m"},
    } | more  # fmt: skip


def unknown(call: Call) -> dict[str, Any]:
    raise WireError("ResourceNotFound", "Requested resource not found.")


class Log:
    """A log stream that grows: one page of lines for each call."""

    def __init__(self, pages: list[list[str]]) -> None:
        self.pages = pages

    def __call__(self, call: Call) -> dict[str, Any]:
        place = int(call.parameters.get("nextToken", "f/0").partition("/")[2])
        lines = self.pages[place] if place < len(self.pages) else []
        return {
            "events": [{"timestamp": 1, "ingestionTime": 1, "message": line} for line in lines],
            "nextForwardToken": f"f/{min(place + 1, len(self.pages))}", "nextBackwardToken": "b/0",
        }  # fmt: skip


def with_logs(echo: Echo, pages: list[list[str]]) -> None:
    echo.answers["DescribeLogStreams"] = {"logStreams": [{"logStreamName": "fine/algo-1-1"}]}
    echo.answers["GetLogEvents"] = Log(pages)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments], standalone_mode=False)


def test_logs_prints_every_page(wire: LiveWire) -> None:
    wire.echo.answers["DescribeTrainingJob"] = training_job()
    with_logs(wire.echo, [["one", "two"], ["three"]])
    shown = run("logs", "fine")
    assert (shown.stdout, shown.return_value) == ("one\ntwo\nthree\n", 0)
    request = next(call for call in wire.echo.calls if call.operation == "DescribeLogStreams")
    assert request.parameters["logGroupName"] == "/aws/sagemaker/TrainingJobs"
    assert request.parameters["logStreamNamePrefix"] == "fine/"
    assert request.region == "eu-west-1"


@pytest.mark.parametrize(("status", "code"), [("Completed", 0), ("Stopped", 0), ("Failed", 1)])
def test_following_ends_with_the_job(wire: LiveWire, status: str, code: int) -> None:
    """Lines written between the last poll and the end are printed too; the stream may not exist at first."""
    pages: list[list[str]] = [["one"]]
    statuses = iter(["InProgress"] * 3)

    def describe(call: Call) -> dict[str, Any]:
        now = next(statuses, status)
        if now == status and len(pages) == 1:
            pages.append(["last"])
        return training_job(now, FailureReason="AlgorithmError: too bad") if now == "Failed" else training_job(now)

    streams = iter([unknown])

    def describe_streams(call: Call) -> dict[str, Any]:
        if next(streams, None):
            raise WireError("ResourceNotFoundException", "The specified log group does not exist.")
        return {"logStreams": [{"logStreamName": "fine/algo-1-1"}]}

    wire.echo.answers["DescribeTrainingJob"] = describe
    wire.echo.answers["DescribeLogStreams"] = describe_streams
    wire.echo.answers["GetLogEvents"] = Log(pages)
    with Client(wire.url) as client:
        assert list(client.logs(client.job("fine"), follow=True, every=0.01)) == ["one", "last"]
    wire.echo.answers["DescribeTrainingJob"] = training_job(status, FailureReason="too bad")
    shown = run("logs", "fine", "-f")
    assert shown.return_value == code
    assert f"luthier: fine: {status}: too bad\n" in shown.stderr


def test_an_automl_job_is_found_if_there_is_no_training_job(wire: LiveWire) -> None:
    wire.echo.answers["DescribeTrainingJob"] = unknown
    wire.echo.answers["DescribeAutoMLJobV2"] = {
        "AutoMLJobName": "auto", "AutoMLJobArn": ARN, "AutoMLJobInputDataConfig": [], "RoleArn": "r",
        "OutputDataConfig": {"S3OutputPath": "s3://b"}, "CreationTime": MADE, "LastModifiedTime": ENDED,
        "AutoMLJobStatus": "InProgress", "AutoMLJobSecondaryStatus": "TrainingModels",
    }  # fmt: skip
    wire.echo.answers["StopAutoMLJob"] = {}
    with Client(wire.url) as client:
        job = client.job("auto")
    assert (job.kind, job.status, job.secondary, job.ended) == ("automl-job", "InProgress", "TrainingModels", None)
    assert run("jobs", "stop", "auto").stdout == "auto: InProgress\n"
    assert [call.operation for call in wire.echo.calls if call.operation.startswith("Stop")] == ["StopAutoMLJob"]


def test_a_job_that_ended_is_not_stopped(wire: LiveWire) -> None:
    wire.echo.answers["DescribeTrainingJob"] = training_job()
    assert run("jobs", "stop", "fine").stdout == "fine: Completed\n"
    assert not [call for call in wire.echo.calls if call.operation.startswith("Stop")]


def test_an_unknown_job_is_one_line(wire: LiveWire) -> None:
    wire.echo.answers["DescribeTrainingJob"] = wire.echo.answers["DescribeAutoMLJobV2"] = unknown
    shown = run("logs", "nobody")
    assert isinstance(shown.exception, UserError)
    assert str(shown.exception) == (
        f"job 'nobody' not found at {wire.url} in eu-west-1; `luthier jobs list` lists the jobs"
    )


def test_the_list_has_both_kinds_newest_first(wire: LiveWire) -> None:
    wire.echo.answers["ListTrainingJobs"] = {"TrainingJobSummaries": [
        {"TrainingJobName": "fine", "TrainingJobArn": ARN, "TrainingJobStatus": "Completed", "CreationTime": MADE,
         "TrainingEndTime": ENDED},
    ]}  # fmt: skip
    wire.echo.answers["ListAutoMLJobs"] = {"AutoMLJobSummaries": [
        {"AutoMLJobName": "auto[1]", "AutoMLJobArn": ARN, "AutoMLJobStatus": "InProgress", "CreationTime": ENDED,
         "AutoMLJobSecondaryStatus": "TrainingModels", "LastModifiedTime": ENDED},
    ]}  # fmt: skip
    shown = run("jobs", "list", "--json", "--status", "Completed")
    assert [job["name"] for job in json.loads(shown.stdout)] == ["auto[1]", "fine"]
    assert wire.echo.calls[0].parameters["StatusEquals"] == "Completed"
    table = run("jobs", "list").stdout.splitlines()
    assert table[1].split() == ["auto[1]", "automl-job", "InProgress", "(TrainingModels)", *table[1].split()[4:]]
    assert "60 s" in table[2]


def test_an_empty_list_says_where(wire: LiveWire) -> None:
    wire.echo.answers["ListTrainingJobs"] = {"TrainingJobSummaries": []}
    wire.echo.answers["ListAutoMLJobs"] = {"AutoMLJobSummaries": []}
    assert run("jobs", "list").stdout == f"{wire.url}: no jobs in eu-west-1\n"
    assert run("jobs", "list", "--status", "Failed").stdout == f"{wire.url}: no Failed jobs in eu-west-1\n"


def test_an_unknown_status_is_refused(wire: LiveWire) -> None:
    shown = run("jobs", "list", "--status", "failed")
    assert isinstance(shown.exception, UserError)
    assert "did you mean 'Failed'" in str(shown.exception)


def test_a_refusal_is_one_line_with_its_code(wire: LiveWire) -> None:
    wire.echo.answers["ListTrainingJobs"] = WireError("AccessDeniedException", "not you", 403)
    shown = run("jobs", "list")
    assert isinstance(shown.exception, UserError)
    assert "AccessDeniedException: not you" in str(shown.exception)


def test_no_answer_is_one_line() -> None:
    with (
        Client("http://127.0.0.1:1") as client,
        pytest.raises(ServiceUnreachableError, match="start it with: luthier serve"),
    ):
        client.jobs()
