from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploykit.data import images
from deploykit.data.faults import NAMED
from deploykit.data.listing import CSV_SUFFIXES, IMAGE_COLUMNS, LABEL_COLUMNS, labelled_files
from deploykit.errors import BadInputError, DeploykitError, UsageError

LABELS = ("cat", "dog", "eel")
NAMES = ["eel/a.png", "cat/b.png", "cat/a.png", "dog/z.png"]
IMAGENET = (
    "tench, Tinca tinca (n01440764)",
    "crane (n02012849)",
    "crane (n03126707)",
    "maillot, tank suit (n03710721)",
)


def fill(root: Path, names: list[str]) -> Path:
    """Write files that nobody decodes here."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def found(path: Path, labels: tuple[str, ...] = LABELS) -> list[tuple[str, int]]:
    """Return what is listed: the last two parts of each path, and the label."""
    return [("/".join(entry.path.parts[-2:]), entry.label) for entry in labelled_files(path, labels)]


def refusal(kind: type[DeploykitError], path: Path, labels: tuple[str, ...] = LABELS) -> str:
    with pytest.raises(kind) as caught:
        labelled_files(path, labels)
    assert type(caught.value) is kind
    assert str(path) in caught.value.message
    return caught.value.message


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_folders_are_listed_in_the_order_of_classes_and_file_names(tmp_path: Path) -> None:
    fill(tmp_path, NAMES)
    assert found(tmp_path) == [("cat/a.png", 0), ("cat/b.png", 0), ("dog/z.png", 1), ("eel/a.png", 2)]
    turned = [("eel/a.png", 0), ("dog/z.png", 1), ("cat/a.png", 2), ("cat/b.png", 2)]
    assert found(tmp_path, LABELS[::-1]) == turned


def test_the_order_does_not_depend_on_when_files_were_written(tmp_path: Path) -> None:
    assert found(fill(tmp_path / "one", NAMES)) == found(fill(tmp_path / "two", NAMES[::-1]))


def test_classes_may_be_absent_or_empty(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    assert found(fill(tmp_path, ["eel/a.png"])) == [("eel/a.png", 2)]


@pytest.mark.parametrize("suffix", images.SUFFIXES)
def test_suffixes_are_taken_in_any_case(tmp_path: Path, suffix: str) -> None:
    assert len(found(fill(tmp_path, [f"cat/a{suffix}", f"cat/b{suffix.upper()}"]))) == 2


@pytest.mark.parametrize("name", ["n01440764", "tench", "Tench", "tinca_tinca", IMAGENET[0]])
def test_folders_may_be_called_by_any_name_of_an_imagenet_class(tmp_path: Path, name: str) -> None:
    assert found(fill(tmp_path, [f"{name}/a.png"]), IMAGENET) == [(f"{name}/a.png", 0)]


def test_folders_that_are_no_class_are_refused_by_name(tmp_path: Path) -> None:
    fill(tmp_path, [*NAMES, "eels/a.png"])
    assert refusal(UsageError, tmp_path) == f"{tmp_path}: folder 'eels' is no class of this model; near: 'eel'"
    fill(tmp_path, ["giraffe/a.png"])
    message = refusal(UsageError, tmp_path)
    assert "has 2 faults:" in message
    assert "folder 'giraffe' is no class of this model; its classes: 'cat', 'dog', 'eel'" in message


def test_an_ambiguous_folder_is_refused_with_what_it_may_be(tmp_path: Path) -> None:
    message = refusal(UsageError, fill(tmp_path, ["crane/a.png"]), IMAGENET)
    assert "folder 'crane' may be any of 'crane (n02012849)', 'crane (n03126707)'" in message


@pytest.mark.parametrize("other", ["Cat", "CAT", "cat "])
def test_two_folders_of_one_class_are_refused(tmp_path: Path, other: str) -> None:
    fill(tmp_path, [*NAMES, f"{other}/c.png"])
    first, second = sorted(["cat", other])
    assert refusal(UsageError, tmp_path).endswith(f"folders {first!r} and {second!r} are the same class")


@pytest.mark.parametrize("name", ["notes.txt", "a.heic", "a.npy", "a", "a.png.bak", "a.svg", "Thumbs.db.png.txt"])
def test_other_files_in_a_class_are_refused_by_name(tmp_path: Path, name: str) -> None:
    fill(tmp_path, [*NAMES, f"dog/{name}"])
    with pytest.raises(UsageError) as caught:
        labelled_files(tmp_path, LABELS)
    assert caught.value.message == f"{tmp_path}: {Path('dog', name)} is no image file"
    assert ".jpg, .jpeg" in caught.value.hints[0].effect


def test_many_other_files_are_named_up_to_a_few_and_counted(tmp_path: Path) -> None:
    message = refusal(UsageError, fill(tmp_path, [*NAMES, *(f"cat/{index:03}.xml" for index in range(150))]))
    assert "has 150 faults:" in message
    assert message.count(".xml is no image file") == NAMED
    assert message.endswith(f"and {150 - NAMED} more")


def test_hidden_things_litter_and_notes_beside_the_classes_are_left_out(tmp_path: Path) -> None:
    litter = ["cat/.DS_Store", "cat/Thumbs.db", "cat/desktop.ini", "cat/._a.png", "cat/.thumbs/a.png", "Thumbs.db"]
    fill(tmp_path, [*NAMES, *litter, ".git/a.png", ".hidden.png", "README.md", "labels.csv"])
    assert len(found(tmp_path)) == len(NAMES)


def test_images_beside_the_classes_are_refused(tmp_path: Path) -> None:
    assert refusal(UsageError, fill(tmp_path, [*NAMES, "a.png"])).endswith("a.png lies outside the class folders")
    message = refusal(UsageError, fill(tmp_path / "flat", ["a.png", "b.jpg"]))
    assert "has 2 faults:" in message


def test_folders_within_a_class_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, [*NAMES, "cat/rejected/a.png"])
    assert refusal(UsageError, tmp_path).endswith(f"{Path('cat/rejected')} is a folder within a class")


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    fill(tmp_path, [*NAMES, "yak/a.png", "a.png", "cat/x/a.png", "dog/a.txt", "Dog/a.png"])
    message = refusal(UsageError, tmp_path)
    assert "has 5 faults:" in message
    for name in ("'yak'", "a.png lies", "x is a folder", "a.txt is no", "'Dog' and 'dog'"):
        assert name in message


def test_no_images_at_all_are_bad_input(tmp_path: Path) -> None:
    assert "holds no images" in refusal(BadInputError, tmp_path)
    (tmp_path / "cat").mkdir()
    assert "holds no images" in refusal(BadInputError, tmp_path)


def test_links_are_followed_and_those_to_nowhere_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "store", ["x/a.png"])
    root = fill(tmp_path / "val", ["dog/z.png"])
    (root / "cat").symlink_to(tmp_path / "store/x")
    (root / "dog/a.png").symlink_to(tmp_path / "store/x/a.png")
    assert found(root) == [("cat/a.png", 0), ("dog/a.png", 1), ("dog/z.png", 1)]
    (root / "eel").symlink_to(tmp_path / "gone")
    (root / "dog/b.png").symlink_to(tmp_path / "gone")
    message = refusal(UsageError, root)
    assert "eel is a link that leads nowhere" in message
    assert f"{Path('dog/b.png')} is missing" in message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_no_image_and_nobody_waits_for_it(tmp_path: Path) -> None:
    fill(tmp_path, NAMES)
    os.mkfifo(tmp_path / "cat/pipe.png")
    assert refusal(UsageError, tmp_path).endswith("pipe.png is no file")
    assert refusal(BadInputError, listed(tmp_path, "image,label\ncat/pipe.png,cat\n")).endswith("pipe.png is no file")


# ---- CSV -------------------------------------------------------------------------------------------------------------


def listed(root: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    """Write a list beside the images."""
    (fill(root, NAMES) / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root / name


EXPECTED = [("dog/z.png", 1), ("cat/a.png", 0)]


@pytest.mark.parametrize("image", IMAGE_COLUMNS)
@pytest.mark.parametrize("label", LABEL_COLUMNS)
def test_columns_are_found_by_name_wherever_they_stand(tmp_path: Path, image: str, label: str) -> None:
    path = listed(tmp_path, f" {label.upper()} ,split,{image.title()}\ndog,val, dog/z.png\ncat,val,cat/a.png \n")
    assert found(path) == EXPECTED


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_what_spreadsheets_write_is_read(tmp_path: Path, delimiter: str, ending: str, mark: str, quote: str) -> None:
    rows = [("image", "label"), ("dog/z.png", "dog"), ("cat/a.png", "cat")]
    text = ending.join(delimiter.join(f"{quote}{cell}{quote}" for cell in row) for row in rows)
    assert found(listed(tmp_path, mark + text)) == EXPECTED


@pytest.mark.parametrize("name", [f"labels{suffix}" for suffix in CSV_SUFFIXES] + ["LABELS.CSV"])
def test_lists_are_known_by_their_suffix(tmp_path: Path, name: str) -> None:
    assert found(listed(tmp_path, "image\tlabel\ndog/z.png\tdog\ncat/a.png\tcat\n", name)) == EXPECTED


def test_blank_lines_say_nothing(tmp_path: Path) -> None:
    text = "\n  \n,\nimage,label\n\ndog/z.png,dog\n , \ncat/a.png,cat\n\n"
    assert found(listed(tmp_path, text)) == EXPECTED


def test_quoted_fields_hold_delimiters_and_quotes(tmp_path: Path) -> None:
    path = listed(tmp_path, 'image,label\ncat/a.png,"tench, Tinca tinca"\n"cat/b.png","the ""big"" one"\n')
    assert found(path, ("tench, Tinca tinca", 'the "big" one')) == [("cat/a.png", 0), ("cat/b.png", 1)]


def test_labels_are_names_in_any_spelling(tmp_path: Path) -> None:
    path = listed(tmp_path, "image,label\ncat/a.png,n01440764\ncat/b.png,TENCH\ndog/z.png,tinca-tinca\n")
    assert [label for _, label in found(path, IMAGENET)] == [0, 0, 0]


def test_integers_are_indices(tmp_path: Path) -> None:
    path = listed(tmp_path, "image,label\ncat/a.png,2\ncat/b.png,0\ndog/z.png,2\n")
    assert [label for _, label in found(path)] == [2, 0, 2]


def test_integers_are_names_where_a_class_is_called_by_one(tmp_path: Path) -> None:
    path = listed(tmp_path, "image,label\ncat/a.png,2\ncat/b.png,0\n")
    assert [label for _, label in found(path, ("2", "1", "0"))] == [0, 2]
    assert "line 2: '2' is no class of this model" in refusal(UsageError, path, ("0", "1", "cat"))


def test_integers_among_names_are_no_indices(tmp_path: Path) -> None:
    path = listed(tmp_path, "image,label\ncat/a.png,cat\ncat/b.png,0\n")
    assert "line 3: '0' is no class of this model" in refusal(UsageError, path)


@pytest.mark.parametrize("index", ["3", "-1", "999999999"])
def test_an_index_out_of_range_is_refused(tmp_path: Path, index: str) -> None:
    path = listed(tmp_path, f"image,label\ncat/a.png,0\ncat/b.png,{index}\n")
    assert refusal(UsageError, path).endswith(f"line 3: {index} is no index of this model's 3 classes, from 0 to 2")


def test_an_unknown_class_is_refused_with_line_and_near_names(tmp_path: Path) -> None:
    path = listed(tmp_path, "image,label\ncat/a.png,cat\ndog/z.png,dgo\n")
    assert refusal(UsageError, path).endswith("labels.csv: line 3: 'dgo' is no class of this model; near: 'dog'")


def test_each_unknown_class_is_told_once(tmp_path: Path) -> None:
    rows = "".join(f"{index}.png,{'yak' if index % 2 else 'emu'}\n" for index in range(100))
    message = refusal(UsageError, listed(tmp_path, f"image,label\n{rows}"))
    assert "has 2 faults:" in message
    assert "line 2: 'emu' is no class of this model; its classes: 'cat', 'dog', 'eel' (and in 49 more lines)" in message


@pytest.mark.parametrize(
    ("header", "wrong"),
    [
        ("image", "no label column (label, class)"),
        ("label", "no image column (image, path, file, filename)"),
        ("cat/a.png,cat", "'cat/a.png', 'cat' has no image column (image, path, file, filename) and no label column"),
        ("images|labels", "'images|labels' has no image column"),
        ("image,path,label", "its header has 2 image columns, 'image', 'path'"),
        ("image,label,Label", "its header has 2 label columns, 'label', 'Label'"),
    ],
)
def test_a_header_without_or_with_too_many_columns_is_refused(tmp_path: Path, header: str, wrong: str) -> None:
    assert wrong in refusal(UsageError, listed(tmp_path, f"{header}\ncat/a.png,cat,cat\n"))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("\ufeff", "is empty"),
        ("image,label\n", "lists no images"),
        ("image,label\n,\n", "lists no images"),
        ("image,label\ncat/a.png\n", "line 2 has 1 fields, the header 2"),
        ("image,label\ncat/a.png,tench, Tinca tinca\n", "line 2 has 3 fields, the header 2"),
        ("image,label\ncat/a.png,\n", "line 2 names no class"),
        ("image,label\n,cat\n", "line 2 names no image"),
        ("image,label\ncat/a.png,cat\n,cat\ncat/b.png\n", "has 2 faults:\n  line 3 names no image\n  line 4 has 1"),
        ('image,label\ncat/a.png,"cat\n', "line 2: unexpected end of data"),
        ('image,label\n"cat/a.png"x,cat\n', "line 2: ',' expected"),
        (f"image,label\ncat/a.png,{'x' * 200_000}\n", "line 2: field larger than"),
        ("image,label\ncat/gone.png,cat\n", "line 2: cat/gone.png is missing"),
        ("image,label\ncat,cat\n", "line 2: cat is no file"),
        ("image,label\na\0b.png,cat\n", "line 2: "),
        ("image,label\ncat/a.png/x,cat\n", "line 2: cat/a.png/x can't be read: Not a directory"),
        (f"image,label\n{'x' * 5000}.png,cat\n", "can't be read: File name too long"),
        ("image,label\nhttps://example.com/a.png,cat\n", "line 2: https://example.com/a.png is missing"),
        (
            "image,label\n1.png,cat\n2.png,dog\n",
            "has 2 faults:\n  line 2: 1.png is missing\n  line 3: 2.png is missing",
        ),
    ],
)
def test_a_list_that_makes_no_sense_is_bad_input(tmp_path: Path, text: str, wrong: str) -> None:
    assert wrong in refusal(BadInputError, listed(tmp_path, text))


@pytest.mark.parametrize(
    "data", ["image,label\n".encode("utf-16"), b"image,label\nbl\xe4.png,cat\n", b"\x89PNG\r\n\x1a\n"], ids=repr
)
def test_what_is_no_utf_8_is_bad_input(tmp_path: Path, data: bytes) -> None:
    assert "is no UTF-8 text" in refusal(BadInputError, listed(tmp_path, data))


@pytest.mark.parametrize("again", ["cat/a.png", "./cat/a.png", "dog/../cat/a.png", "link.png"])
def test_an_image_is_listed_once(tmp_path: Path, again: str) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "cat/a.png")
    path = listed(tmp_path, f"image,label\ncat/a.png,cat\ndog/z.png,dog\n{again},dog\n")
    assert refusal(BadInputError, path).endswith(f"line 4: {again} is 'dog', and 'cat' in line 2")
    path = listed(tmp_path, f"image,label\ncat/a.png,cat\ndog/z.png,dog\n{again},Cat\n")
    assert refusal(BadInputError, path).endswith(f"line 4: {again} is in line 2 already, and would count twice")


def test_paths_are_relative_to_the_list_and_not_to_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = listed(tmp_path / "set", "image,label\ncat/a.png,cat\n")
    monkeypatch.chdir(fill(tmp_path / "elsewhere", ["cat/a.png"]))
    (entry,) = labelled_files(Path("../set/labels.csv"), LABELS)
    assert entry.path.resolve() == path.parent / "cat/a.png"


def test_paths_may_be_absolute_or_lead_out_of_the_folder(tmp_path: Path) -> None:
    """It is the user's own list: files are hashed and decoded, and nothing of them gets into a bundle."""
    fill(tmp_path / "store", ["x/a.png", "x/b.png"])
    path = listed(tmp_path / "set", f"image,label\n{tmp_path / 'store/x/a.png'},cat\n../store/x/b.png,dog\n")
    assert found(path) == [("x/a.png", 0), ("x/b.png", 1)]


def test_images_are_listed_whatever_their_suffix(tmp_path: Path) -> None:
    """Who names a file means it: whether it is an image is known when it is decoded."""
    fill(tmp_path, ["scan", "b.dat"])
    assert len(found(listed(tmp_path, "image,label\nscan,cat\nb.dat,dog\n"))) == 2


# ---- what may not be read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["val", "val/cat", "val/labels.csv"])
def test_what_may_not_be_read_is_bad_input(bound: Path, name: str) -> None:
    path = listed(bound / "val", "image,label\ncat/a.png,cat\n")
    (bound / name).chmod(0)
    try:
        with pytest.raises(BadInputError, match=rf"{name}.* can't be read: Permission denied"):
            labelled_files(path if name.endswith(".csv") else path.parent, LABELS)
    finally:
        (bound / name).chmod(0o700)


def test_folders_that_may_be_read_but_not_entered_are_bad_input(bound: Path) -> None:
    path = listed(bound, "image,label\ncat/a.png,cat\n")
    (bound / "cat").chmod(0o400)
    try:
        assert "line 2: cat/a.png can't be read: Permission denied" in refusal(BadInputError, path)
        with pytest.raises(BadInputError, match=r"cat.a\.png can't be read: Permission denied"):
            labelled_files(bound, LABELS)
    finally:
        (bound / "cat").chmod(0o700)
