"""`kedge rollout`."""

from __future__ import annotations

import click

__all__ = ["rollout"]


@click.group()
def rollout() -> None:
    """Look at rollouts to many devices, go on with them, end them."""
