from __future__ import annotations

import unicodedata

import pytest

from deploykit.data.classnames import FEW, NEAR, ClassIndices, ClassNames, classes_by_name_or_index

FISH = ("tench, Tinca tinca (n01440764)", "goldfish, Carassius auratus (n01443537)", "great white shark (n01484850)")
TWINS = (
    "crane (n02012849)",
    "crane (n03126707)",
    "Cardigan, Cardigan Welsh corgi (n02113186)",
    "cardigan (n02963159)",
    "harmonica, mouth organ, harp (n03494278)",
    "harp (n03495258)",
    "cornet, horn (n03110669)",
    "French horn, horn (n03394916)",
)


@pytest.mark.parametrize("name", ["", " ", "kitten", "tenches", "Tinca", "n0144076", "n01440764)", "tench,"])
def test_an_unknown_name_is_no_class(name: str) -> None:
    assert ClassNames(FISH).find(name) == ()


@pytest.mark.parametrize(
    ("name", "index"),
    [
        (FISH[1], 1),
        ("n01440764", 0),
        ("N01443537", 1),
        ("tench", 0),
        ("TENCH", 0),
        ("Tinca tinca", 0),
        ("tinca_tinca", 0),
        ("great-white_Shark", 2),
        ("great  white shark ", 2),
    ],
)
def test_imagenet_labels_answer_to_their_id_and_to_each_of_their_names(name: str, index: int) -> None:
    assert ClassNames(FISH).find(name) == (index,)


@pytest.mark.parametrize(
    ("name", "indices"),
    [
        ("crane", (0, 1)),
        ("n03126707", (1,)),
        ("Cardigan", (2,)),
        ("cardigan", (3,)),
        ("CARDIGAN", (2, 3)),
        ("harp", (5,)),
        ("horn", (6, 7)),
    ],
)
def test_the_nearest_kind_of_fit_decides_and_two_in_it_are_ambiguous(name: str, indices: tuple[int, ...]) -> None:
    assert ClassNames(TWINS).find(name) == indices


def test_exact_labels_come_before_loose_ones() -> None:
    classes = ClassNames(("cat", "Cat", "hot dog", "hot-dog"))
    assert [classes.find(name) for name in ("cat", "Cat", "hot-dog")] == [(0,), (1,), (3,)]
    assert [classes.find(name) for name in ("CAT", "hot_dog")] == [(0, 1), (2, 3)]


def test_labels_without_an_id_have_several_names_too() -> None:
    classes = ClassNames(("tench, Tinca tinca", "goldfish, Carassius auratus", "red, large", "red, small"))
    assert [classes.find(name) for name in ("Tench", "carassius-auratus", "tench, tinca tinca")] == [(0,), (1,), (0,)]
    assert [classes.find(name) for name in ("red", "RED", "large", "n01440764")] == [(2, 3), (2, 3), (2,), ()]


def test_other_signs_in_labels_part_no_names() -> None:
    classes = ClassNames(("1,000 bill", "crane (bird)", "(n01440764)", ",", "", ", (n01440765)"))
    for name in ("1", "000 bill", "crane", "bird", "n01440764", "n0144076", "x"):
        assert classes.find(name) == ()
    assert [classes.find(name) for name in (",", "", "n01440765", "Crane (Bird)")] == [(3,), (4,), (5,), (1,)]


def test_two_equal_labels_are_ambiguous() -> None:
    assert ClassNames(("cat", "cat")).find("cat") == (0, 1)


def test_accents_are_the_same_taken_apart_or_not() -> None:
    """macOS hands back "ö" as two characters."""
    apart = unicodedata.normalize("NFD", "Zwölf Öfen")
    assert apart != "Zwölf Öfen"
    assert ClassNames(("Zwölf Öfen",)).find(apart) == (0,)
    assert ClassNames((apart,)).find("zwölf_öfen") == (0,)


def test_complaints_show_near_names_and_not_all() -> None:
    many = (*(f"thing number {index}" for index in range(1000)), *FISH)
    complaint = ClassNames(many).complaint("Tinca_tinka")
    assert complaint.startswith(f"'Tinca_tinka' is no class of this model; near: {FISH[0]!r}")
    assert ClassNames(many).complaint("thing number").count("'thing number ") == NEAR
    far = ClassNames(many).complaint("zzz")
    assert far == f"'zzz' is no class of this model; its classes: {', '.join(map(repr, many[:NEAR]))} and 1000 more"


def test_complaints_show_all_of_a_few_classes() -> None:
    few = tuple(f"a{index}" for index in range(FEW))
    assert ClassNames(few).complaint("zzz").endswith(f"its classes: {', '.join(map(repr, few))}")


def test_complaints_show_what_an_ambiguous_name_may_be() -> None:
    complaint = ClassNames(TWINS).complaint("crane")
    assert complaint == "'crane' may be any of 'crane (n02012849)', 'crane (n03126707)'"


@pytest.mark.parametrize(
    ("name", "indices"), [("0", (0,)), ("2", (2,)), ("+1", (1,)), ("002", (2,)), ("3", ()), ("-1", ())]
)
def test_indices_count_from_0(name: str, indices: tuple[int, ...]) -> None:
    assert ClassIndices(3).find(name) == indices
    assert ClassIndices(3).complaint(name) == f"{name} is no index of this model's 3 classes, from 0 to 2"


@pytest.mark.parametrize(
    ("names", "labels", "numbered"),
    [
        (["0", "2"], FISH, True),
        (["0", "tench"], FISH, False),
        (["0", "1.0"], FISH, False),
        (["0", ""], FISH, False),
        (["0", "9" * 5000], FISH, False),
        (["٣"], FISH, False),
        (["0", "1"], ("1", "0"), False),
        (["0", "1"], ("cat", "12"), False),
    ],
)
def test_numbers_are_indices_where_no_class_is_called_by_one(
    names: list[str], labels: tuple[str, ...], numbered: bool
) -> None:
    assert isinstance(classes_by_name_or_index(names, labels), ClassIndices) is numbered
