"""Job specs and progress in place of facts; a training job of its own for each AutoML job

Version 0.3 kept an AutoML job in one row. That row becomes the training job NAME-tr-1: its id names the job folder. A
new row becomes the AutoML job.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from luthier.catalog.entry import find, reads_pairs
from luthier.jobfolder import CHANNEL_ALIASES
from luthier.jobs.automl import training_job_name, training_request

revision = "0004"
down_revision = "0003"

_JSON = sa.JSON(none_as_null=True)
_OLD = ("id", "kind", "account", "region", "name", "key", "status", "secondary", "created", "modified", "revision",
        "open", "stop_requested", "owner", "lease")  # fmt: skip
_resources = sa.table(
    "resources",
    *(sa.column(name) for name in _OLD if name != "open"),
    sa.column("open", sa.Boolean),
    *(sa.column(name, _JSON) for name in ("request", "facts", "spec", "progress")),
    *(sa.column(name) for name in ("parent", "priority", "attempt")),
)
# Secondary statuses of AutoML jobs, as those of their training jobs.
_SECONDARY: Mapping[str, str] = {
    "PreTraining": "Downloading",
    "TrainingModels": "Training",
    "DeployingModel": "Uploading",
    "ModelDeploymentError": "Completed",
    "MaxAutoMLJobRuntimeReached": "MaxRuntimeExceeded",
}


def upgrade() -> None:
    op.add_column("resources", sa.Column("spec", _JSON))
    op.add_column("resources", sa.Column("progress", _JSON))
    op.add_column("resources", sa.Column("parent", sa.String(32)))
    op.alter_column("resources", "stop_asked", new_column_name="stop_requested")
    parents = {str(row.id): uuid.uuid4().hex for row in _rows("automl-job")}
    for row in _rows("training-job"):
        _set(row, spec=_training_spec(row), progress=_training_progress(row.facts))
    for row in _rows("automl-job"):
        _split(row, parents[row.id])
    for kind in ("model", "endpoint-config", "endpoint"):
        for row in _rows(kind):
            _set(row, progress=_progress(row), parent=parents.get(row.facts.get("made_by")))
    op.drop_index("ix_resources_queue", "resources")
    for name in ("facts", "priority", "attempt"):
        op.drop_column("resources", name)
    op.create_index("ix_resources_queue", "resources", ["open", "kind", "created"])
    op.create_index("ix_resources_parent", "resources", ["parent"])


def _rows(kind: str) -> Sequence[Any]:
    return op.get_bind().execute(sa.select(_resources).where(_resources.c.kind == kind)).all()


def _set(row: Any, **values: Any) -> None:
    op.get_bind().execute(sa.update(_resources).where(_resources.c.id == row.id).values(**values))


def _split(row: Any, parent: str) -> None:
    """Make a training job of an AutoML job's row, and write the AutoML job as a new row."""
    facts = row.facts
    name = training_job_name(row.name)
    is_taken = sa.select(_resources.c.id).where(
        _resources.c.kind == "training-job", _resources.c.account == row.account, _resources.c.region == row.region,
        _resources.c.key == name,
    )  # fmt: skip
    if op.get_bind().execute(is_taken).first() is not None:
        name = f"{name}-{row.id[:8]}"
    transitions = [
        {**one, "Status": _SECONDARY.get(one["Status"], one["Status"])} for one in facts.get("transitions", ())
    ]
    training = training_request(row.request, row.region) | {"TrainingJobName": name}
    _set(
        row, kind="training-job", name=name, key=name, request=training, parent=parent,
        secondary=_SECONDARY.get(row.secondary, row.secondary),
        spec=_automl_spec(row, f"{training['OutputDataConfig']['S3OutputPath']}/output/"),
        progress=_training_progress(facts | {"transitions": transitions}),
    )  # fmt: skip
    deploy = row.request.get("ModelDeployConfig")
    planned = (deploy.get("EndpointName") or f"{row.name}-{row.id[:8]}") if deploy else ""
    progress = {
        "ended": facts.get("ended"),
        "failure": facts.get("failure") or "",
        "candidate": facts.get("candidate"),
        "endpoint": facts.get("deployed") or planned,
        "deployed": bool(facts.get("deployed")),
        "deploy_failure": facts.get("deploy_failure") or "",
    }
    kept = {name: getattr(row, name) for name in _OLD}
    op.get_bind().execute(
        sa.insert(_resources).values(
            **kept | {"id": parent, "open": False, "owner": None, "lease": None, "stop_requested": None},
            request=row.request, facts={}, progress=progress, priority=0, attempt=0,
        )
    )  # fmt: skip


def _training_progress(facts: Mapping[str, Any]) -> dict[str, Any]:
    candidate = facts.get("candidate") or {}
    return {
        "started": facts.get("started"),
        "ended": facts.get("ended"),
        "transitions": [
            {"status": one["Status"], "started": one["StartTime"], "message": one["StatusMessage"],
             "ended": one.get("EndTime")}
            for one in facts.get("transitions", ())
        ],
        "failure": facts.get("failure") or "",
        "artifact": facts.get("artifact") or "",
        "step": facts.get("progress") or {},
        "metrics": facts.get("metrics") or [],
        "candidate_metrics": candidate.get("CandidateProperties", {}).get("CandidateMetrics", []),
    }  # fmt: skip


def _progress(row: Any) -> dict[str, Any] | None:
    facts = row.facts
    if row.kind == "endpoint-config":
        return None
    if row.kind == "model":
        return {"eula": facts.get("eula")}
    pending = facts.get("pending")
    return {
        "variants": list(_variants(facts, facts.get("address") or "")),
        "failure": facts.get("failure") or "",
        "updates": facts.get("updates", 0),
        "pending": pending and {
            "number": pending["number"],
            "config": pending["EndpointConfigName"],
            "started": pending["started"],
            "variants": list(_variants(pending, "")),
        },
    }  # fmt: skip


def _variants(stored: Mapping[str, Any], address: str) -> Iterator[dict[str, Any]]:
    for one in stored.get("variants", ()):
        yield {
            "name": one["VariantName"],
            "model": one.get("ModelName", ""),
            "image": one.get("Image", ""),
            "artifact": one.get("ModelData") or "",
            "environment": one.get("Environment", {}),
            "weight": one.get("Weight", 1.0),
            "instance_count": one.get("InstanceCount", 1),
            "folder": one.get("Folder") or "",
            "address": one.get("address") or address,
        }


def _training_spec(row: Any) -> dict[str, Any]:
    output = row.request["OutputDataConfig"]
    return _spec(row) | {
        "channels": _channels(row.request.get("InputDataConfig", ()), "ChannelName"),
        "max_seconds": float(row.request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 86_400)),
        "max_seconds_member": "StoppingCondition.MaxRuntimeInSeconds",
        "output": f"{output['S3OutputPath'].rstrip('/')}/{row.name}/output/",
        "compressed": output.get("CompressionType") != "NONE",
        "command": ["CreateTrainingJob", row.name],
    }


def _automl_spec(row: Any, output: str) -> dict[str, Any]:
    config = row.request["AutoMLProblemTypeConfig"].get("TextGenerationJobConfig", {})
    criteria = config.get("CompletionCriteria", {})
    limits = {"MaxRuntimePerTrainingJobInSeconds": 72 * 3600} | {
        name: seconds for name, seconds in criteria.items() if name.startswith("Max") and name.endswith("InSeconds")
    }
    member = min(limits, key=lambda name: limits[name])
    channels = _channels(row.request.get("AutoMLJobInputDataConfig", ()), "ChannelType")
    entry = find(str(row.facts.get("base_model", "")))
    rules: dict[str, str] = {}
    if "validation" not in channels:
        rules["validation_split_ratio"] = str(row.request.get("DataSplitConfig", {}).get("ValidationFraction", 0.2))
    if entry and entry.autopilot:
        rules["max_input_length"] = str(entry.autopilot.tokens)
        if reads_pairs(entry):
            rules["max_output_length"] = str(entry.autopilot.tokens)
    spec = _spec(row)
    return spec | {
        "channels": channels,
        "hyperparameters": rules | spec["hyperparameters"],
        "max_rows": entry.autopilot.rows if entry and entry.autopilot else None,
        "max_truncated": 0.6,
        "max_seconds": float(limits[member]),
        "max_seconds_member": f"CompletionCriteria.{member}",
        "output": output,
        "command": ["CreateAutoMLJobV2", row.name],
    }


def _spec(row: Any) -> dict[str, Any]:
    facts = row.facts
    return {
        "model": str(facts.get("base_model", "")),
        "kind": facts.get("kind", "auto"),
        "channels": {},
        "hyperparameters": {name: str(value) for name, value in facts.get("hyperparameters", {}).items()},
        "device": "auto",
        "ranks": 0,
        "score_rows": 200,
        "max_rows": None,
        "max_truncated": None,
        "compressed": True,
        "eula": facts.get("eula"),
        "version": 1,
    }


def _channels(channels: Sequence[Mapping[str, Any]], member: str) -> dict[str, str]:
    return {
        CHANNEL_ALIASES[channel.get(member, "training")]: channel["DataSource"]["S3DataSource"]["S3Uri"]
        for channel in channels
        if channel.get(member, "training") in CHANNEL_ALIASES
    }
