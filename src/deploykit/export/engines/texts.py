"""What every artifact says of itself, in whatever place its format has for that."""

from __future__ import annotations

import json
from collections.abc import Mapping

from deploykit.export.target import PackageOptions
from deploykit.serde import to_json


def texts(options: PackageOptions) -> Mapping[str, str]:
    """Return labels and preprocessing as JSON texts, where the model takes images, and the precision, by key."""
    if options.preprocess is None:
        return {"precision": options.precision}
    return {
        "labels": json.dumps(list(options.labels)),
        "precision": options.precision,
        "preprocess": json.dumps(to_json(options.preprocess)),
    }
