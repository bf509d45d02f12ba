"""The command line: parse, call the library, render."""

from .app import main

__all__ = ["main"]
