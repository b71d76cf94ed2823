"""Original: a PyTorch model before anything was done to it, as data that any process can open again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from deploykit import serde
from deploykit.artifact import EXACT, Preprocess, RunConfig
from deploykit.errors import UsageError
from deploykit.models.family import get_family
from deploykit.models.interface import BATCH, Input, Interface
from deploykit.verdict import GRADES, Budget

#: Name of the probe that renders images.
IMAGES = "images"
INPUT_NAME = "input"
#: Axes of an image, as families name them.
SIDES = ("height", "width")


@dataclass(frozen=True)
class Form:
    """What an original is before anything was done to it, and so what runs it as it is.

    Attributes:
        backend: Name of the backend that runs it.
        model: Which of its properties that backend is given.
        libraries: What it takes to run it (keys of `deploykit.optional.COMPONENTS`).
        resizable: It may take images of other sizes than its own, where its family does.
        arithmetic: Of its own answers, as in `RunConfig`.
    """

    backend: str
    model: str
    libraries: tuple[str, ...]
    resizable: bool = False
    arithmetic: str | None = None


#: A network in PyTorch, one that diffusers builds, or a graph that was exported before.
FORMS = {
    "module": Form("torch", "locator", ("torch", "timm", "safetensors"), resizable=True),
    "diffusers": Form("torch", "locator", ("torch", "diffusers", "safetensors")),
    "graph": Form("onnxruntime", "weights_file", ("onnxruntime", "onnx"), arithmetic=EXACT),
}


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How an original is opened, beyond its name.

    Attributes:
        weights: Checkpoint to load: .safetensors, or a PyTorch checkpoint.
        random_weights: Seeded weights, settled so that the network is worth measuring.
        checkpoint_key: Where in a PyTorch checkpoint the weights are.
        num_classes: Size of the head; None takes it from the checkpoint, else from the pretrained model.
        model_args: Arguments of the model's constructor.
        labels: Text file with a class name per line.
        image_size: Height and width of the input, in pixels.
        interpolation: As in `Preprocess`.
        crop_pct: As in `Preprocess`.
        mean: As in `Preprocess`.
        std: As in `Preprocess`.
        embedding: Features instead of logits.
        family: Name of a registered family; None goes by the model's name.
        lora: LoRA to fuse into the weights, .safetensors.
    """

    weights: str | None = None
    random_weights: bool = False
    checkpoint_key: str | None = None
    num_classes: int | None = None
    model_args: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    labels: str | None = None
    image_size: int | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    embedding: bool = False
    family: str | None = field(default=None, metadata=serde.LATER)
    lora: str | None = field(default=None, metadata=serde.LATER)

    @property
    def given(self) -> dict[str, object]:
        """The options that are not at their defaults, by name."""
        default = SourceOptions()
        return {name: value for name, value in vars(self).items() if value != getattr(default, name)}


@dataclass(frozen=True)
class Original:
    """A PyTorch original: what it is, where its weights are, how its images are prepared.

    Attributes:
        id: Short name, used for file names.
        scheme: Name of the registered source that opens it.
        name: Its name within that source.
        options: How it was asked to be opened.
        weights_file: Checkpoint that holds its weights; "" where there is no file.
        family: Name of a registered family.
        task: "logits", "embedding" or "noise": what it answers with.
        parameters: Number of trained values.
        weights_sha256: Hash of the weights.
        spec_sha256: Hash of everything else that determines the network: architecture, arguments, library versions.
        preprocess: From image to input; None where it takes no images.
        labels: Class names by index; empty where it answers with features.
        images: Name of the labelled image set that the model was trained for, or None.
        form: What it is: a key of `FORMS`.
        input_name: What its input is called.
        fixed_batch: Rows that its input is fixed to, where it is.
        interface: What it takes and gives; None where that is one image and its task.
        notes: What was found out about it that people should know; it is no part of what it is.
        rounds: It is a graph that rounds activations to 8 bits itself, so that runtimes answer alike but for such roundings.
    """

    id: str
    scheme: str
    name: str
    options: SourceOptions
    weights_file: str
    family: str
    task: str
    parameters: int
    weights_sha256: str
    spec_sha256: str
    preprocess: Preprocess | None
    labels: tuple[str, ...]
    images: str | None
    form: str = "module"
    input_name: str = INPUT_NAME
    fixed_batch: int | None = None
    interface: Interface | None = field(default=None, metadata=serde.LATER)
    notes: tuple[str, ...] | None = field(default=None, metadata=serde.LATER)
    rounds: bool | None = field(default=None, metadata=serde.LATER)

    @property
    def budgets(self) -> Mapping[str, Budget]:
        """How far an artifact may drift, by grade: its family's bounds; where it rounds to 8 bits, none finer than int8's.

        How much of it a runtime multiplies in 8 bits is not asked then: that was not decided here.
        """
        known = get_family(self.family).budgets
        if not self.rounds:
            return known
        finer = GRADES[: GRADES.index("int8")]
        return {**known, **dict.fromkeys(finer, replace(known["int8"], int8_share=None))}

    @property
    def digest(self) -> str:
        """Content hash: the same weights in the same architecture with the same preprocessing and labels."""
        known = [self.weights_sha256, self.spec_sha256, self.preprocess, self.labels, self.family, self.task]
        return serde.digest(known if self.interface is None else [*known, self.interface])

    @property
    def recipe(self) -> Preprocess:
        """How its images are prepared.

        Raises:
            UsageError: It takes none.
        """
        if self.preprocess is None:
            raise UsageError(
                f"{self.id} takes no images, it takes {', '.join(each.name for each in self.takes.inputs)}"
            )
        return self.preprocess

    @property
    def takes(self) -> Interface:
        """What it takes and gives: as it was declared, else one image and what its task is called."""
        if self.interface is not None:
            return self.interface
        channels, *sides = self.recipe.input_size
        axes = get_family(self.family).axes if FORMS[self.form].resizable else {}
        sizes = {name: size for name, size in zip(SIDES, sides, strict=True) if name in axes}
        dims = (name if name in sizes else size for name, size in zip(SIDES, sides, strict=True))
        return Interface((Input(self.input_name, "float32", (BATCH, channels, *dims)),), self.task, (), sizes, IMAGES)

    def answering(self, names: tuple[str, ...]) -> Original:
        """Return it with outputs of these names, where its task doesn't say what its one output is called."""
        return replace(self, interface=replace(self.takes, output=names[0], further=names[1:] or None))

    @property
    def locator(self) -> str:
        """Text that opens this original in any process."""
        return serde.canonical_bytes(self).decode("ascii")

    @property
    def reference(self) -> tuple[str, RunConfig]:
        """What a backend opens, and how, to get this original's own answers, on every processor the same."""
        model, run = self.usual
        return model, replace(run, arithmetic=FORMS[self.form].arithmetic)

    @property
    def usual(self) -> tuple[str, RunConfig]:
        """What a backend opens, and how, to run this original as an application does."""
        form = FORMS[self.form]
        return str(getattr(self, form.model)), RunConfig(form.backend, precision="f32")
