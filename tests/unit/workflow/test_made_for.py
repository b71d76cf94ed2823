"""int8 for some classes of processors: weights have their whole range only where every class adds products in 32 bits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.bundles import write_bundle

from deploykit.bundle import Bundle
from deploykit.errors import UsageError
from deploykit.export import plan
from deploykit.export.quantize.stage import QuantizeOptions
from deploykit.export.request import Cell
from deploykit.export.target import get_target
from deploykit.manifest import parse
from deploykit.runtime import processors
from deploykit.runtime.processors import Sums
from deploykit.verdict import Verdict
from deploykit.workflow.export import Preview, prepare
from deploykit.workflow.made_for import cells_for
from deploykit.workflow.options import ExportOptions
from deploykit.workflow.verify import verify

BOTH = ("int8:ort", "int8:openvino")
VNNI = ("amx", "avx512-vnni", "avx-vnni")
HERE = processors.here()


def previewed(*words: str, cells: tuple[str, ...] = BOTH) -> Preview:
    return prepare("tiny-mobilenetv3", ExportOptions(cells=cells, processors=words, bench=False))


def pairs(preview: Preview) -> dict[str, bool]:
    """Return whether the weights of each quantized graph fit pairs of 16 bits."""
    found = {node.id: node.options for node in preview.plan.nodes if node.id.startswith("quantize-")}
    return {name: options.placement.pairs for name, options in found.items() if isinstance(options, QuantizeOptions)}


@pytest.mark.parametrize(("words", "wrong"), [(("vnnii",), "'vnnii'"), (("avx2", ""), "''"), (("VNNI",), "'VNNI'")])
def test_a_class_that_is_none_is_refused_with_the_list(words: tuple[str, ...], wrong: str) -> None:
    with pytest.raises(
        UsageError, match=f"{wrong} is no class of processors; there are: amx, avx512-vnni, .*vnni \\(amx"
    ):
        previewed(*words)


def test_where_nothing_is_made_in_int8_it_is_of_no_use() -> None:
    with pytest.raises(UsageError, match="--for vnni: nothing here is made in int8"):
        previewed("vnni", cells=("fp32:ort",))


def test_by_itself_int8_is_right_everywhere() -> None:
    made = previewed()
    assert pairs(made) == {"quantize-int8-ort": True, "quantize-int8-openvino": True}
    assert not any("processor" in note for note in made.notes)
    assert all(not cell.processors for cell in made.cells)


def test_for_classes_that_add_in_32_bits_weights_have_their_whole_range_and_a_name_of_their_own() -> None:
    made = previewed("vnni")
    assert pairs(made) == {"quantize-int8-vnni-ort": False, "quantize-int8-vnni-openvino": False}
    assert [plan.artifact_name(made.original, cell) for cell in made.cells] == [
        "tiny-mobilenetv3.int8-vnni.ort",
        "tiny-mobilenetv3.int8-vnni.openvino",
    ]
    assert plan.stem_of(made.original, made.cells[0]) == "tiny-mobilenetv3.int8-vnni"
    notes = [note for note in made.notes if "weights of the whole range, for amx, avx512-vnni, avx-vnni" in note]
    assert len(notes) == len(BOTH)
    for note, cell in zip(notes, made.cells, strict=True):
        sums = HERE.sums_in(get_target(cell.target).runs["int8"][0].backend)
        assert ("not judged here" in note) == (sums is not Sums.EXACT)


@pytest.mark.parametrize("words", [("vnni", "avx2"), ("avx512",), ("sse4",), ("x86",)])
def test_one_class_that_may_saturate_keeps_all_of_it_safe(words: tuple[str, ...]) -> None:
    made = previewed(*words)
    assert set(pairs(made).values()) == {True}
    assert [cell.kind for cell in made.cells] == ["int8", "int8"]
    unsafe = words[-1]
    assert sum(f"may add in 16 bits on {unsafe}" in note for note in made.notes) == len(BOTH)


def test_a_runtime_that_a_class_is_not_known_of_stays_safe() -> None:
    made = previewed("wasm-simd")
    assert pairs(made) == {"quantize-int8-wasm-simd-ort": False, "quantize-int8-openvino": True}


def test_several_classes_stand_in_the_name_in_their_order_and_other_precisions_stay() -> None:
    cells = cells_for([Cell("fp32", "ort"), Cell("int8", "ort")], ("vnni", "arm"))
    assert [cell.kind for cell in cells] == ["fp32", "int8-vnni-arm"]
    (engine,) = cells_for([Cell("int8", "trt-rtx")], ("vnni",))
    assert engine.processors == (), "its weights have their whole range by themselves"


def test_elsewhere_it_is_not_judged_and_a_pass_there_is_none_here(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "b")
    made = Bundle.open(root).manifest
    others = tuple(one.name for one in processors.CLASSES if one.name != HERE.name and not one.saturates)[:2]
    artifact = dataclasses.replace(made.artifacts[0], processors=others)
    (root / "manifest.json").write_bytes(dataclasses.replace(made, artifacts=(artifact,)).sealed().to_bytes())
    assert parse((root / "manifest.json").read_bytes()).artifacts[0].processors == others
    report = verify(root)
    for found in report.judgements:
        if HERE.sums_in(found.run.backend) is Sums.EXACT:
            assert found.verdict is Verdict.PASS, "what adds in 32 bits answers the same on every class"
        else:
            assert found.verdict is Verdict.NOT_RUN
            assert found.reason.startswith(f"made for {', '.join(others)}: on {HERE.name}")
    saturates = any(HERE.sums_in(one.run.backend) is not Sums.EXACT for one in report.judgements)
    assert report.exit_code(strict=True, must_run=True) == (6 if saturates else 0)


def test_what_is_made_for_this_class_is_judged(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "b")
    made = Bundle.open(root).manifest
    artifact = dataclasses.replace(made.artifacts[0], processors=(HERE.name,))
    (root / "manifest.json").write_bytes(dataclasses.replace(made, artifacts=(artifact,)).sealed().to_bytes())
    assert {one.verdict for one in verify(root).judgements} == {Verdict.PASS}


def test_the_command_on_record_has_it() -> None:
    from deploykit.workflow.export import _command

    assert "--for vnni,arm" in _command("m", ExportOptions(cells=BOTH, processors=("vnni", "arm")))
