"""Every manifest version that was ever written stays readable: one real file of each is kept."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from deploykit import manifest
from deploykit.manifest import parse

GOLDEN = Path(__file__).parents[1] / "golden"
SCHEMAS = Path(manifest.__file__).parent / "schema"


@pytest.mark.parametrize("version", range(1, manifest.VERSION + 1))
def test_a_manifest_of_this_version_is_read_and_fits_its_schema(version: int) -> None:
    data = (GOLDEN / f"manifest.v{version}.json").read_bytes()
    found = parse(data)
    assert found.manifest_version == version
    assert found.to_bytes() == data
    schema = json.loads((SCHEMAS / f"manifest.v{version}.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(json.loads(data))
