"""Which models can be fine-tuned, and with which hyperparameters: data and dataclasses, no torch.

Both the control plane and the engine import it.
"""

from luthier.catalog.entry import Entry, entries, find

__all__ = ["Entry", "entries", "find"]
