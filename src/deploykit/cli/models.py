"""`deploykit models`: the originals that can be exported by name."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Annotated

import typer

EXAMPLES = (
    "deploykit models",
    "deploykit models '*dinov2*'",
    "deploykit models 'tiny-*' --json",
)


def models(
    pattern: Annotated[str | None, typer.Argument(help="Names that match, timm's too, such as '*dinov2*'.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the models that ship with the package, classifiers with their accuracy; with a pattern, timm's names too."""
    from deploykit.cli import render
    from deploykit.models.family import get_family
    from deploykit.models.scheme import get_scheme, scheme_names
    from deploykit.models.source_tiny import TinyScheme, tiny_card, tiny_names
    from deploykit.models.sources import USUAL
    from deploykit.serde import to_json

    cards = [tiny_card(name) for name in tiny_names() if fnmatch(name, pattern or "*")]
    rest = (get_scheme(name) for name in scheme_names() if name not in {USUAL, TinyScheme.name})
    others = [name for scheme in rest for name in scheme.names(pattern or "*")]
    others += get_scheme(USUAL).names(pattern) if pattern else ()
    if as_json:
        render.print_json({"models": [*(to_json(card) for card in cards), *({"id": name} for name in others)]})
        return
    from rich.table import Table

    grid = Table("model", "family", "input", "classes", "parameters", "top-1", box=None)
    for card in cards:
        size = "×".join(str(dim) for dim in card.preprocess.input_size)
        top1 = f"{100 * card.top1.value:.1f} % (n={card.top1.n:,})"
        grid.add_row(
            card.id, get_family(card.family).title, size, str(len(card.labels)), f"{card.parameters / 1e6:.2f} M", top1
        )
    console = render.out()
    if cards:
        console.print(grid)
    for name in others:
        console.print(name, markup=False)


COMMAND = models
