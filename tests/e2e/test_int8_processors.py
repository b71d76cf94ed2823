"""int8 on any processor: products as large as they get, made here and brought along."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from deploykit.bundle import Bundle, load_tensors
from deploykit.runtime import drift, processors
from deploykit.verdict import Judgement
from tests.cases.files import write_shades
from tests.e2e.support import run

CASES = Path(__file__).parents[1] / "cases"


class Images(CalibrationDataReader):  # type: ignore[misc]
    """Golden inputs, for a quantizer of somebody else's."""

    def __init__(self, rows: dict[str, Any]) -> None:
        ((name, array),) = rows.items()
        self.rows: Iterator[dict[str, Any]] = iter([{name: array[i : i + 1]} for i in range(len(array))])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.rows, None)


@pytest.mark.filterwarnings("ignore")
def test_products_as_large_as_they_get_pass_and_a_file_of_them_is_judged_by_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(CASES), prepend=":")
    images = write_shades(tmp_path / "images")
    words = ("--golden", str(images), "--no-bench")
    made = run(
        *("export", "py:nets:bright", "--image-size", "32", "--fp32", "--int8", "--ort", "--openvino"),
        *("--calib", str(images), "--calib-few", *words, "--out", str(tmp_path / "b")),
    )
    assert made.code == 0, made.out + made.err
    bundle = Bundle.open(tmp_path / "b")
    for judgement in bundle.manifest.judgements:
        if ".int8." in judgement.artifact:
            assert judgement.metrics["sqnr_db"] > 25.0, judgement.artifact
            assert judgement.metrics["int8_share"] == 1.0
    assert not bundle.manifest.repairs

    golden = load_tensors(tmp_path / "b" / bundle.manifest.golden.inputs.path)
    float_file = next((tmp_path / "b").glob("*.fp32.onnx"))
    signed = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_static(float_file, tmp_path / "q.onnx", Images(golden), **signed)
    brought = run("export", str(tmp_path / "q.onnx"), "--ort", *words, "--out", str(tmp_path / "q"))
    assert "may saturate on avx512, avx2, sse4, x86: " in brought.out, "whatever this machine is"
    assert "may saturate" not in made.out, "what is made here is right everywhere"
    kept = Bundle.open(tmp_path / "q")
    (judged,) = kept.manifest.judgements
    references = load_tensors(kept.root / kept.manifest.golden.references["original"].path)
    wanted = load_tensors(tmp_path / "b" / bundle.manifest.golden.references["original"].path)
    (own,), (expected,) = references.values(), wanted.values()
    assert drift.sqnr_db(expected, own, drift.mean_answer(expected)) > 15.0, "it is computed by what stands in it"
    assert kept.manifest.budgets["f32"].sqnr_db == kept.manifest.budgets["int8"].sqnr_db
    _check_kernels(judged, brought.code, brought.out)


def _check_kernels(judged: Judgement, code: int, told: str) -> None:
    """Weights of others fit no pairs: right where those don't saturate, told apart where they do."""
    here = processors.here()
    assert (code, judged.verdict.value) == ((3, "fail") if here.saturates else (0, "pass"))
    if here.saturates:
        assert f"pairs of products saturate in 16 bits on {here.name}" in judged.reason
        assert judged.reason in " ".join(told.split())
        assert judged.metrics["sqnr_db"] < 10.0
    else:
        assert judged.metrics["sqnr_db"] > 15.0
