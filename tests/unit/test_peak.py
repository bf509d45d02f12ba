from __future__ import annotations

from kedge_agent.runtime.peak import Peak

MB = 1 << 20


def passes(*needs: int) -> list[int]:
    """Which of these requests, by number, end a peak."""
    peak = Peak()
    return [number for number, need in enumerate(needs) if peak.passed(need)]


def test_a_peak_has_passed_after_64_requests_in_a_row_of_less_than_half() -> None:
    assert passes(100 * MB, *[MB] * 63) == []
    assert passes(100 * MB, *[MB] * 70) == [64]


def test_large_and_small_requests_in_turns_are_no_peak() -> None:
    assert passes(*[100 * MB, *[MB] * 60] * 5) == []


def test_what_the_recent_requests_needed_is_the_next_peak() -> None:
    assert passes(100 * MB, *[40 * MB] * 64, *[MB] * 64) == [64, 128]
    assert passes(100 * MB, *[40 * MB] * 64, *[30 * MB] * 100) == [64]


def test_little_memory_is_not_worth_giving_back() -> None:
    assert passes(MB // 2, *[1] * 200) == []
