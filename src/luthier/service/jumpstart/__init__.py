"""JumpStart from Luthier's catalogue: the cache buckets that SDK v2 reads, the hub contents that v3 reads.

Nothing is stored: manifest, specs and documents are made of the entries when they are asked for, for the region that
asks.
"""

from luthier.service.jumpstart.buckets import bucket
from luthier.service.jumpstart.names import (
    base_model_of_key,
    content_name,
    entry_of,
    ids,
    image,
    is_cache_uri,
)

__all__ = ["base_model_of_key", "bucket", "content_name", "entry_of", "ids", "image", "is_cache_uri"]
