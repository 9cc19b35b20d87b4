"""Core ML packages: on macOS, and evaluated elsewhere."""
