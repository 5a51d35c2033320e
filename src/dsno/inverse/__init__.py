"""Inverse problems: samples that agree with what was measured of them, from a teacher that never saw the problem."""
