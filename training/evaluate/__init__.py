"""Measure how good a generator is."""
