"""One suite for every backend. A case that fails here is a session that lies."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from deploykit.artifact import Axis, RunConfig, TensorSpec
from deploykit.errors import BadInputError, MissingComponentError, UnsupportedError, UsageError
from deploykit.runtime.backends.base import CPU, Session, Tensor, backend_names, get_backend, kind_of

from .conftest import CASES, METADATA, OWN, TOLERANCE, Case, image_for, reference_for

needs_file = pytest.mark.parametrize("case", [c for c in CASES if c.suffix], ids=lambda case: case.id, indirect=True)
needs_onnx = pytest.mark.parametrize(
    "case", [c for c in CASES if c.suffix == ".onnx"], ids=lambda c: c.id, indirect=True
)


@pytest.fixture(scope="module")
def sessions() -> Iterator[dict[Case, Session]]:
    """Sessions that many tests share; each must leave its session as it found it."""
    found: dict[Case, Session] = {}
    yield found
    for session in found.values():
        session.close()


@pytest.fixture
def session(case: Case, model: str, sessions: dict[Case, Session]) -> Session:
    if case not in sessions:
        sessions[case] = case.open(model, precision="f32", threads=1)
    return sessions[case]


def feed(session: Session, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    return {"input": image_for(session.inputs[0], batch, seed)}


def relative_max(reference: Tensor, found: Tensor) -> float:
    return float(np.abs(reference - found).max() / np.abs(reference).max())


def test_every_registered_backend_is_here() -> None:
    assert {case.backend for case in CASES} == set(backend_names())


def test_specs(session: Session) -> None:
    (image,), (logits,) = session.inputs, session.outputs
    assert (image.name, image.dtype, logits.name, logits.dtype) == ("input", "float32", "logits", "float32")
    for batch in (image.shape[0], logits.shape[0]):
        assert isinstance(batch, Axis)
        assert batch.name == "batch", "where the runtime knows no bounds, there are none"
        assert batch.accepts(1)
        assert batch.accepts(8)
    assert len(image.shape) == 4
    dims = (*image.shape[1:], *logits.shape[1:])
    assert all(isinstance(dim, int) or dim.name in OWN for dim in dims)
    assert all(isinstance(dim, int) for dim in dims) or session.ran.backend == "torch", (
        "files fix what was not left open"
    )


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_infer_equals_the_reference_at_every_batch(case: Case, session: Session, batch: int) -> None:
    feeds = feed(session, batch)
    (name,), (logits,) = zip(*session.infer(feeds).items(), strict=True)
    assert (name, logits.dtype, logits.shape) == ("logits", np.float32, (batch, session.outputs[0].shape[1]))
    assert relative_max(reference_for(case, feeds["input"]), logits) <= TOLERANCE["f32"]


@pytest.mark.parametrize("precision", ["auto", "f32", "bf16", "f16"])
def test_computes_in_the_precision_that_it_says(case: Case, model: str, precision: str) -> None:
    try:
        opened = case.open(model, precision=precision)
    except (UnsupportedError, MissingComponentError) as error:
        assert precision in {"bf16", "f16"}
        assert precision in error.message  # noqa: PT017 - either outcome is right, depending on the CPU
        return
    with opened:
        assert precision in {opened.ran.precision, "auto"}
        feeds = feed(opened)
        error_found = relative_max(reference_for(case, feeds["input"]), opened.infer(feeds)["logits"])
        assert error_found <= TOLERANCE[opened.ran.precision]
        assert opened.ran.precision == "f32" or error_found > TOLERANCE["f32"], "suspiciously exact"


def test_what_the_machine_lacks_is_told_without_a_model(case: Case, model: str) -> None:
    """What lacks nothing opens, as far as the runtime takes the precision at all."""
    backend = get_backend(case.backend)
    assert backend.unavailable(case.config()) == ""
    for precision in ("f32", "bf16", "f16"):
        config = case.config(precision=precision)
        if missing := backend.unavailable(config):
            with pytest.raises(MissingComponentError) as caught:
                case.open(model, precision=precision)
            assert caught.value.message == missing


def test_unknown_precision_is_refused(case: Case, model: str) -> None:
    with pytest.raises(UnsupportedError, match="f12"):
        case.open(model, precision="f12")


def test_unknown_device_is_missing(case: Case, model: str) -> None:
    with pytest.raises(MissingComponentError, match="npu:7"):
        case.open(model, device="npu:7")


def test_says_where_it_ran(case: Case, session: Session) -> None:
    assert session.ran.backend == case.backend
    assert session.ran.version[0].isdigit()
    backend = get_backend(case.backend)
    assert kind_of(case.device) in session.ran.device.lower()
    assert (session.ran.precision, session.ran.threads) == ("f32", 1 if backend.threaded else None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: {}, "takes inputs"),
        (lambda image: {"input": image, "more": image}, "takes inputs"),
        (lambda image: {"other": image}, "takes inputs"),
        (lambda image: {"input": image.astype(np.float64)}, "takes float32, not float64"),
        (lambda image: {"input": image.astype(np.int32)}, "takes float32, not int32"),
        (lambda image: {"input": image[0]}, "takes shape"),
        (lambda image: {"input": image[:, :2]}, "takes shape"),
        (lambda image: {"input": image[:0]}, "takes shape"),
    ],
    ids=["missing", "extra", "misnamed", "float64", "int32", "rank", "channels", "empty"],
)
def test_wrong_feeds_are_refused(session: Session, change: Any, words: str) -> None:
    feeds = feed(session)
    with pytest.raises(UsageError, match=words):
        session.infer(change(feeds["input"]))
    session.infer(feeds)


def test_layout_and_byte_order_of_feeds_do_not_matter(session: Session) -> None:
    image = feed(session)["input"]
    expected = session.infer({"input": image})["logits"]
    strided = np.repeat(image, 2, axis=3)[..., ::2]
    frozen = image.copy()
    frozen.flags.writeable = False
    for variant in (np.asfortranarray(image), strided, frozen, image.astype(">f4")):
        np.testing.assert_array_equal(session.infer({"input": variant})["logits"], expected)


def test_outputs_are_the_callers(session: Session) -> None:
    feeds = feed(session)
    first = session.infer(feeds)["logits"]
    kept = first.copy()
    session.infer(feed(session, seed=1))
    feeds["input"][:] = 0
    np.testing.assert_array_equal(first, kept)
    first[:] = np.nan
    again = session.infer(feed(session))["logits"]
    np.testing.assert_array_equal(again, kept)


def test_closed_session_refuses(case: Case, model: str) -> None:
    with case.open(model) as session:
        feeds = feed(session)
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.infer(feeds)


def test_wrong_requests(case: Case, model: str) -> None:
    with pytest.raises(UsageError, match="threads must be at least 1, not 0"):
        case.open(model, threads=0)
    with pytest.raises(UsageError):
        case.open(model, hints={"nonsense": "1"})
    with pytest.raises(UsageError, match="can't run a RunConfig of backend 'other'"):
        get_backend(case.backend).open(model, RunConfig("other"))


def test_code_reproduces_the_session(case: Case, model: str, session: Session) -> None:
    config = case.config(precision="f32", threads=1)
    names: dict[str, Any] = {}
    code = get_backend(case.backend).code(model, config)
    exec(compile(code, "code", "exec"), names)
    assert case.backend in {"torch", "emulator"} or "deploykit" not in code
    feeds = feed(session)
    expected = session.infer(feeds)
    found = names["infer"](feeds)
    assert list(found) == list(expected)
    if kind_of(case.device) == CPU:
        np.testing.assert_array_equal(found["logits"], expected["logits"])
    else:  # libraries of GPUs try out what is fastest, anew in each session
        assert relative_max(expected["logits"], found["logits"]) <= TOLERANCE["f32"]


@needs_file
def test_metadata_is_the_same_in_every_file(session: Session) -> None:
    assert dict(session.metadata) == METADATA


@needs_file
def test_static_batch_takes_no_other(case: Case, files: Mapping[str, str]) -> None:
    with case.open(files["static" + case.suffix]) as session:
        assert session.inputs == (TensorSpec("input", "float32", (1, 3, 12, 12)),)
        assert session.outputs == (TensorSpec("logits", "float32", (1, 5)),)
        assert session.infer(feed(session, 1))["logits"].shape == (1, 5)
        three = np.zeros((3, 3, 12, 12), np.float32)
        with pytest.raises(UsageError, match="takes shape"):
            session.infer({"input": three})


def test_missing_file(reader: Case, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"absent.* is missing"):
        reader.open(str(tmp_path / f"absent{reader.suffix}"))
    folder = tmp_path / f"folder{reader.suffix}"
    folder.mkdir()
    with pytest.raises(BadInputError, match="is no file"):
        reader.open(str(folder))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_file(reader: Case, files: Mapping[str, str], tmp_path: Path, share: float) -> None:
    model = files[reader.suffix]
    data = Path(model).read_bytes()
    path = tmp_path / Path(model).name
    path.write_bytes(data[: int(len(data) * share)])
    if reader.suffix == ".xml":
        path.with_suffix(".bin").write_bytes(Path(model).with_suffix(".bin").read_bytes())
    with pytest.raises(BadInputError, match=path.name):
        reader.open(str(path))


@pytest.mark.parametrize(
    "data", [b"no model at all\n" * 9, pickle.dumps({"a": 1}), bytes(64)], ids=["text", "pickle", "zero"]
)
def test_file_of_another_kind(reader: Case, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / f"other{reader.suffix}"
    path.write_bytes(data)
    with pytest.raises(BadInputError, match=path.name):
        reader.open(str(path))
    with pytest.raises(UsageError, match=r"not .*\.bin"):
        reader.open(str(path.with_suffix(".bin")))


@needs_onnx
def test_unknown_operator_is_unsupported(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "future.onnx"
    for domain in ("", "org.example"):
        node = onnx.helper.make_node("Levitate", ["x"], ["y"], domain=domain)
        sides = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
        graph = onnx.helper.make_graph([node], "g", sides[:1], sides[1:])
        opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("org.example", 1)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        with pytest.raises(UnsupportedError, match=r"(?s)future\.onnx.*Levitate"):
            case.open(str(path))


def external(folder: Path, location: str) -> str:
    """Write a model whose weights lie at `location`."""
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4, 4])
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "64")):
        weight.external_data.add(key=key, value=value)
    sides = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4]) for name in ("input", "logits")]
    node = onnx.helper.make_node("MatMul", ["input", "w"], ["logits"])
    graph = onnx.helper.make_graph([node], "g", sides[:1], sides[1:], [weight])
    path = folder / "external.onnx"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return str(path)


@needs_onnx
def test_external_data_must_lie_in_the_models_folder(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    secret = tmp_path / "secret.bin"
    for path in (secret, folder / "inside.bin", folder / "sub" / "deep.bin"):
        path.write_bytes(np.eye(4, dtype=np.float32).tobytes())
    Path(folder / "link.bin").symlink_to(secret)
    Path(folder / "linked").symlink_to(tmp_path)
    unsafe = ("../secret.bin", str(secret), "link.bin", "linked/secret.bin", "sub/../../secret.bin", "absent.bin", "")
    for location in (*unsafe, "*/_ORT_MEM_ADDR_/*"):
        with pytest.raises(BadInputError, match=r"external\.onnx"):
            case.open(external(folder, location))
    for location in ("inside.bin", "sub/deep.bin", "./inside.bin"):
        with case.open(external(folder, location), precision="f32") as session:
            rows = np.arange(8, dtype=np.float32).reshape(2, 4)
            np.testing.assert_array_equal(session.infer({"input": rows})["logits"], rows)


@needs_onnx
def test_a_shape_that_the_model_cannot_take_is_unsupported(case: Case, tmp_path: Path) -> None:
    baked = onnx.numpy_helper.from_array(np.array([2, 6], np.int64), "shape")
    sides = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 6]) for n in ("input", "logits")]
    node = onnx.helper.make_node("Reshape", ["input", "shape"], ["logits"])
    graph = onnx.helper.make_graph([node], "g", sides[:1], sides[1:], [baked])
    path = tmp_path / "baked.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    with case.open(str(path)) as session:
        assert session.infer({"input": np.ones((2, 6), np.float32)})["logits"].shape == (2, 6)
        with pytest.raises(UnsupportedError, match=r"baked\.onnx on input \[5, 6\]"):
            session.infer({"input": np.ones((5, 6), np.float32)})
        session.infer({"input": np.ones((2, 6), np.float32)})


@needs_onnx
def test_scalars_bools_and_anonymous_dimensions(case: Case, tmp_path: Path) -> None:
    make = onnx.helper.make_tensor_value_info
    inputs = [make("flag", onnx.TensorProto.BOOL, []), make("x", onnx.TensorProto.INT64, [None, 2])]
    nodes = [
        onnx.helper.make_node("Not", ["flag"], ["no"]),
        onnx.helper.make_node("Add", ["x", "x"], ["twice"]),
    ]
    outputs = [make("no", onnx.TensorProto.BOOL, []), make("twice", onnx.TensorProto.INT64, [None, 2])]
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs)
    path = tmp_path / "mixed.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    with case.open(str(path)) as session:
        assert session.inputs == (
            TensorSpec("flag", "bool", ()),
            TensorSpec("x", "int64", (Axis.unbounded("x_0"), 2)),
        )
        found = session.infer({"flag": np.array(True), "x": np.array([[1, 2]])})
    assert (found["no"].shape, found["no"].item()) == ((), False)
    np.testing.assert_array_equal(found["twice"], [[2, 4]])
