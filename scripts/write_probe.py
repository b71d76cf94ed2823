"""Write the network by which `deploykit.runtime.saturation` finds out how a runtime adds products of 8 bits.

python scripts/write_probe.py           writes it
python scripts/write_probe.py --check   fails where it differs from what would be written
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deploykit.runtime.saturation import CHANNELS, CODES, FILE, FULL, KERNEL, OUTPUTS, PATTERNS, ROWS

#: Of ONNX, such as any runtime of the last years reads.
OPSET, IR_VERSION = 13, 7


def weights(terms: int) -> NDArray[np.int8]:
    """Return weights [terms, CHANNELS], whose columns follow the patterns in turn."""
    columns = [np.where(np.arange(terms) % 2, odd, even) for even, odd in PATTERNS]
    return np.stack([columns[index % len(columns)] for index in range(CHANNELS)], axis=1).astype(np.int8)


def probe() -> bytes:
    """Return the file."""
    product = weights(OUTPUTS["product"])
    side, inner = KERNEL
    kernel = weights(OUTPUTS["convolution"]).T.reshape(CHANNELS, side, side, inner).transpose(0, 3, 1, 2)
    shapes = {"rows": (ROWS, OUTPUTS["product"]), "image": (1, inner, side + 2, side + 2)}
    answers = {"product": (ROWS, CHANNELS), "convolution": (1, CHANNELS, 3, 3)}
    made = [
        *_layer("MatMul", "rows", "product", product, 1),
        *_layer("Conv", "image", "convolution", kernel, 0),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node for node, _ in made],
        "pairs",
        [value(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [value(name, TensorProto.FLOAT, shape) for name, shape in answers.items()],
        [
            numpy_helper.from_array(np.asarray(array), name)
            for _, constants in made
            for name, array in constants.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return bytes(model.SerializeToString(deterministic=True))


def _layer(
    operator: str, data: str, output: str, codes: NDArray[np.int8], axis: int
) -> list[tuple[Any, dict[str, Any]]]:
    """Return the nodes of one layer with Q/DQ around it, each with the constants that it brings."""
    least = np.float32(FULL * OUTPUTS[output] / CODES)
    scaled = {f"{data}.scale": np.float32(1), f"{data}.zero": np.uint8(0)}
    held = {
        f"{output}.weights": np.ascontiguousarray(codes),
        f"{output}.weights.scales": np.ones(CHANNELS, np.float32),
        f"{output}.weights.zeros": np.zeros(CHANNELS, np.int8),
    }
    rounded = {f"{output}.scale": least, f"{output}.zero": np.uint8(128)}
    node = helper.make_node
    return [
        (node("QuantizeLinear", [data, *scaled], [f"{data}.codes"]), scaled),
        (node("DequantizeLinear", [f"{data}.codes", *scaled], [f"{data}.rounded"]), {}),
        (node("DequantizeLinear", list(held), [f"{output}.kernel"], axis=axis), held),
        (node(operator, [f"{data}.rounded", f"{output}.kernel"], [f"{output}.sums"]), {}),
        (node("QuantizeLinear", [f"{output}.sums", *rounded], [f"{output}.codes"]), rounded),
        (node("DequantizeLinear", [f"{output}.codes", *rounded], [output]), {}),
    ]


def main() -> int:
    """Write or check; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail where the file is out of date")
    if not parser.parse_args().check:
        onnx.checker.check_model(onnx.load_model_from_string(probe()))
        FILE.write_bytes(probe())
        return 0
    stale = not FILE.is_file() or FILE.read_bytes() != probe()
    if stale:
        print(f"{Path(FILE).name} is out of date: run python scripts/write_probe.py", file=sys.stderr)
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
