"""Files that strangers made: none of them runs code, and none writes outside."""

from __future__ import annotations

from pathlib import Path

import pytest

import deploykit
from deploykit import serde
from deploykit.models.original import SourceOptions
from tests.bundles import relocate, reseal, write_bundle
from tests.e2e.support import run


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
