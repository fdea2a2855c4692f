"""The engine's one HTTP door: a model is loaded, requests come in, batches go through it, answers go out."""
