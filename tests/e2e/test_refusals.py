"""One target refuses a model: the others are made, judged and committed, and the process says 8."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.support import run

WORDS = ("export", "py:tests.cases.nets:spectrum", "--image-size", "32", "--no-bench")


def test_the_others_are_made_and_the_refusal_is_a_row(tmp_path: Path) -> None:
    bundle = tmp_path / "b"
    outcome = run(*WORDS, "--ort", "--openvino", "--out", str(bundle))
    assert outcome.code == 8, outcome.err
    (row,) = (line for line in outcome.out.splitlines() if line.startswith("fp32.openvino"))
    assert row.split() == ["fp32.openvino", "✘", "refused"]
    for words in ("OpenVINO refuses the graph", "Mul-20 with a message", "Argument shapes are inconsistent"):
        assert words in outcome.out
    assert outcome.out.strip().splitlines()[-1] == "1 passed, 1 refused, 0 not run"
    assert (bundle / "spectrum.fp32.onnx").is_file()
    assert not list(bundle.glob("*.xml"))
    assert run("verify", str(bundle)).code == 0
    assert "✘ refused" in run("inspect", str(bundle)).out
    manifest = json.loads(run("inspect", str(bundle), "--json").out)
    assert [one["target"] for one in manifest["refused"]] == ["openvino"]
    again = run(*WORDS, "--ort", "--openvino", "--out", str(bundle), "--json")
    assert again.code == 8
    told = json.loads(again.out)
    assert told["verdict"] == "fail"
    assert [one["artifact"] for one in told["refused"]] == ["spectrum.fp32.openvino"]
    assert [one["verdict"] for one in told["artifacts"]] == ["pass"]


def test_where_every_target_refuses_nothing_is_written(tmp_path: Path) -> None:
    outcome = run(*WORDS, "--openvino", "--out", str(tmp_path / "b"))
    assert outcome.code == 8
    assert outcome.out == ""
    assert outcome.err.count("error: ") == 1
    assert "Argument shapes are inconsistent" in outcome.err
    assert not (tmp_path / "b").exists()


def test_an_older_operator_set_is_made_and_judged_or_refused_by_name(tmp_path: Path) -> None:
    import onnx

    words = ("export", "tiny-mobilenetv3", "--no-bench", "--eval-size", "32", "--out", str(tmp_path / "b"))
    made = run(*words, "--opset", "14")
    assert made.code == 0, made.out + made.err
    model = onnx.load(str(tmp_path / "b" / "tiny-mobilenetv3.fp32.onnx"), load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 14)]
    assert model.ir_version == 7
    refused = run(*words, "--opset", "13", "--replace")
    assert refused.code == 8
    assert "opset 13 has no HardSwish (since 14, module 'bn1.act')" in refused.err
    assert "--opset 14" in refused.err
