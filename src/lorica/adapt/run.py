"""`lorica adapt`: pictures -> split -> encoded pools -> training loop -> LoRA files."""

from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from rich.markup import escape

from lorica.adapt.config import AdaptConfig
from lorica.adapt.folder import RESUME_FILE, begin, check_output, finished
from lorica.adapt.objectives import OBJECTIVES
from lorica.adapt.prepare import Job, assemble, choose_canaries, choose_defences, choose_split, connect
from lorica.adapt.state import completed_steps
from lorica.adapt.step import DTYPES
from lorica.artefacts import RUN_FILE, provenance, sole_writer, write_json
from lorica.diffusion import LatentDiffusion, save_lora
from lorica.errors import Diverged, LoricaError
from lorica.interrupt import interruptible
from lorica.monitor import Monitor, read_metrics
from lorica.progress import console
from lorica.resume import settled

LIVE = {"adaptation_loss": "loss {:.3f}", "gain": "G {:+.2f}", "val_gap": "gap {:+.4f}", "step_seconds": "{:.3f} s"}


def run(config: AdaptConfig) -> dict[str, Any]:
    """Adapt a model; the same as `lorica adapt`.

    Returns:
        The contents of OUTPUT/run.json: provenance and results; empty in processes other than the main one.

    Raises:
        LoricaError: bad input, before any work starts; or a diverging run (`Diverged`).
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    accelerator = connect(config)
    main = accelerator.is_main_process
    if main:
        check_output(config)
    if (record := finished(config)) is not None:
        if main:
            console.print(f"The run in {escape(str(config.output))} is complete; to go further, raise --steps.")
        return record if main else {}
    split = choose_split(config)
    canaries = choose_canaries(config, accelerator)
    defences = choose_defences(config, len(split.members) + len(canaries), accelerator.num_processes)
    model = LatentDiffusion.load(
        config.base, device=str(accelerator.device), dtype=DTYPES[config.precision], config=config.base_config
    )
    captions = [picture.caption for group in split.groups.values() for picture in group]
    for note in [*split.notes, *model.caption_notes(captions)] if main else []:
        console.print(f"[yellow]note:[/] {escape(note)}")
    start = _common_start(config, accelerator)
    job = assemble(config, accelerator, model, split, canaries, defences, resuming=start > 0)
    if start:
        job.state.load(config.output / RESUME_FILE)
    if start and main:
        console.print(f"Resuming after step {start} of {config.steps}.")
    with sole_writer(config.output) if main else nullcontext():
        if main:
            begin(config, split)
        done = _train(config, accelerator, job, start)
        record = _finish(config, accelerator, job, done) if main else {}
    accelerator.wait_for_everyone()  # when run() returns, the files are there, whichever process asks
    return record


def _common_start(config: AdaptConfig, accelerator: Accelerator) -> int:
    """Completed steps, once every process has seen the same number of them."""
    start = completed_steps(config.output / RESUME_FILE) if config.resume else 0
    starts = accelerator.gather(torch.tensor([start], device=accelerator.device))
    if (starts != start).any():
        raise LoricaError(
            f"the processes see different checkpoints: {starts.tolist()} completed steps",
            "All processes must see the same --output folder.",
        )
    return start


def _train(config: AdaptConfig, accelerator: Accelerator, job: Job, start: int) -> int:
    """Take the steps; returns how many have been taken in all, fewer than asked for where a defence ends the run."""
    if job.stopped:
        return start
    with _monitor(config, accelerator, start) as monitor, interruptible(accelerator) as interrupted:
        if monitor and start == 0:
            monitor.log(0, job.validation(job.model))
        for done in range(start + 1, config.steps + 1):
            values = job.step(done - 1)
            log, validate, draw, keep = (
                every > 0 and (done % every == 0 or done == config.steps)
                for every in (config.log_every, config.validate_every, config.sample_every, config.checkpoint_every)
            )
            stop = interrupted(log) and done < config.steps
            if not (log or validate or draw or keep or stop):
                continue
            _require(bool(job.step.finite), config, done)
            if keep or stop or (validate and job.defences):
                _require(all(bool(p.isfinite().all()) for p in job.state.weights()), config, done)
            if monitor:
                row = {name: value.item() for name, value in values.items()} if log else {}
                row |= {"step_seconds": monitor.lap(done)} if log else {}
                with monitor.aside():
                    row |= job.validation(job.model) if validate else {}
                    _require(all(isfinite(row[name]) for name in row if name != "grad_norm"), config, done)
                    if validate:
                        for defence in job.defences.values():
                            defence.validated(done, row)
                    if row:
                        monitor.log(done, row)
                    if draw or (job.stopped and config.sample_every):
                        monitor.samples(done, job.model.sample(job.captions, seed=config.seed, progress=False))
                    if keep or stop or job.stopped:  # last, as it says that all else is done
                        _save(config, job, done, keep=config.keep_checkpoints and bool(keep or job.stopped))
            if job.stopped:
                console.print(f"Ended after step {done} of {config.steps}: {job.stopped}.")
                return done
            if stop:
                accelerator.wait_for_everyone()  # a process that ends early has torchrun kill the one that still saves
                raise KeyboardInterrupt(f"the state after step {done} is saved; go on with --resume")
    return config.steps


def _monitor(config: AdaptConfig, accelerator: Accelerator, start: int) -> AbstractContextManager[Monitor | None]:
    if not accelerator.is_main_process:
        return nullcontext()
    return Monitor(config.output, config.steps, start, doing="adapting", live=LIVE)


def _save(config: AdaptConfig, job: Job, done: int, *, keep: bool) -> None:
    """Write the state; before it, so that it cannot go missing, the LoRA file that is kept for audits over time."""
    if keep:
        folder = config.output / "checkpoints" / f"step_{done:06d}"
        save_lora(job.model.pipeline, folder, base_fingerprint=job.model.fingerprint, kohya=False)
    job.state.save(config.output / RESUME_FILE, done)


def _require(fine: bool, config: AdaptConfig, step: int) -> None:
    """Raises: Diverged, with what may help, unless all is fine."""
    if fine:
        return
    hint = "Lower --learning-rate" + (" or --lam" if OBJECTIVES[config.objective].needs_proxy else "")
    if config.objective == "mp-lora":
        hint += ", or use smp-lora: MP-LoRA's objective has no lower bound"
    if config.precision == "fp16":
        hint += ", or use --precision bf16"
    kept = config.output / RESUME_FILE
    raise Diverged(
        f"training diverged: a loss, gradient or weight is not finite (noticed at step {step})",
        f"{hint}. " + (f"The last checkpoint is untouched ({kept})." if kept.exists() else "No weights were written."),
    )


def _finish(config: AdaptConfig, accelerator: Accelerator, job: Job, done: int) -> dict[str, Any]:
    """Write the LoRA files, then run.json, which says that the run is complete."""
    stopped, steps = job.stopped, done
    for defence in job.defences.values():
        steps = defence.finish(steps)
    save_lora(job.model.pipeline, config.output, base_fingerprint=job.model.fingerprint)
    rows = read_metrics(config.output)
    seconds = [row["step_seconds"] for row in rows if "step_seconds" in row]
    validated = [row for row in rows if "val_member" in row and row["step"] <= steps] or [job.validation(job.model)]
    drawn = steps * config.batch_size * config.gradient_accumulation * accelerator.num_processes
    result = provenance(settled(config).model_dump(mode="json"), config.seed) | {
        "base_fingerprint": job.model.fingerprint,
        "counts": {group: len(pictures) for group, pictures in job.split.groups.items()},
        "steps": steps,
        "steps_per_picture": drawn / len(job.step.pools.train),
        "stopped": {"step": done, "why": stopped} if stopped else None,
        "augmentation": ", ".join(d.augmentation for d in job.defences.values() if d.augmentation) or "none",
        "defences": {name: config.defences[name] | defence.facts(steps) for name, defence in job.defences.items()},
        "processes": accelerator.num_processes,
        "step_seconds_median": median(seconds) if seconds else None,
        "val_member": validated[-1]["val_member"],
        "val_nonmember": validated[-1]["val_nonmember"],
    }
    write_json(config.output / RUN_FILE, result)
    return result
