"""Workers of a dask cluster (the extra `cluster`); the one module that knows dask.

Everything between this host and the workers is dask's own: tasks and answers travel as it pickles them, steps as its
events. Whoever may speak to its scheduler runs code on every worker: docs/cluster.md says how to close it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import platform
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Executor, Future
from typing import Any

from .. import __version__
from ..errors import BadInputError, IncompatibleError, KedgeError, UnreachableError, first_line
from .executor import Hear, SchedulerLostError, Work, WorkerLostError, defect

__all__ = ["open_cluster"]

_CONNECT_S = 10.0
_ASK_S = 5.0
_ANSWERS_S = 2.0
_NAMED_WORKERS = 3
_MAX_STEP = 80


@contextlib.contextmanager
def open_cluster(address: str, workers: int) -> Iterator[_Cluster]:
    """The workers of the scheduler at an address; see `executor.open_executor`."""
    try:
        import distributed
    except ImportError as error:
        raise IncompatibleError(
            "dask's distributed is needed for --cluster", hint="pip install 'kedge[cluster]', here and on the workers"
        ) from error
    # What it would say of a lost scheduler or worker, our errors say. The client's logger has a level of its own.
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _require_certificates(address, distributed.Security)
    with contextlib.ExitStack() as stack:
        try:
            loop = stack.enter_context(_running_loop())
            with warnings.catch_warnings():
                # The probe says what differs, in words.
                warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)
                client = asyncio.run_coroutine_threadsafe(_connected(address), loop).result()
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise _unreachable(address, error) from error
        stack.callback(client.close, timeout=_CONNECT_S)
        yield _Cluster(client, address, _probed(client, address, workers))


@contextlib.contextmanager
def _running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The loop in which the client lives, in a thread of ours.

    A client that starts its own gives that thread ten seconds and then fails an assertion, which a busy host meets.
    """
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        stop = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()

    def in_thread() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=in_thread, name="kedge-cluster", daemon=True)
    try:
        thread.start()
        loop, stop = started.result()
    except (OSError, RuntimeError) as error:
        raise IncompatibleError(
            f"this host cannot run dask's client: {first_line(error)}",
            hint="raise its limits of threads and of open files: ulimit -u, ulimit -n",
        ) from error
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(_CONNECT_S)


async def _connected(address: str) -> Any:
    """A client in the loop that runs this; asked from another thread, it answers as dask's synchronous one."""
    import distributed

    client: Any = distributed.Client(  # type: ignore[no-untyped-call]  # most of it has no annotations
        address, asynchronous=True, timeout=_CONNECT_S, set_as_default=False, name="kedge"
    )
    try:
        return await client
    except BaseException:
        with contextlib.suppress(Exception):  # what kept it from connecting is the news
            await client.close()
        raise


def _require_certificates(address: str, security: Callable[[], Any]) -> None:
    """A client that finds out by itself leaves a loop behind, which complains at exit."""
    if not address.startswith("tls://"):
        return
    try:
        ready = security().get_connection_args("client").get("ssl_context") is not None
        problem = "dask has no settings for TLS"
    except (OSError, ValueError) as error:  # a file that is missing, or is no certificate
        ready, problem = False, f"dask's settings for TLS: {first_line(error)}"
    if not ready:
        raise BadInputError(f"{address} cannot be used: {problem}", hint="see docs/cluster.md: ~/.config/dask/tls.yaml")


def _unreachable(address: str, error: Exception) -> KedgeError:
    if isinstance(error, OSError):
        return UnreachableError(
            f"no dask scheduler answers at {address}: {first_line(error)}",
            hint="start one: dask scheduler; and give its address as tcp://host:8786",
        )
    return BadInputError(
        f"{address} cannot be used: {first_line(error)}",
        hint="tcp://host:8786, or tls://host:8786 with dask's own settings for TLS",
    )


def _probed(client: Any, address: str, wanted: int) -> tuple[str, ...]:
    """Ask each worker what it is; what to tell the user of them."""
    threads = client.nthreads()
    if not threads:
        raise UnreachableError(f"the scheduler at {address} has no workers", hint=f"start some: dask worker {address}")
    told = client.run(_what_i_am, on_error="return")
    for worker, answer in told.items():
        if isinstance(answer, Exception):
            raise IncompatibleError(
                f"the worker {worker} cannot run kedge: {first_line(answer)}",
                hint=f"install it where that worker runs: pip install 'kedge[cluster]=={__version__}'",
            )
    others = {worker: answer["kedge"] for worker, answer in told.items() if answer["kedge"] != __version__}
    if others:
        raise IncompatibleError(
            f"kedge is {__version__} here, and {_some(others)}", hint="install the same version on every worker"
        )
    notes = []
    python = ".".join(platform.python_version_tuple()[:2])
    others = {worker: answer["python"] for worker, answer in told.items() if answer["python"] != python}
    if others:
        notes.append(f"Python is {python} here, and {_some(others)}: dask wants one version everywhere")
    if sum(threads.values()) < wanted:
        notes.append(
            f"the cluster's {len(threads)} workers have {sum(threads.values())} threads in all, fewer than the "
            f"{wanted} tasks at a time that were asked for, so that fewer run at once: dask worker --nthreads"
        )
    return tuple(notes)


def _some(found: Mapping[str, str]) -> str:
    named = [f"{value} on {worker}" for worker, value in list(found.items())[:_NAMED_WORKERS]]
    return ", ".join(named) + (f" and {len(found) - len(named)} more" if len(found) > len(named) else "")


def _what_i_am() -> dict[str, str]:
    return {"kedge": __version__, "python": ".".join(platform.python_version_tuple()[:2])}


class _Cluster:
    """See `executor.Workers`."""

    shared = False

    def __init__(self, client: Any, address: str, notes: tuple[str, ...]) -> None:
        self._client = client
        self.name = address
        self.notes = notes
        # Two tasks that are alike are two tasks; dask would run one of them.
        self.executor: Executor = client.get_executor(pure=False)
        self._threads: int | None = None
        self._asked = -math.inf

    def threads(self) -> int | None:
        now = time.monotonic()
        if now - self._asked >= _ASK_S:
            # Of a scheduler that is gone, the futures tell.
            with contextlib.suppress(Exception):
                told = self._client.sync(self._client.scheduler.ncores, callback_timeout=_ANSWERS_S)
                self._threads = sum(told.values())
            self._asked = time.monotonic()
        return self._threads

    def telling(self, work: Work, hear: Hear) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        topic = f"kedge-{uuid.uuid4().hex}"

        def heard(event: tuple[float, Any]) -> None:
            said = event[1]
            if isinstance(said, (list, tuple)) and len(said) == 2 and all(isinstance(part, str) for part in said):
                hear(said[0][:_MAX_STEP], said[1][:_MAX_STEP])

        self._client.subscribe_topic(topic, heard)
        return functools.partial(_telling_there, work, topic)

    def require_source(self, source: Mapping[str, str]) -> None:
        told = self._client.run(_cannot_read, dict(source), on_error="return")
        problems = {worker: str(answer) for worker, answer in told.items() if answer is not None}
        if problems:
            worker, problem = next(iter(problems.items()))
            raise BadInputError(
                f"{len(problems)} of {len(told)} workers cannot read the release; {worker}: {problem}",
                hint="push it to where they can: kedge release push RELEASE --to URL; and roll it out from there",
            )

    def require_alike(self, facts: Callable[[], Mapping[str, str]]) -> None:
        here = dict(facts())
        for worker, there in self._client.run(facts, on_error="return").items():
            if isinstance(there, Exception):
                raise IncompatibleError(
                    f"the worker {worker} cannot do this work: {first_line(there)}",
                    hint="install there what is installed here: pip install 'kedge[optimize,cluster]'",
                )
            other = next((name for name in here if there.get(name) != here[name]), None)
            if other is not None:
                raise IncompatibleError(
                    f"the worker {worker} would come to other results: {other} is {here[other]} here and "
                    f"{there.get(other)} there",
                    hint="let workers run that are like this host, with the same versions installed",
                )

    def share(self, value: Any) -> Any:
        """A task rather than scattered data: dask keeps one copy of those, and when it is lost, cancels what waits."""
        import dask

        # It warns of tasks that carry much, for each may carry it again: this one does once.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}):
            return self._client.submit(_given, value, pure=False)

    def explain(self, error: BaseException) -> KedgeError:
        from distributed import KilledWorker
        from distributed.comm.core import CommClosedError

        if isinstance(error, KilledWorker):
            return WorkerLostError(
                f"the workers that ran it died, the last at {error.last_worker.address}",
                hint="see their logs for why, then go on: kedge rollout resume, or the same command again",
            )
        if isinstance(error, (CancelledError, asyncio.CancelledError, CommClosedError)):
            return SchedulerLostError(
                f"the scheduler at {self.name} is gone",
                hint="start it and its workers again, then: kedge rollout resume, or the same command again",
            )
        return defect(error)


def _given(value: Any) -> Any:
    return value


def _telling_there(work: Work, topic: str, task: Mapping[str, Any]) -> dict[str, Any]:
    from distributed import get_worker

    worker, device = get_worker(), str(task["device"])
    return work(task, step=lambda step: worker.log_event(topic, [device, step]))


async def _cannot_read(source: Mapping[str, str]) -> str | None:
    """What keeps this worker from a release; None: nothing. Not on the worker's event loop: it may take its time."""
    return await asyncio.to_thread(_reading_fails, source)


def _reading_fails(source: Mapping[str, str]) -> str | None:
    from ..release.remote import require_readable

    try:
        require_readable(source)
    except KedgeError as error:
        return error.message
    return None
