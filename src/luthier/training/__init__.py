"""The engine: the loop, its optimizer, checkpoints and records."""
