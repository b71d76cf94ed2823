"""A file that exists already: an ONNX graph, which stays the graph that it is, or a .pt2 program of torch.export."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import optional, paths, serde
from deploykit.artifact import Axis, Preprocess, RunConfig, TensorSpec, sha256_of
from deploykit.errors import BadInputError, Hint, UnsupportedError, UsageError
from deploykit.models import head, onnx_names, pt2
from deploykit.models.family import FALLBACK, family_name
from deploykit.models.original import INPUT_NAME, Original, SourceOptions
from deploykit.models.scheme import Scheme
from deploykit.runtime.backends.base import get_backend
from deploykit.runtime.backends.external_data import external_locations
from deploykit.runtime.backends.onnxruntime_exact import ROUNDING

if TYPE_CHECKING:
    from torch import nn

#: What a file can't be told: it holds its weights and its head.
UNFIT = {"weights", "random_weights", "checkpoint_key", "num_classes", "model_args"}
#: Where ONNX files that deploykit made keep what surrounds a network.
LABELS, PREPROCESS = "deploykit.labels", "deploykit.preprocess"


@dataclass(frozen=True)
class Found:
    """What a file says of itself.

    Attributes:
        input: Its one input, [batch, channels, height, width].
        outputs: What it answers with.
        parameters: Number of weights.
        metadata: Texts that it carries.
        versions: Of the libraries that decide what it computes.
        rounds: It rounds activations to 8 bits itself.
    """

    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    parameters: int
    metadata: Mapping[str, str]
    versions: Mapping[str, str]
    rounds: bool = False


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        form: Which form of original it is.
        read: How it is read.
        input_name: What its input is called from here on; "" keeps the name that it has.
    """

    form: str
    read: Callable[[Path], Found]
    input_name: str


class FileScheme(Scheme):
    """ONNX files and .pt2 programs."""

    name = "file"

    def names(self, pattern: str) -> tuple[str, ...]:  # noqa: ARG002 - files are found by their paths
        """Return nothing."""
        return ()

    def claims(self, text: str) -> bool:
        """Tell whether it is a file."""
        return not paths.fault(Path(text))

    def resolve(self, name: str, options: SourceOptions) -> Original:
        """Read what a file takes and answers with."""
        path = Path(name)
        kind = _kind(path)
        unfit = sorted(UNFIT & set(options.given))
        if unfit:
            raise UsageError(f"{path} holds its own weights and head: it takes no {', '.join(unfit)}")
        found = kind.read(path)
        recipe = _preprocess(path, found, options)
        output = found.outputs[0].shape
        batch = found.input.shape[0]
        has_rows = len(output) == 2 and (isinstance(output[0], Axis) or output[0] == batch)
        classes = output[1] if has_rows and isinstance(output[1], int) else None
        task = "embedding" if options.embedding or classes is None else "logits"
        if task == "embedding" and options.labels is not None:
            raise UsageError(f"--labels {options.labels}: {path} answers with features, which have no class names")
        original = Original(
            id=path.stem,
            scheme=self.name,
            name=name,
            options=options,
            weights_file=str(path.resolve()),
            family=family_name(options.family, FALLBACK),
            task=task,
            parameters=found.parameters,
            weights_sha256=_digest(path),
            spec_sha256=serde.digest([kind.form, found.versions, found.input.name]),
            preprocess=recipe,
            labels=_labels(path, found, options, classes) if task == "logits" and classes is not None else (),
            images=None,
            form=kind.form,
            input_name=kind.input_name or found.input.name,
            fixed_batch=None if isinstance(batch, Axis) else batch,
            notes=head.notes_of(recipe, options) or None,
            rounds=found.rounds or None,
        )
        names = tuple(spec.name for spec in found.outputs)
        return original.answering(names) if len(names) > 1 else original

    def check(self, original: Original) -> None:
        """Compare the file, and what it refers to, with what was resolved."""
        path = Path(original.weights_file)
        if not path.is_file() or _digest(path) != original.weights_sha256:
            raise BadInputError(f"{path} is missing or has changed since it was resolved")

    def open(self, original: Original) -> nn.Module:
        """Load a program as a module."""
        self.check(original)
        if original.form != "module":
            raise UnsupportedError(f"{original.weights_file} is a graph: there is no module to open")
        return pt2.load(Path(original.weights_file))


def _kind(path: Path) -> Kind:
    paths.check_file(path)
    kind = KINDS.get(path.suffix)
    if kind is None:
        raise UsageError(
            f"{path} is no model that stands by itself: those end with {' or '.join(KINDS)}",
            Hint("deploykit export MODEL --weights FILE", "loads a checkpoint into an architecture"),
        )
    return kind


def _read_onnx(path: Path) -> Found:
    """Open a graph in ONNX Runtime, which refuses what is damaged, and count its weights."""
    optional.require("onnx", "onnxruntime")
    import onnx

    with get_backend("onnxruntime").open(str(path), RunConfig("onnxruntime", precision="f32")) as session:
        inputs, outputs, metadata = session.inputs, session.outputs, session.metadata
    graph = onnx.load(str(path), load_external_data=False).graph
    onnx_names.check(path, graph)
    if not outputs:
        raise BadInputError(f"{path} answers with nothing: it has no outputs")
    constant = {tensor.name for tensor in graph.initializer}
    taken = tuple(spec for spec in inputs if spec.name not in constant)  # what may be overridden is not asked for
    parameters = sum(math.prod(tensor.dims) for tensor in graph.initializer)
    rounds = any(node.op_type in ROUNDING for node in graph.node)
    return Found(_only_image(path, taken), outputs, parameters, metadata, {}, rounds)


def _read_pt2(path: Path) -> Found:
    versions = optional.require("torch", "timm")
    program = pt2.describe(path)
    return Found(_only_image(path, program.inputs), program.outputs, program.parameters, {}, versions)


def _only_image(path: Path, inputs: tuple[TensorSpec, ...]) -> TensorSpec:
    told = ", ".join(f"{spec.name} {spec.dtype} {spec.text}" for spec in inputs)
    if len(inputs) != 1 or inputs[0].dtype != "float32" or len(inputs[0].shape) != 4:
        raise UnsupportedError(
            f"{path} takes {told or 'nothing'}: one float32 [batch, channels, height, width] is needed"
        )
    return inputs[0]


def _preprocess(path: Path, found: Found, options: SourceOptions) -> Preprocess:
    """Return the file's own recipe, else ImageNet's usual at its size, with the caller's changes."""
    channels, *sides = found.input.shape[1:]
    fixed = [side for side in sides if not isinstance(side, Axis)]
    if options.image_size is not None and any(side != options.image_size for side in fixed):
        raise UsageError(f"--image-size {options.image_size}: {path} is fixed to {'x'.join(map(str, fixed))} pixels")
    if options.image_size is None and len(fixed) < 2:
        raise UsageError(f"{path} takes images of any size", Hint("--image-size PIXELS", "says which to export for"))
    if isinstance(channels, Axis):
        raise UnsupportedError(f"{path} takes images of any number of channels")
    own = head.usual(channels)
    if PREPROCESS in found.metadata:
        own = serde.to_json(serde.from_json(Preprocess, _json(path, found.metadata[PREPROCESS]), str(path)))
    size = (options.image_size,) * 2 if options.image_size is not None else tuple(fixed)
    return head.preprocess_of({**own, "input_size": (channels, *size)}, options)


def _labels(path: Path, found: Found, options: SourceOptions, classes: int) -> tuple[str, ...]:
    if options.labels is None and LABELS in found.metadata:
        own = serde.from_json(tuple[str, ...], _json(path, found.metadata[LABELS]), str(path))
        if len(own) == classes:
            return own
    return head.labels_of(options, classes)


def _json(path: Path, text: str) -> object:
    try:
        return serde.parse(text)
    except ValueError as error:
        raise BadInputError(f"{path}: its embedded metadata is no JSON: {error}") from error


def _digest(path: Path) -> str:
    """Hash a file and, of a graph, the files that it takes weights from."""
    beside = external_locations(path) if path.suffix == ".onnx" else ()
    for name in beside:
        if reason := paths.missing(path.parent / name):
            raise BadInputError(f"{path} takes weights from {paths.shown(name)!r}, which {reason}")
    return serde.digest([sha256_of(path), *(sha256_of(path.parent / name) for name in beside)])


#: By ending.
KINDS = {".onnx": Kind("graph", _read_onnx, ""), ".pt2": Kind("module", _read_pt2, INPUT_NAME)}
SCHEME = FileScheme()
