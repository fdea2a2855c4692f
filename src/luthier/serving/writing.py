"""An answer's text while its tokens come: whole characters only, and nothing of a stop string.

    tokens      " gr" | 0xC3 | 0xBC | "n #" | "##"        stop: "###"
    released    " gr" | ""   | "ü"  | "n "  | (stopped)

What is released, put together, is the text of all tokens up to the first stop string. It knows a tokenizer, nothing of
models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the room's HTTP side is up before tokenizers are imported
    from luthier.data.tokenize import Tokenizer

_INCOMPLETE = "\ufffd"  # what a decoder makes of half a character


class Writing:
    """One answer. `live`: text is released as it comes; without, and without `stops`, all of it at the end."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str] = (), live: bool = False
    ) -> None:
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.stops = tuple(stops)
        self.live = live or bool(stops)
        self.ids: list[int] = []
        self.text = ""
        self.stopped = False  # by a stop string
        self._released = 0  # characters
        self._ends: list[int] = []  # of the text, after each token
        # A window of ids is decoded, and what its first part gives taken off: spaces then fall as in the whole.
        self._window = tokenizer.lead(prompt)
        self._known = len(self._window)  # ids of the window whose text is in `text`

    def add(self, token: int) -> str:
        """Take a token; the text that it released."""
        self.ids.append(token)
        if not self.live:
            return ""
        before = len(self.text)
        self.text += self._certain(token)
        self._ends.append(len(self.text))
        longest = max(map(len, self.stops), default=1)
        self._cut(max(0, before - longest + 1))
        return self._release(len(self.text) - (0 if self.stopped else self._held()))

    def finish(self) -> str:
        """No more tokens come: what is left of the text."""
        if not self.stopped:
            whole = self.tokenizer.decode(self.ids, after=self.prompt)
            # Some decoders unmake characters when bytes follow that are no text: what was said stands.
            told = self.text + self.tokenizer.decode(self._window[self._known :])
            self.text = whole if whole.startswith(self.text) else told
            self._cut(0)
        return self._release(len(self.text))

    def texts(self) -> list[str]:
        """Of a finished live answer: what each token gave to its text. Put together they are the text."""
        ends = [min(end, len(self.text)) for end in self._ends[:-1]] + [len(self.text)] * bool(self._ends)
        return [self.text[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def _certain(self, token: int) -> str:
        """New text that no later token can change."""
        self._window.append(token)
        known = self.tokenizer.decode(self._window[: self._known])
        whole = self.tokenizer.decode(self._window)
        if len(whole) <= len(known) or not whole.startswith(known) or whole.endswith(_INCOMPLETE):
            return ""
        self._window, self._known = self._window[self._known :], len(self._window) - self._known
        return whole[len(known) :]

    def _cut(self, start: int) -> None:
        """End the text before the first stop string from `start` on."""
        places = [place for stop in self.stops if (place := self.text.find(stop, start)) >= 0]
        if places:
            self.text, self.stopped = self.text[: min(places)], True

    def _held(self) -> int:
        """Characters at the text's end that may be the beginning of a stop string."""
        lengths = (
            length for stop in self.stops for length in range(min(len(stop) - 1, len(self.text)), 0, -1)
            if self.text.endswith(stop[:length])
        )  # fmt: skip
        return max(lengths, default=0)

    def _release(self, end: int) -> str:
        start, self._released = self._released, end
        return self.text[start:end]
