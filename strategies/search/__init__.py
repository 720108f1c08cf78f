"""Searches over solutions: the deterministic mathematics of each method, one concept a file."""
