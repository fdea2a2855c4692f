"""Building the prepared data of instruction, autopilot and chat rows: one pass to judge, one to tokenize.

    survey     every row against every template that could apply -> the template, or all faults
    tokenize   rows in batches -> token store, row table, duplicate groups

Memory holds a batch of rows and some 200 bytes a row; domain adaptation has its own builder (domain.py).
Shapes: R rows, T tokens of a row.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from luthier.data import records, tables
from luthier.data.channel import Channel, RowFile
from luthier.data.chat import ChatError
from luthier.data.example import Example, Span
from luthier.data.forms import Form
from luthier.data.near_duplicates import Sketches
from luthier.data.problems import Problems
from luthier.data.records import Record
from luthier.data.rows import ROW, Array, DropReason, RowOutcome
from luthier.data.tokenize import EncodedRow, Tokenizer
from luthier.data.tokens import TokenWriter
from luthier.errors import DataError, Problem

Say = Callable[[str], None]
_BATCH_ROWS = 512
_BATCH_CHARACTERS = 1 << 20
_IN_HAND = 2  # batches that are tokenized while another is stored
_SAY_EVERY = 50_000  # rows
_HELD_BYTES = 32 * 1024**2  # of files whose rows are parsed once
_TOLD = ("tokens", "completion", "cut", "cut_prompt", "fate", "reason", "stored")  # of a row, beside its own text


@dataclass
class Survey:
    """What the first pass found. `records`: all rows, file by file, where they are few enough to be held until the
    second pass; None where that reads them again.
    """

    form: Form
    origin: str
    rows: int
    warnings: list[str] = field(default_factory=list)
    records: list[list[Record]] | None = None


def files_of(channels: Sequence[Channel]) -> list[RowFile]:
    """The files of all channels, in row order."""
    return [file for channel in channels for file in channel.files]


def survey(channels: Sequence[Channel], candidates: Sequence[tuple[str, Form]], several: bool) -> Survey:
    """Judge every row; choose the first candidate whose fields all rows have. DataError lists the faults.

    `several`: the candidates are defaults, so the message for none that fits says which fields they need.
    """
    reading = Problems()
    judged = [Problems() for _ in candidates]
    lacking: list[dict[str, str]] = [{} for _ in candidates]
    rows, held = 0, _few(files_of(channels))
    kept: list[list[Record]] = []
    for file in files_of(channels):
        kept.append([])
        for record in records.read(file, reading):
            rows += 1
            if held:
                kept[-1].append(record)
            for place, (_, form) in enumerate(candidates):
                for fault in form.faults(record):
                    judged[place].add(file.name, record.line, fault.kind, fault.message, fault.field)
                    if fault.kind == "missing":
                        lacking[place].setdefault(fault.field, f"{record.source}: {fault.message}")
    reading.raise_if_any()
    chosen = next((place for place in range(len(candidates)) if not lacking[place]), None)
    if chosen is None and several:
        raise DataError(_no_default(candidates, lacking))
    chosen = chosen or 0
    judged[chosen].raise_if_any()
    if not rows:
        raise DataError(Problem("", 0, "the channels hold no row"))
    blank = [f"{name}: {count} empty line{'s' * (count > 1)} skipped" for name, count in reading.blank_lines.items()]
    return Survey(candidates[chosen][1], candidates[chosen][0], rows, blank, kept if held else None)


def _few(files: Sequence[RowFile]) -> bool:
    """Whether rows may be held in memory; a Parquet file's size says little of what is in it."""
    return sum(file.path.stat().st_size for file in files) <= _HELD_BYTES and not any(
        tables.is_parquet(file.path) for file in files
    )


def _no_default(candidates: Sequence[tuple[str, Form]], lacking: list[dict[str, str]]) -> list[Problem]:
    first = next(iter(lacking[0].values()))
    reasons = [
        f"{origin} needs {', '.join(map(repr, missing))}, which not every row has"
        for (origin, _), missing in zip(candidates, lacking, strict=True)
    ]
    advice = 'put a template.json beside the rows, such as {"prompt": "{question}", "completion": "{answer}"}'
    return [Problem("", 0, f"there is no template.json, and {'; '.join(reasons)}; {advice} (first: {first})")]


class RowBook:
    """Collects row-table entries a batch at a time."""

    def __init__(self) -> None:
        self._parts: list[Array] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, file: int, lines: Sequence[int]) -> Array:
        """New entries for rows of one file, to be filled in by the caller."""
        part = np.zeros(len(lines), ROW)
        part["file"] = file
        part["line"] = lines
        part["stored"] = -1
        part["near"] = np.arange(self._count, self._count + len(lines))
        self._parts.append(part)
        self._count += len(lines)
        return part

    def table(self) -> Array:
        return np.concatenate(self._parts) if self._parts else np.empty(0, ROW)


def digest(values: Sequence[str]) -> int:
    """64-bit hash of field values; equal for equal rows."""
    joined = "".join(f"{len(value)}:{value}" for value in values)
    return int.from_bytes(hashlib.blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def batches(file: RowFile, held: Iterable[Record] | None = None) -> Iterator[list[Record]]:
    """A file's rows in batches of bounded size: those `held` since the survey, or read again, where a fault means that
    the file changed.
    """
    problems = Problems()
    batch: list[Record] = []
    size = 0
    for record in records.read(file, problems) if held is None else held:
        batch.append(record)
        size += sum(len(value) for value in record.fields.values() if isinstance(value, str | list))
        if len(batch) >= _BATCH_ROWS or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    problems.raise_if_any()
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A batch of one file, its examples, and their tokens once they are there."""

    file: int
    batch: Sequence[Record]
    examples: Sequence[Example]
    encoded: Future[list[EncodedRow]]


@dataclass
class RowBuilder:
    """The second pass. `window`: tokens kept of a row, or of an encoder-decoder's prompt; `output_window`: of its
    completion. `held`: the rows of each file, if the survey held them.
    """

    form: Form
    tokenizer: Tokenizer
    window: int
    output_window: int
    control_tokens: bool
    say: Say
    turns: bool = False
    held: Sequence[Sequence[Record]] | None = None
    problems: Problems = field(default_factory=Problems)

    def build(self, channels: Sequence[Channel], folder: Path) -> None:
        """Write the token store, entries.npy and owner.npy into `folder`."""
        writer = TokenWriter(folder, self.tokenizer.vocab_size, self.turns)
        book, sketches = RowBook(), Sketches()
        owner: list[Array] = []
        said = 0
        for rendered in self._ahead(channels):
            first, batch = len(book), rendered.batch
            entries = book.add(rendered.file, [record.line for record in batch])
            if not self.problems:  # else the job will be refused: the other rows are only judged
                self._store(rendered, rendered.encoded.result(), entries, writer)
            owner.append(first + np.flatnonzero(entries["stored"] >= 0))
            sketches.add(["\n".join(self.form.values(record)) for record in batch])
            if len(book) - said >= _SAY_EVERY:
                said = len(book)
                self.say(f"tokenized {said:,} rows")
        writer.close()
        self.problems.raise_if_any()
        table = book.table()
        table["near"] = sketches.groups()
        np.save(folder / "entries.npy", table)
        np.save(folder / "owner.npy", np.concatenate(owner) if owner else np.empty(0, np.int64))

    def _ahead(self, channels: Sequence[Channel]) -> Iterator[_Rendered]:
        """All batches in order, each tokenized while those before it are stored: the tokenizer waits for no Python.

        Two are in hand, so that one is tokenized while the other's ids become arrays.
        """
        with ThreadPoolExecutor(_IN_HAND) as tokenizing:
            waiting: deque[_Rendered] = deque()
            for number, file in enumerate(files_of(channels)):
                for batch in batches(file, self.held[number] if self.held else None):
                    examples = list(self._examples(batch))
                    rows = [] if self.problems else examples
                    encoded = tokenizing.submit(self.tokenizer.encode_rows, rows)
                    waiting.append(_Rendered(number, batch, examples, encoded))
                    if len(waiting) > _IN_HAND:
                        yield waiting.popleft()
            yield from waiting

    def _store(self, rendered: _Rendered, encoded: Sequence[EncodedRow], entries: Array, writer: TokenWriter) -> None:
        """Store a batch's rows, and say in `entries` how each ended."""
        told: dict[str, list[int]] = {name: [] for name in _TOLD}
        for record, example, row in zip(rendered.batch, rendered.examples, encoded, strict=True):
            kept, cut_prompt = self._cut(row)
            labels = sum(end - max(start, 1) for start, end in kept.spans)  # nothing predicts a row's first token
            empty = self.form.is_empty(record, example)
            if empty or labels <= 0:
                fate, reason = RowOutcome.DROPPED, DropReason.EMPTY if empty else DropReason.NO_ROOM
                facts = (len(row.ids), 0, 0, 0, fate, reason, -1)
            else:
                fate = RowOutcome.TRUNCATED if len(row.ids) > len(kept.ids) else RowOutcome.KEPT
                stored = writer.append(kept.ids, kept.spans, self._turns(example, kept))
                facts = (len(kept.ids), labels, len(row.ids) - len(kept.ids), cut_prompt, fate, DropReason.NONE, stored)
            for name, fact in zip(_TOLD, facts, strict=True):
                told[name].append(fact)
        for name, column in told.items():
            entries[name] = column
        entries["same"] = [digest(self.form.values(record)) for record in rendered.batch]

    def _cut(self, row: EncodedRow) -> tuple[EncodedRow, int]:
        """What is kept of a row, and how many tokens its prompt lost."""
        if not self.tokenizer.encoder_decoder:
            if len(row.ids) <= self.window:
                return row, 0
            spans = [(start, min(end, self.window)) for start, end in row.spans if start < self.window]
            return EncodedRow(row.ids[: self.window], spans), 0
        start = row.spans[0][0]
        source, target = row.ids[:start], row.ids[start : start + self.output_window]
        closing = self.tokenizer.suffix_ids
        if start > self.window:  # the encoder's text still ends as the tokenizer ends it
            source = np.concatenate([source[: self.window - len(closing)], np.array(closing, dtype=np.int64)])
        kept = np.concatenate([source, target])
        return EncodedRow(kept, [(len(source), len(kept))]), start - len(source)

    def _turns(self, example: Example, kept: EncodedRow) -> list[Span]:
        """Spans of all turns, the user's too; none where they are not asked for."""
        return (
            mask_to_spans(kept.trained | self.tokenizer.user_mask(example.pieces)[: len(kept.ids)])
            if self.turns
            else []
        )

    def _examples(self, batch: Sequence[Record]) -> Iterator[Example]:
        """The batch rendered. A chat template may refuse a conversation that the survey let pass: a problem, then."""
        for record in batch:
            try:
                example = self.form.example(record)
            except ChatError as error:
                self.problems.add(record.file, record.line, "chat template", str(error))
            else:
                yield trust_special_tokens(example) if self.control_tokens else example


def mask_to_spans(trained: Array) -> list[tuple[int, int]]:
    """Stretches [start, end) of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], trained, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def trust_special_tokens(example: Example) -> Example:
    """The example with all of its text trusted: special-token strings in it become control tokens."""
    pieces = tuple(replace(piece, controls=((0, len(piece.text)),)) for piece in example.pieces)
    return replace(example, pieces=pieces)
