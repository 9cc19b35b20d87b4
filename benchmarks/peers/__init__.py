"""Other projects' own commands beside ours, in one interleaved run."""
