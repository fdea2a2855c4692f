"""The order: what a job folder asks for, over what is known of its model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.catalog import find
from luthier.errors import SettingError, UserError
from luthier.jobfolder import JobFolder
from luthier.jobspec import JobSpec
from luthier.training.resolved_job import ResolvedJob, resolve_job

EULA = {"accepted": "2026-01-01T00:00:00Z", "licence": "L", "url": "u", "by": "me"}
DEMARCATION = "add_input_output_demarcation_key"


def order_of(place: Path, model: str | Path, row: dict[str, Any] | None = None, /, **settings: str) -> ResolvedJob:
    """The order of a job over one row, as its folder says it; the model has no weights, which an order never reads."""
    rows = place / "rows.jsonl"
    rows.write_text(json.dumps(row or {"prompt": "p", "completion": "c"}) + "\n")
    folder = JobFolder(place / "run")
    folder.create(JobSpec(model=str(model), device="cpu", eula=EULA, hyperparameters=settings), {"training": rows})
    return resolve_job(folder, lambda text: None)


def model_at(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("model", "needs"), [("Stable Diffusion 2.1", "image model"), ("llama-2-7b-neuron", "as llama-2-7b")]
)
def test_a_model_that_is_known_and_cannot_be_tuned(model: str, needs: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"cannot be tuned\. It .*{needs}"):
        order_of(tmp_path, model)


def test_the_catalogue_s_path_brings_defaults_ranges_and_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = find("bloom-3b")
    assert entry is not None
    monkeypatch.setenv("LUTHIER_MODELS", str(tmp_path / "models"))
    model_at(tmp_path / "models" / entry.source, architectures=["BloomForCausalLM"])
    order = order_of(tmp_path, "Bloom 3B")
    assert order.entry is entry
    family = entry.default_hyperparameters
    assert {name: order.hyperparameters[name] for name in family} == family
    assert order.data.context_length == entry.context_length  # a Bloom's config names none


def test_the_config_s_own_context_goes_before_the_entry_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_MODELS", str(tmp_path / "models"))
    model_at(tmp_path / "models" / "openai-community" / "gpt2-xl", n_positions=96)
    assert order_of(tmp_path, "gpt2-xl").data.context_length == 96


def test_a_value_outside_of_the_model_s_range(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^seed=2000: expected "):
        order_of(tmp_path, "llama-2-7b", seed="2000")


def test_a_causal_model_outside_the_catalogue(tmp_path: Path) -> None:
    order = order_of(tmp_path, model_at(tmp_path / "mine", max_position_embeddings=64))
    assert order.entry is not None
    assert (order.data.default_template, order.data.context_length, order.data.demarcation) == (None, 64, True)
    assert order.entry.id == str(tmp_path / "mine")


def test_an_encoder_decoder_outside_the_catalogue(tmp_path: Path) -> None:
    folder = model_at(tmp_path / "mine", is_encoder_decoder=True)
    order = order_of(tmp_path, folder)
    assert order.data.default_template == ("{prompt}", "{completion}")
    assert order.data.demarcation is False


def test_an_encoder_decoder_takes_its_user_s_word_and_rows_only(tmp_path: Path) -> None:
    folder = model_at(tmp_path / "mine", is_encoder_decoder=True)
    assert order_of(tmp_path, folder, **{DEMARCATION: "True"}).data.demarcation is True
    (tmp_path / "second").mkdir()
    with pytest.raises(UserError, match="cannot be tuned on chat data; it takes instruction, autopilot"):
        order_of(tmp_path / "second", folder, {"messages": [{"role": "user", "content": "a"}]})


def test_a_model_fetched_from_the_hub_is_read_like_one_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_at(tmp_path / "fetched", is_encoder_decoder=True)
    monkeypatch.setattr("luthier.training.resolved_job.fetch", lambda location, say: folder)
    order = order_of(tmp_path, "some-org/unheard-of-t5")
    assert order.entry is not None
    assert (order.entry.kinds, order.data.demarcation) == (("instruction", "autopilot"), False)
    assert order.location.folder == folder
