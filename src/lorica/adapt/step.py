"""One step of the min-max game: the proxy attacker learns, then the LoRA (arXiv 2402.11989, algorithms 1 and 2).

Passes of the UNet per step, in units of one forward (F) or backward (B) over a batch of B pictures:

    lora                    1 F + 1 B
    shared draws            1 F + 1 B, and 2 F without graph for the proxy
    independent draws       2 F + 2 B in one call, and 2 F without graph
    mi_gain: full           1 F + 1 B more in the same call, for the auxiliary non-members

Where a batch is so small that a call costs its overhead and not its arithmetic (`ONE_CALL_POSITIONS`), both players'
maps come from one call in the order `paper`: the proxy's 2 F then carry a graph too, and 2 B of zeros.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lorica.adapt.config import AdaptConfig
from lorica.adapt.defences import Defence
from lorica.adapt.draws import places, rows, timesteps_and_noise
from lorica.adapt.gain import mi_gain
from lorica.adapt.objectives import OBJECTIVES
from lorica.adapt.pools import Batch, Draw, Pool, Pools
from lorica.adapt.proxy import Proxy
from lorica.devices import sent
from lorica.diffusion import LatentDiffusion
from lorica.seeds import stable_seed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Of the frozen weights and of autocast; LoRA weights, losses and the attacker are always float32."""

ONE_CALL_POSITIONS = 128
"""Latent positions (batch x h x w) up to which one larger call with graph is cheaper than two (measured on a CPU)."""

Maps = tuple[Tensor, Tensor]
"""Squared-error maps (N, C, h, w) float32 and their timesteps (N,)."""


class Step:
    """Runs training steps. Holds no random state: step k is a function of the weights and k.

    With several processes, each sees its own samples, and the means of gradients and logged numbers are exchanged
    once per backward pass of either player. The modules themselves stay bare, so that one process alone can validate.

    Args:
        model: with the LoRA injected.
        pools: encoded pictures.
        parameters: of the LoRA.
        optimiser: of the LoRA.
        proxy: the attacker h; None for objectives without one.
        proxy_optimiser: of h.
        config: of the run.
        accelerator: connects the processes.
        defences: take part in every step, in this order.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        pools: Pools,
        parameters: list[nn.Parameter],
        optimiser: torch.optim.Optimizer,
        proxy: Proxy | None,
        proxy_optimiser: torch.optim.Optimizer | None,
        config: AdaptConfig,
        accelerator: Accelerator,
        defences: Sequence[Defence] = (),
    ) -> None:
        self.model, self.pools, self.parameters, self.optimiser = model, pools, parameters, optimiser
        self.proxy, self.proxy_optimiser = proxy, proxy_optimiser
        self.config, self.accelerator, self.defences = config, accelerator, defences
        self.objective = OBJECTIVES[config.objective](config.lam, config.delta)
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=config.precision == "fp16")
        self.finite = torch.ones((), dtype=torch.bool, device=model.device)
        """Whether every loss and gradient so far was finite, on all processes alike. Reading it waits for the GPU."""

    def __call__(self, step: int) -> dict[str, Tensor]:
        """Take step `step` (from 0).

        Returns:
            Detached scalars on the device: loss, adaptation_loss, grad_norm (before clipping), with a proxy gain (in
            the LoRA step) and proxy_gain (in its own), and what the defences have to say.
        """
        # Only dropout uses the global generator; seeding it here keeps a resumed run on the same track.
        _seed_global(stable_seed(self.config.seed, "dropout", step, self.accelerator.process_index), self.model.device)
        if self.proxy is None:
            return self.lora_step(step)
        if self.config.order == "authors":
            return self.lora_step(step) | self.proxy_step(step)
        theirs, ours = self._both(step) if self._one_call else (None, None)
        return self.proxy_step(step, theirs) | self.lora_step(step, ours)

    def proxy_step(self, step: int, ready: Maps | None = None) -> dict[str, Tensor]:
        """omega += eta_1 grad G(h_omega, S_aux, f): the attacker ascends on fresh auxiliary pictures.

        Args:
            step: from 0.
            ready: maps of its pictures, without graph, where they are there already.
        """
        assert self.proxy is not None and self.proxy_optimiser is not None
        self.proxy.requires_grad_(True)
        values: dict[str, Tensor] = {}
        for inner in range(self.config.proxy.steps):
            maps, t = ready or self._proxy_maps(step * self.config.proxy.steps + inner)
            logits = self.proxy(maps, t)
            gain = mi_gain(logits[: len(t) // 2], logits[len(t) // 2 :])
            (-gain).backward()
            values = {"proxy_gain": gain.detach()}
            self._average(self.proxy.parameters(), values)
            self.proxy_optimiser.step()
            self.proxy_optimiser.zero_grad()
        return values

    def lora_step(self, step: int, ready: Maps | None = None) -> dict[str, Tensor]:
        """A, B -= eta_2 grad L, on a batch of D_tr.

        Args:
            step: from 0.
            ready: maps of its pictures, with graph, where they are there already.
        """
        if self.proxy is not None:
            self.proxy.requires_grad_(False)  # a fixed function here: no gradient is computed for its own weights
        parts = self.config.gradient_accumulation
        means: dict[str, Tensor] = {}
        with self.model.training(), ExitStack() as defended:
            for defence in self.defences:
                defended.enter_context(defence.gradients(step))
            for part in range(parts):
                values = self._loss(*(ready or self._maps(self._lora_batches(step * parts + part))))
                self.scaler.scale(values["loss"] / parts).backward()
                for name, value in values.items():
                    means[name] = means.get(name, 0) + value.detach() / parts
        self._average(self.parameters, means)
        self.scaler.unscale_(self.optimiser)
        means["grad_norm"] = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        self.finite = self.finite & means["loss"].isfinite()
        if not self.scaler.is_enabled():  # an overflow in fp16 is what the scaler is for: it skips the step
            self.finite = self.finite & means["grad_norm"].isfinite()
        return means

    def _loss(self, maps: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Loss, adaptation loss and MI gain, with graph, from the maps of `_lora_batches`."""
        count = self.config.batch_size if self.proxy is not None else len(maps)  # a defence may draw more or fewer
        values = self._adaptation_loss(maps[:count], t[:count])
        adaptation_loss = values["adaptation_loss"]
        if self.proxy is None:
            return {"loss": self.objective.loss(adaptation_loss, None)} | values
        # The attacker sees L_ada's own maps when draws are shared, those of the second draw otherwise.
        first = count if self.config.draws == "independent" else 0
        gain = self._gain(self.proxy(maps[first:], t[first:]), count)
        return {"loss": self.objective.loss(adaptation_loss, gain)} | values | {"gain": gain}

    def _adaptation_loss(self, maps: Tensor, t: Tensor) -> dict[str, Tensor]:
        """L_ada over the batch, after the defences have had their say, and their numbers."""
        if not self.defences:
            return {"adaptation_loss": maps.mean()}
        losses = maps.flatten(1).mean(1)
        numbers: dict[str, Tensor] = {}
        for defence in self.defences:
            losses, more = defence.losses(losses, t)
            numbers |= more
        return {"adaptation_loss": losses.mean()} | numbers

    def _gain(self, logits: Tensor, members: int) -> Tensor:
        if self.config.mi_gain == "full":
            return mi_gain(logits[:members], logits[members:])
        gain = mi_gain(logits, None)
        return 2 * gain if self.config.mi_gain == "authors" else gain

    # ----- drawing and mapping ----------------------------------------------------------------------------------
    def _lora_batches(self, index: int) -> list[Batch]:
        """What a LoRA step looks at: a batch of D_tr, and what the MI gain needs beyond it."""
        train = self._batch(self.pools.train, index, "train")
        batches = [train]
        if self.proxy is not None and self.config.draws == "independent":
            again = self._batch(self.pools.train, index, "second draw")
            batches.append(replace(train, t=again.t, noise=again.noise))
        if self.proxy is not None and self.config.mi_gain == "full":
            batches.append(self._batch(self.pools.aux_nonmembers, index, "full gain"))
        return batches

    def _proxy_batches(self, index: int) -> list[Batch]:
        """What a proxy step looks at: auxiliary members, then as many auxiliary non-members."""
        return [self._batch(pool, index, "proxy") for pool in (self.pools.aux_members, self.pools.aux_nonmembers)]

    def _proxy_maps(self, index: int) -> Maps:
        with torch.inference_mode():  # cheaper than no_grad, by up to a fifth for small batches
            maps, t = self._maps(self._proxy_batches(index))
        return maps.clone(), t  # the clone may be kept for a backward pass

    @property
    def _one_call(self) -> bool:
        """Whether both players' maps may come from one call: the LoRA is then the same in both, and it pays."""
        config = self.config
        positions = config.batch_size * math.prod(self.model.latent_shape[1:])
        alone = config.proxy.steps == 1 and config.gradient_accumulation == 1
        return positions <= ONE_CALL_POSITIONS and alone and not config.lora.dropout

    def _both(self, step: int) -> tuple[Maps, Maps]:
        """Maps for the proxy step, without graph, and for the LoRA step, with it, through one UNet call."""
        batches = self._lora_batches(step)
        count = sum(len(batch.t) for batch in batches)
        maps, t = self._maps([*batches, *self._proxy_batches(step)])
        return (maps[count:].detach(), t[count:]), (maps[:count], t[:count])

    def _batch(self, pool: Pool, index: int, purpose: str) -> Batch:
        """Batch `index` of this process from the stream of samples for one purpose."""
        draw = self._draw(pool, index, f"{purpose}: {pool.name}")
        t, noise = timesteps_and_noise(
            draw.places, self.model.latent_shape, self.model.train_timesteps, draw.stream, self.config.seed
        )
        batch = Batch(pool, draw, draw.rows, draw.rows, self._send(t), self._send(noise))
        for defence in self.defences:
            batch = defence.batch(batch)
        return batch

    def _draw(self, pool: Pool, index: int, stream: str) -> Draw:
        for defence in self.defences:
            if (draw := defence.draw(pool, index)) is not None:
                return draw
        a, seed = self.accelerator, self.config.seed
        where = places(self.config.batch_size, index, a.process_index, a.num_processes)
        return Draw(stream, where, rows(where, len(pool), stream, seed))

    def _send(self, x: Tensor) -> Tensor:
        return sent(x, self.model.device)

    def _maps(self, batches: Sequence[Batch]) -> Maps:
        """Maps of all batches, one after another, through one UNet call."""
        latents = torch.cat([batch.pool.latents[self._send(batch.rows)] for batch in batches])
        t, noise = torch.cat([batch.t for batch in batches]), torch.cat([batch.noise for batch in batches])
        precision = self.config.precision
        with torch.autocast(self.model.device.type, dtype=DTYPES[precision], enabled=precision != "fp32"):
            return self.model.error_map(latents, t, noise, self._contexts(batches)), t

    def _contexts(self, batches: Sequence[Batch]) -> Tensor:
        """Caption embeddings; where the text encoder is trained, each different caption goes through it once."""
        cached = [
            batch.pool.contexts[self._send(batch.captions)] for batch in batches if batch.pool.contexts is not None
        ]
        if cached:
            return torch.cat(cached)
        captions = [batch.pool.caption(row) for batch in batches for row in batch.captions.tolist()]
        place = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        return self.model.encode_captions(list(place))[self._send(torch.tensor([place[c] for c in captions]))]

    # ----- around the passes ------------------------------------------------------------------------------------
    def _average(self, parameters: Iterable[nn.Parameter], numbers: dict[str, Tensor]) -> None:
        """Replace gradients and numbers by their means over all processes, in one exchange."""
        if self.accelerator.num_processes == 1:
            return
        local = [p.grad for p in parameters if p.grad is not None] + list(numbers.values())
        flat = self.accelerator.reduce(torch.cat([x.flatten() for x in local]), "mean")
        for x, mean in zip(local, flat.split([x.numel() for x in local]), strict=True):
            x.copy_(mean.view_as(x))


def _seed_global(seed: int, device: torch.device) -> None:
    """`torch.manual_seed` for one device: the original formats a stack trace for every absent backend."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
