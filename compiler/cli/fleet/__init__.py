"""Runs a matrix: the top of all, which uses every room."""
