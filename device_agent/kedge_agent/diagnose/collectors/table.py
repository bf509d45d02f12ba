"""Every collector, in the order in which they are begun: those that wait first, so that others work meanwhile."""

from __future__ import annotations

from ..running import Collector
from . import (
    agent,
    disk,
    engines,
    files,
    installs,
    journal,
    kernel,
    logs,
    memory,
    processes,
    recorder,
    releases,
    runtimes,
    sensors,
    system,
    system_files,
)

__all__ = ["COLLECTORS", "FACTS"]

COLLECTORS = (
    Collector("agent", agent.collect, 12.0, state=True),
    Collector("memory", memory.collect, 4.0),
    Collector("processes", processes.collect, 6.0),
    Collector("releases", releases.collect, 40.0, state=True),
    Collector("system", system.collect, 4.0),
    Collector("disk", disk.collect, 8.0),
    Collector("installs", installs.collect, 6.0, state=True),
    Collector("engines", engines.collect, 10.0, state=True),
    Collector("runtimes", runtimes.collect, 10.0),
    Collector("sensors", sensors.collect, 6.0),
    Collector("journal", journal.collect, 4.0, state=True),
    Collector("recorder", recorder.collect, 10.0, state=True),
    Collector("logs", logs.collect, 6.0, state=True),
    Collector("kernel", kernel.collect, 8.0),
    Collector("store_files", files.collect_store, 15.0, heavy=True, state=True),
    Collector("raw_files", system_files.collect_raw, 10.0, heavy=True),
    Collector("sensor_files", system_files.collect_sensor_files, 10.0, heavy=True),
    Collector("service_log", files.collect_service_log, 10.0, heavy=True),
    Collector("recording_files", files.collect_recording, 15.0, heavy=True, state=True),
)

FACTS = tuple(collector for collector in COLLECTORS if not collector.heavy)
"""Those whose documents are the facts; a snapshot runs the others too."""
