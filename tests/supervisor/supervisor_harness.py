"""A supervisor in this process, on a home of its own, with the fake engine and folders for buckets."""

from __future__ import annotations

import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.api import channels
from luthier.errors import NoObjectsError, UserError
from luthier.jobs.resource import Resource
from luthier.jobs.settings import ServiceSettings
from luthier.jobs.store import Store
from luthier.jobspec import JobSpec
from luthier.launchers.launcher import Launcher
from luthier.launchers.local import LocalLauncher
from luthier.supervisor.context import DevicePool, SupervisorContext
from luthier.supervisor.loop import Supervisor, new_owner

FAKE_ENGINE = (sys.executable, str(Path(__file__).with_name("fake_engine.py")))
FAKE_SERVER = (sys.executable, str(Path(__file__).with_name("fake_server.py")))
OWNER = ("123456789012", "us-east-1")
ROLE = "arn:aws:iam::123456789012:role/tester"


class FolderObjects:
    """Buckets as folders; `faults` are raised, one for each transfer."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: list[Exception] = []
        self.missing_buckets: set[str] = set()

    def check_bucket(self, uri: str) -> None:
        if uri.removeprefix("s3://").partition("/")[0] in self.missing_buckets:
            raise UserError(f"{uri}: The specified bucket does not exist")

    def path(self, uri: str) -> Path:
        return self.root / uri.removeprefix("s3://")

    def _fault(self) -> None:
        if self.faults:
            raise self.faults.pop(0)

    def download_prefix(self, uri: str, folder: Path) -> Path:
        self._fault()
        source = self.path(uri)
        if source.is_file():
            shutil.copyfile(source, folder / source.name)
        elif source.is_dir():
            shutil.copytree(source, folder, dirs_exist_ok=True)
        else:
            raise NoObjectsError(f"{uri}: no objects found")
        return folder

    def upload_file(self, path: Path, uri: str) -> None:
        self._fault()
        target = self.path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.part")
        shutil.copyfile(path, temporary)
        temporary.replace(target)


class Harness:
    """One home with its store and buckets; supervisors come and go."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.settings = replace(ServiceSettings(home=root / "home", stop_seconds=5.0), **settings)
        self.objects = FolderObjects(root / "buckets")
        self.store = Store.open(self.settings.database_url)
        rows = self.objects.path("s3://data/rows")
        rows.mkdir(parents=True)
        (rows / "train.jsonl").write_text('{"instruction": "a", "context": "", "response": "b"}\n')
        self.supervisor = self.new_supervisor()

    def new_supervisor(self, launcher: Launcher | None = None) -> Supervisor:
        """A supervisor with a name of its own, as after a restart; nothing of it has begun."""
        devices = DevicePool(self.settings.slots)
        context = SupervisorContext(
            settings=self.settings, store=self.store, objects=self.objects, owner=new_owner(), devices=devices,
            launcher=launcher or LocalLauncher({"training": FAKE_ENGINE, "serving": FAKE_SERVER}),
        )  # fmt: skip
        self.supervisor = Supervisor(context)
        return self.supervisor

    def create_job(self, name: str, request: Mapping[str, Any] | None = None, model: str = "luthier/tiny",
                   **hyperparameters: Any) -> Resource:  # fmt: skip
        """Queue a training job as CreateTrainingJob does."""
        channel = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data/rows"}}
        whole = {
            "TrainingJobName": name,
            "RoleArn": ROLE,
            "InputDataConfig": [{"ChannelName": "training", "DataSource": channel}],
            "OutputDataConfig": {"S3OutputPath": "s3://results/out/"},
            "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        } | dict(request or {})
        spec = JobSpec(
            model=model,
            kind="instruction",
            channels=channels.resolve(whole["InputDataConfig"], {}),
            hyperparameters={key: str(value) for key, value in hyperparameters.items()},
            max_seconds=whole["StoppingCondition"]["MaxRuntimeInSeconds"],
            max_seconds_member="StoppingCondition.MaxRuntimeInSeconds",
            output=f"{whole['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{name}/output/",
            compressed=whole["OutputDataConfig"].get("CompressionType") != "NONE",
            checkpoints=whole.get("CheckpointConfig", {}).get("S3Uri", ""),
            command=("CreateTrainingJob", name),
        )
        return self.store.create("training-job", OWNER, name, whole, secondary="Starting", spec=spec)

    def reload(self, resource: Resource) -> Resource:
        found = self.store.get(resource.id)
        assert found is not None
        return found

    def run_until(self, reached: Callable[[], Any], seconds: float = 20) -> None:
        """Let the supervisor work until `reached`."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, "it was not reached in time"
            self.supervisor.round()
            time.sleep(0.02)

    def run_to_end(self, *jobs: Resource, seconds: float = 20) -> list[Resource]:
        """Let the supervisor work until all `jobs` have ended."""
        self.run_until(lambda: all(self.reload(job).ended for job in jobs), seconds)
        return [self.reload(job) for job in jobs]

    def folder(self, job: Resource) -> Path:
        return self.settings.jobs / job.id

    def run_count(self, job: Resource) -> int:
        """How often the engine was started on a job."""
        path = self.folder(job) / "runs"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def weights(self, job: Resource) -> bytes:
        """The uploaded model's weights."""
        archive = self.objects.path(f"s3://results/out/{job.name}/output/model.tar.gz")
        with tarfile.open(archive) as tar:
            inside = [name for name in tar.getnames() if name.endswith("model.safetensors")]
            handle = tar.extractfile(inside[0])
            assert handle is not None
            return handle.read()

    def close(self) -> None:
        self.supervisor.shut_down()
        self.store.close()


@contextmanager
def supervisor_harness(root: Path, **settings: Any) -> Iterator[Harness]:
    harness = Harness(root, **settings)
    try:
        yield harness
    finally:
        harness.close()
