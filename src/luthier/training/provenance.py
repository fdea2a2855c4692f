"""run.json and the artifact's provenance: what was trained, on what, with which settings and versions."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from luthier.catalog.hyperparameters import Hyperparameters
from luthier.catalog.locate import Location
from luthier.catalog.shape import read_config
from luthier.data.prepare import Dataset
from luthier.jobfolder import FORMAT_VERSION
from luthier.jobspec import JobSpec
from luthier.weights.convert import origin
from luthier.weights.fingerprint import weights_hash

PACKAGES = ("luthier", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")


def model_provenance(location: Location, folder: Path) -> dict[str, Any]:
    """Which base model, from where, and the hash of its weights."""
    config = read_config(folder)
    return {
        "name": location.name,
        "folder": str(folder),
        "repository": location.repository,
        "revision": location.revision,
        "weights_sha256": weights_hash(folder),
        "converted_from": origin(folder),
        "architecture": (config.get("architectures") or ["?"])[0],
    }


def run_provenance(
    spec: JobSpec,
    hyperparameters: Hyperparameters,
    model: Mapping[str, Any],
    prepared: Dataset,
    device: str,
    dtype: str,
) -> dict[str, Any]:
    """Everything needed to do the run again; JSON-ready."""
    return {
        "format_version": FORMAT_VERSION,
        "luthier_version": metadata.version("luthier"),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(spec.command),
        "model": dict(model),
        "kind": prepared.kind,
        "template": prepared.template.to_json() if prepared.template else None,
        "template_origin": prepared.template_origin,
        "settings": dict(hyperparameters),
        "given": sorted(hyperparameters.explicit),
        "reserved": hyperparameters.reserved,
        "device": device,
        "dtype": dtype,
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "python": sys.version.split()[0],
        "host_cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "data": {
            "fingerprint": prepared.fingerprint,
            "files": prepared.file_hashes,
            "counts": asdict(prepared.counts),
        },
        "eula": spec.eula and dict(spec.eula),
        "warnings": list(prepared.warnings),
    }
