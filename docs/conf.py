"""The site of the documents: `make docs`, or `sphinx-build -W docs dist/docs`. Nothing is fetched."""

from calotype import __version__

project, author, release = "Calotype", "The authors of Calotype", __version__
extensions = ["myst_parser"]
html_theme, html_title = "furo", f"Calotype {release}"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]  # links to files beside docs/, which a site has not
html_theme_options = {"sidebar_hide_name": False}
html_copy_source = False
