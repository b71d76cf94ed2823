"""ONNX files, checkpoints and image folders as users bring them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from tests.cases import nets

_WEIGHT = (np.random.default_rng(1).standard_normal((6, 3, 8, 8)) * 0.1).astype(np.float32)


def write_boxes(
    path: Path,
    *,
    scale: float = 1.0,
    channels: int = 3,
    listed: bool = False,
    twice: bool = False,
    scalar: bool = False,
) -> Path:
    """Write a graph that answers [64, 6] as a detector does: no axis of it is the batch.

    Args:
        path: To write.
        scale: What every row but the first is multiplied by.
        channels: Of the input.
        listed: Name the initializers among the inputs, as IR version 3 asks for.
        twice: List the output twice.
        scalar: Answer with a second output, of no axes.
    """
    factors = np.full((64, 1), scale, np.float32)
    factors[0] = 1
    initializers = [
        numpy_helper.from_array(_WEIGHT[:, :channels].copy(), "w"),
        numpy_helper.from_array(np.array([6, 64]), "s"),
        numpy_helper.from_array(factors, "k"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[8, 8]),
        helper.make_node("Reshape", ["c", "s"], ["d"]),
        helper.make_node("Transpose", ["d"], ["e"], perm=[1, 0]),
        helper.make_node("Mul", ["e", "k"], ["boxes"]),
    ]
    value = helper.make_tensor_value_info
    outputs = [value("boxes", TensorProto.FLOAT, [64, 6])] * (2 if twice else 1)
    if scalar:
        nodes.append(helper.make_node("ReduceMax", ["boxes"], ["top"], keepdims=0))
        outputs.append(value("top", TensorProto.FLOAT, []))
    inputs = [value("x", TensorProto.FLOAT, [1, channels, 64, 64])]
    if listed:
        inputs += [value(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in initializers]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=3 if listed else 4), path)
    return path


#: The ONNX files by name.
ONNX: dict[str, Callable[[Path], Path]] = {
    "boxes.onnx": write_boxes,
    "boxes_wrong.onnx": lambda path: write_boxes(path, scale=1.5),
    "old_ir3.onnx": lambda path: write_boxes(path, listed=True),
    "gray.onnx": lambda path: write_boxes(path, channels=1),
    "twice.onnx": lambda path: write_boxes(path, twice=True),
    "scalar.onnx": lambda path: write_boxes(path, scalar=True),
}


def write_bright(folder: Path) -> Path:
    """Write 64 bright images of 48 x 48 pixels, for `nets.bright`."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for index in range(64):
        coarse = np.clip(215 + random.normal(0, 8, (4, 4, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{index:02d}.png")
    return folder


def write_shades(folder: Path) -> Path:
    """Write 64 images of 48 x 48 pixels, from bright to less so, for answers that vary about their mean."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for index, level in enumerate(np.linspace(120, 235, 64)):
        coarse = np.clip(level + random.normal(0, 8, (4, 4, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{index:02d}.png")
    return folder


def write_lightning(path: Path) -> Path:
    """Write a checkpoint of `nets.Small` as Lightning saves it: a prefix, and keys of a loss and of a metric."""
    net = nn.Module()
    net.model = nets.Small()
    state = {**net.state_dict(), "loss_fn.weight": torch.ones(10), "train_acc.correct": torch.zeros(())}
    torch.save({"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.5.0"}, path)
    return path


def write_ema_of_parameters(path: Path) -> Path:
    """Write a checkpoint whose moving averages are of parameters alone: the buffers are in `state_dict`."""
    averages = {name: parameter.detach() for name, parameter in nets.Small().named_parameters()}
    torch.save({"state_dict": nets.Small().state_dict(), "state_dict_ema": averages}, path)
    return path
