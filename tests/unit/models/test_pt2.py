"""Archives of torch.export: nothing that they bring is run before it was looked at."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploykit.errors import BadInputError
from deploykit.models import pt2, pt2_program

Edit = Callable[[Any], None]


class Evil:
    """Creates a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt2"
    dims = ({0: torch.export.Dim("n", min=1, max=8)},)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=dims), path)
    return path


def rewrite(path: Path, ending: str, edit: Callable[[bytes], bytes]) -> None:
    """Change one member of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith(ending))
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, edit(data) if member == name else data)


def rewrite_json(path: Path, ending: str, edit: Edit) -> None:
    def change(data: bytes) -> bytes:
        value = json.loads(data)
        edit(value)
        return json.dumps(value).encode()

    rewrite(path, ending, change)


def test_a_plain_program_is_opened(archive: Path) -> None:
    found = pt2.describe(archive)
    (batch,) = found.inputs[0].axes
    assert (batch.min, batch.max, found.inputs[0].shape[1:], found.outputs[0].shape[1:]) == (1, 8, (3, 8, 8), (3,))
    assert pt2.load(archive)(torch.zeros(5, 3, 8, 8)).shape == (5, 3)


@pytest.mark.parametrize(
    "target", ["torch.os.system", "torch.load", "torch.ops.load_library", "_operator.methodcaller", "os.system"]
)
def test_operators_that_are_none_are_refused(archive: Path, target: str) -> None:
    def edit(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][1]["target"] = target

    rewrite_json(archive, "models/model.json", edit)
    with pytest.raises(BadInputError, match="nothing of it was run: its target"):
        pt2.load(archive)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "exec('1')",
        "open('x','w')",
        "Symbol('s0').__class__",
        "Symbol('s0;x')",
        "eval(x)",
    ],
)
def test_expressions_that_call_anything_else_are_refused(archive: Path, expression: str) -> None:
    text = archive.read_bytes()
    assert b"expr_str" in text or zipfile.is_zipfile(archive)

    def edit(model: Any) -> None:
        def walk(value: Any) -> bool:
            if isinstance(value, dict):
                if "expr_str" in value:
                    value["expr_str"] = expression
                    return True
                return any(walk(entry) for entry in value.values())
            return isinstance(value, list) and any(walk(entry) for entry in value)

        assert walk(model)

    rewrite_json(archive, "models/model.json", edit)
    with pytest.raises(BadInputError, match="nothing of it was run: its expr_str"):
        pt2.load(archive)


def test_names_that_would_become_code_are_refused(archive: Path) -> None:
    def edit(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][1]["name"] = "x = __import__('os')"

    rewrite_json(archive, "models/model.json", edit)
    with pytest.raises(BadInputError, match="its name"):
        pt2.load(archive)


def test_pickled_weights_are_refused_and_not_opened(archive: Path, tmp_path: Path) -> None:
    def edit(config: Any) -> None:
        next(iter(config["config"].values()))["use_pickle"] = True

    rewrite_json(archive, "model_weights_config.json", edit)
    rewrite(archive, "weights/weight_0", lambda _: pickle.dumps(Evil(tmp_path / "mark")))
    with pytest.raises(BadInputError, match="is pickled"):
        pt2.load(archive)
    assert not (tmp_path / "mark").exists()


def test_sample_inputs_are_pickled_and_never_opened(archive: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(Evil(tmp_path / "mark"), buffer)
    rewrite(archive, "sample_inputs/model.pt", lambda _: buffer.getvalue())
    assert pt2.load(archive)(torch.zeros(5, 3, 8, 8)).shape == (5, 3)
    assert not (tmp_path / "mark").exists()


def add(path: Path, name: str, data: bytes) -> None:
    """Add a member to an archive, in its folder."""
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr(f"{opened.namelist()[0].partition('/')[0]}/{name}", data)


def pickled(mark: Path) -> bytes:
    """Return what `torch.load` runs, unless it is restricted."""
    buffer = io.BytesIO()
    torch.save(Evil(mark), buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "name",
    [
        *("data/SAMPLE_INPUTS/model.pt", "data/sample_inputs/MODEL.pt", "Data/sample_inputs/model.pt"),
        *("data/sample_inputs/model.pt", "data/sample_inputs/other.pt", "models/MODEL.json", "models/other.json"),
        *("data/weights/WEIGHT_0", "data/aotinductor/model/x.so", "data/executorch/x", "xl_model_weights/x", "x", ""),
    ],
)
def test_a_member_that_no_plain_program_has_is_refused_and_not_run(archive: Path, tmp_path: Path, name: str) -> None:
    """PyTorch finds members by names in any case, and so opens another one than whoever compares names exactly."""
    add(archive, name, pickled(tmp_path / "mark"))
    with pytest.raises(BadInputError, match="nothing of it was run: it holds"):
        pt2.load(archive)
    assert not (tmp_path / "mark").exists()


def test_a_pickle_under_the_name_of_another_case_is_not_run(archive: Path, tmp_path: Path) -> None:
    """With several of them PyTorch's search through the sorted names ends at one."""
    for name in ("samP", "saMp", "saMP"):
        add(archive, f"data/{name}le_inputs/model.pt", pickled(tmp_path / "mark"))
    with pytest.raises(BadInputError, match="nothing of it was run: it holds"):
        pt2.load(archive)
    assert not (tmp_path / "mark").exists()


def test_a_second_folder_in_an_archive_is_refused(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("other/models/model.json", b"{}")
    with pytest.raises(BadInputError, match=r"it holds 'other/models/model\.json'"):
        pt2.load(archive)


def test_the_flat_layout_of_older_versions_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as old:
        old.writestr("version", "8.8")
        old.writestr("serialized_exported_program.json", "{}")
        for name in ("serialized_state_dict.pt", "serialized_constants.pt", "serialized_example_inputs.pt"):
            old.writestr(name, pickled(tmp_path / "mark"))
    with pytest.raises(BadInputError, match="older layout, whose weights are pickled") as caught:
        pt2.load(path)
    assert "torch.export.save" in caught.value.hints[0].action
    assert not (tmp_path / "mark").exists()


def node_of(model: Any) -> Any:
    return next(node for node in model["graph_module"]["graph"]["nodes"] if "conv" in node["target"])


@pytest.mark.parametrize(
    "target",
    [
        *("torch.ops.aten.save.default", "torch.ops.aten.save", "torch.ops.aten.from_file.default"),
        *("torch.ops.aten.relu", "torch.ops.aten.no_such.default", "torch.ops.aten.relu.no_such"),
        *("torch.ops.aten.warn.default", "torch.ops.aten.manual_seed.default", "torch.ops.aten.set_data.default"),
        *("torch.ops.higher_order.triton_kernel_wrapper_mutation", "torch.ops.higher_order.call_torchbind"),
        *("torch.ops.prims.__class__.mro", "torch.ops.aten.__class__.default"),
    ],
)
def test_operators_that_read_or_write_more_than_tensors_are_refused(archive: Path, target: str) -> None:
    rewrite_json(archive, "models/model.json", lambda model: node_of(model).update(target=target))
    with pytest.raises(BadInputError, match="nothing of it was run: its target"):
        pt2.load(archive)


@pytest.mark.parametrize(
    "expression",
    [
        *("9**9**9**9", "((9**8)**8)**8*((9**8)**8)**8", "Pow(9, 999999999)", "Pow(2, Pow(9, 9))", "1<<99999999999"),
        *(
            "Pow(Integer(9), Symbol('s0'))",
            "9" * 30,
            "(" * 3000,
            "+".join(["s0"] * 3000),
            "lambda: 1",
            "[s0 for s0 in s0]",
        ),
        *(
            "f'{s0}'",
            "s0 if s0 else s0",
            "s0.real",
            "Symbol(*s0)",
            "Symbol(**s0)",
            "(s0:=1)",
            "Symbol('s0', integer=s0)",
        ),
    ],
)
def test_expressions_that_take_for_ever_or_are_no_arithmetic_are_refused(expression: str) -> None:
    with pytest.raises(pt2_program.UnsafeProgramError, match="its expr_str"):
        pt2_program.clean({"expr_str": expression})


@pytest.mark.parametrize(
    "expression",
    [
        *(
            "s77",
            "2*s77 + 1",
            "Symbol('s77', positive=True, integer=True)",
            "Mul(Integer(2), Symbol('s0', integer=True))",
        ),
        *(
            "Pow(Symbol('s0'), Integer(2))",
            "s0**2",
            "Max(1, s0 - 3)",
            "s0//2",
            "Eq(s0, 4)",
            "Pow(Symbol('s0'), Integer(-1))",
        ),
    ],
)
def test_expressions_of_shapes_are_let_through(expression: str) -> None:
    assert pt2_program.clean({"expr_str": expression}) == {"expr_str": expression}


def tree(kind: object, context: object) -> str:
    return json.dumps([1, {"type": kind, "context": context, "children_spec": []}])


@pytest.mark.parametrize(
    "spec",
    [
        tree("collections.defaultdict", {"default_factory_module": "antigravity", "default_factory_name": "fly"}),
        tree("collections.namedtuple", "x"),
        tree("builtins.dict", '{"__enum__": true, "fqn": "antigravity:x"}'),
        tree("builtins.dict", '[{"__enum__": true}]'),
        *(tree(["builtins.dict"], None), "[", "[1]", "3", '[1, {"type": "builtins.tuple"}]', "[" * 100_000),
    ],
)
def test_containers_that_name_code_are_refused(spec: str) -> None:
    """The reader imports the module that a defaultdict says its default comes from."""
    for key in ("in_spec", "out_spec"):
        with pytest.raises(pt2_program.UnsafeProgramError, match=f"its {key}"):
            pt2_program.clean({"signature": [{key: spec}]})


def test_a_container_that_names_a_module_imports_nothing(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile_module.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\ndef make(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = tree(
        "collections.defaultdict",
        {"default_factory_module": "hostile_module", "default_factory_name": "make", "dict_context": []},
    )

    def edit(model: Any) -> None:
        model["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = spec

    rewrite_json(archive, "models/model.json", edit)
    with pytest.raises(BadInputError, match="its in_spec"):
        pt2.load(archive)
    assert not (tmp_path / "mark").exists()


def test_notes_that_a_reader_would_look_up_are_left_out() -> None:
    notes = {"nn_module_stack": "a,b,c", "source_fn_stack": "x,torch.os.system", "from_node": "[]", "custom": "{}"}
    assert pt2_program.clean({"metadata": notes}) == {"metadata": {"nn_module_stack": "a,b,c"}}
    assert pt2_program.clean({"guards_code": ["__import__('os')"]}) == {"guards_code": []}


@pytest.mark.parametrize("empty", [True, False])
def test_a_tensor_that_claims_more_values_than_its_file_holds_is_refused(archive: Path, empty: bool) -> None:
    """An empty file stands for zeros: of any size."""

    def edit(config: Any) -> None:
        meta = next(iter(config["config"].values()))["tensor_meta"]
        meta["sizes"] = [{"as_int": 1 << 40}]
        meta["strides"] = [{"as_int": 0}]

    rewrite_json(archive, "model_weights_config.json", edit)
    if empty:
        rewrite(archive, "weights/weight_0", lambda _: b"")
    with pytest.raises(BadInputError, match="claims 1,099,511,627,776 values"):
        pt2.load(archive)


def test_compressed_members_are_refused(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = {name: opened.read(name) for name in opened.namelist()}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    with pytest.raises(BadInputError, match="is compressed"):
        pt2.load(archive)


def test_a_program_of_einsum_and_constants_is_opened(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.full((3,), 2.0)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.einsum("nchw,c->nc", nn.functional.gelu(image, approximate="tanh"), self.scale)

    path = tmp_path / "net.pt2"
    network = Net().eval()
    torch.export.save(torch.export.export(network, (torch.ones(1, 3, 4, 4),)), path, extra_files={"note.txt": "x"})
    image = torch.randn(1, 3, 4, 4)
    assert torch.equal(pt2.load(path)(image), network(image))


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x05\x06" + bytes(18), b"x" * 1000])
def test_garbage_is_bad_input(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.pt2"
    path.write_bytes(data)
    with pytest.raises(BadInputError, match="no intact"):
        pt2.load(path)


def test_weights_of_the_older_format_are_refused(archive: Path) -> None:
    add(archive, "data/weights/model.pt", b"pickle")
    with pytest.raises(BadInputError, match=r"it holds .*model\.pt"):
        pt2.load(archive)
