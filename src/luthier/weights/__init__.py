"""Weights: load a base model, attach LoRA, run it, generate, and write the artifact."""

from luthier.weights import quantize as quantize  # must be imported before peft: see `_import_quietly`
