"""What one training step costs: plain LoRA, the authors' order of work, and ours, timed in turn in one run.

    python benchmarks/step_cost.py                     # built-in model, batch 1 (the paper's) and 16
    python benchmarks/step_cost.py --model sd15-shaped # Stable Diffusion 1.5's UNet and text encoder, narrower

Every contender does the same mathematics on the same cached latents with LoRA on the UNet's attention:

    bare        a plain diffusers + peft loop: one UNet call, AdamW, clipping
    lora        `lorica adapt --objective lora`
    authors     a straightforward transcription of the released SMP-LoRA loop: two UNet calls with graph on the same
                picture, one without graph on a member and a non-member, captions encoded for each of the three calls,
                the proxy's own gradients computed in the LoRA step and thrown away, `.item()` each step
    shared      ours with one (t, eps) for adaptation loss and MI gain
    independent ours with two, as in the released code

Prints passes counted on the modules themselves, median seconds, and ratios of paired rounds; the last line is JSON.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from lorica.adapt import AdaptConfig
from lorica.adapt.pools import Pool, Pools
from lorica.adapt.proxy import Proxy
from lorica.adapt.step import Step
from lorica.artefacts import hardware, versions
from lorica.diffusion import LatentDiffusion, LoraConfig, add_lora

PICTURES = 64
CAPTION = "a painted portrait of a person with red hair, number {}"


def sd15_shaped(size: int = 32) -> LatentDiffusion:
    """Stable Diffusion 1.5's blocks at a quarter of the width on (4, size, size) latents, random weights."""
    tokenizer = LatentDiffusion.load("builtin", device="cpu").pipeline.tokenizer
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=12,
            num_attention_heads=6,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=size,
        block_out_channels=(80, 160, 320, 320),
        cross_attention_dim=192,
        attention_head_dim=8,
        norm_num_groups=16,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    return LatentDiffusion(
        StableDiffusionPipeline(
            vae=vae,
            text_encoder=text,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ),
        name="sd15-shaped",
    )


def load(name: str) -> LatentDiffusion:
    torch.manual_seed(0)
    return sd15_shaped() if name == "sd15-shaped" else LatentDiffusion.load("builtin", device="cpu")


class Contender:
    """A model with LoRA, optimisers and pools of its own, so that contenders do not warm each other's caches."""

    def __init__(self, model_name: str, batch: int, objective: str, draws: str) -> None:
        self.model = load(model_name)
        self.config = AdaptConfig(
            data=Path(),
            output=Path(),
            objective=objective,
            draws=draws,
            batch_size=batch,
            device="cpu",
            lora=LoraConfig(rank=16, alpha=8),
        )
        self.parameters = add_lora(self.model.pipeline, self.config.lora)
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        self.proxy = Proxy(self.model.latent_shape, self.config.proxy, torch.ones(self.model.train_timesteps))
        self.proxy_optimiser = torch.optim.Adam(self.proxy.parameters(), lr=1e-5, weight_decay=1e-4)
        captions = tuple(CAPTION.format(i) for i in range(PICTURES))
        with torch.no_grad():
            contexts = self.model.encode_captions(captions)
        latents = torch.randn(PICTURES, *self.model.latent_shape)
        self.pools = Pools(
            *(Pool(name, latents, contexts, captions) for name in ("train", "aux members", "aux non-members"))
        )

    def ours(self) -> Callable[[int], object]:
        return Step(
            self.model,
            self.pools,
            self.parameters,
            self.optimiser,
            None if self.config.objective == "lora" else self.proxy,
            self.proxy_optimiser,
            self.config,
            Accelerator(cpu=True),
        )

    def bare(self) -> Callable[[int], object]:
        pool, batch, scheduler = self.pools.train, self.config.batch_size, self.model.pipeline.scheduler

        def step(index: int) -> object:
            rows = torch.randint(PICTURES, (batch,))
            latents, context = pool.latents[rows], pool.contexts[rows]
            noise, t = torch.randn_like(latents), torch.randint(0, 1000, (batch,))
            prediction = self.model.unet(scheduler.add_noise(latents, noise, t), t, context).sample
            F.mse_loss(prediction, noise).backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            return None

        return step

    def authors(self) -> Callable[[int], object]:
        pool, batch, model, lam = self.pools.train, self.config.batch_size, self.model, self.config.lam
        scheduler = model.pipeline.scheduler

        def error(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            context = model.encode_captions([pool.captions[i] for i in rows.tolist()])
            latents = pool.latents[rows]
            noise, t = torch.randn_like(latents), torch.randint(0, 1000, (len(rows),))
            prediction = model.unet(scheduler.add_noise(latents, noise, t), t, context).sample
            return (prediction - noise).square(), t

        def step(index: int) -> object:
            rows = torch.randint(PICTURES, (batch,))
            maps, _ = error(rows)
            loss = maps.mean()
            maps, t = error(rows)
            attack = F.cross_entropy(self.proxy(maps, t), torch.ones(batch, dtype=torch.long))
            total = loss / (1 + lam * attack + 1e-5)
            total.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            with torch.no_grad():
                maps, t = error(torch.randint(PICTURES, (2 * batch,)))
            label = torch.arange(2 * batch) < batch
            attack = F.cross_entropy(self.proxy(maps, t), label.long())
            self.proxy_optimiser.zero_grad()
            attack.backward()
            self.proxy_optimiser.step()
            return total.item(), attack.item()

        return step


def count_passes(model: LatentDiffusion, step: Callable[[int], object]) -> dict[str, int]:
    """Pictures that go forward and backward through the UNet, UNet calls and captions encoded, in one step."""
    counts: Counter[str] = Counter()

    def forward(module: torch.nn.Module, inputs: tuple, output: object) -> None:
        sample = output.sample
        counts["unet_calls"] += 1
        counts["forward_pictures"] += len(sample)
        if sample.requires_grad:
            sample.register_hook(lambda gradient: counts.update(backward_pictures=len(gradient)))

    handles = [
        model.unet.register_forward_hook(forward),
        model.text_encoder.register_forward_hook(lambda m, i, o: counts.update(captions_encoded=len(o[0]))),
    ]
    step(0)
    for handle in handles:
        handle.remove()
    return {name: counts[name] for name in ("unet_calls", "forward_pictures", "backward_pictures", "captions_encoded")}


def measure(model_name: str, batch: int, rounds: int, steps: int) -> dict[str, object]:
    makers = {
        "bare": ("lora", "shared", Contender.bare),
        "lora": ("lora", "shared", Contender.ours),
        "authors": ("smp-lora", "shared", Contender.authors),
        "shared": ("smp-lora", "shared", Contender.ours),
        "independent": ("smp-lora", "independent", Contender.ours),
    }
    contenders, passes = {}, {}
    for name, (objective, draws, maker) in makers.items():
        contender = Contender(model_name, batch, objective, draws)
        contenders[name] = maker(contender)
        passes[name] = count_passes(contender.model, contenders[name])
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(rounds + 1):
        for name, step in contenders.items():
            start = time.perf_counter()
            for index in range(steps):
                step(1 + round_number * steps + index)
            if round_number:  # the first round warms up
                seconds[name].append((time.perf_counter() - start) / steps)

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))

    print(f"\n{model_name}, batch {batch}: median seconds per step over {rounds} rounds of {steps} steps")
    for name in contenders:
        print(f"  {name:12s} {statistics.median(seconds[name]):.4f}  {passes[name]}")
    return {
        "ratio_to_authors_independent": round(ratio("independent", "authors"), 3),
        "ratio_to_authors_shared": round(ratio("shared", "authors"), 3),
        "ratio_to_lora_shared": round(ratio("shared", "lora"), 3),
        "ratio_lora_to_bare": round(ratio("lora", "bare"), 3),
        "seconds": {name: round(statistics.median(values), 5) for name, values in seconds.items()},
        "passes": passes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["builtin", "sd15-shaped"], default="builtin")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5, help="steps per round and contender")
    args = parser.parse_args()
    results = {f"batch_{batch}": measure(args.model, batch, args.rounds, args.steps) for batch in args.batch}
    first = results[f"batch_{args.batch[0]}"]
    print(
        json.dumps(
            {key: first[key] for key in first if key.startswith("ratio")}
            | {
                "model": args.model,
                "seed": 0,
                "rounds": args.rounds,
                "steps": args.steps,
                "hardware": hardware(),
                "versions": versions(),
            }
            | results
        )
    )


if __name__ == "__main__":
    main()
