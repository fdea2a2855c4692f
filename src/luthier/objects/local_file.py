"""Creates the local file of an object that is downloaded."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from luthier.errors import CapacityError, UserError
from luthier.objects.errors import FULL_DISK

INVALID_FILE_NAME_ERRORS = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL}


@contextmanager
def create_file(target: Path, uri: str) -> Iterator[BinaryIO]:
    """Create a file for an object; UserError if the file system does not allow its name."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("wb")
    except OSError as error:
        if error.errno in INVALID_FILE_NAME_ERRORS:
            raise UserError(f"{uri}: no file can have this name here ({error.strerror}); rename the object") from error
        raise
    try:
        with file:
            yield file
    except OSError as error:
        if error.errno in FULL_DISK:
            raise CapacityError(f"{target}: the disk is full; free some of it, {uri} is incomplete") from error
        raise
