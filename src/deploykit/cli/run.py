"""`deploykit run`: what an artifact sees in images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = ("deploykit run deploy/tiny-convnext/tiny-convnext.fp32.onnx photo.jpg",)


def run(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact's file, made by deploykit.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="How many classes to print.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """Print the most probable classes of each image. Labels and preprocessing are read from the artifact itself."""
    from deploykit.cli import render
    from deploykit.workflow.predict import predict

    predictions = predict(artifact, images, top)
    if as_json:
        from deploykit.serde import to_json

        render.print_json(to_json(predictions))
        return
    console = render.out()
    for prediction in predictions:
        console.print(prediction.image, markup=False, style="bold")
        for score in prediction.scores:
            console.print(f"  {100 * score.probability:5.1f} %  {score.label}", markup=False)


COMMAND = run
