"""Processors that aren't here: refusals everywhere, and where QEMU is, that its kernels answer as the real ones do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

import deploykit
from deploykit.artifact import EXACT, RunConfig
from deploykit.runtime import drift, processors
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.sites.guest import Guest
from deploykit.runtime.sites.table import SITES
from tests.bundles import write_bundle
from tests.e2e.support import run
from tests.emulators import guest_or_skip, write_qemu
from tests.processes import gone

OWN = next(site for site in SITES if site.architecture.is_own)
#: Seconds that an emulated processor may take for what is asked of it here.
LIMIT = 500.0
Answers = NDArray[np.float32]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def without_qemu(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which no emulator is found."""
    (tmp_path / "empty").mkdir(exist_ok=True)
    return {"PATH": str(tmp_path / "empty"), "DEPLOYKIT_CACHE": str(tmp_path / "cache")}


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--on", "avx3"), 2, "'avx3' is no site that I know: there are avx2, sse4"),
        (("--on", ","), 2, "--on names no site"),
        (("--on", "avx2", "--device", "cpu"), 2, "device is for this machine"),
        (("--on", "avx2,arm64"), 5, "is not on PATH"),
        (("--on", "avx2", "--on-limit", "0"), 2, "on-limit"),
    ],
)
def test_what_cannot_be_asked_for(words: tuple[str, ...], code: int, told: str, made: Path, tmp_path: Path) -> None:
    outcome = run("verify", str(made), *words, "--json", env=without_qemu(tmp_path))
    assert outcome.code == code, outcome.err
    assert told in json.loads(outcome.out)["error"]["message"]


def test_without_qemu_the_list_says_what_gets_it(tmp_path: Path) -> None:
    plain = run("site", "list", env=without_qemu(tmp_path))
    assert plain.code == 0, plain.err
    assert "use apt-get install qemu-user" in plain.out
    listed = json.loads(run("site", "list", "--json", env=without_qemu(tmp_path)).out)["sites"]
    assert [site["name"] for site in listed] == [site.name for site in SITES]
    assert not any(site["ready"] for site in listed)
    assert all(site["error"]["exit_code"] == 5 for site in listed)


def test_nothing_is_added_without_it(tmp_path: Path) -> None:
    for site in SITES:
        outcome = run("site", "add", site.name, env=without_qemu(tmp_path))
        assert (outcome.code, outcome.out) == (5, "")
        assert f"QEMU's {site.architecture.emulator} is not on PATH" in outcome.err
    assert not (tmp_path / "cache").exists()


def test_an_interrupt_ends_the_emulator_at_once(made: Path, tmp_path: Path) -> None:
    write_qemu(tmp_path / "bin", OWN.architecture.emulator, body=f"echo $$ > {tmp_path}/pid; exec sleep 600")
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    _check_interrupt(made, {"PATH": path, "DEPLOYKIT_CACHE": str(tmp_path / "cache")}, "sleep")


@pytest.mark.qemu
def test_an_interrupt_ends_qemu_at_once(made: Path, tmp_path: Path) -> None:
    guest = guest_or_skip(OWN.name)
    _check_interrupt(made, {"DEPLOYKIT_CACHE": str(tmp_path / "cache")}, guest.emulator.path.name)


def _check_interrupt(made: Path, env: dict[str, str], name: str) -> None:
    """Interrupt a verification whose child is called so: it ends with 130, and nothing is left."""
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from deploykit.cli.app import main; main()"
    )
    command = [sys.executable, "-c", program, "verify", str(made), "--on", OWN.name]
    with subprocess.Popen(
        command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        children = list(_children(process, name))
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, said = process.communicate()
        assert process.returncode == 130, said
        assert time.monotonic() - start < 60.0, "it waits for no inference"
    assert children
    assert all(gone(pid) for pid in children)


def _children(process: subprocess.Popen[str], name: str) -> Iterator[int]:
    """Yield the ids of a process's children that are called so, as soon as there are any."""
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        found = [child.pid for child in parent.children(recursive=True) if _is_called(child, name)]
        if found:
            yield from found
            return
        time.sleep(0.05)


def _is_called(process: psutil.Process, name: str) -> bool:
    try:
        return bool(process.name() == name)
    except psutil.Error:
        return False


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> deploykit.Bundle:
    """tiny-mobilenetv3 in int8 for both runtimes: neither repaired nor judged."""
    folder = tmp_path_factory.mktemp("int8")
    (folder / "images").mkdir()
    draw = np.random.default_rng(3)
    for index in range(48):
        coarse = draw.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).save(folder / "images" / f"{index}.png")
    options = deploykit.ExportOptions(
        cells=("int8:ort", "int8:openvino"),
        calib=str(folder / "images"),
        out=str(folder / "b"),
        verify=False,
        bench=False,
    )
    return deploykit.export_model("tiny-mobilenetv3", options).bundle


def _inputs(bundle: deploykit.Bundle) -> dict[str, Answers]:
    with np.load(bundle.root / bundle.manifest.golden.inputs.path) as loaded:
        return {name: array[:2] for name, array in loaded.items()}


def _answers(bundle: deploykit.Bundle, backend: str, guest: Guest | None, arithmetic: str | None = None) -> Answers:
    """Return what an int8 artifact answers on a site, or here."""
    run = RunConfig(backend, precision="f32", threads=1, arithmetic=arithmetic)
    (path,) = (bundle.root / one.main.path for one in bundle.manifest.artifacts if one.runs[0].backend == backend)
    found = []
    opened = (
        get_backend(backend).open(str(path), run) if guest is None else guest.open(path, run, LIMIT, lambda _: None)
    )
    with opened as session:
        for index in range(2):
            feeds = {name: array[index : index + 1] for name, array in _inputs(bundle).items()}
            found.append(next(iter(session.infer(feeds).values())))
    return np.concatenate(found)


@pytest.mark.qemu
@pytest.mark.skipif(
    processors.here().name != "avx2", reason="the processor here is no AVX2 without VNNI to compare with"
)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_an_emulated_avx2_answers_bit_for_bit_as_a_real_one(int8: deploykit.Bundle, backend: str) -> None:
    emulated, real = _answers(int8, backend, guest_or_skip("avx2")), _answers(int8, backend, None)
    assert emulated.tobytes() == real.tobytes()


@pytest.mark.qemu
@pytest.mark.parametrize("name", ["sse4", "arm64", "arm64-n1", "arm64-a72"])
def test_emulated_processors_keep_what_the_graph_says(int8: deploykit.Bundle, name: str) -> None:
    emulated, exact = _answers(int8, "onnxruntime", guest_or_skip(name)), _answers(int8, "onnxruntime", None, EXACT)
    with np.load(int8.root / int8.manifest.golden.references["original"].path) as loaded:
        wanted = next(iter(loaded.values()))[:2]
    about = drift.mean_answer(wanted)
    assert abs(drift.sqnr_db(wanted, emulated, about) - drift.sqnr_db(wanted, exact, about)) < 2.0


@pytest.mark.qemu
def test_a_bundle_is_judged_on_an_emulated_processor(made: Path) -> None:
    guest_or_skip("avx2")
    outcome = run("verify", str(made), "--on", "avx2", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert [one["site"] for one in found["judgements"]] == ["avx2", "avx2"]
    assert {one["processor"] for one in found["judgements"]} == {"avx2"}
    assert {one["verdict"] for one in found["judgements"]} == {"pass"}
    assert found["timings"] == []
