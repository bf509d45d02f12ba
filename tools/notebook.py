"""Execute examples/quickstart.ipynb: `python -m tools.notebook` writes its outputs into it, for readers on the web."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["NOTEBOOK", "execute", "tagged"]

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"
_CELL_S = 240


def execute(path: Path = NOTEBOOK) -> Any:
    """The notebook with what its cells print and draw now; the file stays as it is.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        book, timeout=_CELL_S, record_timing=False, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    return book


def tagged(book: Any, tag: str) -> str:
    """What the one cell with this tag printed."""
    (cell,) = (cell for cell in book.cells if tag in cell.metadata.get("tags", ()))
    return "".join(each.text for each in cell.outputs if each.output_type == "stream")


def _main() -> None:
    import nbformat

    book = execute()
    # Of what executed it, only what a reader needs: the next run changes nothing else.
    book.metadata = {"kernelspec": book.metadata.kernelspec, "language_info": {"name": "python"}}
    nbformat.write(book, NOTEBOOK)
    print(tagged(book, "accuracy").strip())


if __name__ == "__main__":
    _main()
