"""How good a model is: likelihood, generation, base against tuned, and the report."""
