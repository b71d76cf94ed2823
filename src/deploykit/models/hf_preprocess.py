"""From a preprocessor_config.json to the settings that `head.preprocess_of` takes.

Every value is transformers' own, defaults of its processors included. What a `Preprocess` can't express is refused with its
value: nothing is approximated. The options --image-size, --interpolation, --crop-pct, --mean and --std together say all that
the file does; where all are given it isn't read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from deploykit.errors import BadInputError, Hint, MissingComponentError, UsageError
from deploykit.models import head
from deploykit.models.hf_place import Place, read_object
from deploykit.models.hf_quiet import quiet
from deploykit.models.original import SourceOptions
from deploykit.models.source_timm import FOREIGN, first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FILE = "preprocessor_config.json"
#: Options that together say all that the file does.
TOLD = ("image_size", "interpolation", "crop_pct", "mean", "std")
ALL = Hint("--image-size N --interpolation NAME --crop-pct X --mean R,G,B --std R,G,B", "says all of it")
CUT = Hint("--crop-pct 1", "cuts the centre of the size of the short side")
#: Processors that resize, cut the centre and normalize, and do nothing else: names without "Fast" and "Pil".
PLAIN = (
    *(
        "BeitImageProcessor",
        "BitImageProcessor",
        "CLIPImageProcessor",
        "DeiTImageProcessor",
        "MobileNetV1ImageProcessor",
    ),
    *("MobileNetV2ImageProcessor", "PvtImageProcessor", "SiglipImageProcessor", "ViTImageProcessor"),
)
#: Cuts a share of its own out of images below this size, and squeezes them to larger ones.
CONVNEXT, SQUEEZED_FROM = "ConvNextImageProcessor", 384
#: Height and width.
Size = tuple[int, int]
#: Pillow's numbers of its filters.
INTERPOLATIONS: Mapping[object, str] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def read(place: Place, config: PretrainedConfig, options: SourceOptions) -> dict[str, Any]:
    """Return how images are prepared, in timm's terms.

    Args:
        place: Where the model lies.
        config: The model's configuration: it tells the processor where the file doesn't.
        options: What is asked for instead.

    Returns:
        Keys of timm's pretrained configurations, those left out that the options say.

    Raises:
        UsageError: The file is missing, or says what can't be expressed.
        BadInputError: It is damaged.
        ResourceError: The hub can't be reached.
    """
    if all(getattr(options, name) is not None for name in TOLD):
        return dict(head.USUAL)  # of which the options leave nothing
    path = place.find(FILE)
    if path is None:
        raise UsageError(f"hf:{place.name} has no {FILE}: it doesn't say how images are prepared", ALL)
    values = _values(path, config)
    try:
        return _settings(values, path, options)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise BadInputError(f"{path} is damaged: {first_line(error)}") from error


def _values(path: Path, config: PretrainedConfig) -> dict[str, Any]:
    """Let transformers fill in what a file leaves to its processor."""
    from transformers import AutoImageProcessor

    read_object(path)
    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(
                path.parent, config=config, local_files_only=True, trust_remote_code=False
            )
        values: dict[str, Any] = processor.to_dict()
    except ImportError as error:
        raise MissingComponentError(f"{path} can't be read here: {first_line(error)}", ALL) from error
    except FOREIGN as error:
        raise BadInputError(f"{path} describes no image processor: {first_line(error)}") from error
    name = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
    if name not in (*PLAIN, CONVNEXT):
        _refuse(path, "image_processor_type", name, ALL)
    return {**values, "image_processor_type": name}


def _refuse(path: Path, name: str, value: object, *hints: Hint) -> NoReturn:
    raise UsageError(f"{path}: {name} {value} can't be expressed", *hints)


def _settings(values: Mapping[str, Any], path: Path, options: SourceOptions) -> dict[str, Any]:
    for name in ("do_resize", "do_rescale"):
        if not values.get(name, True):
            _refuse(path, name, values[name], ALL)
    factor = values.get("rescale_factor")
    if factor is None or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        _refuse(path, "rescale_factor", factor, ALL)
    if values.get("do_pad"):
        _refuse(path, "do_pad", values["do_pad"], ALL)
    resample = values.get("resample")
    if options.interpolation is None and resample not in INTERPOLATIONS:
        _refuse(path, "resample", resample, Hint("--interpolation NAME", "says another"))
    is_normalized = values.get("do_normalize", True)
    (height, width), crop_pct, crop_mode = _geometry(values, path, options)
    return {
        "input_size": (3, height, width),
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "interpolation": options.interpolation or INTERPOLATIONS[resample],
        "mean": _channels(values["image_mean"]) if is_normalized else (0.0, 0.0, 0.0),
        "std": _channels(values["image_std"]) if is_normalized else (1.0, 1.0, 1.0),
    }


def _channels(value: object) -> tuple[float, ...]:
    if isinstance(value, (int, float)):
        return (float(value),) * 3
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"mean and std are numbers, found {value!r}")
    return tuple(float(item) for item in value)


def _geometry(values: Mapping[str, Any], path: Path, options: SourceOptions) -> tuple[Size, float, str]:
    """Return height and width of the input, the share of the resized image that they are, and the crop mode."""
    size, is_cut = dict(values["size"]), bool(values.get("do_center_crop"))
    cut = _sides(values["crop_size"]) if is_cut else None
    short = _pixels(size["shortest_edge"]) if size.get("shortest_edge") is not None else None
    told = f"{size}, do_center_crop {is_cut}" + (f", crop_size {cut[0]}x{cut[1]}" if cut else "")
    if size.get("longest_edge") or size.get("max_height"):
        _refuse(path, "size", told, ALL)
    if short and not cut and values["image_processor_type"] == CONVNEXT:
        is_squeezed = short >= SQUEEZED_FROM
        return (short, short), 1.0 if is_squeezed else float(values["crop_pct"]), "squash" if is_squeezed else "center"
    if short and not cut and options.crop_pct is None:
        _refuse(path, "size", told, CUT)
    if short and not cut:
        return (short, short), 1.0, "center"
    resized = (short, short) if short else _sides(size)
    height, width = cut or resized
    crop_pct = share(height, resized[0])
    is_exact = (int(height / crop_pct), int(width / crop_pct)) == resized
    if not is_exact or crop_pct > 1 or (short and height != width):
        _refuse(path, "size", told, ALL)
    return (height, width), crop_pct, "center" if short else "squash"


def _sides(size: Mapping[str, Any]) -> Size:
    return _pixels(size["height"]), _pixels(size["width"])


def _pixels(value: Any) -> int:  # noqa: ANN401 - as found in a file
    if int(value) < 1:
        raise ValueError(f"images of {value} pixels")
    return int(value)


def share(side: int, resized: int) -> float:
    """Return the crop_pct of which `Preprocess.resized` makes exactly `resized` pixels of a side of the input again."""
    pct = side / resized
    return pct if int(side / pct) == resized else math.nextafter(pct, 0)
