"""The model is what its checkpoint says: schedule, scale, target, captions and pictures agree with diffusers' own."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import tiny_pipeline
from ldm_checkpoint import save_ldm_checkpoint
from lorica.devices import pick_device
from lorica.diffusion import SCHEDULERS, LatentDiffusion, LoraConfig, add_lora, keyed_noise, keyed_uniform
from lorica.errors import LoricaError

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULES: dict[str, tuple[type, dict[str, Any]]] = {
    "Stable Diffusion 1.5": (PNDMScheduler, STABLE_DIFFUSION | {"skip_prk_steps": True, "steps_offset": 1}),
    "Stable Diffusion 2 v": (DDIMScheduler, STABLE_DIFFUSION | {"prediction_type": "v_prediction"}),
    "linear": (DDPMScheduler, {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}),
    "cosine": (DDPMScheduler, {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500}),
    "Euler": (EulerDiscreteScheduler, STABLE_DIFFUSION),
    "zero terminal SNR": (
        DDIMScheduler, STABLE_DIFFUSION | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    ),
}  # fmt: skip
CAPTIONS = ["a cat", "", "a very long caption, much longer than the text encoder's context", "猫 und <b>Ünïcode</b>"]


def with_scheduler(kind: type, options: dict[str, Any]) -> StableDiffusionPipeline:
    pipeline = tiny_pipeline()
    pipeline.scheduler = kind(**options)
    return pipeline


def batch(model: LatentDiffusion, size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, timesteps, noise, caption embeddings."""
    random = torch.Generator().manual_seed(seed)
    latents = torch.randn(size, *model.latent_shape, generator=random)
    noise = torch.randn(size, *model.latent_shape, generator=random)
    t = torch.randint(0, model.train_timesteps, (size,), generator=random)
    return latents, t, noise, model.encode_captions([f"caption {i}" for i in range(size)]).detach()


def train_a_little(parameters: list[torch.nn.Parameter]) -> None:
    """Stand in for training: B is zero at first, so that the LoRA does nothing yet."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)


# ----- noise schedule -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_and_target_are_the_checkpoint_s_own(name: str, tmp_path: Path) -> None:
    kind, options = SCHEDULES[name]
    with_scheduler(kind, options).save_pretrained(tmp_path)
    model = LatentDiffusion.load(str(tmp_path), device="cpu")

    reference = DDIMScheduler if kind is PNDMScheduler or kind is EulerDiscreteScheduler else kind
    scheduler = reference(**{key: value for key, value in options.items() if key != "skip_prk_steps"})
    latents, t, noise, _ = batch(model, 16)
    t[:2] = torch.tensor([0, model.train_timesteps - 1])
    assert model.train_timesteps == options.get("num_train_timesteps", 1000)
    assert model.prediction_type == options.get("prediction_type", "epsilon")
    torch.testing.assert_close(
        model.add_noise(latents, t, noise), scheduler.add_noise(latents, noise, t), atol=1e-6, rtol=1e-6
    )
    velocity = scheduler.get_velocity(latents, noise, t)
    target = velocity if model.prediction_type == "v_prediction" else noise
    torch.testing.assert_close(model.target(latents, t, noise), target, atol=1e-6, rtol=1e-6)


def test_at_zero_terminal_snr_nothing_of_the_picture_is_left() -> None:
    model = LatentDiffusion(with_scheduler(*SCHEDULES["zero terminal SNR"]), name="tiny")
    latents, _, noise, _ = batch(model, 2)
    last = torch.full((2,), model.train_timesteps - 1)
    assert torch.equal(model.add_noise(latents, last, noise), noise)
    assert torch.equal(model.target(latents, last, noise), -latents)


# ----- latents and captions -----------------------------------------------------------------------------------------
def test_latents_are_scaled_and_shifted_as_the_checkpoint_says() -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pipeline = tiny_pipeline()
    with torch.inference_mode():
        mean = pipeline.vae.encode(pixels).latent_dist.mean
    for scale, shift in ((0.18215, None), (0.5, None), (1.3, 0.25)):
        pipeline.vae.register_to_config(scaling_factor=scale, shift_factor=shift)
        latents = LatentDiffusion(pipeline, name="tiny").encode_pictures(pixels)
        torch.testing.assert_close(latents, (mean - (shift or 0.0)) * scale)


def test_resolution_and_latent_shape_are_the_checkpoint_s(tiny_model: LatentDiffusion) -> None:
    assert (tiny_model.resolution, tiny_model.latent_shape) == (64, (4, 8, 8))
    assert tiny_model.encode_pictures(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 8, 8)


def test_captions_are_encoded_as_the_pipeline_encodes_them(tiny_model: LatentDiffusion) -> None:
    with torch.inference_mode():
        expected, _ = tiny_model.pipeline.encode_prompt(CAPTIONS, "cpu", 1, do_classifier_free_guidance=False)
        assert torch.equal(tiny_model.encode_captions(CAPTIONS), expected)


# ----- error map ----------------------------------------------------------------------------------------------------
def test_cut_captions_are_counted_and_never_printed(
    tiny_model: LatentDiffusion, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_model.sample(CAPTIONS, seed=0, steps=1, progress=False)
    notes = tiny_model.caption_notes(CAPTIONS)
    # 16 tokens, two of them at the ends, one token a byte: only "a cat" and "" fit.
    assert notes == ["2 of 4 captions are longer than 16 tokens: their ends have no effect"]
    assert tiny_model.caption_notes(["a cat", ""]) == [] == tiny_model.caption_notes([])
    assert "context" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_error_map_equals_a_naive_loop_over_samples(prediction_type: str) -> None:
    model = LatentDiffusion(tiny_pipeline(prediction_type), name="tiny")
    latents, t, noise, context = batch(model, 4)
    with torch.inference_mode():
        maps = model.error_map(latents, t, noise, context)
        scheduler = model.pipeline.scheduler
        for i in range(4):
            one = slice(i, i + 1)
            noisy = scheduler.add_noise(latents[one], noise[one], t[one])
            predicted = model.unet(noisy, t[one], encoder_hidden_states=context[one]).sample
            target = (
                noise[one]
                if prediction_type == "epsilon"
                else scheduler.get_velocity(latents[one], noise[one], t[one])
            )
            torch.testing.assert_close(maps[one], (predicted - target) ** 2, atol=1e-5, rtol=1e-4)
    assert maps.dtype == torch.float32 and maps.shape == latents.shape and (maps >= 0).all()


def test_error_map_of_a_sample_does_not_depend_on_its_batch(tiny_model: LatentDiffusion) -> None:
    latents, t, noise, context = batch(tiny_model, 8)
    with torch.inference_mode():
        whole = tiny_model.error_map(latents, t, noise, context)
        order = torch.tensor([5, 0, 3])
        part = tiny_model.error_map(latents[order], t[order], noise[order], context[order])
    torch.testing.assert_close(part, whole[order], atol=1e-5, rtol=1e-4)


def test_error_map_carries_gradient_into_the_lora_and_nowhere_else(tiny_model: LatentDiffusion) -> None:
    parameters = add_lora(tiny_model.pipeline, LoraConfig(rank=2, text_encoder=True))
    train_a_little(parameters)
    latents, t, noise, _ = batch(tiny_model, 2)
    tiny_model.error_map(latents, t, noise, tiny_model.encode_captions(["a", "b"])).mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters)
    everything = [p for part in (tiny_model.unet, tiny_model.text_encoder) for p in part.parameters()]
    assert sum(p.grad is not None for p in everything) == len(parameters)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_with_a_lora_and_agrees_with_single(
    dtype: torch.dtype, tiny_pipeline_folder: Path
) -> None:
    exact = LatentDiffusion.load(str(tiny_pipeline_folder), device="cpu")
    half = LatentDiffusion.load(str(tiny_pipeline_folder), device="cpu", dtype=dtype)
    parameters = add_lora(half.pipeline, LoraConfig(rank=2, text_encoder=True))
    assert {p.dtype for p in parameters} == {torch.float32}
    assert half.dtype == dtype == next(half.unet.parameters()).dtype
    latents, t, noise, context = batch(exact, 4)
    with torch.inference_mode():
        maps = half.error_map(latents, t, noise, half.encode_captions([f"caption {i}" for i in range(4)]))
        expected = exact.error_map(latents, t, noise, context)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps.mean((1, 2, 3)), expected.mean((1, 2, 3)), rtol=0.03, atol=0.0)
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    assert half.encode_pictures(pixels).dtype == torch.float32


# ----- keyed noise --------------------------------------------------------------------------------------------------
def test_keyed_noise_of_a_picture_does_not_depend_on_its_batch() -> None:
    ids = [f"{i:016x}" for i in range(6)]
    whole = keyed_noise(ids, "audit", 3, (4, 8, 8), seed=5)
    assert torch.equal(keyed_noise(ids[::-1], "audit", 3, (4, 8, 8), seed=5), whole.flip(0))
    assert torch.equal(keyed_noise(ids[2:3], "audit", 3, (4, 8, 8), seed=5), whole[2:3])
    uniform = keyed_uniform(ids, "audit", 3, seed=5)
    assert torch.equal(keyed_uniform(ids[4:], "audit", 3, seed=5), uniform[4:])


@pytest.mark.parametrize(
    ("ids", "purpose", "draw", "seed"),
    [(["b"], "audit", 0, 0), (["a"], "other", 0, 0), (["a"], "audit", 1, 0), (["a"], "audit", 0, 1)],
)
def test_keyed_noise_differs_when_any_part_of_its_key_does(ids: list[str], purpose: str, draw: int, seed: int) -> None:
    reference = keyed_noise(["a"], "audit", 0, (4, 8, 8), 0)
    other = keyed_noise(ids, purpose, draw, (4, 8, 8), seed)
    assert not torch.isclose(reference, other, atol=1e-4).float().mean() > 0.01
    assert keyed_uniform(["a"], "audit", 0, 0) != keyed_uniform(ids, purpose, draw, seed)


def test_keyed_noise_is_standard_normal_within_and_across_pictures() -> None:
    noise = keyed_noise([str(i) for i in range(500)], "audit", 0, (4, 8, 8), seed=0).double()
    count = noise.numel()
    assert noise.dtype == torch.float64 and keyed_noise(["a"], "p", 0, (2,), 0).dtype == torch.float32
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs((noise**power).mean() - moment) < 5 * (variance / count) ** 0.5
    between = torch.corrcoef(noise.flatten(1))[0, 1:]  # 499 correlations over 256 numbers each
    assert between.abs().max() < 5 / 256**0.5
    uniform = keyed_uniform([str(i) for i in range(4000)], "audit", 0, seed=0)
    assert (uniform >= 0).all() and (uniform < 1).all()
    assert abs(uniform.mean() - 0.5) < 5 * (1 / 12 / 4000) ** 0.5


def test_keyed_noise_of_no_pictures_is_empty() -> None:
    assert keyed_noise([], "audit", 0, (4, 8, 8), seed=0).shape == (0, 4, 8, 8)
    assert keyed_uniform([], "audit", 0, seed=0).shape == (0,)


# ----- pictures -----------------------------------------------------------------------------------------------------
def arrays(pictures: list[Any]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures]).astype(int)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_picture_i_is_the_same_whatever_the_batch_size(tiny_model: LatentDiffusion, scheduler: str) -> None:
    options: dict[str, Any] = {"steps": 3, "guidance": 3.0, "scheduler": scheduler, "progress": False}
    captions = ["a", "b", "c"]
    together = arrays(tiny_model.sample(captions, seed=7, batch_size=3, **options))
    assert together.shape == (3, 64, 64, 3)
    apart = arrays(tiny_model.sample(captions, seed=7, batch_size=2, **options))
    last = arrays(tiny_model.sample(captions[2:], seed=9, **options))
    listed = arrays(tiny_model.sample(captions[::-1], seed=[9, 8, 7], **options))[::-1]
    for other in (apart, listed):
        assert np.abs(other - together).max() <= 1  # one rounding step of 8-bit pixels
    assert np.abs(last[0] - together[2]).max() <= 1
    assert np.abs(together[0] - together[1]).max() > 8


def test_sampling_clips_nothing_in_latent_space_whatever_scheduler_the_checkpoint_has() -> None:
    model = LatentDiffusion(with_scheduler(*SCHEDULES["Stable Diffusion 1.5"]), name="tiny")
    pipeline = with_scheduler(DDIMScheduler, STABLE_DIFFUSION | {"clip_sample": False, "steps_offset": 1})
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a", num_inference_steps=3, guidance_scale=3.0, generator=torch.Generator().manual_seed(0)
    ).images
    drawn = model.sample(["a"], seed=0, steps=3, guidance=3.0, progress=False)
    assert np.abs(arrays(drawn) - arrays(expected)).max() <= 1


def test_sampling_leaves_the_model_as_it_was_even_when_it_fails(tiny_model: LatentDiffusion) -> None:
    before = tiny_model.pipeline.scheduler
    tiny_model.sample(["a"], seed=0, steps=1, scheduler="euler", progress=False)
    assert tiny_model.pipeline.scheduler is before
    with pytest.raises(LoricaError, match=r"unknown scheduler 'dimm'"):
        tiny_model.sample(["a"], seed=0, scheduler="dimm")
    with pytest.raises(ValueError, match="2 seeds for 1 captions"):
        tiny_model.sample(["a"], seed=[1, 2])
    for steps in (0, tiny_model.train_timesteps + 1):
        with pytest.raises(LoricaError, match=f"{steps} denoising steps"):
            tiny_model.sample(["a"], seed=0, steps=steps)
    with pytest.raises(ValueError, match="text input"):
        tiny_model.sample([1], seed=0, scheduler="euler", progress=False)  # type: ignore[list-item]
    assert tiny_model.pipeline.scheduler is before
    assert tiny_model.sample([], seed=0, progress=False) == []


def test_a_scheduler_that_cannot_follow_the_noise_schedule_is_refused() -> None:
    model = LatentDiffusion(with_scheduler(*SCHEDULES["zero terminal SNR"]), name="tiny")
    with pytest.raises(LoricaError, match="zero terminal SNR"):
        model.sample(["a"], seed=0, scheduler="pndm")
    assert len(model.sample(["a"], seed=0, steps=2, scheduler="ddim", progress=False)) == 1


# ----- LoRA on and off ----------------------------------------------------------------------------------------------
def test_base_only_gives_the_base_model_s_error_map_exactly(tiny_model: LatentDiffusion) -> None:
    latents, t, noise, context = batch(tiny_model, 4)
    base = tiny_model.error_map(latents, t, noise, context)
    parameters = add_lora(tiny_model.pipeline, LoraConfig(rank=2, text_encoder=True))
    train_a_little(parameters)
    adapted = tiny_model.error_map(latents, t, noise, context).detach()
    with tiny_model.base_only():
        assert torch.equal(tiny_model.error_map(latents, t, noise, context), base)
        assert torch.equal(tiny_model.encode_captions(["caption 0"]), context[:1])
        with tiny_model.base_only():
            pass
        assert torch.equal(tiny_model.error_map(latents, t, noise, context), base)
    assert torch.equal(tiny_model.error_map(latents, t, noise, context), adapted)
    assert not torch.allclose(adapted, base)
    assert not torch.allclose(tiny_model.encode_captions(["caption 0"]), context[:1])


def test_base_only_changes_nothing_for_good(tiny_model: LatentDiffusion) -> None:
    with tiny_model.base_only():  # no LoRA: nothing to switch off
        pass
    parameters = add_lora(tiny_model.pipeline, LoraConfig(rank=2))
    parameters[0].requires_grad_(False)
    with pytest.raises(KeyError), tiny_model.base_only():
        raise KeyError
    assert [p.requires_grad for p in parameters] == [False] + [True] * (len(parameters) - 1)
    latents, t, noise, context = batch(tiny_model, 1)
    tiny_model.error_map(latents, t, noise, context).mean().backward()
    assert parameters[-1].grad is not None


def test_dropout_acts_in_training_only(tiny_model: LatentDiffusion) -> None:
    parameters = add_lora(tiny_model.pipeline, LoraConfig(rank=2, dropout=0.5))
    train_a_little(parameters)
    sample = batch(tiny_model, 2)
    assert not any(module.training for module in tiny_model.unet.modules())
    once = tiny_model.error_map(*sample)
    assert torch.equal(tiny_model.error_map(*sample), once)
    with tiny_model.training():
        assert not torch.allclose(tiny_model.error_map(*sample), tiny_model.error_map(*sample))
    assert torch.equal(tiny_model.error_map(*sample), once)


# ----- fingerprint --------------------------------------------------------------------------------------------------
def test_fingerprint_ignores_the_lora_and_the_precision_it_runs_in(tiny_pipeline_folder: Path) -> None:
    plain = LatentDiffusion.load(str(tiny_pipeline_folder), device="cpu")
    half = LatentDiffusion.load(str(tiny_pipeline_folder), device="cpu", dtype=torch.bfloat16)
    assert half.fingerprint == plain.fingerprint
    assert {half.vae_fingerprint, half.text_fingerprint}.isdisjoint({plain.vae_fingerprint, plain.text_fingerprint})
    add_lora(plain.pipeline, LoraConfig(rank=2, text_encoder=True, targets="transformer-blocks"))
    assert LatentDiffusion(plain.pipeline, name="again").fingerprint == half.fingerprint


def test_fingerprint_is_the_same_for_a_half_precision_checkpoint_and_its_copies(tmp_path: Path) -> None:
    tiny_pipeline().to(torch.float16).save_pretrained(tmp_path / "half")
    half = LatentDiffusion.load(str(tmp_path / "half"), device="cpu")
    assert next(half.unet.parameters()).dtype == torch.float32
    half.pipeline.save_pretrained(tmp_path / "single")
    assert LatentDiffusion.load(str(tmp_path / "single"), device="cpu").fingerprint == half.fingerprint


def _other_unet(pipeline: StableDiffusionPipeline) -> None:
    pipeline.unet.conv_out.bias.data[0] += 1e-3


def _other_vae(pipeline: StableDiffusionPipeline) -> None:
    pipeline.vae.encoder.conv_in.bias.data[0] += 1e-3


def _other_scale(pipeline: StableDiffusionPipeline) -> None:
    pipeline.vae.register_to_config(scaling_factor=0.2)


def _other_text_encoder(pipeline: StableDiffusionPipeline) -> None:
    pipeline.text_encoder.final_layer_norm.bias.data[0] += 1e-3


def _other_tokenizer(pipeline: StableDiffusionPipeline) -> None:
    pipeline.tokenizer.model_max_length = 8


def _other_schedule(pipeline: StableDiffusionPipeline) -> None:
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, beta_end=0.013)


def _other_target(pipeline: StableDiffusionPipeline) -> None:
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type="v_prediction")


@pytest.mark.parametrize(
    ("change", "changes"),
    [
        (_other_unet, {"fingerprint"}),
        (_other_vae, {"fingerprint", "vae_fingerprint"}),
        (_other_scale, {"fingerprint", "vae_fingerprint"}),
        (_other_text_encoder, {"fingerprint", "text_fingerprint"}),
        (_other_tokenizer, {"fingerprint", "text_fingerprint"}),
        (_other_schedule, {"fingerprint"}),
        (_other_target, {"fingerprint"}),
    ],
)
def test_fingerprint_differs_when_any_part_of_the_model_does(
    change: Callable[[StableDiffusionPipeline], None], changes: set[str]
) -> None:
    before = LatentDiffusion(tiny_pipeline(), name="tiny")
    pipeline = tiny_pipeline()
    change(pipeline)
    after = LatentDiffusion(pipeline, name="tiny")
    names = ("fingerprint", "vae_fingerprint", "text_fingerprint")
    assert {name for name in names if getattr(before, name) != getattr(after, name)} == changes


# ----- loading ------------------------------------------------------------------------------------------------------
def refused(base: Path | str, config: str | None = None) -> str:
    with pytest.raises(LoricaError) as caught:
        LatentDiffusion.load(str(base), device="cpu", config=config)
    return str(caught.value)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_HUB_OFFLINE=1, which the library reads once, when it is imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def copied_folder(tiny_pipeline_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_pipeline_folder, tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_is_named_by_its_last_part_alone(copied_folder: Path) -> None:
    dotted = copied_folder.rename(copied_folder.parent / "sd-1.5")
    assert LatentDiffusion.load(str(dotted), device="cpu").name == "sd-1.5"


def test_what_is_not_there_is_refused(tmp_path: Path, offline: None) -> None:
    assert "base model not found" in refused(tmp_path / "absent")
    assert "base model not found" in refused("nothing-like-this")
    assert "base model not found" in refused("a/b/c")
    assert "for a hub id, check the name" in refused("nobody/no-such-model").lower()


def test_a_folder_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    assert "model_index.json" in refused(tmp_path)
    for content in ("{", "[]", "\x00"):
        (tmp_path / "model_index.json").write_text(content)
        assert "model_index.json" in refused(tmp_path)


def test_a_folder_with_a_part_missing_is_refused(copied_folder: Path) -> None:
    shutil.rmtree(copied_folder / "vae")
    assert str(copied_folder) in refused(copied_folder)


@pytest.mark.parametrize(
    ("part", "file", "weight"),
    [
        ("unet", "diffusion_pytorch_model.safetensors", "conv_out.bias"),
        ("vae", "diffusion_pytorch_model.safetensors", "encoder.conv_in.bias"),
        ("text_encoder", "model.safetensors", "final_layer_norm.bias"),
    ],
)
def test_weights_that_are_missing_are_refused_not_made_up(
    copied_folder: Path, part: str, file: str, weight: str
) -> None:
    weights = load_file(copied_folder / part / file)
    name = next(name for name in weights if name.endswith(weight))
    save_file(
        {key: value for key, value in weights.items() if key != name}, copied_folder / part / file, {"format": "pt"}
    )
    assert "lacks weights" in refused(copied_folder)


def test_truncated_weights_are_refused(copied_folder: Path) -> None:
    file = copied_folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert str(copied_folder) in refused(copied_folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_pickled_weights_are_refused_unread(copied_folder: Path, part: str) -> None:
    file = next((copied_folder / part).glob("*.safetensors"))
    torch.save(load_file(file), file.with_name("pytorch_model.bin" if part == "text_encoder" else f"{file.stem}.bin"))
    file.unlink()
    assert "safetensors" in refused(copied_folder)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_a_pickled_checkpoint_is_refused_unread(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    assert name in refused(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_code_in_a_model_folder_is_not_run(copied_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied_folder.parent)
    (copied_folder / "unet" / "theirs.py").write_text("open('exploded', 'w')\nclass Net: pass\n")
    index = json.loads((copied_folder / "model_index.json").read_text())
    (copied_folder / "model_index.json").write_text(json.dumps(index | {"unet": ["theirs", "Net"]}))
    assert str(copied_folder) in refused(copied_folder)
    assert not (copied_folder.parent / "exploded").exists()


def test_a_pipeline_of_another_kind_is_refused_by_its_name(tmp_path: Path) -> None:
    unet = UNet2DModel(sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2,
                       down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    assert "DDPMPipeline" in refused(tmp_path)


def _unet_like(pipeline: StableDiffusionPipeline, **changes: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_config(pipeline.unet.config, **changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"in_channels": 9}, "in-painting"),
        ({"out_channels": 8}, "another kind of UNet"),
        ({"cross_attention_dim": 48}, "captions of width 48"),
        ({"sample_size": [8, 16]}, "not square"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
    ],
)
def test_a_unet_that_would_fail_or_mislead_later_is_refused(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    pipeline = tiny_pipeline()
    pipeline.unet = _unet_like(pipeline, **changes)
    pipeline.save_pretrained(tmp_path)
    assert named in refused(tmp_path)


@pytest.mark.parametrize(
    ("scheduler", "named"),
    [
        (DDIMScheduler(prediction_type="sample"), "'sample'"),
        (FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_a_target_or_schedule_that_is_not_supported_is_refused(tmp_path: Path, scheduler: Any, named: str) -> None:
    pipeline = tiny_pipeline()
    pipeline.scheduler = scheduler
    pipeline.save_pretrained(tmp_path)
    assert named in refused(tmp_path)


def test_a_device_that_is_not_there_is_refused() -> None:
    for device in ("cuda:99", "gpu", "meta:x"):
        with pytest.raises(LoricaError, match=device):
            pick_device(device)
    assert pick_device("cpu") == torch.device("cpu")


# ----- single-file checkpoints --------------------------------------------------------------------------------------
@pytest.fixture
def single_file(tmp_path: Path) -> Path:
    (tmp_path / "download").mkdir()
    file = tmp_path / "download" / "model.v1.safetensors"
    save_ldm_checkpoint(tiny_pipeline(), file)
    return file


def test_a_single_file_checkpoint_loads_with_a_local_configuration(
    single_file: Path, tmp_path: Path, offline: None
) -> None:
    described = with_scheduler(*SCHEDULES["Stable Diffusion 2 v"])
    described.vae.register_to_config(scaling_factor=0.5)
    described.save_pretrained(tmp_path / "config")
    for weights in (tmp_path / "config").rglob("*.safetensors"):
        weights.unlink()  # only the layout is used

    model = LatentDiffusion.load(str(single_file), device="cpu", config=str(tmp_path / "config"))
    original = tiny_pipeline()
    for part in ("unet", "vae", "text_encoder"):
        expected, loaded = getattr(original, part).state_dict(), getattr(model.pipeline, part).state_dict()
        assert expected.keys() == loaded.keys()
        assert all(torch.equal(expected[name], loaded[name]) for name in expected)
    assert model.name == "model.v1"
    assert (model.prediction_type, model.latent_scale) == ("v_prediction", 0.5)
    assert model.pipeline.tokenizer.model_max_length == original.tokenizer.model_max_length
    assert len(model.sample(["a"], seed=0, steps=1, progress=False)) == 1


def test_a_single_file_inside_a_diffusers_folder_is_described_by_that_folder(
    single_file: Path, copied_folder: Path, offline: None
) -> None:
    moved = single_file.rename(copied_folder / "model.safetensors")
    assert (
        LatentDiffusion.load(str(moved), device="cpu").fingerprint
        == LatentDiffusion.load(str(copied_folder), device="cpu").fingerprint
    )


@pytest.mark.parametrize("config", [None, "nobody/no-such-model", "/no/such/folder"])
def test_a_single_file_without_configuration_says_how_to_give_one(
    single_file: Path, offline: None, config: str | None
) -> None:
    assert "--base-config" in refused(single_file, config)


def test_a_configuration_folder_that_is_none_is_refused(single_file: Path, tmp_path: Path) -> None:
    assert "model_index.json" in refused(single_file, str(tmp_path))


@pytest.mark.parametrize(
    "left_out",
    [
        "first_stage_model.",
        "cond_stage_model.",
        "model.diffusion_model.out.2.bias",
        "first_stage_model.encoder.conv_in.bias",
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    ],
)
def test_a_single_file_that_lacks_weights_is_refused(
    single_file: Path, tiny_pipeline_folder: Path, offline: None, left_out: str
) -> None:
    kept = {name: tensor for name, tensor in load_file(single_file).items() if not name.startswith(left_out)}
    save_file(kept, single_file)
    message = refused(single_file, str(tiny_pipeline_folder))
    assert "missing" in message or "lacks weights" in message


def test_a_single_file_of_another_shape_than_its_configuration_is_refused(
    single_file: Path, tmp_path: Path, offline: None
) -> None:
    wider = tiny_pipeline()
    wider.unet = _unet_like(wider, block_out_channels=(16, 64))
    wider.save_pretrained(tmp_path / "wider")
    assert str(single_file) in refused(single_file, str(tmp_path / "wider"))


def test_a_safetensors_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    assert "--lora" in refused(tmp_path / "lora.safetensors")
