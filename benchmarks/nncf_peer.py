"""Quantize one OpenVINO model with NNCF, in NNCF's own environment; `int8_peers.py` runs this.

    python benchmarks/nncf_peer.py MODEL.xml OUT.xml --images FOLDER --count N --mean R,G,B --std R,G,B [--preset mixed]

Prints one line of JSON: seconds of `nncf.quantize` alone, and NNCF's version. Images have the model's size already; each is
decoded when NNCF asks for it, as a user's data set would.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np


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
    import openvino
    import PIL.Image

    nncf.set_log_level(logging.ERROR)
    mean, std = (np.array(text.split(","), np.float32) for text in (options.mean, options.std))

    def prepared(path: Path) -> Any:  # noqa: ANN401 - a feed
        image = np.asarray(PIL.Image.open(path).convert("RGB"), np.float32) / 255
        return np.ascontiguousarray(((image - mean) / std).transpose(2, 0, 1)[None])

    paths = sorted(options.images.glob("*.png"))[: options.count]
    model = openvino.Core().read_model(options.model)
    preset = nncf.QuantizationPreset(options.preset)
    started = time.perf_counter()
    quantized = nncf.quantize(model, nncf.Dataset(paths, prepared), preset=preset, subset_size=options.count)
    seconds = time.perf_counter() - started
    openvino.save_model(quantized, options.out, compress_to_fp16=False)
    print(json.dumps({"seconds": seconds, "nncf": nncf.__version__}))


if __name__ == "__main__":
    main()
