"""Numbers and booleans of rows, as text."""

from __future__ import annotations


class JsonLiteral(str):
    """A JSON number or boolean as text, as the file writes it: `1.10` stays ``1.10``."""

    __slots__ = ()
