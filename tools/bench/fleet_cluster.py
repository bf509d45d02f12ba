"""A dask cluster of this machine for tools/bench/fleet.py: prints its address, and ends with its standard input."""

from __future__ import annotations

import sys

from distributed import LocalCluster


def warm() -> None:
    """What each worker imports at its first task, which no rollout is to wait for."""
    import tests.support.simulated  # noqa: F401

    import kedge.fleet.task  # noqa: F401


if __name__ == "__main__":
    workers, threads = map(int, sys.argv[1:])
    with LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=workers, threads_per_worker=threads, host="127.0.0.1", dashboard_address=":0"
    ) as cluster:
        with cluster.get_client() as client:
            client.run(warm)
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
