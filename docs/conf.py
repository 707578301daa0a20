"""How `make docs` builds these pages: Sphinx over the repository's Markdown files, as they are, and the docstrings."""

from __future__ import annotations

from sphinx.application import Sphinx

import lightning_scale

project = "lightning_scale"
author = "the lightning_scale authors"
release = version = lightning_scale.__version__

# The repository is the source folder, so that pages link to the READMEs beside the code as they do in any viewer.
root_doc = "README"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "RELEASING.md",
    "docs/**",
    "benchmarks/README.md",
    "benchmarks/results/*.md",
    "callbacks/README.md",
    "strategies/README.md",
    "examples/*/README.md",
]
exclude_patterns = [".*", "build", "dist", "runs", "tests", "lightning_scale", "docs/conf.py"]

_PAGES = {
    "What a step is": ["docs/batches", "docs/ramps", "docs/legw", "docs/stages", "docs/exact_resume"],
    "Optimizers": ["docs/layerwise", "docs/eight_bit", "docs/optimizers", "docs/coming_from"],
    "Several devices": ["docs/strategies", "docs/plan"],
    "While it runs": ["docs/trust_ratios", "docs/noise_scale", "docs/launching", "docs/faults"],
    "Configurations": ["docs/command_line", "callbacks/README", "strategies/README", "docs/works_with"],
    "Examples and benchmarks": ["examples/*/README", "benchmarks/README", "benchmarks/results/*"],
    "For contributors": ["docs/architecture", "CONTRIBUTING", "docs/adding_an_optimizer", "RELEASING"],
    "Reference": ["docs/api/*", "CHANGELOG"],
}
"""The navigation: it is added to the front page here, for other viewers would show it as code."""

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

default_role = "py:obj"  # `LAMB` in a docstring is a link where there is such a page
autodoc_inherit_docstrings = False  # of Lightning's hooks, say
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_extra_path = ["front"]  # index.html, which leads to the README
html_title = f"lightning_scale {release}"
html_show_copyright = False
html_show_sourcelink = False
highlight_language = "text"


def _add_navigation(app: Sphinx, name: str, content: list[str]) -> None:
    if name == root_doc:
        for caption, pages in _PAGES.items():
            listed = "\n".join(pages)
            content[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n{listed}\n```\n"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _add_navigation)
