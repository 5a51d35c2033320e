"""Distillation methods: what a batch is, and the loss."""
