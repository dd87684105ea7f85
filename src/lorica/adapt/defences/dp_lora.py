"""DP-SGD on the LoRA: a step shows provably little of any one picture."""

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lorica.adapt.defences.accounting import Account
from lorica.adapt.defences.base import DEFENCES, Defence
from lorica.adapt.pools import Draw, Pool
from lorica.config import Config
from lorica.devices import sent
from lorica.diffusion import LatentDiffusion
from lorica.diffusion.per_sample import PerSampleGradients, clipped_sum
from lorica.errors import LoricaError

if TYPE_CHECKING:
    from lorica.adapt.config import AdaptConfig

REFUSED = {"early-stopping": "stops by looking at the pictures", "skip-low-loss": "lets pictures weigh one another"}


class DpLoraConfig(Config):
    """The guarantee, or the noise."""

    epsilon: float | None = Field(None, gt=0, description="the guarantee; sigma is found for it")
    sigma: float | None = Field(None, gt=0, description="noise multiplier; epsilon follows from it")
    delta: float = Field(1e-5, gt=0, lt=1, description="of (epsilon, delta); less than 1 / pictures")
    max_norm: float = Field(1.0, gt=0, description="each picture's gradient is clipped to this norm")
    accountant: Literal["rdp", "prv"] = Field("rdp", description="Opacus' Renyi accountant, or its tighter PRV one")
    deterministic: bool = Field(
        False,
        description="pictures and noise from the seed, for tests: who knows it takes the noise away, and nothing is "
        "guaranteed",
    )


@DEFENCES.register("dp-lora")
class DpLora(Defence[DpLoraConfig]):
    """theta -= eta/B (sum over a Poisson batch of clip(g_i, C) + N(0, sigma^2 C^2)), B the expected batch size.

    All that must stay unknown (who is in a batch, t and eps, the noise) is a function of the step and of one secret
    key, from the operating system at the start of a run. It lies in the checkpoint, so that a resumed run goes on in
    the same bits, and nowhere else.
    """

    summary = "differential privacy: Poisson batches, gradients clipped per picture, Gaussian noise (DP-SGD)"
    source = "arXiv 1607.00133, algorithm 1; on LoRA: arXiv 2406.01355"
    Options = DpLoraConfig
    alone = True
    settles = frozenset({"steps"})  # the guarantee is for so many

    def __init__(self, options: DpLoraConfig, config: "AdaptConfig", members: int) -> None:
        super().__init__(options, config, members)
        if config.batch_size > members:
            raise LoricaError(
                f"defence dp-lora: batches of {config.batch_size} from {members} pictures", "Lower --batch-size."
            )
        if options.delta * members >= 1:
            raise LoricaError(
                f"defence dp-lora: with {members} pictures, delta {options.delta:g} allows to publish one of them",
                f"Set its delta below {1 / members:.2g}.",
            )
        self.expected, self.rate = config.batch_size, config.batch_size / members
        self.account = Account(self.rate, options.delta, options.accountant)
        self.sigma = options.sigma or self.account.sigma(options.epsilon or math.inf, config.steps)
        self.account.epsilon(self.sigma, config.steps)  # says now, not in the end, what is missing
        seeded = hashlib.sha256(f"dp-lora\x1f{config.seed}".encode()).digest()
        self.key = seeded if options.deterministic else os.urandom(32)

    @classmethod
    def check(cls, options: DpLoraConfig, config: "AdaptConfig") -> None:
        if (options.epsilon is None) == (options.sigma is None):
            raise LoricaError("defence dp-lora needs either epsilon or sigma", "E.g. --set defences.dp-lora.epsilon=8")
        wrong = {
            f"objective {config.objective}": config.objective != "lora",
            "gradient_accumulation": config.gradient_accumulation > 1,
            "gradient_checkpointing": config.gradient_checkpointing,
            "precision fp16": config.precision == "fp16",
            "lora.text_encoder": config.lora.text_encoder,
            "lora.dropout": config.lora.dropout > 0,
            **{f"defence {name}, which {why}": name in config.defences for name, why in REFUSED.items()},
        }
        if any(wrong.values()):
            named = ", ".join(what for what, is_wrong in wrong.items() if is_wrong)
            raise LoricaError(
                f"defence dp-lora does not go with: {named}", "It is made for plain --objective lora in fp32 or bf16."
            )

    def attach(self, model: LatentDiffusion, parameters: list[nn.Parameter]) -> None:
        self.recorder, self.device = PerSampleGradients(model.unet), model.device

    def draw(self, pool: Pool, index: int) -> Draw:
        rows = np.flatnonzero(self._random("pictures", index).random(len(pool)) < self.rate)
        self.count = len(rows)
        rows = rows if self.count else np.zeros(1, dtype=np.int64)  # one picture that will count for nothing
        places = [index * len(pool) + int(row) for row in rows]
        return Draw(f"dp-lora {self.key.hex()}", places, torch.from_numpy(rows))

    def losses(self, losses: Tensor, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return losses if self.count else losses * 0, {"pictures": torch.full_like(losses[0], self.count)}

    @contextmanager
    def gradients(self, step: int) -> Iterator[None]:
        with self.recorder as recorded:
            yield
        # The loss is a mean over the batch: one picture's own gradient is that many times larger.
        own = [gradient * max(1, self.count) for gradient in recorded.gradients()]
        sums, random = clipped_sum(own, self.options.max_norm), self._random("noise", step)
        for parameter, total in zip(recorded.parameters, sums, strict=True):
            noise = torch.from_numpy(random.standard_normal(tuple(total.shape), dtype=np.float32))
            spread = self.sigma * self.options.max_norm
            parameter.grad = (total + spread * sent(noise, self.device)) / self.expected

    def facts(self, steps: int) -> dict[str, Any]:
        epsilon, o = self.account.epsilon(self.sigma, steps), self.options
        claimed: dict[str, float | None] = {"epsilon": epsilon}
        if o.deterministic:
            claimed = {"epsilon": None, "epsilon_if_the_seed_were_secret": epsilon}
        return claimed | {
            "delta": o.delta, "sigma": self.sigma, "sampling_rate": self.rate, "steps": steps, "max_norm": o.max_norm,
            "accountant": o.accountant, "unit": "one picture with its caption, added or removed",
        }  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        return {"key": torch.tensor(list(self.key), dtype=torch.uint8)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.key = bytes(tensors["key"].tolist())

    def _random(self, what: str, step: int) -> np.random.Generator:
        digest = hashlib.sha256(self.key + f"\x1f{what}\x1f{step}".encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
