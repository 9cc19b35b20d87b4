"""Quantization: codes, scales and zero points found once, for every container to carry."""
