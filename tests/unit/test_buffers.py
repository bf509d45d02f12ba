from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kedge_agent.errors import AgentError
from kedge_agent.runtime.buffers import ALIGNMENT, Arena, HostBlock, round_up

F4 = np.dtype("f4")


class Counted(HostBlock):
    """Plain memory that knows whether it was given back."""

    made: list[Counted] = []  # noqa: RUF012 - emptied by each test that reads it

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.closed = 0
        self.made.append(self)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def made() -> list[Counted]:
    Counted.made.clear()
    return Counted.made


def test_sizes_are_rounded_to_the_alignment_and_are_never_nothing() -> None:
    assert [round_up(size) for size in (0, 1, 256, 257)] == [256, 256, 256, 512]


def test_names_that_are_reserved_together_lie_in_one_block_each_aligned_and_apart(made: list[Counted]) -> None:
    arena = Arena(Counted)
    arena.reserve({"a": 5, "b": 300, "c": 0})
    assert [block.size for block in made] == [256 + 512 + 256]
    spans = []
    for name, count in (("a", 1), ("b", 75)):
        view = arena.tensor(name, F4, (count,))
        assert view.ctypes.data == arena.address(name)
        assert arena.address(name) % ALIGNMENT == 0
        spans.append((view.ctypes.data, view.ctypes.data + view.nbytes))
    assert spans[0][1] <= spans[1][0]
    assert len(made) == 1
    assert arena.size == 1024


def test_what_fits_moves_nothing(made: list[Counted]) -> None:
    arena = Arena(Counted)
    arena.reserve({"a": 1000, "b": 8})
    before = (arena.generation, arena.address("a"), arena.address("b"))
    arena.reserve({"a": 1024, "b": 1})
    arena.reserve({"b": 8})
    assert (arena.generation, arena.address("a"), arena.address("b")) == before


def test_where_one_lacks_room_all_move_and_none_gets_less_than_it_had(made: list[Counted]) -> None:
    arena = Arena(Counted)
    arena.reserve({"a": 1024, "b": 256})
    before = arena.generation
    arena.reserve({"a": 1, "b": 257})
    assert arena.generation > before
    assert [block.closed for block in made] == [1, 0]
    assert made[1].size == 1024 + 512


def test_old_memory_is_given_back_before_new_memory_is_asked_for() -> None:
    held: list[int] = []
    most: list[int] = []

    class Block(HostBlock):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            held.append(size)
            most.append(sum(held))

        def close(self) -> None:
            held.remove(self.size)

    arena = Arena(Block)
    arena.reserve({"a": 1 << 20})
    arena.reserve({"a": 2 << 20})
    assert max(most) == 2 << 20


def test_where_there_is_no_memory_the_names_have_none_and_may_ask_for_less() -> None:
    def limited(size: int) -> HostBlock:
        if size > 1024:
            raise AgentError("no memory", kind="space")
        return HostBlock(size)

    arena = Arena(limited)
    arena.reserve({"a": 512})
    before = arena.generation
    with pytest.raises(AgentError, match="no memory"):
        arena.reserve({"a": 4096})
    assert arena.generation > before
    assert arena.tensor("a", F4, (3,)).shape == (3,)


def test_memory_that_is_not_aligned_is_refused_and_given_back() -> None:
    class Crooked(HostBlock):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            self.address += 8
            self.closed = False
            blocks.append(self)

        def close(self) -> None:
            self.closed = True

    blocks: list[Any] = []
    with pytest.raises(AgentError, match="not aligned to 256"):
        Arena(Crooked).reserve({"a": 1})
    assert blocks[0].closed


def test_a_closed_arena_gives_all_back_once_and_refuses(made: list[Counted]) -> None:
    arena = Arena(Counted)
    arena.tensor("a", F4, (4,))
    arena.tensor("b", F4, (4,))
    before = arena.generation
    arena.close()
    arena.close()
    assert [block.closed for block in made] == [1, 1]
    assert arena.generation > before
    with pytest.raises(AgentError, match="given back"):
        arena.tensor("a", F4, (4,))


def test_views_of_plain_memory_outlive_the_arena() -> None:
    arena = Arena()
    view = arena.tensor("a", F4, (4,))
    view[...] = 3
    arena.close()
    assert view.tolist() == [3, 3, 3, 3]
