"""`kedge run`: what optimize, build, deploy and bench do, one after the other, told in one document.

Nothing is done twice: passes that an earlier run finished are taken from where it kept them, a release that is the same
keeps its signatures, and one that the device serves already is not pushed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from .. import __version__
from ..bench.run import BenchRules, run_bench
from ..build.release import BuildOptions, build_release, model_name_for
from ..build.report import write_build_report
from ..build.shapes import shape_profiles
from ..deploy.pending import Pending
from ..deploy.to_device import Sight, deploy_to_device
from ..errors import AgentMissingError, BadInputError, ExitCode, KedgeError, UnreachableError
from ..fleet.inventory import Inventory, open_device
from ..fleet.served import Served, serves, what_serves
from ..model.onnx_io import ModelSpec
from ..optimize.events import event_files, events_of
from ..optimize.pipeline import Optimised, optimise
from ..optimize.recipe import Recipe, read_recipe
from ..optimize.written import refusal, refuse_overwriting, write_report
from ..release.bundle import Release, add_offer, open_release
from ..targets import Target, load_target
from ..transport.base import Transport
from ..transport.client import AgentClient
from ..transport.local import LocalAgent
from .account import Account
from .asking import ANSWER_S, require_taken
from .before import Before
from .fitting import require_fitting
from .settings import RunSettings, read_run_settings

__all__ = ["Order", "RollOut", "Run", "read_order"]

FORMAT = 1

RollOut = Callable[[Path], tuple[dict[str, Any], int]]
"""Rolls the release in a folder out to several devices: the document of the rollout, and its exit code."""

Watch = Callable[[], AbstractContextManager[Sight]]
"""Opens a display of one step."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Order:
    """What is to be run.

    recipe, path: what the file states, and where it lies. settings: to which devices, as which version.
    folder: everything is written there.
    """

    recipe: Recipe
    path: Path
    settings: RunSettings
    folder: Path

    @property
    def model(self) -> str:
        """The model's name on the device."""
        return model_name_for(Path(f"{self.recipe.name}.onnx"))


def read_order(path: Path, to: str | None, version: int | None, folder: Path | None) -> Order:
    """Read a recipe; what the command line says goes before what it states.

    Raises:
        BadInputError: it cannot be read, or no device is named.
    """
    recipe = read_recipe(path)
    stated = read_run_settings(path)
    settings = replace(stated, to=to or stated.to, version=version or stated.version)
    if not settings.to:
        raise BadInputError(
            "no device was named", hint='--to DEVICE, or to = "DEVICE" in [run] of the recipe; local is this machine'
        )
    return Order(recipe, path, settings, folder or Path(f"{recipe.name}-run"))


class Run:
    """One run, step by step; `document` says at any moment how far it is (docs/run-report.md).

    Args:
        rules: of both measurements.

    Raises:
        BadInputError: a device is not known, or what was given would be written over.
        IncompatibleError: a device takes nothing that is made for the recipe's target.
    """

    def __init__(self, order: Order, inventory: Inventory, rules: BenchRules) -> None:
        self._order = order
        self._inventory = inventory
        self._rules = rules
        self._target = load_target(order.recipe.target)
        devices = inventory.select(order.settings.to)
        require_fitting(devices, self._target)
        self._device = devices[0].name
        self._before = Before(order.folder, self._device, order.model)
        self._model = order.folder / f"{order.recipe.name}.onnx"
        refuse_overwriting(self._model, order.recipe, str(order.path))
        given = {
            "kedge_run": FORMAT,
            "kedge": __version__,
            "recipe": str(order.path),
            "model": order.model,
            "version": order.settings.version,
            "target": self._target.name,
            "to": order.settings.to,
            "device": self._device,
            "folder": str(order.folder),
        }
        self._account = Account(order.folder / "run.json", given)
        self.document = self._account.document

    def ask(self) -> None:
        """Ask the device beforehand, before an hour of training, whether it answers and takes this version.

        Raises:
            IntegrityError: the version is below one that the device has had.
            KedgeError: it cannot be reached.
        """
        self._on_device(lambda transport, _: require_taken(transport, self._order.model, self._order.settings.version))

    def go(self, watch: Watch, roll_out: RollOut | None = None) -> int:
        """Do what is left to do; the exit code.

        Args:
            roll_out: takes the release to all devices; None: there is one, and the release is deployed to it.

        Raises:
            KedgeError: what a step stopped at; the document names it too.
        """
        self._order.folder.mkdir(parents=True, exist_ok=True)
        with self._account.step("optimize") as step, watch() as sight:
            optimised = self._optimise(step, sight)
        with self._account.step("build") as step, watch() as sight:
            release = self._build(step, sight, optimised)
        with self._account.step("bench-before") as step, watch() as sight:
            is_there = self._look(step, sight, release, alone=roll_out is None)
        with self._account.step("deploy") as step:
            if roll_out is not None:
                code = self._roll_out(step, release, roll_out)
                if code != ExitCode.OK:
                    return code
            elif is_there:
                step |= {"state": "skipped", "why": f"{self._device} serves this release already"}
            else:
                with watch() as sight:
                    self.document["deploy"] = self._on_device(
                        lambda transport, kind: deploy_to_device(transport, kind, release, sight)
                    ).to_json()
        with self._account.step("bench"), watch() as sight:
            self.document["bench"]["now"] = self._bench(sight)
        return int(ExitCode.OK)

    def _optimise(self, step: dict[str, Any], sight: Sight) -> Optimised:
        name = self._order.recipe.name
        had = event_files(name)
        done = optimise(self._order.recipe, self._model, sight.share, require=self._require_bounds)
        page = write_report(self._model, done.document)
        self.document |= {
            "optimize": done.document,
            "reused_passes": done.reused,
            "events": str(events_of(name)) if event_files(name) - had else None,
        }
        step["files"] = {"model": str(self._model), "report": str(page)}
        if done.passed is False:
            raise refusal(done.document)
        return done

    def _require_bounds(self, spec: ModelSpec) -> None:
        """An engine is built within bounds of its free axes, and this command is told none."""
        if self._target.runtimes[0] == "onnxruntime":
            return
        try:
            shape_profiles(spec, {})
        except BadInputError as error:
            raise BadInputError(
                f"{error.message}; kedge run takes no bounds for them",
                hint="one after the other: kedge optimize, kedge build --shapes, kedge deploy, kedge bench",
            ) from error

    def _build(self, step: dict[str, Any], sight: Sight, optimised: Optimised) -> Release:
        folder = self._order.folder / f"{self._order.recipe.name}.release"
        kept = _offer_of(folder)
        golden = None if optimised.samples is None else optimised.samples.inputs
        options = BuildOptions(name=self._order.model, version=self._order.settings.version)
        built = build_release(self._model, self._target, folder, options, golden, progress=sight.share)
        if kept is not None and kept[0] == built.release.digest:
            # It may have been signed since it was built.
            add_offer(folder, kept[1])
        self.document["build"] = write_build_report(self._model, self._target, built, folder)
        step["files"] = {"release": str(folder), "report": self.document["build"]["report"]}
        return open_release(folder)

    def _look(self, step: dict[str, Any], sight: Sight, release: Release, *, alone: bool) -> bool:
        """Measure what is to be replaced; whether nothing is, for the device serves the release.

        Args:
            alone: there is no other device. Else one that cannot be asked is no reason to leave the others as they are.
        """
        sight.step("asking what serves")
        device, model = self._device, self._order.model
        try:
            live, is_there = self._on_device(lambda transport, _: self._what_serves(transport, release))
        except KedgeError as error:
            if alone:
                raise
            step |= {"state": "skipped", "why": error.message}
            return False
        if live.release is None:
            step |= {"state": "skipped", "why": f"nothing served {model} on {device}"}
        elif is_there:
            step |= {"state": "skipped", "why": f"this very release served {model} on {device}"}
            before = self._before.read(release.digest)
            if before is not None:
                self.document["bench"]["before"] = before
                step["why"] += "; what it replaced was measured by an earlier run"
                step["files"] = {"report": str(self._before.path)}
        else:
            self._measure_before(step, sight, release)
        # Of a deploy that has not ended, or whose end nobody was told, the same deploy tells it.
        return is_there and not live.on_probation and not Pending(device, str(live.release)).read()[0]

    def _what_serves(self, transport: Transport, release: Release) -> tuple[Served, bool]:
        client = AgentClient(transport, ANSWER_S)
        try:
            live = what_serves(client, self._device, self._order.model)
            return live, serves(client, live.release, release.digest)
        finally:
            client.close()

    def _measure_before(self, step: dict[str, Any], sight: Sight, release: Release) -> None:
        try:
            before = self._bench(sight)
        except KedgeError as error:
            # A live release that fails, or a device that is busy, is no reason to keep a better one from it.
            step |= {"state": "skipped", "why": f"what serves could not be measured: {error.message}"}
            return
        self.document["bench"]["before"] = before
        self._before.write(release.digest, before)
        step["files"] = {"report": str(self._before.path)}

    def _roll_out(self, step: dict[str, Any], release: Release, roll_out: RollOut) -> int:
        document, code = roll_out(release.folder)
        self.document["rollout"] = document
        if code != ExitCode.OK:
            step |= {"state": "failed", "why": document["reason"] or f"the rollout is {document['state']}"}
        return code

    def _bench(self, sight: Sight) -> dict[str, Any]:
        return self._on_device(lambda transport, _: run_bench(transport, self._order.model, self._rules, sight.share))

    def _on_device(self, work: Callable[[Transport, Target], _T]) -> _T:
        """Do something on the device; once more where another process's agent served `local`, and ended meanwhile."""
        with open_device(self._device, self._inventory) as (transport, kind):
            try:
                return work(transport, kind)
            except (AgentMissingError, UnreachableError):
                if not isinstance(transport, LocalAgent) or transport.pid is not None:
                    raise
        with open_device(self._device, self._inventory) as (transport, kind):
            return work(transport, kind)


def _offer_of(folder: Path) -> tuple[str, Any] | None:
    """Digest of the release that is there, and what lies beside it; None: there is none."""
    try:
        found = open_release(folder)
        return found.digest, found.offer()
    except KedgeError:
        return None
