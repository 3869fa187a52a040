"""The site of the documents: `make docs`, or `sphinx-build -W docs dist/docs`. Nothing is fetched."""

from calotype import __version__

project, author, release = "Calotype", "The authors of Calotype", __version__
extensions = ["myst_parser"]
html_theme, html_title = "furo", f"Calotype {release}"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]  # links to files beside docs/, which a site has not
html_theme_options = {"sidebar_hide_name": False}
html_static_path, html_css_files = ["static"], ["site.css"]
html_show_copyright = False
highlight_language = "text"  # blocks without a language are commands of a shell
smartquotes = False  # options in the text begin with two hyphens
html_copy_source = False
