"""Inverse problems: a sample that agrees with a measurement, from a teacher that was never trained for it."""
