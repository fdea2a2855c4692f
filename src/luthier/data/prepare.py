"""Prepares channels for training: the entry point of luthier.data.

    channels -> kind -> template -> scan (check all rows) -> tokenize (cached) -> split -> Dataset

It handles files, rows and tokens, without models or training.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data import cache as store_cache
from luthier.data import ledger, records
from luthier.data.build import RowBuilder, files_of, scan_rows, trust_special_tokens
from luthier.data.channel import Channel, find_template, open_channels
from luthier.data.chat import ALL, ASSISTANT, ChatTemplate
from luthier.data.domain import BlockBuilder
from luthier.data.example import Example, Piece
from luthier.data.kind import check_files, detect
from luthier.data.ledger import RowCounts
from luthier.data.problems import Problems
from luthier.data.row_formats import ChatFormat, RowFormat, TemplateFormat, TextFormat, text_column
from luthier.data.rows import SPLITS, Array, FileName, RowOutcome, RowTable
from luthier.data.settings import SAMPLE_NAMES, DataSettings
from luthier.data.split import SplitAssignment, assign_splits, duplicates_across
from luthier.data.template import AUTOPILOT, DEFAULT, DEMARCATION, Template
from luthier.data.template_forms import REFUSE
from luthier.data.template_warnings import template_warnings
from luthier.data.tokenize import Tokenizer
from luthier.data.tokens import TokenStore
from luthier.errors import DataError, Problem, SettingError, UserError

FORMAT_VERSION = 2  # of the cache; increase it whenever the same input would give other tokens
CHAT_FORMAT_VERSION = 3  # the same for conversations; a checkpoint resumes only under the same versions
CACHE_LAYOUT = 2  # what is stored beside the tokens; no part of the fingerprint under which a checkpoint resumes
DOCUMENTED = "the documented default template"
_EXAMPLES_PER_BATCH = 4_096  # rows held in memory to yield examples in any order

__all__ = ["DataSettings", "Dataset", "prepare"]


@dataclass(kw_only=True)
class Dataset:
    """Prepared rows for training and evaluation: tokens on disk, texts re-read from their files on demand.

    `template_origin` names the template in use; `file_hashes` maps ``channel/file`` to its sha256; `max_length` is the
    maximum number of tokens of a row; `unread` counts rows by key that is not read.
    """

    kind: str
    template: Template | None
    template_origin: str
    tokens: TokenStore
    split: SplitAssignment
    counts: RowCounts
    warnings: list[str]
    fingerprint: str
    file_hashes: dict[str, str]
    table: RowTable
    max_length: int
    unread: dict[str, int]
    _channels: Sequence[Channel] = field(repr=False)
    _format: RowFormat = field(repr=False)
    _tokenizer: Tokenizer = field(repr=False)
    _input_rows: Array = field(repr=False)  # (stored rows,) the input row of each
    _trusts_text: bool = field(repr=False, default=False)

    @property
    def turns(self) -> str | None:
        """Which turns of a conversation carry loss (chat.TURNS); None for rows without turns."""
        return self._format.turns if isinstance(self._format, ChatFormat) else None

    @property
    def masked_turns(self) -> int:
        """Number of turns that their rows exclude from the loss."""
        return 0 if self.table.masked is None else int(self.table.masked.sum())

    def write_ledger(self, path: Path) -> None:
        """Write ledger.jsonl: one line per input row."""
        ledger.write(path, self.table, self.split.row_splits)

    def examples(self, indices: Array) -> Iterator[Example]:
        """Yield the examples of stored rows in the order of `indices`, re-reading their files."""
        for start in range(0, len(indices), _EXAMPLES_PER_BATCH):
            batch = np.asarray(indices[start : start + _EXAMPLES_PER_BATCH], dtype=np.int64)
            if self.kind == "domain":
                yield from (self._block(int(index)) for index in batch)
                continue
            rows = self._input_rows[batch]
            ascending = np.unique(rows)
            examples = dict(zip(ascending.tolist(), self._read(ascending), strict=False))
            if len(examples) < len(ascending):
                raise DataError(
                    Problem("", 0, "the data files have changed since they were prepared; start the command again")
                )
            yield from (examples[row] for row in rows.tolist())

    def _block(self, index: int) -> Example:
        ids, _ = self.tokens.row(index)
        text = self._tokenizer.decode(ids)
        return Example(self.table.source(int(self._input_rows[index])), (Piece(text, True),))

    def _read(self, rows: Array) -> Iterator[Example]:
        """Yield the examples of input rows, which must be ascending."""
        entries = self.table.entries
        for number, file in enumerate(files_of(self._channels)):
            lines = frozenset(entries["line"][rows[entries["file"][rows] == number]].tolist())
            if not lines:
                continue
            last = max(lines)
            for record in records.read(file, Problems(), lines):
                if record.line in lines:
                    example = self._format.example(record)
                    yield trust_special_tokens(example) if self._trusts_text else example
                if record.line >= last:
                    break


def prepare(
    channels: Mapping[str, Path],
    settings: DataSettings,
    tokenizer: Tokenizer,
    cache: Path,
    say: Callable[[str], None] | None = None,
) -> Dataset:
    """Read, check, tokenize and split the rows of `channels`; DataError lists every problem found.

    `cache` is the folder for tokenized data, keyed by content; `say` receives progress messages.
    """
    opened_channels = open_channels(channels, split_by_name=not settings.scoring)
    kind = detect(opened_channels[0]) if settings.kind == "auto" else settings.kind
    check_files(kind, opened_channels)
    if tokenizer.encoder_decoder:
        _check_pairs(kind, settings)
    max_length, warning = settings.resolve_max_length(tokenizer.model_max_length)
    warnings = [text for channel in opened_channels for text in channel.warnings] + ([warning] if warning else [])
    hashes = {f"{file.channel}/{file.name}": file.sha256() for file in files_of(opened_channels)}
    pipeline = _Pipeline(
        kind=kind,
        channels=opened_channels,
        settings=settings,
        tokenizer=tokenizer,
        max_length=max_length,
        hashes=hashes,
        say=say or (lambda _: None),
    )
    candidates = pipeline.candidates(warnings)
    key = store_cache.key_of({**pipeline.cache_facts(candidates), "layout": CACHE_LAYOUT})
    folder = store_cache.find(cache, key)
    if folder is None:
        folder = store_cache.store(cache, key, lambda path: pipeline.build(candidates, path))
    else:
        pipeline.say("using the tokenized data of an earlier run")
    return pipeline.load(folder, candidates, warnings)


def _check_pairs(kind: str, settings: DataSettings) -> None:
    """Raise an error for data or settings that an encoder-decoder cannot be trained on."""
    if kind not in ("instruction", "autopilot"):
        raise DataError(
            Problem(
                "",
                0,
                f"the model is an encoder-decoder (T5), which trains on prompt/completion rows only; the rows are "
                f"{kind} data: give prompt/completion rows, or choose a causal model",
            )
        )
    if not settings.completion_only:
        raise SettingError(
            "completion_only_loss=False: an encoder-decoder has no loss on the prompt; leave it at True, or choose a "
            "causal model"
        )


Candidates = list[tuple[str, RowFormat]]


@dataclass(frozen=True, kw_only=True)
class _Pipeline:
    """The inputs of `prepare`, resolved before the first row is read, and its steps."""

    kind: str
    channels: list[Channel]
    settings: DataSettings
    tokenizer: Tokenizer
    max_length: int
    hashes: dict[str, str]
    say: Callable[[str], None]

    def candidates(self, warnings: list[str]) -> Candidates:
        """Return (origin, format) of each row format that may apply, in order of preference."""
        if self.kind == "instruction":
            return [(origin, TemplateFormat(template)) for origin, template in self._templates(warnings)]
        ignored = [channel.template for channel in self.channels if channel.template]
        if ignored:
            warnings.append(
                f"template.json is not used: {self.kind} data needs none; for rows that it renders give "
                "--kind instruction"
            )
        if self.kind == "autopilot":
            columns = Template(AUTOPILOT.prompt, AUTOPILOT.completion, self._demarcation)
            template = self.settings.template or columns
            return [("the Autopilot columns", TemplateFormat(template, exact=True))]
        if self.kind == "chat":
            if self.tokenizer.chat is None:
                raise DataError(
                    Problem(
                        "",
                        0,
                        "the rows are conversations, but the model's tokenizer has no chat template; choose a model "
                        "that has one, or give prompt/completion rows",
                    )
                )
            return [("the model's chat template", self._chat_format(self.tokenizer.chat))]
        return [("plain text", self._text_format(warnings))]

    def _chat_format(self, chat: ChatTemplate) -> ChatFormat:
        settings = self.settings
        return ChatFormat(
            chat.with_reasoning(settings.reasoning), settings.train_on_turns, not settings.completion_only
        )

    @property
    def _trains_all_turns(self) -> bool:
        return self.kind == "chat" and self.settings.train_on_turns == ALL

    @property
    def _demarcation(self) -> str:
        return DEMARCATION if self.settings.demarcation else ""

    def _templates(self, warnings: list[str]) -> list[tuple[str, Template]]:
        if self.settings.template is not None:
            if any(channel.template for channel in self.channels):
                warnings.append("template.json is not used: the rows are rendered by the run's own template")
            return [("the run's own template", self.settings.template)]
        template = find_template(self.channels, self._demarcation)
        if template is not None:
            if self._demarcation and "### Response:" in template.prompt:
                warnings.append(
                    "template.json: the prompt contains '### Response:', and add_input_output_demarcation_key=True "
                    "appends another; remove one of them"
                )
            frame = self.tokenizer.show(self.tokenizer.prefix_ids), self.tokenizer.show([self.tokenizer.eos_id])
            warnings.extend(template_warnings(template, *frame))
            return [("template.json", template)]
        documented = Template(DEFAULT.prompt, DEFAULT.completion, self._demarcation)
        templates = [(DOCUMENTED, documented)]
        if self.settings.default_template:
            family = Template(*self.settings.default_template, self._demarcation)
            templates.append(("the model family's template", family))
        return templates

    def _text_format(self, warnings: list[str]) -> TextFormat:
        problems = Problems()
        columns = []
        for channel in self.channels:
            record = next(records.read(channel.files[0], problems), None)
            problems.raise_if_any()
            column, warning = text_column(record.fields) if record else ("text", "")
            if warning:
                warnings.append(f"{channel.files[0].name}: {warning}")
            columns.append(column)
        if len(set(columns)) > 1:
            raise DataError(Problem("", 0, f"the text columns of the channels differ: {', '.join(columns)}"))
        return TextFormat(columns[0])

    def cache_facts(self, candidates: Candidates) -> dict[str, Any]:
        """Return what the tokenized data depends on; the split only for domain data, whose blocks depend on it."""
        settings = self.settings
        facts: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "kind": self.kind,
            "files": list(self.hashes.items()),
            "window": self.max_length,
            "tokenizer": self.tokenizer.fingerprint,
            "control_tokens": settings.control_tokens,
            "candidates": [(origin, _format_facts(row_format)) for origin, row_format in candidates],
        }
        if self.kind == "chat" and settings.train_on_turns != ASSISTANT:
            facts["turns"] = settings.train_on_turns
        if self.kind == "chat":
            facts["chat_format"] = CHAT_FORMAT_VERSION
        if self.kind == "chat" and settings.reasoning != REFUSE:
            facts["reasoning"] = settings.reasoning
        if self.tokenizer.encoder_decoder:
            facts["output_window"] = settings.max_output_length
        if self.kind == "domain":
            facts["append_eod"] = settings.append_eod
            facts["split"] = [
                settings.validation_split_ratio,
                settings.test_split_ratio,
                settings.split_seed,
                *settings.max_samples[:2],
                settings.group_near_duplicates,
                settings.scoring,
                sorted(settings.explicit & {"validation_split_ratio", "test_split_ratio"}),
            ]
            if settings.max_samples[2] >= 0:
                facts["split"].append(settings.max_samples[2])
        return facts

    def _check_embedded(self, tokens: TokenStore, table: RowTable, input_rows: Array) -> None:
        """Raise DataError, which names the row, if an id is beyond the model's embedding."""
        if self.tokenizer.vocab_size <= (self.tokenizer.embedding_rows or self.tokenizer.vocab_size):
            return
        for index in range(len(tokens)):
            try:
                self.tokenizer.check_embedded(tokens.row(index)[0])
            except UserError as error:
                raise DataError(Problem(table.source(int(input_rows[index])), 0, str(error))) from None

    def build(self, candidates: Candidates, folder: Path) -> dict[str, Any]:
        """Write the tokenized data to `folder` and return its metadata."""
        with _garbage_collection_disabled():
            return self._build(candidates, folder)

    def _build(self, candidates: Candidates, folder: Path) -> dict[str, Any]:
        scan = scan_rows(self.channels, candidates, several=candidates[0][0] == DOCUMENTED)
        self.say(f"{scan.rows:,} rows read; tokenizing")
        warnings = list(scan.warnings)
        if isinstance(scan.row_format, TextFormat):
            builder = BlockBuilder(
                row_format=scan.row_format,
                tokenizer=self.tokenizer,
                block_size=self.max_length,
                settings=self.settings,
                say=self.say,
            )
            warnings += builder.build(self.channels, folder)
        else:
            RowBuilder(
                row_format=scan.row_format,
                tokenizer=self.tokenizer,
                max_length=self.max_length,
                max_output_length=self.settings.max_output_length,
                control_tokens=self.settings.control_tokens,
                say=self.say,
                turns=self._trains_all_turns,
                records=scan.records,
            ).build(self.channels, folder)
        return {"origin": scan.origin, "warnings": warnings, "unread": scan.unread}

    def load(self, folder: Path, candidates: Candidates, warnings: list[str]) -> Dataset:
        """Open a folder of tokenized data and split its rows."""
        meta = store_cache.read_meta(folder) or {}
        row_format = dict(candidates)[meta["origin"]]
        trains_all_tokens = not self.settings.completion_only
        tokens = TokenStore(
            folder,
            self.tokenizer.vocab_size,
            not (trains_all_tokens or self._trains_all_turns),
            self._trains_all_turns and not trains_all_tokens,
        )
        files = [FileName(file.channel, file.name) for file in files_of(self.channels)]
        masked = folder / "masked.npy"
        table = RowTable(files, np.load(folder / "entries.npy"), np.load(masked) if masked.exists() else None)
        loss_warnings = ledger.data_loss_warnings(table, self.max_length)
        if (table.entries["fate"] == RowOutcome.DROPPED).all():
            raise DataError(Problem("", 0, "no training rows left: " + "; ".join(loss_warnings)))
        self._check_embedded(tokens, table, np.load(folder / "owner.npy"))
        split = self._split(folder, table)
        duplicates = _duplicate_warnings(table, split.row_splits, self.settings.group_near_duplicates)
        unread = meta["unread"]
        not_read = [*unread_warnings(unread)]
        warnings = [*warnings, *meta["warnings"], *not_read, *loss_warnings, *split.warnings, *duplicates]
        return Dataset(
            kind=self.kind,
            template=row_format.template if isinstance(row_format, TemplateFormat) else None,
            template_origin=meta["origin"],
            tokens=tokens,
            split=split,
            counts=ledger.count(table),
            warnings=list(dict.fromkeys(warnings)),
            fingerprint=store_cache.key_of([self.cache_facts(candidates), _changed_settings(self.settings)]),
            file_hashes=self.hashes,
            table=table,
            max_length=self.max_length,
            unread=unread,
            _channels=self.channels,
            _format=row_format,
            _tokenizer=self.tokenizer,
            _input_rows=np.load(folder / "owner.npy"),
            _trusts_text=self.settings.control_tokens,
        )

    def _split(self, folder: Path, table: RowTable) -> SplitAssignment:
        supplied = frozenset(channel.name for channel in self.channels[1:])
        if self.kind == "domain":
            splits, stored_splits = np.load(folder / "sides.npy"), np.load(folder / "block_sides.npy")
            stored = [np.flatnonzero(stored_splits == number) for number in range(len(SPLITS))]
            warnings: list[str] = []
        else:
            splits, supplied, warnings = assign_splits(table, self.settings, contiguous=False)
            stored = [table.entries["stored"][splits == number] for number in range(len(SPLITS))]
        train, validation, test = (rows.astype(np.int64) for rows in stored)
        return SplitAssignment(
            train=train,
            validation=validation,
            test=test,
            supplied=supplied,
            table=table,
            row_splits=splits,
            seed=self.settings.split_seed,
            warnings=tuple(warnings),
        )


@contextmanager
def _garbage_collection_disabled() -> Iterator[None]:
    """Avoid repeated collector passes over the many lists of ids, which contain no reference cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _changed_settings(settings: DataSettings) -> dict[str, Any]:
    """The settings that differ from their defaults and affect tokens or splits, JSON-ready."""
    defaults = asdict(DataSettings())
    without_effect = ("explicit", "max_samples")
    changed = {
        name: value
        for name, value in asdict(settings).items()
        if value != defaults[name] and name not in without_effect
    }
    limits = zip(SAMPLE_NAMES, settings.max_samples, strict=True)
    return changed | {name: limit for name, limit in limits if limit != -1}  # by name: runs of 0.3 are resumed


def unread_warnings(unread: Mapping[str, int]) -> Iterator[str]:
    """Yield one line that names the keys that are not read, if there are any."""
    counts = [(key, f"{count:,} {'row' if count == 1 else 'rows'}") for key, count in unread.items()]
    if len(counts) == 1:
        key, rows = counts[0]
        yield f"{rows} {'has' if unread[key] == 1 else 'have'} {key!r}, which is not read"
    elif counts:
        yield f"{len(counts)} keys are not read: {', '.join(f'{key!r} in {rows}' for key, rows in counts)}"


def _format_facts(row_format: RowFormat) -> Any:
    """What the cache key contains of a row format; JSON-ready."""
    if isinstance(row_format, TemplateFormat):
        return row_format.template.to_json()
    return row_format.column if isinstance(row_format, TextFormat) else "chat"


def _duplicate_warnings(table: RowTable, splits: Array, grouped: bool) -> list[str]:
    """Warnings about held-out rows that are duplicates or near-duplicates of training rows."""
    exact = duplicates_across(table, splits, "same")
    near = duplicates_across(table, splits, "near")
    exact_rows = {held_out for held_out, _ in exact}
    near = [pair for pair in near if pair[0] not in exact_rows]
    warnings = []
    for pairs, kind, advice in (
        (exact, "an exact duplicate", "their scores overestimate the quality on new rows"),
        (
            near,
            "a near-duplicate",
            "the split ratios had to cut their group, or their split is supplied"
            if grouped
            else "group_near_duplicates=True keeps such rows in one split",
        ),
    ):
        if pairs:
            held_out, training = pairs[0]
            rows = "held-out row has" if len(pairs) == 1 else "held-out rows have"
            warnings.append(
                f"{len(pairs):,} {rows} {kind} among the training rows; {advice} (first: "
                f"{table.name(held_out)} and {table.name(training)})"
            )
    return warnings
