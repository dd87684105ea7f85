"""`lorica adapt`: pictures -> split -> encoded pools -> training loop -> LoRA files."""

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from torch import Tensor

from lorica.adapt.config import AdaptConfig
from lorica.adapt.draws import stable_seed
from lorica.adapt.monitor import METRICS_FILE, Monitor, read_metrics, validation_loss
from lorica.adapt.objectives import OBJECTIVES
from lorica.adapt.proxy import Proxy
from lorica.adapt.state import State
from lorica.adapt.step import Pool, Pools, Step
from lorica.artefacts import prepare_output, provenance, write_json, write_text
from lorica.data.pictures import read_folder
from lorica.data.split import Split, make_split
from lorica.diffusion import Encoded, LatentDiffusion, add_lora, encode, keyed_noise, save_lora
from lorica.diffusion.lora import KOHYA_FILE, PEFT_FILE
from lorica.diffusion.model import pick_device
from lorica.errors import LoricaError
from lorica.progress import console

CONFIG_FILE, SPLIT_FILE, RUN_FILE = "config.yaml", "split.json", "run.json"
RESUME_FILE = Path("checkpoints") / "resume.pt"
# What a resumed run may change: how it is watched and how long it is, never what a step computes.
FREE_ON_RESUME = {
    "resume", "overwrite", "steps", "output", "device", "cache", "log_every", "validate_every", "validation_pictures",
    "sample_every", "sample_captions", "checkpoint_every", "keep_checkpoints",
}  # fmt: skip


class Diverged(LoricaError):
    """Training produced a number that is not finite; nothing of it was written."""


def run(config: AdaptConfig) -> dict[str, Any]:
    """Adapt a model; the same as `lorica adapt`.

    Returns:
        The contents of OUTPUT/run.json: provenance and results.

    Raises:
        LoricaError: bad input, before any work starts; or a diverging run (`Diverged`).
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    accelerator = _accelerator(config)
    main = accelerator.is_main_process
    if main:
        prepare_output(config.output, marker=CONFIG_FILE, resume=config.resume, overwrite=config.overwrite)
        if config.overwrite and not config.resume:
            _clear(config.output)
        _check_same_run(config)
    with accelerator.main_process_first():
        split = _split(config, write=main)
    model = LatentDiffusion.load(config.base, device=str(accelerator.device), dtype=_frozen_dtype(config))
    with accelerator.main_process_first():
        encoded = _encode(config, model, split)
    if main:
        write_text(config.output / CONFIG_FILE, config.to_yaml())

    step, state, validation, captions = _assemble(config, accelerator, model, split, encoded)
    start = state.load(config.output / RESUME_FILE) if (config.output / RESUME_FILE).exists() else 0
    if start and main:
        console.print(f"Resuming after step {start} of {config.steps}.")

    def checkpoint(done: int) -> None:
        if main:
            state.save(config.output / RESUME_FILE, done)
            if config.keep_checkpoints:
                save_lora(model.pipeline, config.output / "checkpoints" / f"step_{done:06d}", base_fingerprint=fingerprint, kohya=False)

    fingerprint = model.fingerprint
    finite = torch.ones((), dtype=torch.bool, device=model.device)
    with Monitor(config.output, config.steps, start, main=main) as monitor, _interruptible() as interrupted:

        def validate(done: int) -> None:
            member, nonmember = (validation_loss(model, _current(model, e, c), config.seed) for e, c in validation)
            monitor.validated(done, member, nonmember)

        if start == 0 and main:
            validate(0)
        for index in range(start, config.steps):
            values = step(index)
            finite = finite & torch.isfinite(values["loss"]) & torch.isfinite(values["grad_norm"])
            done = index + 1
            last = done == config.steps
            stop = interrupted() and not last
            save = stop or last or done % config.checkpoint_every == 0
            if save or done % config.log_every == 0:
                if not finite.item():
                    raise Diverged(*_divergence(config, done))
                monitor.log(done, {name: value.item() for name, value in values.items()})
            if main and (last or done % config.validate_every == 0):
                validate(done)
            if save:
                checkpoint(done)
            if main and config.sample_every and (last or done % config.sample_every == 0):
                monitor.samples(done, model, captions, config.seed)
            monitor.restart_clock(done)
            if stop:
                raise KeyboardInterrupt(f"saved after step {done}; go on with --resume")
    accelerator.wait_for_everyone()
    return _finish(config, accelerator, model, split) if main else {}


# ----- before the loop ----------------------------------------------------------------------------------------------
def _accelerator(config: AdaptConfig) -> Accelerator:
    device = pick_device(config.device)
    precision = {"fp32": "no"}.get(config.precision, config.precision)
    if config.precision == "fp16" and device.type == "cpu":
        raise LoricaError("precision fp16 needs a GPU", "Use --precision fp32 or bf16 on a CPU.")
    return Accelerator(mixed_precision=precision, cpu=device.type == "cpu")


def _frozen_dtype(config: AdaptConfig) -> torch.dtype:
    """Frozen weights in half precision on a GPU; LoRA weights are always float32."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]


def _clear(output: Path) -> None:
    for name in ("checkpoints", "samples", "tensorboard"):
        shutil.rmtree(output / name, ignore_errors=True)
    for name in (CONFIG_FILE, SPLIT_FILE, RUN_FILE, METRICS_FILE, PEFT_FILE, KOHYA_FILE):
        (output / name).unlink(missing_ok=True)


def _check_same_run(config: AdaptConfig) -> None:
    file = config.output / CONFIG_FILE
    if not file.exists():
        return
    before = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    now = config.model_dump(mode="json")
    changed = sorted(key for key in now if key not in FREE_ON_RESUME and now[key] != before.get(key))
    if changed:
        raise LoricaError(
            f"--resume with another configuration than the run in {config.output}: {', '.join(changed)}",
            f"Take the values of {file}, or start a new run elsewhere.",
        )


def _split(config: AdaptConfig, *, write: bool) -> Split:
    """The run's own split on resume, a given one, or a new one; saved beside the run."""
    own = config.output / SPLIT_FILE
    if own.exists():
        return Split.load(own)
    if config.split.file is not None:
        split = Split.load(config.split.file, data=config.data)
    else:
        nonmembers = read_folder(config.split.nonmembers) if config.split.nonmembers is not None else None
        split = make_split(
            read_folder(config.data), nonmembers, seed=config.seed, holdout=config.split.holdout, aux=config.split.aux,
            counts=config.split.counts,
        )  # fmt: skip
    if write:
        split.save(own)
        for note in split.notes:
            console.print(f"[yellow]note:[/] {note}", markup=True)
    return split


def _encode(config: AdaptConfig, model: LatentDiffusion, split: Split) -> dict[str, Encoded]:
    cache = config.cache or config.output / "cache"
    return {group: encode(model, pictures, cache) for group, pictures in split.groups.items()}


def _assemble(
    config: AdaptConfig, accelerator: Accelerator, model: LatentDiffusion, split: Split, encoded: dict[str, Encoded]
) -> tuple[Step, State, list[tuple[Encoded, list[str]]], list[str]]:
    """LoRA, proxy, optimisers and pools; everything random from the seed."""
    torch.manual_seed(stable_seed(config.seed, "initial LoRA"))
    parameters = add_lora(model.pipeline, config.lora)
    if config.gradient_checkpointing:
        model.pipeline.unet.enable_gradient_checkpointing()
        model.pipeline.unet.train()  # diffusers recomputes activations in train mode only; nothing else depends on it
    unet = [p for p in model.pipeline.unet.parameters() if p.requires_grad]
    groups = [{"params": unet, "lr": config.learning_rate}]
    if config.lora.text_encoder:
        text = [p for p in model.pipeline.text_encoder.parameters() if p.requires_grad]
        groups.append({"params": text, "lr": config.text_encoder_learning_rate})
        model.text_encoder = accelerator.prepare(model.text_encoder)
    optimiser = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    model.unet, optimiser = accelerator.prepare(model.unet, optimiser)

    proxy, proxy_optimiser = None, None
    if OBJECTIVES[config.objective].needs_proxy:
        torch.manual_seed(stable_seed(config.seed, "initial proxy"))
        expected = _expected_loss(model, encoded, config) if config.proxy.input == "calibrated" else torch.ones(model.train_timesteps)
        proxy = Proxy(model.latent_shape, config.proxy, expected).to(model.device)
        proxy_optimiser = torch.optim.Adam(proxy.parameters(), lr=config.proxy.learning_rate, weight_decay=config.proxy.weight_decay)

    def pool(name: str, *groups: str) -> Pool:
        frozen_text = not config.lora.text_encoder
        latents = torch.cat([encoded[g].latents for g in groups]).to(model.device)
        contexts = torch.cat([encoded[g].contexts for g in groups]).to(model.device) if frozen_text else None
        return Pool(name, latents, contexts, tuple(p.caption for g in groups for p in split.groups[g]))

    pools = Pools(pool("train", "aux_members", "test_members"), pool("aux members", "aux_members"), pool("aux non-members", "aux_nonmembers"))
    step = Step(model, pools, parameters, optimiser, proxy, proxy_optimiser, config, accelerator)
    state = State(parameters, optimiser, proxy, proxy_optimiser, accelerator)

    validation = []
    for group in ("test_members", "test_nonmembers"):
        rows = list(range(min(config.validation_pictures, len(encoded[group]))))
        fresh = [split.groups[group][i].caption for i in rows] if config.lora.text_encoder else []
        validation.append((encoded[group].take(rows), fresh))
    captions = config.sample_captions or [p.caption for p in split.groups["test_members"][:8]]
    return step, state, validation, captions


def _current(model: LatentDiffusion, encoded: Encoded, captions: list[str]) -> Encoded:
    """With a trained text encoder, cached caption embeddings are stale: encode again."""
    if not captions:
        return encoded
    with torch.inference_mode():
        return Encoded(encoded.latents, model.encode_captions(captions).float().cpu(), encoded.ids)


def _expected_loss(model: LatentDiffusion, encoded: dict[str, Encoded], config: AdaptConfig, levels: int = 40, pictures: int = 24) -> Tensor:
    """Expected adaptation loss (T,) per timestep of the base model (LoRA still zero), from auxiliary pictures."""
    chosen = [encoded[g].take(list(range(min(pictures, len(encoded[g]))))) for g in ("aux_members", "aux_nonmembers")]
    latents = torch.cat([c.latents for c in chosen]).to(model.device)
    contexts = torch.cat([c.contexts for c in chosen]).to(model.device)
    ids = [i for c in chosen for i in c.ids]
    grid = torch.linspace(0, model.train_timesteps - 1, levels).round().long()
    losses = []
    with torch.inference_mode():
        for level, t in enumerate(grid):
            noise = keyed_noise(ids, "expected loss", level, model.latent_shape, config.seed).to(model.device)
            losses.append(model.error_map(latents, t.repeat(len(ids)).to(model.device), noise, contexts).mean().item())
    every = torch.arange(model.train_timesteps, dtype=torch.float64).numpy()
    import numpy as np

    return torch.from_numpy(np.exp(np.interp(every, grid.numpy(), np.log(losses))))


# ----- during and after ---------------------------------------------------------------------------------------------
@contextmanager
def _interruptible() -> Iterator[Any]:
    """Turn the first Ctrl-C (and SIGTERM) into a request to stop after the current step; a second one kills."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        console.print("Stopping after this step; the state will be saved.")

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs us handles signals
        previous = {}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _divergence(config: AdaptConfig, step: int) -> tuple[str, str]:
    kept = config.output / RESUME_FILE
    hint = "Lower --learning-rate" + (" or --lam" if OBJECTIVES[config.objective].needs_proxy else "")
    if config.objective == "mp-lora":
        hint += ", or use smp-lora: MP-LoRA's objective has no lower bound"
    if config.precision == "fp16":
        hint += ", or use --precision bf16"
    return (
        f"training diverged: the loss is not finite (noticed at step {step})",
        f"{hint}. Nothing was written after the last checkpoint" + (f" ({kept})." if kept.exists() else "."),
    )


def _finish(config: AdaptConfig, accelerator: Accelerator, model: LatentDiffusion, split: Split) -> dict[str, Any]:
    save_lora(model.pipeline, config.output, base_fingerprint=model.fingerprint)
    rows = read_metrics(config.output)
    seconds = [row["step_seconds"] for row in rows if "step_seconds" in row]
    validated = [row for row in rows if "val_member" in row]
    drawn = config.steps * config.batch_size * config.gradient_accumulation * accelerator.num_processes
    result = provenance(config.model_dump(mode="json"), config.seed) | {
        "base_fingerprint": model.fingerprint,
        "counts": {group: len(pictures) for group, pictures in split.groups.items()},
        "steps_per_picture": drawn / len(split.members),
        "augmentation": "none",
        "processes": accelerator.num_processes,
        "step_seconds_median": sorted(seconds)[len(seconds) // 2] if seconds else None,
        "val_member": validated[-1]["val_member"],
        "val_nonmember": validated[-1]["val_nonmember"],
    }
    write_json(config.output / RUN_FILE, result)
    return result
