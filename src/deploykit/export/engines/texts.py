"""What every artifact says of itself, in whatever place its format has for that."""

from __future__ import annotations

import json
from collections.abc import Mapping

from deploykit.export.target import PackageOptions
from deploykit.serde import to_json


def texts(options: PackageOptions) -> Mapping[str, str]:
    """Return labels and preprocessing as JSON texts, and the precision, by key."""
    return {
        "labels": json.dumps(list(options.labels)),
        "precision": options.precision,
        "preprocess": json.dumps(to_json(options.preprocess)),
    }
