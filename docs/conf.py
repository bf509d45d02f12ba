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
    "tools.docs.outside",
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
exclude_patterns = [
    *(".*", "build", "dist", "device_agent", "sdk", "targets", "tests", "tools", "**/__pycache__"),
    # What `make bench` leaves: figures of a smaller size, which no page may quote.
    "benchmarks/results/*.smoke.md",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

# Headings have GitHub's anchors. Nothing else of MyST is asked for in pages that GitHub shows too.
myst_heading_anchors = 6
myst_enable_extensions = ["attrs_block", "colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
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
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "kedge"},
    "navbar_align": "left",
    "header_links_before_dropdown": 9,
    "navbar_persistent": ["search-open"],
    "navbar_end": ["theme-switcher"],
    "show_nav_level": 1,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_context = {"default_mode": "auto"}
# Sections that are one page have nothing to list beside it.
html_sidebars = {"docs/index": [], "docs/troubleshooting": []}
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"
