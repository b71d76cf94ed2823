"""The command line's manners: help, errors, exit codes, and what it doesn't import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit.bundle import Bundle
from deploykit.locks import LOCK, locked
from deploykit.runtime.load import logical_cores
from tests.bundles import relocate, reseal, write_bundle
from tests.e2e.support import python, run

COMMANDS = ("export", "build", "verify", "bench", "inspect", "doctor", "models", "run")
GROUPS = {"site": ("list", "add", "remove")}
ALL = (*COMMANDS, *(f"{group} {name}" for group, names in GROUPS.items() for name in names))
HEAVY = ("torch", "timm", "onnx", "onnxruntime", "openvino", "scipy", "numpy", "rich")


@pytest.mark.parametrize("command", ["", *ALL, *GROUPS])
def test_help_imports_no_heavy_library(command: str) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['deploykit', *{command.split()!r}, '--help']\n"
        "from deploykit.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))\n"
    )
    outcome = python("-c", program)
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip().splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize("command", ALL)
def test_help_has_an_example_and_describes_every_option(command: str) -> None:
    outcome = run(*command.split(), "--help")
    assert f"    deploykit {command}" in outcome.out
    for line in outcome.out.splitlines():
        assert not line.rstrip().endswith(("<text>", "<path>", "<str>")), f"{command}: no help in {line!r}"


def test_an_unknown_model_is_exit_2_and_names_a_near_one() -> None:
    outcome = run("export", "tiny-convnet")
    assert outcome.code == 2
    assert outcome.out == ""
    assert "'tiny-convnet' is no model that I know. Near: tiny-convnext" in outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cell", "fp32"), "'fp32' is no cell"),
        (("--cell", "fp12:ort"), "unknown precision 'fp12'"),
        (("--cell", "fp32:abacus"), "unknown target 'abacus'"),
        (("--dynamic", "colour"), "ConvNeXt has no axis 'colour'"),
        (("--dynamic", "batch", "--batch", "4"), "contradict one another"),
        (("--data", "nowhere"), "nowhere does not exist"),
    ],
)
def test_a_request_that_makes_no_sense_is_exit_2(words: tuple[str, ...], message: str) -> None:
    outcome = run("export", "tiny-convnext", *words)
    assert outcome.code == 2
    assert message in outcome.err


def test_somebody_elses_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    words = ("export", "tiny-convnext", "--no-bench", "--eval-size", "32", "--out", str(tmp_path))
    outcome = run(*words)
    assert outcome.code == 2
    assert "holds files that deploykit did not write: thesis.txt" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert run(*words, "--replace").code == 0
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_two_exports_into_one_folder_at_once(tmp_path: Path) -> None:
    out, caches = tmp_path / "b", [{"DEPLOYKIT_CACHE": str(tmp_path / name)} for name in ("one", "two")]
    words = ("export", "tiny-convnext", "--no-verify", "--no-bench", "--out", str(out))
    with locked(out):
        outcome = run(*words, env=caches[0])
        assert [path.name for path in out.iterdir()] == [LOCK]
    assert outcome.code == 5
    assert f"another export is writing to {out}" in outcome.err
    assert not out.exists()
    assert run(*words, env=caches[1]).code == 0
    assert not (out / LOCK).exists()
    Bundle.open(out).check()


def test_the_closing_line_counts_what_was_not_run(tmp_path: Path) -> None:
    outcome = run("export", "tiny-convnext", "--no-verify", "--no-bench", "--out", str(tmp_path / "b"))
    assert outcome.code == 0
    assert outcome.out.strip().splitlines()[-1] == "0 passed, 1 not run (--no-verify)"


def test_doctor_models_and_inspect_speak_json(bundle: Path) -> None:
    doctor = json.loads(run("doctor", "--json").out)
    assert doctor["devices"]["torch cuda:0"] is None or "cuda" in doctor["devices"]["torch cuda:0"]
    assert len(doctor["gpus"]) >= 1
    everywhere = {name: lacks for name, lacks in doctor["backends"].items() if not name.startswith("tensorrt")}
    assert everywhere == dict.fromkeys(("emulator", "onnxruntime", "openvino", "torch"))
    assert set(doctor["backends"]) - set(everywhere) == {"tensorrt", "tensorrt_rtx"}
    sums = doctor["int8"]["runtimes"]
    assert [entry["title"] for entry in sums] == ["ONNX Runtime", "OpenVINO"]
    assert {entry["processor"] for entry in sums} == {doctor["int8"]["processor"]}
    assert all(entry["found"] and not entry["contradicts"] for entry in sums)
    told = next(line for line in run("doctor").out.splitlines() if line.startswith("int8 arithmetic"))
    assert told.split("   ", 1)[1] == " · ".join(entry["text"] for entry in sums)
    assert {"tiny-convnext", "tiny-lcm-unet"} <= {
        card["id"] for card in json.loads(run("models", "--json").out)["models"]
    }
    assert json.loads(run("inspect", str(bundle), "--json").out)["source"]["id"] == "tiny-convnext"
    inputs = json.loads(run("inspect", str(bundle / "tiny-convnext.fp32.onnx"), "--json").out)["inputs"]
    assert inputs == [{"name": "input", "dtype": "float32", "shape": [1, 3, 64, 64]}]


def test_inspected_code_opens_the_artifacts_without_deploykit(bundle: Path) -> None:
    code = run("inspect", str(bundle), "--code").out
    assert "deploykit" not in "".join(line for line in code.splitlines() if "import" in line)
    outcome = python("-c", code)
    assert outcome.code == 0, outcome.err


def test_run_names_what_it_sees(bundle: Path, tmp_path: Path) -> None:
    from PIL import Image

    from deploykit.data import rendered

    hits = 0
    for index in range(12):
        Image.fromarray(rendered.render("test", index)[0]).save(tmp_path / f"{index}.png")
    images = [str(tmp_path / f"{index}.png") for index in range(12)]
    found = json.loads(run("run", str(bundle / "tiny-convnext.fp32.openvino.xml"), *images, "--json").out)["images"]
    for index, prediction in enumerate(found):
        assert len(prediction["scores"]) == 5
        hits += prediction["scores"][0]["label"] == rendered.CLASSES[rendered.render("test", index)[1]]
    assert hits >= 9


def test_run_takes_a_bundle_and_says_which_artifact(bundle: Path, tmp_path: Path) -> None:
    from PIL import Image

    from deploykit.data import rendered

    Image.fromarray(rendered.render("test", 0)[0]).save(tmp_path / "photo.png")
    outcome = run("run", str(bundle), str(tmp_path / "photo.png"), "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    manifest = json.loads(run("inspect", str(bundle), "--json").out)
    timings = [one for one in manifest["timings"] if one["candidate"] != "original"]
    fastest = min(timings, key=lambda one: (bool(one.get("doubts")), one["median_ms"]))
    unsure = ", though unsure: " + fastest["doubts"][0].partition(":")[0] if fastest.get("doubts") else ""
    files = {one["name"]: one["files"][0]["path"] for one in manifest["artifacts"]}
    assert Path(found["artifact"]).name == files[fastest["candidate"]]
    assert f"runs  {found['artifact']} ({found['run']}): {found['reason']}" in outcome.err
    assert found["reason"].startswith(f"the fastest of 3 that passed{unsure}; beside it: ")


def test_a_file_in_its_bundle_is_judged_by_the_manifest(bundle: Path) -> None:
    outcome = run("verify", str(bundle / "tiny-convnext.fp32.openvino.xml"), "--json")
    assert outcome.code == 0, outcome.err
    judged = json.loads(outcome.out)["judgements"]
    assert {one["artifact"] for one in judged} == {"tiny-convnext.fp32.openvino"}
    assert len(judged) == 2, "both of its RunConfigs"
    assert all("agreement" in one["metrics"] for one in judged), "by the labelled images too"
    assert "1 passed" in run("verify", str(bundle / "tiny-convnext.fp32.onnx")).out
    other = run("verify", str(bundle / "modules.json"))
    assert other.code == 2
    assert "is no artifact of the bundle that it lies in" in other.err


def test_run_refuses_what_is_no_image(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    outcome = run("run", str(bundle / "tiny-convnext.fp32.onnx"), str(tmp_path / "x.png"))
    assert outcome.code == 7
    assert "x.png is no image" in outcome.err


def test_bench_gates_latency(bundle: Path, tmp_path: Path) -> None:
    only = write_bundle(tmp_path / "bundle")
    relocate(only, scheme="py", name="nowhere:net")
    assert run("bench", str(only), "--rounds", "6", "--max-ms", "10000").code == 0
    outcome = run("bench", str(bundle), "--rounds", "6", "--max-ms", "0.0001")
    assert outcome.code == (6 if "timing is unsure: machine busy" in outcome.out else 4)
    assert "the gate asks for at most" in outcome.out


def test_more_threads_than_cores_are_told_and_gate_nothing(tmp_path: Path) -> None:
    threads = logical_cores() + 1
    both = write_bundle(tmp_path / "both")
    relocate(both, scheme="py", name="nowhere:net")
    refused = run("bench", str(both), "--rounds", "6", "--threads", str(threads))
    assert refused.code == 8
    assert f"asked for {threads} threads, OpenVINO gives" in refused.err
    only = write_bundle(tmp_path / "bundle")
    reseal(only, lambda value: value["artifacts"][0].update(runs=value["artifacts"][0]["runs"][:1]))
    words = ("bench", str(only), "--rounds", "6", "--threads", str(threads), "--min-speedup")
    for least in ("0.0001", "10000"):
        outcome = run(*words, least)
        assert outcome.code == 6
        assert f"timing is unsure: {threads} threads on {logical_cores()} core" in outcome.out
        row = next(line for line in outcome.out.splitlines() if line.startswith("fp32"))
        assert row.rstrip().endswith("unsure")


def test_a_device_that_is_not_here_is_told_and_nothing_passes(bundle: Path, tmp_path: Path) -> None:
    outcome = run("verify", str(bundle), "--device", "cuda:7")
    assert outcome.code == 6
    assert "0 passed" in outcome.out
    assert outcome.out.count("not run: ") == 3, "each artifact in each of its ways to run"
    assert "OpenVINO has no device 'cuda:7'; it runs on cpu and gpu" in outcome.out
    outcome = run("bench", str(bundle), "--device", "cuda:7")
    assert outcome.code == 5
    assert "nothing of this bundle can be timed here" in outcome.err
    assert run("verify", str(write_bundle(tmp_path / "small")), "--device", "cpu").code == 0


def test_results_are_on_stdout_and_quiet_when_piped(tmp_path: Path) -> None:
    outcome = run("export", "tiny-convnext", "--no-bench", "--eval-size", "32", "--out", str(tmp_path / "b"))
    assert "✔ pass" in outcome.out
    assert "\x1b[" not in outcome.out + outcome.err


def test_ctrl_c_ends_with_130_and_says_what_is_kept(tmp_path: Path) -> None:
    import os
    import signal
    import time

    # Interrupts are taken even where who runs the tests ignores them.
    start = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from deploykit.cli.app import main\nmain()\n"
    )
    words = [sys.executable, "-c", start, "export", "tiny-convnext", "--no-cache", "--out", str(tmp_path / "b")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    process.stderr.readline()  # the plan is printed: the work begins
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert not (tmp_path / "b").exists()
