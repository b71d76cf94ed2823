"""A latent consistency model's UNet, end to end: exported with every size open, judged by step and by its latents, loaded."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

import deploykit
from deploykit.bundle import load_tensors
from deploykit.errors import BadInputError, UnsupportedError, UsageError
from deploykit.models import lcm
from deploykit.models.source_lcm import SHIPPED, WEIGHTS
from deploykit.optional import COMPONENTS
from deploykit.runtime import drift
from deploykit.runtime.backends.base import Tensors
from deploykit.runtime.backends.tensorrt_library import RTX
from deploykit.workflow.export import prepare
from tests.e2e.support import run

diffusers = pytest.importorskip("diffusers")

TINY = "tiny-lcm-unet"
BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
AXES = ("batch", "height", "width", "sequence")
INPUTS = {
    "sample": ("float32", ("batch", 3, "height", "width")),
    "timestep": ("int64", ("batch",)),
    "encoder_hidden_states": ("float32", ("batch", "sequence", 32)),
    "timestep_cond": ("float32", ("batch", 256)),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> deploykit.Exported:
    """fp32 and fp16 for both runtimes, every size open. Not to be changed: copy it."""
    options = deploykit.ExportOptions(
        cells=("fp32:ort", "fp32:openvino", "fp16:ort", "fp16:openvino"),
        out=str(tmp_path_factory.mktemp("bundle") / TINY),
        dynamic=AXES,
        bench=False,
    )
    return deploykit.export_model(TINY, options)


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two of the same artifacts, judged in three runs rather than seven. Not to be changed: copy it."""
    out = tmp_path_factory.mktemp("smaller") / TINY
    options = deploykit.ExportOptions(cells=("fp32:ort", "fp16:ort"), out=str(out), dynamic=AXES, bench=False)
    return deploykit.export_model(TINY, options).bundle.root


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder. Not to be changed: copy it."""
    return Path(shutil.copytree(SHIPPED[TINY], tmp_path_factory.mktemp("mine") / "my-lcm"))


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        (
            {"cells": ("int8:openvino",), "dynamic": ("height",)},
            UnsupportedError,
            "OpenVINO computes int8 wrongly where an axis is open",
        ),
        ({"data": "photos"}, UsageError, "--data judges class answers; tiny-lcm-unet answers with out_sample"),
        (
            {"cells": ("fp16:ort",), "calib": "photos"},
            UsageError,
            "--calib photos: tiny-lcm-unet takes no images; prompts are for 8 bits",
        ),
        (
            {"dynamic": ("depth",)},
            UsageError,
            "latent consistency model has no axis 'depth'.*batch, height, width, sequence",
        ),
    ],
)
def test_what_needs_images_or_another_axis_is_refused(
    changes: dict[str, object], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        prepare(TINY, deploykit.ExportOptions(**changes))  # type: ignore[arg-type]


def test_every_run_passes_alone_and_along_its_own_way(made: deploykit.Exported) -> None:
    assert made.report.not_run == ()
    assert len(made.report.judgements) == 7
    for judgement in made.report.judgements:
        assert judgement.verdict is deploykit.Verdict.PASS, (judgement.artifact, judgement.run, judgement.reason)
        gates = {gate.metric for gate in judgement.gates}
        assert {"sqnr_db", "step_sqnr_db", "latent_psnr_db"} <= gates
        tried = {
            "height=8",
            "height=40",
            "width=8",
            "width=48",
            "sequence=1",
            "sequence=11",
            "batch=1",
            "batch=3",
        }
        assert tried <= gates
        assert judgement.ran is not None
        least = {"f32": 90.0, "f16": 40.0, "bf16": 22.0}[judgement.ran.precision]
        least = min(least, 40.0) if "fp16" in judgement.artifact else least
        assert judgement.metrics["sqnr_db"] >= least


def test_inputs_keep_names_types_and_open_sizes_in_the_files(made: deploykit.Exported) -> None:
    root = made.bundle.root
    model = onnx.load(str(root / f"{TINY}.fp32.onnx"))
    for value in model.graph.input:
        dims = tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        assert (kind, dims) == INPUTS[value.name]
    assert [value.name for value in model.graph.input] == list(INPUTS)
    assert [value.name for value in model.graph.output] == ["out_sample"]
    assert model.opset_import[0].version >= 21
    assert "GroupNormalization" in {node.op_type for node in model.graph.node}
    texts = {entry.key for entry in model.metadata_props}
    assert texts == {"deploykit.precision"}, "no labels and no preprocessing of images that there are not"
    ir = openvino.Core().read_model(str(root / f"{TINY}.fp32.openvino.xml"))
    assert {port.any_name for port in ir.inputs} == set(INPUTS)


def test_half_precision_is_half_the_size(made: deploykit.Exported) -> None:
    sizes = {artifact.name: artifact.bytes for artifact in made.bundle.manifest.artifacts}
    assert sizes[f"{TINY}.fp16.ort"] < 0.6 * sizes[f"{TINY}.fp32.ort"]
    (cast,) = [stage for stage in made.bundle.manifest.stages if stage.stage == "cast"]
    assert {island["rule"] for island in cast.facts["islands"]} == {"time-embedding"}


@pytest.mark.parametrize("artifact", [f"{TINY}.fp32.ort", f"{TINY}.fp32.openvino"])
def test_a_loaded_artifact_takes_sizes_that_nothing_was_traced_at(made: deploykit.Exported, artifact: str) -> None:
    draw = np.random.default_rng(3)
    feeds: Tensors = {
        "sample": draw.standard_normal((3, 3, 32, 64)).astype(np.float32),
        "timestep": np.asarray([999, 499, 3], np.int64),
        "encoder_hidden_states": draw.standard_normal((3, 6, 32)).astype(np.float32),
        "timestep_cond": draw.standard_normal((3, 256)).astype(np.float32),
    }
    with deploykit.load(made.bundle.root, artifact) as session:
        assert session.infer(feeds)["out_sample"].shape == (3, 3, 32, 64)
        with pytest.raises(UsageError, match="takes int64, not float32"):
            session.infer({**feeds, "timestep": feeds["timestep"].astype(np.float32)})
        with pytest.raises(UsageError, match="takes inputs"):
            session.infer({"sample": feeds["sample"]})


def test_a_copied_bundle_is_verified_again_with_its_rollout(made: deploykit.Exported, tmp_path: Path) -> None:
    copy = shutil.copytree(made.bundle.root, tmp_path / "copied")
    record = made.bundle.manifest.golden
    assert record.further is not None
    assert set(record.further) == {"faults", "rollout", "sizes"}
    assert (record.count, record.images) == (16, "4 trajectories of 4 LCM steps")
    report = deploykit.verify(copy)
    assert [judgement.verdict for judgement in report.judgements] == [deploykit.Verdict.PASS] * 7
    assert all("latent_psnr_db" in judgement.metrics for judgement in report.judgements)
    (copy / record.further["rollout"].path).write_bytes(b"")
    with pytest.raises(BadInputError, match="rollout"):
        deploykit.verify(copy)


def test_a_bare_file_is_judged_against_its_original(made: deploykit.Exported) -> None:
    report = deploykit.verify(made.bundle.root / f"{TINY}.fp32.onnx", deploykit.VerifyOptions(reference=TINY))
    (judgement,) = report.judgements
    assert judgement.verdict is deploykit.Verdict.PASS
    assert judgement.metrics["latent_psnr_db"] > 60.0


def test_the_golden_rows_are_the_original_teacher_forced(made: deploykit.Exported) -> None:
    root, record = made.bundle.root, made.bundle.manifest.golden
    inputs = load_tensors(root / record.inputs.path)
    assert {name: (array.dtype.name, array.shape) for name, array in inputs.items()} == {
        "sample": ("float32", (16, 3, 16, 16)),
        "timestep": ("int64", (16,)),
        "encoder_hidden_states": ("float32", (16, 4, 32)),
        "timestep_cond": ("float32", (16, 256)),
    }


def test_a_folder_is_exported_from_the_command_line(mine: Path, tmp_path: Path) -> None:
    done = run("export", f"lcm:{mine}", "--ort", "--no-bench", "--json", "--out", str(tmp_path / "out"))
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [artifact["name"] for artifact in found["artifacts"]] == ["my-lcm.fp32.ort"]
    folder = shutil.copytree(mine, tmp_path / "my-lcm")
    (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"half")
    done = run("export", f"lcm:{folder}", "--ort", "--out", str(tmp_path / "out"))
    assert done.code == 7
    assert "is no whole safetensors file" in done.err


def test_an_ordinary_unet_with_a_lora_is_exported_without_a_guidance_embedding(tmp_path: Path) -> None:
    folder = shutil.copytree(SHIPPED[TINY], tmp_path / "sd")
    config, weights = folder / "unet/config.json", folder / "unet" / WEIGHTS
    config.write_text(json.dumps({**json.loads(config.read_text()), "time_cond_proj_dim": None}))
    save_file({name: array for name, array in load_file(weights).items() if "cond_proj" not in name}, weights)
    words = ("export", f"lcm:{folder}", "--ort", "--no-bench", "--json", "--out", str(tmp_path / "out"))
    refused = run(*words)
    assert refused.code == 2
    assert "--lora lcm-lora.safetensors" in refused.err
    rng, stem = np.random.default_rng(0), "lora_unet_mid_block_resnets_0_conv1"
    halves = {"down": rng.standard_normal((4, 64, 3, 3)) / 8, "up": rng.standard_normal((64, 4, 1, 1)) / 8}
    path = tmp_path / "lcm-lora.safetensors"
    save_file({f"{stem}.lora_{name}.weight": array.astype(np.float32) for name, array in halves.items()}, path)
    done = run(*words, "--lora", str(path))
    assert done.code == 0, done.err
    assert json.loads(done.out)["verdict"] == "pass"
    with deploykit.load(tmp_path / "out") as session:
        assert [spec.name for spec in session.inputs] == ["sample", "timestep", "encoder_hidden_states"]
    elsewhere = tmp_path / "other.safetensors"
    save_file({f"{stem}.lora_{name}.weight": np.ones((8, 8, 1, 1), np.float32) for name in halves}, elsewhere)
    done = run(*words, "--lora", str(elsewhere))
    assert done.code == 7
    assert "is for another base: mid_block_resnets_0_conv1 has weights [64, 64, 3, 3] here" in done.err


def test_layers_in_8_bits_are_calibrated_along_trajectories(tmp_path: Path) -> None:
    options = deploykit.ExportOptions(cells=("int8:ort", "int8:openvino"), out=str(tmp_path / "int8"), bench=False)
    made = deploykit.export_model(TINY, options)
    assert [judgement.verdict for judgement in made.report.judgements] == [deploykit.Verdict.PASS] * 3
    for judgement in made.report.judgements:
        assert judgement.metrics["sqnr_db"] >= 22.0
        assert judgement.metrics["latent_psnr_db"] >= 22.0
        assert judgement.metrics["int8_share"] >= 0.8
    stages = {record.stage: record.facts for record in made.bundle.manifest.stages}
    assert stages["calibration-trajectories"] == {"inputs": 32, "trajectories": 8, "prompts": "seeded"}
    kept = {left["module"].removeprefix("unet.") for left in stages["quantize"]["left"]}
    assert {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.cond_proj"} <= kept


def test_a_models_own_prompts_are_asked_for_and_used(mine: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.npy"
    words = ("export", f"lcm:{mine}", "--int8", "--ort", "--no-bench", "--json", "--out", str(tmp_path / "out"))
    refused = run(*words)
    assert refused.code == 2
    assert "8 bits of my-lcm need prompts" in refused.err
    assert "--calib PROMPTS.npy" in refused.err
    np.save(prompts, np.random.default_rng(0).standard_normal((3, 4, 32)).astype(np.float32))
    few = run(*words, "--calib", str(prompts))
    assert few.code == 2
    assert "holds 3 prompts; activations are measured on at least 8" in few.err
    done = run(*words, "--calib", str(prompts), "--calib-few")
    assert done.code == 0, done.err
    assert json.loads(done.out)["verdict"] == "pass"


# Pictures


def test_pictures_of_all_artifacts_lie_below_the_originals(made: deploykit.Exported, tmp_path: Path) -> None:
    png = tmp_path / "pictures.png"
    done = run("run", str(made.bundle.root), "--png", str(png), "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert [row["name"].split(" ")[0] for row in told["rows"]] == [
        "original",
        *(f"{TINY}.{cell}" for cell in ("fp32.ort", "fp32.openvino", "fp16.ort", "fp16.openvino")),
    ]
    assert all(row["psnr_db"] > 38.0 for row in told["rows"][1:])
    pixels = np.asarray(Image.open(png)).astype(int)
    assert pixels.shape == (5 * 16 * 8, 4 * 16 * 8, 3)
    rows = np.split(pixels, 5)
    assert all(np.abs(row - rows[0]).max() <= 8 for row in rows[1:])
    assert np.abs(rows[0][:, :128] - rows[0][:, 128:256]).max() > 50, "each trajectory is another picture"


def test_other_noise_gives_other_pictures_and_no_originals(made: deploykit.Exported, tmp_path: Path) -> None:
    file = made.bundle.root / f"{TINY}.fp32.onnx"
    found = []
    for seed in ("1", "1", "2"):
        done = run("run", str(file), "--png", str(tmp_path / "one.png"), "--seed", seed)
        assert done.code == 0, done.err
        assert "row 1   tiny-lcm-unet.fp32.ort (onnxruntime cpu f32): 4 pictures" in done.out
        found.append((tmp_path / "one.png").read_bytes())
    assert found[0] == found[1] != found[2]


def test_a_decoder_makes_of_latents_what_diffusers_makes_of_them(
    made: deploykit.Exported, smaller: Path, tmp_path: Path
) -> None:
    folder, png = tmp_path / "sd", tmp_path / "decoded.png"
    torch.manual_seed(0)
    decoder = diffusers.AutoencoderKL(latent_channels=3, block_out_channels=(32, 32), norm_num_groups=8, **BLOCKS)
    decoder.save_pretrained(folder / "vae")
    file = made.bundle.root / f"{TINY}.fp32.onnx"
    done = run("run", str(file), "--png", str(png), "--vae", str(folder))
    assert done.code == 0, done.err
    pixels = np.asarray(Image.open(png)).astype(int)
    assert pixels.shape == (2 * 32, 4 * 32, 3)
    further = made.bundle.manifest.golden.further or {}
    latents = load_tensors(made.bundle.root / further["rollout"].path)["sample/latents"]
    with torch.inference_mode():
        wanted = decoder.eval().decode(torch.from_numpy(latents) / decoder.config.scaling_factor).sample
    row = np.concatenate(list(((wanted.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()), axis=1)
    assert np.abs(pixels[:32] - row).max() <= 1
    assert np.abs(pixels[32:] - row).max() <= 2
    page = tmp_path / "decoded.html"
    done = run("verify", str(smaller), "--html", str(page), "--vae", str(folder))
    assert done.code == 0, done.err
    assert np.abs(pictures_in(page)[0][1] - row).max() <= 1
    config = folder / "vae/config.json"
    for changes, code, told in (
        ({"latent_channels": 4}, 2, "decodes latents of 4 channels; these have 3"),
        ({"_class_name": "VQModel"}, 2, "is a VQModel, not an AutoencoderKL"),
        ({"block_out_channels": [32, 64]}, 7, "its autoencoder can't be loaded"),
    ):
        kept = config.read_text()
        config.write_text(json.dumps({**json.loads(kept), **changes}))
        done = run("run", str(file), "--png", str(png), "--vae", str(folder))
        config.write_text(kept)
        assert (done.code, told in done.err) == (code, True), done.err
    done = run("run", str(file), "--png", str(png), "--vae", str(tmp_path))
    assert (done.code, "holds no autoencoder" in done.err) == (2, True)


def test_what_makes_no_pictures_is_told(made: deploykit.Exported, tmp_path: Path) -> None:
    root, png = str(made.bundle.root), str(tmp_path / "no.png")
    for words, code, told in (
        ((root, "--png", "/no/such/folder/x.png"), 5, "can't be written"),
        ((root, "--png", png, "photo.jpg"), 2, "--png makes pictures and takes no IMAGE"),
        ((root,), 2, "no images: name those to classify"),
        ((root, "--seed", "3"), 2, "--seed is for --png"),
        ((root, "--vae", "sd"), 2, "--vae is for --png"),
        ((str(tmp_path), "--png", png), 7, "is no bundle"),
    ):
        done = run("run", *words)
        assert (done.code, told in done.err) == (code, True), done.err
    assert not Path(png).exists()


def pictures_in(page: Path) -> list[tuple[str, NDArray[np.int64]]]:
    """Return whose pictures a report shows, and their pixels."""
    shown = re.findall(r'<img alt="pictures of ([^" ]+)[^"]*" src="data:image/png;base64,([^"]+)">', page.read_text())
    return [(name, np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))).astype(np.int64)) for name, png in shown]


def test_a_report_shows_what_all_artifacts_draw(smaller: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = run("verify", str(smaller), "--html", str(page))
    assert done.code == 0, done.err
    assert f"wrote   {page}" in done.out
    shown = pictures_in(page)
    assert [name for name, _ in shown] == ["original", f"{TINY}.fp32.ort", f"{TINY}.fp16.ort"]
    drawn = [picture for _, picture in shown]
    assert all(picture.shape == (16 * 8, 4 * 16 * 8, 3) for picture in drawn)
    assert all(np.abs(picture - drawn[0]).max() <= 8 for picture in drawn[1:])


def test_a_report_that_could_not_be_written_is_refused_before_anything_is_judged(
    made: deploykit.Exported, tmp_path: Path
) -> None:
    root, page = str(made.bundle.root), str(tmp_path / "no.html")
    for words, code, told in (
        ((root, "--html", "/no/such/folder/x.html"), 5, "no such folder"),
        ((root, "--html", str(tmp_path)), 5, "it is a folder"),
        ((root, "--vae", "sd"), 2, "--vae is for the pictures of --html"),
        ((root, "--html", page, "--vae", str(tmp_path)), 2, "holds no autoencoder"),
        ((str(made.bundle.root / f"{TINY}.fp32.onnx"), "--html", page, "--vae", "sd"), 2, "--vae is for a bundle"),
    ):
        done = run("verify", *words)
        assert (done.code, told in done.err, done.out) == (code, True, ""), done.err
    assert not Path(page).exists()


@pytest.mark.skipif(COMPONENTS[RTX.module].version() is None, reason="TensorRT for RTX is not installed here")
def test_engines_are_built_with_every_size_open(tmp_path: Path) -> None:
    words = [f"--dynamic={axis}" for axis in AXES]
    words += [f"--profile={axis}" for axis in ("batch=1,1,4", "height=8,16,64", "width=8,16,64", "sequence=1,4,77")]
    out = tmp_path / "rtx"
    done = run("export", TINY, "--fp16", "--trt-rtx", "--sm", "89", *words, "--no-bench", "--json", "--out", str(out))
    assert done.code == 0, done.err
    (artifact,) = deploykit.Bundle.open(out).manifest.artifacts
    assert {spec.name: spec.dtype for spec in artifact.inputs} == {name: dtype for name, (dtype, _) in INPUTS.items()}
    assert [(axis.name, axis.min, axis.opt, axis.max) for axis in artifact.inputs[0].axes] == [
        ("batch", 1, 1, 4),
        ("height", 8, 16, 64),
        ("width", 8, 16, 64),
    ]


# In diffusers' pipeline


def pipeline() -> Any:
    """Return a whole pipeline around the network that ships; its decoder is random."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(SHIPPED[TINY], subfolder="unet", local_files_only=True)
    decoder = diffusers.AutoencoderKL(latent_channels=3, block_out_channels=(32,), norm_num_groups=8)
    parts = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None}
    made = diffusers.LatentConsistencyModelPipeline(
        vae=decoder, unet=unet, scheduler=diffusers.LCMScheduler(), **parts, requires_safety_checker=False
    )
    made.set_progress_bar_config(disable=True)
    return made


def test_the_guides_example_draws_what_the_pipeline_itself_draws(made: deploykit.Exported) -> None:
    guide = (Path(__file__).parents[2] / "docs/guide.md").read_text(encoding="utf-8")
    (example,) = (
        block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "class DeployedUnet" in block
    )
    names: dict[str, Any] = {}
    exec(example, names)
    words = {
        "prompt_embeds": torch.from_numpy(np.stack([lcm.prompt(3, 4, 32), lcm.prompt(8, 4, 32)])),
        "num_inference_steps": 4,
        "guidance_scale": 8.0,
        "output_type": "latent",
    }
    drawn = [
        pipe(**words, generator=torch.Generator().manual_seed(7)).images.numpy()
        for pipe in (pipeline(), names["deployed"](pipeline(), made.bundle.root, f"{TINY}.fp16.openvino"))
    ]
    assert drawn[0].shape == (2, 3, 16, 16)
    assert drift.psnr_db(*drawn) > 38.0
