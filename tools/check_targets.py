"""Hold every target profile against docs/schemas/target.schema.json, and against kedge's own reading of it.

    python tools/check_targets.py

`make check` runs it. Besides the schema: the file is named as the profile, and no two profiles claim the same module.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jsonschema

from kedge.errors import BadInputError
from kedge.targets import parse_target, tomllib

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = ROOT / "docs" / "schemas" / "target.schema.json"
PROFILES = ROOT / "targets" / "kedge_targets"


def faults(profiles: Path = PROFILES) -> list[str]:
    """One line a fault, `file: what`."""
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    found: list[str] = []
    modules: dict[str, str] = {}
    for path in sorted(profiles.glob("*.toml")):
        text = path.read_text(encoding="utf-8")
        try:
            target = parse_target(text)
        except BadInputError as error:
            found.append(f"{path.name}: {error}")
            continue
        for error in validator.iter_errors(tomllib.loads(text)):
            where = ".".join(map(str, error.absolute_path)) or "the profile"
            found.append(f"{path.name}: {where}: {error.message}")
        if target.name != path.stem:
            found.append(f"{path.name}: the profile is named {target.name}")
        for module in target.compatible:
            if module in modules:
                found.append(f"{path.name}: {module} is claimed by {modules[module]} too")
            modules[module] = path.name
    return found


if __name__ == "__main__":
    lines = faults()
    for line in lines:
        print(line, file=sys.stderr)
    sys.exit(1 if lines else 0)
