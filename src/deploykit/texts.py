"""Texts of others, as they are shown: nothing in them moves a cursor, changes colours, hides or turns round what is read."""

from __future__ import annotations

import unicodedata

#: Categories of Unicode that do something instead of being seen: controls, formats, surrogates, ends of lines and paragraphs.
_ACTIVE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
#: Longest name.
_LONGEST = 200


def printable(text: str, kept: str = "\n\t") -> str:
    """Return a text with every character that isn't seen written as Python escapes it.

    Args:
        text: From anywhere.
        kept: Characters that stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one in kept or unicodedata.category(one) not in _ACTIVE else _escaped(one) for one in text)


def one_line(text: str) -> str:
    """Return a text as `printable` does, on one line."""
    return printable(text, kept="")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def name_fault(name: str) -> str:
    """Return why a text is no name that files, tables and programs can show, or ""."""
    if not name or len(name) > _LONGEST:
        return f"it has {len(name)} characters"
    strange = next((one for one in name if one in "/\\" or unicodedata.category(one) in _ACTIVE), "")
    return f"it holds {strange!r}" if strange else ""
