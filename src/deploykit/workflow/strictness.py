"""A bundle's own budgets beside those of its family: who writes a manifest doesn't choose what is good enough unseen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deploykit.errors import DeploykitError
from deploykit.models.family import get_family
from deploykit.verdict import GRADES, Budget, Judgement, Verdict, grade_of

#: Bounds of which a smaller one asks for more; of all others a larger one does.
MOST = frozenset({"relative_max", "untied_flips", "accuracy_drop"})


@dataclass(frozen=True)
class Looser:
    """A bound of a family that a bundle is held to less strictly.

    Attributes:
        metric: Field of `Budget`.
        own: The bundle's bound; None where it has none.
        family: The family's.
    """

    metric: str
    own: float | None
    family: float

    def allows(self, value: float) -> bool:
        """Tell whether a value keeps within the family's bound."""
        return value <= self.family if self.metric in MOST else value >= self.family

    @property
    def text(self) -> str:
        """Such as "sqnr_db at least 10 in place of 100"."""
        side = "at most" if self.metric in MOST else "at least"
        own = "unbounded" if self.own is None else f"{side} {self.own:g}"
        return f"{self.metric} {own} in place of {side} {self.family:g}"


def looser(own: Budget, family: Budget) -> Iterator[Looser]:
    """Yield the bounds in which a budget asks for less than its family's."""
    for field in dataclasses.fields(Budget):
        bound, wanted = getattr(own, field.name), getattr(family, field.name)
        if wanted is None or bound == wanted:
            continue
        found = Looser(field.name, bound, wanted)
        if bound is None or not found.allows(bound):
            yield found


def beside_family(
    found: Judgement, budgets: Mapping[str, Budget], family: str, precision: str, held: str = ""
) -> Judgement:
    """Return a judgement that says where its budget is looser than its family's; what passes by that alone is inconclusive.

    Args:
        found: By the bundle's budgets.
        budgets: These.
        family: Name of the family.
        precision: Of the artifact.
        held: Grade of what its file holds, "" where that can't be told: a graph that rounds to 8 bits itself is asked for no
            more than 8 bits can, though nothing was quantized on the way to it.
    """
    if found.ran is None:
        return found
    try:
        wanted = get_family(family).budgets
    except DeploykitError:
        return dataclasses.replace(
            found,
            not_run=(*found.not_run, f"budgets: the family {family!r} that they could be compared with is not here"),
        )
    grade = grade_of(precision, found.ran.precision)
    asked = max(grade, held, key=GRADES.index) if {grade, held} <= set(GRADES) else grade
    gaps = list(looser(budgets[grade], wanted[asked])) if asked in wanted else []
    if not gaps:
        return found
    told = f"its manifest asks for less than the family {family}: {', '.join(gap.text for gap in gaps)}"
    missed = [gap.metric for gap in gaps if gap.metric in found.metrics and not gap.allows(found.metrics[gap.metric])]
    if missed:
        told += f"; by the family's budget it fails {', '.join(missed)}"
    lucky = found.verdict is Verdict.PASS and bool(missed)
    reason = "; ".join(filter(None, (found.reason, told)))
    return dataclasses.replace(found, verdict=Verdict.INCONCLUSIVE if lucky else found.verdict, reason=reason)
