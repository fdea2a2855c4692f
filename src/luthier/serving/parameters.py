"""The parameters of a request: names, types and ranges as a table, and their parsed values.

Works on JSON values, with numbers and booleans as records.parse_object leaves them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

from luthier.data.literals import JsonLiteral
from luthier.errors import did_you_mean
from luthier.serving.errors import InvocationError

MAX_SEQUENCES = 64  # per prompt; also the maximum beam width
MAX_STOP_STRINGS, MAX_STOP_CHARACTERS = 16, 1_000
MAX_INTEGER = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterSpec:
    """Type and range of one parameter. `low_exclusive`: `low` itself is invalid. `expected`: for the error message."""

    kind: str  # integer, number, flag or strings
    expected: str
    low: float = -math.inf
    high: float = math.inf
    low_exclusive: bool = False


def _integer(low: int, high: int = MAX_INTEGER) -> ParameterSpec:
    expected = f"an integer of at least {low}" if high == MAX_INTEGER else f"an integer from {low} to {high}"
    return ParameterSpec(kind="integer", expected=expected, low=low, high=high)


def _above(low: float, high: float = math.inf) -> ParameterSpec:
    expected = f"a number above {low:g}" + (f" and at most {high:g}" if high < math.inf else "")
    return ParameterSpec(kind="number", expected=expected, low=low, high=high, low_exclusive=True)


FLAG = ParameterSpec(kind="flag", expected="true or false")
_STOP = f"a list of at most {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_CHARACTERS:,} characters"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParameters:
    """The parameters of a request, each with its spec; None if not given."""

    max_new_tokens: Annotated[int | None, _integer(1)] = None
    max_length: Annotated[int | None, _integer(1)] = None
    max_time: Annotated[float | None, _above(0)] = None
    do_sample: Annotated[bool | None, FLAG] = None
    temperature: Annotated[float | None, _above(0)] = None
    top_k: Annotated[int | None, _integer(1)] = None
    top_p: Annotated[float | None, _above(0, 1)] = None
    seed: Annotated[int | None, _integer(0)] = None
    repetition_penalty: Annotated[float, _above(0)] = 1.0
    no_repeat_ngram_size: Annotated[int, _integer(2)] = 0
    num_beams: Annotated[int, _integer(1, MAX_SEQUENCES)] = 1
    num_return_sequences: Annotated[int, _integer(1, MAX_SEQUENCES)] = 1
    early_stopping: Annotated[bool, FLAG] = False
    stop: Annotated[tuple[str, ...], ParameterSpec(kind="strings", expected=_STOP)] = ()
    truncate: Annotated[int | None, _integer(1)] = None
    return_full_text: Annotated[bool, FLAG] = False
    details: Annotated[bool, FLAG] = False
    decoder_input_details: Annotated[bool, FLAG] = False
    parse_special_tokens: Annotated[bool | None, FLAG] = None

    @property
    def is_sampling(self) -> bool:
        """Whether tokens are sampled: `do_sample`, or if not given, whether any sampling parameter is."""
        if self.do_sample is not None:
            return self.do_sample
        return any(value is not None for value in (self.temperature, self.top_k, self.top_p))

    @property
    def has_details(self) -> bool:
        """Whether the response lists tokens."""
        return self.details or self.decoder_input_details


PARAMETERS: dict[str, ParameterSpec] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(GenerationParameters, include_extras=True).items()
}


# Parameters of other servers with the values that ask for nothing: taken, without effect; other values are refused.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "n": (1,), "best_of": (1,),
    "response_format": ({"type": "text"},), "watermark": (False,), "typical_p": (1,), "min_p": (0,),
    "length_penalty": (1,), "stream": (False,), "logprobs": (False,), "tool_choice": ("none",),
}  # fmt: skip


def read_parameters(
    values: Any, where: str = "parameters", excluded: Mapping[str, str] | None = None
) -> GenerationParameters:
    """Parse a JSON object of parameters; null means not given.

    `excluded`: parameters that the request format does not support, each with the reason. InvocationError for an
    unknown name, a wrong type, a value out of range, or an invalid combination.
    """
    prefix = f"{where}." if where else ""
    if values is None:
        return GenerationParameters()
    if not isinstance(values, dict):
        raise InvocationError(f"{where}: {excerpt(values)}: expected an object of parameters")
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        if excluded and name in excluded:
            raise InvocationError(f"{prefix}{name}: {excluded[name]}")
        if name in NEUTRAL and _plain(value) in (None, *NEUTRAL[name]):
            continue
        if name in NEUTRAL:
            only = " or ".join(json.dumps(neutral) for neutral in NEUTRAL[name])
            raise InvocationError(
                f"{prefix}{name}: {excerpt(value)}: not supported here; expected {only}, or leave it out"
            )
        if name not in PARAMETERS:
            known = "; known parameters: " + ", ".join(known for known in PARAMETERS if known not in (excluded or {}))
            raise InvocationError(f"{prefix}{name}: unknown parameter{did_you_mean(name, PARAMETERS) or known}")
        if value is not None:
            parsed[name] = parse_parameter(PARAMETERS[name], value, prefix + name)
    parameters = GenerationParameters(**parsed)
    _check_combination(parameters, prefix)
    return parameters


def parse_parameter(spec: ParameterSpec, value: Any, where: str) -> Any:
    """Convert `value` to the type of `spec`; InvocationError if type or range is wrong."""
    literal = parse_literal(value)
    parsed: Any
    if spec.kind == "strings":
        parsed = _parse_strings(literal)
    elif spec.kind == "flag":
        parsed = literal if isinstance(literal, bool) else None
    else:
        parsed = _parse_number(spec, literal)
    if parsed is None:
        raise InvocationError(f"{where}: {excerpt(value)}: expected {spec.expected}")
    return parsed


def parse_literal(value: Any) -> Any:
    """Convert a JsonLiteral to its number or boolean; other values are returned unchanged."""
    if not isinstance(value, JsonLiteral):
        return value
    try:
        return json.loads(value)
    except ValueError:  # an integer of thousands of digits
        return str(value)


def _plain(value: Any) -> Any:
    """The value with its literals converted, at every depth."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else parse_literal(value)


def excerpt(value: Any) -> str:
    """Format a value as in the request, truncated to fit in an error message."""
    text = str(value) if isinstance(value, JsonLiteral) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _parse_number(spec: ParameterSpec, value: Any) -> int | float | None:
    types = (int,) if spec.kind == "integer" else (int, float)
    if isinstance(value, bool) or not isinstance(value, types):
        return None
    if not (spec.low < value if spec.low_exclusive else spec.low <= value) or value > spec.high or value == math.inf:
        return None
    return value if spec.kind == "integer" else float(value)


def _parse_strings(value: Any) -> tuple[str, ...] | None:
    strings = [value] if isinstance(value, str) and not isinstance(value, JsonLiteral) else value
    if not isinstance(strings, list) or len(strings) > MAX_STOP_STRINGS:
        return None
    is_valid = all(type(text) is str and 1 <= len(text) <= MAX_STOP_CHARACTERS for text in strings)
    return tuple(strings) if is_valid else None


def _check_combination(parameters: GenerationParameters, prefix: str) -> None:
    count, beams = parameters.num_return_sequences, parameters.num_beams
    where = f"{prefix}num_return_sequences: {count}"
    if beams > 1 and count > beams:
        raise InvocationError(f"{where}: expected at most num_beams ({beams})")
    if count > 1 and beams == 1 and not parameters.is_sampling:
        raise InvocationError(
            f"{where}: greedy decoding returns one sequence; set do_sample to true, or num_beams to at least {count}"
        )
