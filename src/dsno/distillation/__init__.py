"""Distillation: a method is a loss over flow maps, and `run.distill` trains a student by any of them."""
