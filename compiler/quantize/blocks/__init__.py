"""A network, one block in memory at a time."""
