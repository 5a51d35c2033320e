"""Whole runs: recipes, training of teachers, what a run costs, and the weights that ship."""
