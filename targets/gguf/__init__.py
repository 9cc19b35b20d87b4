"""The target gguf."""
