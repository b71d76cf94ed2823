from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit import errors
from deploykit.errors import (
    EXIT_PRECEDENCE,
    BadInputError,
    BakedAxisError,
    CrashError,
    DeploykitError,
    Hint,
    InternalError,
    MissingComponentError,
    ResourceError,
    TimeLimitError,
    UnsupportedError,
    UsageError,
    worst_exit_code,
)

CODES = {
    InternalError: 1,
    UsageError: 2,
    MissingComponentError: 5,
    ResourceError: 5,
    TimeLimitError: 5,
    BadInputError: 7,
    CrashError: 7,
    UnsupportedError: 8,
    BakedAxisError: 8,
}


def below(kind: type[DeploykitError]) -> Iterator[type[DeploykitError]]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


def test_every_error_ends_with_its_documented_code() -> None:
    found = {kind: kind.exit_code for kind in below(DeploykitError) if kind.__module__ == errors.__name__}
    assert found == CODES


def test_no_error_exits_as_success_or_as_a_verdict() -> None:
    """3, 4 and 6 belong to failed and inconclusive gates, 0 to success."""
    assert not {kind.exit_code for kind in below(DeploykitError)} & {0, 3, 4, 6}


@pytest.mark.parametrize("kind", CODES)
def test_errors_carry_message_and_hints_through_pickle(kind: type[DeploykitError]) -> None:
    error = kind("what happened", Hint("do this", "brings that"), Hint("or this"))
    assert str(error) == "what happened"
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is kind
    assert (found.message, found.hints) == (error.message, error.hints)


def test_precedence_is_the_documented_one() -> None:
    assert EXIT_PRECEDENCE == (7, 8, 5, 3, 4, 6)


@pytest.mark.parametrize(("winner", "loser"), list(itertools.combinations((7, 8, 5, 3, 4, 6, 0), 2)))
def test_the_graver_of_two_codes_wins(winner: int, loser: int) -> None:
    assert worst_exit_code([winner, loser]) == worst_exit_code([loser, winner]) == winner


@given(st.lists(st.sampled_from((0, 7, 8, 5, 3, 4, 6)), min_size=1))
def test_order_and_repetition_of_codes_do_not_matter(codes: list[int]) -> None:
    expected = min(codes, key=(7, 8, 5, 3, 4, 6, 0).index)
    assert worst_exit_code(codes) == worst_exit_code(codes[::-1]) == worst_exit_code(codes * 2) == expected


def test_nothing_at_all_is_success() -> None:
    assert worst_exit_code([]) == 0
    assert worst_exit_code([0, 0]) == 0


@pytest.mark.parametrize("code", [1, 2, 130])
def test_a_code_outside_the_order_is_not_swallowed(code: int) -> None:
    assert worst_exit_code([0, code]) == code
