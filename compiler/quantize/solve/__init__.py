"""Codes for one matrix."""
