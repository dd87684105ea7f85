"""Train the built-in base model from scratch: autoencoder, then text encoder + UNet, then export.

    python tools/base_model/train.py autoencoder --data DATA --work WORK --minutes 25
    python tools/base_model/train.py denoiser    --data DATA --work WORK --minutes 75
    python tools/base_model/train.py export      --data DATA --work WORK --output src/lorica/assets/base

DATA holds `noto_emoji/` and `clothing/` (images.npz + index.csv). Every stage saves its state each few minutes and
goes on from it when called again. Nothing of the private style (`lorica.data.cohort`, fluent emoji) is ever read.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from card import write_card
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from pictures import as_array, drawn, load_captions, load_packed, textures
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PIXELS, LATENT_CHANNELS, TOKENS, WIDTH, VOCABULARY = 64, 8, 40, 128, 1536
# Sampling shares per batch. Emoji are few and varied, so they get most of the steps.
SHARES = {"noto": 0.42, "clothing": 0.23, "drawn": 0.35}
# The autoencoder is shown more of our own drawings than their number asks for: edges of plain shapes are hard for it.
AUTOENCODER_SHARES = {"noto": 0.40, "clothing": 0.20, "drawn": 0.25, "texture": 0.15}
DRAWN, DRAWN_HELD_OUT = 6000, 300


# ----- data -----------------------------------------------------------------------------------------------------
def dataset(data: Path, work: Path) -> dict:
    """Pictures (uint8, 128 px) and captions per source, decoded once and kept in WORK."""
    file = work / "pictures.npz"
    captions = {
        name: load_captions(data / folder) for name, folder in (("noto", "noto_emoji"), ("clothing", "clothing"))
    }
    pictures, captions["drawn"] = drawn(DRAWN + DRAWN_HELD_OUT, seed=0)
    if file.exists():
        arrays = dict(np.load(file))
    else:
        arrays = {
            "noto": as_array(load_packed(data / "noto_emoji")),
            "clothing": as_array(load_packed(data / "clothing")),
            "drawn": as_array(pictures),
            "texture": as_array(textures(3000, seed=1)),
        }
        np.savez(file, **arrays)
    return {"pictures": {k: torch.from_numpy(v) for k, v in arrays.items()}, "captions": captions}


def held_out(name: str, count: int) -> torch.Tensor:
    """Validation pictures: every 20th, and of our own drawings (whose kinds alternate) the last ones."""
    index = torch.arange(count)
    return index >= DRAWN if name == "drawn" else index % 20 == 7


def shrink(batch: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 pictures -> float in [-1, 1] at `size` px, antialiased."""
    x = batch.float() / 127.5 - 1
    return x if x.shape[-1] == size else F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)


# ----- models ---------------------------------------------------------------------------------------------------
def build_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=PIXELS,
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=PIXELS // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(96, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """A byte-pair tokenizer in CLIP's format (`</w>` word ends), learned from the public captions only.

    One that is there is kept: weights that were trained with it mean its tokens.
    """
    if folder.exists():
        return CLIPTokenizer.from_pretrained(folder)
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                pattern=__import__("tokenizers").Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"),
                behavior="removed",
                invert=True,
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    # CLIP needs every byte also as a word end, so that no word is ever unknown.
    singles = list(alphabet)
    bpe.train_from_iterator(captions, trainer)
    model = json.loads(bpe.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    for single in singles:
        vocab.setdefault(single + "</w>", len(vocab))
    merges = [tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in model["merges"]]
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS, pad_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    return tokenizer


# ----- training loops -------------------------------------------------------------------------------------------
def save_atomically(state: dict, file: Path) -> None:
    torch.save(state, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)


def learning_rate(progress: float, peak: float) -> float:
    """Short warm-up, cosine to 2 % of the peak; `progress` in [0, 1] is the share of the time budget used."""
    return peak * min(1.0, progress / 0.02 + 0.02) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def reconstruction(model: AutoencoderKL, pictures: torch.Tensor) -> float:
    """PSNR in dB of pictures (N, 3, 64, 64) in [-1, 1] through the autoencoder."""
    with torch.no_grad():
        error = (model.decode(model.encode(pictures).latent_dist.mean).sample.clamp(-1, 1) - pictures) / 2
    return -10 * math.log10(error.square().mean())


def train_autoencoder(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    pictures = dataset(args.data, args.work)["pictures"]
    train = torch.cat([p[~held_out(k, len(p))] for k, p in pictures.items()])
    weights = torch.cat(
        [torch.full((int((~held_out(k, len(p))).sum()),), AUTOENCODER_SHARES[k] / len(p)) for k, p in pictures.items()]
    )
    validation = {k: shrink(p[held_out(k, len(p))][:100], PIXELS) for k, p in pictures.items()}
    model = build_autoencoder().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    file, step, used = args.work / "autoencoder.pt", 0, 0.0
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"]), optimiser.load_state_dict(state["optimiser"])
        step, used = state["step"], state["used"]
    if args.decoder_only:
        for name, p in model.named_parameters():
            p.requires_grad_(not name.startswith(("encoder", "quant_conv")))
    trainable = [p for p in model.parameters() if p.requires_grad]
    start, budget, saved = time.time() - used, args.minutes * 60, time.time()

    def check() -> None:
        psnr = {name: reconstruction(model, pictures) for name, pictures in validation.items()}
        print(
            f"step {step} {time.time() - start:.0f}s validation PSNR "
            + " ".join(f"{k} {v:.2f}" for k, v in psnr.items()),
            flush=True,
        )

    while time.time() - start < budget:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate((time.time() - start) / budget, 2e-3)
        batch = train[torch.multinomial(weights, 16)]
        side = int(torch.tensor([64, 96, 128, 128])[torch.randint(4, ())])
        if side < 128:
            y, x = torch.randint(0, 129 - side, (2,)).tolist()
            batch = batch[:, :, y : y + side, x : x + side]
        x = shrink(batch, PIXELS)
        if torch.rand(()) < 0.5:
            x = x.flip(-1)
        x = x.contiguous(memory_format=torch.channels_last)
        posterior = model.encode(x).latent_dist
        y = model.decode(posterior.sample()).sample
        d = y - x
        edges = d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss = d.abs().mean() + 2 * d.square().mean() + 0.5 * edges + args.kl * kl
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimiser.step()
        step += 1
        if step % 200 == 0:
            print(f"step {step} {time.time() - start:.0f}s l1 {d.abs().mean():.4f} kl {kl:.2f}", flush=True)
        if time.time() - saved > 150:
            check()
            save_atomically(
                {
                    "model": model.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "step": step,
                    "used": time.time() - start,
                },
                file,
            )
            saved = time.time()
    check()
    save_atomically(
        {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "used": time.time() - start},
        file,
    )


def encode_all(model: AutoencoderKL, pictures: torch.Tensor, flip: bool) -> torch.Tensor:
    """Posterior means (N, C, 8, 8) of whole pictures."""
    out = []
    with torch.inference_mode():
        for start in range(0, len(pictures), 64):
            x = shrink(pictures[start : start + 64], PIXELS)
            out.append(
                model.encode(
                    (x.flip(-1) if flip else x).contiguous(memory_format=torch.channels_last)
                ).latent_dist.mean
            )
    return torch.cat(out).clone()


def encoded_dataset(args: argparse.Namespace, model: AutoencoderKL) -> dict[str, torch.Tensor]:
    """Latents per source; flipped copies where a mirror image still fits its caption (emoji hold letters)."""
    file = args.work / "latents.pt"
    if not file.exists():
        pictures = dataset(args.data, args.work)["pictures"]
        latents = {name: encode_all(model, pictures[name], flip=False) for name in SHARES}
        latents |= {f"{name}-flipped": encode_all(model, pictures[name], flip=True) for name in ("clothing", "drawn")}
        save_atomically(latents, file)
    return torch.load(file, weights_only=True)


def shorter(caption: str) -> str:
    """Drop the style prefix now and then, so that bare nouns work as prompts too."""
    for prefix in ("a flat emoji of ", "a drawing of ", "a photo of "):
        if caption.startswith(prefix):
            return caption[len(prefix) :]
    return caption


def load_autoencoder(work: Path) -> AutoencoderKL:
    model = build_autoencoder().to(memory_format=torch.channels_last).eval().requires_grad_(False)
    model.load_state_dict(torch.load(work / "autoencoder.pt", weights_only=True)["model"])
    return model


def noise_schedule() -> DDIMScheduler:
    """Stable Diffusion's schedule with v-prediction (Salimans & Ho, arXiv 2202.00512).

    An epsilon loss hardly notices the caption at high noise, where colour and layout are decided: a model this small
    then learns to draw before it learns to listen.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def train_denoiser(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    captions = dataset(args.data, args.work)["captions"]
    latents = encoded_dataset(args, load_autoencoder(args.work))
    scale = 1 / torch.cat([latents[name] for name in SHARES]).std().item()
    tokenizer = build_tokenizer([c for name in SHARES for c in captions[name]], args.work / "tokenizer")

    def tokens(texts: list[str]) -> torch.Tensor:
        return tokenizer(
            texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).input_ids

    full = {name: tokens(captions[name]) for name in SHARES}
    short = {name: tokens([shorter(c) for c in captions[name]]) for name in SHARES}
    empty = tokens([""])[0]
    rows = {name: (~held_out(name, len(full[name]))).nonzero()[:, 0] for name in SHARES}
    spare = {name: held_out(name, len(full[name])).nonzero()[:, 0][:64] for name in SHARES}

    unet, text = build_unet(), build_text_encoder(tokenizer)
    parameters = [*unet.parameters(), *text.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    average = [p.detach().clone() for p in parameters]
    step, used, file = 0, 0.0, args.work / "denoiser.pt"
    if file.exists():
        state = torch.load(file, weights_only=True)
        (
            unet.load_state_dict(state["unet"]),
            text.load_state_dict(state["text"]),
            optimiser.load_state_dict(state["optimiser"]),
        )
        average, step, used = state["average"], state["step"], state["used"]
    elif args.start is not None:  # continue from exported weights; the optimiser starts afresh
        exported = StableDiffusionPipeline.from_pretrained(args.start, safety_checker=None)
        unet.load_state_dict(exported.unet.float().state_dict())
        weights = text.state_dict()
        for name, value in exported.text_encoder.float().state_dict().items():
            weights[name][: len(value)] = value  # captions may have become longer
        text.load_state_dict(weights)
        average = [p.detach().clone() for p in parameters]
    alphas = noise_schedule().alphas_cumprod

    def loss_of(z: torch.Tensor, t: torch.Tensor, ids: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        a = alphas[t].view(-1, 1, 1, 1)
        velocity = a.sqrt() * eps - (1 - a).sqrt() * z
        return F.mse_loss(unet(a.sqrt() * z + (1 - a).sqrt() * eps, t, text(ids)[0]).sample, velocity)

    def validation_loss() -> dict[str, float]:
        generator = torch.Generator().manual_seed(1)
        result = {}
        with torch.inference_mode():
            for name, index in spare.items():
                z = latents[name][index] * scale
                losses = []
                for level in range(8):
                    t = torch.full((len(z),), 62 + 125 * level)
                    eps = torch.randn(z.shape, generator=generator)
                    losses.append(loss_of(z, t, full[name][index], eps).item())
                result[name] = sum(losses) / len(losses)
        return result

    def save() -> None:
        save_atomically(
            {
                "unet": unet.state_dict(),
                "text": text.state_dict(),
                "average": average,
                "optimiser": optimiser.state_dict(),
                "step": step,
                "used": time.time() - start,
                "scale": scale,
                "validation": validation_loss(),
            },
            file,
        )

    start, budget, saved = time.time() - used, args.minutes * 60, time.time()
    batch, names = 32, list(SHARES)
    share = torch.tensor([SHARES[n] for n in names])
    recent = 0.0
    while time.time() - start < budget:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate((time.time() - start) / budget, 1e-3)
        counts = torch.bincount(torch.multinomial(share, batch, replacement=True), minlength=len(names)).tolist()
        z, ids = [], []
        for name, count in zip(names, counts, strict=True):
            index = rows[name][torch.randint(len(rows[name]), (count,))]
            mirrored = torch.rand(()) < 0.5 and f"{name}-flipped" in latents
            z.append(latents[f"{name}-flipped" if mirrored else name][index])
            ids.append(torch.where(torch.rand(count, 1) < 0.15, short[name][index], full[name][index]))
        z, ids = torch.cat(z) * scale, torch.cat(ids)
        ids[torch.rand(batch) < 0.1] = empty
        t, eps = torch.randint(0, 1000, (batch,)), torch.randn(z.shape)
        loss = loss_of(z, t, ids, eps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(0.9995, (step + 1) / (step + 10)))
        recent = 0.98 * recent + 0.02 * loss.item() if step > 1 else loss.item()
        if step % 250 == 0:
            print(f"step {step} {time.time() - start:.0f}s loss {recent:.4f}", flush=True)
        if time.time() - saved > 240:
            save()
            print(
                f"step {step} validation " + " ".join(f"{k} {v:.4f}" for k, v in validation_loss().items()), flush=True
            )
            saved = time.time()
    for p, a in zip(parameters, average, strict=True):
        p.data.copy_(a)
    print(json.dumps({"steps": step, "validation_loss": validation_loss()}), flush=True)
    save()


def export(args: argparse.Namespace) -> None:
    """Write the averaged weights as a diffusers pipeline in fp16."""
    state = torch.load(args.work / "denoiser.pt", weights_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(args.work / "tokenizer")
    unet, text, vae = build_unet(), build_text_encoder(tokenizer), load_autoencoder(args.work)
    for p, a in zip([*unet.parameters(), *text.parameters()], state["average"], strict=True):
        p.data.copy_(a)
    vae.register_to_config(scaling_factor=state["scale"])
    pipeline = StableDiffusionPipeline(
        vae=vae.to(memory_format=torch.contiguous_format),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(args.output)
    for file in args.output.rglob("*.safetensors"):
        file.chmod(0o644)
    words = args.output / "tokenizer" / "tokenizer.json"  # indented by its library to twice the size
    words.write_text(json.dumps(json.loads(words.read_text()), ensure_ascii=False, separators=(",", ":")))
    pictures = dataset(args.data, args.work)["pictures"]
    psnr = {
        name: reconstruction(vae.float(), shrink(pictures[name][held_out(name, len(pictures[name]))][:100], PIXELS))
        for name in SHARES
    }
    write_card(
        args.output,
        shares=SHARES,
        validation={name: (state["validation"][name], psnr[name]) for name in SHARES},
        steps=state["step"],
        minutes=state["used"] / 60,
        autoencoder_steps=torch.load(args.work / "autoencoder.pt", weights_only=True)["step"],
        note=args.note,
    )
    size = sum(f.stat().st_size for f in args.output.rglob("*") if f.is_file())
    print(f"{args.output}: {size / 1e6:.2f} MB after {state['step']} steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["autoencoder", "denoiser", "export"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kl", type=float, default=1e-3)
    parser.add_argument("--start", type=Path, help="denoiser: exported pipeline to start from")
    parser.add_argument("--note", default="", help="export: a sentence on the training for the model card")
    parser.add_argument(
        "--decoder-only", action="store_true", help="leave the encoder as it is, so that latents stay valid"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    {"autoencoder": train_autoencoder, "denoiser": train_denoiser, "export": export}[args.stage](args)


if __name__ == "__main__":
    main()
