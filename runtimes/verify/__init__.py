"""Holding packages to the Reference."""
