"""Everything before the first step: split, encoded pools, LoRA, attacker and optimisers, all from the seed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from lorica.adapt.config import AdaptConfig
from lorica.adapt.defences import DEFENCES, Defence
from lorica.adapt.losses import Validation, expected_loss
from lorica.adapt.objectives import OBJECTIVES
from lorica.adapt.pools import Pool, Pools
from lorica.adapt.proxy import Proxy
from lorica.adapt.state import State
from lorica.adapt.step import Step
from lorica.artefacts import SPLIT_FILE
from lorica.data.canaries import FOLDER as CANARIES
from lorica.data.canaries import make_canaries
from lorica.data.pictures import Picture, read_folder
from lorica.data.split import Split, make_split
from lorica.devices import pick_device
from lorica.diffusion import Encoded, LatentDiffusion, add_lora, encode
from lorica.errors import LoricaError
from lorica.processes import processes
from lorica.seeds import stable_seed


@dataclass(frozen=True)
class Job:
    """A run that is ready to go, with everything that changes during it in `state`."""

    model: LatentDiffusion
    split: Split
    step: Step
    state: State
    validation: Validation
    captions: list[str]
    """Of the sample grid."""

    @property
    def defences(self) -> dict[str, Defence]:
        return self.state.defences

    @property
    def stopped(self) -> str | None:
        """Why a defence has ended the run before its time, if one has."""
        return next((reason for defence in self.defences.values() if (reason := defence.stopped)), None)


def connect(config: AdaptConfig) -> Accelerator:
    """The processes of this run, one or those that torchrun started, and the device of this one.

    Raises:
        LoricaError: no such device, or a precision that it cannot train in.
    """
    device = pick_device(config.device)
    if config.precision == "fp16" and device.type == "cpu":
        raise LoricaError("precision fp16 needs a GPU", "Use --precision fp32 or bf16 on a CPU.")
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    # Precision is handled in `Step`: accelerate's is a setting of the whole interpreter, so that a second run of
    # another precision could not follow.
    return processes(device)


def choose_split(config: AdaptConfig) -> Split:
    """The run's own split on resume, a given one, or a new one; the same in every process."""
    own = config.output / SPLIT_FILE
    if config.resume and own.exists():
        return Split.load(own, data=config.data, nonmember_data=config.split.nonmembers)
    if config.split.file is not None:
        return Split.load(config.split.file, data=config.data, nonmember_data=config.split.nonmembers)
    nonmembers = read_folder(config.split.nonmembers) if config.split.nonmembers is not None else None
    return make_split(
        read_folder(config.data), nonmembers, seed=config.seed, holdout=config.split.holdout, aux=config.split.aux,
        counts=config.split.counts,
    )  # fmt: skip


def choose_canaries(config: AdaptConfig, accelerator: Accelerator) -> list[Picture]:
    """The canaries that are trained on beside the members, drawn where they are not there yet; often none."""
    if not config.canaries:
        return []
    with accelerator.main_process_first():
        return make_canaries(config.output, config.canaries, config.seed).trained


def choose_defences(config: AdaptConfig, trained: int, processes: int) -> dict[str, Defence]:
    """The defences of the run by name, in the order in which they act.

    Args:
        config: of the run.
        trained: number of pictures in D_tr.
        processes: of the run.

    Raises:
        LoricaError: one needs what is not there, or cannot work with these pictures or several processes.
    """
    defences: dict[str, Defence] = {}
    for name, options in config.defences.items():
        defence = DEFENCES[name]
        if defence.alone and processes > 1:
            raise LoricaError(f"defence {name} runs in one process only", "Start it without torchrun.")
        defences[name] = defence(defence.Options(**options), config, trained)
    return defences


def assemble(
    config: AdaptConfig,
    accelerator: Accelerator,
    model: LatentDiffusion,
    split: Split,
    canaries: list[Picture],
    defences: dict[str, Defence],
    *,
    resuming: bool,
) -> Job:
    """Encode the pictures, add LoRA and attacker, and make their optimisers.

    Args:
        config: of the run.
        accelerator: connects the processes; the main one encodes, the others read its cache.
        model: the base model.
        split: the pictures.
        canaries: trained on beside the members.
        defences: as `choose_defences` made them.
        resuming: a checkpoint will be loaded, so that what is in it need not be measured.
    """
    groups = split.groups | {CANARIES: canaries}
    identity = {
        "base model": model.fingerprint,
        "pictures or captions": _digest(groups),
        "number of processes": str(accelerator.num_processes),
    }
    cache = config.cache or config.output / "cache"
    with accelerator.main_process_first():
        encoded = {group: encode(model, pictures, cache) for group, pictures in groups.items() if pictures}
        pools = _pools(config, model, groups, encoded, list(defences.values()), cache)
    parameters, optimiser = _add_lora(config, model)
    for defence in defences.values():
        defence.attach(model, parameters)
    proxy, proxy_optimiser = None, None
    if OBJECTIVES[config.objective].needs_proxy:
        proxy, proxy_optimiser = _add_proxy(config, model, encoded, measure=not resuming)
    step = Step(
        model,
        pools,
        parameters,
        optimiser,
        proxy,
        proxy_optimiser,
        config,
        accelerator,
        list(defences.values()),
    )
    return Job(
        model=model,
        split=split,
        step=step,
        state=State(parameters, optimiser, proxy, proxy_optimiser, step.scaler, identity, defences),
        validation=_validation(config, split, encoded, any(d.watches_aux for d in defences.values())),
        captions=config.sample_captions or [p.caption for p in split.groups["test_members"][:8]],
    )


def _digest(groups: Mapping[str, list[Picture]]) -> str:
    parts = [f"{group}\x1f{p.sha256}\x1f{p.caption}" for group, pictures in groups.items() for p in pictures]
    return hashlib.sha256("\x1e".join(parts).encode()).hexdigest()


def _add_lora(config: AdaptConfig, model: LatentDiffusion) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    torch.manual_seed(stable_seed(config.seed, "initial LoRA"))
    parameters = add_lora(model.pipeline, config.lora)
    if config.gradient_checkpointing:
        model.pipeline.unet.enable_gradient_checkpointing()
    unet = [p for p in model.unet.parameters() if p.requires_grad]
    text = [p for p in model.text_encoder.parameters() if p.requires_grad]
    groups = [{"params": unet, "lr": config.learning_rate}]
    if text:
        groups.append({"params": text, "lr": config.text_encoder_learning_rate})
    return parameters, torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)


def _add_proxy(
    config: AdaptConfig, model: LatentDiffusion, encoded: dict[str, Encoded], *, measure: bool
) -> tuple[Proxy, torch.optim.Optimizer]:
    expected = torch.ones(model.train_timesteps)
    if measure and config.proxy.input == "calibrated":  # the LoRA is still zero: this is the base model
        pictures = [
            encoded[group].take(range(min(24, len(encoded[group])))) for group in ("aux_members", "aux_nonmembers")
        ]
        expected = torch.stack([expected_loss(model, some, config.seed) for some in pictures]).mean(0)
    torch.manual_seed(stable_seed(config.seed, "initial proxy"))
    proxy = Proxy(model.latent_shape, config.proxy, expected).to(model.device)
    return proxy, torch.optim.Adam(
        proxy.parameters(), lr=config.proxy.learning_rate, weight_decay=config.proxy.weight_decay, fused=True
    )


def _pools(
    config: AdaptConfig,
    model: LatentDiffusion,
    groups: Mapping[str, list[Picture]],
    encoded: dict[str, Encoded],
    defences: list[Defence],
    cache: Path,
) -> Pools:
    def pool(name: str, *of: str) -> Pool:
        parts, contexts = [encoded[group] for group in of if groups[group]], None
        if not config.lora.text_encoder:
            contexts = torch.cat([part.contexts for part in parts]).to(model.device)
        latents = torch.cat([part.latents for part in parts]).to(model.device)
        pictures = [picture for group in of for picture in groups[group]]
        made = Pool(name, latents, contexts, tuple(picture.caption for picture in pictures))
        for defence in defences:
            made = defence.pool(made, pictures, model, cache)
        return made

    return Pools(
        train=pool("train", "aux_members", "test_members", CANARIES),
        aux_members=pool("aux members", "aux_members"),
        aux_nonmembers=pool("aux non-members", "aux_nonmembers"),
    )


def _validation(config: AdaptConfig, split: Split, encoded: dict[str, Encoded], watch_aux: bool) -> Validation:
    groups = {"val_member": "test_members", "val_nonmember": "test_nonmembers"}
    if watch_aux:
        groups |= {"aux_member": "aux_members", "aux_nonmember": "aux_nonmembers"}
    shown = {name: range(min(config.validation_pictures, len(encoded[group]))) for name, group in groups.items()}
    captions = {name: [split.groups[group][i].caption for i in shown[name]] for name, group in groups.items()}
    return Validation(
        {name: encoded[group].take(shown[name]) for name, group in groups.items()},
        captions if config.lora.text_encoder else {},
        config.seed,
    )
