"""The catalogue's entries: their files, their names, and what they say of architectures whose shape is known."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, PreTrainedModel

from luthier.catalog import entries, find
from luthier.catalog.entry import KINDS, Entry, read_entry
from luthier.catalog.hyperparameters import parse
from luthier.errors import LuthierError
from luthier.layers.attention import PACKS_CLEANLY
from luthier.weights.lora import linear_names

# The publishers' config.json files, and for luthier/tiny pretraining/recipe.yaml.
SHAPES: dict[str, Any] = {
    "luthier/tiny": LlamaConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=640, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
    ),
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25, n_positions=1024),
    "llama-2-7b": LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=4096, tie_word_embeddings=False,
    ),
    "redpajama-incite-base-3b": GPTNeoXConfig(
        vocab_size=50432, hidden_size=2560, intermediate_size=10240, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=2048, tie_word_embeddings=False,
    ),
    "smollm2-135m": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
    ),
}  # fmt: skip
SOUND = {
    "id": "m", "name": "M", "source": "org/m", "architecture": "LlamaForCausalLM", "parameters": 1,
    "context_length": 8, "licence": "MIT", "kinds": ["domain"],
}  # fmt: skip


def every_entry() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.id)


def read(**changes: Any) -> Entry:
    stored = {name: value for name, value in (SOUND | changes).items() if value is not None}
    return read_entry("m.yaml", yaml.safe_dump(stored))


def test_every_file_is_an_entry() -> None:
    files = [file for file in (resources.files("luthier.catalog") / "entries").iterdir() if file.name[0] != "."]
    assert len(entries()) == len(files)
    assert all(file.name.endswith(".yaml") for file in files)
    assert find("luthier/tiny") in entries()


@every_entry()
def test_an_entry_holds_together(entry: Entry) -> None:
    assert entry.kinds
    assert set(entry.kinds) <= set(KINDS)
    assert entry.parameters > 0
    assert entry.context_length >= 512
    assert set(entry.verified) <= {"architecture", "parameters", "context_length", "licence", "lora_targets"}
    assert entry.source == "embedded" or len(entry.source.split("/")) == 2
    assert not entry.eula_required or entry.licence_url
    assert entry.default_template is None or set(entry.default_template) == {"prompt", "completion"}
    assert entry.clean_packing == (entry.architecture in PACKS_CLEANLY)
    parse({}, entry.default_hyperparameters)


@every_entry()
def test_an_entry_is_found_by_each_of_its_names_in_any_case(entry: Entry) -> None:
    assert entry.id in entry.names
    for name in entry.names:
        for written in (name, name.upper(), name.lower(), name.title()):
            assert find(written) is entry


def test_names_are_unique() -> None:
    names = [name.lower() for entry in entries() for name in set(entry.names)]
    assert len(names) == len(set(names))


def test_embedded_is_not_a_name() -> None:
    assert find("embedded") is None
    assert find("no/such-model") is None
    assert find("") is None


@pytest.fixture(scope="module", params=entries(), ids=lambda entry: entry.id)
def shaped(request: pytest.FixtureRequest) -> tuple[Entry, PreTrainedModel]:
    """An entry with its model on the meta device: every parameter's shape, no memory."""
    entry: Entry = request.param
    assert entry.id in SHAPES, f"{entry.id}: give its published shape in SHAPES, so that its numbers are checked"
    with torch.device("meta"):
        return entry, AutoModelForCausalLM.from_config(SHAPES[entry.id])


def test_the_parameters_are_those_of_the_published_shape(shaped: tuple[Entry, PreTrainedModel]) -> None:
    entry, network = shaped
    assert sum(parameter.numel() for parameter in network.parameters()) == entry.parameters
    assert type(network).__name__ == entry.architecture
    assert network.config.max_position_embeddings == entry.context_length


def test_the_lora_targets_are_linear_layers_of_it(shaped: tuple[Entry, PreTrainedModel]) -> None:
    entry, network = shaped
    assert entry.lora_targets
    assert set(entry.lora_targets) <= set(linear_names(network))


def test_the_embedded_recipe_is_the_shape_counted_here() -> None:
    stored = yaml.safe_load((Path(__file__).parents[2] / "pretraining" / "recipe.yaml").read_text("utf-8"))
    shape = SHAPES["luthier/tiny"]
    assert stored["vocab_size"] == shape.vocab_size
    assert {name: getattr(shape, name) for name in stored["model"]} == stored["model"]


def test_a_minimal_entry() -> None:
    entry = read(aliases=["Mini"])
    assert entry.kinds == ("domain",)
    assert entry.names == ("m", "org/m", "Mini")
    assert entry.revision is None
    assert not entry.eula_required


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"licence": None}, "missing field 'licence'"),
        ({"kinds": ["domain", "poetry"]}, "unknown kind 'poetry'"),
        ({"revision": 3}, "revision: expected text"),
        ({"name": None, "colour": 1}, "unknown field 'colour'; missing field 'name'"),
    ],
)
def test_a_faulty_entry_is_refused_by_file_and_field(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(LuthierError) as caught:
        read(**changes)
    assert str(caught.value) == f"m.yaml: {said}"


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "word"])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(LuthierError, match=r"m\.yaml: expected a mapping of fields"):
        read_entry("m.yaml", text)


@pytest.mark.parametrize(
    "changes", [{"parameters": "7B"}, {"kinds": "domain"}, {"eula_required": "yes please"}, {"aliases": "one"}]
)
def test_a_field_of_a_wrong_type_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LuthierError, match=rf"^m\.yaml: {next(iter(changes))}: expected "):
        read(**changes)
