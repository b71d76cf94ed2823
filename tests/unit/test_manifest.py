from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import UNLABELLED, gate, judgement, manifest

import deploykit
from deploykit import manifest as manifests
from deploykit.errors import BadInputError
from deploykit.manifest import VERSION, Machine, Manifest
from deploykit.verdict import Verdict

SOUND = manifest()
DATA = SOUND.to_bytes()
#: Objects whose keys are the writer's own, so that no schema can require them.
FREE = {"axes", "budgets", "options", "libraries", "facts", "references", "hints", "metrics"}


def test_a_manifest_comes_back_as_it_was_written() -> None:
    assert manifests.parse(DATA) == SOUND


def test_non_finite_measurements_survive() -> None:
    verdicts = tuple(judgement(Verdict.FAIL, gate(value=value)) for value in (float("nan"), float("inf")))
    written = dataclasses.replace(SOUND, judgements=verdicts).sealed().to_bytes()
    found = manifests.parse(written)
    assert [str(one.gates[0].value) for one in found.judgements] == ["nan", "inf"]
    assert found.to_bytes() == written


def test_the_seal_covers_every_field() -> None:
    changes: dict[str, Any] = {"command": "rm", "labels": (), "axes": {}, "evaluation": None, "manifest_version": 0}
    changes |= {"budgets": {}, "stages": (), "artifacts": (), "timings": (), "judgements": (), "libraries": {}}
    seals = {name: dataclasses.replace(SOUND, **{name: value}).sealed().seal for name, value in changes.items()}
    assert len({SOUND.seal, *seals.values()}) == len(changes) + 1


def refused(data: bytes) -> bool:
    try:
        manifests.parse(data)
    except BadInputError:
        return True
    return False


def test_one_changed_byte_anywhere_is_noticed() -> None:
    masks = np.random.default_rng(5).integers(1, 256, len(DATA))
    unseen = [
        at for at in range(len(DATA)) if not refused(DATA[:at] + bytes([DATA[at] ^ int(masks[at])]) + DATA[at + 1 :])
    ]
    assert unseen == []


def test_one_changed_digit_or_letter_is_noticed() -> None:
    """These changes leave the JSON sound, so that the seal alone stands against them."""
    changed = [
        DATA[:at] + bytes([other]) + DATA[at + 1 :]
        for at, byte in enumerate(DATA)
        if chr(byte).isalnum()
        for other in (byte ^ 1,)
        if chr(other).isalnum()
    ]
    assert len(changed) > len(DATA) // 4
    assert [data for data in changed if not refused(data)] == []


@given(st.integers(0, len(DATA) - 1))
def test_a_cut_manifest_is_refused(end: int) -> None:
    assert refused(DATA[:end])


@given(st.integers(0, len(DATA)), st.sampled_from([b" ", b"\n", b"\r\n", b"\0", b"\xef\xbb\xbf", b"{}"]))
def test_bytes_added_anywhere_are_noticed(at: int, extra: bytes) -> None:
    assert refused(DATA[:at] + extra + DATA[at:])


def test_other_json_of_the_same_values_is_not_the_file_that_was_written() -> None:
    value = json.loads(DATA)
    assert refused(json.dumps(value).encode())
    assert refused(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    assert refused(DATA.replace(b'"deploykit": "0.1.0",', b'"deploykit": "9",\n  "deploykit": "0.1.0",'))


@pytest.mark.parametrize("version", [VERSION + 1, VERSION + 99])
def test_a_newer_manifest_asks_for_an_upgrade(version: int) -> None:
    newer = {"manifest_version": version, "unheard_of": [1]}
    with pytest.raises(BadInputError, match=f"version {version}; this deploykit reads up to {VERSION}") as caught:
        manifests.parse(json.dumps(newer).encode(), "x/manifest.json")
    assert "upgrade" in caught.value.hints[0].action
    assert "x/manifest.json" in caught.value.message


@pytest.mark.parametrize("version", [0, -1])
def test_a_version_that_never_was_is_refused(version: int) -> None:
    assert refused(dataclasses.replace(SOUND, manifest_version=version).sealed().to_bytes())


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"",
            b"{",
            b"[]",
            b"null",
            b"3",
            b'"text"',
            b"{}",
            b"NaN",
            b"\xff\xfe",
            b"\0" * 9,
            b'{"manifest_version": true}',
        ),
        *(b'{"manifest_version": "1"}', b'{"manifest_version": 1}', b"PK\x03\x04", b'{"manifest_version": 1e999}'),
    ],
)
def test_garbage_is_bad_input_with_the_file_named(data: bytes) -> None:
    with pytest.raises(BadInputError, match=r"^some/manifest\.json"):
        manifests.parse(data, "some/manifest.json")


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000], ids=["lists", "objects", "digits"])
def test_json_made_to_break_parsers_is_bad_input(data: bytes) -> None:
    assert refused(data)


@given(st.binary())
def test_any_bytes_are_bad_input(data: bytes) -> None:
    assert refused(data)


def test_a_dynamic_axis_that_can_not_be_is_bad_input() -> None:
    assert refused(DATA.replace(b'"max": 8', b'"max": 0'))


def test_every_file_is_listed() -> None:
    paths = ["net.fp32.onnx", "modules.json", "golden/inputs.npz", "golden/original.npz", "golden/answers.npz"]
    assert [record.path for record in SOUND.files] == paths
    assert [record.path for record in manifest(UNLABELLED).files] == paths[:-1]


def test_this_machine_is_described() -> None:
    here = Machine.here()
    assert here.cores >= 1
    assert all((here.os, here.arch, here.cpu, here.python))


SCHEMA: dict[str, Any] = json.loads((Path(deploykit.__file__).parent / "schema/manifest.v1.schema.json").read_bytes())
CHECKER = jsonschema.Draft202012Validator(SCHEMA)


def objects(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every object whose keys the schema fixes."""
    if isinstance(value, dict):
        free = bool(path) and (path[-1] in FREE or path[-2:] == (0, "inputs"))
        if not free:
            yield path
        if path[-1:] not in {("facts",), ("options",)}:
            for key, item in value.items():
                yield from objects(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from objects(item, (*path, index))


def fields() -> list[tuple[tuple[str | int, ...], str]]:
    value = json.loads(DATA)
    return [(path, name) for path in objects(value) for name in at(value, path)]


def at(value: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


def test_the_schema_is_one_and_fits_this_version() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert VERSION == 1


@pytest.mark.parametrize(
    "whole",
    [
        SOUND,
        manifest(UNLABELLED),
        dataclasses.replace(SOUND, artifacts=(), timings=(), judgements=()).sealed(),
    ],
    ids=["whole", "without evaluation", "without artifacts"],
)
def test_what_is_written_obeys_the_published_schema(whole: Manifest) -> None:
    CHECKER.validate(json.loads(whole.to_bytes()))


def test_schema_and_reader_refuse_the_same_missing_and_unknown_fields() -> None:
    checked = fields()
    assert len(checked) > 150
    for path, name in checked:
        for spoil in ("missing", "unknown", "mistyped"):
            value = copy.deepcopy(json.loads(DATA))
            owner = at(value, path)
            if spoil == "missing":
                del owner[name]
            elif spoil == "mistyped":
                owner[name] = {"no": ["such", "type"]} if name not in FREE else "no object"
            else:
                owner["unheard_of"] = 1
            assert not CHECKER.is_valid(value), (path, name, spoil)
            assert refused(json.dumps(value).encode()), (path, name, spoil)


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        (("source",), "parameters", True),
        (("source",), "parameters", 1.5),
        (("judgements", 0), "verdict", "perhaps"),
        (("judgements", 0, "gates", 0), "value", None),
        (("artifacts", 0, "inputs", 0), "shape", ["batch", 3]),
        (("budgets", "f32"), "relative_max", "small"),
        ((), "evaluation", []),
    ],
)
def test_the_schema_refuses_values_of_another_type(path: tuple[str | int, ...], name: str, value: object) -> None:
    spoilt = json.loads(DATA)
    at(spoilt, path)[name] = value
    assert not CHECKER.is_valid(spoilt)
