"""Luthier's fused layers: fast PyTorch functions, each tested against a reference implementation."""
