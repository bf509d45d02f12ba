"""Hostile input over HTTP: a short, repeatable run of tools/fuzz, and whether it would notice what it looks for."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

pytest.importorskip("hypothesis", reason="needs hypothesis (pip install hypothesis)")

from tools.fuzz import exchange
from tools.fuzz.cases import FAMILIES
from tools.fuzz.exchange import Link, Violation
from tools.fuzz.run import BATCH, fuzz

GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.slow
def test_hostile_requests_are_answered_or_cut_off_and_the_agent_serves_on(tmp_path: Path) -> None:
    outcome = fuzz(tmp_path, BATCH * len(FAMILIES))
    assert outcome.findings == []
    assert outcome.cases >= 2000
    # A run in which everything was refused at the door would prove nothing.
    assert {200, 400, 403, 404, 405, 413} <= set(outcome.statuses)
    assert outcome.logged == {}


def answered(folder: Path, said: bytes, *, hang: bool = False) -> list[exchange.Answer]:
    """What the client makes of a server that says this."""
    door = folder / "s"
    over = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(door))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(said)
                if hang:
                    over.wait(30)

        thread = threading.Thread(target=serve)
        thread.start()
        link = Link(door)
        try:
            return link.exchange([b"GET / HTTP/1.1\r\n\r\n"], 1)
        finally:
            over.set()
            link.close()
            thread.join()


def test_a_correct_answer_is_taken(tmp_path: Path) -> None:
    (answer,) = answered(tmp_path, b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD)
    assert (answer.status, answer.body) == (200, b"{}")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "ended after 0 of 1"),
        (GOOD[:-1], "bytes are no whole answer"),
        (GOOD + b"x", "1 bytes are no whole answer"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "without Content-Length"),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "not a status line"),
        (b"HTTP/1.1 418 No\r\nContent-Length: 0\r\n\r\n", "418 is none"),
        (GOOD.replace(b"{}", b"{,"), "not JSON"),
        (GOOD.replace(b"200 OK", b"400 No"), "without an error"),
        (GOOD.replace(b"200 OK", b"400 No").replace(b"application/json", b"text/plain"), "an error of type"),
        (GOOD.replace(b"Content-Length: 2", b"Content-Length: 2\r\nContent-Length: 2"), "two headers"),
    ],
)
def test_an_answer_that_is_no_correct_http_is_a_finding(tmp_path: Path, said: bytes, why: str) -> None:
    with pytest.raises(Violation, match=why):
        answered(tmp_path, said)


def test_a_server_that_does_not_answer_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "DEADLINE_S", 0.2)
    with pytest.raises(Violation, match="no answer and no end"):
        answered(tmp_path, GOOD[:20], hang=True)
