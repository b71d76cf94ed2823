"""Writers at once in one folder, each with a cache of its own: the manifest is true, and who loses says why."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploykit.artifact import sha256_of
from deploykit.bundle import Bundle
from deploykit.locks import LOCK
from tests.e2e.support import Outcome, run

#: Races of each kind.
ROUNDS = int(os.environ.get("DEPLOYKIT_TEST_RACES", "2"))
#: Waits until it is told, then does what an export does at its end, for some time.
WRITER = """
import sys, time
from pathlib import Path
from deploykit.bundle import BundleWriter
from deploykit.errors import DeploykitError
from deploykit.locks import locked
from tests.support import Files, manifest

root, folder, name, digest, before, within = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
time.sleep(float(before))
try:
    with locked(Path(root)):
        writer = BundleWriter(Path(root), digest, replace=False)
        placements = []
        for stem in ("net", "modules", "golden/inputs", "golden/original"):
            source = Path(folder, stem.replace("/", "-"))
            source.write_text(f"{stem} of {name}")
            placements += writer.place(stem, {".bin": source})
        time.sleep(float(within))
        records = [placement.record for placement in placements]
        writer.commit(placements, manifest(Files((records[0],), *records[1:], None), digest=digest))
except DeploykitError as error:
    print(error.message, file=sys.stderr)
    sys.exit(error.exit_code)
"""
REFUSALS = {5: "another export is writing to", 2: "another original"}


def race(root: Path, work: Path, digests: Sequence[str], rng: random.Random, *, ordered: bool) -> list[Outcome]:
    """Let one writer per digest write to `root`: one soon after another, or anyhow."""
    processes = []
    for number, digest in enumerate(digests):
        folder = work / str(number)
        folder.mkdir(parents=True)
        before = 0.03 * number if ordered else rng.uniform(0, 0.1)
        words = [str(root), str(folder), f"{work.name}-{number}", digest, str(before), str(rng.uniform(0, 0.06))]
        environment = {**os.environ, "DEPLOYKIT_CACHE": str(folder / "cache")}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen([sys.executable, "-c", WRITER, *words], env=environment, text=True, **pipes)  # type: ignore[call-overload]
        processes.append(process)
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [Outcome(process.wait(), *map(str, process.communicate())) for process in processes]


def assert_true(root: Path) -> None:
    """The manifest that is there describes what is there, and nothing else is."""
    bundle = Bundle.open(root)
    bundle.check()
    names = {record.path for record in bundle.manifest.files}
    assert all(sha256_of(root / record.path) == record.sha256 for record in bundle.manifest.files)
    assert {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()} == names | {
        "manifest.json"
    }


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "random"])
@pytest.mark.parametrize("writers", [2, 4])
def test_whoever_wins_the_manifest_is_true(tmp_path: Path, writers: int, ordered: bool) -> None:
    rng = random.Random(writers)
    root, won = tmp_path / "bundle", 0
    for number in range(ROUNDS):
        digests = [rng.choice("ab") * 64 if number % 2 else "a" * 64 for _ in range(writers)]
        outcomes = race(root, tmp_path / str(number), digests, rng, ordered=ordered)
        codes = [outcome.code for outcome in outcomes]
        assert all(REFUSALS[outcome.code] in outcome.err for outcome in outcomes if outcome.code), outcomes
        won += codes.count(0)
        assert_true(root)
    assert won >= ROUNDS // 2


def test_whole_exports_at_once(tmp_path: Path) -> None:
    """Two of one original and one of another, each with another cache."""
    out = tmp_path / "bundle"
    requests = (("tiny-convnext", "1"), ("tiny-convnext", "2"), ("tiny-mobilenetv3", "1"))
    processes = []
    for number, (model, batch) in enumerate(requests):
        options = ["--ort", "--no-verify", "--no-bench", "--json", "--batch", batch, "--out", str(out)]
        environment = {**os.environ, "DEPLOYKIT_CACHE": str(tmp_path / f"cache{number}")}
        words = [sys.executable, "-m", "deploykit", "export", model, *options]
        processes.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment))
    for process in processes:
        _, error = process.communicate()
        assert process.returncode in {0, *REFUSALS}
        assert not process.returncode or REFUSALS[process.returncode] in error.decode()
    assert_true(out)
    assert 0 in [process.returncode for process in processes]
    again = run("inspect", str(out), "--json")
    assert (again.code, len(json.loads(again.out)["artifacts"])) == (0, 1)
    assert not (out / LOCK).exists()
