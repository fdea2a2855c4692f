"""From channels to tokens: the data room's front door.

    channels -> kind -> template -> survey (all faults, or none) -> tokenize (cached) -> split -> Prepared

It knows files, rows and tokens, nothing of models or training.
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
from luthier.data.build import RowBuilder, files_of, survey, trust_special_tokens
from luthier.data.channel import Channel, find_template, open_channels
from luthier.data.chat import ALL, ASSISTANT
from luthier.data.domain import BlockBuilder
from luthier.data.example import Example, Piece
from luthier.data.forms import ChatForm, Form, TemplateForm, TextForm, text_column
from luthier.data.kind import check_files, detect
from luthier.data.ledger import RowCounts
from luthier.data.problems import Problems
from luthier.data.rows import SPLITS, Array, FileName, RowOutcome, RowTable
from luthier.data.settings import DataSettings
from luthier.data.split import SplitAssignment, assign_splits, duplicates_across
from luthier.data.template import AUTOPILOT, DEFAULT, DEMARCATION, Template
from luthier.data.tokenize import Tokenizer, set_threads
from luthier.data.tokens import TokenStore
from luthier.errors import DataError, Problem, SettingError

FORMAT_VERSION = 2  # of the cache; raise it whenever the same input would give other tokens
DOCUMENTED = "the documented default template"
_WINDOW_OF_EXAMPLES = 4_096  # rows held when examples are asked for out of order

__all__ = ["DataSettings", "Dataset", "prepare"]


@dataclass
class Dataset:
    """Everything training and evaluation need of the data. Texts are read again when asked for, never held.

    `template_origin` says which template applied; `file_hashes` maps ``channel/file`` to its sha256.
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
    _channels: Sequence[Channel] = field(repr=False)
    _form: Form = field(repr=False)
    _tokenizer: Tokenizer = field(repr=False)
    _owner: Array = field(repr=False)  # (stored rows,) the input row of each
    _trusting: bool = field(repr=False, default=False)

    @property
    def turns(self) -> str | None:
        """The turns of a conversation that are trained; None for rows without turns."""
        return self._form.turns if isinstance(self._form, ChatForm) else None

    def write_ledger(self, path: Path) -> None:
        """Write ledger.jsonl: one line for each input row."""
        ledger.write(path, self.table, self.split.row_splits)

    def examples(self, indices: Array) -> Iterator[Example]:
        """The examples of stored rows, in the order of `indices`; their files are streamed again."""
        for start in range(0, len(indices), _WINDOW_OF_EXAMPLES):
            part = np.asarray(indices[start : start + _WINDOW_OF_EXAMPLES], dtype=np.int64)
            if self.kind == "domain":
                yield from (self._block(int(index)) for index in part)
                continue
            rows = self._owner[part]
            ascending = np.unique(rows)
            found = dict(zip(ascending.tolist(), self._read(ascending), strict=False))
            if len(found) < len(ascending):
                raise DataError(Problem("", 0, "the files of rows have changed since they were prepared; start again"))
            yield from (found[row] for row in rows.tolist())

    def _block(self, index: int) -> Example:
        ids, _ = self.tokens.row(index)
        text = self._tokenizer.decode(ids)
        return Example(self.table.source(int(self._owner[index])), (Piece(text, True),))

    def _read(self, rows: Array) -> Iterator[Example]:
        """Examples of input rows, ascending."""
        entries = self.table.entries
        for number, file in enumerate(files_of(self._channels)):
            lines = frozenset(entries["line"][rows[entries["file"][rows] == number]].tolist())
            if not lines:
                continue
            last = max(lines)
            for record in records.read(file, Problems(), lines):
                if record.line in lines:
                    example = self._form.example(record)
                    yield trust_special_tokens(example) if self._trusting else example
                if record.line >= last:
                    break


def prepare(
    channels: Mapping[str, Path],
    settings: DataSettings,
    tokenizer: Tokenizer,
    cache: Path,
    say: Callable[[str], None] | None = None,
) -> Dataset:
    """Read, check, tokenize and split the rows of `channels`; DataError lists every fault that was found.

    `cache` is the folder under which tokenized data are kept by content; `say` hears of progress.
    """
    set_threads(settings.workers)
    opened = open_channels(channels)
    kind = detect(opened[0]) if settings.kind == "auto" else settings.kind
    check_files(kind, opened)
    if tokenizer.encoder_decoder:
        _check_pairs(kind, settings)
    window, warning = settings.resolve_max_length(tokenizer.model_max_length)
    warnings = [said for channel in opened for said in channel.warnings] + ([warning] if warning else [])
    hashes = {f"{file.channel}/{file.name}": file.sha256() for file in files_of(opened)}
    order = _Order(kind, opened, settings, tokenizer, window, hashes, say or (lambda _: None))
    candidates = order.candidates(warnings)
    key = store_cache.key_of(order.facts(candidates))
    folder = store_cache.find(cache, key)
    if folder is None:
        folder = store_cache.store(cache, key, lambda place: order.build(candidates, place))
    else:
        order.say("using the tokenized data of an earlier run")
    return order.load(folder, candidates, warnings)


def _check_pairs(kind: str, settings: DataSettings) -> None:
    """An encoder-decoder learns a completion from a prompt, and nothing else."""
    if kind not in ("instruction", "autopilot"):
        raise DataError(
            Problem(
                "",
                0,
                f"the model is an encoder-decoder (T5), and the rows are {kind} data; it learns "
                "prompt/completion rows only: write those, or choose a causal model",
            )
        )
    if not settings.completion_only:
        raise SettingError(
            "completion_only_loss=False: an encoder-decoder only reads the prompt and has no loss on "
            "it; leave it True, or choose a causal model"
        )


Candidates = list[tuple[str, Form]]


@dataclass(frozen=True)
class _Order:
    """What is to be prepared: everything settled before the first row is read."""

    kind: str
    channels: list[Channel]
    settings: DataSettings
    tokenizer: Tokenizer
    window: int
    hashes: dict[str, str]
    say: Callable[[str], None]

    def candidates(self, warnings: list[str]) -> Candidates:
        """The forms that may apply, the preferred one first, each with where it comes from."""
        if self.kind == "instruction":
            return [(origin, TemplateForm(template)) for origin, template in self._templates(warnings)]
        ignored = [channel.template for channel in self.channels if channel.template]
        if ignored:
            warnings.append(f"template.json is not used: {self.kind} data need none")
        if self.kind == "autopilot":
            columns = Template(AUTOPILOT.prompt, AUTOPILOT.completion, self._demarcation)
            template = self.settings.template or columns
            return [("the Autopilot columns", TemplateForm(template, exact=True))]
        if self.kind == "chat":
            if self.tokenizer.chat is None:
                raise DataError(
                    Problem(
                        "",
                        0,
                        "the rows are conversations, and the model's tokenizer has no chat "
                        "template; choose a model that has one, or write prompt/completion rows",
                    )
                )
            return [("the model's chat template", ChatForm(self.tokenizer.chat, self.settings.train_on_turns))]
        return [("plain text", self._text_form(warnings))]

    @property
    def _all_turns(self) -> bool:
        return self.kind == "chat" and self.settings.train_on_turns == ALL

    @property
    def _demarcation(self) -> str:
        return DEMARCATION if self.settings.demarcation else ""

    def _templates(self, warnings: list[str]) -> list[tuple[str, Template]]:
        if self.settings.template is not None:
            if any(channel.template for channel in self.channels):
                warnings.append("template.json is not used: the rows are rendered by the run's own template")
            return [("the run's own template", self.settings.template)]
        found = find_template(self.channels, self._demarcation)
        if found is not None:
            if self._demarcation and "### Response:" in found.prompt:
                warnings.append(
                    "template.json: the prompt has its own '### Response:', and "
                    "add_input_output_demarcation_key=True puts one more after it; switch one off"
                )
            return [("template.json", found)]
        documented = Template(DEFAULT.prompt, DEFAULT.completion, self._demarcation)
        templates = [(DOCUMENTED, documented)]
        if self.settings.default_template:
            family = Template(*self.settings.default_template, self._demarcation)
            templates.append(("the model family's template", family))
        return templates

    def _text_form(self, warnings: list[str]) -> TextForm:
        problems = Problems()
        columns = []
        for channel in self.channels:
            first = next(records.read(channel.files[0], problems), None)
            problems.raise_if_any()
            column, warning = text_column(first.fields) if first else ("text", "")
            if warning:
                warnings.append(f"{channel.files[0].name}: {warning}")
            columns.append(column)
        if len(set(columns)) > 1:
            raise DataError(Problem("", 0, f"the text columns of the channels differ: {', '.join(columns)}"))
        return TextForm(columns[0])

    def facts(self, candidates: Candidates) -> dict[str, Any]:
        """Everything that the tokenized data depend on; the split only where blocks are cut after it."""
        settings = self.settings
        facts: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "kind": self.kind,
            "files": list(self.hashes.items()),
            "window": self.window,
            "tokenizer": self.tokenizer.fingerprint,
            "control_tokens": settings.control_tokens,
            "candidates": [(origin, _stored(form)) for origin, form in candidates],
        }
        if self.kind == "chat" and settings.train_on_turns != ASSISTANT:
            facts["turns"] = settings.train_on_turns
        if self.tokenizer.encoder_decoder:
            facts["output_window"] = settings.max_output_length
        if self.kind == "domain":
            facts["append_eod"] = settings.append_eod
            facts["split"] = [
                settings.validation_split_ratio,
                settings.test_split_ratio,
                settings.split_seed,
                settings.max_train_samples,
                settings.max_val_samples,
                settings.group_near_duplicates,
                settings.scoring,
                sorted(settings.explicit & {"validation_split_ratio", "test_split_ratio"}),
            ]
        return facts

    def build(self, candidates: Candidates, folder: Path) -> dict[str, Any]:
        """Fill `folder`; return what is worth knowing of it later."""
        with _uncollected():
            return self._build(candidates, folder)

    def _build(self, candidates: Candidates, folder: Path) -> dict[str, Any]:
        found = survey(self.channels, candidates, several=candidates[0][0] == DOCUMENTED)
        self.say(f"{found.rows:,} rows read; tokenizing")
        warnings = list(found.warnings)
        if isinstance(found.form, TextForm):
            builder = BlockBuilder(found.form, self.tokenizer, self.window, self.settings, self.say)
            warnings += builder.build(self.channels, folder)
        else:
            RowBuilder(
                found.form, self.tokenizer, self.window, self.settings.max_output_length,
                self.settings.control_tokens, self.say, self._all_turns, found.records,
            ).build(self.channels, folder)  # fmt: skip
        return {"origin": found.origin, "warnings": warnings}

    def load(self, folder: Path, candidates: Candidates, warnings: list[str]) -> Dataset:
        """Open a built folder and split its rows."""
        meta = store_cache.read_meta(folder) or {}
        form = dict(candidates)[meta["origin"]]
        every = not self.settings.completion_only
        tokens = TokenStore(
            folder, self.tokenizer.vocab_size, not (every or self._all_turns), self._all_turns and not every
        )
        files = [FileName(file.channel, file.name) for file in files_of(self.channels)]
        table = RowTable(files, np.load(folder / "entries.npy"))
        losses = ledger.data_loss_warnings(table, self.window)
        if (table.entries["fate"] == RowOutcome.DROPPED).all():
            raise DataError(Problem("", 0, "no trainable row is left: " + "; ".join(losses)))
        split = self._split(folder, table)
        duplicates = _say_duplicates(table, split.row_splits, self.settings.group_near_duplicates)
        warnings = [*warnings, *meta["warnings"], *losses, *split.warnings, *duplicates]
        return Dataset(
            kind=self.kind,
            template=form.template if isinstance(form, TemplateForm) else None,
            template_origin=meta["origin"],
            tokens=tokens,
            split=split,
            counts=ledger.count(table),
            warnings=list(dict.fromkeys(warnings)),
            fingerprint=store_cache.key_of([self.facts(candidates), _plain(self.settings)]),
            file_hashes=self.hashes,
            table=table,
            max_length=self.window,
            _channels=self.channels,
            _form=form,
            _tokenizer=self.tokenizer,
            _owner=np.load(folder / "owner.npy"),
            _trusting=self.settings.control_tokens,
        )

    def _split(self, folder: Path, table: RowTable) -> SplitAssignment:
        supplied = frozenset(channel.name for channel in self.channels[1:])
        if self.kind == "domain":
            splits, stored_sides = np.load(folder / "sides.npy"), np.load(folder / "block_sides.npy")
            stored = [np.flatnonzero(stored_sides == number) for number in range(len(SPLITS))]
            said: list[str] = []
        else:
            splits, supplied, said = assign_splits(table, self.settings, contiguous=False)
            stored = [table.entries["stored"][splits == number] for number in range(len(SPLITS))]
        train, validation, test = (rows.astype(np.int64) for rows in stored)
        return SplitAssignment(train, validation, test, supplied, table, splits, self.settings.split_seed, tuple(said))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: the many lists of ids would have it go through all rows in hand again and again, and
    nothing here refers to itself.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _plain(settings: DataSettings) -> dict[str, Any]:
    """The settings as JSON, without those at their defaults and those that change no token and no split."""
    usual = asdict(DataSettings())
    silent = ("explicit", "workers")
    return {name: value for name, value in asdict(settings).items() if value != usual[name] and name not in silent}


def _stored(form: Form) -> Any:
    """A form as JSON: what the cache key sees of it."""
    if isinstance(form, TemplateForm):
        return form.template.to_json()
    return form.column if isinstance(form, TextForm) else "chat"


def _say_duplicates(table: RowTable, splits: Array, grouped: bool) -> list[str]:
    """Warnings about held-out rows that training has too, exactly or nearly."""
    exact = duplicates_across(table, splits, "same")
    near = duplicates_across(table, splits, "near")
    exactly = {held_out for held_out, _ in exact}
    near = [pair for pair in near if pair[0] not in exactly]
    said = []
    for pairs, what, advice in (
        (exact, "an exact duplicate", "their scores say less about new rows"),
        (
            near,
            "a near-duplicate",
            "they are in one group that the shares had to cut, or on a supplied split"
            if grouped
            else "group_near_duplicates=True keeps such rows on one split",
        ),
    ):
        if pairs:
            held_out, training = pairs[0]
            rows = "held-out row has" if len(pairs) == 1 else "held-out rows have"
            said.append(
                f"{len(pairs):,} {rows} {what} among the training rows; {advice} (first: "
                f"{table.name(held_out)} and {table.name(training)})"
            )
    return said
