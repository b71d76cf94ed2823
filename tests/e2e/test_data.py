"""`--data`: labelled images of the user, in folders and in lists, judged or refused by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deploykit
from deploykit.data import rendered
from tests.bundles import relocate
from tests.e2e.support import Outcome, run

COUNT = 24


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered images as users have them: other spellings, formats and modes. Not to be changed: copy it."""
    root = tmp_path_factory.mktemp("images") / "val"
    for index in range(COUNT):
        pixels, label = rendered.render("calib", index)
        folder = root / rendered.CLASSES[label].title().replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels)
        match index:
            case 0:
                image.convert("L").save(folder / "grey.png")
            case 1:
                image.convert("CMYK").save(folder / "print.jpg")
            case 2:
                image.convert("P").save(folder / "palette.gif")
            case 3:
                image.convert("RGBA").save(folder / "transparent.webp")
            case 4:
                Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.tif")
            case _:
                image.save(folder / f"{index}.{'png' if index % 2 else 'JPEG'}")
    (root / "README.md").write_text("where these come from", encoding="utf-8")
    return root


def label_of(path: Path) -> str:
    return next(name for name in rendered.CLASSES if name.title().replace(" ", "_") == path.parent.name)


@pytest.fixture(scope="module")
def rows(val: Path) -> list[str]:
    """The same images as lines of a list that lies beside the folder."""
    paths = sorted(path for path in val.rglob("*.*") if path.suffix != ".md")
    return [f"{path.relative_to(val.parent).as_posix()};{label_of(path)}" for path in paths]


@pytest.fixture(scope="module")
def judged(val: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-convnext as ONNX, judged on the folder."""
    out = tmp_path_factory.mktemp("judged") / "tiny-convnext"
    outcome = run("export", "tiny-convnext", "--ort", "--no-bench", "--data", str(val), "--out", str(out))
    assert outcome.code == 0, outcome.err
    return out


def listed(folder: Path, rows: list[str], header: str = "image;label") -> Path:
    path = folder / "labels.csv"
    path.write_text("\n".join([header, *rows]), encoding="utf-8-sig")
    return path


def verify(bundle: Path, data: Path, *words: str) -> Outcome:
    return run("verify", str(bundle), "--data", str(data), *words)


def refused(outcome: Outcome, code: int, *texts: str) -> None:
    """Check that nothing but a complaint was printed, and which."""
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err
    assert not outcome.out
    for text in texts:
        assert text in outcome.err


def test_a_folder_is_judged_and_on_record(judged: Path, val: Path) -> None:
    evaluation = deploykit.Bundle.open(judged).manifest.evaluation
    assert evaluation is not None
    assert (evaluation.count, evaluation.images) == (COUNT, str(val))
    answers = np.load(judged / evaluation.answers.path)
    assert len(answers["labels"]) == COUNT
    assert list(answers["labels"]) == sorted(answers["labels"])
    assert (answers["top1"] == answers["labels"]).mean() > 0.6


def test_a_list_of_the_same_images_is_judged(judged: Path, val: Path, rows: list[str]) -> None:
    outcome = verify(judged, listed(val.parent, rows), "--json")
    assert outcome.code == 0, outcome.err
    (judgement,) = json.loads(outcome.out)["judgements"]
    assert judgement["metrics"]["images"] == COUNT


def test_indices_in_a_list_are_judged_by_an_export(val: Path, rows: list[str], tmp_path: Path) -> None:
    named = [row.split(";") for row in rows]
    numbered = [f"{rendered.CLASSES.index(label)}\t{val.parent / path}" for path, label in named]
    data = listed(tmp_path, numbered, "class\tfilename")
    out = tmp_path / "b"
    outcome = run("export", "tiny-convnext", "--ort", "--no-bench", "--data", str(data), "--out", str(out))
    assert outcome.code == 0, outcome.err
    evaluation = deploykit.Bundle.open(out).manifest.evaluation
    assert evaluation is not None
    expected = [rendered.CLASSES.index(label) for _, label in named]
    assert np.load(out / evaluation.answers.path)["labels"].tolist() == expected


def test_a_few_images_can_not_tell_what_bfloat16_does(bundle: Path, val: Path, rows: list[str]) -> None:
    outcome = verify(bundle, listed(val.parent, rows), "--json")
    found = json.loads(outcome.out)
    verdicts = {judgement["verdict"] for judgement in found["judgements"]}
    assert {judgement["metrics"]["images"] for judgement in found["judgements"]} == {COUNT}
    assert outcome.code == {frozenset({"pass"}): 0, frozenset({"pass", "inconclusive"}): 6}[frozenset(verdicts)]


def test_images_are_not_opened_where_a_bundle_says_that_they_are(judged: Path, val: Path) -> None:
    outcome = run("verify", str(judged))
    assert outcome.code == 6, outcome.err
    assert f"it was judged on {val}: --data PATH says where that is" in outcome.out


def test_the_same_images_are_judged_by_the_answers_in_the_bundle(judged: Path, val: Path, tmp_path: Path) -> None:
    """No original is opened for them, so that none has to be named or be here."""
    copy = Path(shutil.copytree(judged, tmp_path / "b"))
    relocate(copy, scheme="py", name="nowhere:net")
    found = deploykit.verify(copy, deploykit.VerifyOptions(data=str(val)))
    assert [judgement.metrics["images"] for judgement in found.judgements] == [COUNT]
    one = next(path for path in sorted(val.rglob("*.*")) if path.suffix != ".md")
    more = one.with_name(f"more{one.suffix}")
    more.write_bytes(one.read_bytes())
    try:
        with pytest.raises(deploykit.DeploykitError, match="not opened for its word"):
            deploykit.verify(copy, deploykit.VerifyOptions(data=str(val)))
    finally:
        more.unlink()


def test_images_that_are_gone_are_not_run(judged: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(judged, tmp_path / "b"))
    evaluation = deploykit.Bundle.open(judged).manifest.evaluation
    assert evaluation is not None
    moved = Path(evaluation.images)
    moved.rename(tmp_path / "elsewhere")
    try:
        outcome = run("verify", str(copy))
    finally:
        (tmp_path / "elsewhere").rename(moved)
    assert outcome.code == 6, outcome.err
    assert f"it was judged on {moved}: --data PATH says where that is" in outcome.out


def test_what_does_not_fit_the_model_is_exit_2_and_told_whole(judged: Path, val: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(val, tmp_path / "val"))
    (copy / "Circel").mkdir()
    (copy / "Arrow/notes.txt").touch()
    (copy / "Ring/Thumbs.db").touch()
    texts = ("has 2 faults:", "folder 'Circel' is no class of this model; near: 'circle'", "notes.txt is no image file")
    refused(verify(judged, copy), 2, *texts)
    words = ("export", "tiny-convnext", "--ort", "--data", str(copy), "--out", str(tmp_path / "b"))
    refused(run(*words), 2, *texts)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("header", "line", "text"),
    [
        ("image;label", "val/x.png;circel", "line 2: 'circel' is no class of this model; near: 'circle'"),
        ("image;label", "val/x.png;12", "line 2: 12 is no index of this model's 12 classes, from 0 to 11"),
        ("image;kind", "val/x.png;circle", "has no label column (label, class)"),
    ],
)
def test_a_list_that_does_not_fit_the_model_is_exit_2(
    judged: Path, tmp_path: Path, header: str, line: str, text: str
) -> None:
    refused(verify(judged, listed(tmp_path, [line], header)), 2, text)


def test_a_set_that_does_not_exist_is_exit_2(judged: Path, tmp_path: Path) -> None:
    refused(verify(judged, tmp_path / "nowhere.csv"), 2, "nowhere.csv does not exist")


def test_lists_of_missing_and_contradicting_images_are_exit_7(
    judged: Path, val: Path, rows: list[str], tmp_path: Path
) -> None:
    shutil.copytree(val, tmp_path / "val")
    again = rows[0].partition(";")[0]
    data = listed(tmp_path, [*rows, "val/gone.png;ring", f"{again};ring"])
    texts = ("has 2 faults:", f"line {COUNT + 2}: val/gone.png is missing", f"line {COUNT + 3}: {again} is 'ring', and")
    refused(verify(judged, data), 7, *texts)


def test_all_images_that_can_not_be_decoded_are_exit_7_at_once(judged: Path, val: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(val, tmp_path / "val"))
    (copy / "Ring/zero.png").touch()
    (copy / "Ring/text.jpg").write_text("no image", encoding="utf-8")
    whole = next(copy.rglob("*.JPEG"))
    (copy / "Ring/cut.jpg").write_bytes(whole.read_bytes()[:-600])
    Image.fromarray(np.ones((9, 9), np.float32)).save(copy / "Ring/float.tif")
    texts = ("has 4 faults:", "zero.png is no image", "text.jpg is no image", "cut.jpg can't be", "float.tif can't be")
    refused(verify(judged, copy), 7, *texts)
    words = (
        "export",
        "tiny-convnext",
        "--ort",
        "--no-bench",
        "--data",
        str(copy),
        "--out",
        str(tmp_path / "b"),
        "--json",
    )
    told = run(*words)
    assert json.loads(told.out)["error"]["exit_code"] == 7, "--json prints an object, errors too"
    refused(dataclasses.replace(told, out=""), 7, *texts)
    assert not (tmp_path / "b").exists()
