"""The training loop's parts: a step, an epoch's bookkeeping, validation, and what a resumed run must find again."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from lorica.checkpoint import load_state, momenta, restore_momenta, save_state
from lorica.data.batches import Augment, Batches
from lorica.data.label_split import LabelledSplit
from lorica.data.labelled import LabelledSet
from lorica.devices import sent
from lorica.epochs import RESUME, EpochTrainer
from lorica.errors import LoricaError
from lorica.finetune.config import FEW_PICTURES, FinetuneConfig
from lorica.finetune.ema import Average
from lorica.finetune.methods import Method
from lorica.finetune.schedule import Decision, schedule_of
from lorica.finetune.similarity import gradient_similarity
from lorica.robustness.folding import Folded
from lorica.robustness.pgd import Model, crafting, cross_entropy, n_fgsm, pgd
from lorica.seeds import stable_seed

BEST, BEST_AVERAGE = "best.safetensors", "best_average.safetensors"
LAYER = "layer/"
"""What the names of single parameters' similarities begin with."""


class Trainer(EpochTrainer):
    """A method, its optimiser and its pictures.

    Every draw of a step is a function of the seed, the epoch and the step, so that no generator is part of the state.

    Args:
        config: of the run.
        accelerator: the processes.
        method: on its device.
        split: training and validation pictures; the test set is not looked at.
    """

    def __init__(self, config: FinetuneConfig, accelerator: Accelerator, method: Method, split: LabelledSplit) -> None:
        super().__init__(accelerator, method, precision=config.precision, channels_last=config.channels_last)
        self.config, self.method, self.split = config, method, split
        trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
        self.initial_rate = config.initial_rate(method.classifier.architecture.size)
        self.optimiser = torch.optim.SGD(trained, self.initial_rate, config.momentum, weight_decay=config.weight_decay)
        self.schedule: Any = schedule_of(
            config.automatic, self.initial_rate, config.epochs, config.schedule_every, config.milestones
        )
        self.average = Average(method.classifier, config.ema) if config.ema else None
        self.best_average = -math.inf
        size = min(config.batch_size, len(split.train) // self.world * self.world)
        if size // self.world < method.smallest:
            raise LoricaError(
                f"a batch of {size} pictures gives each of {self.world} process(es) fewer than the {method.smallest} "
                f"that method {config.method} needs",
                "Give more pictures or a larger --batch-size, or start fewer processes.",
            )
        few = len(split.val) < FEW_PICTURES
        self.judged_by = config.judged_by if config.judged_by != "auto" else "loss" if few else "accuracy"
        self.batches = Batches(
            split.train,
            size,
            seed=config.seed,
            device=self.device,
            augment=Augment() if config.augment else None,
            drop_last=True,
            shard=(self.rank, self.world),
        )
        self._passes = -(-config.epoch_steps // len(self.batches))
        self.steps_per_epoch = self._passes * len(self.batches)
        self._running = self._known = 0.0
        self._folded: Folded | None = None
        self._compared = self._evenly_spaced(config.similarity_batches)
        self._in_order: dict[int, Batches] = {}

    # ----- one step -----------------------------------------------------------------------------------------------
    def step(self, *batch: Tensor) -> None:
        """Craft adversarial pictures, take one step on the method's loss, follow it with the average.

        Args:
            batch: pixels (N, 3, H, W) in [0, 1], and labels (N,).
        """
        pixels, labels = batch
        method, k = self.method, self.step_in_epoch
        pixels = self._laid_out(pixels)
        seed = stable_seed(self.config.seed, "step", self.epoch, k, self.rank)
        torch.manual_seed(seed)  # dropout and the like
        adversarial = pixels
        if method.needs_attack:
            adversarial = self._attacked(pixels, labels, torch.Generator().manual_seed(seed))
        method.train()
        with self._autocast():
            clean, attacked = method(pixels, adversarial)
        clean, attacked = (None if logits is None else logits.float() for logits in (clean, attacked))
        assert attacked is not None
        terms = method.terms(clean, attacked, labels)
        if k in self._compared and method.compared is not None:
            self._compare(terms)
        loss = method.loss(terms)
        loss.backward()
        self._share_gradients("mean")
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(method.classifier)
        self._count({name: term.detach() for name, term in terms.items()} | {"loss": loss.detach()})
        if method.needs_attack:
            self._count_right("adversarial_correct", attacked, labels)
        if clean is not None:
            self._count_right("natural_correct", clean, labels)
        self.step_in_epoch += 1

    def _attacked(self, pixels: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        attack, method = self.config.attack, self.method
        with crafting(method), method.route(), self._autocast():
            loss, model = method.attacker(pixels, labels), self._attackable(pixels)
            if attack.kind == "n-fgsm":
                return n_fgsm(model, pixels, loss, attack.threat, generator=generator)
            start = None
            if attack.start == "uniform":
                start = attack.threat.random(pixels, generator)
            elif attack.start == "gaussian":
                start = pixels + 0.001 * sent(torch.randn(pixels.shape, generator=generator), pixels.device)
            return pgd(model, pixels, loss, attack.threat, steps=attack.steps, step_size=attack.size, start=start)

    def _attackable(self, pixels: Tensor) -> Model:
        """The classifier as it is, for many passes before it changes: `logits`, faster."""
        if self._folded is None:
            self._folded = Folded(self.method.classifier, pixels[:1])
            if self.config.compile:
                self._folded.compile()
        self._folded.refresh()
        folded = self._folded
        return lambda x: folded(x).float()

    def logits(self, pixels: Tensor) -> Tensor:
        """Of the classifier as it is, float32."""
        return self.method.classifier(pixels).float()

    def _compare(self, terms: dict[str, Tensor]) -> None:
        assert self.method.compared is not None
        first, second = (self.method.weights[name] * terms[name] for name in self.method.compared)
        whole, single = gradient_similarity(first, second, self.method.features())
        rows = {"similarity": whole} | {LAYER + name: value for name, value in single.items()}
        for name, value in rows.items():
            self._count({name: value.nan_to_num(0), f"{name}#": value.isfinite().float()})

    def _count_right(self, name: str, logits: Tensor, labels: Tensor) -> None:
        known = labels >= 0  # a label of -1 is none
        self._count({name: ((logits.argmax(1) == labels) & known).float().sum(), f"{name}#": known.float().sum()})

    # ----- one epoch ----------------------------------------------------------------------------------------------
    def begin_epoch(self) -> dict[str, float]:
        """Set the loss weights; returns them, the natural accuracy that they follow from, and the learning rate."""
        needed = self.method.needs_natural_accuracy
        if self.step_in_epoch == 0 and needed:
            self._known = self._natural_accuracy()
            self.method.adjust(self._known)
        row = {"learning_rate": self.optimiser.param_groups[0]["lr"]}
        row |= {"natural_accuracy": self._known} if needed else {}
        return row | {f"weight_{name}": weight for name, weight in self.method.weights.items()}

    def _natural_accuracy(self) -> float:
        """SA on the training set of the part that learns from natural pictures."""
        if self.config.natural_accuracy == "running" and self.epoch:
            return self._running
        self.method.eval()
        return self._tried(self.split.train, self.method.natural_logits)[0]

    def pending(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches that are left of the epoch."""
        done, start = divmod(self.step_in_epoch, len(self.batches))
        for number in range(done, self._passes):
            yield from self.batches.epoch(self.epoch * self._passes + number, start=start if number == done else 0)

    def end_epoch(self) -> dict[str, float]:
        """Means over the epoch's batches; waits for the device."""
        names = list(self.sums)
        together = self.accelerator.reduce(torch.stack([self.sums[name] for name in names]), "mean").tolist()
        sums = dict(zip(names, together, strict=True))
        steps = self.steps_per_epoch
        row = {name: total / steps for name, total in sums.items() if f"{name}#" not in sums and "#" not in name}
        row |= {name: total / sums[f"{name}#"] for name, total in sums.items() if sums.get(f"{name}#")}
        self._running = min(1.0, row.get("natural_correct", 0.0))
        self.sums, self.step_in_epoch = {}, 0
        self.epoch += 1
        self._share_statistics()
        return row

    def validate(self) -> dict[str, float]:
        """Natural and robust accuracy on the validation set, of the weights and of their average."""
        row = self._accuracies("")
        if self.average is not None:
            with self.average.within(self.method.classifier):
                row |= self._accuracies("average_")
        return row

    def decide(self, row: dict[str, float], folder: Path) -> Decision:
        """Keep the best weights, and set the learning rate of the next epoch; perhaps go back to the best weights."""
        decision: Decision = self.schedule.step(self.merit(row))
        if decision.best:
            self._save(folder / BEST, row)
        if self.average is not None and self.merit(row, "average_") > self.best_average:
            self.best_average = self.merit(row, "average_")
            if self.rank == 0:
                save_state(folder / BEST_AVERAGE, {"classifier": self.average.values}, row)
        self.accelerator.wait_for_everyone()
        if decision.reload:
            groups, _ = load_state(folder / BEST)
            self._load_weights(groups)  # the momentum goes on, as in the authors' code
        for group in self.optimiser.param_groups:
            group["lr"] = decision.learning_rate
        return decision

    def merit(self, row: Mapping[str, float], prefix: str = "") -> float:
        """What weights are chosen and the learning rate is set by, of an epoch's `validate`: the higher the better.

        Args:
            row: of the epoch.
            prefix: "average_" for the averaged weights.
        """
        if self.judged_by == "loss":
            return -row[f"val_{prefix}robust_loss"]
        return row[f"val_{prefix}robust"]

    def _accuracies(self, prefix: str) -> dict[str, float]:
        attack = self.config.attack
        self.method.eval()

        def robust(pixels: Tensor, labels: Tensor) -> Tensor:
            model, loss = self._attackable(pixels), cross_entropy(labels)
            return pgd(model, pixels, loss, attack.threat, steps=attack.steps, step_size=attack.size)

        with crafting(self.method), self.method.route():
            natural, _ = self._tried(self.split.val, self.logits)
            accuracy, loss = self._tried(self.split.val, self.logits, robust)
        return {
            f"val_{prefix}natural": natural,
            f"val_{prefix}robust": accuracy,
            f"val_{prefix}robust_loss": loss,
        }

    def _tried(
        self,
        data: LabelledSet,
        logits: Callable[[Tensor], Tensor],
        perturb: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[float, float]:
        """Share of pictures that are classified rightly, and mean cross-entropy, over all processes."""
        totals = torch.zeros(2, device=self.device)
        for pixels, labels in self._ordered(data):
            with self._autocast():
                seen = self._laid_out(pixels)
                seen = seen if perturb is None else perturb(seen, labels)
                with torch.no_grad():
                    said = logits(seen)
                    right = (said.argmax(1) == labels).float().sum()
                    totals += torch.stack([right, F.cross_entropy(said, labels, reduction="sum")])
        right, loss = self.accelerator.reduce(totals, "sum").tolist()
        return right / len(data), loss / len(data)

    def _ordered(self, data: LabelledSet) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's pictures of a part, again and again as they are; few enough stay on the device."""
        mine = range(self.rank, len(data), self.world)
        if not mine:
            return iter(())
        if id(data) not in self._in_order:
            size = max(self.config.batch_size, 256) // self.world
            self._in_order[id(data)] = Batches(data.take(mine), size, seed=0, device=self.device, shuffle=False)
        return self._in_order[id(data)].epoch(0)

    def _share_statistics(self) -> None:
        """Batch-norm statistics of several processes become one, in the average too."""
        averaged = self.average.values.values() if self.average is not None else ()
        for values in (*self.method.buffers(), *averaged) if self.world > 1 else ():
            if values.is_floating_point():
                values.copy_(self.accelerator.reduce(values.clone(), "mean"))

    # ----- state ----------------------------------------------------------------------------------------------------
    def save(self, folder: Path, identity: Mapping[str, str], history: Mapping[str, Any]) -> None:
        """Write all that a resumed run needs."""
        header = {
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "weights": self.method.weights,
            "running": self._running,
            "natural_accuracy": self._known,
            "schedule": self.schedule.state(),
            "learning_rate": self.optimiser.param_groups[0]["lr"],
            "best_average": self.best_average,
            "identity": dict(identity),
            "history": dict(history),
        }
        more = {"sums": self.sums, "momenta": momenta(self.optimiser), "owned": self.owned()}
        self._save(folder / RESUME, header, more)

    def load(self, groups: dict[str, dict[str, Tensor]], header: dict[str, Any]) -> None:
        """Go on from what `save` wrote."""
        self._load_weights(groups)
        restore_momenta(self.optimiser, groups.get("momenta", {}))
        for group in self.optimiser.param_groups:
            group["lr"] = header["learning_rate"]
        self.sums = {name: value.to(self.device) for name, value in groups.get("sums", {}).items()}
        self.epoch, self.step_in_epoch = header["epoch"], header["step_in_epoch"]
        self.method.weights = header["weights"]
        self._running, self._known = header["running"], header["natural_accuracy"]
        self.schedule = type(self.schedule).restored(header["schedule"])
        self.best_average = header["best_average"]
        if self.average is not None:
            self.average.steps = header["average_steps"]
        self.take_own(groups.get("owned", {}))

    def own(self) -> dict[str, Tensor]:
        """With the statistics of the average."""
        if self.average is None:
            return super().own()
        statistics = self.average.values.keys() - dict(self.method.classifier.named_parameters())
        averages = {f"average {name}": self.average.values[name] for name in sorted(statistics)}
        return super().own() | {name: value for name, value in averages.items() if value.is_floating_point()}

    def _save(self, file: Path, header: dict[str, Any], more: dict[str, dict[str, Tensor]] | None = None) -> None:
        if self.rank:
            return
        groups = {"method": self.method.state_dict()} | (more or {})
        if self.average is not None:
            groups["average"] = self.average.values
            header = header | {"average_steps": self.average.steps}
        save_state(file, groups, header)

    def _load_weights(self, groups: dict[str, dict[str, Tensor]]) -> None:
        self.method.load_state_dict(groups["method"])
        if self.average is not None:
            for name, value in groups["average"].items():
                self.average.values[name].copy_(value)

    def _evenly_spaced(self, count: int) -> frozenset[int]:
        total = self.steps_per_epoch
        return frozenset(i * total // min(count, total) for i in range(min(count, total))) if count else frozenset()
