"""Where the tasks of a rollout and the candidates of a search run: threads of this process, or workers of a cluster.

Both are a `concurrent.futures.Executor`. Whoever drives one bounds what is in flight; whoever works needs nothing but
what the task names.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from typing import Any, Protocol, TypeVar

from ..errors import ExitCode, InternalError, KedgeError, first_line

__all__ = [
    "Hear",
    "SchedulerLostError",
    "Work",
    "WorkerLostError",
    "Workers",
    "defect",
    "open_executor",
]

T = TypeVar("T")

Work = Callable[..., dict[str, Any]]
"""work(task, step=tell): a task is plain JSON that names its `device`; `tell` takes the name of the step that begins.
It can be pickled by reference: a function of a module, or a functools.partial of one."""

Hear = Callable[[str, str], None]
"""hear(device, step), called on a thread that is not the driver's; it returns at once."""


class SchedulerLostError(KedgeError):
    """The cluster's scheduler is gone, and with it every answer that was still to come."""

    exit_code = ExitCode.UNREACHABLE


class WorkerLostError(KedgeError):
    """The workers that ran a task died on the way, one after another; nothing is known of its device."""

    exit_code = ExitCode.UNREACHABLE


class Workers(Protocol):
    """Where tasks run."""

    @property
    def executor(self) -> Executor:
        """Takes tasks; what its threads do not take, it queues."""
        ...

    @property
    def name(self) -> str:
        """For people: "threads", or the scheduler's address."""
        ...

    @property
    def shared(self) -> bool:
        """Whether workers see this process's file system, so that a release is named by its folder."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of these workers before anything begins, a sentence each."""
        ...

    def threads(self) -> int | None:
        """How many tasks run at a time now, asked anew every few seconds; None: as many as are asked for."""
        ...

    def telling(self, work: Work, hear: Hear) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """The work to submit, of one argument, the task: its steps reach `hear` here, wherever it runs."""
        ...

    def require_source(self, source: Mapping[str, str]) -> None:
        """Make sure that every worker can read a release: {"digest", "source"}.

        Raises:
            BadInputError: one cannot.
        """
        ...

    def require_alike(self, facts: Callable[[], Mapping[str, str]]) -> None:
        """Make sure that what a function of a module says of this process, it says of every worker.

        Raises:
            IncompatibleError: it does not.
        """
        ...

    def share(self, value: Any) -> Any:
        """What to submit in the place of an argument that many tasks take: it travels to each worker once."""
        ...

    def explain(self, error: BaseException) -> KedgeError:
        """What a future that ended without an answer means. The device is not to blame.

        Returns:
            SchedulerLostError: no other answer will come either. WorkerLostError: this task's workers died.
            InternalError: a defect in the work itself.
        """
        ...


@contextlib.contextmanager
def open_executor(cluster: str | None, workers: int) -> Iterator[Workers]:
    """Workers, for as long as the context lasts. What still runs when it ends is not waited for.

    Args:
        cluster: address of a dask scheduler, as tcp://host:8786 or tls://host:8786; None: threads of this process.
        workers: how many tasks will be in flight at a time.

    Raises:
        BadInputError: the address is none.
        UnreachableError: no scheduler answers there, or it has no workers.
        IncompatibleError: dask's distributed is not installed; or a worker has no kedge, or another version of it.
    """
    if cluster is None:
        threads = _Threads()
        try:
            yield threads
        finally:
            threads.executor.shutdown(wait=False)
        return
    from .cluster import open_cluster

    with open_cluster(cluster, workers) as found:
        yield found


class _Threads:
    """Threads of this process."""

    name = "threads"
    shared = True
    notes: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.executor: Executor = _DaemonThreads()

    def threads(self) -> int | None:
        return None

    def telling(self, work: Work, hear: Hear) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        return functools.partial(_telling_here, work, hear)

    def require_source(self, source: Mapping[str, str]) -> None:
        """This process has it open already."""

    def require_alike(self, facts: Callable[[], Mapping[str, str]]) -> None:
        """They are this process."""

    def share(self, value: T) -> T:
        return value

    def explain(self, error: BaseException) -> KedgeError:
        return defect(error)


def _telling_here(work: Work, hear: Hear, task: Mapping[str, Any]) -> dict[str, Any]:
    return work(task, step=functools.partial(hear, str(task["device"])))


def defect(error: BaseException) -> InternalError:
    """An exception of the work itself, which never raises for what a device does."""
    said = first_line(error) if isinstance(error, Exception) else type(error).__name__
    return InternalError(
        f"a task ended by {type(error).__name__}: {said}", hint="this is a defect of kedge: please report it"
    )


class _DaemonThreads(Executor):
    """A thread a task. A ThreadPoolExecutor's are joined when the process ends, and a task may hang in I/O for hours.

    One that hangs holds no place of a pool either: its driver gives it up at its deadline, and begins the next.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._running: set[threading.Thread] = set()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        thread = threading.Thread(target=self._run, args=(future, fn, args, kwargs), name="kedge-task", daemon=True)
        with self._lock:
            if self._closed:
                raise RuntimeError("submitted after shutdown")
            thread.start()
            self._running.add(thread)
        return future

    def _run(self, future: Future[T], fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            if future.set_running_or_notify_cancel():
                try:
                    result = fn(*args, **kwargs)
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
        finally:
            with self._lock:
                self._running.discard(threading.current_thread())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            self._closed = True
            running = list(self._running)
        if wait:
            for thread in running:
                thread.join()
