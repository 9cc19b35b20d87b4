"""The site: `make docs` builds it, with every warning as an error."""

import importlib.metadata

project = "edgec"
author = "the engineers of edgec"
release = version = importlib.metadata.version("edgec")
extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"edgec {release}"
html_show_sphinx = False
html_copy_source = False
