"""Faults found in the rows, gathered: the first of each kind in each file, with how many more there are."""

from __future__ import annotations

from luthier.errors import DataError, Problem

LIMIT = 20  # lines shown to a person


class Problems:
    """Collects faults while rows stream by; memory grows with the kinds of fault, never with the rows."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str, str], Problem] = {}
        self._counts: dict[tuple[str, str, str], int] = {}
        self.blank_lines: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._first)

    def add(self, file: str, line: int, kind: str, message: str, field: str = "") -> None:
        """Note a fault; those of one file, kind and field are counted together, the first one is shown."""
        key = (file, kind, field)
        self._counts[key] = self._counts.get(key, 0) + 1
        if key not in self._first:
            self._first[key] = Problem(file, line, message, field)

    def blank(self, file: str) -> None:
        """Note an empty line: no row and no fault, but said."""
        self.blank_lines[file] = self.blank_lines.get(file, 0) + 1

    def listed(self) -> list[Problem]:
        """At most LIMIT problems and one that counts the rest."""
        found = []
        for key, problem in self._first.items():
            more = self._counts[key] - 1
            rows = "row" if more == 1 else "rows"
            message = f"{problem.message} (and {more:,} more such {rows})" if more else problem.message
            found.append(Problem(problem.file, problem.line, message, problem.field))
        if len(found) > LIMIT:
            found[LIMIT:] = [Problem("", 0, f"and {len(found) - LIMIT} more problems")]
        return found

    def raise_if_any(self) -> None:
        if self:
            raise DataError(self.listed())
