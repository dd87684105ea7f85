"""Fixtures shared by all tests: a tiny Stable Diffusion pipeline of random weights, pictures, and short adapt runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from lorica.adapt import AdaptConfig
    from lorica.adapt.step import Step
    from lorica.diffusion.model import LatentDiffusion

TOKENS = 16  # caption length


def tiny_tokenizer() -> CLIPTokenizer:
    """One token per byte, so that every caption, in every script, can be encoded without an unknown token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[],
        model_max_length=TOKENS,
    )


def tiny_pipeline(prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """An untrained Stable Diffusion 1.x, always the same: 64-pixel pictures, (4, 8, 8) latents, 300,000 weights."""
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _random_pipeline(tokenizer, prediction_type)


def _random_pipeline(tokenizer: CLIPTokenizer, prediction_type: str) -> StableDiffusionPipeline:
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            projection_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def tiny_pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the diffusers layout, as `--base` takes it. Read only: tests share it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_model(tiny_pipeline_folder: Path) -> LatentDiffusion:
    """A fresh model for each test, so that a LoRA loaded in one is not seen by the next."""
    from lorica.diffusion.model import LatentDiffusion

    return LatentDiffusion.load(str(tiny_pipeline_folder), device="cpu")


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 pictures with captions. Read only."""
    from lorica.data.cohort import write_cohort

    return write_cohort(tmp_path_factory.mktemp("pictures") / "people", 24, seed=0)


@pytest.fixture(scope="session")
def adapt_config(
    people: Path, tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., AdaptConfig]:
    """Makes configurations of six steps on 12 of the people, with changes."""
    from lorica.adapt import AdaptConfig

    cache = tmp_path_factory.mktemp("cache")

    def make(**options: Any) -> AdaptConfig:
        settings = {
            "data": people, "base": str(tiny_pipeline_folder), "cache": cache, "device": "cpu", "steps": 6,
            "batch_size": 2, "learning_rate": 1e-2, "lora": {"rank": 2, "alpha": 2.0}, "log_every": 1,
            "validate_every": 2, "validation_pictures": 2, "sample_every": 0, "checkpoint_every": 2,
        }  # fmt: skip
        return AdaptConfig(**(settings | options))

    return make


@pytest.fixture
def adapt(adapt_config: Callable[..., AdaptConfig], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs `adapt_config(...)`, in tmp_path/run unless told otherwise."""
    from lorica.adapt import run

    return lambda **options: run(adapt_config(**({"output": tmp_path / "run"} | options)))


@pytest.fixture(scope="session")
def whole(adapt_config: Callable[..., AdaptConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapt run that nothing changed or disturbed. Read only."""
    from lorica.adapt import run

    folder = tmp_path_factory.mktemp("whole") / "run"
    run(adapt_config(output=folder))
    return folder


@pytest.fixture
def before_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[Step], None]], None]:
    """Lets something happen once, before training step `number` (from 0) of whatever run comes to it first."""
    from lorica.adapt.step import Step

    original = Step.__call__

    def arrange(number: int, happen: Callable[[Step], None]) -> None:
        due = [True]

        def call(self: Step, step: int) -> dict[str, Tensor]:
            if step == number and due:
                due.clear()
                happen(self)
            return original(self, step)

        monkeypatch.setattr(Step, "__call__", call)

    return arrange
