"""Sphinx's configuration: its source is the whole repository, so that links hold on GitHub and on the site alike."""

import sys
from pathlib import Path

import kedge

sys.path.insert(0, str(Path(__file__).parents[1]))

project = "kedge"
author = "the kedge project"
copyright = "the kedge project, Apache-2.0"  # noqa: A001 - Sphinx's name
version = release = kedge.__version__
language = "en_GB"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
    "tools.docs.docstrings",
]

root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "examples/*/README.md",
    "examples/README.md",
    "benchmarks/README.md",
    "benchmarks/results/*.md",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
exclude_patterns = [".*", "build", "dist", "device_agent", "sdk", "targets", "tests", "tools", "**/__pycache__"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

# Markdown is GitHub's: headings have GitHub's anchors, and nothing is read as mathematics or as a substitution.
myst_heading_anchors = 6
myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Docstrings are written for people who read the source: `name` is code.
# What modules import for type checkers alone; any other name must exist, or have a page (tools/docs/docstrings.py).
nitpick_ignore = [
    ("py:class", name) for name in ("Image", "Markup", "NDArray", "Path", "Rollout", "np.float32", "np.uint8")
]
default_role = "code"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

html_theme = "pydata_sphinx_theme"
html_title = "kedge"
