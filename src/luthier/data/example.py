"""An example: one rendered row, in pieces of text that do or do not carry loss.

    pieces   [ "question: 2 + 2?\n\n### Response:\n" | "4" ]
                       trained=False                   trained=True

It holds text and spans of text, no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

Span = tuple[int, int]  # [start, end) in characters of a piece's text


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of text; `trained`: its tokens carry loss.

    `controls` are the spans written by the template, not by the row: special-token strings wholly inside one of them
    become control tokens; elsewhere they stay text. `user_spans` are the user's words in an untrained piece: their
    tokens carry loss where all turns of a conversation are trained.
    """

    text: str
    trained: bool
    controls: tuple[Span, ...] = ()
    user_spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """One rendered row. `add_special_tokens`: BOS before and EOS after it (chat templates have their own).

    `masked_turns`: turns of a conversation that the row excludes from the loss.
    """

    source: str
    pieces: tuple[Piece, ...]
    add_special_tokens: bool = True
    masked_turns: int = 0

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
