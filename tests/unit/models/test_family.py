from __future__ import annotations

import pytest

from deploykit import registry
from deploykit.models.family import GROUP, get_family
from deploykit.verdict import GRADES


@pytest.mark.parametrize("name", registry.names(GROUP))
def test_every_grade_has_bounds_and_a_coarser_one_no_tighter_ones(name: str) -> None:
    budgets = get_family(name).budgets
    assert set(budgets) == set(GRADES)
    reduced = [budgets[grade] for grade in GRADES[1:]]
    for least in ("sqnr_db", "cosine", "agreement", "latent_psnr_db"):
        bounds = [getattr(budget, least) for budget in reduced]
        assert set(bounds) == {None} or bounds == sorted(bounds, reverse=True), least
    drops = [budget.accuracy_drop for budget in reduced]
    assert drops == sorted(drops, key=lambda drop: drop if drop is not None else 1.0)
