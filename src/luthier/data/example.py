"""An example: one row as the model will see it, in pieces of text that do or do not carry loss.

    pieces   [ "question: 2 + 2?\n\n### Response:\n" | "4" ]
                       trained=False                   trained=True

It knows text and spans of text, nothing of tokens or of where the row came from.
"""

from __future__ import annotations

from dataclasses import dataclass

Span = tuple[int, int]  # [start, end) in characters of a piece's text


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text; `trained`: its tokens carry loss.

    `controls` are the spans written by the template, not by the row: special-token strings that lie wholly inside one
    of them become control tokens. Everywhere else such a string is plain text. `spoken` are what the user said in an
    untrained piece: its tokens carry loss where all turns of a conversation are trained.
    """

    text: str
    trained: bool
    controls: tuple[Span, ...] = ()
    user_spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """One rendered row. `framed`: BOS goes before it and EOS after it (chat templates bring their own)."""

    source: str
    pieces: tuple[Piece, ...]
    add_special_tokens: bool = True

    @property
    def prompt_pieces(self) -> tuple[Piece, ...]:
        """Everything before the last trained piece; all of it when nothing is trained."""
        last = max((place for place, piece in enumerate(self.pieces) if piece.trained), default=len(self.pieces))
        return self.pieces[:last]

    @property
    def prompt(self) -> str:
        return "".join(piece.text for piece in self.prompt_pieces)

    @property
    def completion(self) -> str:
        """Text of the last trained piece; for chat that is the last assistant turn with its end-of-turn marker."""
        return next((piece.text for piece in reversed(self.pieces) if piece.trained), "")
