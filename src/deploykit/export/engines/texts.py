"""What every artifact says of itself, in whatever place its format has for that."""

from __future__ import annotations

import json
from collections.abc import Mapping

from deploykit.export.target import PackageOptions
from deploykit.serde import to_json


def texts(options: PackageOptions) -> Mapping[str, str]:
    """Return labels and preprocessing as JSON texts, by key."""
    return {"labels": json.dumps(list(options.labels)), "preprocess": json.dumps(to_json(options.preprocess))}
