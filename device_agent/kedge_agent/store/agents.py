"""Agents that are pushed: judged by their signatures, unpacked into a slot of their own, and started by nobody yet.

Their wheels stay in the store as objects, so that the next bundle sends what has changed and nothing else: of the 35 MB
of numpy and onnxruntime, usually nothing. They go with the slot that names them.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ..errors import AgentError
from ..failpoints import reached
from ..formats.bundle import parse_bundle
from ..formats.manifest import MANIFEST_NAME, FileEntry, ManifestError
from ..formats.offer import Offer, offer_bytes, parse_offer
from ..wire import MAX_JSON_BYTES
from .files import fsync_directory, read_bounded, write_atomic
from .layout import Layout
from .objects import store_files
from .parcel import Parcel
from .releases import OFFER_NAME
from .rules import ReleaseRules
from .signers import judge_agent
from .slots import aside, changing_agents, has_slot, read_bundle, retire_slots, slot, slot_named
from .space import SPARE_BYTES, free_bytes, has_room
from .wheels import unpack_wheel, unpacked_bytes

__all__ = ["AgentParcel", "judge_slot", "run_program"]

_LOCK_S = 10.0


def run_program(site: Path) -> str:
    """What the launcher has Python run: the agent of this slot, before any other on the path."""
    return f"import sys\nsys.path.insert(0, {str(site)!r})\nfrom kedge_agent.cli import main\nsys.exit(main())\n"


def judge_slot(layout: Layout, rules: ReleaseRules, digest: str) -> None:
    """Refuse to start an agent that would not be taken now: it may have been pushed when less was asked for.

    One that was provisioned came without signatures, by somebody who may write the agent's files; it has run, and is
    the way back.

    Raises:
        AgentError: as `signers.judge_agent`; or its manifest or its signatures are damaged (integrity).
    """
    if not rules.required:
        return
    folder = slot(layout, digest)
    try:
        data = read_bounded(folder / MANIFEST_NAME, MAX_JSON_BYTES)
        if not (folder / OFFER_NAME).exists() and digest == slot_named(layout, "previous"):
            return
        offer = parse_offer(read_bounded(folder / OFFER_NAME, MAX_JSON_BYTES))
        if parse_bundle(data).digest != digest:
            raise ManifestError("its manifest is another one's")
    except (OSError, ManifestError) as error:
        raise AgentError(
            f"agent {digest[:12]} is damaged: {error}",
            kind="integrity",
            hint="push it again: kedge device upgrade DEVICE",
        ) from error
    judge_agent(rules, data, offer)


class AgentParcel(Parcel):
    """An agent that is being pushed.

    Raises:
        ManifestError: `manifest_data` is no manifest of a bundle.
    """

    def __init__(self, layout: Layout, rules: ReleaseRules, manifest_data: bytes, offer: Offer) -> None:
        self._bundle = parse_bundle(manifest_data)
        super().__init__("agent", layout, rules, self._bundle, manifest_data, offer)

    def lock(self) -> AbstractContextManager[None]:
        """No other push of an agent, no upgrade, no provisioning; agents that came before and were not kept go."""
        return self._alone()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        # Whoever was refused a moment ago may still be on the way out.
        with changing_agents(self._layout, wait_s=_LOCK_S):
            for retired in retire_slots(self._layout, keep=(self.digest,)):
                shutil.rmtree(retired, ignore_errors=True)
            yield

    def judge(self) -> None:
        """By its signatures, and by whether it fits this device.

        Raises:
            AgentError: as `signers.judge_agent`; or it is for another Python or processor (incompatible).
        """
        judge_agent(self._rules, self._data, self._offer)
        here = (f"{sys.version_info.major}.{sys.version_info.minor}", platform.machine())
        if (self._bundle.python, self._bundle.arch) != here:
            raise AgentError(
                f"{self.label} is for Python {self._bundle.python} on {self._bundle.arch}, this is {' on '.join(here)}",
                kind="incompatible",
                hint="kedge device upgrade makes one for the device that it asks",
            )

    def relatives(self) -> Sequence[tuple[FileEntry, ...]]:
        """The wheels of the agent that runs, and of the one before."""
        found = []
        for link in ("current", "previous"):
            with contextlib.suppress(OSError, AgentError, ManifestError):
                digest = slot_named(self._layout, link)
                if digest is not None:
                    found.append(read_bundle(slot(self._layout, digest)).files)
        return found

    def accept(self, staging: Path, proven: Collection[str] = frozenset()) -> None:
        """Judge it once more, keep its wheels, and unpack them into a slot. It is started by an upgrade, not by this.

        One that has a slot is unpacked anew, which mends it, but for the one that runs: of that, the signatures alone
        are renewed.

        Raises:
            AgentError: it may not be taken, or there is no room for it unpacked (space).
            OSError: as the file system says.
        """
        judge_agent(self._rules, self._data, self._offer)
        # What was read while it arrived is read again: a release is hashed before it goes live, wheels are not.
        store_files(self._layout, self.files, staging)
        final = slot(self._layout, self.digest)
        if has_slot(self._layout, self.digest) and self.digest == slot_named(self._layout, "current"):
            self._describe(final)
        else:
            self._replace(final)
        reached("upgrade.unpacked")
        shutil.rmtree(staging, ignore_errors=True)

    def _replace(self, final: Path) -> None:
        partial = final.with_name(f".{self.digest}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            self._unpack(partial, final)
            self._describe(partial)
            _sync(partial)
            former = aside(final)
            with contextlib.suppress(FileNotFoundError):
                final.rename(former)
            partial.rename(final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        fsync_directory(final.parent)
        shutil.rmtree(former, ignore_errors=True)

    def _describe(self, folder: Path) -> None:
        """What it is, and who signed it."""
        write_atomic(folder / MANIFEST_NAME, self._data, mode=0o444)
        write_atomic(folder / OFFER_NAME, offer_bytes(self._offer), mode=0o444)

    def _unpack(self, partial: Path, final: Path) -> None:
        wheels = [self._layout.object(entry.sha256) for entry in self.files]
        need = sum(unpacked_bytes(wheel) for wheel in wheels)
        if not has_room(self._layout, need):
            raise AgentError(
                f"unpacked, {self.label} needs {need} bytes and {SPARE_BYTES} to spare; "
                f"{self._layout.root} has {free_bytes(self._layout)} free",
                kind="space",
                hint="free disk space on the device",
            )
        site = partial / "site"
        site.mkdir(parents=True)
        for wheel in wheels:
            unpack_wheel(wheel, site)
        write_atomic(partial / "run.py", run_program(final / "site").encode())


def _sync(folder: Path) -> None:
    """Make thousands of small files durable: one call writes them all and tells no errors, each then tells its own.

    Raises:
        OSError: the disk has not taken one.
    """
    os.sync()
    for place, _, names in os.walk(folder):
        for name in names:
            handle = os.open(Path(place, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        fsync_directory(Path(place))
