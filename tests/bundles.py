"""A whole bundle made by hand within milliseconds, and what its maker could have written instead."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploykit import manifest as manifests
from deploykit import serde
from deploykit.artifact import FileRecord, RunConfig, sha256_of
from deploykit.bundle import save_tensors
from deploykit.manifest import GoldenRecord, SourceRecord
from deploykit.models import sources
from deploykit.verdict import Budget
from tests.support import manifest

#: The original that it says to be made from: nothing runs it here but `--data`.
ORIGINAL = "tiny-convnext"
RUNS = (RunConfig("onnxruntime", precision="f32"), RunConfig("openvino", precision="f32"))


def write_bundle(root: Path) -> Path:
    """Write a bundle of one small ONNX file with golden inputs and the outputs that it has: its verdict is a pass."""
    original = sources.resolve(ORIGINAL)
    root.mkdir(parents=True)
    (root / "golden").mkdir()
    rng = np.random.default_rng(7)
    weight = rng.standard_normal((len(original.labels), 3)).astype(np.float32)
    images = rng.standard_normal((4, *original.recipe.input_size)).astype(np.float32)
    (root / "net.fp32.onnx").write_bytes(_graph(weight).SerializeToString())
    (root / "modules.json").write_text("{}", encoding="utf-8")
    save_tensors(root / "golden/inputs.npz", {"input": images})
    for name in ("original", "hub"):
        save_tensors(root / f"golden/{name}.npz", {"logits": images.mean(axis=(2, 3)) @ weight.T})
    made = manifest()
    golden = {name: FileRecord.of(root, f"golden/{name}.npz") for name in ("original", "hub")}
    artifact = made.artifacts[0]
    batch = artifact.inputs[0].shape[0]
    made = dataclasses.replace(
        made,
        source=SourceRecord(
            original.id,
            original.locator,
            original.family,
            original.task,
            original.parameters,
            original.weights_sha256,
            original.digest,
        ),
        preprocess=original.preprocess,
        labels=original.labels,
        budgets={"f32": Budget(relative_max=1e-4, untied_flips=0)},
        artifacts=(
            dataclasses.replace(
                artifact,
                inputs=(dataclasses.replace(artifact.inputs[0], shape=(batch, *original.recipe.input_size)),),
                outputs=(dataclasses.replace(artifact.outputs[0], shape=(batch, len(original.labels))),),
                files=(FileRecord.of(root, "net.fp32.onnx"),),
                runs=RUNS,
            ),
        ),
        modules=FileRecord.of(root, "modules.json"),
        golden=GoldenRecord(len(images), "made:here", FileRecord.of(root, "golden/inputs.npz"), golden),
        evaluation=None,
        judgements=(),
        timings=(),
    )
    (root / manifests.FILE).write_bytes(made.sealed().to_bytes())
    return root


def _graph(weight: np.ndarray[Any, Any]) -> onnx.ModelProto:
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    side = "batch", *sources.resolve(ORIGINAL).recipe.input_size
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, side)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("batch", len(weight)))],
        [numpy_helper.from_array(weight.T.copy(), "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def reseal(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest, and seal it as whoever makes a bundle can.

    The records of files that are there become those of what lies there.
    """
    path = root / manifests.FILE
    value = json.loads(path.read_bytes())
    change(value)
    _remeasure(root, value)
    value["seal"] = ""
    value["seal"] = serde.digest(value)
    path.write_bytes((json.dumps(value, indent=2, sort_keys=True) + "\n").encode("ascii"))


def _remeasure(root: Path, value: object) -> None:
    if isinstance(value, dict):
        if value.keys() == {"path", "bytes", "sha256"} and (root / value["path"]).is_file():
            value.update(bytes=(root / value["path"]).stat().st_size, sha256=sha256_of(root / value["path"]))
        for entry in value.values():
            _remeasure(root, entry)
    elif isinstance(value, list):
        for entry in value:
            _remeasure(root, entry)


def relocate(root: Path, **changes: object) -> None:
    """Let a bundle name another original."""

    def change(value: dict[str, Any]) -> None:
        locator = json.loads(value["source"]["locator"])
        value["source"]["locator"] = serde.canonical_bytes({**locator, **changes}).decode()

    reseal(root, change)
