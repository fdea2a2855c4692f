"""A folder with the config and tokenizer of a GGUF file, without its weights: what `luthier inspect` needs."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from luthier.catalog.gguf_header import is_gguf, read_header
from luthier.gguf.config import read_gguf_config
from luthier.gguf.tokenizer import write_tokenizer
from luthier.home import cache_root


def with_tokenizer(location: Path) -> Path:
    """A model's folder as it is; for a GGUF file, the cached folder made from its header."""
    if not is_gguf(location):
        return location
    header = read_header(location)
    with open(location, "rb") as handle:
        target = cache_root() / f"tokenizer-{hashlib.sha256(handle.read(header.end)).hexdigest()}"
    if target.is_dir():
        return target
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        write_tokenizer(header, temporary)
        read_gguf_config(header).save_pretrained(temporary)
        try:
            temporary.rename(target)
        except OSError:  # another process wrote it meanwhile
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
