"""Weights: load a base model, attach LoRA, run it, generate, and pack what was trained."""
