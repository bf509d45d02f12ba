"""What the frames of a recording hold (`recording_frames`), and the records that they mean.

    TABLE  = JSON: the boot, and the names to which records refer by number. A record names its table by its crc32.
    RECORD = numbers: see `Encoder`
    START  = JSON

A recording is frames in the order of time; files of a ring are laid one after another.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..wire import WireError, parse_json
from .histogram import Histogram, read_varint, varint
from .record import ModelRecord, Record, Start
from .recording_frames import Kind, Skipped, frame, read_frames

__all__ = ["Encoder", "read_boots", "read_ends", "read_records", "read_starts"]


_HEAD = struct.Struct("<IddffBH")
_RANGES = 1
_MAX_TABLE = 64 << 10
_MAX_TABLES = 64
_MAX_NAMES = 512
_MAX_TEXT = 128
_TABLE_EVERY = 600
_MAX_S = 1e11


@dataclass(frozen=True)
class _Table:
    boot: str
    channels: Sequence[tuple[str, str]]
    models: Sequence[tuple[str, str, int]]
    kinds: Sequence[str]
    units: Mapping[str, str]


_Tables = dict[int, _Table]


class Encoder:
    """Frames of records, with the tables they need, for one file after another.

    A RECORD is: crc32 of its table u32, at_s f64, monotonic_s f64, seconds f32, throttled f32 (NaN: None), flags u8
    (1: lows and highs follow), channels u16; as many f32 of channels (NaN: none), lows, highs; then variable-length
    integers (`histogram.varint`): models, and of each its number, waiting, kinds of failures, of each its number and
    count; its two histograms.
    """

    def __init__(self, boot: str) -> None:
        self._boot = boot
        self.begin()

    def begin(self) -> None:
        """The next frame is the first of a file."""
        self._channels: dict[str, tuple[int, str]] = {}
        self._models: dict[tuple[str, str, int], int] = {}
        self._kinds: dict[str, int] = {}
        self._crc: int | None = None
        self._left = 0

    def start(self, record: Record) -> bytes:
        """The frame of a start."""
        assert record.start is not None
        body = {"at_s": record.at_s, "boot": record.boot, "monotonic_s": record.monotonic_s, **vars(record.start)}
        return frame(Kind.START, json.dumps(body).encode())

    def encode(self, record: Record) -> bytes:
        """The frame of a record, after that of a new table where one is needed."""
        out = b""
        if self._add_names(record) or self._crc is None or not self._left:
            out = self._table()
        self._left -= 1
        return out + frame(Kind.RECORD, self._payload(record))

    def _add_names(self, record: Record) -> bool:
        before = len(self._channels) + len(self._models) + len(self._kinds)
        for name in record.channels:
            self._channels.setdefault(name, (len(self._channels), record.units.get(name, "")))
        for name, each in record.models.items():
            self._models.setdefault((name, each.release, each.version), len(self._models))
            for kind in each.failures:
                self._kinds.setdefault(kind, len(self._kinds))
        return len(self._channels) + len(self._models) + len(self._kinds) != before

    def _table(self) -> bytes:
        body = {
            "boot": self._boot,
            "channels": [[name, unit] for name, (_, unit) in self._channels.items()],
            "models": [list(each) for each in self._models],
            "kinds": list(self._kinds),
        }
        data = json.dumps(body, separators=(",", ":")).encode()
        self._crc, self._left = zlib.crc32(data), _TABLE_EVERY
        return frame(Kind.TABLE, data)

    def _payload(self, record: Record) -> bytes:
        ranges = _RANGES if record.lows else 0
        throttled = math.nan if record.throttled is None else record.throttled
        size = len(self._channels)
        out = bytearray(_HEAD.pack(self._crc, record.at_s, record.monotonic_s, record.seconds, throttled, ranges, size))
        floats = struct.Struct(f"<{size}f")
        for values in (record.channels, record.lows, record.highs) if ranges else (record.channels,):
            out += floats.pack(*(values.get(name, math.nan) for name in self._channels))
        out += varint(len(record.models))
        for name, each in record.models.items():
            out += varint(self._models[name, each.release, each.version])
            out += varint(each.waiting) + varint(len(each.failures))
            for kind, count in each.failures.items():
                out += varint(self._kinds[kind]) + varint(count)
            out += each.total.to_bytes() + each.compute.to_bytes()
        return bytes(out)


def read_records(data: bytes, skipped: Skipped | None = None) -> Iterator[Record]:
    """Records of a recording, in its order; what is torn or rotten is passed over. Never raises.

    Args:
        skipped: counts what was.
    """
    lost = Skipped() if skipped is None else skipped
    tables: _Tables = {}
    for kind, payload in read_frames(data, lost):
        record = _record(kind, payload, tables, lost)
        if record is not None:
            yield record


def read_starts(data: bytes) -> Iterator[Record]:
    """The starts alone, in order, which takes a fraction of the time."""
    lost = Skipped()
    for kind, payload in read_frames(data, lost):
        record = _record(kind, payload, {}, lost) if kind == Kind.START else None
        if record is not None:
            yield record


def read_boots(data: bytes) -> list[tuple[Record, Record]]:
    """The first and the last record of each start of the system, in order, starts of daemons included; the others are
    not decoded, which takes a fraction of the time."""
    lost = Skipped()
    tables: _Tables = {}
    found: list[tuple[Record, Record]] = []
    last: memoryview | None = None

    def end() -> None:
        record = None if last is None else _record(Kind.RECORD, last, tables, lost)
        if record is not None:
            found[-1] = found[-1][0], record

    for kind, payload in read_frames(data, lost):
        if kind == Kind.RECORD and found and _boot(payload, tables) == found[-1][0].boot:
            last = payload
            continue
        record = _record(kind, payload, tables, lost)
        if record is None:
            continue
        if found and record.boot == found[-1][0].boot:
            found[-1], last = (found[-1][0], record), None
        else:
            end()
            found.append((record, record))
            last = None
    end()
    return found


def read_ends(data: bytes) -> tuple[Record, Record] | None:
    """The first and the last record of a recording, starts included; None: there is none."""
    found = read_boots(data)
    return (found[0][0], found[-1][1]) if found else None


def _boot(payload: memoryview, tables: _Tables) -> str | None:
    """Of which start of the system a record is; None: that is not known."""
    table = tables.get(int.from_bytes(payload[:4], "little"))
    return None if table is None else table.boot


def _record(kind: int, payload: memoryview, tables: _Tables, lost: Skipped) -> Record | None:
    try:
        if kind == Kind.TABLE:
            if len(tables) >= _MAX_TABLES:
                del tables[next(iter(tables))]
            tables[zlib.crc32(payload)] = _read_table(payload)
        elif kind == Kind.START:
            return _read_start(payload)
        elif kind == Kind.RECORD:
            return _read_record(payload, tables)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, struct.error, WireError):
        lost.frames += 1
    return None


def _read_table(payload: memoryview) -> _Table:
    body = parse_json(bytes(payload), limit=_MAX_TABLE)
    channels = [(_text(name), _text(unit)) for name, unit in body["channels"][:_MAX_NAMES]]
    models = [(_text(name), _text(release), _whole(version)) for name, release, version in body["models"][:_MAX_NAMES]]
    kinds = [_text(each) for each in body["kinds"][:_MAX_NAMES]]
    return _Table(_text(body["boot"]), channels, models, kinds, dict(channels))


def _read_start(payload: memoryview) -> Record:
    body = parse_json(bytes(payload), floats=True, limit=_MAX_TABLE)
    start = Start(_text(body["version"]), _whole(body["pid"]), _text(body["how"]))
    return Record(_time(body["at_s"]), _text(body["boot"]), _time(body["monotonic_s"]), 0.0, start=start)


def _read_record(payload: memoryview, tables: Mapping[int, _Table]) -> Record:
    crc, at_s, monotonic_s, seconds, throttled, flags, size = _HEAD.unpack_from(payload)
    table = tables[crc]
    if size > len(table.channels) or not 0 <= seconds <= _MAX_S:
        raise ValueError("no record")
    at = _HEAD.size
    floats = struct.Struct(f"<{size}f")
    rows: list[dict[str, float]] = []
    for _ in range(3 if flags & _RANGES else 1):
        values = zip(table.channels, floats.unpack_from(payload, at), strict=False)
        # Single precision has 7 digits; what comes after them is not what was measured.
        rows.append({name: float(f"{value:.7g}") for (name, _), value in values if math.isfinite(value)})
        at += floats.size
    models, at = _read_models(payload, at, table)
    if at != len(payload):
        raise ValueError("bytes are left")
    lows, highs = rows[1:] if flags & _RANGES else ({}, {})
    share = float(f"{throttled:.7g}") if 0 <= throttled <= 1 else None
    return Record(
        _time(at_s), table.boot, _time(monotonic_s), float(f"{seconds:.7g}"), models, rows[0], lows, highs,
        table.units, share,
    )  # fmt: skip


def _read_models(payload: memoryview, at: int, table: _Table) -> tuple[dict[str, ModelRecord], int]:
    count, at = read_varint(payload, at)
    models: dict[str, ModelRecord] = {}
    for _ in range(min(count, _MAX_NAMES)):
        row, at = read_varint(payload, at)
        waiting, at = read_varint(payload, at)
        kinds, at = read_varint(payload, at)
        failures: dict[str, int] = {}
        for _ in range(min(kinds, _MAX_NAMES)):
            kind, at = read_varint(payload, at)
            failures[table.kinds[kind]], at = read_varint(payload, at)
        total, at = Histogram.from_bytes(payload, at)
        compute, at = Histogram.from_bytes(payload, at)
        name, release, version = table.models[row]
        models[name] = ModelRecord(release, version, total, compute, failures, waiting)
    return models, at


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not (value.isprintable() or not value):
        raise ValueError("no name")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("no whole number")
    return value


def _time(value: Any) -> float:
    number = float(value)
    if not 0 <= number <= _MAX_S:
        raise ValueError("no time")
    return number
