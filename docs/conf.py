"""The documentation site: `make site`. Nothing in it asks another host; links that are clicked may."""

import re

from efficientface import __version__

project = "efficientface"
author = "The efficientface team"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"efficientface {__version__}"
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
smartquotes = False  # options begin with two hyphens
myst_heading_anchors = 3
highlight_language = "none"  # what a terminal shows; blocks that are code say so
autodoc_member_order = "bysource"
autodoc_typehints = "signature"


def plain_text(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Our docstrings are plain text with `code` in it: what reStructuredText would make more of is escaped."""
    for k, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line)
        lines[k] = "".join(
            f"`{part}`" if part.startswith("`") and len(part) > 2 else re.sub(r"([\\*_|])", r"\\\1", part)
            for part in parts
        )


def setup(app: object) -> None:
    app.connect("autodoc-process-docstring", plain_text)  # type: ignore[attr-defined]
