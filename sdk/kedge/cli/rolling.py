"""A rollout driven in the sight of people: planned, begun or resumed, shown while it runs, and told at its end."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInputError, ExitCode, KedgeError
from ..report.rollout_words import SERVES, wave_words
from .common import Output, emit

if TYPE_CHECKING:
    from kedge_agent.formats.offer import Signed

    from ..fleet.inventory import Device, Inventory
    from ..fleet.rollout.ledger import Ledger
    from ..fleet.rollout.machine import Rollout
    from ..release.bundle import Release
    from .rollout_options import Asked

__all__ = ["begin", "exit_code", "go_on", "result", "rolled_out"]


def begin(
    release: Path,
    to: str,
    inventory: Inventory,
    asked: Asked,
    limit_bytes_per_s: int | None,
    key: Path | None,
    out: Output,
    *,
    allow_downgrade: bool,
) -> int:
    """Plan a rollout, drive it to its end, and tell that; its exit code. Raises as `rolled_out`."""
    document, code = rolled_out(
        release, to, inventory, asked, limit_bytes_per_s, key, out, allow_downgrade=allow_downgrade
    )
    if document is not None:
        result(document, out, every=asked.every)
    return code


def rolled_out(
    release: Path,
    to: str,
    inventory: Inventory,
    asked: Asked,
    limit_bytes_per_s: int | None,
    key: Path | None,
    out: Output,
    *,
    allow_downgrade: bool,
) -> tuple[dict[str, Any] | None, int]:
    """Plan a rollout, and drive it to its end.

    Returns:
        Its document (docs/rollout-report.md) and exit code; None where the plan was to be shown, and has been.

    Raises:
        KedgeError: it cannot be begun; or, once it has, cannot be driven on.
    """
    from ..fleet.rollout.ledger import create
    from ..fleet.rollout.plan import make_plan
    from ..release.remote import require_readable
    from ..release.urls import require_plain

    if asked.source is not None:
        # It is shown, and goes into the ledger.
        require_plain(asked.source)
    options = asked.options(limit_bytes_per_s)
    devices = inventory.select(to)
    with _lasting(release, unpack=not asked.dry_run) as given:
        if (note := asked.note_on(given)) is not None:
            out.say(note)
        source = {"digest": given.digest, "source": asked.source or str(given.folder.absolute())}
        plan = functools.partial(
            make_plan,
            devices,
            model=given.manifest.model,
            version=given.manifest.version,
            digest=given.digest,
            source=source["source"],
            options=options,
            limits=inventory.limits(devices),
        )
        if asked.dry_run:
            _show_plan(plan().to_json(), out)
            return None, int(ExitCode.OK)
        given.verify()
        if asked.source is not None:
            require_readable(source)
        older = _downgrade(devices, given, key) if allow_downgrade else None
        document = None if older is None else _as_json(older)
        made = plan(downgrade=document)
        with _workers(options.cluster, options.concurrency) as workers:
            workers.require_source(source)
            return _driven(create(made), workers, None, out)


def go_on(ledger: Ledger, cluster: str | None, out: Output, *, skip_failed: bool, every: bool = False) -> int:
    """Resume a rollout, and drive it to its end; its exit code.

    Args:
        cluster: of which scheduler; "threads": those of this host; None: as it was begun.
    """
    options = ledger.plan.options
    where = options.cluster if cluster is None else None if cluster == "threads" else cluster
    with _workers(where, options.concurrency) as workers:
        workers.require_source(dict(ledger.plan.release))
        document, code = _driven(ledger, workers, skip_failed, out)
    result(document, out, every=every)
    return code


def exit_code(document: Mapping[str, Any], rollout: Rollout | None = None) -> int:
    """0: every device serves the release. 11: some do not, or it halted or was aborted. Else why it was interrupted."""
    if document["state"] == "interrupted" and rollout is not None and rollout.interrupted is not None:
        return int(rollout.interrupted["exit_code"])
    well = all(each["state"] in SERVES for each in document["devices"])
    return int(ExitCode.OK if document["state"] == "done" and well else ExitCode.FLEET)


def result(document: Mapping[str, Any], out: Output, *, every: bool) -> None:
    """The end of a rollout, or where it stands."""

    def render() -> None:
        from ..report.rollout_text import rollout_tables

        rollout_tables(document, every=every)

    out.result(document, render)


@contextmanager
def _workers(cluster: str | None, count: int) -> Iterator[Any]:
    from ..fleet.executor import open_executor

    with open_executor(cluster, count) as workers:
        yield workers


def _driven(ledger: Ledger, workers: Any, skip_failed: bool | None, out: Output) -> tuple[dict[str, Any], int]:
    """Drive it: its document, and exit code. skip_failed: None of one that is new."""
    from ..fleet.rollout.drive import drive, resume
    from ..fleet.task import run_task

    for note in workers.notes:
        out.say(note)
    seen = _Seen(out)
    given: dict[str, Any] = {
        "work": workers.telling(run_task, seen.step),
        "hear": seen.hear,
        "explain": workers.explain,
        "threads": workers.threads,
    }
    try:
        with seen.shown():
            if skip_failed is None:
                rollout = drive(ledger, workers.executor, **given)
            else:
                rollout = resume(ledger, workers.executor, skip_failed=skip_failed, **given)
    except KeyboardInterrupt:
        out.say(f"what runs, the devices end by themselves; go on: kedge rollout resume {ledger.id}")
        raise
    document = rollout.to_json()
    return document, exit_code(document, rollout)


class _Seen:
    """Who looks on: a display on a terminal, lines of JSON, or a line a wave."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._rollout: Rollout | None = None
        self._live = not out.events and not out.quiet and sys.stderr.isatty()

    def hear(self, rollout: Rollout, event: Mapping[str, Any]) -> None:
        """An event, on the driver's thread."""
        self._rollout = rollout
        if self._out.events:
            emit(dict(event))
        elif event["event"] == "gates" and not self._live:
            document = rollout.to_json()
            self._out.say(wave_words(document, document["waves"][event["wave"] - 1]))

    def step(self, device: str, step: str) -> None:
        """What a worker is at, on any thread."""
        if self._rollout is not None:
            self._rollout.note_step(device, step)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The display, where there is one."""
        if not self._live:
            yield
            return
        from .rollout_live import RolloutView, rollout_display

        with rollout_display(RolloutView(lambda: self._rollout)):
            yield


def _show_plan(plan: Mapping[str, Any], out: Output) -> None:
    waves = [
        {
            "wave": number,
            "count": count,
            "devices": [each["name"] for each in plan["devices"] if each["wave"] == number],
        }
        for number, count in enumerate(plan["waves"], 1)
    ]
    document = {
        "model": plan["model"],
        "version": plan["version"],
        "release": plan["release"]["digest"],
        "source": plan["release"]["source"],
        "waves": waves,
        "limits": plan["limits"],
        "options": plan["options"],
    }

    def render() -> None:
        from ..report.rollout_text import wave_plan

        wave_plan(waves)

    out.result(document, render)


@contextmanager
def _lasting(path: Path, *, unpack: bool) -> Iterator[Release]:
    """A release where it stays for as long as the rollout may be resumed: an archive is unpacked to the cache."""
    from ..release.archives import archived_head, import_release, opened
    from ..release.bundle import add_offer
    from ..release.kept import KeptReleases

    if not path.is_file() or not unpack:
        with opened(path) as release:
            yield release
        return

    def make(folder: Path) -> None:
        import_release(path, folder)

    digest, offer = archived_head(path)
    release = KeptReleases().put(digest, make)
    # One that was unpacked before may have been signed since.
    add_offer(release.folder, offer)
    yield release


def _downgrade(devices: Sequence[Device], release: Release, key: Path | None) -> Signed:
    """One statement for all: it counts on a device that has been no further than the furthest of those that answer."""
    from ..fleet.way import open_way
    from ..release.signing import downgrade

    def ask(device: Device) -> tuple[int, int] | None:
        from ..deploy.releases import read_floor

        try:
            with open_way(device.name, device.way()) as transport:
                return read_floor(transport, release.manifest.model)
        except KedgeError:
            # It comes to its own end later, and is named then.
            return None

    with ThreadPoolExecutor(min(len(devices), 32)) as threads:
        found = [each for each in threads.map(ask, devices) if each is not None]
    if not found:
        raise BadInputError(
            "no device answers which version it has had", hint="see why: kedge doctor --on DEVICE, of one of them"
        )
    return downgrade(release, key, max(floor for floor, _ in found), max(serial for _, serial in found))


def _as_json(statement: Signed) -> dict[str, str]:
    return {"document": statement.document.decode(), "signatures": statement.signatures.decode()}
