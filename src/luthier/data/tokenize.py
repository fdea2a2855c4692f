"""Text to ids and back: the model's own tokenizer, with a wall between text and control tokens.

A special-token string becomes a control token only inside a span that the template wrote; in the text of a row it is
tokenized as the characters it is. Prompt and completion are tokenized apart, so that the prompt of a request is token
for token the prompt of training:

    causal            BOS + encode(prompt) + encode(completion) + EOS
    encoder-decoder   what the encoder reads, as the tokenizer itself frames a text, then encode(completion) + EOS

Shapes: T tokens of a row.
"""

from __future__ import annotations

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
from transformers import AutoTokenizer, GPT2Tokenizer

from luthier.data.chat import ChatError, ChatTemplate, marker_pattern
from luthier.data.example import Example, Piece, Span
from luthier.data.shared_beginning import SharedBeginning
from luthier.errors import ModelNotFoundError

Array = np.ndarray[Any, np.dtype[Any]]
_UNLIMITED = 1 << 30  # a tokenizer without a limit says 1e30
_LEAD = 8  # tokens: more than one character takes in any vocabulary


class Place(IntEnum):
    """Where a stretch of text stands: some tokenizers put a space before it in the first cases."""

    START = 0
    AFTER_CONTROL = 1
    CONTINUING = 2


@dataclass(frozen=True, slots=True)
class _Text:
    """A stretch of plain text to be tokenized, and where it stands in its row."""

    text: str
    place: Place
    start: int = 0  # in the text of its piece


_Part = _Text | int  # plain text, or a control token's id


class EncodedRow(NamedTuple):
    """A row's ids int64 (T,), and the stretches [start, end) of them that carry loss: apart, in order, not empty."""

    ids: Array
    spans: list[Span]

    @property
    def trained(self) -> Array:
        """The same as bool (T,)."""
        mask = np.zeros(len(self.ids), np.bool_)
        for start, end in self.spans:
            mask[start:end] = True
        return mask


class Tokenizer:
    """A base model's tokenizer. Build it with `load`."""

    def __init__(self, source: Any, stops: Iterable[int] = (), encoder_decoder: bool = False) -> None:
        """`source`: a transformers tokenizer with a `tokenizers` backend. `stops`: more ids that end a text."""
        added = source.added_tokens_decoder
        self._control_ids = {token.content: number for number, token in added.items() if token.special}
        self._control_numbers = frozenset(self._control_ids.values())
        self._flags = {token.content: (token.lstrip, token.rstrip) for token in added.values() if token.special}
        self.control_tokens = sorted(self._control_ids)
        self._markers = marker_pattern(self.control_tokens)
        self.vocab_size: int = len(source)
        self.model_max_length = int(min(source.model_max_length, _UNLIMITED))
        self.eos_id: int = source.eos_token_id
        self.pad_id: int = self.eos_id if source.pad_token_id is None else source.pad_token_id
        self._backends = _backends(source.backend_tokenizer)
        self._shared = SharedBeginning(self._backends[Place.START])
        self._forbidden = _forbidden(self._control_ids, source.unk_token_id, self.vocab_size, self._backends)
        self.encoder_decoder = encoder_decoder
        self.prefix_ids, self.suffix_ids = self._frame(source)
        self.chat_template: str | None = _default_template(source.chat_template)
        self.chat = self._chat(source)
        turn = self.chat.end_of_turn() if self.chat else ""
        ends = [self.eos_id, *([self._control_ids[turn]] if turn else []), *stops]
        self.stop_ids: list[int] = list(dict.fromkeys(ends))
        self.fingerprint = self._fingerprint()
        self.default_chat_template: str | None = None  # of conversations, where the tokenizer brings none of its own

    @classmethod
    def load(cls, folder: Path, chat_template: str | None = None) -> Tokenizer:
        """Load from a folder in Hugging Face layout; `chat_template` stands in where the folder brings none.

        ModelNotFoundError when it holds no usable tokenizer.
        """
        folder = Path(folder)
        whole = (folder / "tokenizer.json").exists()
        if not whole and not (folder / "merges.txt").exists():
            # What transformers makes of a bare SentencePiece model depends on the class that asks.
            raise ModelNotFoundError(
                f"{folder}: no usable tokenizer: no tokenizer.json (nor GPT-2's vocab.json and "
                "merges.txt); save the tokenizer with transformers once"
            )
        kind = AutoTokenizer if whole or (folder / "config.json").exists() else GPT2Tokenizer
        try:
            source = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises many kinds here; its first line says what it missed
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelNotFoundError(f"{folder}: no usable tokenizer: {reason}") from None
        if getattr(source, "backend_tokenizer", None) is None:
            raise ModelNotFoundError(f"{folder}: the tokenizer has no tokenizer.json; convert it with transformers")
        stops = _stored_eos(folder / "generation_config.json")
        if source.eos_token_id is None:
            known = [*_stored_eos(folder / "config.json"), *stops]
            if not known:
                raise ModelNotFoundError(f"{folder}: the tokenizer names no end-of-text token (eos_token)")
            source.eos_token = source.convert_ids_to_tokens(known[0])
        lent = None if source.chat_template else chat_template
        source.chat_template = source.chat_template or lent
        try:
            loaded = cls(source, stops, _is_encoder_decoder(folder / "config.json"))
        except ChatError as error:
            raise ModelNotFoundError(f"{folder}: {error}") from None
        loaded.default_chat_template = lent
        return loaded

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        """Ids of the pieces, each tokenized apart; no BOS, no EOS."""
        return [int(number) for number in self.encode_batch([pieces])[0][0]]

    def encode_batch(self, batch: Sequence[Sequence[Piece]], place: Place = Place.START) -> list[tuple[Array, Array]]:
        """For each sequence of pieces: ids int64 (T,) and trained bool (T,). Same ids as `encode` one by one.

        `place`: where the first piece of each stands; CONTINUING for text that goes on from an earlier one.
        """
        return [(row.ids, row.trained) for row in self._encode_rows(batch, [False] * len(batch), place)]

    def encode_examples(self, examples: Sequence[Example]) -> list[tuple[Array, Array]]:
        """As `encode_rows`, but with what is trained as bool (T,)."""
        return [(row.ids, row.trained) for row in self.encode_rows(examples)]

    def encode_rows(self, examples: Sequence[Example]) -> list[EncodedRow]:
        """The examples' ids, with BOS before and EOS (trained) after each framed one.

        For an encoder-decoder the completion is a text of its own: it begins where the trained tokens begin.
        """
        if self.encoder_decoder:
            return self._encode_pairs(examples)
        return self._encode_rows(
            [example.pieces for example in examples], [example.add_special_tokens for example in examples]
        )

    def prompt_ids(self, example: Example) -> list[int]:
        """The prompt's ids exactly as trained: what generation starts from."""
        ids = self.encode(example.prompt_pieces)
        if not example.add_special_tokens:
            return ids
        return [*self.prefix_ids, *ids, *(self.suffix_ids if self.encoder_decoder else [])]

    def decode(self, ids: Iterable[int], after: Sequence[int] = ()) -> str:
        """Text of the ids, control tokens left out. `after`: the prompt that they go on from: a space in front of the
        answer is then kept, where the ids alone would begin a text.
        """
        lead, answer = self.lead(after), [int(number) for number in ids]
        before, whole = self._text(lead), self._text([*lead, *answer])
        return whole[len(before) :] if whole.startswith(before) else self._text(answer)

    def lead(self, prompt: Sequence[int]) -> list[int]:
        """The last ids of a prompt, for an answer's text to go on from; none where it begins a text of its own."""
        if self.encoder_decoder or not len(prompt) or int(prompt[-1]) in self._control_numbers:
            return []
        return [int(number) for number in prompt[-_LEAD:]]

    def _text(self, ids: list[int]) -> str:
        return str(self._backends[Place.START].decode(ids, skip_special_tokens=True)) if ids else ""

    def show(self, ids: Iterable[int]) -> str:
        """Text of the ids with control tokens written out, for people."""
        return str(self._backends[Place.START].decode([int(number) for number in ids], skip_special_tokens=False))

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
        self, batch: Sequence[Sequence[Piece]], framed: Sequence[bool], place: Place = Place.START
    ) -> list[EncodedRow]:
        """Rows whose ids are stretches of one array, put together once for all of them."""
        split = [self._parts_of_row(pieces, place) for pieces in batch]
        plain = [part for pieces in split for parts in pieces for part in parts if isinstance(part, _Text)]
        encoded = iter(self._encode_plain(plain))
        bos, eos = np.array(self.prefix_ids, dtype=np.int64), np.array([self.eos_id], dtype=np.int64)
        chunks: list[Array] = [np.empty(0, np.int64)]
        places: list[tuple[int, int, list[Span]]] = []
        end = 0
        for pieces, parts_of, is_framed in zip(batch, split, framed, strict=True):
            start, spans = end, list[Span]()
            if is_framed:
                chunks.append(bos)
                end += len(bos)
            for piece, parts in zip(pieces, parts_of, strict=True):
                begins = end
                for part in parts:
                    chunk = next(encoded) if isinstance(part, _Text) else np.array([part], dtype=np.int64)
                    chunks.append(chunk)
                    end += len(chunk)
                if piece.trained:
                    _add_span(spans, begins - start, end - start)
            if is_framed:
                chunks.append(eos)
                _add_span(spans, end - start, end - start + 1)
                end += 1
            places.append((start, end, spans))
        ids = np.concatenate(chunks)
        return [EncodedRow(ids[start:end], spans) for start, end, spans in places]

    def _parts_of_row(self, pieces: Sequence[Piece], place: Place) -> list[list[_Part]]:
        row = []
        for piece in pieces:
            parts = self._parts(piece, place)
            row.append(parts)
            if parts:
                place = Place.CONTINUING if isinstance(parts[-1], _Text) else Place.AFTER_CONTROL
        return row

    def _parts(self, piece: Piece, place: Place) -> list[_Part]:
        """Cut a piece at the special-token strings that lie wholly inside one of its control spans."""
        parts: list[_Part] = []
        done = 0
        for start, end in self._control_spans(piece):
            name = piece.text[start:end]
            strips_left, strips_right = self._flags[name]
            before = piece.text[done:start]
            parts.append(_Text(before.rstrip() if strips_left else before, place, done))
            parts.append(self._control_ids[name])
            place, done = Place.AFTER_CONTROL, end
            while strips_right and done < len(piece.text) and piece.text[done].isspace():
                done += 1
        parts.append(_Text(piece.text[done:], place, done))
        return [part for part in parts if not isinstance(part, _Text) or part.text]

    def _control_spans(self, piece: Piece) -> list[Span]:
        return [
            match.span() for start, end in piece.controls for match in self._markers.finditer(piece.text, start, end)
        ]

    def _encode_plain(self, texts: Sequence[_Text]) -> list[Array]:
        """Tokenize plain stretches; no control token can come out of them."""
        result: list[Array] = [np.empty(0, np.int64)] * len(texts)
        done, begun = self._begun([text.text for text in texts if text.place is Place.START])
        for backend in dict.fromkeys(self._backends):
            places = [place for place, text in enumerate(texts) if self._backends[text.place] is backend]
            if not places:
                continue
            ahead = [done if texts[place].place is Place.START else 0 for place in places]
            rests = [texts[place].text[start:] for place, start in zip(places, ahead, strict=True)]
            encodings = backend.encode_batch_fast(rests, add_special_tokens=False)
            found = [encoding.ids for encoding in encodings]
            ends = list(itertools.accumulate(map(len, found)))
            ids = np.fromiter(itertools.chain.from_iterable(found), np.int64, ends[-1])
            forbidden = np.flatnonzero(self._forbidden[ids])
            for place, skipped, start, end in zip(places, ahead, [0, *ends], ends, strict=False):
                result[place] = np.concatenate((begun, ids[start:end])) if skipped else ids[start:end]
            for number in np.unique(np.searchsorted(ends, forbidden, "right")).tolist():
                place = places[number]
                result[place] = np.array(self._encode_guarded(texts[place]), dtype=np.int64)
        return result

    def _begun(self, texts: Sequence[str]) -> tuple[int, Array]:
        """How many characters at the start of rows are the same in all of them, and the ids of those."""
        done, ids = self._shared.of(texts)
        begun = np.array(ids, dtype=np.int64)
        return (0, begun[:0]) if self._forbidden[begun].any() else (done, begun)

    def _encode_guarded(self, text: _Text) -> list[int]:
        return [number for _, encoding in self._stretches(text) for number in encoding.ids]

    def _stretches(self, text: _Text) -> Iterator[tuple[int, tokenizers.Encoding]]:
        """A vocabulary that spells a control token as one plain piece (Unigram): cut such strings after a character.

        Each stretch with where it begins.
        """
        cuts = [0, *(match.start() + 1 for match in self._markers.finditer(text.text)), len(text.text)]
        places = [(start, end) for start, end in itertools.pairwise(cuts) if start < end]
        for number, (start, end) in enumerate(places):
            backend = self._backends[text.place if number == 0 else Place.CONTINUING]
            yield start, backend.encode(text.text[start:end], add_special_tokens=False)

    def user_mask(self, pieces: Sequence[Piece]) -> Array:
        """bool (T,) for the ids of `encode`: the tokens that hold a character of their piece's `spoken` spans."""
        mask: list[bool] = []
        for piece, parts in zip(pieces, self._parts_of_row(pieces, Place.START), strict=True):
            controls = iter(self._control_spans(piece))
            for part in parts:
                spans = self._token_spans(part) if isinstance(part, _Text) else [next(controls)]
                mask += [any(_within(span, said) for said in piece.user_spans) for span in spans]
        return np.array(mask, dtype=np.bool_)

    def _token_spans(self, text: _Text) -> list[Span]:
        """Where each token of a plain stretch stands in its piece, in characters."""
        whole = self._backends[text.place].encode(text.text, add_special_tokens=False)
        stretches = self._stretches(text) if self._forbidden[whole.ids].any() else [(0, whole)]
        return [
            (text.start + start + first, text.start + start + last)
            for start, encoding in stretches
            for first, last in encoding.offsets
        ]

    def _frame(self, source: Any) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer itself puts before and after a text."""
        bare = source("a", add_special_tokens=False)["input_ids"]
        whole = [int(number) for number in source("a", add_special_tokens=True)["input_ids"]]
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
        return [], []

    def _chat(self, source: Any) -> ChatTemplate | None:
        if self.chat_template is None:
            return None
        names = {name: str(token) for name, token in source.special_tokens_map.items() if isinstance(token, str)}
        return ChatTemplate(self.chat_template, names, self.control_tokens)

    def _fingerprint(self) -> str:
        facts = [self.prefix_ids, self.eos_id, self.stop_ids, self.chat_template, self.control_tokens]
        facts += [self.suffix_ids] if self.encoder_decoder else []
        return hashlib.sha256((self._backends[Place.START].to_str() + json.dumps(facts)).encode()).hexdigest()


def _within(token: Span, said: Span) -> bool:
    """Whether a token holds a character of what was said. White space may be left out of a token's span: of one that
    is nothing else, the end remains.
    """
    first, last = token
    start, end = said
    return first < end and last > start if first < last else start < last <= end


def set_threads(workers: int | None) -> None:
    """Bound the tokenizer's threads; it reads these once, when it first works in parallel."""
    if workers is not None:
        os.environ["RAYON_NUM_THREADS"] = str(workers)
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if workers > 1 else "false"


def _backends(source: tokenizers.Tokenizer) -> tuple[tokenizers.Tokenizer, ...]:
    """One backend for each Place, the same object where they do not differ.

    Some tokenizers put a space before a text: before every one, or before a row's first only. A completion that
    continues a prompt must not get one, and what follows a control token gets what transformers would give it.
    """
    stored = json.loads(source.to_str())
    stored["truncation"] = stored["padding"] = None
    forms = [json.dumps(form) for form in (stored, _unprefixed(stored, first_only=True), _unprefixed(stored, False))]
    made = {form: tokenizers.Tokenizer.from_str(form) for form in forms}
    for backend in made.values():
        backend.encode_special_tokens = True
    return tuple(made[form] for form in forms)


def _unprefixed(node: Any, first_only: bool) -> Any:
    """The tokenizer's JSON without the parts that put a space before a text, or only before a row's first text."""
    if isinstance(node, list):
        return [_unprefixed(item, first_only) for item in node]
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    if kind == "Prepend" and not first_only:
        return {"type": "Replace", "pattern": {"String": "\x00"}, "content": "\x00"}  # changes nothing
    changed = {
        name: value if name in ("model", "added_tokens", "decoder") else _unprefixed(value, first_only)
        for name, value in node.items()
    }
    if kind == "Metaspace" and (not first_only or node.get("prepend_scheme") == "first"):
        changed["prepend_scheme"] = "never"
    if kind == "ByteLevel" and not first_only:
        changed["add_prefix_space"] = False
    return changed


def _forbidden(
    control_ids: dict[str, int], unknown: int | None, size: int, backends: Iterable[tokenizers.Tokenizer]
) -> Array:
    """Which ids must not come out of plain text: bool, for every id that a backend can give."""
    highest = max((max(backend.get_vocab(True).values(), default=0) for backend in dict.fromkeys(backends)), default=0)
    table = np.zeros(max(size, highest + 1), dtype=np.bool_)
    table[[number for number in control_ids.values() if number != unknown and number < size]] = True
    return table


def _add_span(spans: list[Span], start: int, end: int) -> None:
    """Add a stretch that begins at or behind the last one's end; they are one where they touch."""
    if start == end:
        return
    if spans and spans[-1][1] == start:
        start = spans.pop()[0]
    spans.append((start, end))


def _default_template(stored: Any) -> str | None:
    if isinstance(stored, dict):
        stored = stored.get("default")
    return str(stored) if stored else None


def _is_encoder_decoder(path: Path) -> bool:
    return path.is_file() and bool(json.loads(path.read_text("utf-8")).get("is_encoder_decoder"))


def _stored_eos(path: Path) -> list[int]:
    if not path.is_file():
        return []
    stored = json.loads(path.read_text("utf-8")).get("eos_token_id")
    return [] if stored is None else [stored] if isinstance(stored, int) else [int(number) for number in stored]
