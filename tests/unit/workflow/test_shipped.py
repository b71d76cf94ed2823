"""Which artifact of a bundle is run: the fastest that passed, as far as it can run here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
from tests.support import FILES, judgement, manifest, record, timing

from deploykit.artifact import RunConfig
from deploykit.errors import BadInputError, MissingComponentError, UsageError
from deploykit.manifest import Machine, parse
from deploykit.runtime import processors
from deploykit.verdict import Verdict
from deploykit.workflow.shipped import chosen

PASS, FAIL, UNSURE = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE
RUN = RunConfig("onnxruntime", precision="f32")


def graph(name: str) -> bytes:
    """Return an ONNX file that names its producer and holds nothing else."""
    made: bytes = onnx.ModelProto(ir_version=8, producer_name=name).SerializeToString()
    return made


def bundle(root: Path, verdicts: Mapping[str, Verdict], medians: Mapping[str, float], run: RunConfig = RUN) -> Path:
    """Write a bundle of one file per name, judged and timed so."""
    made = manifest(FILES)
    (artifact,) = made.artifacts
    artifacts = tuple(
        dataclasses.replace(artifact, name=name, files=(record(f"{name}.onnx", graph(name)),), runs=(run,))
        for name in verdicts
    )
    judged = tuple(
        dataclasses.replace(judgement(verdict), artifact=name, run=run) for name, verdict in verdicts.items()
    )
    timed = tuple(
        dataclasses.replace(timing(), candidate=name, run=dataclasses.replace(run, threads=2), median_ms=median)
        for name, median in medians.items()
    )
    written = dataclasses.replace(made, artifacts=artifacts, judgements=judged, timings=timed).sealed()
    root.mkdir()
    (root / "manifest.json").write_bytes(written.to_bytes())
    for name in verdicts:
        (root / f"{name}.onnx").write_bytes(graph(name))
    return root


@pytest.mark.parametrize(
    ("verdicts", "medians", "name", "reason"),
    [
        ({"a": PASS, "b": PASS, "c": FAIL}, {"a": 3.0, "b": 2.0, "c": 1.0}, "b", "the fastest of 2 that passed"),
        ({"a": UNSURE, "b": PASS}, {"a": 1.0}, "b", "the one that passed"),
        ({"a": PASS, "b": PASS}, {}, "a", "the first of 2 that passed"),
        ({"a": PASS, "b": PASS}, {"b": 9.0}, "b", "the fastest of 2 that passed"),
        ({"a": PASS}, {"a": 1.0}, "a", "the one that passed"),
    ],
)
def test_the_fastest_that_passed_is_run(
    tmp_path: Path, verdicts: dict[str, Verdict], medians: dict[str, float], name: str, reason: str
) -> None:
    found = chosen(bundle(tmp_path / "b", verdicts, medians))
    assert found.path == tmp_path / "b" / f"{name}.onnx"
    assert found.run == RUN
    assert found.reason.startswith(reason)
    assert all(other in found.reason for other in verdicts if other != name), "the others are named"


def test_where_nothing_passed_the_user_has_to_choose(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no artifact of .* has passed: a .* fail, b .* inconclusive") as caught:
        chosen(bundle(tmp_path / "b", {"a": FAIL, "b": UNSURE}, {}))
    assert [Path(hint.action).name for hint in caught.value.hints] == ["a.onnx", "b.onnx"]


def test_what_passed_elsewhere_and_can_not_run_here_is_told(tmp_path: Path) -> None:
    root = bundle(tmp_path / "b", {"a": PASS}, {}, RunConfig("onnxruntime", device="cuda:7", precision="f32"))
    with pytest.raises(MissingComponentError, match="that passed can run here: "):
        chosen(root)


def test_a_changed_file_is_not_run(tmp_path: Path) -> None:
    root = bundle(tmp_path / "b", {"a": PASS}, {})
    (root / "a.onnx").write_bytes(b"b")
    with pytest.raises(BadInputError, match="its manifest says"):
        chosen(root)


def test_of_a_folder_the_only_artifact_is_run(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").touch()
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "folder.onnx").mkdir()
    assert chosen(tmp_path).path == tmp_path / "net.onnx"
    (tmp_path / "other.xml").touch()
    with pytest.raises(UsageError, match="is no bundle and holds 2 artifacts") as caught:
        chosen(tmp_path)
    assert len(caught.value.hints) == 2


def test_of_a_folder_of_bundles_they_are_named(tmp_path: Path) -> None:
    bundle(tmp_path / "b", {"a": PASS}, {})
    with pytest.raises(UsageError, match="holds no artifact, but bundles") as caught:
        chosen(tmp_path)
    assert [hint.action for hint in caught.value.hints] == [str(tmp_path / "b")]


def test_a_choice_that_was_made_on_another_class_of_processors_is_told(tmp_path: Path) -> None:
    root = bundle(tmp_path / "b", {"a": PASS, "b": PASS}, {"a": 2.0, "b": 3.0})
    here = processors.here()
    made = parse((root / "manifest.json").read_bytes())
    other = next(one for one in processors.CLASSES if one.machines == processors.X86 and one.name != here.name)
    for one, told in ((other, f"judged on {other.name} and timed on {other.name}, not on {here.name}"), (here, "")):
        machine = Machine("Linux 6", one.machines[0] if one.machines else "?", "A CPU", 4, tuple(one.flags), "3.11.7")
        (root / "manifest.json").write_bytes(dataclasses.replace(made, machine=machine).sealed().to_bytes())
        found = chosen(root)
        assert found.reason.startswith("the fastest of 2 that passed; " + (f"{told}: " if told else "beside it: b"))
    untimed = dataclasses.replace(made, machine=machine, timings=())
    judgements = tuple(dataclasses.replace(one, processor=other.name) for one in made.judgements)
    (root / "manifest.json").write_bytes(dataclasses.replace(untimed, judgements=judgements).sealed().to_bytes())
    assert f"; judged on {other.name}, not on {here.name}: `deploykit verify`" in chosen(root).reason


def test_a_busy_machine_does_not_choose(tmp_path: Path) -> None:
    root = bundle(tmp_path / "b", {"a": PASS, "b": PASS}, {"a": 1.0, "b": 9.0})
    made = parse((root / "manifest.json").read_bytes())
    first, second = made.timings
    timings = (dataclasses.replace(first, doubts=("machine busy: others",)), second)
    (root / "manifest.json").write_bytes(dataclasses.replace(made, timings=timings).sealed().to_bytes())
    assert chosen(root).path.name == "b.onnx"
