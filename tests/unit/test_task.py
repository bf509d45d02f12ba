"""What a task is made of, without a device: deadlines, ends that are told later, engines that fit, figures."""

from __future__ import annotations

import functools
import pickle
import time
from dataclasses import replace
from typing import Any

import pytest

from kedge.deploy.engines import Wanted
from kedge.deploy.patience import Patience
from kedge.deploy.pending import allowing_for_clocks, has_begun
from kedge.errors import UnreachableError
from kedge.fleet.engines import EngineGoneError, choose_engine
from kedge.fleet.rollout.drive import drive, resume
from kedge.fleet.rollout.ledger import create
from kedge.fleet.rollout.options import Options
from kedge.fleet.served import look_at
from kedge.fleet.task import run_task
from kedge.transport.base import Deadline
from kedge.transport.link import Pace
from kedge_agent.engine.order import Order
from kedge_agent.formats.passport import Passport
from tests.support.driven import Fleet, answer, names, plan_of, pool

HERE = Passport("tensorrt", "10.3.0.30", "linux", "aarch64", ("8.7",))
RELEASE = {"digest": "1" * 64, "source": "/releases/one"}


def wanted(passport: Passport) -> Wanted:
    return Wanted("a" * 64, "b" * 64, Order("tensorrt"), passport, False)


def engine(key: str, passport: Any, **release: str) -> dict[str, Any]:
    return {"key": key, "passport": passport, "release": release or RELEASE}


class TestEngines:
    def test_the_one_that_was_asked_for_by_its_key_is_taken_first(self) -> None:
        other = engine("c" * 64, HERE.to_json(), digest="2" * 64)
        assert choose_engine(wanted(HERE), [other, engine("a" * 64, HERE.to_json())]) == RELEASE

    def test_else_one_whose_passport_fits(self) -> None:
        assert choose_engine(wanted(HERE), [engine("c" * 64, HERE.to_json())]) == RELEASE

    @pytest.mark.parametrize("passport", [replace(HERE, compute_capabilities=("8.9",)).to_json(), {}, None, "nonsense"])
    def test_one_that_does_not_fit_or_says_nothing_sensible_is_left(self, passport: Any) -> None:
        assert choose_engine(wanted(HERE), [engine("c" * 64, passport)]) is None


class TestDeadlines:
    def test_a_part_has_no_more_time_than_the_whole(self) -> None:
        whole = Deadline.after(1, "the whole")
        assert Deadline.after(5, "a part", whole) is whole
        assert Deadline.after(0.5, "a part", whole).what == "a part"
        assert Deadline.after(0, "nothing").has_passed
        assert not whole.has_passed

    def test_patience_ends_with_the_deadline_whatever_was_answered(self) -> None:
        patience = Patience(60, Deadline.after(0.05, "the test"))
        assert not patience.is_late
        assert patience.wait()
        patience.renew()
        assert not patience.wait()
        assert patience.is_late

    def test_nothing_more_is_sent_after_it(self) -> None:
        Pace(None, Deadline.after(5, "the test")).wait(1)
        with pytest.raises(UnreachableError, match="the push took too long"):
            Pace(None, Deadline.after(0, "the push")).wait(1)


class TestEndsThatAreToldLater:
    def test_a_deploy_began_since_then_in_whole_seconds(self) -> None:
        now = time.time()
        entries = [
            {"step": "begun", "at_s": int(now) - 500},
            {"step": "reverted", "at_s": int(now) - 400},
            {"step": "begun", "at_s": int(now)},
            {"step": "refused", "at_s": int(now)},
        ]
        assert has_begun(entries, now)
        assert not has_begun(entries[:2], now)
        assert has_begun(entries[:2], now - 600)

    def test_a_device_s_clock_may_be_seconds_behind_but_no_more_than_have_passed(self) -> None:
        now = time.time()

        def tells(first_s: float, behind_s: float) -> bool:
            since_s = allowing_for_clocks(first_s, now)
            return has_begun([{"step": "begun", "at_s": int(first_s - behind_s)}], since_s)

        assert tells(now - 60, 4)
        assert not tells(now - 60, 7)
        # Somebody's of before, of a device that was tasked just now; or whose worker's clock is another.
        assert not tells(now, 2)
        assert not tells(now + 30, 2)

    @pytest.mark.parametrize("at_s", [None, "yesterday", 4e9])
    def test_a_clock_that_is_wrong_has_a_deploy_begun_anew(self, at_s: Any) -> None:
        assert not has_begun([{"step": "begun", "at_s": at_s}], time.time() - 10)
        assert not has_begun([], time.time())


class Told:
    """A client whose device tells this."""

    def __init__(self, metrics: str, row: dict[str, Any]) -> None:
        self._metrics, self._row = metrics, row

    def get(self, path: str, *, expect: Any = ()) -> Any:
        return {"models": [self._row]}

    def get_bytes(self, path: str, *, limit_bytes: int) -> memoryview:
        assert path == "/metrics"
        return memoryview(self._metrics.encode())


ROW = {"precision": None, "current": None, "previous": None, "problem": None, "model": "net", "state": "serving"}


def look(metrics: str) -> dict[str, Any]:
    told = Told(metrics, {**ROW, "version": 2, "release": "1" * 64})
    return look_at(told, "one", "net", "1" * 64)  # type: ignore[arg-type]


def test_a_look_takes_the_figures_of_its_model_and_its_version_alone() -> None:
    metrics = [
        "# HELP nv_inference_request_success Requests",
        'nv_inference_request_success{model="net",version="1"} 900',
        'nv_inference_request_success{model="net",version="2"} 30',
        'nv_inference_request_success{model="other",version="2"} 77',
        'nv_inference_request_failure{model="net",version="2",reason="bad_input"} 5',
        'nv_inference_request_failure{model="net",version="2",reason="internal"} 3',
        'kedge_inference_last_minute_seconds{model="net",version="2",part="total",quantile="0.99"} 0.9',
        'kedge_inference_last_minute_seconds{model="net",version="2",part="compute",quantile="0.5"} 0.8',
        'kedge_inference_last_minute_seconds{model="net",version="2",part="compute",quantile="0.99"} 0.0125',
        'kedge_inference_last_minute_requests{model="net",version="2"} 100',
        'kedge_inference_last_minute_requests{model="net",version="1"} 1',
        'nv_inference_request_success{model="net",version="2"} nan',
        "nonsense{{{",
    ]
    assert look("\n".join(metrics)) == {
        "release": "1" * 64, "requests": 33, "errors": 3, "p99_ms": 12.5, "why": None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("", "its agent does not tell how many requests"),
        (
            'kedge_inference_last_minute_requests{model="net",version="2"} 99',
            "the last minute had 99 of the 100 requests",
        ),
    ],
)
def test_the_largest_of_a_few_requests_is_no_99th_percentile(told: str, why: str) -> None:
    metrics = [
        'nv_inference_request_success{model="net",version="2"} 99',
        'kedge_inference_last_minute_seconds{model="net",version="2",part="compute",quantile="0.99"} 0.0125',
        told,
    ]
    found = look("\n".join(metrics))
    assert (found["requests"], found["errors"], found["p99_ms"]) == (99, 0, None)
    assert why in found["why"]


def test_the_work_travels_by_its_name() -> None:
    work = pickle.loads(pickle.dumps(functools.partial(run_task, step=print)))  # noqa: S301
    assert work.func is run_task


def test_of_a_device_that_said_that_it_was_updated_no_rollback_asks_since_when() -> None:
    fleet = Fleet({"d0001": "failed"})
    with pool() as executor:
        drive(create(plan_of(2, Options(on_halt="rollback", concurrency=1))), executor, work=fleet)
    assert {task["kind"]: task["first_s"] is None for task in fleet.tasks} == {"deploy": False, "rollback": True}


def test_an_engine_that_was_gone_is_built_again_when_the_rollout_is_resumed() -> None:
    """It ends no resume: what a cache has lost is its builder's to build."""
    key = "1" * 64
    lost = [True]

    def device(task: Any) -> dict[str, Any]:
        needs = task["kind"] == "deploy" and not task["engines"]
        return answer(task, "needs_engine" if needs else None, engine={"key": key, "passport": {}})

    def complete(plan: Any, told: Any, path: Any) -> dict[str, Any]:
        if lost:
            lost.clear()
            raise EngineGoneError("it is not in this host's cache")
        release = {"digest": "a" * 64, "source": "/somewhere"}
        return {"key": key, "passport": {}, "release": release, "attested": "SHA256:x"}

    ledger = create(plan_of(2, Options(attest="/key", concurrency=1)))
    fleet = Fleet(dict.fromkeys(names(2), device))
    with pool() as executor:
        assert drive(ledger, executor, work=fleet, complete=complete).ended == "halted"
        assert resume(ledger, executor, work=fleet, complete=complete).ended == "done"
    assert len(fleet.of("build")) == 2
