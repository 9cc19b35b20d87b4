"""The target coreml."""
