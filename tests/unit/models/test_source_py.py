"""A function of one's own that returns a module: what it must be, and what of it is fixed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.cases.files import write_lightning

from deploykit.errors import BadInputError, UsageError
from deploykit.models import sources
from deploykit.models.original import Original, SourceOptions

MODULE = "own_networks_for_tests"
CODE = """
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes: int = 5, width: int = 4) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, width, 8, 8), nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(width, classes)
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("nothing", torch.empty(0))
        self.register_buffer("halves", torch.ones(2, dtype=torch.bfloat16))

    def forward(self, images):
        return self.head(self.drop(self.model(images)))


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Net()

    def forward(self, images):
        return self.model(images)


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, 2)

    def forward(self, images):
        if images.shape[-1] == 64:
            raise ValueError
        return self.fc(images.flatten(1))


def by_numpy() -> nn.Module:
    net = Net()
    with torch.no_grad():
        net.head.bias.copy_(torch.from_numpy(np.random.default_rng().normal(size=5)))
    return net


def grown(classes: int, factor: float = 1.0, relu: bool = False, kind: str = "net") -> nn.Module:
    assert kind == "net" and relu is True and isinstance(classes, int) and isinstance(factor, float)
    return Net(classes)


def fails() -> nn.Module:
    raise KeyError("no such thing")


class Several(Net):
    def forward(self, images):
        return super().forward(images), images


class Features(Net):
    def forward(self, images):
        return self.model[0](images)


class Named(Net):
    def forward(self, images):
        return {"logits": super().forward(images)}


class Nothing(Net):
    def forward(self, images):
        return {"logits": super().forward(images), "count": len(images)}


class Learning(Net):
    def forward(self, images):
        self.head.weight.data.mul_(0.5)
        return super().forward(images)


class Counting(Net):
    def forward(self, images):
        self.flag.logical_not_()
        return super().forward(images)


def text() -> str:
    return "net"


number = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, which holds the module."""
    (tmp_path / f"{MODULE}.py").write_text(CODE)
    (tmp_path / "broken_for_tests.py").write_text("def net(:\n")
    (tmp_path / "raising_for_tests.py").write_text("raise RuntimeError('not today')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop(MODULE, None)


def _resolve(function: str, **options: Any) -> Original:
    return sources.resolve(f"py:{MODULE}:{function}", SourceOptions(**{"image_size": 32, **options}))


# What is refused


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":",
        "net",
        "module.net",
        f"{MODULE}:",
        ":Net",
        ".:Net",
        f".{MODULE}:Net",
        f"{MODULE}.:Net",
        "a/b.py:Net",
        "a::b",
    ],
)
def test_what_names_no_function_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"write py:package\.module:function"):
        sources.resolve(f"py:{name}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_anywhere:net", "No module named 'no_such_module_anywhere'"),
        (f"{MODULE}.deeper:net", "is not a package"),
        (f"{MODULE}:none", "has no attribute 'none'"),
        ("broken_for_tests:net", "can't be imported: SyntaxError"),
        ("raising_for_tests:net", "can't be imported: RuntimeError: not today"),
    ],
)
def test_what_cannot_be_imported_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sources.resolve(f"py:{name}")


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("number", {}, "'int' object is not callable"),
        ("grown", {}, "missing 1 required positional argument: 'classes'"),
        ("Net", {"depth": 3}, "unexpected keyword argument 'depth'"),
        ("fails", {}, "KeyError: 'no such thing'"),
        ("text", {}, "returns a str, not a torch.nn.Module"),
    ],
)
def test_what_cannot_be_called_for_a_module_is_refused(function: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _resolve(function, model_args=arguments)


@pytest.mark.parametrize(
    ("function", "names", "task"),
    [
        ("Several", ("output0", "output1"), "logits"),
        ("Features", ("embedding",), "embedding"),
        ("Named", ("logits",), "logits"),
    ],
)
def test_what_a_module_answers_with_is_named(function: str, names: tuple[str, ...], task: str) -> None:
    found = _resolve(function)
    assert (found.takes.outputs, found.task, bool(found.labels)) == (names, task, task == "logits")
    with sources.open_original(found) as session:
        rows = np.zeros((3, *found.recipe.input_size), np.float32)
        answers = session.infer({found.input_name: rows})
    assert tuple(answers) == names
    assert [len(array) for array in answers.values()] == [3] * len(names)


def test_an_answer_that_holds_more_than_tensors_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"answers with what is no tensor \(count: int\)"):
        _resolve("Nothing")


def test_a_forward_that_changes_weights_is_refused_and_one_that_changes_a_buffer_is_not() -> None:
    with pytest.raises(BadInputError, match=r"its forward changes its own weights \(head.weight\)"):
        _resolve("Learning")
    found = _resolve("Counting")
    assert sources.open_module(found) is not None
    assert found.weights_sha256 == _resolve("Counting").weights_sha256


@pytest.mark.parametrize(("size", "said"), [(48, "shapes cannot be multiplied"), (64, "ValueError")])
def test_an_input_that_the_module_does_not_take_is_refused(size: int, said: str) -> None:
    assert _resolve("Fixed").recipe.input_size == (3, 32, 32)
    with pytest.raises(
        UsageError, match=rf"can't take float32 \[1, 3, {size}, {size}\] \(see --image-size\): .*{said}"
    ):
        _resolve("Fixed", image_size=size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 3}, "num_classes is the function's own matter"),
        ({"random_weights": True}, "random_weights is the function's own matter"),
        ({"checkpoint_key": "model"}, "checkpoint_key is the function's own matter"),
        ({"weights": "none.pth"}, r"none\.pth does not exist \(given as --weights\)"),
        ({"labels": "none.txt"}, r"none\.txt does not exist"),
        ({"labels": "none.txt", "embedding": True}, "features have no class names"),
        ({"family": "convnet"}, "--family convnet: there are .*convnext, .*generic"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _resolve("Net", **options)


def test_a_function_that_draws_elsewhere_is_refused_when_opened() -> None:
    original = _resolve("by_numpy")
    with pytest.raises(BadInputError, match=r"returns other weights at each call: seed it, or give --weights FILE"):
        sources.open_module(original)


def test_weights_that_do_not_fit_are_refused(folder: Path) -> None:
    save_file({"head.weight": torch.ones(5, 4)}, folder / "w.safetensors")
    with pytest.raises(BadInputError, match=r"w\.safetensors doesn't fit Net: \d+ missing"):
        _resolve("Net", weights="w.safetensors")


@pytest.mark.parametrize("change", ["changed", "gone"])
def test_weights_that_changed_since_are_refused(folder: Path, change: str) -> None:
    original = _with_weights(folder)
    (folder / "w.safetensors").unlink()
    if change == "changed":
        _with_weights(folder, 0.75)
    with pytest.raises(BadInputError, match=r"w\.safetensors is missing or has changed since it was resolved"):
        sources.open_module(original)


# What is found


def _with_weights(folder: Path, value: float = 0.25, **options: Any) -> Original:
    state = sources.open_module(_resolve("Net")).state_dict()
    floats = {key: torch.full_like(tensor, value) for key, tensor in state.items() if tensor.is_floating_point()}
    save_file({**state, **floats}, folder / "w.safetensors")
    return _resolve("Net", weights="w.safetensors", **options)


def test_a_function_of_ones_own_is_an_original() -> None:
    original = _resolve("Net")
    assert (original.id, original.scheme, original.name) == ("Net", "py", f"{MODULE}:Net")
    assert (original.task, original.family, original.images) == ("logits", "generic", None)
    assert original.labels == tuple(f"class {index}" for index in range(5))
    assert original.recipe.input_size == (3, 32, 32)
    assert original.recipe.mean == (0.485, 0.456, 0.406)
    module = sources.open_module(original)
    assert original.parameters == sum(value.numel() for value in module.parameters())
    assert not any(part.training for part in module.modules())


def test_a_function_of_ones_own_can_be_of_a_named_family() -> None:
    plain, named = _resolve("Net"), _resolve("Net", family="convnext")
    assert named.family == "convnext"
    assert named.digest != plain.digest
    assert sources.located(named.locator) == named
    assert "family" not in json.loads(plain.locator)["options"], "a locator says nothing that wasn't asked for"


def test_a_locator_opens_an_equal_original() -> None:
    original = _resolve("Net", model_args={"classes": 7}, mean=(0.5, 0.5, 0.5))
    again = sources.located(original.locator)
    assert (again, again.digest) == (original, original.digest)
    assert torch.equal(sources.open_module(again).head.weight, sources.open_module(original).head.weight)  # type: ignore[arg-type, union-attr]


def test_a_function_that_draws_from_torch_is_seeded() -> None:
    torch.manual_seed(1)
    first = _resolve("Net")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert _resolve("Net") == first
    sources.open_module(first)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_process_opens_the_same_weights(folder: Path) -> None:
    original = _with_weights(folder)
    (folder / "elsewhere").mkdir()
    code = f"import sys, json; sys.path.insert(0, {str(folder)!r})\n"
    code += "from deploykit.models import sources\noriginal = sources.located(sys.argv[1])\n"
    code += "print(json.dumps([sources.open_module(original).head.weight.mean().item(), original.digest]))"
    ended = subprocess.run(
        [sys.executable, "-c", code, original.locator], capture_output=True, text=True, cwd=folder / "elsewhere"
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == [0.25, original.digest]


@pytest.mark.parametrize("image_size", [None, 40])
def test_images_are_prepared_as_asked_else_as_usual(image_size: int | None) -> None:
    original = _resolve("Net", image_size=image_size, crop_pct=0.9, interpolation="bilinear")
    size = image_size or 224
    assert original.recipe.input_size == (3, size, size)
    assert (original.recipe.crop_pct, original.recipe.interpolation) == (0.9, "bilinear")


def test_arguments_are_passed_with_their_kind() -> None:
    arguments: dict[str, bool | int | float | str] = {"classes": 3, "factor": 2.0, "relu": True, "kind": "net"}
    original = _resolve("grown", model_args=arguments)
    assert len(original.labels) == 3
    assert not sources.open_module(sources.located(original.locator)).training


def test_weights_of_a_file_are_loaded(folder: Path) -> None:
    original = _with_weights(folder)
    assert original.digest != _resolve("Net").digest
    assert Path(original.weights_file) == (folder / "w.safetensors").resolve()
    assert set(sources.open_module(original).head.weight.flatten().tolist()) == {0.25}  # type: ignore[operator, union-attr]


def test_a_key_says_where_the_weights_are(folder: Path) -> None:
    state = sources.open_module(_resolve("Net")).state_dict()
    torch.save({"a": state, "b": {**state, "head.bias": torch.full((5,), 9.0)}}, folder / "w.pth")
    original = _resolve("Net", weights="w.pth", checkpoint_key="b")
    assert set(sources.open_module(original).head.bias.tolist()) == {9.0}  # type: ignore[operator, union-attr]


def test_a_module_whose_parts_all_lie_under_one_name_takes_its_own_weights(folder: Path) -> None:
    plain = _resolve("Wrapped")
    state = sources.open_module(plain).state_dict()
    assert all(name.startswith("model.") for name in state)
    save_file(state, folder / "w.safetensors")
    assert _resolve("Wrapped", weights="w.safetensors").weights_sha256 == plain.weights_sha256


def test_labels_of_a_file_name_the_classes(folder: Path) -> None:
    (folder / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    assert _resolve("Net", labels="labels.txt").labels == ("a", "b", "c", "d", "e")


def test_features_have_no_labels() -> None:
    original = _resolve("Net", embedding=True)
    assert (original.task, original.labels) == ("embedding", ())


def test_functions_of_ones_own_are_not_listed() -> None:
    from deploykit.models.scheme import get_scheme

    assert get_scheme("py").names("*") == ()


# What people return, as small networks


def case(name: str, **options: Any) -> Original:
    return sources.resolve(f"py:tests.cases.nets:{name}", SourceOptions(image_size=32, **options))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("scripted", r"scripted returns TorchScript, which can't be traced: return the network that it was made of"),
        ("dynamic_int8", r"returns a network that is quantized \(1 is a Linear\): return it in float"),
        ("qat", r"with fake quantizers or observers \(.* is a \w+\): return it in float"),
        ("observed", r"with fake quantizers or observers \(.* is a \w+\): return it in float"),
        ("lazy", r"whose 1\.weight has no shape yet: run it once before it is returned"),
        ("half", r"returns a network of float16 \(body\.0\.weight\): return module\.float\(\)"),
        ("double", r"returns a network of float64 \(body\.0\.weight\): return module\.float\(\)"),
        ("without_memory", r"whose body\.0\.weight has no memory \(meta\): build it on the CPU"),
        ("sparse", r"whose head\.weight is a torch\.sparse_coo: return it with plain tensors"),
        ("program", r"returns a program of torch\.export, which has no evaluation mode"),
        ("state", r"returns a OrderedDict, not a torch\.nn\.Module"),
    ],
)
def test_what_is_no_float_network_is_refused_with_the_remedy(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        case(name)
    assert "\n" not in caught.value.message


def test_a_compiled_network_is_the_one_that_was_compiled() -> None:
    assert case("compiled").weights_sha256 == case("plain").weights_sha256


def test_one_channel_is_grey() -> None:
    original = case("gray")
    assert (original.recipe.input_size, original.recipe.mean, original.recipe.std) == ((1, 32, 32), (0.5,), (0.5,))
    assert original.notes == (
        "one channel: images are turned to grey; mean 0.5 and std 0.5 unless --mean and --std say others",
    )
    told = case("gray", mean=(0.1,), std=(0.3,))
    assert (told.recipe.mean, told.recipe.std) == ((0.1,), (0.3,))
    assert told.notes == ("one channel: images are turned to grey",)


def test_a_checkpoint_says_what_images_it_was_trained_on(tmp_path: Path) -> None:
    state = importlib.import_module("tests.cases.nets").plain().state_dict()
    script = {"img_size": 48, "mean": [0.1, 0.2, 0.3], "std": [123.0, 117.0, 104.0], "num_classes": 7, "lr": 0.1}
    torch.save({"state_dict": state, "hyper_parameters": script}, tmp_path / "a.ckpt")
    options = SourceOptions(weights=str(tmp_path / "a.ckpt"))
    original = sources.resolve("py:tests.cases.nets:plain", options)
    assert original.recipe.input_size == (3, 48, 48)
    assert original.recipe.mean == (0.1, 0.2, 0.3)
    assert original.recipe.std == (0.229, 0.224, 0.225)
    assert original.notes == (
        "img_size 48 is the checkpoint's; --image-size says another",
        "mean [0.1, 0.2, 0.3] is the checkpoint's; --mean says another",
        "the checkpoint's options say std [123.0, 117.0, 104.0], which isn't taken: say --std",
        "the checkpoint's options say num_classes 7; the head has 10",
    )
    assert sources.located(original.locator).recipe == original.recipe
    asked = sources.resolve(
        "py:tests.cases.nets:plain", SourceOptions(weights=options.weights, image_size=32, mean=(0.5,) * 3)
    )
    assert (asked.recipe.input_size, asked.recipe.mean) == ((3, 32, 32), (0.5, 0.5, 0.5))


def test_what_of_a_checkpoint_is_the_networks_is_told(tmp_path: Path) -> None:
    path = write_lightning(tmp_path / "lightning.ckpt")
    original = case("plain", weights=str(path))
    assert original.notes == (
        "the network is what is called model.* in the checkpoint; not of it: loss_fn.weight, train_acc.correct",
    )
    assert original.weights_sha256 == case("plain").weights_sha256
