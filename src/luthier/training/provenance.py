"""Provenance, in run.json and the artifact: the model, data, settings and versions of a run."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from luthier.catalog.locate import Location
from luthier.catalog.shape import read_config
from luthier.data.prepare import Dataset
from luthier.jobfolder import FORMAT_VERSION
from luthier.training.resolved_job import ResolvedJob
from luthier.weights.converted_folder import conversion_source
from luthier.weights.fingerprint import adapter_hash, weights_hash

PACKAGES = ("luthier", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")


def model_provenance(location: Location, folder: Path) -> dict[str, Any]:
    """The base model: its name, source, and the hash of its weights; the adapter that was tuned further, if any."""
    config, adapter = read_config(folder), location.adapter
    continued = {"adapter": {"folder": str(adapter.folder), "sha256": adapter_hash(adapter.folder)}} if adapter else {}
    return continued | {
        "name": location.name,
        "folder": str(folder),
        "repository": location.repository,
        "revision": location.revision,
        "weights_sha256": weights_hash(folder),
        "converted_from": conversion_source(folder),
        "architecture": (config.get("architectures") or ["?"])[0],
    }


def run_provenance(
    job: ResolvedJob, dataset: Dataset, world_size: int, quantization: dict[str, Any] | None
) -> dict[str, Any]:
    """Everything needed to repeat the run; JSON-ready."""
    hyperparameters = job.hyperparameters
    return {
        "format_version": FORMAT_VERSION,
        "luthier_version": metadata.version("luthier"),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(job.spec.command),
        "model": model_provenance(job.location, job.base),
        "kind": dataset.kind,
        "template": dataset.template.to_json() if dataset.template else None,
        "template_origin": dataset.template_origin,
        "settings": dict(hyperparameters),
        "given": sorted(hyperparameters.explicit),
        "reserved": hyperparameters.reserved,
        "device": str(job.device),
        "dtype": job.dtype_name,
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "python": sys.version.split()[0],
        "host_cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "data": {
            "fingerprint": dataset.fingerprint,
            "files": dataset.file_hashes,
            "counts": asdict(dataset.counts),
        },
        "eula": job.spec.eula and dict(job.spec.eula),
        "warnings": list(dataset.warnings),
        "quantization": quantization,
        "ranks": world_size,
    }
