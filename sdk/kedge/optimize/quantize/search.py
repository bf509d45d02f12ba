"""Mixed precision: the mix of precisions by layer that meets a budget, found by trying mixes.

Layers are ordered by what they lose against what they save (sensitivity over the cost saved). A mix is
then two numbers: how far along that order layers go to the lowest precision, and how many of the
worst at INT8 stay in FP32. So few numbers are searched with Optuna (Akiba et al. 2019; TPE, with
constraints), whatever the number of layers, and an interrupted search goes on from its journal. Mixes are asked for in
rounds, so that those of a round can be judged at the same time, by workers where there are any.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import IncompatibleError
from ...model.graph import Graph
from ..events import Events
from ..work import Result, Work
from .mixes import Judge, Mix, Prices
from .sensitivity import measure_sensitivity
from .static import StaticQuantizer

if TYPE_CHECKING:
    from .step import Quantize

__all__ = ["search_mix"]

_PRECISIONS = ("w4a8", "int8")
_SCALE = 64
# Mixes that are asked for before any of them is judged. It never follows the number of workers: one host and a cluster
# choose the same.
_ROUND = 4
_ANCHORS = ((0, 0), (_SCALE, 0), (_SCALE // 4, 0), (_SCALE // 2, 0), (0, _SCALE), (0, _SCALE // 8), (_SCALE // 8, 0))


class _Space:
    """Plans by two numbers from 0 to _SCALE."""

    def __init__(
        self, quantizer: StaticQuantizer, sensitivity: dict[str, dict[str, float]], prices: Prices, kept: set[str]
    ) -> None:
        self._free = [node.name for node in quantizer.layers if node.name not in kept]
        self._kept = kept
        lost, price = sensitivity, prices.of_layer

        def to_four_bits(name: str) -> float:
            added = max(lost[name]["w4a8"] - lost[name]["int8"], 0.0)
            return added / max(price(name, "int8") - price(name, "w4a8"), 1e-12)

        def to_integers(name: str) -> float:
            return lost[name]["int8"] / max(price(name, "fp32") - price(name, "int8"), 1e-12)

        # Attention products have no weights to store in four bits.
        stored = {name for name in self._free if prices.has_weights(name)}
        self._four_bits = sorted(stored, key=to_four_bits)
        self._integers = sorted(self._free, key=to_integers)

    def plan(self, four_bits: int, full: int) -> dict[str, str]:
        """The first `four_bits`/_SCALE of the layers at W4A8, the last `full`/_SCALE at FP32, the rest INT8."""
        plan = dict.fromkeys(self._free, "int8") | dict.fromkeys(self._kept, "fp32")
        for name in self._four_bits[: round(len(self._four_bits) * four_bits / _SCALE)]:
            plan[name] = "w4a8"
        for name in self._integers[len(self._integers) - round(len(self._integers) * full / _SCALE) :]:
            plan[name] = "fp32"
        return plan


def search_mix(step: Quantize, graph: Graph, work: Work) -> Result:
    """Search, and quantise with the best mix found.

    Raises:
        IncompatibleError: optuna is missing.
        BadInputError: there are no calibration data.
    """
    from .step import static_result

    quantizer = StaticQuantizer(graph, work, step.settings())
    names = [node.name for node in quantizer.layers]
    kept = step.kept(names)
    quantizer.choose_calibrator({name: "fp32" if name in kept else "int8" for name in names})
    sensitivity = measure_sensitivity(quantizer, _PRECISIONS)
    prices = Prices(quantizer)
    timer = _Timer(work, quantizer)
    prices.int8_time = timer.int8_share(dict.fromkeys(names, "int8")) or prices.int8_time
    judge = Judge(quantizer, work)
    space = _Space(quantizer, sensitivity, prices, kept)
    said: list[str] = []
    mixes = _try(step, work, space, prices, judge, timer, said)
    chosen = _best(step, mixes)
    result = static_result(quantizer, dict(chosen.plan), estimated_drop=chosen.drop, tried=len(mixes))
    notes = [*result.notes, *said, f"the search judged mixes by {judge.conditions}"]
    if not _fits(step, chosen):
        notes.append("no mix that was tried meets the budget: the nearest one was taken")
    evidence = {
        **result.evidence,
        "sensitivity": [
            {"layer": node.name, "op": node.op_type, "precision": precision, "error": sensitivity[node.name][precision]}
            for node in quantizer.layers
            for precision in _PRECISIONS
        ],
        "search": _described(step, mixes, chosen, measured=timer.device),
    }
    return Result(result.graph, result.changed, tuple(notes), evidence)


class _Timer:
    """Times plans where something measures: candidates on a device, whole models on this host."""

    def __init__(self, work: Work, quantizer: StaticQuantizer) -> None:
        self._work = work
        self._quantizer = quantizer
        self.device = work.rank_by_probe and work.probe is not None
        self.device_key = "" if work.probe is None else hashlib.sha256(work.probe.name.encode()).hexdigest()[:16]
        self._full_ms = 0.0

    def int8_share(self, plan: dict[str, str]) -> float | None:
        """Measured time of the INT8 model over FP32's."""
        times = self._measure({"fp32": self._quantizer.graph, "int8": self._quantizer.build(plan)})
        if times is None:
            return None
        self._full_ms = times["fp32"]
        return min(max(times["int8"] / times["fp32"], 0.02), 0.98)

    def share(self, milliseconds: float) -> float:
        """A measured time over that of the FP32 model on the same device."""
        return milliseconds / self._full_ms

    def milliseconds(self, plan: dict[str, str]) -> float | None:
        """Median time of a plan on the device, when mixes are to be ranked by it."""
        if not self.device:
            return None
        times = self._measure({"mix": self._quantizer.build(plan)})
        return None if times is None else times["mix"]

    def _measure(self, graphs: dict[str, Graph]) -> dict[str, float] | None:
        if self._work.probe is None:
            return None
        paths: dict[str, Path] = {}
        for name, graph in graphs.items():
            paths[name] = self._work.scratch / f"timed-{name}.onnx"
            graph.write(paths[name])
        return {name: latency.p50_ms for name, latency in self._work.probe.measure(paths).items()}


def _try(
    step: Quantize, work: Work, space: _Space, prices: Prices, judge: Judge, timer: _Timer, notes: list[str]
) -> list[Mix]:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise IncompatibleError("optuna is needed to mix precisions", hint="pip install 'kedge[optimize]'") from error
    # Two numbers often mean the same plan in a small network: it is tried once.
    known: dict[tuple[str, ...], dict[str, float | None]] = {}

    def mix_of(trial: Any) -> Mix:
        plan = space.plan(trial.params["four_bits"], trial.params["full"])
        found = {key: trial.user_attrs[key] for key in ("time", "size", "drop", "margin")}
        return Mix(trial.number, plan, **found, measured_ms=trial.user_attrs["ms"])

    def judge_round(trials: list[Any]) -> None:
        numbers = [
            (trial.suggest_int("four_bits", 0, _SCALE), trial.suggest_int("full", 0, _SCALE)) for trial in trials
        ]
        plans = [space.plan(*each) for each in numbers]
        drops = judge.drops(list({key: plan for plan in plans if (key := tuple(plan.values())) not in known}.values()))
        for trial, plan in zip(trials, plans, strict=True):
            work.progress("mixing precisions", min(trial.number / step.trials, 1.0))
            key = tuple(plan.values())
            if key not in known:
                time, size = prices.of(plan)
                drop, margin = next(drops)
                milliseconds = timer.milliseconds(plan)
                if milliseconds is not None:
                    time = timer.share(milliseconds)
                known[key] = {"time": time, "size": size, "drop": drop, "margin": margin, "ms": milliseconds}
            for name, value in known[key].items():
                trial.set_user_attr(name, value)
            # What was judged is kept, also where the round is interrupted.
            mixes.append(mix_of(trial))
            study.tell(trial, _value(step, mixes[-1]))
            counts = dict.fromkeys(("fp32", *_PRECISIONS), 0) | mixes[-1].counts
            events.try_out(trial.number, counts, {**_figures("mix", mixes[-1]), "mix/ms": mixes[-1].measured_ms})
            events.add(trial.number, _figures("best", _best(step, mixes)))

    def constraints(trial: Any) -> tuple[float, ...]:
        return (_excess(step, mix_of(trial)),)

    with _quiet(optuna):
        # What a device measured holds for it, and for that search alone: the journal of one that ended is not read.
        journal = work.scratch / (f"trials-{timer.device_key}.journal" if timer.device else "trials.journal")
        storage = JournalStorage(JournalFileBackend(str(journal)))
        sampler = optuna.samplers.TPESampler(
            seed=work.seed, constraints_func=constraints, n_startup_trials=len(_ANCHORS), constant_liar=True
        )
        study = optuna.create_study(
            study_name="mixes",
            storage=storage,
            sampler=sampler,
            direction="minimize",
            load_if_exists=True,
        )
        for trial in study.trials:
            if not trial.state.is_finished():
                # The round in which the last search was interrupted begins anew.
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        done = _complete(study)
        mixes = [mix_of(trial) for trial in done]
        for mix, trial in zip(mixes, done, strict=True):
            known[tuple(mix.plan.values())] = dict(trial.user_attrs)
        # The corners first: all in four bits, all INT8, all FP32, and the way from one to the other.
        tried = {(trial.params["four_bits"], trial.params["full"]) for trial in done}
        first = [anchor for anchor in _ANCHORS[: step.trials] if anchor not in tried]
        for four_bits, full in first:
            study.enqueue_trial({"four_bits": four_bits, "full": full})
        left = step.trials - len(done)
        count = min(len(first) or _ROUND, left)
        with contextlib.closing(Events(work, "mixes", work.scratch.name, notes, resumed=bool(done))) as events:
            while left > 0:
                judge_round([study.ask() for _ in range(count)])
                left -= count
                count = min(_ROUND, left)
    if timer.device:
        journal.unlink(missing_ok=True)
    return mixes


def _figures(which: str, mix: Mix) -> Mapping[str, float | None]:
    """What TensorBoard shows of a trial, or of the best one until then."""
    return {f"{which}/drop": mix.drop, f"{which}/time": mix.time, f"{which}/size": mix.size}


def _complete(study: Any) -> list[Any]:
    return [trial for trial in study.trials if trial.state.name == "COMPLETE"]


def _price(mix: Mix) -> float:
    """What is minimised: the device's milliseconds where it was asked."""
    return mix.cost if mix.measured_ms is None else mix.measured_ms


def _value(step: Quantize, mix: Mix) -> float:
    """What the search minimises, the budget apart."""
    return mix.drop + mix.margin if step.max_time or step.max_size else _price(mix)


def _excess(step: Quantize, mix: Mix) -> float:
    """How far a mix is over the budget; at most 0 when it keeps to it."""
    if step.max_time or step.max_size:
        over = [mix.time - step.max_time] if step.max_time else []
        return max([*over, *([mix.size - step.max_size] if step.max_size else [])])
    return mix.drop + mix.margin - step.max_drop


def _fits(step: Quantize, mix: Mix) -> bool:
    return _excess(step, mix) <= 0


def _best(step: Quantize, mixes: list[Mix]) -> Mix:
    """Within the budget: the cheapest, or the most accurate where the budget is of time or size."""
    fitting = [mix for mix in mixes if _fits(step, mix)]
    if not fitting:
        return min(mixes, key=lambda mix: (_excess(step, mix), mix.number))
    if step.max_time or step.max_size:
        return min(fitting, key=lambda mix: (_value(step, mix), _price(mix), mix.number))
    return min(fitting, key=lambda mix: (_value(step, mix), mix.drop, mix.number))


def _described(step: Quantize, mixes: list[Mix], chosen: Mix, *, measured: bool) -> dict[str, Any]:
    front = [
        mix.number
        for mix in mixes
        if not any(
            _price(other) <= _price(mix)
            and other.drop <= mix.drop
            and (_price(other), other.drop) != (_price(mix), mix.drop)
            for other in mixes
        )
    ]
    if step.max_time or step.max_size:
        goal = "least loss of accuracy within the budget of time and size"
    else:
        goal = f"least {'measured' if measured else 'estimated'} time that loses at most {step.max_drop * 100:g} points"
    return {
        "objective": goal,
        "trials": [
            {
                "number": mix.number,
                "cost": _price(mix),
                "cost_unit": "ms on the device" if measured else "share of FP32's time, plus a tenth of its size",
                "drop": mix.drop,
                "feasible": _fits(step, mix),
                "measured_ms": mix.measured_ms,
                "counts": mix.counts,
            }
            for mix in mixes
        ],
        "front": front,
        "chosen": chosen.number,
    }


@contextlib.contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
