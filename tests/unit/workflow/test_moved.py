"""A bundle that is judged on another class of processors says so, and which verdicts are others there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.bundles import reseal, write_bundle
from tests.support import judgement, manifest

from deploykit.artifact import RunConfig
from deploykit.bundle import Bundle
from deploykit.manifest import Machine, Manifest, parse
from deploykit.runtime import processors
from deploykit.verdict import Judgement, Verdict
from deploykit.workflow.moved import class_on_record, notes
from deploykit.workflow.verify import verify

PASS, FAIL, UNSURE, NOT_RUN = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.NOT_RUN


def judged(verdict: Verdict, processor: str | None, name: str = "net.fp32.ort", device: str = "cpu") -> Judgement:
    found = dataclasses.replace(judgement(verdict), artifact=name, processor=processor)
    return dataclasses.replace(found, run=dataclasses.replace(found.run, device=device))


def recorded(*judgements: Judgement, flags: tuple[str, ...] = ()) -> Manifest:
    machine = Machine("Linux 6", "x86_64", "A CPU", 4, flags, "3.11.7")
    return dataclasses.replace(manifest(), judgements=judgements, machine=machine)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            PASS,
            FAIL,
            ".allow_spinning=0) passed there and fails here",
        ),
        (FAIL, PASS, "failed there and passes here"),
        (PASS, UNSURE, "passed there and is inconclusive here"),
        (UNSURE, PASS, "was inconclusive there and passes here"),
        (PASS, PASS, ": the verdicts are the same"),
        (NOT_RUN, PASS, ": the verdicts are the same"),
    ],
)
def test_another_class_is_told_with_the_verdicts_that_differ(before: Verdict, after: Verdict, told: str) -> None:
    (line,) = notes(recorded(judged(before, "avx512-vnni")), [judged(after, "avx2")])
    assert line.startswith("judged on avx512-vnni before, on avx2 here: ")
    assert told in line


def test_one_line_tells_of_all_artifacts() -> None:
    names = ("a", "b", "c")
    before = recorded(*(judged(PASS, "amx", name) for name in names))
    (line,) = notes(
        before, [judged(verdict, "avx2", name) for verdict, name in zip((FAIL, PASS, FAIL), names, strict=True)]
    )
    assert line.count("passed there and fails here") == 2


def test_the_same_class_what_was_not_run_and_a_gpu_are_not_told() -> None:
    before = recorded(
        judged(PASS, "avx2"), judged(PASS, None, device="cuda:0"), judged(PASS, "amx", "gone"), flags=("avx2",)
    )
    assert list(notes(before, [judged(FAIL, "avx2"), judged(FAIL, None, device="cuda:0")])) == []
    assert list(notes(recorded(judged(PASS, "amx")), [judged(NOT_RUN, None)])) == []


def test_of_older_bundles_the_machine_tells_the_class() -> None:
    old = recorded(judged(PASS, None), flags=("avx2", "avx512f", "avx512_vnni"))
    assert class_on_record(old.judgements[0], old) == "avx512-vnni"
    (line,) = notes(old, [judged(FAIL, "avx2")])
    assert line.startswith("judged on avx512-vnni before, on avx2 here: ")


def test_a_class_that_a_stranger_wrote_stays_in_its_line() -> None:
    (line,) = notes(recorded(judged(PASS, "evil\x1b[2J\nnote: all is well")), [judged(PASS, "avx2")])
    assert "\n" not in line
    assert "\x1b" not in line


def test_a_verified_bundle_names_the_class_and_says_that_it_has_moved(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "b")
    here = processors.here().name
    other = next(one.name for one in processors.CLASSES if one.name != here)
    made = Bundle.open(root).manifest
    for name, told in ((other, [f"judged on {other} before, on {here} here: the verdicts are the same"]), (here, [])):
        before = dataclasses.replace(judged(PASS, name), run=RunConfig("onnxruntime", precision="f32"))
        written = dataclasses.replace(made, judgements=(before,)).sealed()
        (root / "manifest.json").write_bytes(written.to_bytes())
        assert [one.processor for one in parse(written.to_bytes()).judgements] == [name]
        report = verify(root)
        assert {one.processor for one in report.judgements if one.ran} == {here}
        assert [note for note in report.notes if note.startswith("judged on")] == told


def write_rounded(path: Path) -> None:
    """Round the product in a bundle's file to 8 bits, weights to the whole range."""
    model = onnx.load(path)
    weight = numpy_helper.to_array(model.graph.initializer[0])
    scales = np.abs(weight).max(axis=0) / 127
    constants = {
        "w8": np.rint(weight / scales).astype(np.int8),
        "ws": scales.astype(np.float32),
        "wz": np.zeros(len(scales), np.int8),
        "xs": np.asarray(0.05, np.float32),
        "xz": np.asarray(128, np.uint8),
    }
    mean, flat, product = model.graph.node
    product.input[:] = ["xd", "w"]
    nodes = [
        *(mean, flat),
        helper.make_node("QuantizeLinear", ["flat", "xs", "xz"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w8", "ws", "wz"], ["w"], axis=1),
        product,
    ]
    value = helper.make_graph(
        nodes,
        "net",
        model.graph.input,
        model.graph.output,
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(value, opset_imports=model.opset_import, ir_version=model.ir_version), path)


def test_a_file_that_may_saturate_is_told_on_any_machine(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "b")
    path = root / "net.fp32.onnx"
    assert not [note for note in verify(root).notes if "may saturate" in note]
    write_rounded(path)
    reseal(root, lambda _: None)
    for report, name in ((verify(root), "net.fp32.ort"), (verify(path), "net.fp32.ort")):
        (told,) = [note for note in report.notes if "may saturate" in note]
        assert told.startswith(f"{name} may saturate on avx512, avx2, sse4, x86: 1 of its 1 int8 layers")
        assert "session.x64quantprecision=1" in told
