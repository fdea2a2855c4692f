"""Every text class of the installed transformers is tuned by LoRA and in full; encoders are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import every_class, matrix
from architectures.tiny_classes import ENCODERS, EXCEPTIONS, model_types, network_of_type

from luthier.errors import UserError
from luthier.weights.load import load_model

QUICK = ("bart", "deepseek_v3", "falcon_mamba", "gemma3n_text", "llama4_text", "nemotron_h", "phimoe")


@pytest.mark.parametrize("model_type", QUICK)
def test_a_class_is_tuned(model_type: str, tmp_path: Path) -> None:
    assert every_class.prove_class(model_type, tmp_path) == every_class.read()[model_type]


@pytest.mark.parametrize("model_type", ["bert", "xlnet"])
def test_an_encoder_is_refused(model_type: str, tmp_path: Path) -> None:
    network_of_type(model_type).save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="is an encoder: its tokens attend to later ones"):
        load_model(tmp_path, torch.device("cpu"), torch.float32)


def test_a_class_that_needs_more_than_tokens_is_refused(tmp_path: Path) -> None:
    network_of_type("xmod").save_pretrained(str(tmp_path))
    with pytest.raises(UserError, match="XmodForCausalLM does not run on tokens alone: Input language unknown"):
        load_model(tmp_path, torch.device("cpu"), torch.float32)


def test_the_exceptions_are_classes() -> None:
    assert set(ENCODERS) <= set(EXCEPTIONS) <= set(model_types())


def test_the_docs_show_the_last_complete_sweep() -> None:
    outcomes = every_class.read()
    assert set(outcomes) == set(model_types()) - set(EXCEPTIONS), "run the complete sweep again (-m slow)"
    assert every_class.render(outcomes) in matrix.PAGE.read_text("utf-8"), "run the complete sweep again (-m slow)"


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ENCODERS)
def test_every_encoder_is_refused(model_type: str, tmp_path: Path) -> None:
    test_an_encoder_is_refused(model_type, tmp_path)


@pytest.mark.slow
def test_the_complete_sweep(tmp_path: Path) -> None:
    """All classes, some minutes; writes swept.json and docs/models.md."""
    outcomes: dict[str, dict[str, str]] = {}
    failed: list[str] = []
    for model_type in model_types():
        if model_type in EXCEPTIONS:
            continue
        place = tmp_path / model_type
        place.mkdir()
        try:
            outcomes[model_type] = every_class.prove_class(model_type, place)
        except Exception as error:
            failed.append(f"{model_type}: {type(error).__name__}: {error}"[:400])
    assert not failed, "\n".join(failed)
    every_class.write(outcomes)
