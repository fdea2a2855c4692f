"""Luthier: fine-tune foundation models on your own hardware.

Importing the package imports nothing else: each room is imported by whoever uses it.
"""

__version__ = "0.3.0"
