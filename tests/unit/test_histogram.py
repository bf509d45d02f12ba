"""Times counted in log-linear buckets: what is merged is what was recorded, and no percentile is far from the truth."""

from __future__ import annotations

from itertools import pairwise

import pytest

from kedge_agent.formats.histogram import LEAST_NS, MOST_NS, Histogram, read_varint, varint
from kedge_agent.formats.latency import percentile_index

pytest.importorskip("hypothesis", reason="needs hypothesis (pip install hypothesis)")
from hypothesis import example, given
from hypothesis import strategies as st

ERROR = 1 / 64
TIMES = st.lists(st.integers(LEAST_NS, MOST_NS), min_size=1, max_size=200)


def recorded(times: list[int]) -> Histogram:
    histogram = Histogram()
    for each in times:
        histogram.record(each)
    return histogram


@given(TIMES, TIMES)
def test_merging_is_the_same_as_recording_all(first: list[int], second: list[int]) -> None:
    merged = recorded(first)
    merged.merge(recorded(second))
    assert merged == recorded(first + second)
    assert merged.count == len(first) + len(second)


@given(TIMES, st.sampled_from((1, 50, 90, 99, 99.9)))
@example([MOST_NS], 50)
@example([LEAST_NS], 99)
def test_a_percentile_is_within_the_error_of_the_sample_that_the_project_s_rule_names(
    times: list[int], percentile: float
) -> None:
    exact = sorted(times)[percentile_index(len(times), percentile)]
    told = recorded(times).percentile_ns(percentile)
    assert told is not None
    assert abs(told - exact) <= ERROR * exact


@given(TIMES)
def test_every_time_lies_in_its_bucket_and_buckets_do_not_overlap(times: list[int]) -> None:
    buckets = list(recorded(times).buckets())
    for (_, upper, _), (lower, _, _) in pairwise(buckets):
        assert upper <= lower
    for low, high, count in buckets:
        assert count == sum(low <= each < high for each in times)
        assert high - low <= 2 * ERROR * low


@given(TIMES)
def test_bytes_are_read_back_and_end_where_they_end(times: list[int]) -> None:
    data = recorded(times).to_bytes()
    assert Histogram.from_bytes(b"??" + data + b"?", 2) == (recorded(times), 2 + len(data))


def test_what_lies_outside_counts_as_the_least_and_the_most() -> None:
    histogram = recorded([-5, 0, 1, MOST_NS * 1000])
    assert histogram.count == 4
    low, high = histogram.percentiles_ns((50, 99.9))
    assert low == pytest.approx(LEAST_NS, rel=ERROR)
    assert high == pytest.approx(MOST_NS, rel=ERROR)


def test_of_nothing_there_is_no_percentile() -> None:
    assert Histogram().percentiles_ns((50, 99)) == [None, None]
    assert Histogram.from_bytes(Histogram().to_bytes()) == (Histogram(), 1)


@given(st.binary(max_size=64))
def test_bytes_that_are_no_histogram_are_refused_and_nothing_else_happens(data: bytes) -> None:
    try:
        histogram, end = Histogram.from_bytes(data)
    except ValueError:
        return
    assert 0 < end <= len(data)
    assert all(low >= LEAST_NS * (1 - 2 * ERROR) and count > 0 for low, _, count in histogram.buckets())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        varint(1) + varint(500),
        varint(1) + varint(500) + varint(0),
        varint(1) + varint(500) + varint(1 << 50),
        varint(1) + varint(5_000) + varint(1),
        varint(1) + varint(3) + varint(1),
        varint(2) + varint(500) + varint(1) + varint(0) + varint(1),
        varint(1 << 40),
        b"\xff" * 20,
    ],
)
def test_bytes_that_would_mean_nonsense_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (each says something else)
        Histogram.from_bytes(data)


@given(st.integers(0, (1 << 62) - 1))
def test_whole_numbers_are_read_back(value: int) -> None:
    assert read_varint(varint(value), 0) == (value, len(varint(value)))
