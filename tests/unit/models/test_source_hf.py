"""The scheme "hf": what a name means, which configurations and weights are refused, what the hub and the world are asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.models import hf_folders
from tests.unit.models.hf_folders import answers_of, edit, state_of, timm_folder, write_state

from deploykit.errors import BadInputError, DeploykitError, UsageError
from deploykit.models.original import SourceOptions
from deploykit.models.source_hf import SCHEME


@pytest.fixture(scope="module")
def _dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_folders.dino_at(tmp_path_factory.mktemp("written") / "dino")


@pytest.fixture
def dino(tmp_path: Path, _dino: Path) -> Path:
    """A DINOv2 of one's own, with its preprocessor_config.json."""
    return shutil.copytree(_dino, tmp_path / "dino")


# Names


@pytest.mark.parametrize("name", ["", "file.txt"])
def test_what_is_no_folder_and_no_repository_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(UsageError, match="write hf:FOLDER or hf:OWNER/NAME"):
        SCHEME.resolve(str(tmp_path / name) if name else "", SourceOptions())


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./nowhere", "../nowhere", "~/nowhere", "a/b/c", "a b", "timm/x@main"]
)
def test_a_folder_that_is_not_there_is_told_at_once(name: str) -> None:
    with pytest.raises(UsageError, match="there is no such folder, and the hub has no such names") as caught:
        SCHEME.resolve(name, SourceOptions())
    assert "hf:FOLDER" in str(caught.value.hints)


def test_a_folder_without_a_configuration_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"is no model: it has no config\.json"):
        SCHEME.resolve(str(tmp_path), SourceOptions())


def test_a_path_of_a_folder_with_a_model_is_claimed(dino: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(dino.parent)
    assert SCHEME.claims(str(dino))
    assert SCHEME.claims("dino/")
    assert not SCHEME.claims("dino"), "it may be a name of timm's"
    assert not SCHEME.claims(str(dino.parent))
    assert not SCHEME.claims(str(dino / "config.json"))
    assert not SCHEME.claims("timm/resnet18.a1_in1k")


def test_nothing_is_listed() -> None:
    assert SCHEME.names("*") == ()


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("dinov2-base", "dinov2-base"),
        ("my model (v2)", "my-model-v2"),
        (".hidden", "hidden"),
        ("convnext_tiny.fb_in22k", "convnext_tiny.fb_in22k"),
        ("模型", "model"),
    ],
)
def test_an_original_is_called_after_its_folder(dino: Path, folder: str, name: str) -> None:
    assert SCHEME.resolve(str(dino.rename(dino.parent / folder)), SourceOptions()).id == name


# Configurations


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "\xff", "[" * 100_000, '{"model_type": }'])
def test_a_configuration_that_is_no_object_is_refused(dino: Path, text: str) -> None:
    (dino / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInputError, match=r"config\.json (is not JSON|holds a)"):
        SCHEME.resolve(str(dino), SourceOptions())


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_code_that_a_model_brings_along_is_refused(dino: Path, file: str) -> None:
    edit(dino, file, auto_map={"AutoModel": "evil.Model", "AutoImageProcessor": "evil.Processor"})
    (dino / "evil.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(BadInputError, match=rf"{file} asks for code of its own .*evil.*it is never run"):
        SCHEME.resolve(str(dino), SourceOptions())


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model_type": None}, UsageError, "has neither 'architecture' nor 'model_type'"),
        ({"model_type": "dinov9"}, UsageError, "knows no model_type 'dinov9'"),
        ({"model_type": 5}, UsageError, "knows no model_type 5"),
        ({"model_type": ["vit"]}, UsageError, "knows no model_type"),
        ({"architectures": None}, UsageError, "doesn't say which network it is: architectures None"),
        ({"architectures": []}, UsageError, r"architectures \[\]"),
        ({"architectures": "Dinov2Model"}, UsageError, "architectures 'Dinov2Model'"),
        ({"architectures": [3]}, UsageError, r"architectures \[3\]"),
        ({"architectures": ["Dinov9Model"]}, UsageError, "knows no network 'Dinov9Model'"),
        ({"architectures": ["pipeline"]}, UsageError, "knows no network 'pipeline'"),
        ({"architectures": ["PreTrainedModel"]}, BadInputError, "contradicts itself: PreTrainedModel is"),
        ({"architectures": ["ViTModel"]}, BadInputError, "contradicts itself: ViTModel is 'vit', not"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, UsageError, "takes input_ids, not one image"),
        ({"architectures": ["Dinov2WithRegistersBackbone"]}, UsageError, "neither class logits nor features"),
        ({"quantization_config": {"quant_method": "gptq"}}, UsageError, "is quantized already"),
        (
            {"backbone": "evil/resnet18"},
            UsageError,
            r"is built around another model \(evil/resnet18\), which isn't fetched",
        ),
        ({"use_pretrained_backbone": True}, UsageError, "is built around another model"),
        (
            {
                "backbone_config": {
                    "model_type": "timm_backbone",
                    "backbone": "resnet18",
                    "use_pretrained_backbone": True,
                }
            },
            UsageError,
            "is built around another model",
        ),
        ({"backbone_config": [{"auto_map": {"AutoModel": "evil.Model"}}]}, BadInputError, "asks for code of its own"),
        ({"num_channels": 1}, UsageError, "takes 1 channels"),
        ({"hidden_size": "wide"}, BadInputError, r"config\.json (is damaged|describes no)"),
        ({"num_attention_heads": 0}, BadInputError, "describes no Dinov2WithRegistersModel that can be built"),
        ({"hidden_act": "nonsense"}, BadInputError, "describes no Dinov2WithRegistersModel that can be built"),
    ],
)
def test_a_configuration_of_nothing_that_can_be_opened_is_refused(
    dino: Path, changes: dict[str, Any], kind: type[DeploykitError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        SCHEME.resolve(str(edit(dino, **changes)), SourceOptions())


@pytest.mark.parametrize("start", ["", "_"])
@pytest.mark.parametrize("end", ["attn_implementation", "attn_implementation_internal", "experts_implementation"])
def test_a_kernel_that_a_configuration_names_is_refused(dino: Path, start: str, end: str) -> None:
    edit(dino, text={"deep": {start + end: "evil/kernel@main"}})
    with pytest.raises(
        BadInputError, match=rf"asks for code of its own \({start}{end} evil/kernel@main\): it is never run"
    ):
        SCHEME.resolve(str(dino), SourceOptions())


def test_attention_is_the_usual_whatever_a_configuration_says(dino: Path) -> None:
    edit(dino, attn_implementation="eager", _attn_implementation="flash_attention_2", _attn_implementation_internal="x")
    original = SCHEME.resolve(str(dino), SourceOptions())
    assert SCHEME.open(original).model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 3}, r"num_classes is the matter of its config\.json"),
        ({"model_args": {"depth": 3}}, r"model_args is the matter of its config\.json"),
        ({"checkpoint_key": "model"}, "there is no --weights FILE to look in"),
        ({"weights": "none.pth"}, r"none\.pth does not exist \(given as --weights\)"),
        ({"weights": "none.pth", "random_weights": True}, "contradict one another"),
        ({"labels": "none.txt"}, "answers with features, which have no class names"),
        ({"image_size": 60}, r"takes patches of 14 pixels: 60 is no multiple\. Near: 56, 70"),
        ({"image_size": 13}, r"13 is no multiple\. Near: 14"),
        ({"image_size": 0}, "--image-size 0"),
        ({"crop_pct": 0.0}, "crop_pct must be in"),
        ({"interpolation": "hamming"}, "interpolation 'hamming'"),
    ],
)
def test_options_that_do_not_fit_are_refused(dino: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SCHEME.resolve(str(dino), SourceOptions(**options))


# Weights


@pytest.mark.parametrize("left", [None, "model.safetensors.incomplete", "model.safetensors.part"])
def test_a_folder_without_weights_is_refused(dino: Path, left: str | None) -> None:
    path = dino / "model.safetensors"
    path.rename(dino / left) if left else path.unlink()
    with pytest.raises(
        BadInputError, match=r"holds no weights: neither model\.safetensors nor pytorch_model\.bin is there"
    ):
        SCHEME.resolve(str(dino), SourceOptions())


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-100],
        lambda content: content[:20],
        lambda content: b"",
        lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        lambda content: b"\xff" * 8 + content[8:],
    ],
    ids=["truncated", "half a header", "empty", "a pointer of git-lfs", "a header of any length"],
)
def test_damaged_weights_are_refused(dino: Path, damage: Callable[[bytes], bytes]) -> None:
    path = dino / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInputError, match=r"model\.safetensors is no safetensors file"):
        SCHEME.resolve(str(dino), SourceOptions())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(dino: Path, value: float) -> None:
    state = state_of(dino)
    state["layernorm.weight"][3] = value
    write_state(dino, state)
    with pytest.raises(BadInputError, match=r"layernorm\.weight holds NaN or infinity"):
        SCHEME.resolve(str(dino), SourceOptions())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layernorm.weight": None}, r"1 missing \(first: layernorm\.weight\)"),
        ({"embeddings.register_tokens": None}, r"1 missing \(first: embeddings\.register_tokens\)"),
        ({"layernorm.weight": torch.ones(31)}, r"1 of another shape \(first: layernorm\.weight \[31\] for \[32\]\)"),
        ({"classifier.weight": torch.ones(3, 32)}, r"1 unknown \(first: classifier\.weight\)"),
    ],
)
def test_weights_that_do_not_fit_to_the_letter_are_refused(
    dino: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    state = {**state_of(dino), **change}
    write_state(dino, {name: value for name, value in state.items() if value is not None})
    original = SCHEME.resolve(str(dino), SourceOptions())
    with pytest.raises(BadInputError, match=rf"model\.safetensors doesn't fit Dinov2WithRegistersModel: {message}"):
        SCHEME.open(original)


def test_weights_of_another_configuration_are_refused(dino: Path) -> None:
    original = SCHEME.resolve(str(edit(dino, num_hidden_layers=3)), SourceOptions())
    with pytest.raises(
        BadInputError, match=r"doesn't fit Dinov2WithRegistersModel: 18 missing \(first: encoder\.layer\.2\."
    ):
        SCHEME.open(original)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_weights_in_several_files_are_those_of_one(dino: Path, variant: str | None, form: str) -> None:
    wanted = SCHEME.open(SCHEME.resolve(str(dino), SourceOptions())).state_dict()
    state = load_file(dino / "model.safetensors")
    (dino / "model.safetensors").unlink()
    stem = "model" if form == "safetensors" else "pytorch_model"
    placed = {name: f"{stem}-{1 + number % 3:05}-of-00003.{form}" for number, name in enumerate(sorted(state))}
    for part in set(placed.values()):
        inside = {name: state[name] for name in state if placed[name] == part}
        (save_file if form == "safetensors" else torch.save)(inside, dino / part)
    index = f"{stem}.{form}.index.{variant}.json" if variant else f"{stem}.{form}.index.json"
    (dino / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))
    original = SCHEME.resolve(str(dino), SourceOptions())
    found = SCHEME.open(original).state_dict()
    assert original.weights_file.endswith(index)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo it ran",)


def test_a_pickle_is_read_without_running_a_byte_of_it(dino: Path) -> None:
    safe = SCHEME.resolve(str(dino), SourceOptions())
    expected = answers_of(safe)
    state = state_of(dino)
    (dino / "model.safetensors").unlink()
    torch.save(state, dino / "pytorch_model.bin")
    original = SCHEME.resolve(str(dino), SourceOptions())
    assert Path(original.weights_file).name == "pytorch_model.bin"
    assert torch.equal(answers_of(original), expected)
    torch.save({**state, "evil": _Evil()}, dino / "pytorch_model.bin")
    with pytest.raises(BadInputError, match="holds more than weights, and nothing of it was run"):
        SCHEME.resolve(str(dino), SourceOptions())


@pytest.mark.parametrize("change", ["changed", "gone"])
def test_weights_that_changed_since_they_were_resolved_are_refused(dino: Path, change: str) -> None:
    original = SCHEME.resolve(str(dino), SourceOptions())
    SCHEME.check(original)
    state = state_of(dino)
    (dino / "model.safetensors").unlink()
    if change == "changed":
        write_state(dino, {name: value * 2 for name, value in state.items()})
    for refused in (SCHEME.check, SCHEME.open):
        with pytest.raises(BadInputError, match="is missing or has changed since it was resolved"):
            refused(original)


def test_weights_of_a_file_go_before_the_folders(dino: Path, tmp_path: Path) -> None:
    doubled = {name: value * 2 for name, value in state_of(dino).items()}
    torch.save({"teacher": doubled}, tmp_path / "mine.pth")
    given: dict[str, Any] = {"weights": str(tmp_path / "mine.pth"), "checkpoint_key": "teacher"}
    original = SCHEME.resolve(str(dino), SourceOptions(**given))
    opened = SCHEME.open(original).state_dict()
    assert torch.equal(opened["model.layernorm.weight"], doubled["layernorm.weight"])
    assert original.digest != SCHEME.resolve(str(dino), SourceOptions()).digest


def test_random_weights_need_no_file_and_are_the_same_each_time(dino: Path) -> None:
    (dino / "model.safetensors").unlink()
    original = SCHEME.resolve(str(dino), SourceOptions(random_weights=True))
    answers = answers_of(original)
    assert torch.equal(answers, answers_of(original))
    assert float((answers[0] - answers[1]).abs().max()) > 0.01


def test_half_precision_weights_are_computed_with_in_float32(dino: Path) -> None:
    state = {name: value.half() for name, value in state_of(dino).items()}
    write_state(dino, state)
    module = SCHEME.open(SCHEME.resolve(str(edit(dino, dtype="float16")), SourceOptions()))
    assert {value.dtype for value in module.state_dict().values()} == {torch.float32}


# The hub, and the world


PROGRAM = """
import json, os, sys, time
opened = []
def watch(event, args):
    if event == "socket.__new__" and args[1] != 1:
        opened.append(str(args))
sys.addaudithook(watch)
import torch, timm, transformers, huggingface_hub
from deploykit.errors import DeploykitError
from deploykit.models.original import SourceOptions
from deploykit.models.source_hf import SCHEME
imported = list(opened)
def say(name):
    opened[:] = imported
    began = time.monotonic()
    try:
        original = SCHEME.resolve(name, SourceOptions())
        module = SCHEME.open(original)
        said = {"id": original.id, "name": original.name, "weights": original.weights_file, "task": original.task}
    except DeploykitError as error:
        said = {"error": str(error), "code": error.exit_code, "hints": [hint.action for hint in error.hints]}
    return {**said, "seconds": time.monotonic() - began, "sockets": list(opened)}
print(json.dumps({name: say(name) for name in sys.argv[1:]}))
"""


def _elsewhere(names: Sequence[str], home: Path, **environment: str) -> dict[str, dict[str, Any]]:
    """Resolve and open names in a process of its own: the hub's client reads the environment when it is imported."""
    inherited = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    variables = {**inherited, "HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", **environment}
    ended = subprocess.run([sys.executable, "-c", PROGRAM, *names], capture_output=True, text=True, env=variables)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "", "nothing is printed beside"
    said: dict[str, dict[str, Any]] = json.loads(ended.stdout)
    return said


def _cached(home: Path, repository: str, folder: Path) -> Path:
    """Lay files where the hub's client keeps them: blobs, and links to them from the snapshot that `main` is."""
    commit = "0" * 40
    root = home / "hub" / f"models--{repository.replace('/', '--')}"
    for part in ("blobs", "refs", f"snapshots/{commit}"):
        (root / part).mkdir(parents=True)
    (root / "refs/main").write_text(commit)
    for path in folder.iterdir():
        shutil.copy(path, root / "blobs" / path.name)
        (root / "snapshots" / commit / path.name).symlink_to(f"../../blobs/{path.name}")
    return root / "snapshots" / commit


@dataclass(frozen=True)
class _Heard:
    """What two processes say, one of them told to stay offline, and where the snapshots lie that are whole."""

    dino: Path
    snapshots: dict[str, Path]
    said: dict[str, dict[str, Any]]
    offline: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def heard(_dino: Path, tmp_path_factory: pytest.TempPathFactory) -> _Heard:
    """Repositories in one cache, whole and in part. All that is here is opened before the network is missed."""
    home = tmp_path_factory.mktemp("hub")
    folders = {"transformers": _dino, "timm": timm_folder(tmp_path_factory.mktemp("timm") / "mine")[0]}
    snapshots = {kind: _cached(home, f"{kind}/model.one", folder) for kind, folder in folders.items()}
    for missing in ("config.json", "model.safetensors", "preprocessor_config.json"):
        folder = shutil.copytree(_dino, tmp_path_factory.mktemp("partial") / "dino")
        (folder / missing).unlink()
        _cached(home, f"without/{missing}", folder)
    names = [str(_dino), *(f"{kind}/model.one" for kind in folders)]
    said = _elsewhere([*names, "without/config.json", "without/preprocessor_config.json"], home)
    offline = _elsewhere(["without/model.safetensors"], home, HF_HUB_OFFLINE="1")
    return _Heard(_dino, snapshots, said, offline)


def test_a_folder_is_opened_without_a_socket(heard: _Heard) -> None:
    said = heard.said[str(heard.dino)]
    assert (said["name"], said["task"], said["sockets"]) == (str(heard.dino), "embedding", [])


@pytest.mark.parametrize("kind", ["transformers", "timm"])
def test_a_repository_comes_from_the_cache_without_network(heard: _Heard, kind: str) -> None:
    said = heard.said[f"{kind}/model.one"]
    assert (said["id"], said["name"]) == ("model.one", f"{kind}/model.one")
    assert said["weights"] == str(heard.snapshots[kind] / "model.safetensors")
    assert said["sockets"] == []


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_repository_that_is_not_here_whole_is_told_at_once(heard: _Heard, missing: str) -> None:
    name = f"without/{missing}"
    said = (heard.offline if missing == "model.safetensors" else heard.said)[name]
    told = f"hf:{name}: there is no such folder, {missing} isn't in the hub's cache, and the hub can't be reached"
    assert (said["code"], said["error"]) == (5, told)
    assert said["hints"] == ["hf:FOLDER"]
    assert said["seconds"] < 20, "the hub's client alone tries again for half a minute"


def test_importing_the_scheme_imports_no_heavy_library() -> None:
    code = "import sys, deploykit.models.source_hf\nprint({'torch', 'timm', 'transformers', 'safetensors'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.strip() == "set()", ended.stderr
