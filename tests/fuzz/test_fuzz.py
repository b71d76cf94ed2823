"""Damaged files: each is read, or refused by an error that says so. `python -m tests.fuzz` tries many more of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import faulty
from tests.fuzz.child import attempt
from tests.fuzz.loaders import LOADERS, Loader, get_loader, sets_of
from tests.fuzz.seeds import written
from tests.fuzz.watch import Watched, run

#: Files that once led to a traceback, a crash or an endless loop: a folder for each, in one for each loader.
CORPUS = Path(__file__).parent / "corpus"
#: Damaged files of each loader that is watched.
FEW = 8
LIGHT = [loader for loader in LOADERS if loader.light]
CALM = {"works", "refused"}


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with Watched() as process:
        yield process


@pytest.mark.parametrize("loader", LIGHT, ids=lambda loader: loader.name)
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(chance=st.randoms(use_true_random=False))
def test_what_is_damaged_is_read_or_refused(loader: Loader, chance: Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outcome = attempt(loader, written(Path(folder), loader.damaged(chance)))
    assert outcome.kind in CALM, outcome.trace


@pytest.mark.parametrize("loader", [loader for loader in LOADERS if not loader.light], ids=lambda loader: loader.name)
def test_what_is_damaged_neither_crashes_nor_hangs_a_library(loader: Loader, watched: Watched) -> None:
    tally = run(loader, map(str, range(FEW)), watched, keep=None)
    assert tally.cases == FEW
    assert not tally.failed, tally.text()


@pytest.mark.parametrize("loader", sorted(path.name for path in CORPUS.iterdir()))
def test_files_that_once_led_to_more_than_a_refusal(loader: str, watched: Watched) -> None:
    cases = [str(path) for path in sorted((CORPUS / loader).iterdir())]
    tally = run(get_loader(loader), cases, watched, keep=None)
    assert tally.cases == len(cases) > 0
    assert not tally.failed, tally.text()


@pytest.mark.parametrize("loader", LOADERS, ids=lambda loader: loader.name)
def test_what_is_sound_is_read(loader: Loader, tmp_path: Path) -> None:
    found = [attempt(loader, written(tmp_path / str(i), files)) for i, files in enumerate(sets_of(loader))]
    kinds = {outcome.kind for outcome in found}
    assert kinds == {"works"} if loader.light else "works" in kinds <= CALM, found


def test_a_case_is_the_same_in_every_run() -> None:
    for loader in LIGHT:
        assert loader.damaged(Random("a")) == loader.damaged(Random("a"))
        assert len({str(loader.damaged(Random(f"{seed}"))) for seed in range(20)}) > 10


@pytest.mark.parametrize(
    ("loader", "kind"),
    [
        *((name, name) for name in ("works", "refused", "traceback", "hang", "memory", "crash")),
        ("internal", "traceback"),
        ("claims", "memory"),
    ],
)
def test_the_watcher_notices(loader: str, kind: str, tmp_path: Path) -> None:
    cases = ["0"] if loader == "memory" else ["0", "1"]
    with Watched("tests.fuzz.faulty", hang=0.3 if kind == "hang" else 30.0) as process:
        tally = run(get_loader(loader, faulty.LOADERS), cases, process, tmp_path)
    assert tally.kinds == {kind: len(cases)}
    assert tally.failed == (kind not in CALM) == (tmp_path / loader / "0" / "why.txt").is_file()
    if tally.failed:
        assert (tmp_path / loader / "0" / "file").read_bytes() == b"damaged"
        assert f"{len(cases)} x {kind}" in tally.text()
