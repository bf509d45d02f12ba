"""Links of Markdown to what the repository has and the site has not (folders, tests): shown as text, without a link.

On GitHub such a link leads somewhere. One that leads nowhere there either stays a fault.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx

__all__ = ["setup"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's way in."""
    app.connect("doctree-read", _unlink)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _unlink(app: Sphinx, doctree: nodes.document) -> None:
    from docutils import nodes
    from sphinx.addnodes import pending_xref

    here = Path(app.srcdir, app.env.docname).parent
    for link in list(doctree.findall(pending_xref)):
        if link.get("reftype") != "myst":
            continue
        target: str = link["reftarget"]
        if link.get("refdomain") == "doc":
            is_outside = target not in app.env.found_docs and Path(app.srcdir, f"{target}.md").is_file()
        else:
            is_outside = bool(target) and (here / target).is_dir()
        if is_outside:
            link.replace_self(nodes.inline("", "", *link.children))
