"""Plans of rollouts: waves, bounds, and what is read back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kedge.errors import BadInputError, IncompatibleError
from kedge.fleet.inventory import Limit
from kedge.fleet.rollout.options import Options, parse_canary
from kedge.fleet.rollout.plan import Plan
from kedge.fleet.rollout.reading import UnreadableError
from tests.support.driven import names, plan_of


@pytest.mark.parametrize(
    ("text", "devices", "waves"),
    [
        ("1,5%,25%,100%", 16, (1, 4, 16)),
        ("1,5%,25%,100%", 1000, (1, 50, 250, 1000)),
        ("1, 2, 100%", 3, (1, 2, 3)),
        ("100%", 1, (1,)),
        ("10%,100%", 11, (2, 11)),
        ("33.3%,100%", 1000, (333, 1000)),
        ("7%,100%", 100, (7, 100)),
        ("5,50,100%", 3, (3,)),
        ("2,4", 4, (2, 4)),
    ],
)
def test_waves_are_cumulative_and_shares_round_up(text: str, devices: int, waves: tuple[int, ...]) -> None:
    assert parse_canary(text, devices) == waves


@pytest.mark.parametrize("text", ["", "1,", "0,100%", "101%", "-1", "1.5,100%", "five", "50%,10%,100%", "1,50%", "10"])
def test_waves_that_fall_or_leave_devices_out_are_refused(text: str) -> None:
    with pytest.raises(BadInputError):
        parse_canary(text, 100)


@pytest.mark.parametrize(
    "wrong",
    [
        {"pause_s": -1},
        {"max_failures": -1},
        {"deadline_s": 0},
        {"deadline_s": float("nan")},
        {"concurrency": 0},
        {"max_error_rate": 1.1},
        {"max_p99_drift": -0.1},
        {"on_halt": "explode"},
        {"limit_bytes_per_s": 0},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInputError):
        Options(**wrong)


def test_a_plan_reads_back_as_it_was_written() -> None:
    options = Options(canary=("1", "50%", "100%"), pause_s=1.5, max_error_rate=0.01, attest="/home/me/.ssh/id")
    limit = Limit("berlin", frozenset(names(3)) | {"not-in-it"}, 2)
    plan = plan_of(10, options, limits=[limit, Limit("others", frozenset({"elsewhere"}), 1)])
    assert plan.limits == (Limit("berlin", frozenset(names(3)), 2),)
    assert [each.wave for each in plan.devices] == [1, 2, 2, 2, 2, 3, 3, 3, 3, 3]
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(
    "spoil",
    [
        lambda plan: plan.update(id="../../etc"),
        lambda plan: plan.update(waves=[1, 2]),
        lambda plan: plan.update(waves=[2, 1, 10]),
        lambda plan: plan.update(devices=plan["devices"][:9]),
        lambda plan: plan["devices"].append(plan["devices"][0]),
        lambda plan: plan["devices"].reverse(),
        lambda plan: plan["devices"][3].pop("way"),
        lambda plan: plan["release"].update(digest="no digest"),
        lambda plan: plan["options"].update(concurrency=True),
        lambda plan: plan["options"].update(max_failures="none"),
        lambda plan: plan.update(limits=[{"group": "g", "devices": ["nobody"], "concurrency": 1}]),
        lambda plan: plan.pop("model"),
    ],
)
def test_a_plan_that_was_spoilt_is_not_read(spoil: Any) -> None:
    document = plan_of(10, Options(canary=("1", "100%"))).to_json()
    spoil(document)
    with pytest.raises(UnreadableError):
        Plan.from_json(document)


def test_a_plan_of_a_later_kedge_is_named_as_that() -> None:
    with pytest.raises(IncompatibleError, match="later kedge"):
        Plan.from_json({**plan_of(1).to_json(), "kedge_rollout_plan": 2})


def test_a_rollout_to_nobody_is_refused() -> None:
    with pytest.raises(BadInputError):
        plan_of(0)


@pytest.mark.parametrize("canary", [(), ("1",) * 64 + ("100%",), ("1" + " " * 20, "100%")])
def test_waves_that_a_plan_could_not_be_read_back_with_are_refused(canary: tuple[str, ...]) -> None:
    with pytest.raises(BadInputError, match="wave"):
        Options(canary=canary)


def test_a_plan_that_could_not_be_read_back_is_not_made() -> None:
    with pytest.raises(BadInputError, match="target"):
        plan_of(2, targets=("t" * 65,))
