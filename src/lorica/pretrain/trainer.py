"""The loop's parts: a step, an epoch's bookkeeping, and what a resumed run must find again."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from lorica.checkpoint import momenta, restore_momenta, save_state
from lorica.config import load
from lorica.data.batches import Batches
from lorica.data.labelled import LabelledSet
from lorica.devices import sent
from lorica.epochs import RESUME, EpochTrainer
from lorica.pretrain.across import gathered
from lorica.pretrain.config import PretrainConfig
from lorica.pretrain.losses import adversarial_invariance, nt_xent, standard_invariance
from lorica.pretrain.methods import METHODS, Embedded, Method, Pair
from lorica.pretrain.methods.base import in_full, pair
from lorica.pretrain.network import ADVERSARIAL, NATURAL, ContrastiveNetwork
from lorica.pretrain.schedule import Emphasis, learning_rate
from lorica.pretrain.views import Views
from lorica.robustness.folding import Folded
from lorica.robustness.pgd import crafting, pgd
from lorica.seeds import stable_seed
from lorica.vision import Classifier
from lorica.vision.batch_norm import normalise_together, on_route


class Trainer(EpochTrainer):
    """A method, its optimiser and its pictures.

    Every draw of a step is a function of the seed, the epoch and the step, so that no generator is part of the state,
    and is made for the batch of all processes, of which each takes its part.

    Args:
        config: of the run.
        accelerator: the processes.
        method: on its device.
        pictures: to learn from.

    Raises:
        LoricaError: fewer pictures than a batch.
    """

    def __init__(
        self, config: PretrainConfig, accelerator: Accelerator, method: Method, pictures: LabelledSet
    ) -> None:
        # Imported late: timm is an extra, and whoever only wants the configuration does not wait for it.
        from timm.optim.lars import Lars

        super().__init__(accelerator, method, precision=config.precision, channels_last=config.channels_last)
        self.config, self.method = config, method
        # All parameters adapt their rate, biases and batch norms too, as in the authors' code. There the momentum
        # holds past rates; here, as in the library, today's rate multiplies it: it differs where the rate changes.
        self.optimiser = Lars(
            [parameter for parameter in method.parameters() if parameter.requires_grad],
            lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay, trust_coeff=0.001,
            always_adapt=True,
        )  # fmt: skip
        self.pictures = pictures
        self.batches = Batches(
            pictures, config.batch_of(len(pictures)), seed=config.seed, device=self.device, drop_last=True,
            shard=(self.rank, self.world),
        )  # fmt: skip
        if self.world > 1:
            normalise_together(method)
        self.steps_per_epoch = len(self.batches)
        self.emphasis = Emphasis(1.0, 1.0, 1.0)
        self.views = Views(1.0)
        self._folded: Folded | None = None
        self._clock = time.perf_counter()
        self._spent = 0.0

    # ----- one step -----------------------------------------------------------------------------------------------
    def step(self, *batch: Tensor) -> None:
        """Draw two views of each picture, attack them, take one step on the weighted losses.

        Args:
            batch: pixels of this process's part, (N, 3, H, W) in [0, 1].
        """
        (pixels,) = batch
        seed = stable_seed(self.config.seed, "step", self.epoch, self.step_in_epoch)
        torch.manual_seed(stable_seed(seed, self.rank))  # dropout and the like
        natural = self.draw(pixels, seed)
        adversarial = self.attack(natural, seed) if self.config.adversarial else None
        self.method.train()
        with self._autocast():
            embedded = self.method(natural, adversarial, self._laid_out(pixels) if self._needs_originals else None)
        terms = self.terms(embedded)
        weights = self.weights()
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        loss.backward()
        self._share_gradients("sum")
        self._set_rate()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.method.after_step()
        self._count({name: term.detach() for name, term in terms.items()} | {"loss": loss.detach()})
        self._count_alignment(embedded)
        self.step_in_epoch += 1

    def draw(self, pixels: Tensor, seed: int) -> Pair:
        """Two random views of each picture."""
        count, size = len(pixels), (pixels.shape[2], pixels.shape[3])
        mine = slice(self.rank * count, (self.rank + 1) * count)
        i, j = (
            self.views.apply(
                pixels, self.views.draw(self.world * count, size, stable_seed(seed, which)).take(mine).to(self.device)
            )
            for which in ("view i", "view j")
        )
        return self._laid_out(i), self._laid_out(j)

    def attack(self, natural: Pair, seed: int, *, alone: bool = False) -> Pair:
        """Adversarial versions of both views, which raise NT-Xent together: PGD from a uniform start.

        Args:
            natural: both views, (N, 3, H, W) each.
            seed: of the start.
            alone: without the pictures of the other processes, which then need not call it.
        """
        attack, both, t = self.config.attack, torch.cat(natural), self.config.temperature

        def unlike(z: Tensor) -> Tensor:
            """NT-Xent of adversarial views alone, without the regularisers, as in the paper."""
            with torch.autocast(self.device.type, enabled=False):  # as in training: similarities in float32
                z_i, z_j = (part if alone else gathered(part) for part in in_full(z).chunk(2))
                return nt_xent(z_i, z_j, t)

        with crafting(self.method), self.method.attacked(), self._autocast():
            found = pgd(
                self._attackable(both), both, unlike, attack.threat, steps=attack.steps, step_size=attack.size,
                start=self._start(both, seed),
            )  # fmt: skip
        return pair(found)

    def _start(self, both: Tensor, seed: int) -> Tensor:
        """Uniform in the ball; drawn on the CPU for all processes alike."""
        whole = (2, self.world, len(both) // 2, *both.shape[1:])
        noise = torch.rand(whole, generator=torch.Generator().manual_seed(seed))[:, self.rank].flatten(0, 1)
        threat = self.config.attack.threat
        return threat.project(both + threat.eps * (2 * sent(noise, both.device) - 1), both)

    def _attackable(self, views: Tensor) -> Callable[[Tensor], Tensor]:
        """What the attack goes through, with batch norms folded into convolutions."""
        if self._folded is None:
            self._folded = Folded(self.method.attackable(), views[:2])
            if self.config.compile:
                self._folded.compile()
        self._folded.refresh()
        return self._folded

    def terms(self, embedded: Embedded) -> dict[str, Tensor]:
        """The loss terms, of the batch of all processes."""
        t, form = self.config.temperature, self.config.form
        z_i, z_j = map(gathered, embedded.natural)
        i_adv, j_adv = map(gathered, embedded.adversarial) if embedded.adversarial is not None else (z_i, z_j)
        originals = gathered(embedded.originals) if embedded.originals is not None else z_i
        terms = {"natural": nt_xent(z_i, z_j, t)}
        if self.method.robust:
            terms["adversarial"] = nt_xent(i_adv, j_adv, t)
        if self.config.sir:
            terms["sir"] = standard_invariance(z_i, z_j, originals, t, form)
        if self.config.air:
            terms["air"] = adversarial_invariance(z_i, z_j, i_adv, j_adv, originals, t, form)
        return terms

    def weights(self) -> dict[str, float]:
        """Of the terms, in this epoch."""
        return {
            "natural": self.emphasis.natural, "adversarial": self.emphasis.adversarial,
            "sir": self.config.lambda1, "air": self.config.lambda2,
        }  # fmt: skip

    @property
    def _needs_originals(self) -> bool:
        return self.config.invariance != "none"

    def _set_rate(self) -> None:
        done = self.epoch * self.steps_per_epoch + self.step_in_epoch
        rate = learning_rate(
            done + 1,
            steps=self.config.epochs * self.steps_per_epoch,
            warmup=self.config.warmup_steps(self.steps_per_epoch),
            peak=self.config.learning_rate,
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    @torch.no_grad()
    def _count_alignment(self, embedded: Embedded) -> None:
        pairs = {"alignment": embedded.natural, "alignment_adversarial": embedded.adversarial}
        self._count({name: F.cosine_similarity(*pair).mean() for name, pair in pairs.items() if pair is not None})

    # ----- one epoch ----------------------------------------------------------------------------------------------
    def begin_epoch(self) -> dict[str, float]:
        """Set what an epoch stresses; returns it."""
        self.emphasis = self.method.emphasis(self.epoch + 1, self.config.epochs)
        self.views = Views(self.emphasis.strength)
        self._clock = time.perf_counter()
        asked = {"natural": True, "adversarial": self.method.robust, "sir": self.config.sir, "air": self.config.air}
        weights = {f"weight_{name}": weight for name, weight in self.weights().items() if asked[name]}
        return {"strength": self.emphasis.strength} | weights

    def pending(self) -> Iterator[tuple[Tensor]]:
        """The batches that are left of the epoch: pixels alone."""
        return ((pixels,) for pixels, _ in self.batches.epoch(self.epoch, start=self.step_in_epoch))

    def end_epoch(self) -> dict[str, float]:
        """Means over the epoch's batches; waits for the device."""
        names = list(self.sums)
        means = torch.stack([self.sums[name] for name in names]) / self.steps_per_epoch
        row = dict(zip(names, self.accelerator.reduce(means, "mean").tolist(), strict=True))
        row["learning_rate"] = self.optimiser.param_groups[0]["lr"]
        row["seconds"] = self._seconds()
        self.sums, self.step_in_epoch, self._spent = {}, 0, 0.0
        self.epoch += 1
        return row

    def _seconds(self) -> float:
        """Spent on the epoch so far, before and after a resumption."""
        return self._spent + time.perf_counter() - self._clock

    def features(self, route: str | None = None) -> Callable[[Tensor], Tensor]:
        """Of the encoder as it is, (N, D) float32: call inside `crafting(trainer.method)`."""
        encoder = self.method.result().encoder
        with on_route(encoder, route or self.route):
            folded = Folded(encoder, self.batches_example())
        return lambda pixels: folded(self._laid_out(pixels)).float()

    def batches_example(self) -> Tensor:
        """One picture in the shape that the network takes."""
        height, width = self.method.network.encoder.architecture.size
        return self._laid_out(torch.rand(1, 3, height, width).to(self.device))

    @property
    def route(self) -> str:
        """Of the batch norms that are delivered: those of attacked pictures, where the method learns from any."""
        return ADVERSARIAL if self.method.robust else NATURAL

    # ----- state ----------------------------------------------------------------------------------------------------
    def save(self, folder: Path, identity: Mapping[str, str], history: Mapping[str, Any]) -> None:
        """Write all that a resumed run needs."""
        owned = self.owned()
        if self.rank:
            return
        groups = {
            "method": self.method.state_dict(), "sums": self.sums, "momenta": momenta(self.optimiser), "owned": owned,
        }  # fmt: skip
        header = {
            "epoch": self.epoch, "step_in_epoch": self.step_in_epoch, "spent": self._seconds() if self.sums else 0.0,
            "identity": dict(identity), "history": dict(history),
        }  # fmt: skip
        save_state(folder / RESUME, groups, header)

    def load(self, groups: dict[str, dict[str, Tensor]], header: dict[str, Any]) -> None:
        """Go on from what `save` wrote."""
        self.method.load_state_dict(groups["method"])
        restore_momenta(self.optimiser, groups.get("momenta", {}))
        self.sums = {name: value.to(self.device) for name, value in groups.get("sums", {}).items()}
        self.epoch, self.step_in_epoch = header["epoch"], header["step_in_epoch"]
        self._spent = header["spent"]
        self.take_own(groups.get("owned", {}))


def method_of(config: PretrainConfig, classifier: Classifier, device: torch.device) -> Method:
    """The method of a configuration around a backbone, which it takes over."""
    cls = METHODS[config.method]
    network = ContrastiveNetwork(classifier, config.projector_layers)
    method = cls(load(cls.Options, options=config.options), network).to(device)
    if config.channels_last:
        method.to(memory_format=torch.channels_last)
    if config.compile:
        for trained in {method.network, method.result()}:  # and a momentum encoder
            trained.encoder.backbone.compile()
    return method
