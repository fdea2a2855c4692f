"""Parsing of hyperparameters: each row of the table, and what holds between rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from luthier.catalog.entry import find
from luthier.catalog.hyperparameters import AUTOPILOT, TABLE, Hyperparameter, parse, precision
from luthier.errors import SettingError

DATA = Path(__file__).resolve().parent.parent / "samples"
NUMBERS = [row for row in TABLE.values() if row.type in ("int", "optional_int", "float") and not row.choices]
SPECS: dict[str, dict[str, Any]] = json.loads((DATA / "jumpstart" / "defaults.json").read_text("utf-8"))
ALL_NAMES = [*AUTOPILOT, *(alias for row in TABLE.values() for alias in (row.name, *row.aliases))]


def by_name(rows: list[Hyperparameter]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


def refusal(raw: dict[str, Any], defaults: dict[str, Any] | None = None, **ranges: Any) -> str:
    with pytest.raises(SettingError) as caught:
        parse(raw, defaults, **ranges)
    return str(caught.value)


# Every row


@by_name(list(TABLE.values()))
def test_the_default_parses_to_itself(row: Hyperparameter) -> None:
    for written in (str(row.default), json.dumps(str(row.default)), row.default):
        parsed = row.parse(written)
        assert parsed == row.default
        assert type(parsed) is type(row.default)


@by_name(list(TABLE.values()))
def test_what_cannot_be_a_value_is_refused_with_what_was_expected(row: Hyperparameter) -> None:
    bad = {"text": "", "pattern": "(moon"}.get(row.type, "moon")
    expected = f"{row.help}; leave it at {row.default}" if row.type == "fixed" else f"expected {row.expected}"
    assert refusal({row.name: bad}) == f"{row.name}={bad}: {expected}"


def beside(row: Hyperparameter, bound: float, direction: int) -> str:
    """The bound itself when it is excluded, else the closest value beyond it."""
    if row.exclusive_minimum if direction < 0 else row.exclusive_maximum:
        return repr(bound)
    return str(int(bound) + direction) if row.type != "float" else repr(bound + direction * 1e-6)


@by_name([row for row in NUMBERS if row.minimum is not None])
def test_below_the_minimum_is_refused(row: Hyperparameter) -> None:
    assert row.minimum is not None
    outside = beside(row, row.minimum, -1) if row.sentinel is None else str(row.sentinel - 1)
    assert "expected" in refusal({row.name: outside})
    inside = row.minimum + (1e-6 if row.exclusive_minimum else 0)
    assert row.parse(f"{inside:g}") == inside


@by_name([row for row in NUMBERS if row.maximum is not None])
def test_above_the_maximum_is_refused(row: Hyperparameter) -> None:
    assert row.maximum is not None
    assert "expected" in refusal({row.name: beside(row, row.maximum, 1)})
    most = row.maximum - (1e-6 if row.exclusive_maximum else 0)
    assert row.parse(repr(most) if row.type == "float" else str(int(most))) == most


@by_name([row for row in TABLE.values() if row.type == "int" and row.choices])
def test_numbers_of_a_list(row: Hyperparameter) -> None:
    for choice in row.choices:
        assert row.parse(choice) == row.parse(f'"{choice}"') == int(choice)
    assert refusal({row.name: "5"}) == f"{row.name}=5: expected one of {', '.join(row.choices)}"


@by_name([row for row in TABLE.values() if row.type == "fixed"])
def test_what_means_nothing_here_is_refused_at_other_values_with_the_reason(row: Hyperparameter) -> None:
    for choice in row.choices:
        for name in (row.name, *row.aliases):
            assert parse({name: choice})[row.name] == row.default
    assert refusal({row.name: "17"}) == f"{row.name}=17: {row.help}; leave it at {row.default}"


@by_name([row for row in NUMBERS if row.sentinel is not None])
def test_the_sentinel_is_allowed_and_its_neighbours_are_not(row: Hyperparameter) -> None:
    assert row.sentinel is not None
    for written in (row.sentinel, str(row.sentinel), "None", "null", None):
        assert row.parse(written) == row.sentinel
    assert f"or {row.sentinel}" in row.expected
    assert "expected" in refusal({row.name: str(row.sentinel + 1)})  # 0, where 1 is the least


@by_name([row for row in TABLE.values() if row.type == "choice"])
def test_each_choice_in_any_case(row: Hyperparameter) -> None:
    assert row.choices
    for choice in row.choices:
        assert row.parse(choice) == row.parse(choice.upper()) == row.parse(f'"{choice}"') == choice
    assert "one of" in refusal({row.name: f"{row.choices[0]}x"})


@by_name([row for row in TABLE.values() if row.aliases])
def test_aliases_set_the_same_hyperparameter(row: Hyperparameter) -> None:
    value = row.default if row.type == "fixed" else row.choices[-1] if row.choices else 7
    for alias in row.aliases:
        values = parse({alias: str(value)})
        assert values[row.name] == value
        assert values.explicit == {row.name}
        assert alias not in values


def test_names_are_unique_and_rows_are_whole() -> None:
    assert len(ALL_NAMES) == len(set(ALL_NAMES))
    for row in TABLE.values():
        assert row.help
        assert not row.help.endswith(".")
        assert row.expected


# Types


@pytest.mark.parametrize("text", ["5", "+5", "05", " 5 ", '"5"', "5\n"])
def test_whole_numbers_are_a_sign_and_digits(text: str) -> None:
    value = parse({"epoch": text})["epoch"]
    assert value == 5
    assert type(value) is int


@pytest.mark.parametrize("text", ["5.0", "5e0", "1_0", "0x5", "٥", "5 5", "", "-", "None", "True", "nan", "9" * 30])
def test_other_spellings_of_whole_numbers_are_refused(text: str) -> None:
    assert "expected a whole number" in refusal({"epoch": text})


def test_values_of_other_types_keep_their_meaning() -> None:
    assert parse({"epoch": 5})["epoch"] == 5
    assert "epoch=5.0" in refusal({"epoch": 5.0})
    assert "epoch=True" in refusal({"epoch": True})
    assert parse({"learning_rate": "1e-3"})["learning_rate"] == parse({"learning_rate": 0.001})["learning_rate"]
    assert parse({"lora_target_modules": ["q_proj", "v_proj"]})["lora_target_modules"] == "q_proj,v_proj"


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "0,1", "one", "1_0", "٥", "0x1", "."])
def test_numbers_are_finite(text: str) -> None:
    assert "expected a number" in refusal({"max_grad_norm": text})


@pytest.mark.parametrize(
    ("text", "value"), [("True", True), ("true", True), ("TRUE", True), ("tRuE", True), ("False", False),
                        ("false", False), ('"True"', True), ('"false"', False)],
)  # fmt: skip
def test_flags_in_any_case(text: str, value: bool) -> None:
    assert parse({"packing": text})["packing"] is value


@pytest.mark.parametrize("text", ["1", "0", "yes", "no", "on", "T", "None", ""])
def test_other_words_are_not_flags(text: str) -> None:
    assert "expected True or False" in refusal({"packing": text})


@pytest.mark.parametrize("text", ["None", "none", "null"])
def test_an_optional_number_may_be_none(text: str) -> None:
    for name in ("preprocessing_num_workers", "global_train_batch_size"):
        assert parse({name: text})[name] is None
    assert "expected a whole number" in refusal({"epoch": text})


def test_values_as_the_sdk_sends_them() -> None:
    """sagemaker 2.x passes every value through json.dumps: text arrives in quotes of its own."""
    asked = {"epoch": "3", "learning_rate": "0.0001", "packing": "False", "peft_type": "none", "max_steps": "-1"}
    assert dict(parse({name: json.dumps(value) for name, value in asked.items()})) == dict(parse(asked))


def test_excluded_bounds() -> None:
    row = Hyperparameter(
        name="x", type="float", default=0.5, group="g", help="h",
        minimum=0, maximum=1, exclusive_minimum=True, exclusive_maximum=True,
    )  # fmt: skip
    assert row.expected == "a number above 0 and below 1"
    assert row.parse("0.5") == 0.5
    for text in ("0", "1", "-0.0"):
        with pytest.raises(SettingError):
            row.parse(text)


@pytest.mark.parametrize(
    "raw",
    [["q_proj", "v_proj"], ("q_proj", "v_proj"), '["q_proj", "v_proj"]', "['q_proj', 'v_proj']",
     '"[\\"q_proj\\", \\"v_proj\\"]"', "q_proj,v_proj"],
)  # fmt: skip
def test_lists_of_names(raw: Any) -> None:
    assert parse({"lora_target_modules": raw})["lora_target_modules"] == "q_proj,v_proj"


@pytest.mark.parametrize("raw", [[5], "[5]", ["True"], "[]", "{}", '{"a": 1}'])
def test_no_lists_elsewhere(raw: Any) -> None:
    assert "expected" in refusal({"epoch": raw})
    assert "expected" in refusal({"packing": raw})


def test_an_empty_list_of_names_is_refused() -> None:
    assert "lora_target_modules=: expected text" in refusal({"lora_target_modules": []})
    assert parse({"lora_target_modules": "null"})["lora_target_modules"] == "default"  # None: as PEFT reads it


# Names


@pytest.mark.parametrize(
    ("name", "meant"), [("learningrate", "learning_rate"), ("lora_rank", "lora_r"), ("epochz", "epoch"),
                        ("evaluation_stratgy", "evaluation_strategy"), ("Learning_rate", "learning_rate")],
)  # fmt: skip
def test_an_unknown_name_is_answered_with_the_closest(name: str, meant: str) -> None:
    message = refusal({name: "1"})
    assert message.startswith(f"unknown hyperparameter {name!r}")
    assert f"did you mean '{meant}" in message


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    assert refusal({"zzqq": "1"}) == "unknown hyperparameter 'zzqq'"


def test_twice_through_an_alias() -> None:
    message = refusal({"num_train_epochs": "3", "epochCount": "4"})
    assert message == "epoch is set twice with different values (as num_train_epochs and as epochCount)"
    for other in ("num_train_epochs", "epochCount"):
        assert refusal({"epoch": "3", other: "4"}).startswith("epoch is set twice")
        assert parse({"epoch": "3", other: '"3"'})["epoch"] == 3


# Autopilot's names

OVER = {"epochCount": "11", "batchSize": "65", "learningRate": "1.1", "learningRateWarmupSteps": "251"}


@pytest.mark.parametrize("name", AUTOPILOT)
def test_autopilots_names_mean_ours_within_its_ranges(name: str) -> None:
    meant, low, high = AUTOPILOT[name]
    least = 1e-6 if name == "learningRate" else low
    for value in (least, high):
        values = parse({name: f"{value:g}"})
        assert values[meant] == value
        assert values.explicit == {meant}
    assert "Autopilot's range" in refusal({name: OVER[name]}) or name == "learningRate"
    assert refusal({name: OVER[name]}).startswith(f"{name}={OVER[name]}: expected a ")
    assert "expected" in refusal({name: "-1"})
    assert parse({meant: OVER[name] if name != "learningRate" else "1"})  # by our own name our own range holds


def test_an_autopilot_job_as_aws_writes_one() -> None:
    asked = {"epochCount": "5", "learningRate": "0.000001", "batchSize": "32", "learningRateWarmupSteps": "10"}
    values = parse(asked)
    names = ("epoch", "learning_rate", "per_device_train_batch_size", "warmup_steps")
    assert [values[name] for name in names] == [5, 1e-6, 32, 10]
    assert refusal({"learningRate": "0"}) == "learningRate=0: expected a number above 0 and at most 1"
    assert "did you mean 'epochCount'" in refusal({"epochsCount": "3"})


# SageMaker's own keys and limits


def test_sagemakers_keys_are_set_aside() -> None:
    own = {"sagemaker_program": '"train.py"', "sagemaker_region": "eu-west-1", "sagemaker_typo_typo": "1"}
    values = parse(own | {"epoch": "2"})
    assert values.reserved == own
    assert values.explicit == {"epoch"}
    assert set(values) == set(TABLE)
    assert parse({}).reserved == {}
    assert "unknown hyperparameter 'sagemakerprogram'" in refusal({"sagemakerprogram": "1"})


def test_sagemakers_limits() -> None:
    parse({f"sagemaker_{number}": "" for number in range(100)})
    assert "101 hyperparameters" in refusal({f"sagemaker_{number}": "" for number in range(101)})
    parse({"sagemaker_" + "x" * 246: "y" * 2500})
    long_name = refusal({"sagemaker_" + "x" * 247: "y"})
    assert "the name has 257 characters; SageMaker allows at most 256" in long_name
    assert len(long_name) < 200
    assert "'sagemaker_x': the value has 2,501 characters" in refusal({"sagemaker_x": "y" * 2501})
    assert "the value has" in refusal({"lora_target_modules": ["q_proj"] * 500})


# As the SageMaker SDK sends them


@pytest.mark.parametrize("model", SPECS)
def test_a_jumpstart_models_own_defaults_are_accepted(model: str) -> None:
    """The SDK sends every default of the model's JumpStart spec: as text, JSON-encoded once more, or typed."""
    spec = SPECS[model]
    written = {name: str(value) for name, value in spec.items()}
    values = parse(written)
    assert dict(parse({name: json.dumps(value) for name, value in written.items()})) == dict(values)
    assert dict(parse({name: json.dumps(value) for name, value in spec.items()})) == dict(values)
    assert dict(parse(spec)) == dict(values)
    assert len(values.explicit) == len(spec)
    for name, value in spec.items():
        if name in TABLE and TABLE[name].type in ("int", "float"):
            assert values[name] == (TABLE[name].sentinel if value == "None" else float(value)), name


@pytest.mark.parametrize("model", [name for name in SPECS if find(name)])
def test_a_jumpstart_models_own_defaults_are_in_our_entrys_range(model: str) -> None:
    entry = find(model)
    assert entry
    values = parse(SPECS[model], entry.default_hyperparameters, entry.hyperparameter_ranges)
    alone = parse({}, entry.default_hyperparameters, entry.hyperparameter_ranges)
    for name in ("learning_rate", "lora_r", "epoch", "weight_decay", "per_device_train_batch_size", "peft_type"):
        if entry.kinds and name in values.explicit:
            assert alone[name] == values[name], f"{model}: {name}"


def test_the_specs_bring_what_is_odd_about_them() -> None:
    values = {model: parse(spec) for model, spec in SPECS.items()}
    assert values["mistral-7b"]["peft_type"] == values["flan-t5-base"]["peft_type"] == "none"
    assert values["flan-t5-xxl-fp16"]["evaluation_strategy"] == "epoch"  # sent as evalaution_strategy
    assert values["flan-t5-base"]["per_device_train_batch_size"] == 64
    neuron = values["llama-2-7b-neuron"]
    assert (neuron["lr_scheduler_type"], neuron["min_learning_rate"]) == ("CosineAnnealing", 1e-6)
    assert (neuron["global_train_batch_size"], neuron["append_eod"]) == (256, False)
    assert values["gemma-2b-it"]["bits"] == 4
    assert [precision(values[model]) for model in ("gemma-2b-it", "mistral-7b", "flan-t5-base")] == [
        "fp16", "bf16", "auto"
    ]  # fmt: skip


# Layers of defaults


def test_given_over_family_over_table() -> None:
    values = parse({"lora_r": "4"}, {"lora_r": 16, "batch_size": 2})
    assert (values["lora_r"], values["per_device_train_batch_size"], values["epoch"]) == (4, 2, 3)
    assert values.explicit == {"lora_r"}
    assert set(values) == set(TABLE)
    assert len(values) == len(TABLE)
    assert "'lora_r': 4" in repr(values)


def test_a_family_default_is_checked_too() -> None:
    with pytest.raises(SettingError, match="lora_r=0"):
        parse({}, {"lora_r": 0})


# What holds between rows


def test_the_kinds_exclude_and_imply_each_other() -> None:
    message = refusal({"instruction_tuned": "True", "chat_dataset": "True"})
    assert "exclude each other" in message
    for name, other in (("instruction_tuned", "chat_dataset"), ("chat_dataset", "instruction_tuned")):
        values = parse({name: "True"}, {other: True})
        assert values[name] is True
        assert values[other] is False
        assert values.explicit == {name}
    both_off = parse({"instruction_tuned": "False", "chat_dataset": "False"})
    assert (both_off["instruction_tuned"], both_off["chat_dataset"]) == (False, False)


def test_the_precisions_exclude_each_other() -> None:
    assert refusal({"bf16": "True", "fp16": "True"}).startswith("bf16=True and fp16=True exclude each other")
    assert precision(parse({"fp16": "True", "bf16": "auto"})) == "fp16"
    assert precision(parse({"fp16": "True"}, {"bf16": "True"})) == "fp16"  # over the family's
    assert precision(parse({"bf16": "True"}, {"fp16": "True"})) == "bf16"
    assert precision(parse({"bf16": "True", "mixed_precision": "False"})) == "fp32"
    assert precision(parse({"bf16": "False"})) == "fp32"
    assert precision(parse({})) == "auto"
    assert "exclude each other" in refusal({}, {"bf16": "True", "fp16": "True"})


def test_eight_bits_have_two_names() -> None:
    assert parse({"int8_quantization": "True"})["bits"] == 8
    assert parse({"int8_quantization": "True", "bits": "16"})["bits"] == 8  # the SDK sends 16 as a default
    assert parse({"bits": "8"})["int8_quantization"] is True
    assert "int8_quantization=True and bits=4 exclude" in refusal({"int8_quantization": "True", "bits": "4"})
    for asked, bits in (({"bits": "4"}, 4), ({"bits": "16"}, 16), ({}, 8)):
        values = parse(asked, {"int8_quantization": "True"})  # over the family's
        assert (values["bits"], values["int8_quantization"]) == (bits, bits == 8)
    assert parse({"int8_quantization": "True"}, {"bits": 4})["bits"] == 8
    assert parse({}, {"bits": 4})["int8_quantization"] is False


def test_shares_that_exceed_the_whole() -> None:
    assert "must not exceed 1" in refusal({"validation_split_ratio": "0.6", "test_split_ratio": "0.5"})
    parse({"validation_split_ratio": "0.5", "test_split_ratio": "0.5"})
    assert "must not exceed 1" in refusal({"test_split_ratio": "0.9"})  # beside the default of the other


def test_a_learning_rate_of_zero() -> None:
    assert refusal({"learning_rate": "0"}) == "learning_rate=0: expected a number above 0 and at most 1"


# A model's own ranges


def test_a_models_range_narrows_the_tables() -> None:
    ranges = {"epoch": {"maximum": 9}, "lora_r": {"minimum": 4, "maximum": 5000}, "max_input_length": {"minimum": 128}}
    assert parse({"epoch": "9"}, ranges=ranges)["epoch"] == 9
    assert refusal({"epochs": "10"}, ranges=ranges) == (
        "epoch=10: expected a whole number of at least 1 and at most 9 (the model's range)"
    )
    assert "of at least 4 and at most 1000" in refusal({"lora_r": "3"}, ranges=ranges)  # the table's maximum stays
    assert parse({}, ranges=ranges)["max_input_length"] == -1  # what stands for "as the model has it" stays
    assert "of at least 128 (the model's range), or -1" in refusal({"max_input_length": "64"}, ranges=ranges)
    rate = {"learning_rate": {"minimum": 1e-8}}
    assert parse({"learning_rate": "1e-8"}, ranges=rate)["learning_rate"] == 1e-8
    assert "of at least 1e-08 and at most 1 (the model's range)" in refusal({"learning_rate": "0"}, ranges=rate)


def test_autopilots_names_keep_to_the_models_range_too() -> None:
    assert "at most 3" in refusal({"epochCount": "4"}, ranges={"epoch": {"maximum": 3}})
    assert "at most 10 (Autopilot's range)" in refusal({"epochCount": "11"}, ranges={"epoch": {"maximum": 50}})


def test_a_range_of_nothing_is_refused() -> None:
    assert "range of an unknown hyperparameter 'epok'; did you mean 'epoch'" in refusal({}, ranges={"epok": {}})


# Whatever is typed


@given(name=st.sampled_from(ALL_NAMES) | st.text(max_size=30), text=st.text(max_size=40))
@example(name="epoch", text="5\n6")
@example(name="learning_rate", text='"\\ud800"')
@example(name="epoch", text='"' * 3)
@example(name="epo\nch", text="3")
def test_any_text_parses_or_is_refused_in_one_line(name: str, text: str) -> None:
    message = ""
    try:
        assert set(parse({name: text})) == set(TABLE)
    except SettingError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1


@given(raw=st.dictionaries(st.sampled_from(ALL_NAMES), st.sampled_from(["True", "False", "0", "1", "0.5", "-1", "no"])))
def test_what_was_accepted_is_accepted_again(raw: dict[str, str]) -> None:
    try:
        values = parse(raw)
    except SettingError:
        return
    again = parse({name: str(values[name]) for name in values.explicit})
    assert dict(again) == dict(values)
    assert again.explicit == values.explicit
