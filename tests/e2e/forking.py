"""A process that has imported the libraries, and forks one that runs the command line for each request.

What is forked is a process as any other: its own memory, folder, environment, streams, exit code and what is done at exit. It
differs from a fresh one in what it needn't import, seconds of processor time for each command, and in that the interpreter
isn't taken down, object by object. Where that is the point, `support.fresh` starts one from nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import sys
from collections.abc import Mapping

from deploykit import telemetry

#: What commands import. Importing them starts no threads but those of OpenBLAS, which has its own way through forks.
LIBRARIES = (
    "jinja2",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "onnxsim",
    "openvino",
    "PIL.Image",
    "safetensors.torch",
    "scipy.stats",
    "timm",
    "torch",
    "torch.onnx._internal.exporter._torchlib.ops",
    "transformers.models.auto.image_processing_auto",
    "transformers.models.auto.modeling_auto",
    "diffusers.models.unets.unet_2d_condition",
    "deploykit.cli.app",
    "deploykit.workflow.export",
)


def main() -> None:
    """Answer requests, one JSON object a line, until there are no more; in a process that was forked, run its command."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    telemetry.switch_off()
    for name in LIBRARIES:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    gc.freeze()
    before = dict(os.environ)
    while line := requests.readline():
        child = os.fork()
        if not child:
            requests.close()
            answers.close()
            _run(**json.loads(line), before=before)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _run(
    words: list[str], folder: str, environment: Mapping[str, str], out: str, err: str, before: Mapping[str, str]
) -> None:
    """Run the command line as a fresh process does, which ends with it."""
    for number, path in ((1, out), (2, err)):
        opened = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(folder)
    for name in before.keys() - environment.keys() - set(telemetry.VARIABLES):
        del os.environ[name]
    os.environ.update(environment)
    sys.path[:] = [*_folders(environment), *(path for path in sys.path if path not in _folders(before))]
    sys.argv[:] = ["deploykit", *words]
    from deploykit.cli import app

    try:
        app.main()
    except SystemExit as ending:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        ctypes.CDLL(None).exit(ending.code)


def _folders(environment: Mapping[str, str]) -> list[str]:
    return list(filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)))


if __name__ == "__main__":
    main()
