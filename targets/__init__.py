"""What lowers a model into a package: one file or folder a target."""
