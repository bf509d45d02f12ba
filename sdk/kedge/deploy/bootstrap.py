"""Runs on the device, on its bare Python (3.10 or newer), before any agent is there.

The host hands this file's text to `python3 -I -c`, and one JSON document to its standard input; it
answers with one JSON document. Standard library only, nothing of kedge.

`probe` says what the device is. `install` checks the uploaded wheels against the hashes the host
named, unpacks them into a folder named by all of them, points `current` at it, and starts the agent.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

RUN = """\
import sys
sys.path.insert(0, {site!r})
from kedge_agent.cli import main
sys.exit(main())
"""

LAUNCHER = """\
#!/bin/sh
exec {python} -I {state}/agent/current/run.py --state {state} "$@"
"""

UNIT = """\
[Unit]
Description=kedge agent ({state})
After=local-fs.target

[Service]
Type=notify
ExecStart="{binary}" serve
ExecReload=/bin/kill -HUP $MAINPID
# Fed by real progress alone. What is inside has 20 s to end when the agent stops.
WatchdogSec=30
TimeoutStopSec=60
NoNewPrivileges=yes
# Not always: `kedge-agent stop` ends it with success, and means it.
Restart=on-failure
RestartSec=1
{runtime}
[Install]
WantedBy={target}
"""


def default_state() -> str:
    """The state folder an agent of this user takes by itself."""
    if os.geteuid() == 0:
        return "/var/lib/kedge"
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(base, "kedge")


def _read_line(path: str) -> str | None:
    try:
        with open(path, "rb") as handle:
            return handle.read(4096).rstrip(b"\0\n").decode(errors="replace")
    except OSError:
        return None


def probe(request: dict[str, str]) -> dict[str, object]:
    """What decides which wheels fit, where the agent goes, and how it is started."""
    state = os.path.abspath(request.get("state") or default_state())
    nearest = Path(state)
    while not nearest.exists():
        nearest = nearest.parent
    agents = os.path.join(state, "agent")
    return {
        "python": list(sys.version_info[:3]),
        "executable": sys.executable,
        "implementation": platform.python_implementation(),
        "os": platform.system().lower(),
        "machine": platform.machine(),
        "glibc": platform.libc_ver()[1],
        "uid": os.geteuid(),
        "state": state,
        "free_bytes": shutil.disk_usage(nearest).free,
        "systemd": os.path.isdir("/run/systemd/system"),
        "board": _read_line("/proc/device-tree/model"),
        "l4t": _read_line("/etc/nv_tegra_release"),
        "compatible": [part for part in (_read_line("/proc/device-tree/compatible") or "").split("\0") if part],
        "installed": sorted(name for name in os.listdir(agents) if len(name) == 64) if os.path.isdir(agents) else [],
    }


def _unpack(wheel: Path, expected: str, site: Path) -> None:
    digest = hashlib.sha256()
    with wheel.open("rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise SystemExit(f"{wheel.name} has other bytes than the host named")
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            parts = PurePosixPath(entry.filename).parts
            if entry.filename.startswith("/") or ".." in parts or stat.S_ISLNK(entry.external_attr >> 16):
                raise SystemExit(f"{wheel.name} holds the path {entry.filename!r}")
            # Scripts and headers are not needed; purelib and platlib content belongs into the site folder.
            if parts and parts[0].endswith(".data"):
                if len(parts) < 3 or parts[1] not in ("purelib", "platlib"):
                    continue
                parts = parts[2:]
            target = site.joinpath(*parts)
            if entry.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)


def _write(path: Path, text: str, mode: int) -> None:
    partial = path.with_name(f".{path.name}.new")
    with partial.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    partial.chmod(mode)
    partial.replace(path)


def _lay_down(state: Path, digest: str, wheels: list[dict[str, str]], manifest: str, *, force: bool = False) -> bool:
    """Unpack, unless it is there already; True when something was unpacked."""
    final = state / "agent" / digest
    if final.is_dir() and not force:
        return False
    partial = final.with_name(f".{digest}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    site = partial / "site"
    site.mkdir(parents=True)
    for wheel in wheels:
        _unpack(state / "provision" / f"{wheel['sha256']}.whl", wheel["sha256"], site)
    _write(partial / "run.py", RUN.format(site=str(final / "site")), 0o644)
    _write(partial / "manifest.json", manifest, 0o444)
    for wheel in wheels:
        _keep(state, wheel["sha256"])
    os.sync()
    if final.is_dir():
        # Forced: what lies there is damaged. Its files may be in use, so it is moved before it is removed.
        damaged = final.with_name(f".{digest}.damaged")
        shutil.rmtree(damaged, ignore_errors=True)
        final.rename(damaged)
    partial.rename(final)
    return True


def _keep(state: Path, sha256: str) -> None:
    """Leave a wheel in the agent's store: an upgrade then sends those alone that have changed."""
    folder = state / "objects" / "sha256" / sha256[:2]
    folder.mkdir(parents=True, exist_ok=True)
    wheel = state / "provision" / f"{sha256}.whl"
    wheel.chmod(0o444)
    wheel.replace(folder / sha256[2:])


def _point(link: Path, name: str) -> str | None:
    before = os.readlink(link) if link.is_symlink() else None
    partial = link.with_name(f".{link.name}.new")
    partial.unlink(missing_ok=True)
    partial.symlink_to(name)
    partial.replace(link)
    return before


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _run(*command: str) -> str | None:
    """Run a command; None when it worked, else what it said."""
    environment = {**os.environ, "XDG_RUNTIME_DIR": os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr or done.stdout).strip() or f"status {done.returncode}"


def unit_text(state: str, *, system: bool) -> str:
    """The systemd unit of an agent on this state folder."""
    # Only the agent of the default system folder has its sockets in /run/kedge; another one's stop would remove it.
    runtime = "RuntimeDirectory=kedge\n" if system and state == "/var/lib/kedge" else ""
    escaped = state.replace("\\", "\\\\").replace("%", "%%").replace('"', '\\"')
    return UNIT.format(
        state=state.replace("%", "%%"),
        binary=f"{escaped}/bin/kedge-agent",
        runtime=runtime,
        target="multi-user.target" if system else "default.target",
    )


def _start_by_systemd(state: Path) -> str | None:
    """Enable and restart the service; None when that worked, else why not."""
    system = os.geteuid() == 0
    default = str(state) == default_state()
    name = "kedge-agent" if default else f"kedge-agent-{hashlib.sha256(os.fsencode(state)).hexdigest()[:8]}"
    folder = Path("/etc/systemd/system") if system else Path("~/.config/systemd/user").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{name}.service", unit_text(str(state), system=system), 0o644)
    control = ["systemctl"] if system else ["systemctl", "--user"]
    steps = [[*control, "daemon-reload"], [*control, "enable", name], [*control, "restart", name]]
    if not system:
        # Without lingering, a user's services start at login, not at boot.
        steps.insert(0, ["loginctl", "enable-linger"])
    for step in steps:
        said = _run(*step)
        if said is not None:
            return f"{' '.join(step)}: {said}"
    return None


def _start(state: Path, *, changed: bool, service: bool) -> tuple[str, str | None]:
    """Start the agent; how, and why not by systemd where that is what one would expect."""
    binary = str(state / "bin" / "kedge-agent")
    running = _run(binary, "status") is None
    if running and not changed:
        return "already running", None
    if running:
        said = _run(binary, "stop")
        if said is not None:
            raise SystemExit(f"the running agent does not stop: {said}")
    reason: str | None = "there is no systemd" if service else "no service was asked for"
    if service and os.path.isdir("/run/systemd/system"):
        reason = _start_by_systemd(state)
        if reason is None:
            return "systemd", None
    said = _run(binary, "start")
    if said is not None:
        raise SystemExit(said)
    return "background", reason


def install(request: dict[str, object]) -> dict[str, object]:
    """Unpack, switch, start. Running it again with the same wheels changes nothing."""
    state = Path(str(request["state"]))
    digest = str(request["digest"])
    wheels: list[dict[str, str]] = request["wheels"]  # type: ignore[assignment]
    (state / "agent").mkdir(parents=True, exist_ok=True)
    (state / "bin").mkdir(exist_ok=True)
    with (state / "agent" / ".lock").open("w") as lock:
        # Two hosts at once: the second finds the agent unpacked, and nothing half done.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _install(state, digest, wheels, request)


def _install(state: Path, digest: str, wheels: list[dict[str, str]], request: dict[str, object]) -> dict[str, object]:
    unpacked = _lay_down(state, digest, wheels, str(request["manifest"]), force=bool(request.get("force")))
    before = _point(state / "agent" / "current", digest)
    if before not in (None, digest):
        _point(state / "agent" / "previous", before)
    launcher = LAUNCHER.format(python=_quote(sys.executable), state=_quote(str(state)))
    _write(state / "bin" / "kedge-agent", launcher, 0o755)
    how, reason = _start(state, changed=unpacked or before != digest, service=bool(request.get("service", True)))
    for old in (state / "agent").iterdir():
        if old.is_dir() and not old.is_symlink() and old.name not in (digest, before):
            shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(state / "provision", ignore_errors=True)
    return {"unpacked": unpacked, "replaced": before if before != digest else None, "started": how, "reason": reason}


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    answer = probe(request) if request["do"] == "probe" else install(request)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
