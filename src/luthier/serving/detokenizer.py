"""Incremental detokenization: releases the text of a completion while its tokens arrive.

    tokens      " gr" | 0xC3 | 0xBC | "n #" | "##"        stop string: "###"
    released    " gr" | ""   | "ü"  | "n "  | (stopped)

Only whole characters are released, and nothing of a stop string. The released parts, concatenated, are the text of all
tokens up to the first stop string.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the HTTP server starts before tokenizers are imported
    from luthier.data.tokenize import Tokenizer

_INCOMPLETE = "\ufffd"  # the decoder's output for an incomplete character


class Detokenizer:
    """The text of one completion. If not `live` and without stop strings, all text is released at the end."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], stop_strings: Sequence[str] = (), live: bool = False
    ) -> None:
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.stop_strings = tuple(stop_strings)
        self.live = live or bool(stop_strings)
        self.ids: list[int] = []
        self.text = ""
        self.stopped = False  # at a stop string
        self._released = 0  # characters
        self._ends: list[int] = []  # length of the text after each token
        # Ids are decoded with some context before them, whose text is removed: spaces then come out as in the whole.
        self._context = tokenizer.lead(prompt)
        self._context_size = len(self._context)  # leading ids whose text is already in `text`

    def append(self, token: int) -> str:
        """Add a token; returns the text that can be released."""
        self.ids.append(token)
        if not self.live:
            return ""
        before = len(self.text)
        self.text += self._decode_complete(token)
        self._ends.append(len(self.text))
        longest = max(map(len, self.stop_strings), default=1)
        self._truncate_at_stop(max(0, before - longest + 1))
        return self._release(len(self.text) - (0 if self.stopped else self._partial_stop_length()))

    def finish(self) -> str:
        """Release the rest of the text after the last token."""
        if not self.stopped:
            whole = self.tokenizer.decode(self.ids, after=self.prompt)
            # Some decoders turn valid characters into invalid ones when stray bytes follow: keep the released text.
            incremental = self.text + self.tokenizer.decode(self._context[self._context_size :])
            self.text = whole if whole.startswith(self.text) else incremental
            self._truncate_at_stop(0)
        return self._release(len(self.text))

    def token_texts(self) -> list[str]:
        """After `finish`, if live: the text of each token; concatenated they are `text`."""
        ends = [min(end, len(self.text)) for end in self._ends[:-1]] + [len(self.text)] * bool(self._ends)
        return [self.text[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def _decode_complete(self, token: int) -> str:
        """New text that no later token can change."""
        self._context.append(token)
        known = self.tokenizer.decode(self._context[: self._context_size])
        whole = self.tokenizer.decode(self._context)
        if len(whole) <= len(known) or not whole.startswith(known) or whole.endswith(_INCOMPLETE):
            return ""
        self._context, self._context_size = self._context[self._context_size :], len(self._context) - self._context_size
        return whole[len(known) :]

    def _truncate_at_stop(self, start: int) -> None:
        """Truncate the text at the first stop string at or after `start`."""
        matches = [index for stop in self.stop_strings if (index := self.text.find(stop, start)) >= 0]
        if matches:
            self.text, self.stopped = self.text[: min(matches)], True

    def _partial_stop_length(self) -> int:
        """Length of the longest suffix of the text that is a prefix of a stop string."""
        lengths = (
            length for stop in self.stop_strings for length in range(min(len(stop) - 1, len(self.text)), 0, -1)
            if self.text.endswith(stop[:length])
        )  # fmt: skip
        return max(lengths, default=0)

    def _release(self, end: int) -> str:
        start, self._released = self._released, end
        return self.text[start:end]
