"""Domain adaptation: plain text to blocks of tokens.

    records   csv / json: BOS text EOS each      txt: pieces of one stream, BOS at its start, EOS at its end
              (append_eod=False: no EOS)
    splits     are drawn before anything is cut, so no block holds text of two splits
    blocks    each split's tokens end to end, cut every `window` tokens; the last, shorter block is kept

Every token of every kept record is in exactly one block. The ledger counts input records, not blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luthier.data.build import RowBook, Say, batches, digest, files_of, trust_special_tokens
from luthier.data.channel import Channel, RowFile
from luthier.data.example import Piece
from luthier.data.forms import TextForm
from luthier.data.near_duplicates import Sketches
from luthier.data.records import Record
from luthier.data.rows import SPLITS, Array, DropReason, FileName, RowOutcome, RowTable
from luthier.data.settings import DataSettings
from luthier.data.split import assign_splits
from luthier.data.tokenize import Place, Tokenizer
from luthier.data.tokens import TokenWriter
from luthier.errors import DataError, Problem

STRETCH = 100_000  # characters tokenized at once; a longer record is cut at a space


class _Blocks:
    """Cuts each split's tokens into blocks and stores them."""

    def __init__(self, writer: TokenWriter, window: int) -> None:
        self._writer = writer
        self._window = window
        self._pending: list[list[int]] = [[] for _ in SPLITS]
        self._begun: list[list[tuple[int, int]]] = [[] for _ in SPLITS]  # (offset in pending, input row) of each record
        self.splits: list[int] = []
        self.owners: list[int] = []

    def add(self, split: int, row: int, ids: Sequence[int]) -> None:
        """Append a record's tokens to its split."""
        pending = self._pending[split]
        self._begun[split].append((len(pending), row))
        pending.extend(ids)
        # One token more than a block is held back, so that the last block never is a single, unpredictable token.
        whole = max(0, (len(pending) - 2) // self._window)
        for block in range(whole):
            self._store(split, pending[block * self._window : (block + 1) * self._window], block * self._window)
        if whole:
            del pending[: whole * self._window]
            self._forget(split, whole * self._window)

    def finish(self) -> None:
        """Store what is left on each split."""
        for split, pending in enumerate(self._pending):
            if len(pending) == self._window + 1 and self._window > 2:
                self._store(split, pending[: self._window - 1], 0)
                self._store(split, pending[self._window - 1 :], self._window - 1)
                continue
            for start in range(0, len(pending), self._window):
                self._store(split, pending[start : start + self._window], start)

    @property
    def unpredictable(self) -> list[str]:
        """Splits whose whole text is one token: nothing comes before it."""
        return [split for split, pending in zip(SPLITS, self._pending, strict=True) if len(pending) == 1]

    def _store(self, split: int, ids: Sequence[int], offset: int) -> None:
        owner = max((begun for begun in self._begun[split] if begun[0] <= offset), default=(0, 0))[1]
        self._writer.append(np.array(ids), [(0, len(ids))])
        self.splits.append(split)
        self.owners.append(owner)

    def _forget(self, split: int, taken: int) -> None:
        shifted = [(offset - taken, row) for offset, row in self._begun[split]]
        last = max((pair for pair in shifted if pair[0] <= 0), default=(0, 0))
        self._begun[split] = [last, *(pair for pair in shifted if pair[0] > 0)]


@dataclass
class BlockBuilder:
    """Both passes over domain text. `window`: tokens of a block."""

    form: TextForm
    tokenizer: Tokenizer
    window: int
    settings: DataSettings
    say: Say

    def build(self, channels: Sequence[Channel], folder: Path) -> list[str]:
        """Write the token store, entries.npy, owner.npy, sides.npy and block_sides.npy; return the split's warnings."""
        files = files_of(channels)
        table = self._table(files)
        splits, _, warnings = assign_splits(table, self.settings, contiguous=files[0].suffix == ".txt")
        writer = TokenWriter(folder, self.tokenizer.vocab_size)
        blocks = _Blocks(writer, self.window)
        for number, file in enumerate(files):
            rows = np.flatnonzero(table.entries["file"] == number)
            self._file(file, rows, table.entries, splits, blocks)
        blocks.finish()
        writer.close()
        if blocks.unpredictable:
            raise DataError(
                Problem(
                    "",
                    0,
                    f"the {blocks.unpredictable[0]} text is one single token, so there is "
                    "nothing to predict; give more text, or leave append_eod True",
                )
            )
        np.save(folder / "entries.npy", table.entries)
        np.save(folder / "owner.npy", np.array(blocks.owners, np.int64))
        np.save(folder / "sides.npy", splits)
        np.save(folder / "block_sides.npy", np.array(blocks.splits, np.int8))
        return warnings

    def _file(self, file: RowFile, rows: Array, entries: Array, splits: Array, blocks: _Blocks) -> None:
        stream = file.suffix == ".txt"
        done = 0
        for batch in batches(file):
            for ids in self._encode(batch, stream, done == 0):
                row = int(rows[done])
                opens, closes = not stream or done == 0, not stream or done == len(rows) - 1
                ends = (self.tokenizer.eos_id,) if closes and self.settings.append_eod else ()
                framed = [*(self.tokenizer.prefix_ids if opens else ()), *ids, *ends]
                done += 1
                entries["tokens"][row] = len(framed)
                if splits[row] >= 0:
                    entries["completion"][row] = len(framed)
                    blocks.add(int(splits[row]), row, framed)

    def _table(self, files: Sequence[RowFile]) -> RowTable:
        """The first pass: every record's place, hash and near-duplicate group."""
        book, sketches = RowBook(), Sketches()
        for number, file in enumerate(files):
            for batch in batches(file):
                entries = book.add(number, [record.line for record in batch])
                texts = [self.form.values(record)[0] for record in batch]
                entries["same"] = [digest([text]) for text in texts]
                if file.suffix != ".txt":
                    empty = np.array([not text.strip() for text in texts])
                    entries["fate"][empty], entries["reason"][empty] = RowOutcome.DROPPED, DropReason.BLANK
                sketches.add(texts)
        table = book.table()
        if files[0].suffix != ".txt":
            table["near"] = sketches.groups()
        return RowTable([FileName(file.channel, file.name) for file in files], table)

    def _encode(self, batch: Sequence[Record], stream: bool, first: bool) -> list[list[int]]:
        """Ids of each record's text, without BOS and EOS."""
        examples = [self.form.example(record) for record in batch]
        if self.settings.control_tokens:
            examples = [trust_special_tokens(example) for example in examples]
        pieces = [[cut for piece in example.pieces for cut in _stretches(piece)] for example in examples]
        if not stream:
            encoded = self.tokenizer.encode_batch(pieces)
        else:
            opening = pieces[:1] if first else []
            encoded = self.tokenizer.encode_batch(opening)
            encoded += self.tokenizer.encode_batch(pieces[len(opening) :], Place.CONTINUING)
        return [ids.tolist() for ids, _ in encoded]


def _stretches(piece: Piece) -> Iterator[Piece]:
    """Cut a very long text at spaces, so that tokenizing it needs bounded memory."""
    text = piece.text
    while len(text) > STRETCH:
        cut = text.rfind(" ", STRETCH // 2, STRETCH)
        cut = STRETCH if cut < 0 else cut
        yield Piece(text[:cut], piece.trained, ((0, cut),) if piece.controls else ())
        text = text[cut:]
    yield Piece(text, piece.trained, ((0, len(text)),) if piece.controls else ())
