"""Samplers in a browser: a folder of static files that needs no server code, and no Python to run."""
