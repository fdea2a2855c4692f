"""The packaged entries, all of them: names, shapes on the meta device, defaults, templates, licences."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_models import OTHERS, SHAPES
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from luthier.catalog import entries, find
from luthier.catalog.entry import KINDS, Entry, parse_for
from luthier.catalog.hyperparameters import AUTOPILOT, TABLE
from luthier.data.chat import ChatTemplate
from luthier.data.conversation import ChatError
from luthier.errors import SettingError
from luthier.layers.attention import PACKABLE_ARCHITECTURES
from luthier.weights.lora_targets import linear_layer_names

ROOT = Path(__file__).parents[2]
RESOLVED: dict[str, str] = json.loads((Path(__file__).parent / "resolved_entries.json").read_text("utf-8"))
# The models that JumpStart and Autopilot's documents name as fine-tunable: prefix of the id -> rests of the ids.
JUMPSTART = {
    "huggingface-textgeneration1-":
        "bloom-3b bloom-7b1 bloomz-3b-fp16 bloomz-7b1-fp16 gpt-2-xl gpt-j-6b gpt-neo-125m gpt-neo-1-3b "
        "gpt-neo-2-7b lightgpt redpajama-incite-base-3B-v1-fp16 redpajama-incite-base-7B-v1-fp16 "
        "redpajama-incite-chat-3B-v1-fp16 redpajama-incite-chat-7B-v1-fp16 redpajama-incite-instruct-3B-v1-fp16 "
        "redpajama-incite-instruct-7B-v1-fp16 mpt-7b-bf16 mpt-7b-instruct-bf16",
    "meta-textgeneration-":
        "llama-codellama-7b llama-codellama-7b-python llama-codellama-13b llama-codellama-13b-python "
        "llama-codellama-34b llama-codellama-34b-python llama-codellama-70b llama-codellama-70b-python llama-2-7b "
        "llama-2-7b-f llama-2-13b llama-2-13b-f llama-2-70b llama-2-70b-f",
    "huggingface-llm-":
        "calm2-7b-chat-bf16 falcon-7b-bf16 falcon-7b-instruct-bf16 falcon-40b-bf16 falcon-40b-instruct-bf16 "
        "gemma-2b gemma-2b-instruct gemma-7b gemma-7b-instruct mistral-7b mistral-7b-instruct mixtral-8x7b "
        "mixtral-8x7b-instruct",
    "huggingface-text2text-": "flan-t5-small flan-t5-base flan-t5-large flan-t5-xl flan-t5-xxl",
    "meta-textgenerationneuron-": "llama-2-7b llama-2-13b",
    "model-": "txt2img-stabilityai-stable-diffusion-v2-1-base",
    "huggingface-textgeneration-": "dolly-v2-3b-bf16 dolly-v2-7b-bf16 dolly-v2-12b-bf16",
}  # fmt: skip
AUTOPILOT_MODELS = {
    "Falcon7B", "Falcon7BInstruct", "Falcon40B", "Falcon40BInstruct", "FlanT5L", "FlanT5XL", "FlanT5XXL", "Llama2-7B",
    "Llama2-7BChat", "Llama2-13B", "Llama2-13BChat", "Mistral7B", "Mistral7BInstruct", "Dolly3B", "Dolly7B", "Dolly12B",
    "MPT7B", "MPT7BInstruct",
}  # fmt: skip
NEWER = (
    "Llama 3.1", "Llama 3.2", "Llama 3.3", "Qwen2.5", "Qwen3", "Gemma 2 ", "Gemma 3", "Phi-", "SmolLM2", "SmolLM3",
    "Mistral Nemo", "Mistral Small", "Olmo 3", "OLMo 2", "LFM2", "Granite 4", "Apertus", "DeepSeek R1",
)  # fmt: skip
# JumpStart's values that are no entry's: they hang on the hardware, are seen in the data, or change no result.
NOT_TAKEN = {
    "int8_quantization", "enable_fsdp", "bits", "double_quant", "quant_type", "fp16", "bf16",
    "instruction_tuned", "chat_dataset", "pad_to_max_length",
}  # fmt: skip
TURNS = [
    {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "Why?"},
]  # fmt: skip
ASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
RENDERED = {
    "calm2-7b-chat": "USER: Hi\nASSISTANT: Ho<e>\nUSER: Why?\nASSISTANT: ",
    "falcon-40b-instruct": "\n\nUser: Hi\n\nAssistant: Ho<e>\n\nUser: Why?\n\nAssistant:",
    "redpajama-incite-chat-3b": "<human>: Hi\n<bot>: Ho<e>\n<human>: Why?\n<bot>:",
    "redpajama-incite-chat-7b": "<human>: Hi\n<bot>: Ho<e>\n<human>: Why?\n<bot>:",
    **dict.fromkeys(
        ("dolly-v2-3b", "dolly-v2-7b", "dolly-v2-12b"),
        f"{ASK}\n\n### Instruction:\nHi\n\n### Response:\nHo\n\n### End\n\n### Instruction:\nWhy?\n\n### Response:\n",
    ),
    "lightgpt": f"{ASK}\n\n### Instruction:\nHi\n\n### Response:\nHo<e>\n\n### Instruction:\nWhy?\n\n### Response:\n",
    "mpt-7b-instruct": f"{ASK}\n### Instruction:\nHi\n### Response:\nHo<e>\n### Instruction:\nWhy?\n### Response:\n",
}

every_entry = pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.id)
every_network = pytest.mark.parametrize(
    "entry", [entry for entry in entries() if entry.shape], ids=lambda entry: entry.id
)


def network_of(entry: Entry) -> PreTrainedModel:
    """The full model on the meta device: every parameter's shape, no memory."""
    return _network(json.dumps(dict(entry.shape)))


@functools.cache
def _network(shape: str) -> PreTrainedModel:
    config = AutoConfig.for_model(**json.loads(shape))
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        network: PreTrainedModel = kind.from_config(config)
    return network


def parameters_of(entry: Entry) -> int:
    """Parameters as they are stored, tied ones once."""
    network = network_of(entry)
    count = sum(parameter.numel() for parameter in network.parameters())
    head, table = network.get_output_embeddings().weight, network.get_input_embeddings().weight
    # transformers 5 ties the head of a new T5, though not that of a stored one that has its own (FLAN-T5).
    apart = entry.shape["tie_word_embeddings"] is False and head is table
    return count + (head.numel() if apart else 0)


# Which there are


def test_every_file_is_an_entry() -> None:
    files = [file for file in (resources.files("luthier.catalog") / "entries").iterdir() if file.name[0] != "."]
    assert len(entries()) == len(files)
    for file in files:
        assert file.name.removesuffix(".yaml") == yaml.safe_load(file.read_text("utf-8"))["id"].replace("/", "-")
        assert len(file.read_text("utf-8").splitlines()) <= 35


def test_a_resolved_entry_is_as_recorded() -> None:
    """resolved_entries.json has a hash of each entry as it was when it was added."""
    texts = {entry.id: json.dumps(asdict(entry), sort_keys=True) for entry in entries()}
    assert {name: hashlib.sha256(texts[name].encode()).hexdigest()[:16] for name in RESOLVED} == RESOLVED


def test_every_model_that_jumpstart_and_autopilot_name_is_there() -> None:
    ids = [f"{prefix}{rest}" for prefix, rests in JUMPSTART.items() for rest in rests.split()]
    found = {name: find(name) for name in ids}
    assert len(ids) == 56
    assert [name for name, entry in found.items() if entry is None] == []
    assert len({entry.id for entry in found.values() if entry}) == 56
    assert [entry.id for entry in found.values() if entry and not entry.is_tunable] == [
        "llama-2-7b-neuron", "llama-2-13b-neuron", "stable-diffusion-2-1",
    ]  # fmt: skip
    assert {entry.autopilot.name for entry in entries() if entry.autopilot} == AUTOPILOT_MODELS


def test_newer_families_are_there() -> None:
    for family in NEWER:
        assert any(entry.name.startswith(family) and entry.is_tunable for entry in entries()), family


def test_every_class_has_its_tiny_proof() -> None:
    proved = {shape["model_type"] for shape in (SHAPES | OTHERS).values()}
    assert {entry.shape["model_type"] for entry in entries() if entry.is_tunable} <= proved


# Each of them


@every_entry
def test_an_entry_holds_together(entry: Entry) -> None:
    assert set(entry.kinds) <= set(KINDS)
    assert entry.parameters > 0
    assert entry.shape or not entry.is_tunable
    assert entry.licence.name
    assert entry.licence.url.startswith("https://")
    assert entry.attention.packing == (entry.architecture in PACKABLE_ARCHITECTURES)
    assert bool(entry.default_hyperparameters) == entry.is_tunable
    assert entry.default_template is None or set(entry.default_template) == {"prompt", "completion"}
    if entry.chat_template:
        assert "chat" in entry.kinds
    if entry.architecture == "T5ForConditionalGeneration":
        assert entry.kinds == ("instruction", "autopilot")


@every_entry
def test_an_entry_is_found_by_each_of_its_names_in_any_case(entry: Entry) -> None:
    assert entry.id in entry.names
    for name in entry.names:
        for written in (name, name.upper(), name.lower(), name.title()):
            assert find(written) is entry


def test_names_are_unique() -> None:
    names = [name.lower() for entry in entries() for name in entry.names]
    assert len(names) == len(set(names))


def test_the_plain_model_owns_the_repository_that_others_share() -> None:
    for size in ("7b", "13b"):
        plain, neuron = find(f"llama-2-{size}"), find(f"llama-2-{size}-neuron")
        assert plain is not None
        assert neuron is not None
        assert neuron.source == plain.id
        assert find(plain.source) is plain
        assert (neuron.parameters, neuron.shape) == (plain.parameters, plain.shape)
        assert f"llama-2-{size}" in neuron.description


def test_what_is_no_name() -> None:
    for name in ("embedded", "no/such-model", ""):
        assert find(name) is None


# Shapes


@every_network
def test_the_shape_has_the_stated_parameters_class_and_positions(entry: Entry) -> None:
    network = network_of(entry)
    assert parameters_of(entry) == entry.parameters
    assert type(network).__name__ == entry.architecture
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    positions = [entry.shape[name] for name in names if name in entry.shape]
    assert positions in ([entry.context_length], [])
    relative = ("BloomForCausalLM", "T5ForConditionalGeneration")  # whose configs need name no number
    assert positions or entry.architecture in relative


@every_network
def test_no_word_of_a_shape_is_unknown_to_its_config(entry: Entry) -> None:
    known = vars(AutoConfig.for_model(entry.shape["model_type"]))
    older = {
        "rope_theta", "rope_scaling", "rope_local_base_freq", "rotary_pct", "partial_rotary_factor", "n_positions",
    }  # fmt: skip
    assert set(entry.shape) - set(known) - older <= {"model_type"}


@every_network
def test_the_lora_targets_are_linear_layers_of_it(entry: Entry) -> None:
    assert entry.lora_targets
    assert set(entry.lora_targets) <= set(linear_layer_names(network_of(entry)))


@every_network
def test_the_attention_kernels_are_those_that_transformers_declares(entry: Entry) -> None:
    network = network_of(entry)
    declared = {"eager": True, "sdpa": network._supports_sdpa, "flash": network._supports_flash_attn}
    assert set(entry.attention.kernels) == {name for name, has in declared.items() if has}


def test_the_embedded_recipe_is_the_shape_of_its_entry() -> None:
    stored = yaml.safe_load((ROOT / "pretraining" / "recipe.yaml").read_text("utf-8"))
    entry = find("luthier/tiny")
    assert entry is not None
    assert stored["vocab_size"] == entry.shape["vocab_size"]
    assert {name: value for name, value in stored["model"].items() if entry.shape.get(name) != value} == {}


# Hyperparameters


@every_entry
def test_the_defaults_lie_in_the_entry_s_ranges_which_are_narrower_than_the_table_s(entry: Entry) -> None:
    values = parse_for(entry, {})
    assert set(values) == set(TABLE)
    for name, bounds in entry.hyperparameter_ranges.items():
        row = TABLE[name]
        assert row.minimum is None or bounds.get("minimum", row.minimum) >= row.minimum
        assert row.maximum is None or bounds.get("maximum", row.maximum) <= row.maximum
        for bound in bounds.values():
            parse_for(entry, {name: bound})


@every_entry
def test_a_value_outside_of_the_entry_s_range_is_refused(entry: Entry) -> None:
    for name, bounds in entry.hyperparameter_ranges.items():
        for side, bound in bounds.items():
            beyond = bound - 1 if side == "minimum" else bound + 1
            with pytest.raises(SettingError, match=f"^{name}="):
                parse_for(entry, {name: beyond})


@pytest.mark.parametrize(
    ("model", "documented"),
    [
        (model, values)
        for model, values in json.loads((ROOT / "tests/samples/jumpstart/defaults.json").read_text("utf-8")).items()
        if "neuron" not in model
    ],
)
def test_the_defaults_are_jumpstart_s_where_those_are_public(model: str, documented: dict[str, Any]) -> None:
    entry = find(model) or find(f"huggingface-text2text-{model}")
    assert entry is not None
    assert "default_hyperparameters" in entry.verified
    values = dict(parse_for(entry, {}))
    taken = {name: value for name, value in documented.items() if name not in NOT_TAKEN}
    assert values == dict(parse_for(entry, taken))


def test_flan_t5_puts_nothing_between_prompt_and_completion() -> None:
    for entry in entries():
        flan = entry.architecture == "T5ForConditionalGeneration"
        assert parse_for(entry, {})["add_input_output_demarcation_key"] is not flan


def test_autopilot_s_limits_and_names() -> None:
    for entry in entries():
        if entry.autopilot:
            assert entry.autopilot.rows in (1000, 7000, 10000)
            assert entry.autopilot.tokens in (1024, 2048)
            assert "autopilot" in entry.verified
            parse_for(entry, dict.fromkeys(AUTOPILOT, 1))


# Chat templates


def chat_of(entry: Entry) -> ChatTemplate:
    dolly = ["### End", "### Instruction:", "### Response:"] if entry.id.startswith("dolly") else []
    return ChatTemplate(entry.chat_template or "", {"eos_token": "<e>"}, ["<e>", *dolly])


def test_the_chat_models_that_bring_no_template() -> None:
    assert {entry.id for entry in entries() if entry.chat_template} == set(RENDERED)


@pytest.mark.parametrize(("model", "text"), RENDERED.items())
def test_a_conversation_as_the_model_s_publisher_writes_it(model: str, text: str) -> None:
    entry = find(model)
    assert entry is not None
    template = chat_of(entry)
    assert template.render(TURNS, generation=True) == text
    example = template.example([*TURNS, {"role": "assistant", "content": "So."}])
    answers = [piece.text.strip() for piece in example.pieces if piece.trained]
    assert [answer.removesuffix("<e>").removesuffix("### End").strip() for answer in answers] == ["Ho", "So."]
    assert all(answer.endswith(("<e>", "### End")) for answer in answers)
    first = {"role": "system", "content": "Be kind."}
    if model == "falcon-40b-instruct":
        assert template.render([first, *TURNS], generation=True) == f"Be kind.{text}"
    else:
        with pytest.raises(ChatError, match="no system role"):
            template.render([first, *TURNS])
