"""Measurements, as ratios in one run: absolute times belong to one machine on one day."""
