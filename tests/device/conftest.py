"""A device with an agent, one for each kind of device, for all the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.loopback.test_ssh import Cli, make_cli
from tests.support import models
from tests.support.arm64 import DEVICES, NAMES, SuiteDevice

NAME = "unit1"


@dataclass(frozen=True)
class Provisioned:
    """provisioned: what `kedge device provision` said of it."""

    device: SuiteDevice
    cli: Cli
    provisioned: Any
    folder: Path

    def build(self, model: str, version: int, *options: str, seed: int = 0) -> Path:
        """A release of a small classifier for this device, by `kedge build`; the model lies beside it."""
        stem = self.folder / f"{model}-{version}"
        models.classifier(stem.with_suffix(".onnx"), seed=seed)
        np.save(self.folder / "images.npy", models.images(20))
        self.cli(
            *("build", f"{stem}.onnx", "--target", self.device.target, "--name", model),
            *("--model-version", str(version), "--golden", str(self.folder / "images.npy"), "--probation", "0"),
            *("-o", f"{stem}.release", *options),
        )
        return Path(f"{stem}.release")


@pytest.fixture(scope="module", params=NAMES)
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provisioned]:
    with DEVICES[request.param]() as made:
        folder = tmp_path_factory.mktemp("device")
        cli = make_cli(folder)
        key = ("--key", str(made.key)) if made.key is not None else ()
        cli("device", "add", NAME, made.address, "--target", made.target, "--state", made.state, *key)
        cli("device", "trust", NAME, "--fingerprint", made.fingerprint)
        provisioned = cli.json("device", "provision", NAME, "--no-service")
        yield Provisioned(made, cli, provisioned, folder)
