"""edgec's core: models, recipes, packages and the build."""

__version__ = "0.1.0"
