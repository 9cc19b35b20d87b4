"""What lowers a model into a package: one file a target."""
