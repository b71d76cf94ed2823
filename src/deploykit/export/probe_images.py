"""Images as reference inputs: rendered, and prepared as the original's own images are."""

from __future__ import annotations

from deploykit.errors import InternalError, UsageError
from deploykit.export import reference, soundness
from deploykit.export.injected_faults import faults_of_session
from deploykit.export.probe import GOLDEN, GOLDEN_IMAGES, ORIGINAL, Asked, Probe
from deploykit.export.soundness import check_answers
from deploykit.export.stage import Node
from deploykit.models import sources
from deploykit.models.original import IMAGES, Original
from deploykit.runtime import golden
from deploykit.runtime.batches import ask
from deploykit.runtime.golden import Golden
from deploykit.runtime.numeric import measured_rounding


class ImagesProbe(Probe):
    """Rendered images."""

    name = IMAGES

    def nodes(self, original: Original, asked: Asked) -> tuple[Node, ...]:
        """Return the nodes that render images and normalise the first of them, a few at other sizes where axes are open."""
        if asked.images is not None and asked.images.prepared:
            return _prepared(original, asked, asked.images)
        options = reference.GoldenOptions(asked.count, original.input_name, original.recipe)
        images = Node(GOLDEN_IMAGES, reference.IMAGES, _images(asked), {})
        tried = {axis: sizes for axis, sizes in asked.tried.items() if sizes}
        if not tried:
            return images, Node(GOLDEN, reference.GOLDEN, options, {"images": GOLDEN_IMAGES})
        inputs = {"images": GOLDEN_IMAGES, "original": ORIGINAL}
        return images, Node(
            GOLDEN, reference.sized_stage(original), reference.SizedOptions(options, tried, asked.at_once), inputs
        )

    def golden(self, original: Original, asked: Asked) -> Golden:
        """Take the images, prepare and ask."""
        inputs = {original.input_name: reference.inputs_of(_images(asked), original.input_name)}
        with sources.open_original(original) as session:
            found = ask(session, inputs, asked.at_once)
            check_answers(soundness.Asked(original, session, inputs, found))
            rounding = measured_rounding(session, inputs, asked.at_once)
            answers = found.arranged()
            faults = faults_of_session(session, inputs, answers, asked.at_once)
        return Golden(inputs, {golden.ORIGINAL: answers}, faults=faults, rounding=rounding)


def _prepared(original: Original, asked: Asked, images: reference.ImagesOptions) -> tuple[Node, ...]:
    tried = [axis for axis, sizes in asked.tried.items() if sizes]
    if tried:
        raise UsageError(
            f"--golden {images.images} holds prepared inputs, all of one size: with --dynamic {tried[0]} images are needed"
        )
    return (Node(GOLDEN, reference.PREPARED, reference.PreparedOptions(images, original.input_name), {}),)


def _images(asked: Asked) -> reference.ImagesOptions:
    if asked.images is None:
        raise InternalError("an original that takes images was planned without any")
    return asked.images


PROBE = ImagesProbe()
