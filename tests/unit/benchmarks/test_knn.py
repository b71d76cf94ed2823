"""Nearest neighbours vote by class, the near ones more than the far ones."""

from __future__ import annotations

import numpy as np
from benchmarks.knn import NEIGHBOURS, classify

RNG = np.random.default_rng(3)


def test_queries_near_a_class_are_of_that_class() -> None:
    centres = RNG.standard_normal((5, 16)).astype(np.float32)
    labels = np.repeat(np.arange(5), 40)
    bank = centres[labels] + 0.1 * RNG.standard_normal((200, 16)).astype(np.float32)
    asked = RNG.integers(0, 5, 1200)
    queries = (3.0 * centres[asked] + 0.3 * RNG.standard_normal((1200, 16))).astype(np.float32)
    assert np.array_equal(classify(bank, labels, queries), asked), "lengths of features say nothing"
    wrong = labels.copy()
    wrong[labels == 2] = 4
    assert np.array_equal(classify(bank, wrong, queries), np.where(asked == 2, 4, asked))


def test_few_that_are_very_near_outvote_many_that_are_not() -> None:
    near, far = np.array([1.0, 0.0]), np.array([0.6, 0.8])
    bank = np.stack([near] * 2 + [far] * (NEIGHBOURS - 2)).astype(np.float32)
    labels = np.array([0] * 2 + [1] * (NEIGHBOURS - 2))
    assert classify(bank, labels, near[None].astype(np.float32)).tolist() == [0]
    assert classify(bank, labels, far[None].astype(np.float32)).tolist() == [1]
