"""Sites are data: each of a class that there is, and found by its name alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import UsageError
from deploykit.runtime import processors
from deploykit.runtime.sites.table import SITES, get_site, get_sites

NAMES = [site.name for site in SITES]


def test_every_site_is_of_a_class_that_there_is_and_of_its_instruction_set() -> None:
    classes = {one.name: one for one in processors.CLASSES}
    assert len(set(NAMES)) == len(NAMES)
    for site in SITES:
        assert set(site.architecture.machines) & set(classes[site.processor].machines), site.name


def test_there_are_x86_classes_that_saturate_and_arm_classes_that_do_not() -> None:
    classes = {one.name: one for one in processors.CLASSES}
    saturating = {site.name for site in SITES if classes[site.processor].saturates}
    assert saturating == {"avx2", "sse4"}
    assert {"arm64", "arm64-a72", "arm64-n1"} <= set(NAMES)


@pytest.mark.parametrize(("typed", "near"), [("avx", "avx2"), ("arm64-a73", "arm64-a72"), ("sse", "sse4")])
def test_an_unknown_name_is_refused_with_the_near_ones(typed: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"'{typed}' is no site that I know: there are avx2, sse4, arm64") as caught:
        get_site(typed)
    assert near in [hint.action for hint in caught.value.hints]


@given(st.text())
def test_whatever_is_typed_is_a_site_or_refused(typed: str) -> None:
    try:
        assert get_site(typed).name == typed
    except UsageError:
        assert typed not in NAMES


def test_a_site_that_is_named_twice_is_one() -> None:
    assert [site.name for site in get_sites(["arm64", "avx2", "arm64"])] == ["arm64", "avx2"]
