"""What can be fine-tuned and with which settings: pure data and dataclasses, no torch.

The only room that both the control plane and the engine read.
"""

from luthier.catalog.entry import Entry, entries, find

__all__ = ["Entry", "entries", "find"]
