"""One HTML report of each kind, made by its command on the small network for digits; each is made once a workshop."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from kedge.cli import main
from kedge.errors import ExitCode
from kedge.model.samples import Samples
from tests.support.digits import CPU, digits, trained_net

ORIN = "orin-nano-8gb"


class Workshop:
    """Makes the reports in one folder, one from what another left: what was optimised is built and measured."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def report(self, kind: str) -> Path:
        """The page of a kind, of KINDS."""
        return KINDS[kind](self)

    def kedge(self, *words: object, codes: tuple[int, ...] = (0,)) -> None:
        """Run a command; the configuration and the device named `local` are the workshop's."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("CONFIG", "STATE"):
                patch.setenv(f"XDG_{name}_HOME", str(self.folder / name.lower()))
            assert main([*map(str, words), "--quiet"]) in codes, words

    @cached_property
    def optimize(self) -> Path:
        train, evaluation = digits()
        model = self.folder / "digits.onnx"
        trained_net(train, self.folder).write(model)
        data = {"calibration": train.take(slice(400, 464)), "evaluate": evaluation.first(300)}
        given = [word for name, samples in data.items() for word in (f"--{name}", self._saved(name, samples))]
        out = self.folder / "small.onnx"
        wanted = ("--quantize", "auto", "--trials", 8, "--max-drop", 0.02, "--robustness", 60)
        self.kedge("optimize", model, "--target", CPU, *given, *wanted, "-o", out)
        return out.with_suffix(".html")

    def _saved(self, name: str, samples: Samples) -> Path:
        assert samples.labels is not None
        np.savez(self.folder / f"{name}.npz", x=samples.inputs["image"], labels=samples.labels)
        return self.folder / f"{name}.npz"

    @cached_property
    def preflight(self) -> Path:
        """Quantised for a processor, it will not run in TensorRT."""
        page = self.folder / "preflight.html"
        model = self.optimize.with_suffix(".onnx")
        self.kedge("preflight", model, "--target", ORIN, "--report", page, codes=(ExitCode.INCOMPATIBLE,))
        return page

    @cached_property
    def release(self) -> Path:
        release = self.folder / "digits.release"
        model = self.optimize.with_suffix(".onnx")
        self.kedge("build", model, "--target", CPU, "--name", "digits", "--probation", 0, "-o", release)
        return release

    @cached_property
    def build(self) -> Path:
        return self.release.with_name("digits.release.build.html")

    @cached_property
    def served(self) -> str:
        """A device that serves the release."""
        self.kedge("deploy", self.release, "--to", "local")
        return "local"

    @cached_property
    def bench(self) -> Path:
        page = self.folder / "bench.html"
        loops = ("--warmup-ms", 5, "--duration-ms", 60, "--concurrency", "1,2", "--waterfall", "--layers")
        self.kedge("bench", "digits", "--on", self.served, *loops, "--html", page)
        return page

    @cached_property
    def doctor(self) -> Path:
        """Whether this machine is well is not for a test to say."""
        page = self.folder / "doctor.html"
        self.kedge("doctor", "--on", self.served, "--html", page, codes=(0, ExitCode.DOCTOR))
        return page

    @cached_property
    def history(self) -> Path:
        """What its recorder has of the bench's requests."""
        page = self.folder / "history.html"
        assert self.bench.is_file()
        self.kedge("history", "--on", self.served, "--since", "90s", "--html", page)
        return page

    @cached_property
    def rollout(self) -> Path:
        """To the one device that there is, which serves the release already or takes it."""
        page = self.folder / "rollout.html"
        self.kedge("deploy", self.release, "--to", "local", "--canary", "100%")
        self.kedge("rollout", "status", "--html", page)
        return page

    @cached_property
    def snapshot(self) -> Path:
        """Of a device that has answered requests, and whose recorder has seconds of them."""
        taken, page = self.folder / "digits.tar.zst", self.folder / "snapshot.html"
        assert self.bench.is_file()
        self.kedge("snapshot", "--on", self.served, "-o", taken)
        self.kedge("snapshot", "open", taken, "-o", page)
        return page


KINDS: dict[str, Callable[[Workshop], Path]] = {
    "optimize": lambda workshop: workshop.optimize,
    "build": lambda workshop: workshop.build,
    "bench": lambda workshop: workshop.bench,
    "doctor": lambda workshop: workshop.doctor,
    "history": lambda workshop: workshop.history,
    "snapshot": lambda workshop: workshop.snapshot,
    "preflight": lambda workshop: workshop.preflight,
    "rollout": lambda workshop: workshop.rollout,
}
