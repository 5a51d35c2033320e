"""Measuring: distances, a sampler to numbers, and the table."""
