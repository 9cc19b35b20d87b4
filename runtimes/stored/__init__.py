"""What packages store, read from their files alone: one file a format, each with `stored_matrices`."""
