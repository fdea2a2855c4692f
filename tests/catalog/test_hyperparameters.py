"""Parsing of hyperparameters: each row of the table, and what holds between rows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from luthier.catalog.hyperparameters import TABLE, Hyperparameter, parse
from luthier.errors import SettingError

NUMBERS = [row for row in TABLE.values() if row.type in ("int", "optional_int", "float")]
NOT_YET = ("int8_quantization", "enable_fsdp")
ALL_NAMES = [alias for row in TABLE.values() for alias in (row.name, *row.aliases)]


def by_name(rows: list[Hyperparameter]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(SettingError) as caught:
        parse(raw)
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
    bad = "" if row.type == "text" else "moon"
    assert refusal({row.name: bad}) == f"{row.name}={bad}: expected {row.expected}"


@by_name([row for row in NUMBERS if row.minimum is not None])
def test_below_the_minimum_is_refused(row: Hyperparameter) -> None:
    assert row.minimum is not None
    step = 1 if row.type != "float" else 1e-6
    outside = row.minimum - step if row.sentinel is None else row.sentinel - 1
    assert "expected" in refusal({row.name: f"{outside:g}"})
    row.parse(f"{row.minimum:g}")


@by_name([row for row in NUMBERS if row.maximum is not None])
def test_above_the_maximum_is_refused(row: Hyperparameter) -> None:
    assert row.maximum is not None
    most = str(int(row.maximum)) if row.type != "float" else repr(row.maximum)
    above = str(int(row.maximum) + 1) if row.type != "float" else repr(row.maximum + 1e-6)
    assert row.parse(most) == row.maximum
    assert "expected" in refusal({row.name: above})


@by_name([row for row in NUMBERS if row.sentinel is not None])
def test_the_sentinel_is_allowed_and_its_neighbours_are_not(row: Hyperparameter) -> None:
    assert row.sentinel is not None
    assert row.parse(str(row.sentinel)) == row.sentinel
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
    value = row.choices[-1] if row.choices else 7
    for alias in row.aliases:
        values = parse({alias: str(value)})
        assert values[row.name] == value
        assert values.given == {row.name}
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


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "0,1", "one"])
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
    assert parse({"preprocessing_num_workers": text})["preprocessing_num_workers"] is None
    assert "expected a whole number" in refusal({"epoch": text})


def test_values_as_the_sdk_sends_them() -> None:
    """sagemaker 2.x passes every value through json.dumps: text arrives in quotes of its own."""
    asked = {"epoch": "3", "learning_rate": "0.0001", "packing": "False", "peft_type": "none", "max_steps": "-1"}
    assert dict(parse({name: json.dumps(value) for name, value in asked.items()})) == dict(parse(asked))


def test_exclusive_bounds() -> None:
    row = Hyperparameter("x", "float", 0.5, "g", "h", minimum=0, maximum=1, exclusive=True)
    assert row.expected == "a number above 0 and below 1"
    assert row.parse("0.5") == 0.5
    for text in ("0", "1"):
        with pytest.raises(SettingError):
            row.parse(text)


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
    assert refusal({"epoch": "3", "num_train_epochs": "4"}).startswith("epoch is given twice")
    assert parse({"epoch": "3", "num_train_epochs": '"3"'})["epoch"] == 3


# Layers of defaults


def test_given_over_family_over_table() -> None:
    values = parse({"lora_r": "4"}, {"lora_r": 16, "batch_size": 2})
    assert (values["lora_r"], values["per_device_train_batch_size"], values["epoch"]) == (4, 2, 3)
    assert values.given == {"lora_r"}
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
        assert values.given == {name}
    both_off = parse({"instruction_tuned": "False", "chat_dataset": "False"})
    assert (both_off["instruction_tuned"], both_off["chat_dataset"]) == (False, False)


@pytest.mark.parametrize("name", NOT_YET)
def test_what_is_not_there_yet_is_refused_with_the_reason(name: str) -> None:
    assert refusal({name: "True"}).startswith(f"{name}=True: ")
    assert "not available in this version" in refusal({name: "True"})
    assert parse({name: "False"})[name] is False


def test_shares_that_exceed_the_whole() -> None:
    assert "must not exceed 1" in refusal({"validation_split_ratio": "0.6", "test_split_ratio": "0.5"})
    parse({"validation_split_ratio": "0.5", "test_split_ratio": "0.5"})
    assert "must not exceed 1" in refusal({"test_split_ratio": "0.9"})  # beside the default of the other


def test_a_learning_rate_of_zero() -> None:
    assert "nothing would be learned" in refusal({"learning_rate": "0"})


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
    again = parse({name: str(values[name]) for name in values.given})
    assert dict(again) == dict(values)
    assert again.given == values.given
