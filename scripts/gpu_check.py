"""Everything that needs an NVIDIA GPU, in one go: what a machine without one can't say.

python scripts/gpu_check.py --out OUT [--models tiny-convnext,timm:convnext_tiny] [--made BUNDLE ...] [--deferred BUNDLE ...]

Exports each model for every runtime that can use the GPU here (TensorRT, TensorRT for RTX, ONNX Runtime's CUDA provider),
verifies and times the bundles beside PyTorch on the same GPU, and runs the conformance suite and the tests marked gpu. A
bundle of --made, from another machine, is verified and timed as it is; one of --deferred is built first. No step ends the
others. Writes OUT/gpu_check.json, of each step its exit code, seconds and the end of what it said, and OUT/gpu_check.md with
the tables. Exit code 0 where every step passed, 1 where one did not, 5 where there is no GPU. Packages that were unpacked to a
folder are found through PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from deploykit.artifact import RunConfig
from deploykit.errors import MissingComponentError
from deploykit.optional import COMPONENTS
from deploykit.runtime.backends import cuda
from deploykit.runtime.backends.base import get_backend
from deploykit.verdict import PHASES

ROOT: Final = Path(__file__).parent.parent
#: Targets whose artifacts run on a GPU, by the backend that runs them, and what each is asked for.
TARGETS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "onnxruntime": ("--ort", ("--fp32", "--fp16")),
    "tensorrt_rtx": ("--trt-rtx", ("--fp32", "--fp16", "--int8")),
    "tensorrt": ("--trt", ("--fp32", "--fp16", "--int8")),
}
LIBRARIES: Final = ("torch", "onnxruntime", "tensorrt_rtx", "tensorrt", "timm", "onnx", "pynvml")
SHAPES: Final = {"static": (), "open": ("--dynamic", "batch", "--profile", "batch=1,4,8")}
CLI: Final = ("-m", "deploykit")
KEPT_LINES: Final = 40


@dataclass(frozen=True)
class Step:
    """One command and what became of it; seconds are those of the wall clock. A bench has its timings."""

    name: str
    command: str
    code: int
    seconds: float
    said: list[str]
    timings: list[dict[str, Any]]


def run(name: str, *words: str, limit: int = 900) -> Step:
    """Run a command of this interpreter to its end, or for `limit` seconds."""
    command = [sys.executable, *words]
    print(f"{name}: {' '.join(words)}", flush=True)
    started = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
        code, out, text = done.returncode, done.stdout, done.stderr + done.stdout
    except subprocess.TimeoutExpired:
        code, out, text = 124, "", f"not done after {limit} s"
    seconds = time.perf_counter() - started
    print(f"    exit {code} after {seconds:.1f} s", flush=True)
    timings = json.loads(out)["timings"] if "--json" in words and out.startswith("{") and '"timings"' in out else []
    return Step(name, " ".join(words), code, round(seconds, 1), text.splitlines()[-KEPT_LINES:], timings)


def device() -> dict[str, Any]:
    """Describe the GPUs, the driver and the libraries."""
    driver = cuda.driver()
    libraries = {module: COMPONENTS[module].version() for module in LIBRARIES}
    gpus = [asdict(gpu) for gpu in driver.gpus]
    return {"driver": driver.version, "gpus": gpus, "python": platform.python_version(), "libraries": libraries}


def runtimes() -> dict[str, dict[str, str]]:
    """Return of each runtime why it can't use the GPU here, by each of its ways, "" where it can."""
    backends = map(get_backend, TARGETS)
    return {
        backend.name: {way.label: backend.unavailable(way) for way in backend.ways(RunConfig(backend.name), cuda.FIRST)}
        for backend in backends
    }


def judged(name: str, folder: str, *, on: str | None) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield how a bundle is verified and timed."""
    where = () if on is None else ("--device", on)
    yield f"verify {name}", (*CLI, "verify", folder, *where)
    yield f"bench {name}", (*CLI, "bench", folder, *where, "--json")


def steps_of(asked: argparse.Namespace, here: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield names and commands of all that can be checked with what is here."""
    for model in filter(None, asked.models.split(",")):
        for backend in here:
            flag, precisions = TARGETS[backend]
            for shape, more in SHAPES.items():
                name = f"{model} {flag.strip('-')} {shape}"
                folder = str(asked.out / name.replace(" ", "-").replace(":", "-"))
                words = (*precisions, flag, *more, "--no-repair", "--no-bench", "--out", folder, "--replace")
                yield f"export {name}", (*CLI, "export", model, *words)
                yield from judged(name, folder, on="cuda" if backend == "onnxruntime" else None)
    for folder in asked.made:
        yield from judged(folder, folder, on="cuda")
    for folder in asked.deferred:
        yield f"build {folder}", (*CLI, "build", folder)
        yield from judged(folder, folder, on=None)
    yield "conformance", ("-m", "pytest", "-q", "tests/conformance", "-k", "cuda")
    yield "gpu tests", ("-m", "pytest", "-q", "-m", "gpu", "tests")


def table(step: Step) -> Iterator[str]:
    """Yield a bench's timings as a Markdown table."""
    yield f"\n### {step.name.removeprefix('bench ')}\n"
    yield f"| candidate | run as | median ms | × original (95 %) | {' | '.join(f'{name} ms' for name in PHASES)} | SM MHz |"
    yield "|---|---|---:|---:|" + "---:|" * (len(PHASES) + 1)
    for timing in step.timings:
        ratio, gpu = timing["speedup"], timing.get("gpu")
        speed = f"{ratio['median']:.2f} ({ratio['lower']:.2f}–{ratio['upper']:.2f})" if ratio else ""
        parts = [f"{gpu[f'{name}_ms']:.3f}" if gpu else "" for name in PHASES]
        clocks = str(gpu["clocks"]["sm_mhz"]) if gpu and gpu["clocks"] else ""
        where = f"{timing['run']['backend']} {timing['run']['device']} {timing['ran']['precision']}"
        row = (timing["candidate"], where, f"{timing['median_ms']:.3f}", speed, *parts, clocks)
        yield f"| {' | '.join(row)} |"


def report(found: Mapping[str, Any], missing: Mapping[str, Mapping[str, str]], made: list[Step]) -> str:
    """Return the whole as Markdown."""
    gpus = ", ".join(f"{gpu['name']} (SM {gpu['capability']})" for gpu in found["gpus"])
    libraries = ", ".join(f"{name} {version}" for name, version in found["libraries"].items() if version)
    lines = ["# GPU check", "", "`python scripts/gpu_check.py`", ""]
    lines += [
        f"{gpus}; driver for CUDA {found['driver'] // 1000}.{found['driver'] % 1000 // 10}; Python {found['python']}"
    ]
    lines += [f"{libraries}.", ""]
    lines += [f"- {way}: {reason or 'checked'}" for ways in missing.values() for way, reason in ways.items()]
    lines += ["", "| step | exit code | seconds | last words |", "|---|---:|---:|---|"]
    for step in made:
        last = step.said[-1].strip().replace("|", "/") if step.said and not step.timings else ""
        lines.append(f"| {step.name} | {step.code} | {step.seconds} | {last} |")
    lines += ["", "## Latency", ""]
    for step in made:
        lines += table(step) if step.timings else ()
    return "\n".join([*lines, ""])


def main() -> int:
    """Run all steps; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for bundles and reports")
    parser.add_argument("--models", default="tiny-convnext,tiny-mobilenetv3", help="names, parted by commas")
    parser.add_argument(
        "--made", nargs="*", default=[], metavar="BUNDLE", help="bundles to verify and time as they are"
    )
    parser.add_argument(
        "--deferred", nargs="*", default=[], metavar="BUNDLE", help="bundles of --defer, to build first"
    )
    asked = parser.parse_args()
    asked.out = asked.out.resolve()
    try:
        found, missing = device(), runtimes()
    except MissingComponentError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code
    asked.out.mkdir(parents=True, exist_ok=True)
    made: list[Step] = []
    for name, words in steps_of(asked, [name for name, ways in missing.items() if not all(ways.values())]):
        made.append(run(name, *words))
        whole = {"device": found, "runtimes": missing, "steps": [asdict(step) for step in made]}
        (asked.out / "gpu_check.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        (asked.out / "gpu_check.md").write_text(report(found, missing, made), encoding="utf-8")
    failed = [step.name for step in made if step.code]
    summary = f"{len(made) - len(failed)} of {len(made)} steps passed"
    print(summary + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
