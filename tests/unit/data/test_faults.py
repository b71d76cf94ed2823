from __future__ import annotations

from functools import partial

import pytest

from deploykit.data.faults import NAMED, Faults
from deploykit.errors import BadInputError, Hint, UsageError


def test_nothing_is_refused_for_nothing() -> None:
    Faults("here").refuse(UsageError)


def test_one_fault_is_one_line_and_keeps_its_hints() -> None:
    faults, hint = Faults("here"), Hint("do", "this")
    faults.add("a is broken")
    with pytest.raises(UsageError) as caught:
        faults.refuse(UsageError, hint)
    assert (caught.value.message, caught.value.hints) == ("here: a is broken", (hint,))


@pytest.mark.parametrize("count", [2, NAMED, NAMED + 1, 1000])
def test_the_first_are_named_and_all_are_counted(count: int) -> None:
    faults, told = Faults("here"), list[int]()

    def tell(index: int) -> str:
        told.append(index)
        return f"{index} is broken"

    for index in range(count):
        faults.add(partial(tell, index))
    with pytest.raises(BadInputError) as caught:
        faults.refuse(BadInputError)
    named = [f"  {index} is broken" for index in range(min(count, NAMED))]
    rest = [f"  and {count - NAMED} more"] if count > NAMED else []
    assert caught.value.message.splitlines() == [f"here has {count} faults:", *named, *rest]
    assert told == list(range(min(count, NAMED)))
