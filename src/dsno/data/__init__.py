"""Data sets of one to three spatial directions, from files or from the Hub."""
