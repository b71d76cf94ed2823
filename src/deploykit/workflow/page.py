"""Page: a report as an HTML file, with the pictures of a diffusion model's artifacts side by side."""

from __future__ import annotations

import math
from pathlib import Path

from deploykit import optional, paths
from deploykit.bundle import Bundle
from deploykit.errors import ResourceError, UsageError
from deploykit.models import vae
from deploykit.runtime.report import html, terminal
from deploykit.verdict import Report
from deploykit.workflow import sample
from deploykit.workflow.verify import golden_of


def check_page(target: Path, file: Path, decoder: Path | None) -> None:
    """Refuse what could not be written after everything was judged.

    Raises:
        MissingComponentError: Jinja is not installed, or what opens a decoder.
        ResourceError: No file can lie there.
        UsageError: The decoder is none, or one of other latents, or what lies at `target` makes no latents.
    """
    optional.require("jinja2")
    paths.check_target(file)
    if decoder is None:
        return
    if not target.is_dir():
        raise UsageError("--vae is for a bundle, which knows how its model walks from noise")
    bundle = Bundle.open(target)
    optional.require("torch", "diffusers", "safetensors")
    vae.place_of(decoder, sample.rollout_of(bundle, golden_of(bundle), decoder).latents.shape[1])


def write_page(report: Report, target: Path, file: Path, decoder: Path | None) -> None:
    """Write a report.

    Args:
        report: About what lies at `target`.
        target: A bundle's folder, or a bare artifact.
        file: Written.
        decoder: Folder of the autoencoder that makes pictures of latents.

    Raises:
        BadInputError: The decoder is damaged.
        ResourceError: The file can't be written.
    """
    extras = _extras(Bundle.open(target), decoder) if target.is_dir() else html.Extras({"file": str(target)}, {})
    text = html.page(report, extras)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{file} can't be written: {error.strerror or error}") from error


def _extras(bundle: Bundle, decoder: Path | None) -> html.Extras:
    facts = {"bundle": str(bundle.root), **terminal.provenance(bundle.manifest)}
    sizes = {artifact.name: artifact.bytes for artifact in bundle.manifest.artifacts}
    return html.Extras(facts, sizes, *_pictures(bundle, decoder))


def _pictures(bundle: Bundle, decoder: Path | None) -> tuple[list[html.Picture], list[str]]:
    """Return what artifacts draw, and why others draw nothing; of a model that makes no latents, neither."""
    golden = golden_of(bundle)
    if golden.rollout is None:
        return [], []
    if decoder is None:
        try:
            sample.rollout_of(bundle, golden, decoder)
        except UsageError as error:
            return [], [f"{error.message}: --vae FOLDER"]
    strips, refused = sample.draw(bundle, golden, bundle.manifest.artifacts, None, decoder)
    scale = sample.scale_of(decoder)
    pictures = [
        html.Picture(strip.name, sample.png_of(sample.row_of(strip), scale), _note(strip.psnr_db)) for strip in strips
    ]
    return pictures, [f"{name}: {error.message}" for name, error in refused.items()]


def _note(psnr_db: float) -> str:
    return f"latents {psnr_db:.1f} dB from the original's" if math.isfinite(psnr_db) else ""
