"""How the documentation is built: `sphinx-build -W -b html docs docs/_build` (extra `docs`)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import ksmwalk

project = "ksmwalk"
author = "the ksmwalk authors"
copyright = author
version = release = ksmwalk.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "docstrings", "said_once", "notebooks"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build"]
needs_sphinx = "7.2"
suppress_warnings = []

# `name` in a docstring is a link where there is such an object, and code in any case.
default_role = "py:obj"
add_module_names = False
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 88

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}

napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
pygments_style, pygments_dark_style = "default", "monokai"
html_title = f"ksmwalk {release}"
html_static_path = ["_static"]
html_css_files = ["ksmwalk.css"]
html_show_copyright = False
html_theme_options = {
    "top_of_page_buttons": ["view"],
    "source_repository": "https://github.com/ksmwalk/ksmwalk/",
    "source_branch": "main",
    "source_directory": "docs/",
}
