"""Domain adaptation: splits plain text into blocks of tokens.

    records   csv / json: BOS text EOS each      txt: pieces of one stream, BOS at its start, EOS at its end
              (append_eod=False: no EOS)
    splits    are assigned before the text is cut into blocks, so no block has text of two splits
    blocks    the tokens of a split, concatenated and cut every `block_size` tokens; the last block may be shorter

Every token of every kept record is in exactly one block. The ledger counts input records, not blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luthier.data.build import RowTableBuilder, Say, batches, digest, files_of, trust_special_tokens
from luthier.data.channel import Channel, RowFile
from luthier.data.example import Piece
from luthier.data.near_duplicates import Sketches
from luthier.data.records import Record
from luthier.data.row_formats import TextFormat
from luthier.data.rows import SPLITS, Array, DropReason, FileName, RowOutcome, RowTable
from luthier.data.settings import DataSettings
from luthier.data.split import assign_splits
from luthier.data.tokenize import Position, Tokenizer
from luthier.data.tokens import TokenWriter
from luthier.errors import DataError, Problem

MAX_CHUNK_CHARACTERS = 100_000  # tokenized at once; a longer record is cut at a space


class _Blocks:
    """Cuts the tokens of each split into blocks and stores them."""

    def __init__(self, writer: TokenWriter, block_size: int) -> None:
        self._writer = writer
        self._block_size = block_size
        self._pending: list[list[int]] = [[] for _ in SPLITS]
        self._record_starts: list[list[tuple[int, int]]] = [[] for _ in SPLITS]  # (offset, row) of each record
        self.splits: list[int] = []
        self.input_rows: list[int] = []

    def add(self, split: int, row: int, ids: Sequence[int]) -> None:
        """Append a record's tokens to its split."""
        pending = self._pending[split]
        self._record_starts[split].append((len(pending), row))
        pending.extend(ids)
        # Keep one token more than a block, so that the last block is never a single token without a context.
        whole = max(0, (len(pending) - 2) // self._block_size)
        for block in range(whole):
            self._store(
                split, pending[block * self._block_size : (block + 1) * self._block_size], block * self._block_size
            )
        if whole:
            del pending[: whole * self._block_size]
            self._remove_stored(split, whole * self._block_size)

    def finish(self) -> None:
        """Store the remaining tokens of each split."""
        for split, pending in enumerate(self._pending):
            if len(pending) == self._block_size + 1 and self._block_size > 2:
                self._store(split, pending[: self._block_size - 1], 0)
                self._store(split, pending[self._block_size - 1 :], self._block_size - 1)
                continue
            for start in range(0, len(pending), self._block_size):
                self._store(split, pending[start : start + self._block_size], start)

    @property
    def single_token_splits(self) -> list[str]:
        """Splits whose whole text is one token, which has no context to be predicted from."""
        return [split for split, pending in zip(SPLITS, self._pending, strict=True) if len(pending) == 1]

    def _store(self, split: int, ids: Sequence[int], offset: int) -> None:
        row = max((start for start in self._record_starts[split] if start[0] <= offset), default=(0, 0))[1]
        self._writer.append(np.array(ids), [(0, len(ids))])
        self.splits.append(split)
        self.input_rows.append(row)

    def _remove_stored(self, split: int, stored: int) -> None:
        shifted = [(offset - stored, row) for offset, row in self._record_starts[split]]
        last = max((pair for pair in shifted if pair[0] <= 0), default=(0, 0))
        self._record_starts[split] = [last, *(pair for pair in shifted if pair[0] > 0)]


@dataclass(kw_only=True)
class BlockBuilder:
    """Tokenizes domain text in two passes. `block_size`: tokens of a block."""

    row_format: TextFormat
    tokenizer: Tokenizer
    block_size: int
    settings: DataSettings
    say: Say

    def build(self, channels: Sequence[Channel], folder: Path) -> list[str]:
        """Write the token store, entries.npy, owner.npy, sides.npy and block_sides.npy; return the split's warnings."""
        files = files_of(channels)
        table = self._table(files)
        splits, _, warnings = assign_splits(table, self.settings, contiguous=files[0].suffix == ".txt")
        writer = TokenWriter(folder, self.tokenizer.vocab_size)
        blocks = _Blocks(writer, self.block_size)
        for number, file in enumerate(files):
            rows = np.flatnonzero(table.entries["file"] == number)
            self._tokenize_file(file, rows, table.entries, splits, blocks)
        blocks.finish()
        writer.close()
        if blocks.single_token_splits:
            raise DataError(
                Problem(
                    "",
                    0,
                    f"the {blocks.single_token_splits[0]} text is a single token, so there is "
                    "nothing to predict; add text, or leave append_eod at True",
                )
            )
        np.save(folder / "entries.npy", table.entries)
        np.save(folder / "owner.npy", np.array(blocks.input_rows, np.int64))
        np.save(folder / "sides.npy", splits)
        np.save(folder / "block_sides.npy", np.array(blocks.splits, np.int8))
        return warnings

    def _tokenize_file(self, file: RowFile, rows: Array, entries: Array, splits: Array, blocks: _Blocks) -> None:
        is_stream = file.suffix == ".txt"
        done = 0
        for batch in batches(file):
            for ids in self._encode(batch, is_stream, done == 0):
                row = int(rows[done])
                needs_bos, needs_eos = not is_stream or done == 0, not is_stream or done == len(rows) - 1
                ends = (self.tokenizer.eos_id,) if needs_eos and self.settings.append_eod else ()
                framed = [*(self.tokenizer.prefix_ids if needs_bos else ()), *ids, *ends]
                done += 1
                entries["tokens"][row] = len(framed)
                if splits[row] >= 0:
                    entries["completion"][row] = len(framed)
                    blocks.add(int(splits[row]), row, framed)

    def _table(self, files: Sequence[RowFile]) -> RowTable:
        """The first pass: position, hash and near-duplicate group of every record."""
        book, sketches = RowTableBuilder(), Sketches()
        for number, file in enumerate(files):
            for batch in batches(file):
                entries = book.add(number, [record.line for record in batch])
                texts = [self.row_format.values(record)[0] for record in batch]
                entries["same"] = [digest([text]) for text in texts]
                if file.suffix != ".txt":
                    empty = np.array([not text.strip() for text in texts])
                    entries["fate"][empty], entries["reason"][empty] = RowOutcome.DROPPED, DropReason.BLANK
                sketches.add(texts)
        table = book.table()
        if files[0].suffix != ".txt":
            table["near"] = sketches.groups()
        return RowTable([FileName(file.channel, file.name) for file in files], table)

    def _encode(self, batch: Sequence[Record], is_stream: bool, is_first: bool) -> list[list[int]]:
        """Return the token ids of each record's text, without BOS and EOS."""
        examples = [self.row_format.example(record) for record in batch]
        if self.settings.control_tokens:
            examples = [trust_special_tokens(example) for example in examples]
        pieces = [[cut for piece in example.pieces for cut in _chunks(piece)] for example in examples]
        if not is_stream:
            encoded = self.tokenizer.encode_batch(pieces)
        else:
            opening = pieces[:1] if is_first else []
            encoded = self.tokenizer.encode_batch(opening)
            encoded += self.tokenizer.encode_batch(pieces[len(opening) :], Position.CONTINUING)
        return [ids.tolist() for ids, _ in encoded]


def _chunks(piece: Piece) -> Iterator[Piece]:
    """Split a very long text at spaces to bound the memory of tokenizing it."""
    text = piece.text
    while len(text) > MAX_CHUNK_CHARACTERS:
        cut = text.rfind(" ", MAX_CHUNK_CHARACTERS // 2, MAX_CHUNK_CHARACTERS)
        cut = MAX_CHUNK_CHARACTERS if cut < 0 else cut
        yield Piece(text[:cut], piece.trained, ((0, cut),) if piece.controls else ())
        text = text[cut:]
    yield Piece(text, piece.trained, ((0, len(text)),) if piece.controls else ())
