"""Converts text to token ids and back with the model's tokenizer, keeping text and control tokens apart.

A special-token string becomes a control token only inside a span written by the template; in the text of a row it is
tokenized as ordinary characters. Prompt and completion are tokenized separately, so that a request's prompt has the
same tokens as in training:

    causal            BOS + encode(prompt) + encode(completion) + EOS
    encoder-decoder   the prompt with the tokenizer's prefix and suffix, then encode(completion) + EOS

Shapes: T tokens of a row.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from luthier.data.chat import ChatTemplate, marker_pattern
from luthier.data.conversation import ChatError
from luthier.data.example import Example, Piece, Span
from luthier.data.shared_prefix import SharedPrefix
from luthier.data.tokenizer_files import read_tokenizer, verbatim_tokens
from luthier.errors import ModelNotFoundError, UserError

Array = np.ndarray[Any, np.dtype[Any]]
_UNLIMITED = 1 << 30  # tokenizers without a limit report 1e30
_CONTEXT_TOKENS = 8  # more than one character takes in any vocabulary


class Position(IntEnum):
    """Position of a text in its row; some tokenizers prepend a space at START or AFTER_CONTROL."""

    START = 0
    AFTER_CONTROL = 1
    CONTINUING = 2


@dataclass(frozen=True, slots=True)
class _Text:
    """A piece of text without control tokens, and its position in the row."""

    text: str
    position: Position = Position.START
    start: int = 0  # in the text of its piece

    def at(self, position: Position) -> _Text:
        return self if position is self.position else _Text(self.text, position, self.start)

    def stripped(self, left: bool) -> _Text:
        if not left:
            return _Text(self.text.rstrip(), self.position, self.start)
        text = self.text.lstrip()
        return _Text(text, self.position, self.start + len(self.text) - len(text))


_Segment = _Text | int  # text, or the id of a control token


class EncodedRow(NamedTuple):
    """A row's ids int64 (T,), and the spans [start, end) that carry loss: disjoint, ascending, not empty."""

    ids: Array
    spans: list[Span]

    @property
    def trained(self) -> Array:
        """The spans as bool (T,)."""
        mask = np.zeros(len(self.ids), np.bool_)
        for start, end in self.spans:
            mask[start:end] = True
        return mask


class Tokenizer:
    """A base model's tokenizer; see `load`."""

    def __init__(
        self, source: Any, stops: Iterable[int] = (), encoder_decoder: bool = False, date: datetime.date | None = None
    ) -> None:
        """`source`: a transformers tokenizer with a `tokenizers` backend. `stops`: further ids that end a text.

        `date`: the day that the chat template writes, if it writes one; None means today.
        """
        added = source.added_tokens_decoder
        self._control_ids = {token.content: number for number, token in added.items() if token.special}
        self._control_numbers = frozenset(self._control_ids.values())
        self._strips = {
            number: (token.lstrip, token.rstrip)
            for number, token in added.items()
            if token.special and (token.lstrip or token.rstrip)
        }
        self.control_tokens = sorted(self._control_ids)
        self._markers = marker_pattern(self.control_tokens)
        self.vocab_size = max(source.get_vocab().values(), default=-1) + 1  # of the ids, which may have holes
        self._has_holes = self.vocab_size != len(source)
        self.model_max_length = int(min(source.model_max_length, _UNLIMITED))
        self.eos_id: int = source.eos_token_id
        self.pad_id: int = self.eos_id if source.pad_token_id is None else source.pad_token_id
        self._backends = _backends(source.backend_tokenizer)
        self._verbatim = verbatim_tokens(self._backends[Position.START])
        self._shared = SharedPrefix(self._backends[Position.START])
        self._forbidden = _control_id_mask(self._control_ids, source.unk_token_id, self.vocab_size, self._backends)
        self.encoder_decoder = encoder_decoder
        self.prefix_ids, self.suffix_ids = self._affixes(source)
        self.chat_template: str | None = _default_template(source.chat_template)
        self.chat = self._chat(source, date)
        turn = self.chat.end_of_turn() if self.chat else ""
        ends = [self.eos_id, *([self._control_ids[turn]] if turn else []), *stops]
        self.stop_ids: list[int] = list(dict.fromkeys(ends))
        self.fingerprint = self._fingerprint()
        self.default_chat_template: str | None = None  # the chat template given to `load`, if it is used
        self.embedding_rows: int | None = None  # of the model, if config.json states them
        self.notes: list[str] = []  # what its user should know, a line each

    @classmethod
    def load(cls, folder: Path, chat_template: str | None = None, date: str | None = None) -> Tokenizer:
        """Load from a folder in Hugging Face layout; `chat_template` is used where the folder has none.

        `date`: see `chat_date`. ModelNotFoundError when the folder holds no usable tokenizer.
        """
        folder = Path(folder)
        source, difference = read_tokenizer(folder)
        config = _read_json(folder / "config.json")
        stops = _eos_ids(_read_json(folder / "generation_config.json"))
        if source.eos_token_id is None:
            known = [*_eos_ids(config), *stops]
            if not known:
                raise ModelNotFoundError(f"{folder}: the tokenizer names no end-of-text token (eos_token)")
            source.eos_token = source.convert_ids_to_tokens(known[0])
        default_template = None if source.chat_template else chat_template
        source.chat_template = source.chat_template or default_template
        try:
            day = datetime.date.fromisoformat(date) if date else None
            loaded = cls(source, stops, bool(config.get("is_encoder_decoder")), day)
        except ChatError as error:
            raise ModelNotFoundError(f"{folder}: {error}") from None
        loaded.default_chat_template = default_template
        loaded.embedding_rows = (config.get("text_config") or config).get("vocab_size")
        try:
            loaded.check_embedded(loaded.stop_ids[:1])
        except UserError as error:
            raise ModelNotFoundError(f"{folder}: {error}") from None
        loaded.notes = [difference] * bool(difference)
        if loaded.chat_date:
            loaded.notes.append(
                f"the chat template writes the date; a run keeps that of its first day, {loaded.chat_date}"
            )
        return loaded

    @property
    def chat_date(self) -> str | None:
        """The day (ISO 8601) that the chat template writes into each prompt; None if it writes none."""
        return self.chat.date.isoformat() if self.chat and self.chat.date else None

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        """Return the ids of the pieces, each tokenized separately, without BOS and EOS."""
        return [int(number) for number in self.encode_batch([pieces])[0][0]]

    def encode_batch(
        self, batch: Sequence[Sequence[Piece]], position: Position = Position.START
    ) -> list[tuple[Array, Array]]:
        """Return ids int64 (T,) and trained bool (T,) of each sequence of pieces; the ids are those of `encode`.

        `position`: position of each first piece; CONTINUING for text that continues an earlier one.
        """
        return [(row.ids, row.trained) for row in self._encode_rows(batch, [False] * len(batch), position)]

    def encode_examples(self, examples: Sequence[Example]) -> list[tuple[Array, Array]]:
        """Return the rows of `encode_rows` as ids and trained bool (T,)."""
        return [(row.ids, row.trained) for row in self.encode_rows(examples)]

    def encode_rows(self, examples: Sequence[Example]) -> list[EncodedRow]:
        """Return the examples' rows, with BOS and EOS (which carries loss) where `add_special_tokens`.

        For an encoder-decoder the trained tokens are the completion.
        """
        if self.encoder_decoder:
            return self._encode_pairs(examples)
        return self._encode_rows(
            [example.pieces for example in examples], [example.add_special_tokens for example in examples]
        )

    def prompt_ids(self, example: Example) -> list[int]:
        """Return the prompt's ids as in training, for generation."""
        ids = self.encode(example.prompt_pieces)
        self.check_embedded(ids)
        if not example.add_special_tokens:
            return ids
        return [*self.prefix_ids, *ids, *(self.suffix_ids if self.encoder_decoder else [])]

    def check_embedded(self, ids: Sequence[int] | Array) -> None:
        """Raise UserError for an id beyond the model's embedding."""
        rows = self.embedding_rows
        if rows is not None and self.vocab_size > rows and len(ids) and (highest := int(np.max(ids))) >= rows:
            raise UserError(
                f"the token {self.show([highest])!r} has the id {highest}, but the model embeds {rows:,} tokens: "
                "the tokenizer is not this model's, or tokens were added without resizing the model"
            )

    def decode(self, ids: Iterable[int], after: Sequence[int] = ()) -> str:
        """Return the text of the ids without control tokens.

        `after`: ids of the prompt that they continue, so that a leading space is kept.
        """
        context, completion = self.lead(after), [int(number) for number in ids]
        before, whole = self._text(context), self._text([*context, *completion])
        return whole[len(before) :] if whole.startswith(before) else self._text(completion)

    def lead(self, prompt: Sequence[int]) -> list[int]:
        """Return the last ids of a prompt as context to decode a completion; none where it starts a new text."""
        if self.encoder_decoder or not len(prompt) or int(prompt[-1]) in self._control_numbers:
            return []
        return [int(number) for number in prompt[-_CONTEXT_TOKENS:]]

    def _text(self, ids: list[int], controls: bool = False) -> str:
        """Return the text of the ids; `controls`: with control tokens spelled out."""
        backend, text = self._backends[Position.START], ""
        shown = ids if controls else [number for number in ids if number not in self._control_numbers]
        for verbatim, run in itertools.groupby(shown, self._verbatim.get):
            numbers = list(run)
            text += backend.decode(numbers, skip_special_tokens=False) if verbatim is None else verbatim * len(numbers)
        return text

    def show(self, ids: Iterable[int]) -> str:
        """Return the text of the ids with control tokens spelled out."""
        return self._text([int(number) for number in ids], controls=True)

    def _encode_pairs(self, examples: Sequence[Example]) -> list[EncodedRow]:
        prompts = self.encode_batch([example.prompt_pieces for example in examples])
        completions = self.encode_batch(
            [tuple(piece for piece in example.pieces if piece.trained) for example in examples]
        )
        pairs = []
        for (prompt, _), (completion, _) in zip(prompts, completions, strict=True):
            ids = np.array([*self.prefix_ids, *prompt, *self.suffix_ids, *completion, self.eos_id], dtype=np.int64)
            pairs.append(EncodedRow(ids, [(len(ids) - len(completion) - 1, len(ids))]))
        return pairs

    def _encode_rows(
        self, batch: Sequence[Sequence[Piece]], framed: Sequence[bool], position: Position = Position.START
    ) -> list[EncodedRow]:
        """Encode rows; their ids are views of one array."""
        segmented = [self._segments_of_row(pieces, position) for pieces in batch]
        texts = [part for pieces in segmented for parts in pieces for part in parts if isinstance(part, _Text)]
        encoded = iter(self._encode_texts(texts))
        bos, eos = np.array(self.prefix_ids, dtype=np.int64), np.array([self.eos_id], dtype=np.int64)
        chunks: list[Array] = [np.empty(0, np.int64)]
        bounds: list[tuple[int, int, list[Span]]] = []
        end = 0
        for pieces, parts_of, is_framed in zip(batch, segmented, framed, strict=True):
            start, spans = end, list[Span]()
            if is_framed:
                chunks.append(bos)
                end += len(bos)
            for piece, parts in zip(pieces, parts_of, strict=True):
                start_of_piece = end
                for part in parts:
                    chunk = next(encoded) if isinstance(part, _Text) else np.array([part], dtype=np.int64)
                    chunks.append(chunk)
                    end += len(chunk)
                if piece.trained:
                    _add_span(spans, start_of_piece - start, end - start)
            if is_framed:
                chunks.append(eos)
                _add_span(spans, end - start, end - start + 1)
                end += 1
            bounds.append((start, end, spans))
        ids = np.concatenate(chunks)
        return [EncodedRow(ids[start:end], spans) for start, end, spans in bounds]

    def _segments_of_row(self, pieces: Sequence[Piece], position: Position) -> list[list[_Segment]]:
        row: list[list[_Segment]] = [self._split_at_controls(piece) for piece in pieces]
        if self._strips:
            self._strip_at_controls(row)
        for segments in row:
            for index, segment in enumerate(segments):
                if isinstance(segment, _Text):
                    segments[index] = segment.at(position)
                position = Position.CONTINUING if isinstance(segment, _Text) else Position.AFTER_CONTROL
        return row

    def _split_at_controls(self, piece: Piece) -> list[_Segment]:
        """Split a piece at the special-token strings wholly inside one of its control spans."""
        parts: list[_Segment] = []
        done = 0
        for start, end in self._control_spans(piece):
            parts += [_Text(piece.text[done:start], start=done), self._control_ids[piece.text[start:end]]]
            done = end
        parts.append(_Text(piece.text[done:], start=done))
        return [part for part in parts if not isinstance(part, _Text) or part.text]

    def _strip_at_controls(self, row: list[list[_Segment]]) -> None:
        """Remove the white space before and after control tokens that swallow it, also in the next piece."""
        for segments, side in ((row, 1), (row[::-1], 0)):
            is_stripping = False
            for parts in segments:
                for index in range(len(parts)) if side else range(len(parts) - 1, -1, -1):
                    part = parts[index]
                    if not isinstance(part, _Text):
                        is_stripping = self._strips.get(part, (False, False))[side]
                    elif is_stripping:
                        parts[index] = part = part.stripped(left=bool(side))
                        is_stripping = not part.text
                parts[:] = [part for part in parts if not isinstance(part, _Text) or part.text]

    def _control_spans(self, piece: Piece) -> list[Span]:
        return [
            match.span() for start, end in piece.controls for match in self._markers.finditer(piece.text, start, end)
        ]

    def _encode_texts(self, texts: Sequence[_Text]) -> list[Array]:
        """Tokenize texts so that no control token results."""
        result: list[Array] = [np.empty(0, np.int64)] * len(texts)
        prefix_length, prefix_ids = self._shared_prefix([it.text for it in texts if it.position is Position.START])
        for backend in dict.fromkeys(self._backends):
            indices = [index for index, text in enumerate(texts) if self._backends[text.position] is backend]
            if not indices:
                continue
            skipped_lengths = [prefix_length if texts[index].position is Position.START else 0 for index in indices]
            rests = [texts[index].text[start:] for index, start in zip(indices, skipped_lengths, strict=True)]
            encodings = backend.encode_batch_fast(rests, add_special_tokens=False)
            lists = [encoding.ids for encoding in encodings]
            ends = list(itertools.accumulate(map(len, lists)))
            ids = np.fromiter(itertools.chain.from_iterable(lists), np.int64, ends[-1])
            forbidden = np.flatnonzero(self._forbidden[ids])
            for index, skipped, start, end in zip(indices, skipped_lengths, [0, *ends], ends, strict=False):
                result[index] = np.concatenate((prefix_ids, ids[start:end])) if skipped else ids[start:end]
            for number in np.unique(np.searchsorted(ends, forbidden, "right")).tolist():
                index = indices[number]
                result[index] = np.array(self._encode_guarded(texts[index]), dtype=np.int64)
        return result

    def _shared_prefix(self, texts: Sequence[str]) -> tuple[int, Array]:
        """Return the length in characters and the ids of the texts' common prefix."""
        length, ids = self._shared.find(texts)
        prefix = np.array(ids, dtype=np.int64)
        return (0, prefix[:0]) if self._forbidden[prefix].any() else (length, prefix)

    def _encode_guarded(self, text: _Text) -> list[int]:
        return [number for _, encoding in self._encode_parts(text) for number in encoding.ids]

    def _encode_parts(self, text: _Text) -> Iterator[tuple[int, tokenizers.Encoding]]:
        """Yield (start, encoding) of a text's parts: control-token strings are cut after their first character.

        For vocabularies that have a control token as an ordinary piece (Unigram).
        """
        cuts = [0, *(match.start() + 1 for match in self._markers.finditer(text.text)), len(text.text)]
        bounds = [(start, end) for start, end in itertools.pairwise(cuts) if start < end]
        for number, (start, end) in enumerate(bounds):
            backend = self._backends[text.position if number == 0 else Position.CONTINUING]
            yield start, backend.encode(text.text[start:end], add_special_tokens=False)

    def user_mask(self, pieces: Sequence[Piece]) -> Array:
        """Return bool (T,) for the ids of `encode`: tokens with a character of their piece's `user_spans`."""
        mask: list[bool] = []
        for piece, parts in zip(pieces, self._segments_of_row(pieces, Position.START), strict=True):
            controls = iter(self._control_spans(piece))
            for part in parts:
                spans = self._token_spans(part) if isinstance(part, _Text) else [next(controls)]
                mask += [any(_overlaps(span, words) for words in piece.user_spans) for span in spans]
        return np.array(mask, dtype=np.bool_)

    def _token_spans(self, text: _Text) -> list[Span]:
        """Return the character span of each token of a text in its piece."""
        whole = self._backends[text.position].encode(text.text, add_special_tokens=False)
        parts = self._encode_parts(text) if self._forbidden[whole.ids].any() else [(0, whole)]
        return [
            (text.start + start + first, text.start + start + last)
            for start, encoding in parts
            for first, last in encoding.offsets
        ]

    def _affixes(self, source: Any) -> tuple[list[int], list[int]]:
        """Return the ids that the tokenizer adds before and after a text."""
        bare = source("a", add_special_tokens=False)["input_ids"]
        whole = [int(number) for number in source("a", add_special_tokens=True)["input_ids"]]
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
        return [], []

    def _chat(self, source: Any, date: datetime.date | None) -> ChatTemplate | None:
        if self.chat_template is None:
            return None
        names = {name: str(token) for name, token in source.special_tokens_map.items() if isinstance(token, str)}
        return ChatTemplate(self.chat_template, names, self.control_tokens, date)

    def _fingerprint(self) -> str:
        facts = [self.prefix_ids, self.eos_id, self.stop_ids, self.chat_template, self.control_tokens]
        facts += [self.suffix_ids] if self.encoder_decoder else []
        facts += [self.chat_date] if self.chat_date else []
        facts += [self.vocab_size] if self._has_holes else []  # earlier versions stored such ids too narrow
        facts += [sorted(self._strips.items())] if self._strips else []  # and stripped within a piece only
        return hashlib.sha256((self._backends[Position.START].to_str() + json.dumps(facts)).encode()).hexdigest()


def _overlaps(token: Span, words: Span) -> bool:
    """Whether a token's span overlaps `words`.

    A token of white space only may have an empty span: its end counts then.
    """
    first, last = token
    start, end = words
    return first < end and last > start if first < last else start < last <= end


def set_threads(workers: int | None) -> None:
    """Limit the tokenizer's threads; must precede its first parallel call."""
    if workers is not None:
        os.environ["RAYON_NUM_THREADS"] = str(workers)
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if workers > 1 else "false"


def _backends(source: tokenizers.Tokenizer) -> tuple[tokenizers.Tokenizer, ...]:
    """One backend for each Place, the same object where they do not differ.

    Some tokenizers prepend a space to every text, or to the first text of a row. A completion that continues a prompt
    must not get one; text after a control token gets what transformers would give it.
    """
    stored = json.loads(source.to_str())
    stored["truncation"] = stored["padding"] = None
    variants = [
        json.dumps(variant)
        for variant in (stored, _without_space(stored, first_only=True), _without_space(stored, False))
    ]
    backends = {variant: tokenizers.Tokenizer.from_str(variant) for variant in variants}
    for backend in backends.values():
        backend.encode_special_tokens = True
    return tuple(backends[variant] for variant in variants)


def _without_space(node: Any, first_only: bool) -> Any:
    """Return the tokenizer's JSON without the steps that prepend a space, or only those for a row's first text."""
    if isinstance(node, list):
        return [_without_space(item, first_only) for item in node]
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    if kind == "Prepend" and not first_only:
        return {"type": "Replace", "pattern": {"String": "\x00"}, "content": "\x00"}  # changes nothing
    changed = {
        name: value if name in ("model", "added_tokens", "decoder") else _without_space(value, first_only)
        for name, value in node.items()
    }
    if kind == "Metaspace" and (not first_only or node.get("prepend_scheme") == "first"):
        changed["prepend_scheme"] = "never"
    if kind == "ByteLevel" and not first_only:
        changed["add_prefix_space"] = False
    return changed


def _control_id_mask(
    control_ids: dict[str, int], unknown: int | None, size: int, backends: Iterable[tokenizers.Tokenizer]
) -> Array:
    """Return bool for every id that a backend can return: whether it is a control token."""
    highest = max((max(backend.get_vocab(True).values(), default=0) for backend in dict.fromkeys(backends)), default=0)
    table = np.zeros(max(size, highest + 1), dtype=np.bool_)
    table[[number for number in control_ids.values() if number != unknown and number < size]] = True
    return table


def _add_span(spans: list[Span], start: int, end: int) -> None:
    """Append a span that starts at or after the end of the last one, merging adjacent spans."""
    if start == end:
        return
    if spans and spans[-1][1] == start:
        start = spans.pop()[0]
    spans.append((start, end))


def _default_template(stored: Any) -> str | None:
    if isinstance(stored, dict):
        stored = stored.get("default")
    return str(stored) if stored else None


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _eos_ids(config: dict[str, Any]) -> list[int]:
    stored = config.get("eos_token_id")
    return [] if stored is None else [stored] if isinstance(stored, int) else [int(number) for number in stored]
