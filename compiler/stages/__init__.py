"""A stage of a build: what it is, where it runs, and where its result is kept."""
