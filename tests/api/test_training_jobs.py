"""Training jobs: what is prepared for the engine, what is described, and everything that is refused."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from api.wire_client import ACCOUNT, OWNER, ROLE, WireClient, channel, training_job

from luthier.api import training_jobs
from luthier.jobspec import JobSpec

TAG = "sagemaker-sdk:jumpstart-model-id"
FLAN = "huggingface-text2text-flan-t5-base"
LLAMA = "meta-textgeneration-llama-2-7b"
CACHE = "s3://jumpstart-cache-prod-us-west-2"
HUB_CONTENT = "arn:aws:sagemaker:us-east-1:aws:hub-content/SageMakerPublicHub/Model"
PRIVATE = "s3://jumpstart-private-cache-prod-us-west-2"


def spec(wire: WireClient, name: str = "job") -> JobSpec:
    job = wire.store.find("training-job", OWNER, name)
    assert job is not None
    return job.job


def tagged(model: str) -> dict[str, Any]:
    return {"Tags": [{"Key": TAG, "Value": model}], "Environment": {}}


def test_what_is_created_is_described_as_it_was_asked_for(wire: WireClient) -> None:
    request = training_job(
        "Job-1", HyperParameters={"epochs": '"2"', "sagemaker_program": '"x.py"'},
        AlgorithmSpecification={"TrainingInputMode": "File", "TrainingImage": "image",
                                "MetricDefinitions": [{"Name": "loss", "Regex": "loss=(.*)"}]},
        ResourceConfig={"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
        DebugHookConfig={"S3OutputPath": "s3://bucket/debug"}, EnableNetworkIsolation=False,
        Tags=[{"Key": "team", "Value": "a"}],
    )  # fmt: skip
    client = wire.client()
    arn = client.create_training_job(**request)["TrainingJobArn"]
    assert arn == f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:training-job/job-1"
    told = client.describe_training_job(TrainingJobName="Job-1")
    assert told["OutputDataConfig"].pop("KmsKeyId") == ""
    assert {name: told[name] for name in request if name != "Tags"} == {
        name: value for name, value in request.items() if name != "Tags"
    }
    assert (told["TrainingJobStatus"], told["SecondaryStatus"]) == ("InProgress", "Starting")
    assert told["ModelArtifacts"]["S3ModelArtifacts"] == "s3://bucket/out/Job-1/output/model.tar.gz"
    assert told["SecondaryStatusTransitions"][0]["Status"] == "Starting"
    assert client.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "team", "Value": "a"}]


def test_what_became_of_a_job_is_described(wire: WireClient) -> None:
    client = wire.client()
    client.create_training_job(**training_job())
    made = wire.store.find("training-job", OWNER, "job")
    assert made is not None
    metric = {"MetricName": "eval_loss", "Value": 1.5, "Timestamp": made.created + 9}
    wire.store.update(made.id, "Failed", secondary="Failed", progress={
        "started": made.created + 1, "ended": made.created + 11, "artifact": "s3://bucket/else/model.tar.gz",
        "metrics": (metric,), "failure": "x" * 2000,
        "step": {"TotalStepCountPerEpoch": 3, "CurrentStep": 2, "CurrentEpoch": 1, "MaxEpoch": 2},
    })  # fmt: skip
    told = client.describe_training_job(TrainingJobName="job")
    assert (told["TrainingTimeInSeconds"], told["BillableTimeInSeconds"]) == (10, 10)
    assert (told["FinalMetricDataList"][0]["Value"], told["ProgressInfo"]["CurrentStep"]) == (1.5, 2)
    assert told["ModelArtifacts"]["S3ModelArtifacts"] == "s3://bucket/else/model.tar.gz"
    assert len(told["FailureReason"]) == 1024
    assert told["FailureReason"].endswith(" ...")
    assert told["TrainingEndTime"] > told["TrainingStartTime"]


@pytest.mark.parametrize("status", ["Failed", "Stopped"])
def test_a_job_that_ended_without_an_artifact_names_no_address_of_one(wire: WireClient, status: str) -> None:
    client = wire.client()
    client.create_training_job(**training_job())
    job = wire.store.find("training-job", OWNER, "job")
    assert job is not None
    if status == "Stopped":
        wire.store.request_stop(job.id)
    wire.store.update(job.id, status, secondary=status)
    assert client.describe_training_job(TrainingJobName="job")["ModelArtifacts"] == {"S3ModelArtifacts": ""}


def test_a_default_stopping_condition_is_a_day(wire: WireClient) -> None:
    request = training_job()
    del request["StoppingCondition"]
    wire.client().create_training_job(**request)
    told = wire.client().describe_training_job(TrainingJobName="job")
    assert told["StoppingCondition"] == {"MaxRuntimeInSeconds": 86400}


def test_the_place_in_the_queue_is_told(wire: WireClient) -> None:
    client = wire.client()
    for name in ("a", "b", "c"):
        client.create_training_job(**training_job(name))
    told = client.describe_training_job(TrainingJobName="c")
    assert told["SecondaryStatusTransitions"][-1]["StatusMessage"] == "Waiting for a device: place 3 in the queue"
    wire.store.claim("me", ["training-job"], 2**40)
    wire.store.claim("me", ["training-job"], 2**40)
    told = client.describe_training_job(TrainingJobName="c")
    assert told["SecondaryStatusTransitions"][-1]["StatusMessage"] == "Waiting for a device: place 1 in the queue"


@pytest.mark.parametrize(
    "given", [{"epochs": '"5"', "learning_rate": '"0.01"', "peft_type": '"lora"'},
              {"epochs": "5", "learning_rate": "0.01", "peft_type": "lora"}]
)  # fmt: skip
def test_hyperparameters_come_encoded_and_plain(wire: WireClient, given: dict[str, str]) -> None:
    reserved = {"sagemaker_submit_directory": f'"{CACHE}/x/sourcedir.tar.gz"', "sagemaker_region": '"us-west-2"'}
    wire.client().create_training_job(**training_job(HyperParameters=given | reserved))
    assert spec(wire).hyperparameters == {"epoch": "5", "learning_rate": "0.01", "peft_type": "lora"}


@pytest.mark.parametrize(
    ("more", "name"),
    [
        (tagged(FLAN), "flan-t5-base"),
        ({"Environment": {"LUTHIER_MODEL": "Qwen/Qwen3-0.6B"}}, "qwen3-0.6b"),
        ({"Environment": {"LUTHIER_MODEL": "acme/own-model"}}, "acme/own-model"),
        ({"Environment": {}, "InputDataConfig": [channel("train"), channel(
            "model", f"{CACHE}/luthier/{FLAN}/1.0.0/train/")]}, "flan-t5-base"),
        ({"Environment": {}, "InputDataConfig": [channel("train"), channel(
            "model", f"{CACHE}/huggingface-training/train-{FLAN}.tar.gz")]}, "flan-t5-base"),
        ({"Environment": {}, "InputDataConfig": [channel("train"), channel(
            "model", f"{CACHE}/luthier/luthier-tiny/1.0.0/train/")]}, "luthier/tiny"),
        ({"Environment": {}, "InputDataConfig": [channel("train"), channel(
            "model", "s3://bucket/any", HubAccessConfig={"HubContentArn": f"{HUB_CONTENT}/{FLAN}/1.0.0"})]},
         "flan-t5-base"),
        ({"Environment": {}, "InputDataConfig": [channel("train"), channel("model", "s3://bucket/own/")]},
         "s3://bucket/own/"),
        ({**tagged(FLAN), "InputDataConfig": [channel("train"), channel("model", "s3://bucket/own/")]},
         "s3://bucket/own/"),
    ],
)  # fmt: skip
def test_the_base_model_is_named_in_several_ways(wire: WireClient, more: dict[str, Any], name: str) -> None:
    wire.client().create_training_job(**training_job(**more))
    assert spec(wire).model == name
    assert spec(wire).kind == "auto"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"Environment": {}},
         "CreateTrainingJob names no base model; name one by the tag sagemaker-sdk:jumpstart-model-id"),
        (tagged("huggingface-text2text-flan-t5-bas"),
         f"tag {TAG}: unknown model 'huggingface-text2text-flan-t5-bas'; did you mean '{FLAN}'?"),
        ({"Environment": {"LUTHIER_MODEL": "/etc"}}, "Environment LUTHIER_MODEL: unknown model '/etc'"),
        ({"Environment": {"LUTHIER_MODEL": "../x"}}, "Environment LUTHIER_MODEL: unknown model '../x'"),
        ({"InputDataConfig": [channel("train"), channel("model", "s3://bucket/own/")]},
         "CreateTrainingJob names two base models: luthier/tiny (Environment LUTHIER_MODEL) and the weights at s3://b"),
        ({**tagged(FLAN), "Environment": {"LUTHIER_MODEL": "luthier/tiny"}},
         f"CreateTrainingJob names two base models: flan-t5-base (tag {TAG}) and luthier/tiny (Environment LUTHIER_MO"),
        ({"Environment": {}, "InputDataConfig": [channel("train"), channel("model", f"{CACHE}/a/b.tar.gz")]},
         f"channel model: {CACHE}/a/b.tar.gz is no artifact of a JumpStart model known here"),
        (tagged("model-txt2img-stabilityai-stable-diffusion-v2-1-base"), "stable-diffusion-2-1 cannot be tuned."),
        (tagged(LLAMA),
         "llama-2-7b is licensed under Llama 2 Community License, which you must accept first: read "
         "https://ai.meta.com/llama/license/, then set ModelAccessConfig.AcceptEula to true on the channel model"),
        ({**tagged(LLAMA), "InputDataConfig": [channel("train"), channel(
            "model", f"{PRIVATE}/x", ModelAccessConfig={"AcceptEula": False})]}, "llama-2-7b is licensed under"),
        ({"InputDataConfig": [channel("model", "s3://bucket/own/")]},
         "InputDataConfig: no channel training (or train) is given; it holds the rows to train on"),
        ({"InputDataConfig": [channel("train"), channel("training")]},
         "InputDataConfig, channel training: given twice (as train and as training); keep one of them"),
        ({"InputDataConfig": [channel("train"), channel("other")]},
         "InputDataConfig, channel other: no such channel; expected one of train, training, validation, val, test, mo"),
        ({"InputDataConfig": [channel("train", S3DataType="AugmentedManifestFile")]},
         "InputDataConfig, channel train: S3DataType AugmentedManifestFile is not supported; expected S3Prefix"),
        ({"InputDataConfig": [channel("train", "https://host/rows")]},
         "InputDataConfig, channel train: S3Uri https://host/rows: expected s3://BUCKET/PREFIX"),
        ({"InputDataConfig": [channel("train"), channel("model", S3DataType="ManifestFile")]},
         "InputDataConfig, channel model: S3DataType ManifestFile is not supported for a model"),
        ({"HyperParameters": {"sagemaker_submit_directory": '"/opt/ml/input/data/code/sourcedir.tar.gz"'},
          "InputDataConfig": [channel("train"), channel("code", "s3://mine/code.tar.gz")]},
         "HyperParameters, sagemaker_submit_directory=s3://mine/code.tar.gz: Luthier's own program trains"),
        ({"CheckpointConfig": {"S3Uri": "https://bucket/x"}},
         "CheckpointConfig.S3Uri https://bucket/x: expected s3://BUCKET/PREFIX"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 600, "MaxWaitTimeInSeconds": 599}},
         "StoppingCondition: MaxWaitTimeInSeconds 599 is below MaxRuntimeInSeconds 600"),
        ({"InputDataConfig": [channel("train") | {"RecordWrapperType": "RecordIO"}]},
         "InputDataConfig, channel train: RecordWrapperType RecordIO is not supported; expected None"),
        ({"InputDataConfig": [{"ChannelName": "train", "DataSource": {"FileSystemDataSource": {
            "FileSystemId": "fs-12345678901", "FileSystemAccessMode": "ro", "FileSystemType": "EFS",
            "DirectoryPath": "/"}}}]},
         "InputDataConfig, channel train: DataSource holds FileSystemDataSource; expected S3DataSource"),
        ({"HyperParameters": {"epoks": "3"}}, "unknown hyperparameter 'epoks'; did you mean 'epochs'?"),
        ({"HyperParameters": {"epoch": "0"}}, "epoch=0: expected a whole number of at least 1 and at most 1000"),
        ({"HyperParameters": {"epoch": '"1.5"'}}, "epoch=1.5: expected a whole number"),
        ({**tagged(FLAN), "HyperParameters": {"chat_dataset": "True"}},
         "flan-t5-base cannot be tuned on chat data; it takes instruction, autopilot"),
        ({"HyperParameters": {"sagemaker_submit_directory": '"s3://mine/code.tar.gz"'}},
         "HyperParameters, sagemaker_submit_directory=s3://mine/code.tar.gz: Luthier's own program trains"),
        ({"OutputDataConfig": {"S3OutputPath": "s3://bucket/out", "KmsKeyId": "alias/key"}},
         "OutputDataConfig.KmsKeyId=alias/key: Luthier does not encrypt what it stores yet; leave it out"),
        ({"ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1,
                             "VolumeKmsKeyId": "k"}}, "ResourceConfig.VolumeKmsKeyId=k: Luthier does not encrypt"),
        ({"OutputDataConfig": {"S3OutputPath": "https://bucket/out"}},
         "OutputDataConfig.S3OutputPath https://bucket/out: expected s3://BUCKET/PREFIX"),
        ({"ServerlessJobConfig": {"JobType": "FineTuning", "BaseModelArn":
            "arn:aws:sagemaker:us-east-1:aws:hub-content/SageMakerPublicHub/Model/m/1.0.0"}},
         "ServerlessJobConfig is not supported: name the base model and the training channel of a plain training job"),
    ],
)  # fmt: skip
def test_refusals(wire: WireClient, more: dict[str, Any], expected: str) -> None:
    client = wire.client()
    code, message = wire.refusal(client.create_training_job, **training_job(**more))
    assert code == "ValidationException"
    assert message.startswith(expected)
    assert "\n" not in message
    assert client.list_training_jobs()["TrainingJobSummaries"] == []


@pytest.mark.parametrize(
    "more",
    [{"InputDataConfig": [channel("train"), channel("model", f"{PRIVATE}/x", ModelAccessConfig={"AcceptEula": True})]},
     {"Environment": {"accept_eula": "true"}}],
)  # fmt: skip
def test_an_accepted_licence_is_recorded(wire: WireClient, more: dict[str, Any]) -> None:
    wire.client().create_training_job(**training_job(**{**tagged(LLAMA), **more}))
    record = spec(wire).eula
    assert record is not None
    assert record["licence"] == "Llama 2 Community License"
    assert record["url"] == "https://ai.meta.com/llama/license/"
    assert record["by"] == wire.principal.arn
    assert record["accepted"].endswith("Z")


def test_a_free_model_asks_for_no_licence(wire: WireClient) -> None:
    wire.client().create_training_job(**training_job())
    assert spec(wire).eula is None


def test_only_variables_that_mean_nothing_are_logged(wire: WireClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        wire.client().create_training_job(**training_job("a"))
        assert "Environment" not in caplog.text
        wire.client().create_training_job(**training_job("b", Environment={"LUTHIER_MODEL": "tiny", "OTHER": "1"}))
    assert "CreateTrainingJob: Environment is stored but has no effect" in caplog.text


def test_a_long_queue_is_not_counted_to_its_end(wire: WireClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_jobs, "QUEUE_COUNT_LIMIT", 2)
    client = wire.client()
    for name in ("a", "b", "c", "d"):
        client.create_training_job(**training_job(name))
    told = client.describe_training_job(TrainingJobName="d")
    message = told["SecondaryStatusTransitions"][-1]["StatusMessage"]
    assert message == "Waiting for a device: 2 jobs or more before it in the queue"


def test_a_name_is_taken_once(wire: WireClient) -> None:
    client = wire.client()
    client.create_training_job(**training_job())
    code, message = wire.refusal(client.create_training_job, **training_job())
    assert code == "ResourceInUse"
    assert message == (
        "Training job names must be unique within an AWS account and region, and a training job with this name already "
        f"exists (arn:aws:sagemaker:us-east-1:{ACCOUNT}:training-job/job)"
    )


def test_fields_without_effect_are_logged_once(wire: WireClient, caplog: pytest.LogCaptureFixture) -> None:
    more = {"VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}, "EnableNetworkIsolation": True}
    with caplog.at_level(logging.WARNING):
        wire.client().create_training_job(**training_job("a", **more))
        wire.client().create_training_job(**training_job("b", **more))
    lines = [record.getMessage() for record in caplog.records if "has no effect" in record.getMessage()]
    assert lines == [
        "CreateTrainingJob: RoleArn is stored but has no effect: no role is assumed",
        "CreateTrainingJob: VpcConfig is stored but has no effect: processes use this machine's network",
        "CreateTrainingJob: EnableNetworkIsolation is stored but has no effect: processes use this machine's network",
    ]


def test_stop_and_delete(wire: WireClient) -> None:
    client = wire.client()
    client.create_training_job(**training_job())
    code, message = wire.refusal(client.delete_training_job, TrainingJobName="job")
    assert (code, message) == (
        "ResourceInUse",
        f"Training job arn:aws:sagemaker:us-east-1:{ACCOUNT}:training-job/job is in status InProgress; stop it before "
        "it can be deleted.",
    )
    for _ in range(2):
        client.stop_training_job(TrainingJobName="job")
        assert client.describe_training_job(TrainingJobName="job")["TrainingJobStatus"] == "Stopping"
    made = wire.store.find("training-job", OWNER, "job")
    assert made is not None
    assert made.stop_requested is not None
    wire.store.update(made.id, "Stopped", secondary="Stopped")
    assert wire.refusal(client.stop_training_job, TrainingJobName="job") == (
        "ValidationException", "The request was rejected because the training job job is in status Stopped.",
    )  # fmt: skip
    client.delete_training_job(TrainingJobName="job")
    assert wire.store.find("training-job", OWNER, "job") is None


@pytest.mark.parametrize("operation", ["describe_training_job", "stop_training_job", "delete_training_job"])
def test_an_unknown_job(wire: WireClient, operation: str) -> None:
    refused = wire.refusal(getattr(wire.client(), operation), TrainingJobName="none")
    assert refused == ("ValidationException", "Requested resource not found.")


def test_a_job_belongs_to_its_region(wire: WireClient) -> None:
    wire.client().create_training_job(**training_job())
    assert wire.client(region="eu-west-1").list_training_jobs()["TrainingJobSummaries"] == []
    assert ROLE.endswith("SageMakerRole")


def test_a_jumpstart_job_in_network_isolation_is_taken(wire: WireClient) -> None:
    """The SDK then gives JumpStart's own script as the channel `code`."""
    script = {"sagemaker_submit_directory": '"/opt/ml/input/data/code/sourcedir.tar.gz"'}
    channels = [channel("training"), channel("code", f"{CACHE}/x/sourcedir.tar.gz")]
    wire.client().create_training_job(
        **training_job(EnableNetworkIsolation=True, HyperParameters=script, InputDataConfig=channels)
    )


def test_a_manifest_and_gzip_are_taken(wire: WireClient) -> None:
    listed = channel("training", "s3://bucket/list.json", S3DataType="ManifestFile") | {"CompressionType": "Gzip"}
    wire.client().create_training_job(**training_job(InputDataConfig=[listed]))
    job = wire.store.find("training-job", OWNER, "job")
    assert job is not None
    assert job.job.channels == {"training": "manifest+s3://bucket/list.json"}
