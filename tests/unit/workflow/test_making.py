"""What one target refuses doesn't keep the others from being made."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploykit.errors import UnsupportedError
from deploykit.export.cache import Cache
from deploykit.export.pipeline import Pipeline, Silent
from deploykit.models.original import SourceOptions
from deploykit.verdict import Verdict
from deploykit.workflow import measure
from deploykit.workflow.export import export_model, prepare
from deploykit.workflow.making import Done, make
from deploykit.workflow.options import ExportOptions

#: OpenVINO refuses a node of it.
SPECTRUM = "py:tests.cases.nets:spectrum"
#: So it does of this one, none of whose weights can be stored in fewer bits.
THIN = "py:tests.cases.nets:thin_spectrum"
SOURCE = SourceOptions(image_size=32)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


def made(cache: Cache, model: str, *cells: str) -> Done:
    options = ExportOptions(cells=cells, bench=False, source=SOURCE)
    return make(Pipeline(cache, Silent()), prepare(model, options).draft)


def test_the_others_are_made_and_judged_and_the_refusal_is_told_whole(cache: Cache) -> None:
    done = made(cache, SPECTRUM, "fp32:ort", "fp32:openvino")
    assert [cell.target for cell in done.draft.request.cells] == ["ort"]
    (refusal,) = done.refused
    assert (refusal.artifact, refusal.precision, refusal.target) == ("spectrum.fp32.openvino", "fp32", "openvino")
    for words in ("OpenVINO refuses the graph", "Conv-20", "Mul-20", "Argument shapes are inconsistent"):
        assert words in refusal.reason
    judged = [measure.read_judgement(one.item) for one in done.results.values() if one.item.kind == "judgement"]
    assert [(one.artifact, one.verdict) for one in judged] == [("spectrum.fp32.ort", Verdict.PASS)]
    assert not any("openvino" in node.id for node in done.plan.nodes)


def test_where_nothing_can_be_made_nothing_is_committed(tmp_path: Path) -> None:
    options = ExportOptions(cells=("fp32:openvino", "fp16:openvino"), out=str(tmp_path / "b"), source=SOURCE)
    with pytest.raises(UnsupportedError, match="OpenVINO refuses the graph") as caught:
        export_model(SPECTRUM, options)
    assert "Mul-20" in caught.value.message
    assert not (tmp_path / "b").exists()


def test_each_of_several_reasons_is_told_with_its_artifacts(cache: Cache) -> None:
    with pytest.raises(UnsupportedError, match="nothing of this export can be made:") as caught:
        made(cache, THIN, "fp32:openvino", "int8-weights:openvino", "int8-weights:ort")
    first, *rest = caught.value.message.splitlines()
    assert first == "nothing of this export can be made:"
    assert any(line.startswith("thin_spectrum.fp32.openvino: OpenVINO refuses the graph") for line in rest)
    stored = (
        "thin_spectrum.int8-weights.openvino, thin_spectrum.int8-weights.ort: asked for int8-weights, no weight can be"
    )
    assert any(line.startswith(stored) for line in rest), "one node that two artifacts need"
