"""How this folder was made: run with the code and the tests of version 0.3 (commit bcef7bd) on PYTHONPATH.

    PYTHONPATH=OLD/src:OLD/tests python make.py FOLDER

store.sql is the database's dump, answers.json what 0.3 answered about it, jobs/ the folders of the two jobs that were
running when their supervisor was killed.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any


desk_of_0_3 = importlib.import_module("service.desk")
workbench = importlib.import_module("service.supervisor.workbench")
OWNER = desk_of_0_3.OWNER
FAKE_SERVER = (sys.executable, str(Path(str(workbench.__file__)).with_name("fake_server.py")))
ROWS = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data/rows"}}
OUTPUT = {"OutputDataConfig": {"S3OutputPath": "s3://results/out/"}}
STOPS = {"hang_at": "2", "steps": "4"}


def main(folder: Path, work: Path) -> None:
    bench = workbench.Bench(work, slots=("cpu", "cpu"))
    bench.new_supervisor(serving=FAKE_SERVER)
    desk = desk_of_0_3.Desk(work / "home")
    client = desk.client()

    def train(name: str, **more: str) -> Any:
        channels = [desk_of_0_3.channel("train", "s3://data/rows")]
        client.create_training_job(**desk_of_0_3.training_job(name, InputDataConfig=channels, **OUTPUT))
        return given("training-job", name, more)

    def tune(name: str, hyperparameters: dict[str, str] | None = None, **more: Any) -> Any:
        channels = [{"ChannelType": "training", "DataSource": ROWS}]
        request = desk_of_0_3.automl_job(name, AutoMLJobInputDataConfig=channels, **OUTPUT)
        client.create_auto_ml_job_v2(**request, Tags=[{"Key": "team", "Value": name}], **more)
        return given("automl-job", name, hyperparameters or {})

    def given(kind: str, name: str, hyperparameters: dict[str, str]) -> Any:
        job = bench.store.find(kind, OWNER, name)
        known = {"hyperparameters": {**job.facts["hyperparameters"], **hyperparameters}}
        return bench.store.update(job.id, facts=known)

    finished = train("finished")
    ended = [finished, train("failed", fail="the rows are of no use"), tune("auto-done"),
             tune("auto-failed", {"fail": "no rows at all"}),
             tune("auto-deployed", ModelDeployConfig={"EndpointName": "mine"})]  # fmt: skip
    bench.finish(*ended)
    bench.finish(tune("auto-undeployed", ModelDeployConfig={"EndpointName": "mine"}))
    for job in (train("stopped", **STOPS), tune("auto-stopped", STOPS)):
        bench.until(lambda job=job: (bench.folder(job) / "checkpoints" / "step-000002").exists())
        bench.store.ask_stop(job.id)
        bench.finish(job)
    artifact = client.describe_training_job(TrainingJobName="finished")["ModelArtifacts"]["S3ModelArtifacts"]
    client.create_model(ModelName="own", ExecutionRoleArn=desk_of_0_3.training_job()["RoleArn"],
                        PrimaryContainer={"Image": "image", "ModelDataUrl": artifact})  # fmt: skip
    variant = {"VariantName": "v", "ModelName": "own", "InitialInstanceCount": 1, "InstanceType": "ml.g5.xlarge"}
    client.create_endpoint_config(EndpointConfigName="own", ProductionVariants=[variant])
    client.create_endpoint(EndpointName="own", EndpointConfigName="own")
    bench.until(lambda: client.describe_endpoint(EndpointName="own")["EndpointStatus"] == "InService")
    running = [train("running", **STOPS), tune("auto-running", STOPS, ModelDeployConfig={"EndpointName": "later"})]
    for job in running:
        bench.until(lambda job=job: (bench.folder(job) / "checkpoints" / "step-000002").exists())
    bench.until(lambda: all(bench.now(job).secondary in ("Training", "TrainingModels") for job in running))
    train("queued")
    tune("auto-queued")
    for worker in bench.supervisor._works.values():
        worker.kill()
    write(folder, work, running, answers(client))


def answers(client: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for operation, items, name, describe in (
        ("list_training_jobs", "TrainingJobSummaries", "TrainingJobName", "describe_training_job"),
        ("list_auto_ml_jobs", "AutoMLJobSummaries", "AutoMLJobName", "describe_auto_ml_job_v2"),
        ("list_endpoints", "Endpoints", "EndpointName", "describe_endpoint"),
        ("list_models", "Models", "ModelName", "describe_model"),
        ("list_endpoint_configs", "EndpointConfigs", "EndpointConfigName", "describe_endpoint_config"),
    ):
        found[operation] = getattr(client, operation)(MaxResults=100)[items]
        found[describe] = {item[name]: getattr(client, describe)(**{name: item[name]}) for item in found[operation]}
        for described in found[describe].values():
            described.pop("ResponseMetadata")
    return found


def write(folder: Path, work: Path, running: list[Any], answered: dict[str, Any]) -> None:
    database = sqlite3.connect(work / "home" / "luthier.sqlite")
    text = "\n".join(database.iterdump())
    text = text.replace(str(work), "/work-of-0.3")
    (folder / "store.sql").write_text(text + "\n", "utf-8")
    (folder / "answers.json").write_text(json.dumps(answered, indent=1, default=str, sort_keys=True) + "\n", "utf-8")
    shutil.rmtree(folder / "jobs", ignore_errors=True)
    for job in running:
        source = work / "home" / "jobs" / job.id
        shutil.copytree(source, folder / "jobs" / job.id, ignore=shutil.ignore_patterns("data", ".lock"))


if __name__ == "__main__":
    main(Path(__file__).parent, Path(sys.argv[1]))
