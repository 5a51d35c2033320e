"""Solvers of the probability-flow ODE: pure steps, the driver that runs them, and the fine solution."""
