"""Evaluation of a generator: comparison with photos, and a report."""
