"""Every entry of the catalogue is tuned under a name that people use for it, by its own defaults.

The weights are a small random model of its class, where real weights would lie: $LUTHIER_MODELS/<org>/<name>.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_models import ALL, OTHERS, network_of, write_model, write_rows
from training.job_folders import run

from luthier.catalog import entries, find
from luthier.catalog.entry import Entry
from luthier.jobfolder import JobFolder
from luthier.jobspec import JobSpec
from luthier.weights.resolved_model import resolve_model

EULA = {"accepted": "2026-01-01T00:00:00Z", "licence": "L", "url": "u", "by": "me"}
TUNABLE = [entry for entry in entries() if entry.is_tunable and entry.source != "embedded"]


def build_of(entry: Entry) -> str:
    """The name in tiny_models of this entry's build."""
    if entry.architecture == "FalconForCausalLM":
        return "falcon_40b" if entry.shape.get("new_decoder_architecture") else "falcon_7b"
    return next(name for name in (*ALL, *OTHERS) if type(network_of(name)).__name__ == entry.architecture)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for $LUTHIER_MODELS with every entry's repository in it."""
    root = tmp_path_factory.mktemp("mirror")
    for entry in TUNABLE:
        build = root / "builds" / build_of(entry)
        if not build.exists():
            write_model(build, build.name)
        place = root / entry.source
        place.parent.mkdir(exist_ok=True)
        if not place.exists():
            place.symlink_to(build)
    return root


@pytest.mark.parametrize("entry", TUNABLE, ids=lambda entry: entry.id)
def test_it_is_tuned_by_its_name_and_defaults(
    entry: Entry, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_MODELS", str(mirror))
    name = entry.aliases[0] if entry.aliases else entry.source  # JumpStart's id, where it has one
    assert find(name) is entry
    rows = write_rows(tmp_path / "rows" / "train.jsonl", 12)
    if entry.default_template:
        pairs = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
        named = [{"prompt": row["instruction"], "completion": row["response"]} for row in pairs]
        rows.write_text("".join(json.dumps(row) + "\n" for row in named), "utf-8")
    folder = JobFolder(tmp_path / "run")
    eula = EULA if entry.licence.eula else None
    spec = JobSpec(model=name, device="cpu", score_rows=0, eula=eula, hyperparameters={"max_steps": "1"})
    folder.create(spec, {"training": rows.parent})
    run(folder)

    record = json.loads((folder.root / "run.json").read_text("utf-8"))
    assert record["model"]["name"] == entry.id
    lora = entry.default_hyperparameters.get("peft_type", "lora") == "lora"
    assert (folder.model / "adapter_config.json").is_file() == lora
    if lora:
        stored = json.loads((folder.model / "adapter_config.json").read_text("utf-8"))
        assert set(stored["target_modules"]) == set(entry.lora_targets)
        assert stored["r"] == entry.default_hyperparameters.get("lora_r", 8)
    if entry.default_template:
        assert json.loads((folder.model / "template.json").read_text("utf-8"))["prompt"] == "{prompt}"
    target = resolve_model(str(folder.root), lambda text: None)
    assert target.load(torch.device("cpu"), torch.float32).has_adapter == lora
