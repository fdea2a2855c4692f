"""Weights: load a base model, attach LoRA, run it, generate, and pack what was trained."""

from luthier.weights import quantize as quantize  # before anything here imports peft: see `_import_quietly` there
