"""What an access key may do: in which buckets and prefixes, on resources of which names, and whether it may change any.

A right is a word of `luthier keys create --allow`:

    s3://BUCKET/PREFIX   objects whose address begins with this; s3://BUCKET: the bucket and all objects in it
    jobs:PREFIX          jobs, models and endpoints whose names begin with this; jobs:* for all
    read                 reading only: of everything, or of what the other rights name

A key without rights may do everything. A key with rights may do only what one of them allows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from luthier.errors import SettingError, UserError

_ADDRESS = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(/(?P<prefix>.*))?", re.DOTALL)
_NAMES = re.compile(r"jobs:(\*|[A-Za-z0-9][A-Za-z0-9-]{0,62})")


@dataclass(frozen=True, slots=True)
class Rights:
    """`prefixes` are (bucket, prefix of keys), `names` prefixes of names in lower case; None allows all of a kind."""

    words: tuple[str, ...] = ()
    reads_only: bool = False
    prefixes: tuple[tuple[str, str], ...] | None = None
    names: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, words: Iterable[str]) -> Rights:
        """The rights of --allow; SettingError for a word that is none."""
        given = tuple(dict.fromkeys(words))
        prefixes, names = [], []
        for word in given:
            if match := _ADDRESS.fullmatch(word):
                prefixes.append((match["bucket"], match["prefix"] or ""))
            elif match := _NAMES.fullmatch(word):
                names.append(match[1].replace("*", "").lower())
            elif word != "read":
                raise SettingError(f"--allow {word!r}: expected s3://BUCKET, s3://BUCKET/PREFIX, jobs:PREFIX or read")
        if not prefixes and not names:
            return cls(given, "read" in given)
        return cls(given, "read" in given, tuple(prefixes), tuple(names))

    def allows_object(self, bucket: str, key: str) -> bool:
        """Whether an object, or all objects whose keys begin with `key`, may be reached."""
        if self.prefixes is None:
            return True
        return any(bucket == allowed and key.startswith(prefix) for allowed, prefix in self.prefixes)

    def allows_bucket(self, bucket: str) -> bool:
        """Whether anything in the bucket may be reached."""
        return self.prefixes is None or any(bucket == allowed for allowed, _ in self.prefixes)

    def allows_name(self, name: str) -> bool:
        """Whether a job, model or endpoint of this name may be reached; ARNs hold names in lower case."""
        return self.names is None or any(name.lower().startswith(prefix) for prefix in self.names)

    def check_address(self, uri: str, *, write: bool) -> None:
        """UserError if the objects below an address may not be read, or written."""
        bucket, _, key = uri.partition("://")[2].partition("/")
        if not self.allows_object(bucket, key) or (write and self.reads_only):
            what = "write" if write else "read"
            raise UserError(f"{uri}: access denied: the key that created this may not {what} it ({self})")

    def __str__(self) -> str:
        return f"allowed: {', '.join(self.words)}" if self.words else "allowed: everything"


EVERYTHING = Rights()
