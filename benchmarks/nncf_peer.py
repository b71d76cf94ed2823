"""Quantize one model of OpenVINO or ONNX with NNCF, in NNCF's own environment; `int8_peers.py` and `int8_classes.py` run this.

    python benchmarks/nncf_peer.py MODEL.xml|MODEL.onnx OUT --images FOLDER --count N --mean R,G,B --std R,G,B [--preset mixed]

Prints one line of JSON: seconds of `nncf.quantize` alone, and NNCF's version. Images have the model's size already; each is
decoded when NNCF asks for it, as a user's data set would.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def opened(path: str) -> tuple[Any, str, Callable[[Any, str], None]]:
    """Return a model, the name of its input, and what saves one of its kind."""
    if path.endswith(".onnx"):
        import onnx

        graph = onnx.load(path)
        return graph, graph.graph.input[0].name, onnx.save
    import openvino

    model = openvino.Core().read_model(path)
    return (
        model,
        model.input(0).get_any_name(),
        lambda made, out: openvino.save_model(made, out, compress_to_fp16=False),
    )


def main() -> None:
    """Quantize and tell how long it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--mean", required=True)
    parser.add_argument("--std", required=True)
    parser.add_argument("--preset", choices=["performance", "mixed"], default="performance")
    options = parser.parse_args()

    import nncf
    import PIL.Image

    nncf.set_log_level(logging.ERROR)
    mean, std = (np.array(text.split(","), np.float32) for text in (options.mean, options.std))

    def prepared(path: Path) -> Any:  # noqa: ANN401 - a feed
        image = np.asarray(PIL.Image.open(path).convert("RGB"), np.float32) / 255
        return np.ascontiguousarray(((image - mean) / std).transpose(2, 0, 1)[None])

    paths = sorted(options.images.glob("*.png"))[: options.count]
    model, name, save = opened(options.model)
    dataset = nncf.Dataset(paths, lambda path: {name: prepared(path)})
    preset = nncf.QuantizationPreset(options.preset)
    started = time.perf_counter()
    quantized = nncf.quantize(model, dataset, preset=preset, subset_size=options.count)
    seconds = time.perf_counter() - started
    save(quantized, options.out)
    print(json.dumps({"seconds": seconds, "nncf": nncf.__version__}))


if __name__ == "__main__":
    main()
