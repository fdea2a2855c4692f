"""Collects problems of rows: the first of each kind in each file, and how many more there are."""

from __future__ import annotations

from luthier.errors import DataError, Problem

LIMIT = 20  # lines shown to a person


class Problems:
    """Collects problems while rows are streamed; memory grows with the kinds of problem, not with the rows."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str, str], Problem] = {}
        self._counts: dict[tuple[str, str, str], int] = {}
        self.blank_lines: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._first)

    def add(self, file: str, line: int, kind: str, message: str, field: str = "") -> None:
        """Add a problem; those of one file, kind and field are counted together, and the first is shown."""
        key = (file, kind, field)
        self._counts[key] = self._counts.get(key, 0) + 1
        if key not in self._first:
            self._first[key] = Problem(file, line, message, field)

    def add_blank(self, file: str) -> None:
        """Count an empty line: neither a row nor a problem, but reported."""
        self.blank_lines[file] = self.blank_lines.get(file, 0) + 1

    def to_list(self) -> list[Problem]:
        """Return at most LIMIT problems, and one that counts the rest."""
        listed = []
        for key, problem in self._first.items():
            more = self._counts[key] - 1
            rows = "row" if more == 1 else "rows"
            message = f"{problem.message} (and {more:,} more such {rows})" if more else problem.message
            listed.append(Problem(problem.file, problem.line, message, problem.field))
        if len(listed) > LIMIT:
            listed[LIMIT:] = [Problem("", 0, f"and {len(listed) - LIMIT} more problems")]
        return listed

    def raise_if_any(self) -> None:
        if self:
            raise DataError(self.to_list())
