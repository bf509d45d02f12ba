"""The grammar of `--to`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.errors import BadInputError
from kedge.fleet.entries import Entries, read_entries
from kedge.fleet.inventory import Inventory
from kedge.fleet.selection import choose

NAMES = [f"cam-{number}" for number in range(1, 7)]


def fleet() -> Entries:
    text = '["@odd"]\ndevices = ["cam-5", "cam-1", "cam-3"]\n["@empty"]\n'
    text += '[gate]\njump_host = true\nlabels = { floor = "9" }\n'
    for number, name in enumerate(NAMES, 1):
        text += f'[{name}]\ngroups = ["{"low" if number < 4 else "high"}"]\nlabels = {{ floor = "{number % 2}" }}\n'
    return read_entries(Path("devices.toml"), text)


FLEET = fleet()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cam-2", "2"),
        ("cam-4,cam-2,cam-4", "42"),
        ("@all", "123456"),
        ("@low", "123"),
        # In the order in which the group lists them.
        ("@odd", "513"),
        ("cam-3,@odd", "351"),
        ("cam-[12]", "12"),
        ("*-6, cam-?", "612345"),
        ("label:floor=0", "246"),
        ("@low&label:floor=1", "13"),
        ("@odd&@low", "13"),
        ("@odd & @low & !cam-3", "1"),
        ("@low&!label:floor=1", "2"),
        ("!cam-1&@low", "23"),
        ("@all,!@odd", "246"),
        ("!cam-4,@high", "56"),
        ("@all,!@low,!label:floor=0", "5"),
        ("@empty,cam-1", "1"),
    ],
)
def test_a_selection_names_devices_in_the_order_of_its_terms(text: str, names: str) -> None:
    assert choose(text, FLEET) == [f"cam-{number}" for number in names]


def test_local_is_chosen_by_its_name_alone() -> None:
    assert choose("cam-1,local", FLEET) == ["cam-1", "local"]
    assert "local" not in choose("@all,*", FLEET)


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("", "not a selection", "as in"),
        ("cam-1,", "not a selection", "as in"),
        ("cam-1&", "not a selection", "as in"),
        ("!", "not a selection", "as in"),
        ("cam-9", "no device named 'cam-9'", "cam-1, cam-2"),
        ("gate", "jump host", "behind it"),
        ("@nobody", "no group named '@nobody'", "@odd, @empty, @low, @high, @all"),
        ("dog-*", "no device's name is like 'dog-*'", "cam-1"),
        ("label:flor=1", "no device has a label named 'flor'", "labels: floor"),
        ("label:floor=9", "no device has the label floor=9", "values of floor: 0, 1"),
        ("label:floor", "not a label", "label:site=berlin"),
        ("@low&@high", "no device is meant by", "devices: cam-1"),
        ("@empty", "no device is meant by", "devices: cam-1"),
        ("!cam-1", "no device is meant by", "@all,!cam-3"),
        ("@all,!@nobody", "no group named '@nobody'", "groups"),
        ("!cam-1&!cam-2,@all", "says not from what", "comma"),
    ],
)
def test_what_selects_nothing_is_told_with_what_there_is(text: str, said: str, hint: str) -> None:
    with pytest.raises(BadInputError) as caught:
        choose(text, FLEET)
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_a_hint_does_not_list_a_thousand_devices(tmp_path: Path) -> None:
    path = tmp_path / "devices.toml"
    path.write_text("".join(f'[d{n}]\nhost = "h"\nuser = "u"\ntarget = "t"\n' for n in range(1000)))
    with pytest.raises(BadInputError) as caught:
        Inventory(path).select("cam-1")
    assert "and 981 more" in caught.value.hint
    assert len(caught.value.hint) < 300


parts = st.sampled_from([*NAMES, "@all", "@odd", "@low", "@high", "cam-[1-4]", "label:floor=0"])


def members(what: str) -> set[str]:
    """The same by the definition, a device at a time."""
    number = {name: int(name[-1]) for name in NAMES}
    tests = {
        "@all": lambda n: True,
        "@odd": lambda n: n % 2 == 1,
        "@low": lambda n: n < 4,
        "@high": lambda n: n > 3,
        "cam-[1-4]": lambda n: n < 5,
        "label:floor=0": lambda n: n % 2 == 0,
    }
    return {name for name in NAMES if (tests[what](number[name]) if what in tests else name == what)}


@given(st.lists(st.lists(st.tuples(st.booleans(), parts), min_size=1, max_size=3), min_size=1, max_size=4))
def test_selections_are_the_sets_that_their_terms_say(terms: list[list[tuple[bool, str]]]) -> None:
    text = ",".join("&".join(f"{'!' if negated else ''}{what}" for negated, what in term) for term in terms)
    chosen: set[str] = set()
    taken: set[str] = set()
    for term in terms:
        if all(negated for negated, _ in term):
            taken |= members(term[0][1])
        else:
            sets = [set(NAMES) - members(what) if negated else members(what) for negated, what in term]
            chosen |= set.intersection(*sets)
    if any(len(term) > 1 and all(negated for negated, _ in term) for term in terms) or not chosen - taken:
        with pytest.raises(BadInputError):
            choose(text, FLEET)
        return
    found = choose(text, FLEET)
    assert len(found) == len(set(found))
    assert set(found) == chosen - taken
