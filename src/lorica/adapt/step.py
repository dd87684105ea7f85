"""One step of the min-max game: the proxy attacker learns, then the LoRA (arXiv 2402.11989, algorithms 1 and 2).

Passes per step, in units of one forward (F) or backward (B) over a batch of B pictures:

    lora                    1 F + 1 B
    shared draws            1 F + 1 B, and 2 F without graph for the proxy
    independent draws       2 F + 2 B in one call, and 2 F without graph
    mi_gain: full           1 F + 1 B more, for the auxiliary non-members
"""

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call

from lorica.adapt.config import AdaptConfig
from lorica.adapt.draws import batch_rows, stable_seed, timesteps_and_noise
from lorica.adapt.gain import mi_gain
from lorica.adapt.objectives import OBJECTIVES
from lorica.adapt.proxy import Proxy
from lorica.diffusion import LatentDiffusion


@dataclass(frozen=True)
class Pool:
    """Encoded pictures of one group on the training device; `contexts` is None while the text encoder is trained."""

    name: str
    latents: Tensor
    contexts: Tensor | None
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(frozen=True)
class Pools:
    """What a step may draw from: D_tr, and the two halves of D_aux."""

    train: Pool
    aux_members: Pool
    aux_nonmembers: Pool


class Step:
    """Runs training steps. Holds no random state: step k is a function of the weights and k.

    Args:
        model: with the LoRA injected.
        pools: encoded pictures.
        parameters: of the LoRA.
        optimiser: of the LoRA.
        proxy: the attacker h; None for objectives without one.
        proxy_optimiser: of h.
        config: of the run.
        accelerator: moves gradients between processes and scales them in fp16.
    """

    def __init__(
        self, model: LatentDiffusion, pools: Pools, parameters: list[nn.Parameter], optimiser: torch.optim.Optimizer,
        proxy: Proxy | None, proxy_optimiser: torch.optim.Optimizer | None, config: AdaptConfig, accelerator: Accelerator,
    ) -> None:  # fmt: skip
        self.model, self.pools, self.parameters, self.optimiser = model, pools, parameters, optimiser
        self.proxy, self.proxy_optimiser = proxy, proxy_optimiser
        self.config, self.accelerator = config, accelerator
        self.objective = OBJECTIVES[config.objective](config.lam, config.delta)

    def __call__(self, step: int) -> dict[str, Tensor]:
        """Step `step` (from 0). Returns detached scalars on the device: loss, adaptation_loss, gain, proxy_gain."""
        # Only dropout uses the global generator; seeding it here keeps a resumed run on the same track.
        torch.manual_seed(stable_seed(self.config.seed, "dropout", step, self.accelerator.process_index))
        if self.proxy is None:
            return self.lora_step(step)
        if self.config.order == "paper":
            return self.proxy_step(step) | self.lora_step(step)
        return self.lora_step(step) | self.proxy_step(step)

    def proxy_step(self, step: int) -> dict[str, Tensor]:
        """omega += eta_1 grad G(h_omega, S_aux, f): the attacker ascends on fresh auxiliary pictures."""
        assert self.proxy is not None and self.proxy_optimiser is not None
        count = self.config.batch_size
        gain = torch.zeros(())
        for inner in range(self.config.proxy.steps):
            index = step * self.config.proxy.steps + inner
            members = self._rows(self.pools.aux_members, index)
            nonmembers = self._rows(self.pools.aux_nonmembers, index)
            t, noise = self._draw("proxy", index, 2 * count)
            with torch.no_grad():
                maps = self._maps([(self.pools.aux_members, members, 1), (self.pools.aux_nonmembers, nonmembers, 1)], t, noise)
            logits = self.proxy(maps, t)
            gain = mi_gain(logits[:count], logits[count:])
            self.proxy_optimiser.zero_grad(set_to_none=True)
            (-gain).backward()
            self._average_proxy_gradients()
            self.proxy_optimiser.step()
        return {"proxy_gain": gain.detach()}

    def lora_step(self, step: int) -> dict[str, Tensor]:
        """A, B -= eta_2 grad L, on a batch of D_tr."""
        parts = self.config.gradient_accumulation
        totals: dict[str, Tensor] = {}
        for part in range(parts):
            with self._unsynchronised() if part < parts - 1 else nullcontext():
                values = self._loss(step * parts + part)
                self.accelerator.backward(values["loss"] / parts)
            for name, value in values.items():
                totals[name] = totals.get(name, 0) + value.detach() / parts
        totals["grad_norm"] = self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return totals

    def _loss(self, index: int) -> dict[str, Tensor]:
        count = self.config.batch_size
        rows = self._rows(self.pools.train, index)
        twice = self.proxy is not None and self.config.draws == "independent"
        groups = [(self.pools.train, rows, 2 if twice else 1)]
        if self.proxy is not None and self.config.mi_gain == "full":
            groups.append((self.pools.aux_nonmembers, self._rows(self.pools.aux_nonmembers, index, "full"), 1))
        t, noise = self._draw("train", index, count * sum(copies for _, _, copies in groups))
        maps = self._maps(groups, t, noise)
        adaptation_loss = maps[:count].mean()
        if self.proxy is None:
            return {"loss": self.objective.loss(adaptation_loss, None), "adaptation_loss": adaptation_loss}
        # The rows that the attacker sees: the same as L_ada's when draws are shared, their second copy otherwise.
        seen = slice(count, None) if self.config.draws == "independent" else slice(None)
        gain = self._gain(self._frozen_proxy(maps[seen], t[seen]), count)
        return {
            "loss": self.objective.loss(adaptation_loss, gain),
            "adaptation_loss": adaptation_loss,
            "gain": gain,
        }

    def _gain(self, logits: Tensor, count: int) -> Tensor:
        if self.config.mi_gain == "full":
            return mi_gain(logits[:count], logits[count:])
        gain = mi_gain(logits, None)
        return 2 * gain if self.config.mi_gain == "authors" else gain

    def _frozen_proxy(self, maps: Tensor, t: Tensor) -> Tensor:
        """The attacker as a fixed function: no gradient is computed for its own weights."""
        assert self.proxy is not None
        weights = {name: p.detach() for name, p in self.proxy.named_parameters()}
        return functional_call(self.proxy, weights, (maps, t))

    # ----- drawing and mapping ----------------------------------------------------------------------------------
    def _rows(self, pool: Pool, index: int, purpose: str = "") -> Tensor:
        a = self.accelerator
        rows = batch_rows(len(pool), pool.name + purpose, self.config.batch_size, index, self.config.seed, a.process_index, a.num_processes)
        return rows.to(pool.latents.device, non_blocking=True)

    def _draw(self, purpose: str, index: int, count: int) -> tuple[Tensor, Tensor]:
        t, noise = timesteps_and_noise(
            count, self.model.latent_shape, self.model.train_timesteps, purpose, index, self.config.seed,
            self.accelerator.process_index,
        )  # fmt: skip
        device = self.model.device
        return t.to(device, non_blocking=True), noise.to(device, non_blocking=True)

    def _maps(self, groups: list[tuple[Pool, Tensor, int]], t: Tensor, noise: Tensor) -> Tensor:
        """Squared-error maps through one UNet call, of groups (pool, rows, copies); captions are encoded once."""
        latents = torch.cat([pool.latents[rows] for pool, rows, copies in groups for _ in range(copies)])
        contexts = [self._contexts(pool, rows).repeat(copies, 1, 1) for pool, rows, copies in groups]
        return self.model.error_map(latents, t, noise, torch.cat(contexts))

    def _contexts(self, pool: Pool, rows: Tensor) -> Tensor:
        if pool.contexts is not None:
            return pool.contexts[rows]
        return self.model.encode_captions([pool.captions[i] for i in rows.tolist()])

    def _average_proxy_gradients(self) -> None:
        assert self.proxy is not None
        if self.accelerator.num_processes == 1:
            return
        gradients = [p.grad for p in self.proxy.parameters() if p.grad is not None]
        flat = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _unsynchronised(self) -> ExitStack:
        """Leave out the exchange of gradients between processes until the last accumulated batch."""
        stack = ExitStack()
        for module in (self.model.unet, self.model.text_encoder):
            if isinstance(module, nn.parallel.DistributedDataParallel):
                stack.enter_context(self.accelerator.no_sync(module))
        return stack
