"""Checkpoints as people have them: what is found in them, what is refused, and that nothing in them is run."""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.cases import nets
from tests.cases.files import write_ema_of_parameters, write_lightning
from torch import nn

from deploykit.arrays import UNPACKED_LEAST
from deploykit.errors import BadInputError, UsageError
from deploykit.models.checkpoint import SUFFIXES, read, read_checkpoint
from deploykit.models.fit import PREFIXES, load_into, part_of

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.tensor([1.0, -1.0])}
SAVED = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _save(path: Path, value: object, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def _same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor] = STATE) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def _training(**changes: object) -> dict[str, object]:
    """What a training run of timm leaves as last.pth.tar."""
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "arch": "resnet18",
        "state_dict": {f"module._orig_mod.{name}": value + 1 for name, value in STATE.items()},
        "state_dict_ema": {f"_orig_mod.module.{name}": value for name, value in STATE.items()},
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, data=Path("/data"), mean=(0.5, 0.5), resume=None, seed=np.int64(3)),
        "metric": np.float64(77.5),
        "version": 2,
        **changes,
    }


# What is refused


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda evil: evil,
        lambda evil: {"state_dict": STATE, "extra": evil},
        lambda evil: {"state_dict": {**STATE, "b": evil}},
        lambda evil: {"state_dict": STATE, "args": argparse.Namespace(deep=[{"er": evil}])},
        lambda evil: OrderedDict(evil=(evil,)),
    ],
    ids=["top", "beside", "inside", "options", "ordered"],
)
def test_code_in_a_checkpoint_is_refused_and_not_run(
    tmp_path: Path, wrap: Callable[[Evil], object], legacy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # an environment doesn't loosen it
    mark = tmp_path / "ran"
    path = _save(tmp_path / "evil.pth", wrap(Evil(mark)), legacy=legacy)
    with pytest.raises(BadInputError, match=r"holds more than weights, and nothing of it was run: .*system"):
        read_checkpoint(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the file was harmless, so this proved nothing"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path, suffix: str, protocol: int) -> None:
    mark, path = tmp_path / "ran", tmp_path / f"evil{suffix}"
    path.write_bytes(pickle.dumps(Evil(mark), protocol))
    with pytest.raises(BadInputError, match="evil"):
        read_checkpoint(path)
    assert not mark.exists()


def _packed_again(source: Path, to: Path, method: int, storage: bytes | None = None) -> Path:
    """Write an archive's members again, packed otherwise, its one storage replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(to, "w", method) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, storage if storage is not None and "/data/" in name else content)
    return to


def test_a_checkpoint_that_would_unpack_to_far_more_than_it_is_is_refused(tmp_path: Path) -> None:
    plain = _save(tmp_path / "plain.pth", {"w": torch.zeros(4)})
    bomb = _packed_again(plain, tmp_path / "bomb.pth", zipfile.ZIP_DEFLATED, bytes(UNPACKED_LEAST + 1))
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(
        BadInputError, match=r"bomb\.pth would unpack to 268,\d+,\d+ bytes; at most 268,435,456 are read"
    ):
        read_checkpoint(bomb)
    with pytest.raises(BadInputError, match="packed by another method than deflate"):
        read_checkpoint(_packed_again(plain, tmp_path / "lzma.pth", zipfile.ZIP_LZMA))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_tensor_that_repeats_a_few_bytes_takes_no_memory(tmp_path: Path, legacy: bool) -> None:
    path = _save(tmp_path / "wide.pth", {"w": torch.zeros(1).expand(1 << 40)}, legacy=legacy)
    with pytest.raises(BadInputError, match=r"holds 4,398,046,511,104 bytes of weights; at most 268,435,456 are read"):
        read_checkpoint(path)


class Masked(nn.Module):
    """A parameter, a buffer that is added to scores, and one of statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        self.register_buffer("mean", torch.zeros(2))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, ""),
        ({"mask": torch.tensor([0.0, float("inf")])}, "mask holds NaN or infinity"),
        ({"mask": torch.tensor([0.0, float("nan")])}, "mask holds NaN or infinity"),
        ({"weight": torch.tensor([0.0, float("-inf")])}, "weight holds NaN or infinity"),
        ({"mean": torch.tensor([0.0, float("-inf")])}, "mean holds NaN or infinity"),
        ({"mask": torch.tensor([float("-inf"), 0.0])}, "mask holds NaN or infinity"),
        ({"mask": torch.zeros(2)}, ""),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_mask_of_minus_infinity_is_loaded_and_nothing_else_that_is_not_finite(
    change: dict[str, torch.Tensor], told: str, prefix: str
) -> None:
    state = {f"{prefix}{name}": value for name, value in {**Masked().state_dict(), **change}.items()}
    net = Masked()
    with pytest.raises(BadInputError, match=told) if told else contextlib.nullcontext():
        load_into(net, state, Path("w.pth"))
        assert torch.equal(net.get_buffer("mask"), {**Masked().state_dict(), **change}["mask"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"loop{suffix}").symlink_to(f"loop{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    for name, told in (
        ("pipe", "is no regular file"),
        ("loop", "can't be read: Too many levels of symbolic links"),
        ("folder", "is a folder"),
        ("gone", "does not exist"),
        ("n" * 300, "nnn.* can't be read: File name too long"),
        ("\udcff\0", "can't be read: .*null"),
    ):
        with pytest.raises(UsageError, match=told) as caught:
            read_checkpoint(tmp_path / f"{name}{suffix}")
        caught.value.message.encode()


def test_a_tar_of_pickles_is_refused_and_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "model.pth.tar"
    (tmp_path / "evil").write_bytes(pickle.dumps(Evil(mark), 2))
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.add(tmp_path / "evil", name)
    with pytest.raises(BadInputError, match="is no checkpoint that PyTorch reads"):
        read_checkpoint(path)
    assert not mark.exists()


class _MadeUpDtype:
    """A float64 dtype whose state has one entry too few, which numpy reads past the end of."""

    def __reduce__(self) -> tuple[object, ...]:
        return np.dtype, ("f8", False, True), (3, "<", None, -1, -1, 0)


def test_made_up_state_of_numpy_does_not_crash_the_process(tmp_path: Path) -> None:
    path = _save(tmp_path / "crash.pth", {"state_dict": STATE, "metric": _MadeUpDtype()})
    code = "import sys, pathlib; from deploykit.models.checkpoint import read_checkpoint as read\n"
    code += "for _ in range(50): found = read(pathlib.Path(sys.argv[1]))\nprint(*found)"
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.split()) == (0, list(STATE)), ended.stderr


def test_a_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"it asks for torch\.nn\.modules\.linear\.Linear") as caught:
        read_checkpoint(_save(tmp_path / "net.pt", torch.nn.Linear(3, 2)))
    assert "safetensors" in str(caught.value.hints)
    assert "weights_only" not in str(caught.value)


def test_a_script_module_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out, and its files stay
        torch.jit.script(torch.nn.Linear(3, 2)).save(str(tmp_path / "net.pt"))  # type: ignore[no-untyped-call]
    with pytest.raises(BadInputError, match="TorchScript"):
        read_checkpoint(tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([STATE], "holds a list, no state dict"),
        (torch.ones(3), "holds a Tensor, no state dict"),
        (3, "holds a int, no state dict"),
        ({}, "it is empty"),
        ({"epoch": 3, "state_dict": {}}, "'epoch' is no plain tensor"),
        ({**STATE, "step": 3}, "'step' is no plain tensor"),
        ({"state_dict": {**STATE, "metric": np.float32(1)}}, "'metric' is no plain tensor"),
        ({"state_dict": {"net": STATE}}, "'net' is no plain tensor"),
        ({7: torch.ones(1)}, "'7' is no plain tensor"),
        ({"a": torch.eye(3).to_sparse()}, "'a' is no plain tensor"),
        ({"a": torch.ones(3, device="meta")}, "'a' is no plain tensor"),
    ],
)
def test_what_holds_no_state_dict_is_refused(tmp_path: Path, value: object, what: str) -> None:
    with pytest.raises(BadInputError, match=what):
        read_checkpoint(_save(tmp_path / "weights.pt", value))


@pytest.mark.parametrize(
    "bad",
    [
        torch.tensor([1.0, float("nan")]),
        torch.tensor([float("-inf")]),
        torch.tensor(float("inf"), dtype=torch.bfloat16),
        torch.tensor([float("nan")], dtype=torch.float16),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, bad: torch.Tensor, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {**STATE, "head.scale": bad}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    with pytest.raises(BadInputError, match=r"head\.scale holds NaN or infinity"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["weights.onnx", "weights", "weights.npz", "weights.pkl"])
def test_an_unknown_ending_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=r"weights are read from \.safetensors, \.pt"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_files_and_garbage_are_refused(tmp_path: Path, suffix: str) -> None:
    path, source = tmp_path / f"weights{suffix}", random.Random(7)
    starts = [b"", b"\x80\x02", b"PK\x03\x04", b"\x80\x02}", b"{}", struct.pack("<Q", 2) + b"{}"[:1]]
    for content in [*starts, *(start + source.randbytes(length) for start in starts for length in (1, 8, 64, 500))]:
        path.write_bytes(content)
        with pytest.raises(BadInputError, match="weights"):
            read_checkpoint(path)


SHAPED = b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
HEADERS = [(len(header), header) for header in (b"{", b"[]", b'{"a":1}', b"\xff\xfe", SHAPED)]


@pytest.mark.parametrize(
    ("length", "header"), [*HEADERS, *((length, b"{}") for length in (10**6, 10**8, 2**40, 2**63, 2**64 - 1))]
)
def test_a_safetensors_file_with_a_corrupt_or_huge_header_is_refused(
    tmp_path: Path, length: int, header: bytes
) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", length) + header)
    with pytest.raises(BadInputError, match="is no safetensors file"):
        read_checkpoint(path)


@pytest.fixture(scope="module", params=[".safetensors", ".pth", "-legacy.pth"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """A good file: its suffix and its bytes."""
    path = tmp_path_factory.mktemp("whole") / f"weights{request.param}"
    if path.suffix == ".safetensors":
        save_file(STATE, path)
    else:
        _save(path, _training(), legacy="legacy" in path.name)
    assert _same(read_checkpoint(path))
    return path.suffix, path.read_bytes()


@SAVED
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(tmp_path: Path, whole: tuple[str, bytes], share: float) -> None:
    suffix, content = whole
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BadInputError):
        read_checkpoint(path)


@SAVED
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_file_is_read_or_refused(
    tmp_path: Path, whole: tuple[str, bytes], changes: list[tuple[float, int]]
) -> None:
    suffix, content = whole
    damaged = bytearray(content)
    for share, value in changes:
        damaged[int(share * len(damaged))] = value
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(damaged)
    _read_or_refused(path)


@SAVED
@given(where=st.floats(0, 1, exclude_max=True), value=st.binary(min_size=1, max_size=3), kept=st.integers(0, 3))
def test_a_made_up_pickle_in_a_sound_archive_is_read_or_refused(
    tmp_path: Path, where: float, value: bytes, kept: int
) -> None:
    whole, path = _save(tmp_path / "whole.pth", _training()), tmp_path / "weights.pth"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            at = int(where * len(content))
            changed = content[:at] + value + content[at + kept :] if name.endswith("data.pkl") else content
            target.writestr(name, changed)
    _read_or_refused(path)


def _read_or_refused(path: Path) -> None:
    with contextlib.suppress(BadInputError):
        found = read_checkpoint(path)
        assert all(isinstance(value, torch.Tensor) for value in found.values())
        assert found


# What is found


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix != ".safetensors"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_plain_state_dict_is_read(tmp_path: Path, suffix: str, legacy: bool) -> None:
    assert _same(read_checkpoint(_save(tmp_path / f"weights{suffix}", OrderedDict(STATE), legacy=legacy)))


@SAVED
@given(
    shapes=st.dictionaries(
        st.from_regex(r"[a-z]{1,8}(\.[a-z0-9]{1,4})?", fullmatch=True), st.lists(st.integers(0, 4), max_size=3)
    )
)
def test_safetensors_come_back_as_they_were_saved(tmp_path: Path, shapes: dict[str, list[int]]) -> None:
    saved = {f"p.{name}": torch.randn(shape) for name, shape in shapes.items()} | STATE
    save_file(saved, tmp_path / "weights.safetensors")
    found = read_checkpoint(tmp_path / "weights.safetensors")
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], value) for name, value in saved.items())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_training_checkpoint_gives_its_averaged_weights(tmp_path: Path, legacy: bool) -> None:
    path = _save(tmp_path / "last.pth.tar", _training(), legacy=legacy)
    trusted = set(torch.serialization.get_safe_globals())
    assert _same(read_checkpoint(path))
    assert set(torch.serialization.get_safe_globals()) == trusted
    assert _same(read_checkpoint(path, "state_dict"), {name: value + 1 for name, value in STATE.items()})


@pytest.mark.parametrize(
    "metric", [np.float32(1), np.bool_(True), np.uint8(1), np.ones(3), np.array(["a"]), Path("a"), 1 + 2j, {1, 2}]
)
def test_what_scripts_save_beside_the_weights_is_stepped_over(tmp_path: Path, metric: object) -> None:
    assert _same(read_checkpoint(_save(tmp_path / "last.pth.tar", _training(metric=metric))))


@pytest.mark.parametrize("absent", [{}, None, 3])
def test_weights_without_an_average_are_found(tmp_path: Path, absent: object) -> None:
    path = _save(tmp_path / "last.pth.tar", _training(state_dict_ema=absent))
    assert _same(read_checkpoint(path), {name: value + 1 for name, value in STATE.items()})


@pytest.mark.parametrize("key", ["nonsense", "epoch", "args", ""])
def test_a_wrong_key_is_refused_with_those_there_are(tmp_path: Path, key: str) -> None:
    path = _save(tmp_path / "last.pth.tar", _training())
    with pytest.raises(UsageError, match=rf"no weights at '{key}'; its keys: epoch, arch, state_dict, state_dict_ema"):
        read_checkpoint(path, key)
    save_file(STATE, tmp_path / "weights.safetensors")
    with pytest.raises(UsageError, match="a safetensors file has no keys"):
        read_checkpoint(tmp_path / "weights.safetensors", key)


def test_an_averaged_models_own_state_is_read(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 2)
    averaged = torch.optim.swa_utils.AveragedModel(network)
    averaged.update_parameters(network)
    path = _save(tmp_path / "ema.pth", {"state_dict": averaged.state_dict()})
    assert _same(read_checkpoint(path), dict(network.state_dict()))


@given(prefixes=st.lists(st.sampled_from(PREFIXES), max_size=4))
@SAVED
def test_prefixes_of_wrappers_are_removed_however_nested(tmp_path: Path, prefixes: list[str]) -> None:
    state = {"".join(prefixes) + name: value for name, value in STATE.items()}
    assert _same(read_checkpoint(_save(tmp_path / "weights.pth", {"state_dict": state})))
    some = {"backbone.weight": torch.ones(1), "head.weight": torch.ones(1)}  # of some names only: they stay
    assert _same(read_checkpoint(_save(tmp_path / "weights.pth", some)), some)


@pytest.mark.parametrize("inside", ["module", "state_dict", "shadow"])
def test_averages_that_lie_one_level_deeper_are_found(tmp_path: Path, inside: str) -> None:
    path = _save(tmp_path / "last.pth", _training(state_dict_ema=None, ema={"decay": 0.99, inside: STATE}))
    assert _same(read_checkpoint(path))


def test_averages_that_are_no_state_dict_are_told(tmp_path: Path) -> None:
    shadow = {"decay": 0.99, "shadow_params": list(STATE.values())}
    found = read(_save(tmp_path / "last.pth", _training(state_dict_ema=None, ema=shadow)))
    assert _same(found.state, {name: value + 1 for name, value in STATE.items()})
    assert found.notes == ("ema holds no state dict: weights are those of state_dict",)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_averages_of_parameters_alone_are_completed_and_that_is_told(tmp_path: Path, prefix: str) -> None:
    path = write_ema_of_parameters(tmp_path / "ema.pth")
    saved = torch.load(path, weights_only=True)
    saved["state_dict_ema"] = {f"{prefix}{name}": value + 1 for name, value in saved["state_dict_ema"].items()}
    found, net = read(_save(path, saved)), nets.Small()
    load_into(net, found.state, path)
    for name, value in nets.Small().state_dict().items():
        averaged = prefix + name in saved["state_dict_ema"]
        assert torch.equal(found.state[name], value + 1 if averaged else value)
    (note,) = found.notes
    assert note == (
        "state_dict_ema averages parameters alone; from state_dict: body.1.running_mean, body.1.running_var, "
        "body.1.num_batches_tracked"
    )


@pytest.mark.parametrize(
    "name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float16", "bfloat16"]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_every_value_of_a_narrow_type_is_widened_exactly(tmp_path: Path, name: str, suffix: str) -> None:
    kind = getattr(torch, name)
    every = torch.arange(256, dtype=torch.uint8)
    raw = every if kind.itemsize == 1 else torch.stack([every, every], 1).flatten()
    values = raw.view(kind)
    finite = values[torch.isfinite(values.float())]
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)({"w": finite}, path)
    found = read_checkpoint(path)["w"]
    assert torch.equal(found.double(), finite.double())
    assert found.to(kind).view(torch.uint8).tolist() == finite.view(torch.uint8).tolist()


def test_pairs_of_four_bits_are_taken_apart(tmp_path: Path) -> None:
    raw = torch.tensor([[0x10, 0x32, 0x54, 0x76], [0x98, 0xBA, 0xDC, 0xFE]], dtype=torch.uint8)
    save_file({"w": raw.view(torch.float4_e2m1fn_x2)}, tmp_path / "weights.safetensors")
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert read_checkpoint(tmp_path / "weights.safetensors")["w"].tolist() == [values, [-value for value in values]]


@pytest.mark.parametrize("name", ["complex64", "uint16", "uint32", "float8_e8m0fnu"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_types_that_no_weights_have_are_refused_by_name(tmp_path: Path, name: str, suffix: str) -> None:
    odd = torch.zeros(8, dtype=torch.uint8).view(getattr(torch, name))
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)({**STATE, "w.a": odd, "w.b": odd.clone()}, path)
    with pytest.raises(BadInputError, match=rf"types that no network's weights have: w\.a \({name}\), w\.b \({name}\)"):
        read_checkpoint(path)


def test_options_of_the_script_are_data(tmp_path: Path) -> None:
    plain: dict[str, object] = {"img_size": 96, "mean": [0.5, 0.5, 0.5], "lr": 0.1, "model": "resnet18", "resume": ""}
    beside = {"data": Path("/data"), "seed": np.int64(3), "deep": {"a": 1}, "none": None, "many": list(range(9))}
    numbered: dict[Any, object] = {3: 4, **plain}
    saved: tuple[tuple[str, object], ...] = (
        ("args", argparse.Namespace(**plain, **beside)),
        ("hyper_parameters", {**plain, **beside}),
        ("args", numbered),
    )
    for place, value in saved:
        assert read(_save(tmp_path / "a.pth", {"state_dict": STATE, place: value})).options == plain
    assert read(_save(tmp_path / "a.pth", {"state_dict": STATE, "args": "text"})).options == {}
    assert read(_save(tmp_path / "a.pth", STATE)).options == {}


# What fits a network


def _net() -> torch.nn.Sequential:
    return torch.nn.Sequential(OrderedDict(conv=torch.nn.Linear(3, 2), norm=torch.nn.BatchNorm1d(2)))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda state: [state.pop("conv.bias"), state.pop("norm.bias")], r"2 missing \(first: conv\.bias\)"),
        (lambda state: state.update({"fc.weight": torch.ones(1)}), r"1 unknown \(first: fc\.weight\)"),
        (
            lambda state: state.update({"conv.weight": torch.ones(10, 3)}),
            r"1 of another shape \(first: conv\.weight \[10, 3\] for \[2, 3\]\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: Callable[[dict[str, Any]], object], what: str) -> None:
    state = dict(_net().state_dict())
    change(state)
    net = _net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(BadInputError, match=rf"a\.pth doesn't fit Sequential: {what}"):
        load_into(net, state, Path("a.pth"))
    assert _same(dict(net.state_dict()), before), "a refused checkpoint was loaded in part"


def test_weights_that_fit_are_loaded() -> None:
    net, state = _net(), {name: torch.full_like(value, 2) for name, value in _net().state_dict().items()}
    load_into(net, state, Path("a.pth"))
    assert _same(dict(net.state_dict()), state)


def test_half_precision_is_widened_and_counters_of_batch_norm_may_be_missing() -> None:
    net, state = _net(), {name: value.half() for name, value in _net().state_dict().items() if value.ndim}
    load_into(net, state, Path("a.pth"))
    assert {value.dtype for value in net.state_dict().values() if value.ndim} == {torch.float32}


@pytest.mark.parametrize("root", ["model", "module", "backbone"])
def test_a_network_may_itself_have_a_root_of_a_wrappers_name(tmp_path: Path, root: str) -> None:
    net, other = torch.nn.Sequential(OrderedDict([(root, _net())])), torch.nn.Sequential(OrderedDict([(root, _net())]))
    path = _save(tmp_path / "weights.pth", net.state_dict())
    load_into(other, read_checkpoint(path), path)
    assert _same(dict(other.state_dict()), dict(net.state_dict()))


def test_a_network_among_a_losss_and_metrics_keys_is_found_and_those_are_told(tmp_path: Path) -> None:
    path, net = write_lightning(tmp_path / "lightning.ckpt"), nets.Small()
    state = read(path).state
    state["train_acc.correct"] = torch.tensor(float("-inf"))  # as a metric's best begins
    part = part_of(net, state, path)
    assert part.notes == (
        "the network is what is called model.* in the checkpoint; not of it: loss_fn.weight, train_acc.correct",
    )
    load_into(net, state, path)


@pytest.mark.parametrize("prefix", ["net.", "lit.model.", "student."])
def test_a_networks_part_is_found_below_any_prefix(prefix: str) -> None:
    net = _net()
    state = {f"{prefix}{name}": torch.full_like(value, 2) for name, value in net.state_dict().items()}
    load_into(net, {**state, "loss.weight": torch.ones(3)}, Path("a.ckpt"))
    assert net.state_dict()["conv.weight"][0, 0] == 2


def test_what_is_too_much_below_the_prefix_is_not_foreign() -> None:
    state = {f"model.{name}": value for name, value in _net().state_dict().items()}
    with pytest.raises(BadInputError, match=r"1 unknown \(first: conv\.weight_scale\)"):
        load_into(_net(), {**state, "model.conv.weight_scale": torch.ones(1), "loss.w": torch.ones(1)}, Path("a.ckpt"))


def test_two_networks_of_the_same_names_are_told_apart_by_a_key(tmp_path: Path) -> None:
    own = _net().state_dict()
    both = {
        f"{who}.{name}": torch.full_like(value, at)
        for at, who in enumerate(("student", "teacher"))
        for name, value in own.items()
    }
    path = _save(tmp_path / "a.ckpt", {"state_dict": both})
    with pytest.raises(BadInputError, match=r"holds 2 networks of these names: student\.\*, teacher\.\*") as caught:
        load_into(_net(), read_checkpoint(path), path)
    assert caught.value.hints[0].action == "--checkpoint-key student"
    net = _net()
    load_into(net, read_checkpoint(path, "teacher"), path)
    assert net.state_dict()["conv.weight"][0, 0] == 1


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("conv.bias", torch.tensor([True, False]), r"conv\.bias bool for float32"),
        ("conv.bias", torch.tensor([1, 2]), r"conv\.bias int64 for float32"),
        ("flags", torch.tensor([0.5, 1.0]), r"flags float32 for int64"),
        ("flags", torch.tensor([300, 1]), ""),
        ("flags", torch.tensor([7, 1], dtype=torch.uint8), ""),
        ("norm.num_batches_tracked", torch.tensor(3.5), ""),
        ("conv.bias", torch.ones(2, dtype=torch.float64), ""),
    ],
)
def test_weights_of_another_kind_than_the_networks_are_refused(name: str, value: torch.Tensor, told: str) -> None:
    net = _net()
    net.register_buffer("flags", torch.tensor([0, 1]))
    state = {**net.state_dict(), name: value}
    if told:
        with pytest.raises(BadInputError, match=rf"1 of another type \(first: {told}\)"):
            load_into(net, state, Path("a.pth"))
    else:
        load_into(net, state, Path("a.pth"))
