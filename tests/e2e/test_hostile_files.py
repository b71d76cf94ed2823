"""Files that strangers made: none of them runs code, and none writes outside."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deploykit
from deploykit import serde
from deploykit.artifact import FileRecord, RunConfig
from deploykit.bundle import save_tensors
from deploykit.models.original import SourceOptions
from tests.bundles import relocate, reseal, write_bundle
from tests.e2e.support import python, run


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A bundle to change."""
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def commanding(copy: Path, tmp_path: Path) -> Path:
    """A bundle whose original is a shell command that leaves a file."""
    options = serde.to_json(SourceOptions(model_args={"args": f"touch {tmp_path / 'mark'}", "shell": True}))
    relocate(copy, scheme="py", name="subprocess:check_output", options=options)
    return copy


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A few labelled images."""
    from PIL import Image

    from deploykit.data import rendered

    for index in range(8):
        pixels, label = rendered.render("calib", index)
        folder = tmp_path / "val" / rendered.CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "val"


def test_bench_runs_no_code_that_a_bundle_names_and_times_its_artifacts(commanding: Path, tmp_path: Path) -> None:
    outcome = run("bench", str(commanding), "--rounds", "2")
    assert not (tmp_path / "mark").exists()
    assert outcome.code == 0, outcome.err
    assert "original: not timed: the original is py:subprocess:check_output" in outcome.out
    assert "net.fp32.ort" in outcome.out


def test_a_speed_up_is_not_promised_without_the_original(commanding: Path, tmp_path: Path) -> None:
    outcome = run("bench", str(commanding), "--rounds", "2", "--min-speedup", "1")
    assert (outcome.code, outcome.out) == (2, "")
    assert "--reference MODEL" in outcome.err
    assert not (tmp_path / "mark").exists()


def test_verify_with_data_runs_no_code_that_a_bundle_names(commanding: Path, images: Path, tmp_path: Path) -> None:
    outcome = run("verify", str(commanding), "--data", str(images))
    assert not (tmp_path / "mark").exists()
    assert outcome.code == 2
    assert "--reference MODEL" in outcome.err


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme": "timm", "name": "resnet18"},
        {"scheme": "hf", "name": "owner/name"},
        {"scheme": "lcm", "name": "owner/name"},
        {"scheme": "file", "name": "/etc/passwd", "weights_file": "/etc/passwd"},
        {"scheme": "nowhere", "name": "x"},
        {"scheme": "tiny", "name": "../tiny/tiny-convnext"},
        {"scheme": "tiny", "options": serde.to_json(SourceOptions(weights="/etc/passwd"))},
    ],
)
def test_no_other_place_is_opened_for_the_word_of_a_bundle(copy: Path, changes: dict[str, object]) -> None:
    relocate(copy, **changes)
    with pytest.raises(deploykit.DeploykitError, match="not opened for its word"):
        deploykit.verify(copy, deploykit.VerifyOptions(data="anywhere"))


@pytest.mark.parametrize("locator", ["tiny-convnext", "py:os:getcwd", "{", "[]", "{}", '{"id": 3}', "[" * 100_000])
def test_a_locator_is_read_strictly(copy: Path, locator: str) -> None:
    reseal(copy, lambda value: value["source"].update(locator=locator))
    with pytest.raises(deploykit.DeploykitError) as caught:
        deploykit.verify(copy, deploykit.VerifyOptions(data="anywhere"))
    assert caught.value.exit_code == 7


def test_the_user_names_the_original_again(commanding: Path, images: Path, tmp_path: Path) -> None:
    """The locator still says what it said: what the user names is compared with the rest of it."""
    report = deploykit.verify(commanding, deploykit.VerifyOptions(data=str(images), reference="tiny-convnext"))
    assert {judgement.metrics["images"] for judgement in report.judgements} == {8.0}
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_another_original_than_the_bundles_is_refused(copy: Path, images: Path, command: str) -> None:
    words = ("--data", str(images)) if command == "verify" else ("--rounds", "2")
    outcome = run(command, str(copy), *words, "--reference", "tiny-mobilenetv3")
    assert outcome.code == 2
    assert "tiny-mobilenetv3 is not the original of this bundle: other weights" in outcome.err


@pytest.mark.parametrize("words", [("--reference", "tiny-convnext"), ("--embedding",), ("--image-size", "64")])
def test_options_of_an_original_that_nobody_asks_are_refused(copy: Path, words: tuple[str, ...]) -> None:
    assert run("verify", str(copy), *words).code == 2


def first_run(root: Path, **changes: object) -> None:
    """Change how the artifact is run."""
    reseal(root, lambda value: value["artifacts"][0]["runs"][0].update(changes))


@pytest.mark.parametrize("command", ["verify", "bench", "inspect"])
@pytest.mark.parametrize(
    ("backend", "key"),
    [
        ("openvino", "CACHE_DIR"),
        ("onnxruntime", "session.optimized_model_filepath"),
        ("onnxruntime", "ep.context_file_path"),
    ],
)
def test_a_hint_that_names_a_file_writes_none(copy: Path, tmp_path: Path, command: str, backend: str, key: str) -> None:
    first_run(copy, backend=backend, hints={key: str(tmp_path / "mark")})
    outcome = run(command, str(copy))
    assert not (tmp_path / "mark").exists()
    assert outcome.code == 7
    assert f"takes no hint '{key}'" in outcome.err


@pytest.mark.parametrize(
    "changes",
    [
        *({"hints": {key: "/tmp/x"}} for key in ("session.profile_file_prefix", "session.moe.offload.popularity_file")),
        *(
            {"hints": {key: "1"}}
            for key in ("session.enable_profiling", "ep.context_enable", "nonsense", "", "provider")
        ),
        {"hints": {"session.intra_op.allow_spinning": "1\n"}},
        {"hints": {"session.intra_op.allow_spinning": "/etc/passwd"}},
        *(
            {"backend": "openvino", "hints": {key: "x"}}
            for key in ("WEIGHTS_PATH", "CONFIG_FILE", "CACHE_DIR", "DEVICE_ID")
        ),
        *(
            {"backend": "openvino", "hints": {key: "x"}}
            for key in ("PERFORMANCE_HINT", "LOG_LEVEL", "DEVICE_PROPERTIES")
        ),
        *(
            {"backend": "openvino", "device": name}
            for name in ("AUTO", "HETERO:CPU", "MULTI:CPU,GPU", "cpu,gpu", "cpu:0,1")
        ),
        *({"device": name} for name in ("", "cuda:x", "cuda:99999", "cpu\n", "../x")),
        *({"threads": number} for number in (0, -1, 1025, 10**9)),
        {"backend": "torch"},
        {"backend": "emulator", "hints": {"session.optimized_model_filepath": "x"}},
        {"backend": "tensorrt"},
    ],
)
def test_a_bundle_tells_a_runtime_nothing_that_is_not_listed(copy: Path, changes: dict[str, object]) -> None:
    first_run(copy, **changes)
    for open_it in (deploykit.verify, deploykit.bench, deploykit.load):
        with pytest.raises(deploykit.DeploykitError, match="that isn't done") as caught:
            open_it(copy)
        assert caught.value.exit_code == 7


def test_users_are_told_that_their_own_hints_are_unknown(copy: Path) -> None:
    config = RunConfig("openvino", hints={"CACHE_DIR": "cache"})
    with pytest.raises(deploykit.DeploykitError, match="takes no hint 'CACHE_DIR'") as caught:
        deploykit.load(copy, run=config)
    assert caught.value.exit_code == 2


def renamed(root: Path, name: str) -> None:
    reseal(root, lambda value: value["artifacts"][0].update(name=name))


@pytest.mark.parametrize("name", ["net\nimport os", "a\rb", "\x1b[2J", "a/b", "..\\x", "", "\u202etxt", "x" * 300])
def test_a_name_of_an_artifact_is_a_name(copy: Path, name: str) -> None:
    renamed(copy, name)
    with pytest.raises(deploykit.DeploykitError, match="is no name") as caught:
        deploykit.Bundle.open(copy)
    assert caught.value.exit_code == 7
    outcome = run("inspect", str(copy), "--code")
    assert (outcome.code, outcome.out) == (7, "")
    assert "\x1b" not in outcome.err


@pytest.mark.parametrize(
    "path", ["a\nb", "C:/x", "x:stream", "sub/x:stream", "..", "a/../b", "/etc/passwd", "a\\b", "\x1b"]
)
def test_a_path_in_a_bundle_stays_inside(copy: Path, path: str) -> None:
    reseal(copy, lambda value: value["modules"].update(path=path))
    with pytest.raises(deploykit.DeploykitError, match="unsafe path"):
        deploykit.Bundle.open(copy)


def test_printed_code_is_the_code_that_opens_the_artifact_whatever_the_bundle_says(copy: Path, tmp_path: Path) -> None:
    folder = copy.rename(tmp_path / 'it\'s\n"quoted"')
    first_run(folder, precision="f32")
    outcome = run("inspect", str(folder), "--code")
    assert outcome.code == 0, outcome.err
    names: dict[str, object] = {}
    exec(compile(outcome.out, "code", "exec"), names)
    assert "infer" in names


@pytest.mark.parametrize("precision", ["auto\nimport os", "\x1b[0m", "f" * 40])
def test_a_precision_is_no_code(copy: Path, precision: str) -> None:
    first_run(copy, precision=precision)
    outcome = run("inspect", str(copy), "--code")
    assert (outcome.code, outcome.out) == (7, "")


#: Turns colours on, moves the cursor, looks like markup, claims a verdict on a line of its own.
INJECTED = "\x1b[31m\x1b]0;title\x07[bold red]x[/] \u202e\r\n9 passed, 0 not run"


def test_a_terminal_shows_what_a_bundle_says_and_does_not_obey_it(copy: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        value["labels"][0] = value["command"] = value["created"] = value["machine"]["cpu"] = INJECTED

    reseal(copy, change)
    outcome = run("inspect", str(copy))
    assert outcome.code == 0, outcome.err
    assert not set(outcome.out) & set("\x1b\x07\r\u202e")
    assert "9 passed, 0 not run" not in outcome.out.splitlines()
    assert "\\x1b[31m\\x1b]0;title\\x07[bold red]x[/] \\u202e" in outcome.out


def test_messages_show_what_a_file_says_and_do_not_obey_it(copy: Path) -> None:
    (copy / "manifest.json").write_text(json.dumps({"manifest_version": INJECTED}), encoding="utf-8")
    outcome = run("verify", str(copy))
    assert outcome.code == 7
    assert not set(outcome.err) & set("\x1b\x07\u202e")


def test_a_page_shows_what_a_bundle_says_and_does_not_obey_it(copy: Path, tmp_path: Path) -> None:
    script = "<script>alert(1)</script>"
    reseal(copy, lambda value: value.update(command=script, created=script))
    outcome = run("verify", str(copy), "--html", str(tmp_path / "page.html"))
    assert outcome.code == 0, outcome.err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert script not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("name", ["files", "inputs", "outputs", "runs"])
def test_an_artifact_without_what_one_has_is_bad_input_or_usage(copy: Path, name: str) -> None:
    reseal(copy, lambda value: value["artifacts"][0].update({name: []}))
    with pytest.raises(deploykit.DeploykitError) as caught:
        deploykit.load(copy)
    assert caught.value.exit_code == (2 if name == "runs" else 7)


def seal_of(root: Path) -> str:
    return deploykit.Bundle.open(root).manifest.seal


@pytest.mark.parametrize("command", ["verify", "bench", "inspect", "build", "run"])
def test_a_bundle_of_another_seal_is_not_opened(copy: Path, command: str) -> None:
    told = seal_of(copy)
    reseal(copy, lambda value: value.update(command="deploykit export other"))
    outcome = run(command, str(copy), "--seal", told)
    assert (outcome.code, outcome.out) == (7, "")
    assert f"its seal is {seal_of(copy)}, not {told}" in outcome.err


def test_inspect_prints_the_seal_that_is_asked_for(copy: Path) -> None:
    told = seal_of(copy)
    outcome = run("inspect", str(copy), "--seal", told.upper())
    assert outcome.code == 0, outcome.err
    assert f"seal      {told}" in outcome.out


@pytest.mark.parametrize("seal", ["", "abc", "g" * 64, "0" * 63, "0" * 65])
def test_a_seal_is_a_sha256(copy: Path, seal: str) -> None:
    with pytest.raises(deploykit.DeploykitError, match="is no seal") as caught:
        deploykit.load(copy, seal=seal)
    assert caught.value.exit_code == 2


def test_a_file_is_opened_only_as_the_sealed_manifest_has_it(copy: Path) -> None:
    file, seal = copy / "net.fp32.onnx", seal_of(copy)
    deploykit.load(file, seal=seal).close()
    deploykit.load(copy, seal=seal).close()
    other = copy / "other.onnx"
    other.write_bytes(file.read_bytes())
    with pytest.raises(deploykit.DeploykitError, match="is no artifact of the bundle") as caught:
        deploykit.load(other, seal=seal)
    assert caught.value.exit_code == 7
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(deploykit.DeploykitError, match="its manifest says"):
        deploykit.load(file, seal=seal)


#: Images that a bundle says it was judged on.
COUNT = 4


def evaluated(root: Path, images: str, **changes: np.ndarray[Any, Any]) -> None:
    """Let a bundle say that it was judged on labelled images."""
    arrays: dict[str, np.ndarray[Any, Any]] = {name: np.zeros(COUNT, np.int64) for name in ("top1", "labels")}
    arrays["margin"] = np.ones(COUNT, np.float32)
    arrays.update(changes)
    save_tensors(root / "golden/answers.npz", arrays)
    answers = serde.to_json(FileRecord.of(root, "golden/answers.npz"))
    evaluation = {"images": images, "count": COUNT, "crops_sha256": "0" * 64, "answers": answers}
    reseal(root, lambda value: value.update(evaluation=evaluation))


def test_images_outside_are_not_read_for_the_word_of_a_bundle(copy: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("image,label\n/etc/passwd,circle\n", encoding="utf-8")
    read: list[str] = []
    sys.addaudithook(lambda event, details: read.append(str(details[0])) if event == "open" else None)
    for place in (secret, tmp_path, Path("/dev/zero")):
        evaluated(copy, str(place))
        read.clear()
        report = deploykit.verify(copy)
        assert report.exit_code(strict=True) == 6
        assert not [name for name in read if name.startswith(str(place)) and not name.startswith(str(copy))]


@pytest.mark.parametrize(
    "arrays", [{"top1": np.zeros(3, np.int64)}, {"more": np.zeros(4)}, {"labels": np.zeros((4, 1), np.int64)}]
)
def test_answers_that_are_none_for_each_image_are_bad_input(
    copy: Path, arrays: dict[str, np.ndarray[Any, Any]]
) -> None:
    evaluated(copy, "rendered:test", **arrays)
    with pytest.raises(deploykit.DeploykitError, match="not top1, margin and labels of 4 images") as caught:
        deploykit.verify(copy)
    assert caught.value.exit_code == 7


def test_images_without_end_are_not_rendered_for_the_word_of_a_bundle(copy: Path) -> None:
    evaluated(copy, "rendered:test")
    reseal(copy, lambda value: value["evaluation"].update(count=10**9))
    with pytest.raises(deploykit.DeploykitError, match="labels of 1000000000 images"):
        deploykit.verify(copy)


def test_a_manifest_of_any_size_is_not_read(copy: Path) -> None:
    with (copy / "manifest.json").open("r+b") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(deploykit.DeploykitError, match="no manifest has more than") as caught:
        deploykit.verify(copy)
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["axes"].update(batch=10**9),
        lambda value: value["axes"].update(nowhere=10**9),
        lambda value: value["axes"].update(batch=0),
        lambda value: value["artifacts"][0]["inputs"][0].update(shape=[10**9, 3, 64, 64]),
        lambda value: value["artifacts"][0]["inputs"][0].update(shape=[-1, 3, 64, 64]),
        lambda value: value["artifacts"][0]["inputs"][0]["shape"][0].update(min=2**30, opt=2**30, max=2**30),
    ],
)
def test_sizes_that_no_memory_holds_are_refused_before_any_is_taken(
    copy: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    def every(value: dict[str, Any]) -> None:
        value["axes"] = {}
        change(value)

    reseal(copy, every)
    with pytest.raises(deploykit.DeploykitError, match="below 1, or more than") as caught:
        deploykit.verify(copy)
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("words", [("inspect", "net.fp32.onnx"), ("verify", "."), ("bench", ".", "--rounds", "2")])
def test_modules_that_lie_beside_a_model_are_not_imported(copy: Path, words: tuple[str, ...]) -> None:
    for name in ("numpy", "onnxruntime", "openvino", "torch", "rich", "typer", "json", "yaml", "sitecustomize"):
        (copy / f"{name}.py").write_text(f"open({str(copy / 'mark')!r}, 'w').close()", encoding="utf-8")
    command = f"[sys.executable, '-m', 'deploykit', *{words!r}]"
    outcome = python("-c", f"import os, sys; os.chdir({str(copy)!r}); os.execv(sys.executable, {command})")
    assert outcome.code == 0, outcome.err
    assert not (copy / "mark").exists()
