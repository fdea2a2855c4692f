"""Tokenizes instruction, autopilot and chat rows in two passes.

    scan       check every row against every candidate format -> the format, or all problems
    tokenize   rows in batches -> token store, row table, duplicate groups

Memory holds some batches of rows and about 200 bytes per row; domain adaptation has its own builder (domain.py).
Shapes: R rows, T tokens of a row.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from luthier.data import records, tables
from luthier.data.channel import Channel, RowFile
from luthier.data.conversation import ChatError
from luthier.data.example import Example, Span
from luthier.data.near_duplicates import Sketches
from luthier.data.problems import Problems
from luthier.data.records import Record
from luthier.data.row_formats import RowFormat
from luthier.data.rows import ROW, Array, DropReason, RowOutcome
from luthier.data.strict_utf8 import is_compressed
from luthier.data.tokenize import EncodedRow, Tokenizer
from luthier.data.tokens import TokenWriter
from luthier.errors import DataError, Problem

Say = Callable[[str], None]
_BATCH_ROWS = 512
_BATCH_CHARACTERS = 1 << 20
_BATCHES_AHEAD = 2  # batches tokenized while another is stored
_ROWS_PER_PROGRESS = 50_000
_MAX_HELD_BYTES = 32 * 1024**2  # total file size up to which parsed rows are held between the passes
_COLUMNS = ("tokens", "completion", "cut", "cut_prompt", "fate", "reason", "stored")  # filled in by tokenizing


@dataclass(kw_only=True)
class RowScan:
    """Result of the first pass.

    `unread`: rows by key that is not read. `records`: all rows of each file; None when they are too large to hold and
    the second pass reads them again.
    """

    row_format: RowFormat
    origin: str
    rows: int
    warnings: list[str] = field(default_factory=list)
    unread: dict[str, int] = field(default_factory=dict)
    records: list[list[Record]] | None = None


def files_of(channels: Sequence[Channel]) -> list[RowFile]:
    """The files of all channels, in row order."""
    return [file for channel in channels for file in channel.files]


def scan_rows(channels: Sequence[Channel], candidates: Sequence[tuple[str, RowFormat]], several: bool) -> RowScan:
    """Check every row and choose the first candidate whose fields all rows have; DataError lists all problems.

    `several`: the candidates are defaults, so the error when none fits lists the fields that each needs.
    """
    reading = Problems()
    faults = [Problems() for _ in candidates]
    missing: list[dict[str, str]] = [{} for _ in candidates]
    unread = [Counter[str]() for _ in candidates]
    rows, is_held = 0, _can_hold(files_of(channels))
    held: list[list[Record]] = []
    for file in files_of(channels):
        held.append([])
        for record in records.read(file, reading):
            rows += 1
            if is_held:
                held[-1].append(record)
            for place, (_, row_format) in enumerate(candidates):
                record_faults = list(row_format.faults(record))
                if not record_faults:
                    unread[place].update(row_format.unread(record))
                for fault in record_faults:
                    faults[place].add(file.name, record.line, fault.kind, fault.message, fault.field)
                    if fault.kind == "missing":
                        missing[place].setdefault(fault.field, f"{record.source}: {fault.message}")
    reading.raise_if_any()
    chosen = next((place for place in range(len(candidates)) if not missing[place]), None)
    if chosen is None and several:
        raise DataError(_no_default(candidates, missing))
    chosen = chosen or 0
    faults[chosen].raise_if_any()
    if not rows:
        raise DataError(Problem("", 0, "the channels contain no rows"))
    warnings = [f"{name}: {count} empty line{'s' * (count > 1)} skipped" for name, count in reading.blank_lines.items()]
    origin, row_format = candidates[chosen]
    records_held = held if is_held else None
    return RowScan(
        row_format=row_format, origin=origin, rows=rows, warnings=warnings, unread=dict(sorted(unread[chosen].items())),
        records=records_held,
    )  # fmt: skip


def _can_hold(files: Sequence[RowFile]) -> bool:
    """Whether the files' rows fit in memory; unknown for Parquet and gzip, which are compressed."""
    return sum(file.path.stat().st_size for file in files) <= _MAX_HELD_BYTES and not any(
        tables.is_parquet(file.path) or is_compressed(file.path) for file in files
    )


def _no_default(candidates: Sequence[tuple[str, RowFormat]], missing: list[dict[str, str]]) -> list[Problem]:
    first = next(iter(missing[0].values()))
    reasons = [
        f"{origin} needs {', '.join(map(repr, fields))}, which some rows lack"
        for (origin, _), fields in zip(candidates, missing, strict=True)
    ]
    advice = (
        'add a template.json beside the rows, such as {"prompt": "{question}", "completion": "{answer}"}, or give '
        "--kind domain (instruction_tuned=False) to train on plain text, a column named text or the first one"
    )
    return [Problem("", 0, f"no template.json, and {'; '.join(reasons)}; {advice} (first: {first})")]


class RowTableBuilder:
    """Collects the entries of a row table batch by batch."""

    def __init__(self) -> None:
        self._parts: list[Array] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, file: int, lines: Sequence[int]) -> Array:
        """Append entries for rows of one file and return them; the caller fills in the rest."""
        entries = np.zeros(len(lines), ROW)
        entries["file"] = file
        entries["line"] = lines
        entries["stored"] = -1
        entries["near"] = np.arange(self._count, self._count + len(lines))
        self._parts.append(entries)
        self._count += len(lines)
        return entries

    def table(self) -> Array:
        return np.concatenate(self._parts) if self._parts else np.empty(0, ROW)


def digest(values: Sequence[str]) -> int:
    """64-bit hash of a row's field values."""
    joined = "".join(f"{len(value)}:{value}" for value in values)
    return int.from_bytes(hashlib.blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def batches(file: RowFile, held: Iterable[Record] | None = None) -> Iterator[list[Record]]:
    """Yield a file's rows in batches of bounded size: those `held` since the scan, or read again.

    DataError when re-reading finds a problem: the file has changed.
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
class _RenderedBatch:
    """A batch of one file's rows, their examples, and the future of their tokens."""

    file: int
    batch: Sequence[Record]
    examples: Sequence[Example]
    encoded: Future[list[EncodedRow]]


@dataclass(kw_only=True)
class RowBuilder:
    """The second pass: renders, tokenizes, truncates and stores rows.

    `max_length`: maximum tokens of a row, or of an encoder-decoder's prompt; `max_output_length`: of its completion.
    `turns`: also store the spans of all turns. `records`: the rows of each file, if the scan held them.
    """

    row_format: RowFormat
    tokenizer: Tokenizer
    max_length: int
    max_output_length: int
    control_tokens: bool
    say: Say
    turns: bool = False
    records: Sequence[Sequence[Record]] | None = None
    problems: Problems = field(default_factory=Problems)

    def build(self, channels: Sequence[Channel], folder: Path) -> None:
        """Write the token store, entries.npy and owner.npy into `folder`."""
        writer = TokenWriter(folder, self.tokenizer.vocab_size, self.turns)
        book, sketches = RowTableBuilder(), Sketches()
        input_rows: list[Array] = []
        masked = array("i")
        reported = 0
        for rendered in self._tokenize_ahead(channels):
            start, batch = len(book), rendered.batch
            masked.extend(example.masked_turns for example in rendered.examples)
            entries = book.add(rendered.file, [record.line for record in batch])
            if not self.problems:  # with problems the job is refused anyway; the other rows are only checked
                self._store(rendered, rendered.encoded.result(), entries, writer)
            input_rows.append(start + np.flatnonzero(entries["stored"] >= 0))
            sketches.add(["\n".join(self.row_format.values(record)) for record in batch])
            if len(book) - reported >= _ROWS_PER_PROGRESS:
                reported = len(book)
                self.say(f"tokenized {reported:,} rows")
        writer.close()
        self.problems.raise_if_any()
        table = book.table()
        table["near"] = sketches.groups()
        if any(masked):
            np.save(folder / "masked.npy", np.array(masked, dtype=np.int32))
        np.save(folder / "entries.npy", table)
        np.save(folder / "owner.npy", np.concatenate(input_rows) if input_rows else np.empty(0, np.int64))

    def _tokenize_ahead(self, channels: Sequence[Channel]) -> Iterator[_RenderedBatch]:
        """Yield all batches in order; following batches are tokenized in threads while one is stored."""
        with ThreadPoolExecutor(_BATCHES_AHEAD) as tokenizing:
            waiting: deque[_RenderedBatch] = deque()
            for number, file in enumerate(files_of(channels)):
                for batch in batches(file, self.records[number] if self.records else None):
                    examples = list(self._render(batch))
                    rows = [] if self.problems else examples
                    encoded = tokenizing.submit(self.tokenizer.encode_rows, rows)
                    waiting.append(_RenderedBatch(number, batch, examples, encoded))
                    if len(waiting) > _BATCHES_AHEAD:
                        yield waiting.popleft()
            yield from waiting

    def _store(
        self, rendered: _RenderedBatch, encoded: Sequence[EncodedRow], entries: Array, writer: TokenWriter
    ) -> None:
        """Store a batch's rows and record the outcome of each in `entries`."""
        columns: dict[str, list[int]] = {name: [] for name in _COLUMNS}
        for record, example, row in zip(rendered.batch, rendered.examples, encoded, strict=True):
            kept, cut_prompt = self._truncate(row)
            labels = sum(end - max(start, 1) for start, end in kept.spans)  # nothing predicts a row's first token
            reason = self.row_format.drop_reason(record, example)
            if reason or labels <= 0:
                outcome, reason = RowOutcome.DROPPED, reason or DropReason.NO_ROOM
                values = (len(row.ids), 0, 0, 0, outcome, reason, -1)
            else:
                outcome = RowOutcome.TRUNCATED if len(row.ids) > len(kept.ids) else RowOutcome.KEPT
                stored = writer.append(kept.ids, kept.spans, self._turn_spans(example, kept))
                values = (
                    len(kept.ids),
                    labels,
                    len(row.ids) - len(kept.ids),
                    cut_prompt,
                    outcome,
                    DropReason.NONE,
                    stored,
                )
            for name, value in zip(_COLUMNS, values, strict=True):
                columns[name].append(value)
        for name, column in columns.items():
            entries[name] = column
        entries["same"] = [digest(self.row_format.values(record)) for record in rendered.batch]

    def _truncate(self, row: EncodedRow) -> tuple[EncodedRow, int]:
        """Return the truncated row and the number of tokens cut from its prompt."""
        if not self.tokenizer.encoder_decoder:
            if len(row.ids) <= self.max_length:
                return row, 0
            spans = [(start, min(end, self.max_length)) for start, end in row.spans if start < self.max_length]
            return EncodedRow(row.ids[: self.max_length], spans), 0
        start = row.spans[0][0]
        source, target = row.ids[:start], row.ids[start : start + self.max_output_length]
        closing = self.tokenizer.suffix_ids
        if start > self.max_length:  # the encoder's input still ends with the tokenizer's suffix
            source = np.concatenate([source[: self.max_length - len(closing)], np.array(closing, dtype=np.int64)])
        kept = np.concatenate([source, target])
        return EncodedRow(kept, [(len(source), len(kept))]), start - len(source)

    def _turn_spans(self, example: Example, kept: EncodedRow) -> list[Span]:
        """Spans of all turns, including the user's; empty unless `turns`."""
        return (
            mask_to_spans(kept.trained | self.tokenizer.user_mask(example.pieces)[: len(kept.ids)])
            if self.turns
            else []
        )

    def _render(self, batch: Sequence[Record]) -> Iterator[Example]:
        """Render the batch; a conversation that the chat template refuses becomes a problem."""
        for record in batch:
            try:
                example = self.row_format.example(record)
            except ChatError as error:
                self.problems.add(record.file, record.line, "chat template", str(error))
            else:
                yield trust_special_tokens(example) if self.control_tokens else example


def mask_to_spans(trained: Array) -> list[tuple[int, int]]:
    """Return the spans [start, end) of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], trained, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def trust_special_tokens(example: Example) -> Example:
    """Return the example with all text trusted: special-token strings in it become control tokens."""
    pieces = tuple(replace(piece, controls=((0, len(piece.text)),)) for piece in example.pieces)
    return replace(example, pieces=pieces)
