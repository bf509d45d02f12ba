"""Functions of the user's own, named `package.module:function`: data loaders, model factories, metrics."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import BadInputError, KedgeError, first_line

__all__ = ["in_user_code", "is_user_code", "load_function"]

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_user_code(reference: str) -> bool:
    """Whether text has the form `package.module:function`."""
    return _REFERENCE.fullmatch(reference) is not None


def load_function(reference: str, base: Path | None) -> Callable[..., Any]:
    """Import what `package.module:function` names. The module's code runs.

    Args:
        base: a folder to look in first (the recipe's), or None for the current one. It is on the
            module path during the import only: import what you need at the module's top.

    Raises:
        BadInputError: there is no such module or function, or the import fails.
    """
    module_name, _, attribute = reference.partition(":")
    folder = (base or Path()).resolve()
    _refuse_namesake(reference, module_name.partition(".")[0], folder)
    sys.path.insert(0, str(folder))
    # A file written since the folder was last listed is found too.
    importlib.invalidate_caches()
    try:
        with in_user_code(reference):
            found: Any = importlib.import_module(module_name)
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise BadInputError(
            f"{reference}: {module_name} has no function {attribute}",
            hint="name a function: package.module:function",
        )
    return found  # type: ignore[no-any-return]


@contextlib.contextmanager
def in_user_code(reference: str) -> Iterator[None]:
    """Run code of the user's: what it prints goes to standard error, what it raises becomes one line.

    Raises:
        BadInputError: the code raised something.
    """
    try:
        # Standard output is kedge's own: with --json it holds one document.
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KedgeError:
        raise
    except ModuleNotFoundError as error:
        raise BadInputError(
            f"{reference}: {first_line(error)}", hint="modules are looked up beside the recipe, and where pip installs"
        ) from error
    except Exception as error:  # anything may come out of code we do not know
        raise BadInputError(
            f"{reference} failed: {type(error).__name__}: {first_line(error)}", hint="run it in Python on its own"
        ) from error


def _refuse_namesake(reference: str, top: str, folder: Path) -> None:
    # An import would silently give the module that is loaded already.
    loaded = sys.modules.get(top)
    beside = [
        path for path in (folder / top, folder / f"{top}.py") if path.is_file() or (path / "__init__.py").is_file()
    ]
    if loaded is None or not beside:
        return
    places = [*getattr(loaded, "__path__", []), getattr(loaded, "__file__", None) or ""]
    if not any(Path(place).resolve() in beside for place in places):
        raise BadInputError(
            f"{reference}: another module named {top} is in use, {beside[0]} would not be read", hint="rename yours"
        )
