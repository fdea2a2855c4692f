"""Measures a model: likelihood and generation on held-out rows, base against tuned, and the HTML report."""
