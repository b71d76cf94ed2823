from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit import texts


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("dög · 5 × 3\N{NO-BREAK SPACE}ms ✔", "dög · 5 × 3\N{NO-BREAK SPACE}ms ✔"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\rb\x08c\x07\x00", "a\\rb\\x08c\\x07\\x00"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\u2028x\x85y\x9bz", "\\u2028x\\x85y\\x9bz"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_is_not_seen_is_escaped(text: str, shown: str) -> None:
    assert texts.printable(text) == shown
    assert texts.one_line(text) == shown


def test_lines_stay_lines_unless_one_is_meant() -> None:
    assert texts.printable("a\nb\tc") == "a\nb\tc"
    assert texts.one_line("a\nb\tc") == "a\\nb\\tc"


@given(st.text())
def test_any_text_can_be_shown(text: str) -> None:
    shown = texts.one_line(text)
    assert not any(ord(one) < 32 or 127 <= ord(one) < 160 for one in shown)
    assert texts.one_line(shown) == shown
    shown.encode("utf-8")


@pytest.mark.parametrize("name", ["", "a/b", "a\\b", "a\nb", "a\x1b[0m", "x" * 201, "\u202e", "a\0"])
def test_names_that_can_not_be_shown_or_lead_elsewhere_are_none(name: str) -> None:
    assert texts.name_fault(name)


@pytest.mark.parametrize("name", ["net.fp32.ort", "mein Netz (2)", "猫", "a:b", "x" * 200])
def test_other_names_are_names(name: str) -> None:
    assert texts.name_fault(name) == ""
