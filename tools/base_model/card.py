"""The model card of the built-in base model, from figures measured while training and exporting."""

from collections.abc import Mapping
from pathlib import Path

from lorica.artefacts import hardware
from lorica.diffusion import LatentDiffusion
from lorica.sheet import grid

CARD = """# Lorica's built-in base model

A small text-conditioned latent diffusion model in the diffusers layout, trained from scratch by
`tools/base_model/train.py`. It exists so that adaptation and audits can be tried and tested in minutes without a
network. It is not a good picture generator and is not meant to be one.

![samples](samples.webp)

Every picture above was drawn by the model: seed 0 and following, 30 DDIM steps, guidance 4. Captions, row by row:

{captions}

## Parts

| part | class | size |
|---|---|---|
{parts}

64 x 64 pixels, latents 8 x 8 x {channels}, v-prediction, Stable Diffusion's noise schedule, captions of at most
{tokens} tokens. Weights in fp16.

## Data

| source | pictures | share of steps | licence |
|---|---|---|---|
| Noto Emoji, flat emoji on white | 1,613 | {noto:.0%} | SIL Open Font License 1.1 / Apache-2.0 |
| Clothing dataset (small), photographs | 3,781 | {clothing:.0%} | CC0 1.0 |
| shapes and patterns drawn by `tools/base_model/pictures.py` | 6,000 | {drawn:.0%} | Apache-2.0, ours |

Every 20th emoji and photograph was left out for validation, and 300 further drawings. The autoencoder also saw 3,000
drawn textures. Nothing in the style of the built-in private set (painted portraits, `lorica.data.cohort`) and no
Fluent Emoji was used, so that both can play the private set.

## Training

Denoiser and text encoder: {steps} steps of 32 pictures, AdamW, peak learning rate 1e-3, cosine; {minutes:.0f} minutes
on {hardware}. Weights are an exponential moving average. Autoencoder: {vae_steps} steps of 16.
{note}

| validation pictures, never trained on | adaptation loss, 8 noise levels, 64 pictures | autoencoder PSNR, dB |
|---|---|---|
{validation}

## Limits

Prompts outside the training captions give mush. Small faces, letters and fine patterns are lost in the autoencoder.
The model has seen each emoji many times and will have memorised some; all of them are public.

Licence of the weights: Apache-2.0.
"""

SHOWN = (
    *(
        f"a flat emoji of {name}"
        for name in (
            "red heart",
            "pizza",
            "grinning face",
            "watermelon",
            "house",
            "soccer ball",
            "rocket",
            "green apple",
            "cat face",
            "mushroom",
            "umbrella",
            "sunflower",
            "fire",
            "banana",
            "automobile",
            "crescent moon",
        )
    ),
    *(
        f"a photo of {name}"
        for name in ("a dress", "pants", "shoes", "a t-shirt", "a hat", "shorts", "a skirt", "a shirt")
    ),
    "a drawing of one big red circle on a blue background",
    "a drawing of three green stars on a white background",
    "a drawing of one small yellow heart on a black background",
    "a drawing of two purple squares on a orange background",
    "a drawing of red stripes on a white background",
    "a drawing of four pink hexagons on a grey background",
    "a drawing of one big green cross on a pink background",
    "a drawing of blue dots on a yellow background",
)


def write_card(
    folder: Path,
    *,
    shares: Mapping[str, float],
    validation: Mapping[str, tuple[float, float]],
    steps: int,
    minutes: float,
    autoencoder_steps: int,
    note: str,
) -> None:
    """Write README.md and samples.webp beside the weights; validation is (adaptation loss, PSNR) by source."""
    model = LatentDiffusion.load(str(folder), device="cpu")
    grid(model.sample(SHOWN, seed=0, steps=30, guidance=4.0), 8).save(folder / "samples.webp", lossless=True, method=6)
    pipeline = model.pipeline
    parts = {"autoencoder": pipeline.vae, "text encoder": pipeline.text_encoder, "UNet": pipeline.unet}
    machine = hardware()
    card = CARD.format(
        captions="\n".join(f"{i}. {caption}" for i, caption in enumerate(SHOWN, start=1)),
        parts="\n".join(
            f"| {what} | {type(module).__name__} | {sum(p.numel() for p in module.parameters()) / 1e6:.2f} M |"
            for what, module in parts.items()
        ),
        channels=model.latent_shape[0],
        tokens=pipeline.tokenizer.model_max_length,
        **shares,
        steps=steps,
        minutes=minutes,
        hardware=f"{machine['processor']}, {machine['threads']} threads",
        validation="\n".join(f"| {name} | {loss:.4f} | {psnr:.1f} |" for name, (loss, psnr) in validation.items()),
        vae_steps=autoencoder_steps,
        note=note,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
