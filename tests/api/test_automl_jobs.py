"""AutoML jobs of text generation: every rule of the request, and what is described and listed."""

from __future__ import annotations

from typing import Any

import pytest
from api.wire_client import ACCOUNT, OWNER, WireClient, automl_channel, automl_job

from luthier.catalog.entry import find
from luthier.jobspec import JobSpec

LLAMA = {"BaseModelName": "Llama2-7B"}
CHANNELS = "AutoMLJobInputDataConfig"


def spec(wire: WireClient, name: str = "auto") -> JobSpec:
    """The spec of the AutoML job's training job."""
    job = wire.store.find("training-job", OWNER, f"{name}-tr-1")
    assert job is not None
    return job.job


def candidate(name: str = "auto-trial-1", status: str = "Completed") -> dict[str, Any]:
    container = {"Image": "image", "ModelDataUrl": "s3://bucket/model.tar.gz", "Environment": {}}
    step = {"CandidateStepType": "AWS::SageMaker::TrainingJob", "CandidateStepArn": "arn:x", "CandidateStepName": "s"}
    return {
        "CandidateName": name, "ObjectiveStatus": "Succeeded", "CandidateSteps": [step], "CandidateStatus": status,
        "CreationTime": 1.7e9, "LastModifiedTime": 1.7e9, "InferenceContainers": [container],
        "CandidateProperties": {"CandidateMetrics": [
            {"StandardMetricName": "Rouge1", "Value": 0.4, "Set": "Validation"}]},
    }  # fmt: skip


def with_hyperparameters(**given: str) -> dict[str, Any]:
    return automl_job(config={"TextGenerationHyperParameters": given})


def test_defaults_are_resolved(wire: WireClient) -> None:
    client = wire.client()
    arn = client.create_auto_ml_job_v2(**automl_job("Auto-1"))["AutoMLJobArn"]
    assert arn == f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:automl-job/auto-1"
    told = client.describe_auto_ml_job_v2(AutoMLJobName="aUTO-1")
    assert (told["AutoMLJobName"], told["AutoMLJobArn"]) == ("Auto-1", arn)
    assert (told["AutoMLJobStatus"], told["AutoMLJobSecondaryStatus"]) == ("InProgress", "Starting")
    assert told["AutoMLProblemTypeConfigName"] == "TextGeneration"
    assert told["DataSplitConfig"] == {"ValidationFraction": 0.2}
    assert told["ResolvedAttributes"] == {
        "CompletionCriteria": {"MaxCandidates": 1, "MaxRuntimePerTrainingJobInSeconds": 259200},
        "AutoMLProblemTypeResolvedAttributes": {
            "TextGenerationResolvedAttributes": {"BaseModelName": "Falcon7BInstruct"}
        },
    }
    assert told["AutoMLJobArtifacts"] == {}
    resolved = spec(wire, "Auto-1")
    assert (resolved.model, resolved.kind) == ("falcon-7b-instruct", "autopilot")
    assert resolved.hyperparameters == {"validation_split_ratio": "0.2", "max_input_length": "1024"}
    assert (resolved.max_rows, resolved.max_truncated) == (1000, 0.6)
    assert resolved.channels == {"training": "s3://bucket/rows.csv"}
    assert resolved.output == "s3://bucket/out/Auto-1/Auto-1-trial-1/output/"
    assert resolved.command == ("CreateAutoMLJobV2", "Auto-1")


def test_what_was_asked_for_is_prepared_and_described(wire: WireClient) -> None:
    given = {"epochCount": "5", "learningRate": "0.000001", "batchSize": "32", "learningRateWarmupSteps": "10"}
    config = {
        "BaseModelName": "llama2-13bchat", "TextGenerationHyperParameters": given,
        "ModelAccessConfig": {"AcceptEula": True},
        "CompletionCriteria": {"MaxCandidates": 1, "MaxAutoMLJobRuntimeInSeconds": 60},
    }  # fmt: skip
    request = automl_job(
        config=config, ModelDeployConfig={"AutoGenerateEndpointName": True}, Tags=[{"Key": "a", "Value": "b"}],
        AutoMLJobInputDataConfig=[automl_channel(ContentType="text/csv;header=present", CompressionType="None"),
                                  automl_channel(ChannelType="validation", ContentType="text/csv")],
        SecurityConfig={"EnableInterContainerTrafficEncryption": False},
    )  # fmt: skip
    client = wire.client()
    client.create_auto_ml_job_v2(**request)
    told = client.describe_auto_ml_job_v2(AutoMLJobName="auto")
    assert {name: told[name] for name in request if name != "Tags"} == {
        name: value for name, value in request.items() if name != "Tags"
    }
    assert "DataSplitConfig" not in told
    resolved = told["ResolvedAttributes"]["CompletionCriteria"]
    assert resolved == {
        "MaxCandidates": 1, "MaxRuntimePerTrainingJobInSeconds": 259200, "MaxAutoMLJobRuntimeInSeconds": 60,
    }  # fmt: skip
    prepared = spec(wire)
    assert prepared.model == "llama-2-13b-chat"
    entry = find("llama-2-13b-chat")
    assert entry is not None
    assert entry.autopilot is not None
    assert prepared.hyperparameters == {
        "epoch": "5", "per_device_train_batch_size": "32", "learning_rate": "1e-06", "warmup_steps": "10",
        "max_input_length": str(entry.autopilot.tokens),
    }  # fmt: skip
    assert prepared.channels.keys() == {"training", "validation"}
    assert prepared.eula is not None
    assert prepared.eula["by"] == wire.principal.arn


def test_settings_follow_fraction_and_family(wire: WireClient) -> None:
    client = wire.client()
    client.create_auto_ml_job_v2(**automl_job("split", DataSplitConfig={"ValidationFraction": 0.3}))
    assert spec(wire, "split").hyperparameters["validation_split_ratio"] == "0.3"
    client.create_auto_ml_job_v2(**automl_job("pairs", config={
        "BaseModelName": "FlanT5L", "TextGenerationHyperParameters": {"epochCount": "3"}}))  # fmt: skip
    assert spec(wire, "pairs").hyperparameters == {
        "validation_split_ratio": "0.2", "max_input_length": "1024", "max_output_length": "1024", "epoch": "3",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("criteria", "seconds", "member"),
    [
        ({}, 259_200, "CompletionCriteria.MaxRuntimePerTrainingJobInSeconds"),
        ({"MaxAutoMLJobRuntimeInSeconds": 60}, 60, "CompletionCriteria.MaxAutoMLJobRuntimeInSeconds"),
        ({"MaxAutoMLJobRuntimeInSeconds": 60, "MaxRuntimePerTrainingJobInSeconds": 30}, 30,
         "CompletionCriteria.MaxRuntimePerTrainingJobInSeconds"),
    ],
)  # fmt: skip
def test_the_least_limit_counts(wire: WireClient, criteria: dict[str, int], seconds: float, member: str) -> None:
    wire.client().create_auto_ml_job_v2(**automl_job("limited", config={"CompletionCriteria": criteria}))
    limited = spec(wire, "limited")
    assert (limited.max_seconds, limited.max_seconds_member) == (seconds, member)


@pytest.mark.parametrize(
    ("name", "entry"),
    [("Dolly3B", "dolly-v2-3b"), ("Dolly7B", "dolly-v2-7b"), ("Dolly12B", "dolly-v2-12b"), ("Falcon7B", "falcon-7b"),
     ("Falcon7BInstruct", "falcon-7b-instruct"), ("Falcon40B", "falcon-40b"), ("MPT7B", "mpt-7b"),
     ("Falcon40BInstruct", "falcon-40b-instruct"), ("FlanT5L", "flan-t5-large"), ("FlanT5XL", "flan-t5-xl"),
     ("FlanT5XXL", "flan-t5-xxl"), ("Llama2-7B", "llama-2-7b"), ("Llama2-7BChat", "llama-2-7b-chat"),
     ("Llama2-13B", "llama-2-13b"), ("Llama2-13BChat", "llama-2-13b-chat"), ("Mistral7B", "mistral-7b"),
     ("Mistral7BInstruct", "mistral-7b-instruct"), ("MPT7BInstruct", "mpt-7b-instruct"),
     ("luthier-tiny", "luthier/tiny"), ("huggingface-text2text-flan-t5-base", "flan-t5-base")],
)  # fmt: skip
def test_every_base_model_name(wire: WireClient, name: str, entry: str) -> None:
    config = {"BaseModelName": name, "ModelAccessConfig": {"AcceptEula": True}}
    wire.client().create_auto_ml_job_v2(**automl_job(config=config))
    assert spec(wire).model == entry


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (automl_job(AutoMLProblemTypeConfig={"TabularJobConfig": {"TargetAttributeName": "y"}}),
         "AutoMLProblemTypeConfig: problem type TabularJobConfig is not supported; expected TextGenerationJobConfig"),
        (automl_job(AutoMLJobObjective={"MetricName": "MSE"}),
         "AutoMLJobObjective must not be set for problem type TextGeneration"),
        (automl_job(AutoMLComputeConfig={"EmrServerlessComputeConfig": {
            "ExecutionRoleARN": f"arn:aws:iam::{ACCOUNT}:role/r"}}),
         "AutoMLComputeConfig must not be set for problem type TextGeneration"),
        (automl_job(config={"BaseModelName": "Falcon7BInstrukt"}),
         "BaseModelName 'Falcon7BInstrukt' is not supported; did you mean 'Falcon7BInstruct'?; expected one of Dolly"),
        (automl_job(config={"BaseModelName": "gpt2"}), "BaseModelName 'gpt2' is not supported"),
        (automl_job(config=LLAMA),
         "llama-2-7b is licensed under Llama 2 Community License, which you must accept first: read "
         "https://ai.meta.com/llama/license/, then set TextGenerationJobConfig.ModelAccessConfig.AcceptEula to true"),
        (automl_job(config=LLAMA | {"ModelAccessConfig": {"AcceptEula": False}}), "llama-2-7b is licensed under"),
        (automl_job(config={"CompletionCriteria": {"MaxCandidates": 2}}),
         "CompletionCriteria.MaxCandidates 2: must be 1 for problem type TextGeneration"),
        (with_hyperparameters(epochCount="0"),
         "epochCount=0: expected a whole number of at least 1 and at most 10 (Autopilot's range)"),
        (with_hyperparameters(epochCount="11"), "epochCount=11: expected a whole number of at least 1 and at most 10"),
        (with_hyperparameters(epochCount="2.5"), "epochCount=2.5: expected a whole number"),
        (with_hyperparameters(batchSize="0"), "batchSize=0: expected a whole number of at least 1 and at most 64"),
        (with_hyperparameters(batchSize="65"), "batchSize=65: expected a whole number of at least 1 and at most 64"),
        (with_hyperparameters(learningRate="0"), "learningRate=0: expected a number above 0 and at most 1"),
        (with_hyperparameters(learningRate="1.1"), "learningRate=1.1: expected a number above 0 and at most 1"),
        (with_hyperparameters(learningRate="fast"), "learningRate=fast: expected a number above 0 and at most 1"),
        (with_hyperparameters(learningRateWarmupSteps="251"),
         "learningRateWarmupSteps=251: expected a whole number of at least 0 and at most 250 (Autopilot's range)"),
        (with_hyperparameters(learningRateWarmupSteps="-1"), "learningRateWarmupSteps=-1: expected a whole number"),
        (with_hyperparameters(epoch="2"),
         "TextGenerationHyperParameters: unknown hyperparameter 'epoch'; did you mean 'epochCount'?; expected some of "
         "epochCount, batchSize, learningRate, learningRateWarmupSteps"),
        (automl_job(AutoMLJobInputDataConfig=[automl_channel(), automl_channel(ChannelType="validation")],
                    DataSplitConfig={"ValidationFraction": 0.2}),
         "DataSplitConfig.ValidationFraction must not be set when a validation channel is given"),
        (automl_job(DataSplitConfig={"ValidationFraction": 0.0}),
         "DataSplitConfig.ValidationFraction 0: expected a number above 0 and below 1"),
        (automl_job(DataSplitConfig={"ValidationFraction": 1.0}),
         "DataSplitConfig.ValidationFraction 1: expected a number above 0 and below 1"),
        (automl_job(AutoMLJobInputDataConfig=[automl_channel(ChannelType="validation")]),
         f"{CHANNELS}: the channels are validation; expected training, or training and validation"),
        (automl_job(AutoMLJobInputDataConfig=[automl_channel(), automl_channel(ChannelType="training")]),
         f"{CHANNELS}: the channels are training and training; expected training, or training and validation"),
        (automl_job(AutoMLJobInputDataConfig=[
            automl_channel(),
            automl_channel(ChannelType="validation", ContentType="x-application/vnd.amazon+parquet")]),
         f"{CHANNELS}: training and validation channel must have the same ContentType"),
        (automl_job(AutoMLJobInputDataConfig=[automl_channel(ContentType="application/json")]),
         f"{CHANNELS}, channel training: ContentType application/json is not supported; expected text/csv;header="
         "present or x-application/vnd.amazon+parquet"),
        (automl_job(AutoMLJobInputDataConfig=[automl_channel(CompressionType="Gzip")]),
         f"{CHANNELS}, channel training: CompressionType Gzip is not supported for TextGeneration; expected None"),
        (automl_job(AutoMLJobInputDataConfig=[automl_channel(source={"S3DataType": "ManifestFile"})]),
         f"{CHANNELS}, channel training: S3DataType ManifestFile is not supported for TextGeneration; expected S3Pr"),
        (automl_job(AutoMLJobInputDataConfig=[automl_channel(source={"S3DataType": "AugmentedManifestFile"})]),
         f"{CHANNELS}, channel training: S3DataType AugmentedManifestFile is not supported for TextGeneration"),
        (automl_job(AutoMLJobInputDataConfig=[automl_channel(source={"S3Uri": "https://host/rows.csv"})]),
         f"{CHANNELS}, channel training: S3Uri https://host/rows.csv: expected s3://BUCKET/PREFIX"),
        (automl_job(AutoMLJobInputDataConfig=[{"ChannelType": "training"}]),
         f"{CHANNELS}, channel training: no DataSource.S3DataSource is given"),
        (automl_job(ModelDeployConfig={"AutoGenerateEndpointName": True, "EndpointName": "mine"}),
         "ModelDeployConfig.EndpointName must not be set when AutoGenerateEndpointName is true"),
        (automl_job(ModelDeployConfig={"AutoGenerateEndpointName": False}),
         "ModelDeployConfig.EndpointName must be set when AutoGenerateEndpointName is false"),
        (automl_job(ModelDeployConfig={}),
         "ModelDeployConfig.EndpointName must be set when AutoGenerateEndpointName is false"),
        (automl_job(OutputDataConfig={"S3OutputPath": "s3://bucket/" + "x" * 501}),
         "OutputDataConfig.S3OutputPath has 513 characters; expected at most 512"),
        (automl_job(OutputDataConfig={"S3OutputPath": "https://bucket/x"}),
         "OutputDataConfig.S3OutputPath https://bucket/x: expected s3://BUCKET/PREFIX"),
        (automl_job(OutputDataConfig={"S3OutputPath": "s3://bucket/x", "KmsKeyId": "key"}),
         "OutputDataConfig.KmsKeyId=key: Luthier does not encrypt what it stores yet"),
        (automl_job(SecurityConfig={"VolumeKmsKeyId": "key"}),
         "SecurityConfig.VolumeKmsKeyId=key: Luthier does not encrypt what it stores yet"),
    ],
)  # fmt: skip
def test_refusals(wire: WireClient, request_: dict[str, Any], expected: str) -> None:
    client = wire.client()
    code, message = wire.refusal(client.create_auto_ml_job_v2, **request_)
    assert code == "ValidationException"
    assert message.startswith(expected)
    assert client.list_auto_ml_jobs()["AutoMLJobSummaries"] == []


def test_every_fault_is_told_at_once(wire: WireClient) -> None:
    request = automl_job(
        config={"CompletionCriteria": {"MaxCandidates": 9}}, ModelDeployConfig={},
        AutoMLJobInputDataConfig=[automl_channel(CompressionType="Gzip")],
    )  # fmt: skip
    _, message = wire.refusal(wire.client().create_auto_ml_job_v2, **request)
    assert message.count("; ") >= 2
    assert all(word in message for word in ("MaxCandidates 9", "ModelDeployConfig", "CompressionType Gzip"))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (automl_job("x" * 33), "Member must have length less than or equal to 32"),
        (automl_job("under_score"), "Member must satisfy regular expression pattern"),
        (automl_job(AutoMLJobInputDataConfig=[]), "Member must have length greater than or equal to 1"),
        (automl_job(AutoMLJobInputDataConfig=[automl_channel()] * 3),
         "Member must have length less than or equal to 2"),
        (automl_job(RoleArn="arn:aws:iam::1:role/x"), "'roleArn' failed to satisfy constraint"),
        (automl_job(config={"TextGenerationHyperParameters": {"epochCount": "x" * 17}}),
         "failed to satisfy constraint"),
        (automl_job(AutoMLProblemTypeConfig={}), "autoMLProblemTypeConfig"),
    ],
)  # fmt: skip
def test_shapes_are_checked_before_the_rules(wire: WireClient, request_: dict[str, Any], expected: str) -> None:
    code, message = wire.refusal(wire.client().create_auto_ml_job_v2, **request_)
    assert code == "ValidationException"
    assert expected in message


def test_names_are_taken_whatever_their_case(wire: WireClient) -> None:
    client = wire.client()
    client.create_auto_ml_job_v2(**automl_job("Auto"))
    code, message = wire.refusal(client.create_auto_ml_job_v2, **automl_job("aUTO"))
    assert code == "ResourceInUse"
    assert f"already exists (arn:aws:sagemaker:us-east-1:{ACCOUNT}:automl-job/auto)" in message


@pytest.mark.parametrize(
    "operation", ["describe_auto_ml_job_v2", "stop_auto_ml_job", "list_candidates_for_auto_ml_job"]
)
def test_an_unknown_job(wire: WireClient, operation: str) -> None:
    assert wire.refusal(getattr(wire.client(), operation), AutoMLJobName="none") == (
        "ResourceNotFound", f"Could not find AutoML job arn:aws:sagemaker:us-east-1:{ACCOUNT}:automl-job/none.",
    )  # fmt: skip


def test_stop(wire: WireClient) -> None:
    client = wire.client()
    client.create_auto_ml_job_v2(**automl_job())
    client.stop_auto_ml_job(AutoMLJobName="AUTO")
    assert client.describe_auto_ml_job_v2(AutoMLJobName="auto")["AutoMLJobStatus"] == "Stopping"
    made = wire.store.find("automl-job", OWNER, "auto")
    assert made is not None
    wire.store.update(made.id, "Stopped", secondary="Stopped")
    assert wire.refusal(client.stop_auto_ml_job, AutoMLJobName="auto") == (
        "ValidationException", "The request was rejected because the AutoML job auto is in status Stopped.",
    )  # fmt: skip


def test_the_candidate_is_described_and_listed(wire: WireClient) -> None:
    client = wire.client()
    client.create_auto_ml_job_v2(**automl_job())
    assert client.list_candidates_for_auto_ml_job(AutoMLJobName="auto")["Candidates"] == []
    made = wire.store.find("automl-job", OWNER, "auto")
    assert made is not None
    wire.store.update(made.id, "Completed", secondary="ModelDeploymentError", progress={
        "candidate": candidate(), "ended": made.created + 5, "deploy_failure": "no endpoint",
    })  # fmt: skip
    told = client.describe_auto_ml_job_v2(AutoMLJobName="auto")
    assert told["BestCandidate"]["CandidateName"] == "auto-trial-1"
    assert told["PartialFailureReasons"] == [{"PartialFailureMessage": "no endpoint"}]
    assert "ModelDeployResult" not in told
    wire.store.update(made.id, progress={"endpoint": "endpoint-1", "deployed": True, "deploy_failure": ""})
    told = client.describe_auto_ml_job_v2(AutoMLJobName="auto")
    assert told["ModelDeployResult"] == {"EndpointName": "endpoint-1"}
    for wanted, count in ({}, 1), ({"StatusEquals": "Completed"}, 1), ({"StatusEquals": "Failed"}, 0), (
        {"CandidateNameEquals": "auto-trial-1", "SortBy": "CreationTime", "SortOrder": "Descending"}, 1
    ), ({"CandidateNameEquals": "other"}, 0):  # fmt: skip
        listed = client.list_candidates_for_auto_ml_job(AutoMLJobName="auto", **wanted)
        assert len(listed["Candidates"]) == count


def test_a_failure_is_described(wire: WireClient) -> None:
    client = wire.client()
    client.create_auto_ml_job_v2(**automl_job())
    made = wire.store.find("automl-job", OWNER, "auto")
    assert made is not None
    wire.store.update(made.id, "Failed", secondary="Failed", progress={"failure": "rows: too many"})
    assert client.describe_auto_ml_job_v2(AutoMLJobName="auto")["FailureReason"] == "rows: too many"
    assert client.list_auto_ml_jobs()["AutoMLJobSummaries"][0]["FailureReason"] == "rows: too many"
