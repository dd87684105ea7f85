"""GSA: the size of the gradient that a picture would send into each tensor of the LoRA."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor, nn

from lorica.audit.attacks.base import Attack, Groups, register
from lorica.config import Config
from lorica.errors import LoricaError

if TYPE_CHECKING:
    from lorica.audit.queries import Ask, Sitting


class GsaOptions(Config):
    draws: int = Field(10, ge=1, description="(t, eps) per picture (paper: 10)")
    form: Literal["gsa1", "gsa2"] = Field(
        "gsa1",
        description="gsa1: norms of the gradient of the loss averaged over the draws; gsa2: norms of the gradient at "
        "each draw, averaged; takes one backward pass per draw",
    )


@register("gsa")
class GsaAttack(Attack[GsaOptions]):
    """Score = log-odds of boosted trees on |d loss(x) / d w|_2, one number for each LoRA tensor w of the UNet.

    The trees are fitted to shadows alone: a row for each picture of each shadow, the label being whether it was a
    member there. They see nothing of the audited model and no label of it, so that auxiliary and test scores come
    about alike. A LoRA on the text encoder is left out of account.
    """

    summary = "norms of the loss gradient in the LoRA's tensors; boosted trees trained on shadow LoRAs"
    source = "Pang et al., PoPETs 2025 (arXiv 2308.06405), on LoRA weights, with scikit-learn's trees for XGBoost"
    threat_model = "white"
    needs_shadows = True
    needs_lora = True
    Options = GsaOptions

    @property
    def queries(self) -> int:
        return self.options.draws

    @property
    def measurement(self) -> dict[str, Any]:
        return {"kind": "gradients", "draws": self.options.draws, "form": self.options.form}

    def ask(self, sitting: "Sitting") -> "Ask":
        """{"norms": (N, LoRA tensors of the UNet)}."""
        yield from ()  # gradients are not predictions: no query can be shared
        weights = [weight for name, weight in sitting.model.unet.named_parameters() if "lora_" in name]
        with torch.inference_mode(False), torch.enable_grad(), _differentiable(weights):
            norms = [self._norms(self._losses(sitting, row), weights) for row in range(len(sitting.encoded))]
        return {"norms": torch.stack(norms).cpu().numpy()}

    def _losses(self, sitting: "Sitting", row: int) -> Tensor:
        """(draws,) adaptation losses of one picture, with graph."""
        one, model = sitting.alone(row), sitting.model
        queries = [one.draw(k) for k in range(self.options.draws)]
        t, noise = (torch.cat([getattr(query, part) for query in queries]) for part in ("t", "noise"))
        latents, contexts = (
            x.clone().to(model.device).expand(len(queries), *x.shape[1:])
            for x in (one.encoded.latents, one.encoded.contexts)
        )
        return model.error_map(latents, t, noise, contexts).flatten(1).mean(1)

    def _norms(self, losses: Tensor, weights: Sequence[nn.Parameter]) -> Tensor:
        """(tensors,) float64."""
        parts = [losses.mean()] if self.options.form == "gsa1" else list(losses)
        gradients = (torch.autograd.grad(part, weights, retain_graph=part is not parts[-1]) for part in parts)
        return torch.stack([torch.stack([g.double().norm() for g in each]) for each in gradients]).mean(0)

    def score(self, groups: Groups, seed: int) -> dict[str, NDArray[np.float64]]:
        rows = np.concatenate([f["shadow_norms"].reshape(-1, f["norms"].shape[1]) for f in groups.values()])
        labels = np.concatenate([f["shadow_in"].ravel() for f in groups.values()])
        if labels.all() or not labels.any():
            raise LoricaError("there are too few shadows: no picture is a member, or all are", "Train more shadows.")
        trees = HistGradientBoostingClassifier(max_iter=200, learning_rate=0.05, max_leaf_nodes=8, random_state=seed)
        trees.fit(rows, labels)
        return {group: trees.decision_function(features["norms"]) for group, features in groups.items()}


@contextmanager
def _differentiable(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let gradients flow into frozen weights inside the block."""
    before = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, required in zip(weights, before, strict=True):
            weight.requires_grad_(required)
