"""A recording in a snapshot: what is to be masked is gone from it, packed or not, and every record is still read."""

from __future__ import annotations

import numpy as np
import pytest

from kedge_agent.diagnose.members import LeftOutError, masked_member
from kedge_agent.diagnose.redact import Redactor
from kedge_agent.formats.recording import ModelRecord, Record, Skipped, pack, read_records
from kedge_agent.formats.recording_frames import Kind, frame, read_frames
from tests.unit.test_recording import OLD, encoded, histogram, second, start

NAME = "recorder/seconds/0000000000.rec"


def of_alice(number: int) -> Record:
    """A second of a model and a channel that have names in their names."""
    model = ModelRecord(OLD, 7, histogram(1.0, 2.0), histogram(1.0))
    return second(
        number,
        models={"gate-of-alice": model},
        channels={"fan.thinkpad_rpm": 40.0 + number},
        units={"fan.thinkpad_rpm": "rpm"},
    )


def masked(data: bytes, **known: list[str]) -> bytes:
    return masked_member(Redactor(known), NAME, data)


def everything(data: bytes) -> bytes:
    return data + b"".join(bytes(payload) for _, payload in read_frames(data, Skipped()))


@pytest.mark.parametrize("packed", [False, True])
def test_names_in_a_recording_are_masked_and_every_record_is_read(packed: bool) -> None:
    records = [start(0), *(of_alice(number) for number in range(1, 700))]
    data = pack(encoded(records)) if packed else encoded(records)
    out = masked(data, user=["alice"], host=["thinkpad"])
    lost = Skipped()
    read = list(read_records(out, lost))

    assert [each.at_s for each in read] == [each.at_s for each in records]
    assert lost == Skipped()
    assert {name for each in read for name in each.models} == {"gate-of-<user-1>"}
    assert {name for each in read for name in each.channels} == {"fan.<host-1>_rpm"}
    assert read[-1].models["gate-of-<user-1>"] == records[-1].models["gate-of-alice"]
    assert read[-1].channels == {"fan.<host-1>_rpm": 739.0}
    assert b"alice" not in everything(out)
    assert b"thinkpad" not in everything(out)


@pytest.mark.parametrize("packed", [False, True])
def test_a_recording_without_anything_to_mask_stays_to_the_byte(packed: bool) -> None:
    data = encoded([start(0), *(second(number) for number in range(1, 700))])
    data = pack(data) if packed else data

    assert masked(data, user=["alice"]) == data


def test_what_is_no_frame_of_a_recording_is_left_out_and_the_rest_is_read() -> None:
    whole = encoded([start(0), *(second(number) for number in range(1, 50))])
    data = whole + b"\0password=hunter2Xy9\xff" + frame(Kind.TABLE, b"password=hunter2Xy9") + whole[:-7]
    strange = data + frame(9, b"password=hunter2Xy9")  # type: ignore[arg-type]

    assert list(read_records(masked(strange))) == list(read_records(data))
    assert b"hunter2" not in everything(masked(strange))


def test_masked_names_have_the_masks_that_documents_have() -> None:
    redactor = Redactor({"user": ["alice"]})
    document = redactor.document({"models": {"gate-of-alice": 1}}, "facts/recorder.json")
    (record,) = read_records(masked_member(redactor, NAME, encoded([of_alice(1)])))

    assert list(record.models) == list(document["models"])


@pytest.mark.parametrize("data", [np.random.default_rng(5).bytes(4 << 20), b"password=hunter2Xy9\n" * 9])
def test_what_is_no_recording_is_left_out(data: bytes) -> None:
    with pytest.raises(LeftOutError, match="nothing in it is a recording"):
        masked(data)


def test_a_record_whose_table_is_lost_is_left_out_of_what_is_framed_anew() -> None:
    """It is read by nobody."""
    data = encoded([of_alice(1)])
    (payload,) = [bytes(payload) for kind, payload in read_frames(data, Skipped()) if kind == Kind.RECORD]
    out = masked(data + frame(Kind.RECORD, bytes(4) + payload[4:]), user=["alice"])

    assert len(list(read_records(out))) == 1
    assert len([kind for kind, _ in read_frames(out, Skipped()) if kind == Kind.RECORD]) == 1
