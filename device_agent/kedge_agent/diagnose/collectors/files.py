"""Raw files that a snapshot takes along: of the store, of the system, of the recorder; and the service's log.

Names begin with what they are of: store/, logs/, config/, system/, recorder/. What is longer than it may be is cut, or
left out, and named.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...measure.recorder.places import SHARES, recorder_folder
from ...measure.recorder.ring import segments
from ...settings import settings_file
from ...store.files import read_beginning
from ...store.models import list_models
from ...store.releases import ACCEPTED_NAME, release_digests
from ..agent_log import log_files, plain, tail
from ..device import Collected, Device, UnavailableError, reason_of
from .service import units

__all__ = ["collect_recording", "collect_service_log", "collect_store"]

_MOST_BYTES = 24 << 20
_MOST_FILE_BYTES = 512 << 10
_MOST_FILES = 1000
_LOG_BYTES = 2 << 20
_MOST_RECORDING_BYTES = 48 << 20
_STATES = ("state.json", "state.back", "state.next", "state.undo")
_SERVICE_LINES = 5000
_PATIENCE_S = 8.0


class Gathered:
    """Small files, as they are added.

    within: a folder whose links to elsewhere are not followed.
    """

    def __init__(self, within: Path | None = None) -> None:
        self._within = None if within is None else Path(os.path.realpath(within))
        self._members: list[tuple[str, bytes]] = []
        self._left_out: list[str] = []
        self._left = _MOST_BYTES

    def add(self, name: str, data: bytes) -> None:
        """Take a file, if there is room for it."""
        if len(data) > self._left or len(self._members) >= _MOST_FILES:
            self._left_out.append(f"{name}: there is too much of all")
            return
        self._left -= len(data)
        self._members.append((name, data))

    def read(
        self,
        name: str,
        path: Path,
        most: int = _MOST_FILE_BYTES,
        *,
        needed: bool = False,
        padded: bool = False,
        anywhere: bool = False,
    ) -> None:
        """Take the beginning of a file.

        needed: say so where it is not there. padded: zeros end it. anywhere: a link is followed.
        """
        if not anywhere and self._leads_out(name, path):
            return
        try:
            data = read_beginning(path, most + 1)
        except FileNotFoundError:
            if needed:
                self._left_out.append(f"{name}: it is not here")
            return
        except OSError as error:
            self._left_out.append(f"{name}: {reason_of(error, path)}")
            return
        if len(data) > most:
            self._left_out.append(f"{name}: what follows its first {most} bytes")
        self.add(name, data[:most].rstrip(b"\0") if padded else data[:most])

    def read_end(self, name: str, path: Path, most: int) -> None:
        """Take the end of a log."""
        if self._leads_out(name, path):
            return
        with contextlib.suppress(FileNotFoundError):
            try:
                self.add(name, tail(path, most))
            except FileNotFoundError:
                raise
            except OSError as error:
                self._left_out.append(f"{name}: {reason_of(error, path)}")

    def _leads_out(self, name: str, path: Path) -> bool:
        if self._within is None or Path(os.path.realpath(path)).is_relative_to(self._within):
            return False
        self._left_out.append(f"{name}: it is a link to what lies elsewhere")
        return True

    def collected(self) -> Collected:
        """All of them."""
        return _collected([(name, len(data)) for name, data in self._members], self._left_out, self._members)


def _collected(files: list[tuple[str, int]], left_out: list[str], members: Any) -> Collected:
    listed = [{"name": name, "bytes": size} for name, size in files]
    return Collected({"files": listed, "left_out": left_out}, members)


def collect_store(device: Device) -> Collected:
    """Manifests and acceptance records, states, journal, logs and settings."""
    state, layout, found = device.state, device.layout, Gathered(device.state)
    for name in (_name for model in list_models(layout) for _name in (f"models/{model}/{each}" for each in _STATES)):
        found.read(f"store/{name}", state / name)
    for digest in release_digests(layout):
        for name in (f"releases/{digest}/manifest.json", f"releases/{digest}/{ACCEPTED_NAME}"):
            found.read(f"store/{name}", state / name, needed=True)
    found.read("store/journal", state / "journal", padded=True)
    for name in ("agent/upgrade.json", "agent/trial.json"):
        found.read(f"store/{name}", state / name)
    for folder in sorted((state / "engines").glob("[0-9a-f]*")):
        for name in (f"engines/{folder.name}/entry.json", f"engines/{folder.name}/report.json"):
            found.read(f"store/{name}", state / name)
    for path in reversed(log_files(state)):
        found.read_end(f"logs/{path.name}", path, _LOG_BYTES)
    found.read_end("logs/start.log", state / "start.log", _MOST_FILE_BYTES)
    # Wrong settings are what is wanted most. They lie where the service's unit says, and are told by a list.
    found.read("config/settings.json", settings_file(state), anywhere=True)
    return found.collected()


def collect_recording(device: Device) -> Collected:
    """The flight recorder's files, the newest as far as there is room."""
    files: list[tuple[str, int]] = []
    paths: dict[str, Path] = {}
    left_out = []
    left = _MOST_RECORDING_BYTES
    try:
        for ring in SHARES:
            for path in reversed(segments(recorder_folder(device.state) / ring)):
                size = path.stat().st_size
                name = f"recorder/{ring}/{path.name}"
                left -= size
                if left < 0:
                    left_out.append(f"{name}: there is too much of all")
                    continue
                files.append((name, size))
                paths[name] = path
    except OSError as error:
        raise UnavailableError(reason_of(error, recorder_folder(device.state))) from error
    if not files:
        raise UnavailableError("nothing was ever recorded")
    return _collected(sorted(files), left_out, _contents(dict(sorted(paths.items()))))


def _contents(paths: dict[str, Path]) -> Iterator[tuple[str, bytes]]:
    for name, path in paths.items():
        # The oldest may have made room meanwhile.
        with contextlib.suppress(OSError):
            yield name, read_beginning(path, _MOST_RECORDING_BYTES)


def collect_service_log(device: Device) -> Collected:
    """What systemd's journal has of the agent: its own words, and when it was started and ended."""
    if not (device.root / "run/systemd/system").is_dir():
        raise UnavailableError("this system was not started by systemd")
    own = [] if os.geteuid() == 0 else ["--user-unit", units(device)[0], "--user-unit", units(device)[1]]
    asked = [word for unit in units(device) for word in ("--unit", unit)]
    told = device.command(
        "journalctl", *asked, *own, "-q", "--no-pager", "--utc", "-o", "short-iso-precise", "-n", str(_SERVICE_LINES),
        timeout_s=_PATIENCE_S,
    )  # fmt: skip
    lines = [plain(line) for line in told.splitlines()]
    if not lines:
        raise UnavailableError("journalctl shows this user nothing of it: the group systemd-journal may read it")
    found = Gathered()
    found.add("logs/service.log", "".join(f"{line}\n" for line in lines).encode())
    return found.collected()
