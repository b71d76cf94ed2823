"""A bundle whose artifacts take weights from files that its manifest doesn't describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.bundles import reseal, write_bundle

from deploykit.bundle import save_tensors
from deploykit.errors import BadInputError, UsageError
from deploykit.workflow.opened import open_bundle
from deploykit.workflow.options import VerifyOptions
from deploykit.workflow.verify import golden_of, verify


def test_an_undescribed_file_of_weights_is_refused(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle")
    open_bundle(root)
    main = root / "net.fp32.onnx"
    model = onnx.load(main)
    onnx.save(model, main, save_as_external_data=True, location="weights.data", size_threshold=0)
    reseal(root, lambda _value: None)
    assert (root / "weights.data").is_file()
    with pytest.raises(BadInputError, match=r"'weights\.data', a file that .*manifest\.json doesn't describe"):
        open_bundle(root)

    def describe(value: dict[str, Any]) -> None:
        (artifact,) = value["artifacts"]
        artifact["files"].append({"path": "weights.data", "bytes": 0, "sha256": "0" * 64})

    reseal(root, describe)
    open_bundle(root)


def test_undescribed_weights_of_an_ir_are_refused(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle")
    (root / "net.xml").write_text("<net/>", encoding="utf-8")

    def rename(value: dict[str, Any]) -> None:
        (artifact,) = value["artifacts"]
        artifact["runs"] = [run for run in artifact["runs"] if run["backend"] == "openvino"]
        artifact["files"] = [{"path": "net.xml", "bytes": 0, "sha256": "0" * 64}]

    reseal(root, rename)
    open_bundle(root)
    (root / "net.bin").write_bytes(b"anything")
    with pytest.raises(BadInputError, match=r"'net\.bin', a file that"):
        open_bundle(root)


@pytest.mark.parametrize(
    ("role", "arrays", "told"),
    [
        ("rollout", {f"input/{name}": np.ones(()) for name in ("coefficients", "noise", "latents")}, "without axes"),
        ("faults", {"kind": np.zeros(3)}, "no record of faults"),
        ("inputs", {"input": np.zeros((0, 3, 64, 64), np.float32)}, "no golden inputs"),
    ],
)
def test_golden_files_of_another_form_are_bad_input(
    tmp_path: Path, role: str, arrays: dict[str, np.ndarray[Any, Any]], told: str
) -> None:
    root = write_bundle(tmp_path / "bundle")
    save_tensors(root / f"golden/{role}.npz", arrays)

    def add(value: dict[str, Any]) -> None:
        if role != "inputs":
            value["golden"]["further"] = {role: {"path": f"golden/{role}.npz", "bytes": 0, "sha256": "0" * 64}}

    reseal(root, add)
    with pytest.raises(BadInputError, match=told):
        golden_of(open_bundle(root))


@pytest.mark.parametrize("asked", [VerifyOptions(golden="photos"), VerifyOptions(golden_size=4)])
def test_a_bundle_is_judged_by_the_golden_inputs_that_it_holds(tmp_path: Path, asked: VerifyOptions) -> None:
    root = write_bundle(tmp_path / "bundle")
    with pytest.raises(UsageError, match=r"--golden.* is for a bare file: a bundle holds its own golden inputs"):
        verify(root, asked)
