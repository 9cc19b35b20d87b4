"""What opens a package and runs it: one file or folder a runtime."""
