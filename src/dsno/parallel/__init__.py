"""Exact samples of the teacher's chain in few serial rounds: Picard, triangular Anderson, parareal, speculative."""
