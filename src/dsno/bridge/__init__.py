"""Diffusion bridges: from one picture to another, trained on pairs and sampled in few calls."""
