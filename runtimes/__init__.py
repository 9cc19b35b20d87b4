"""What opens a package and runs it: one file a runtime."""
