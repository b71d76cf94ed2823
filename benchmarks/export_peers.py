"""Export of one network from one local folder, beside `optimum-cli export onnx`, as whole processes in turn.

    python benchmarks/export_peers.py --peer PATH/optimum-cli [--pairs 5] [--model convnext-tiny] [--out FILE]

Both read the same folder, as transformers' `save_pretrained` writes it, with random weights. The peer exports
(TorchScript, opset 18) and compares one input. `stages` is the time of deploykit's own nodes from trace to simplified
file, from the manifest of the very run; memory is the largest resident set of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.manifest import Machine

GRAPHS = ("trace", "simplify", "rewrite")


@dataclass(frozen=True)
class Run:
    """One process: wall seconds, largest resident set in GB, seconds of the stages that make the graph."""

    seconds: float
    gigabytes: float
    stages: float = 0.0


def make(model: str, folder: Path) -> None:
    """Write a network with random weights and its preprocessing, as a user's local folder."""
    import transformers

    torch_seed(0)
    labels: dict[str, Any] = {"num_labels": 1000}
    kinds: dict[str, Any] = {
        "convnext-tiny": (transformers.ConvNextForImageClassification, transformers.ConvNextConfig(**labels)),
        "dinov2-small": (
            transformers.Dinov2ForImageClassification,
            transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=224, **labels),
        ),
    }
    kind, config = kinds[model]
    kind(config).save_pretrained(folder)
    processor = {
        "do_resize": True,
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "image_processor_type": "BitImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")


def torch_seed(seed: int) -> None:
    """Seed PyTorch."""
    import torch

    torch.manual_seed(seed)


def timed(words: list[str], env: dict[str, str]) -> Run:
    """Run a process to its end, which must be 0."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(words, env={**os.environ, **env}, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            log.seek(0)
            raise SystemExit(f"{' '.join(words)} ended with {process.returncode}:\n{log.read().decode()}")
    return Run(seconds, usage.ru_maxrss / 1e6)


def ours(folder: Path, *options: str) -> Run:
    """Export with deploykit, nothing cached."""
    with tempfile.TemporaryDirectory() as scratch:
        words = [
            str(Path(sys.executable).parent / "deploykit"),
            "export",
            f"hf:{folder}",
            "--ort",
            "--no-bench",
            *options,
        ]
        run = timed(
            [*words, "--out", f"{scratch}/bundle"], {"DEPLOYKIT_CACHE": f"{scratch}/cache", "HF_HUB_OFFLINE": "1"}
        )
        stages = json.loads(Path(scratch, "bundle", "manifest.json").read_bytes())["stages"]
    return Run(run.seconds, run.gigabytes, sum(stage["seconds"] for stage in stages if stage["stage"] in GRAPHS))


def peer(command: str, folder: Path) -> Run:
    """Export with the peer."""
    with tempfile.TemporaryDirectory() as scratch:
        words = [command, "export", "onnx", "--model", str(folder), "--task", "image-classification", scratch]
        return timed(words, {"HF_HUB_OFFLINE": "1"})


def table(model: str, rows: list[tuple[Run, Run, Run]]) -> str:
    """Return the results as Markdown."""
    machine = Machine.here()

    def median(values: list[float]) -> float:
        return statistics.median(values)

    peers, bare, whole = ([row[index] for row in rows] for index in range(3))
    lines = [
        f"## {model}",
        "",
        f"{machine.cpu}, {machine.cores} cores, Python {machine.python}; medians of n={len(rows)} interleaved rounds.",
        "",
        "| what | seconds | ratio to the peer, paired | peak memory, GB | ratio |",
        "|---|---:|---:|---:|---:|",
        f"| `optimum-cli export onnx`, whole process, one input compared | {median([r.seconds for r in peers]):.2f} | | "
        f"{median([r.gigabytes for r in peers]):.2f} | |",
    ]
    named = (
        ("deploykit, trace to simplified file", [r.stages for r in bare], bare),
        ("`deploykit export --no-verify --no-bench`, whole process", [r.seconds for r in bare], bare),
        ("`deploykit export --no-bench`, whole process, 16 inputs judged", [r.seconds for r in whole], whole),
    )
    for name, seconds, runs in named:
        ratio = median([mine / other.seconds for mine, other in zip(seconds, peers, strict=True)])
        memory = median([mine.gigabytes / other.gigabytes for mine, other in zip(runs, peers, strict=True)])
        gigabytes = median([r.gigabytes for r in runs])
        lines.append(f"| {name} | {median(seconds):.2f} | {ratio:.2f} | {gigabytes:.2f} | {memory:.2f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", required=True, help="the peer's command, in an environment of its own")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--model", action="append", choices=["convnext-tiny", "dinov2-small"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    parts = ["# Export beside a peer", "", "`python benchmarks/export_peers.py --peer optimum-cli`", ""]
    for model in options.model or ["convnext-tiny", "dinov2-small"]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / model
            make(model, folder)
            rows = [
                (peer(options.peer, folder), ours(folder, "--no-verify"), ours(folder))
                for _ in range(options.pairs + 1)
            ][1:]
        parts.append(table(model, rows))
    print("\n".join(parts))
    if options.out:
        options.out.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
