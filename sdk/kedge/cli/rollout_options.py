"""What `kedge deploy` takes of a rollout: its options, and when they make a deploy one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import BadInputError
from .common import path_type
from .units import parse_duration

if TYPE_CHECKING:
    from ..fleet.rollout.plan import Options
    from ..release.bundle import Release

__all__ = ["Asked", "asked", "carried_out_options", "parse_share", "rollout_options"]

F = TypeVar("F", bound=Callable[..., Any])

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_SHARE = re.compile(r"(\d{1,4}(?:\.\d{1,4})?) ?%")
_DEADLINE_S = 1800
_CONCURRENCY = 32


def parse_share(text: str) -> float:
    """A share in a text such as `1%`; a usage error where it is none."""
    found = _SHARE.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text!r}: a share is written as 1%")
    return float(found[1]) / 100


def rollout_options(function: F) -> F:
    """Add the options of a rollout; the command gets them by the names of `Asked`."""
    dry_run = click.option("--dry-run", is_flag=True, help="Show the waves and who is in which; touch nothing.")
    return dry_run(carried_out_options(function))


def carried_out_options(function: F) -> F:
    """Add the options of a rollout that there is no plan of before, for want of a release: all but --dry-run."""
    for option in reversed(
        (
            click.option("--canary", metavar="WAVES", help="Waves, as 1,5%,25%,100% of all.  [default: 100%]"),
            click.option("--pause", type=parse_duration, metavar="TIME", help="Watch each wave so long, as 10m."),
            click.option(
                "--max-failures", type=click.IntRange(0), metavar="N", help="One more halts it.  [default: 0]"
            ),
            click.option(
                "--deadline", type=parse_duration, metavar="TIME", help="Of each device, as 30m.  [default: 30m]"
            ),
            click.option(
                "--concurrency", type=click.IntRange(1), metavar="N", help="Devices at a time.  [default: 32]"
            ),
            click.option(
                "--max-error-rate", type=parse_share, metavar="SHARE", help="Halt where more requests fail, as 1%."
            ),
            click.option(
                "--max-p99-drift", type=parse_share, metavar="SHARE", help="Halt where a wave is slower, as 20%."
            ),
            click.option("--rollback-on-halt", is_flag=True, help="A wave that halts goes back."),
            click.option(
                "--attest", type=path_type, metavar="KEY", help="SSH key that vouches for engines; one builds."
            ),
            click.option("--cluster", metavar="URL", help="Workers of a dask scheduler, as tcp://host:8786."),
            click.option("--source", metavar="URL", help="Where workers fetch the release: kedge release push."),
            click.option("--all", "every", is_flag=True, help="A row for each device in the table at the end."),
        )
    ):
        function = option(function)
    return function


@dataclass(frozen=True)
class Asked:
    """The options of a rollout as they were given; None and False: not given."""

    canary: str | None = None
    pause: int | None = None
    max_failures: int | None = None
    deadline: int | None = None
    concurrency: int | None = None
    max_error_rate: float | None = None
    max_p99_drift: float | None = None
    rollback_on_halt: bool = False
    attest: Path | None = None
    cluster: str | None = None
    source: str | None = None
    dry_run: bool = False
    every: bool = False

    def is_rollout(self, to: str) -> bool:
        """Whether this is more than a deploy to one device by its name."""
        return self != Asked() or _PLAIN.fullmatch(to) is None

    def options(self, limit_bytes_per_s: int | None) -> Options:
        """For the plan.

        Raises:
            BadInputError: a value cannot be used.
        """
        from ..fleet.rollout.plan import Options
        from ..transport.address import expanded

        if self.attest is not None and not expanded(self.attest).is_file():
            raise BadInputError(
                f"the key {self.attest} does not exist", hint="--attest takes the SSH key that vouches for engines"
            )
        return Options(
            canary=tuple(term.strip() for term in (self.canary or "100%").split(",")),
            pause_s=float(self.pause or 0),
            max_failures=self.max_failures or 0,
            deadline_s=float(self.deadline or _DEADLINE_S),
            concurrency=self.concurrency or _CONCURRENCY,
            max_error_rate=self.max_error_rate,
            max_p99_drift=self.max_p99_drift,
            on_halt="rollback" if self.rollback_on_halt else "stop",
            limit_bytes_per_s=limit_bytes_per_s,
            attest=None if self.attest is None else str(expanded(self.attest).absolute()),
            cluster=self.cluster,
        )

    def note_on(self, release: Release) -> str | None:
        """What is to be known of rolling this release out so; None: nothing.

        Raises:
            BadInputError: it could come to no good end.
        """
        from ..deploy.engines import needs_engine

        deadline_s, probation = self.deadline or _DEADLINE_S, release.manifest.gates.probation
        if probation is not None and deadline_s <= probation.seconds:
            longer = f"--deadline {probation.seconds // 60 + 2}m"
            raise BadInputError(
                f"a deadline of {deadline_s} s ends before the release's probation of {probation.seconds} s",
                hint=f"{longer}, or build it with a shorter --probation",
            )
        if self.attest is None or self.cluster is None or needs_engine(release) is None:
            return None
        if self.source is None:
            raise BadInputError(
                "an engine that a device builds for others comes back from its worker by a URL, and there is none",
                hint="kedge release push RELEASE --to URL, then --source URL",
            )
        return "this host signs the engine that a worker says its device built: whom you trust is in docs/cluster.md"


def asked(given: Mapping[str, Any]) -> Asked:
    """The options of a rollout among those of a command."""
    return Asked(**given)
