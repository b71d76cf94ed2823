"""Everything of TensorRT that needs an NVIDIA GPU, in one go: what a machine without one can't say.

python scripts/gpu_check.py --out OUT [--models tiny-convnext,tiny-mobilenetv3] [--bundle DIR]

Exports each model to every precision of the targets whose library is here (--trt-rtx, --trt), verifies and times the bundles,
runs the conformance suite and the tests marked gpu, and writes what came out to OUT/gpu_check.json: of each step exit code,
seconds and the end of what it said. A --bundle that was exported with --defer is built and verified. No step ends the others.
Exit code 0 where every step passed, 1 where one did not, 5 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from deploykit.errors import MissingComponentError
from deploykit.optional import COMPONENTS
from deploykit.runtime.backends import cuda

ROOT = Path(__file__).parent.parent
#: Target and the module that it needs.
TARGETS = {"trt-rtx": "tensorrt_rtx", "trt": "tensorrt"}
KEPT_LINES = 40


@dataclass(frozen=True)
class Step:
    """One command and what became of it; seconds are those of the wall clock."""

    name: str
    command: str
    code: int
    seconds: float
    said: list[str]


def run(name: str, *words: str, limit: int = 900) -> Step:
    """Run a command of this interpreter to its end, or for `limit` seconds."""
    command = [sys.executable, *words]
    print(f"{name}: {' '.join(words)}", flush=True)
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit
        )
        code, text = done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        code, text = 124, f"not done after {limit} s"
    seconds = time.perf_counter() - started
    print(f"    exit {code} after {seconds:.1f} s", flush=True)
    return Step(name, " ".join(command), code, round(seconds, 1), text.splitlines()[-KEPT_LINES:])


def device() -> dict[str, object]:
    """Describe the GPUs, the driver and the libraries."""
    driver = cuda.driver()
    libraries = {module: COMPONENTS[module].version() for module in TARGETS.values()}
    return {"driver": driver.version, "gpus": [asdict(gpu) for gpu in driver.gpus], "libraries": libraries}


def steps_of(models: list[str], bundle: str | None, out: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Return names and commands of all that can be checked with what is installed."""
    targets = [target for target, module in TARGETS.items() if COMPONENTS[module].version() is not None]
    flags = [f"--{target}" for target in targets]
    cli = ("-m", "deploykit")
    steps: list[tuple[str, tuple[str, ...]]] = []
    for model in models if targets else ():
        for shape, more in (("static", ()), ("open", ("--dynamic", "batch", "--profile", "batch=1,4,8"))):
            folder = str(out / f"{model}-{shape}")
            words = ("--fp32", "--fp16", "--int8", *flags, *more, "--no-repair", "--out", folder, "--replace")
            steps.append((f"export {model} {shape}", (*cli, "export", model, *words)))
            steps.append((f"verify {model} {shape}", (*cli, "verify", folder)))
            steps.append((f"bench {model} {shape}", (*cli, "bench", folder, "--json")))
    if bundle is not None:
        steps.append(("build", (*cli, "build", bundle)))
        steps.append(("verify what was built", (*cli, "verify", bundle)))
    steps.append(("conformance", ("-m", "pytest", "-q", "tests/conformance", "-k", "tensorrt")))
    steps.append(("gpu tests", ("-m", "pytest", "-q", "-m", "gpu", "tests")))
    return steps


def main() -> int:
    """Run all steps; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for bundles and gpu_check.json")
    parser.add_argument("--models", default="tiny-convnext,tiny-mobilenetv3", help="names, parted by commas")
    parser.add_argument("--bundle", help="a bundle that was exported with --defer")
    chosen = parser.parse_args()
    try:
        found = device()
    except MissingComponentError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code
    chosen.out.mkdir(parents=True, exist_ok=True)
    made: list[Step] = []
    for name, words in steps_of(chosen.models.split(","), chosen.bundle, chosen.out.resolve()):
        made.append(run(name, *words))
        report = {"device": found, "steps": [asdict(step) for step in made]}
        (chosen.out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    failed = [step.name for step in made if step.code]
    print(
        f"{len(made) - len(failed)} of {len(made)} steps passed" + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
