"""The parameters of a request: names, types and ranges as a table, and what they ask for once they are read.

It knows JSON values (numbers and booleans as records.parse_object leaves them), nothing of models or of HTTP.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from luthier.data.records import JsonLiteral
from luthier.errors import did_you_mean
from luthier.serving.refusals import Refusal

MOST_ANSWERS = 64  # of one prompt; also the most beams
MOST_STOPS, MOST_STOP_CHARACTERS = 16, 1_000
LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Rule:
    """What one parameter may be. `open_low`: `low` itself is excluded. `expected` is said where it does not fit."""

    kind: str  # integer, number, flag or strings
    expected: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False


def _integer(low: int, high: int = LARGEST) -> Rule:
    return Rule("integer", f"an integer from {low} up" if high == LARGEST else f"an integer from {low} to {high}",
                low, high)  # fmt: skip


def _above(low: float, high: float = math.inf) -> Rule:
    most = f", at most {high:g}" if high < math.inf else ""
    return Rule("number", f"a number above {low:g}{most}", low, high, open_low=True)


_FLAG = Rule("flag", "true or false")
RULES: dict[str, Rule] = {
    "max_new_tokens": _integer(1),
    "max_length": _integer(1),
    "max_time": _above(0),
    "do_sample": _FLAG,
    "temperature": _above(0),
    "top_k": _integer(1),
    "top_p": _above(0, 1),
    "seed": _integer(0),
    "repetition_penalty": _above(0),
    "no_repeat_ngram_size": _integer(2),
    "num_beams": _integer(1, MOST_ANSWERS),
    "num_return_sequences": _integer(1, MOST_ANSWERS),
    "early_stopping": _FLAG,
    "stop": Rule("strings", f"a list of at most {MOST_STOPS} texts of 1 to {MOST_STOP_CHARACTERS:,} characters"),
    "truncate": _integer(1),
    "return_full_text": _FLAG,
    "details": _FLAG,
    "decoder_input_details": _FLAG,
    "parse_special_tokens": _FLAG,
}


@dataclass(frozen=True, slots=True)
class Parameters:
    """A request's parameters; None where it says nothing."""

    max_new_tokens: int | None = None
    max_length: int | None = None
    max_time: float | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    early_stopping: bool = False
    stop: tuple[str, ...] = ()
    truncate: int | None = None
    return_full_text: bool = False
    details: bool = False
    decoder_input_details: bool = False
    parse_special_tokens: bool | None = None

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn: as `do_sample` says, else where something is said of how to draw them."""
        if self.do_sample is not None:
            return self.do_sample
        return any(value is not None for value in (self.temperature, self.top_k, self.top_p))

    @property
    def detailed(self) -> bool:
        """Whether answers come with their tokens."""
        return self.details or self.decoder_input_details


def read_parameters(given: Any, where: str = "parameters", excluded: Mapping[str, str] | None = None) -> Parameters:
    """Read a JSON object of parameters; null stands for one that is not given.

    `excluded`: names that have no place in the form asked, each with the reason. Refusal in one line for an unknown
    name, a wrong type, a value out of range, and combinations that cannot be had.
    """
    prefix = f"{where}." if where else ""
    if given is None:
        return Parameters()
    if not isinstance(given, dict):
        raise Refusal(f"{where}: {shown(given)}: expected an object of parameters")
    found: dict[str, Any] = {}
    for name, value in given.items():
        if excluded and name in excluded:
            raise Refusal(f"{prefix}{name}: {excluded[name]}")
        if name not in RULES:
            known = "; known are " + ", ".join(rule for rule in RULES if rule not in (excluded or {}))
            raise Refusal(f"{prefix}{name}: unknown parameter{did_you_mean(name, RULES) or known}")
        if value is not None:
            found[name] = checked(RULES[name], value, prefix + name)
    parameters = Parameters(**found)
    _check_together(parameters, prefix)
    return parameters


def checked(rule: Rule, value: Any, where: str) -> Any:
    """`value` in the type and range of `rule`; Refusal says where and what was expected."""
    plain = plain_value(value)
    fitting: Any
    if rule.kind == "strings":
        fitting = _texts(plain)
    elif rule.kind == "flag":
        fitting = plain if isinstance(plain, bool) else None
    else:
        fitting = _number(rule, plain)
    if fitting is None:
        raise Refusal(f"{where}: {shown(value)}: expected {rule.expected}")
    return fitting


def plain_value(value: Any) -> Any:
    """A number or boolean out of the text it was written as; anything else as it is."""
    if not isinstance(value, JsonLiteral):
        return value
    try:
        return json.loads(value)
    except ValueError:  # an integer of thousands of digits
        return str(value)


def shown(value: Any) -> str:
    """A value as the caller wrote it, short enough for one line."""
    text = str(value) if isinstance(value, JsonLiteral) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _number(rule: Rule, value: Any) -> int | float | None:
    kinds = (int,) if rule.kind == "integer" else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        return None
    if not (rule.low < value if rule.open_low else rule.low <= value) or value > rule.high or value == math.inf:
        return None
    return value if rule.kind == "integer" else float(value)


def _texts(value: Any) -> tuple[str, ...] | None:
    texts = [value] if isinstance(value, str) and not isinstance(value, JsonLiteral) else value
    if not isinstance(texts, list) or len(texts) > MOST_STOPS:
        return None
    fitting = all(type(text) is str and 1 <= len(text) <= MOST_STOP_CHARACTERS for text in texts)
    return tuple(texts) if fitting else None


def _check_together(asked: Parameters, prefix: str) -> None:
    count, beams = asked.num_return_sequences, asked.num_beams
    if beams > 1 and count > beams:
        raise Refusal(f"{prefix}num_return_sequences: {count}: at most num_beams, which is {beams}")
    if count > 1 and beams == 1 and not asked.samples:
        raise Refusal(f"{prefix}num_return_sequences: {count}: there is one likeliest answer; set do_sample to true, "
                      f"or num_beams to {count} or more")  # fmt: skip


assert set(RULES) == {field.name for field in fields(Parameters)}
