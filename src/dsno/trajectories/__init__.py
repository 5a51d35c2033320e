"""Trajectories as a data set: a manifest, shards, and what generates, reads, shares and fetches them."""
