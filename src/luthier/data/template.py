"""The prompt template: `{field}` placeholders in a prompt and a completion, filled with a row's values.

The same object renders rows in training and requests in serving. Values are inserted unchanged and not parsed again, so
a value that contains `{answer}` stays that text.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from luthier.data.example import Example, Piece, Span
from luthier.errors import DataError, Problem, did_you_mean

DEMARCATION = "\n\n### Response:\n"
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_FORBIDDEN = {
    ".": "attribute access is not allowed",
    "[": "index access is not allowed",
    "]": "index access is not allowed",
    "!": "conversions are not allowed",
    ":": "format specifications are not allowed",
}
_EMPTY_IN_CHAT = ("context", "input")  # fields beside `instruction` that rows may leave empty
_ONE_USER_MESSAGE = (
    "{% if messages | length != 1 or messages[0]['role'] != 'user' %}"
    "{{ raise_exception('this model was tuned on single prompts: send one user message') }}{% endif %}"
)
Segments = tuple[tuple[bool, str], ...]  # (is a field, its name or the literal text)


@dataclass(frozen=True)
class Template:
    """A validated template. `demarcation` is text appended to the prompt (JumpStart's "### Response:"), or empty.

    Raises DataError for unbalanced braces and for anything but field names between them.
    """

    prompt: str
    completion: str
    demarcation: str = ""

    def __post_init__(self) -> None:
        if not self.fields:
            raise _fault("neither 'prompt' nor 'completion' has a {field}, so all rows would be the same")

    @functools.cached_property
    def _segments(self) -> tuple[Segments, Segments]:
        return _parse("prompt", self.prompt), _parse("completion", self.completion)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the placeholders in order of first occurrence."""
        return tuple(dict.fromkeys(name for part in self._segments for is_field, name in part if is_field))

    @property
    def prompt_fields(self) -> tuple[str, ...]:
        """Names of the prompt's placeholders, which a request to serving must have."""
        return tuple(dict.fromkeys(name for is_field, name in self._segments[0] if is_field))

    @property
    def completion_fields(self) -> tuple[str, ...]:
        """Names of the completion's placeholders."""
        return tuple(dict.fromkeys(name for is_field, name in self._segments[1] if is_field))

    def render(self, record: Mapping[str, str], source: str = "") -> Example:
        """Fill prompt and completion; KeyError names a missing field."""
        completion = _fill(self._segments[1], record, trained=True)
        return Example(source, (*self.render_prompt(record, source).pieces, completion))

    def render_prompt(self, record: Mapping[str, str], source: str = "") -> Example:
        """Fill the prompt only, with the demarcation, as serving does."""
        piece = _fill(self._segments[0], record, trained=False)
        if self.demarcation:
            end = len(piece.text) + len(self.demarcation)
            piece = Piece(piece.text + self.demarcation, False, (*piece.controls, (len(piece.text), end)))
        return Example(source, (piece,))

    def to_chat_template(self, beginning: str = "") -> str | None:
        """A Jinja chat template that makes of one user message the prompt of training, as text.

        The message fills the prompt's only field, or `instruction` with an empty context. None for other fields, which
        a message does not have. `beginning`: the text of the tokens before each prompt (BOS).
        """
        fields = set(self.prompt_fields)
        field = next(iter(fields)) if len(fields) == 1 else "instruction"
        if field not in fields or fields - {field, *_EMPTY_IN_CHAT}:
            return None
        text = {field: "messages[0]['content']"}
        parts = [text.get(value, "") if is_field else _jinja_literal(value) for is_field, value in self._segments[0]]
        parts = [_jinja_literal(beginning), *parts, _jinja_literal(self.demarcation)]
        return _ONE_USER_MESSAGE + "".join(f"{{{{ {part} }}}}" for part in parts if part)

    def to_json(self) -> dict[str, str]:
        """Return the template JSON-ready, for `from_json`."""
        stored = {"prompt": self.prompt, "completion": self.completion}
        return stored | {"demarcation": self.demarcation} if self.demarcation else stored

    @classmethod
    def from_json(cls, stored: Mapping[str, str]) -> Template:
        return cls(stored["prompt"], stored["completion"], stored.get("demarcation", ""))

    @classmethod
    def read(cls, path: Path, demarcation: str = "") -> Template:
        """Read a template.json: an object with the strings `prompt` and `completion`, nothing else."""
        try:
            stored = json.loads(path.read_bytes().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise _fault(f"not UTF-8 at byte {error.start}; save it as UTF-8", path.name) from None
        except json.JSONDecodeError as error:
            raise _fault(f"not JSON: {error.msg}", path.name, error.lineno) from None
        except RecursionError:
            raise _fault("nested too deeply; expected an object of two strings", path.name) from None
        expected = ("prompt", "completion")
        if not isinstance(stored, dict):
            raise _fault("expected an object with the strings 'prompt' and 'completion'", path.name)
        for name in stored:
            if name not in expected:
                raise _fault(
                    f"unknown key {name!r}{did_you_mean(name, expected)}; expected exactly 'prompt' and 'completion'",
                    path.name,
                )
        for name in expected:
            if not isinstance(stored.get(name), str):
                raise _fault(f"{name!r} must be a string", path.name)
        try:
            return cls(stored["prompt"], stored["completion"], demarcation)
        except DataError as error:
            raise _fault(error.problems[0].message, path.name) from None


def _jinja_literal(text: str) -> str:
    """The text as a Jinja string, empty for an empty text."""
    escaped = (
        text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    )
    return f"'{escaped}'" if text else ""


def _fault(message: str, file: str = "template", line: int = 0) -> DataError:
    return DataError(Problem(file, line, message))


def _parse(part: str, text: str) -> Segments:
    segments: list[tuple[bool, str]] = []
    literal, end = "", 0
    for match in _TOKEN.finditer(text):
        literal, end = literal + text[end : match.start()], match.end()
        token, name = match.group(), match.group(1)
        if token in ("{{", "}}"):
            literal += token[0]
        elif name is None:
            raise _fault(f"{part!r}: single {token!r} at character {match.start() + 1}; a brace is {token * 2!r}")
        else:
            _check_name(part, name)
            segments += [(False, literal), (True, name)]
            literal = ""
    segments.append((False, literal + text[end:]))
    return tuple((is_field, value) for is_field, value in segments if is_field or value)


def _check_name(part: str, name: str) -> None:
    if not name or name.isdigit():
        raise _fault(f"{part!r}: {{{name}}} is positional; give a field name, or write {{{{ }}}} for braces")
    for character, reason in _FORBIDDEN.items():
        if character in name:
            raise _fault(f"{part!r}: {{{name}}}: {reason}; give a field name, or write {{{{ }}}} for literal braces")
    if name != name.strip():
        raise _fault(f"{part!r}: {{{name}}} has blanks inside its braces; write {{{name.strip()}}}")


def _fill(segments: Segments, record: Mapping[str, str], trained: bool) -> Piece:
    parts: list[str] = []
    controls: list[Span] = []
    length = 0
    for is_field, value in segments:
        text = record[value] if is_field else value
        parts.append(text)
        if not is_field:
            controls.append((length, length + len(text)))
        length += len(text)
    return Piece("".join(parts), trained, tuple(controls))


DEFAULT = Template(
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{context}",
    "{response}",
)
AUTOPILOT = Template("{input}", "{output}")
