"""What attacks ask of a model: predictions for batches of pictures, each asked once however many attacks want it.

An attack asks in rounds. `Attack.ask` is a generator: it yields the queries of a round, is sent the answers, and
returns its features in the end. `answer` plays all attacks' rounds against one model. Queries of one name are one
query, so that attacks that look at the same place of the noise schedule share the UNet call.

The noise of a picture depends on its content, on what it is drawn for, and on the seed; never on the group, the batch
or the model. Members and non-members, base and LoRA are so measured with one and the same ruler.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lorica.audit.attacks.base import Features
from lorica.diffusion.noise import keyed_noise, keyed_uniform

if TYPE_CHECKING:
    from lorica.diffusion import Encoded, LatentDiffusion


@dataclass(frozen=True, eq=False)
class Query:
    """One UNet call on a batch of pictures, always conditional: there is no guidance.

    Attributes:
        name: equal names mean equal inputs, and the call is made once.
        noisy: z_t (N, C, h, w), as the UNet sees it.
        t: (N,) int64.
        clean: z_0 (N, C, h, w), where the prediction has a target.
        noise: eps (N, C, h, w) likewise.
        caption: the picture's own, or none (the empty caption).
    """

    name: str
    noisy: Tensor
    t: Tensor
    clean: Tensor | None = None
    noise: Tensor | None = None
    own_caption: bool = True


Ask = Generator[Sequence[Query], list[Tensor], Features]
"""Yields the queries of a round, receives the UNet's raw outputs (N, C, h, w) for them, returns features."""


class Sitting:
    """A batch of pictures before one model: makes the queries that attacks ask, and reads the answers.

    Args:
        model: in eval mode.
        encoded: the batch.
        seed: of every draw.
        pixels: gives the batch as the VAE sees it, for attacks that change or compare pictures.
        captions: of the batch, for attacks that prompt the model; all others take them encoded.

    Attributes:
        latents: z_0 (N, C, h, w) float32 on the model's device.

    Raises:
        RuntimeError: a part of the model is in training mode, where dropout would make scores random.
    """

    def __init__(
        self,
        model: "LatentDiffusion",
        encoded: "Encoded",
        seed: int,
        pixels: Callable[[], Tensor] | None = None,
        captions: Sequence[str] = (),
    ) -> None:
        for part in (model.unet, model.text_encoder):
            if any(module.training for module in part.modules()):
                raise RuntimeError(f"{type(part).__name__} is in training mode: an audit needs eval mode")
        self.model, self.encoded, self.seed, self.captions = model, encoded, seed, captions
        self._load_pixels = pixels
        self.latents = encoded.latents.to(model.device)

    def alone(self, row: int) -> "Sitting":
        """One of the pictures by itself."""
        return Sitting(self.model, self.encoded.take([row]), self.seed)

    # ----- questions --------------------------------------------------------------------------------------------
    def draw(self, k: int, *, own_caption: bool = True) -> Query:
        """The k-th of an endless stream of (t, eps) for each picture; attacks that want n take the first n.

        t is uniform over the schedule, as in training, and the first 2^m draws of a picture fall one into each 2^m-th
        of it (van der Corput's sequence, shifted by a number of the picture's own): losses differ by orders of
        magnitude along the schedule, so that this removes most of the variance of their mean.
        """
        place = (keyed_uniform(self.encoded.ids, "stream.t", 0, self.seed) + van_der_corput(k)) % 1
        t = (place * self.model.train_timesteps).long().clamp_max(self.model.train_timesteps - 1)
        query = self._noised(f"stream {k}", self.latents, t, ("stream.noise", k))
        return query if own_caption else replace(query, name=f"{query.name}, no caption", own_caption=False)

    def at(self, place: float, purpose: str, k: int = 0, *, smallest_crop: float | None = None) -> Query:
        """A query at one `place` in [0, 1) of the noise schedule, with the k-th noise for `purpose`.

        With `smallest_crop` it is about a crop of each picture, the k-th, of sides between this share and all.
        """
        t = torch.full((len(self.encoded),), int(place * self.model.train_timesteps))
        name, latents = f"{purpose} {k} at {place:g}", self.latents
        if smallest_crop is not None:
            name, latents = f"{name}, crop {smallest_crop:g}", self._cropped(purpose, k, smallest_crop)
        return self._noised(name, latents, t, (purpose, k))

    def given(self, name: str, noisy: Tensor, t: int) -> Query:
        """A query with latents of the attack's own making, at one timestep; `name` must say how they were made."""
        return Query(f"{name} t={t}", noisy, torch.full((len(noisy),), t, device=noisy.device))

    def _noised(self, name: str, latents: Tensor, t: Tensor, noise_key: tuple[str, int]) -> Query:
        eps = keyed_noise(self.encoded.ids, *noise_key, tuple(latents.shape[1:]), self.seed)
        t, eps = t.to(self.model.device), eps.to(self.model.device)
        return Query(name, self.model.add_noise(latents, t, eps), t, latents, eps)

    def _cropped(self, purpose: str, k: int, smallest: float) -> Tensor:
        """Latents of one crop of each picture: square, placed and sized by keyed draws, scaled to full size."""
        draws = [keyed_uniform(self.encoded.ids, f"{purpose}.{what}", k, self.seed) for what in ("size", "y", "x")]
        crops = []
        for picture, (size, y, x) in zip(self.pixels, torch.stack(draws, dim=1).tolist(), strict=True):
            side = picture.shape[-1]
            kept = max(1, round(side * (smallest + (1 - smallest) * size)))
            top, left = (min(int(place * (side - kept + 1)), side - kept) for place in (y, x))
            crop = picture[None, :, top : top + kept, left : left + kept]
            crops.append(F.interpolate(crop, size=(side, side), mode="bilinear", antialias=True))
        return self.model.encode_pictures(torch.cat(crops)).to(self.model.device)

    @cached_property
    def pixels(self) -> Tensor:
        """The batch as the VAE sees it, (N, 3, H, W) in [-1, 1]."""
        assert self._load_pixels is not None, "this sitting has no pictures, only latents"
        return self._load_pixels()

    # ----- answers ----------------------------------------------------------------------------------------------
    def predict(self, query: Query) -> Tensor:
        """The UNet's raw output."""
        context = self.encoded.contexts.to(self.model.device) if query.own_caption else self._no_caption
        return self.model.predict(query.noisy, query.t, context)

    def error_map(self, query: Query, answer: Tensor) -> Tensor:
        """Squared error (N, C, h, w), float32 on the CPU, against the target of training."""
        assert query.clean is not None and query.noise is not None
        return (answer - self.model.target(query.clean, query.t, query.noise)).square().float().cpu()

    def losses(self, queries: Sequence[Query], answers: Sequence[Tensor]) -> Tensor:
        """Adaptation losses (N, queries) float64: means of error maps (arXiv 2402.11989, eq. 1, per element)."""
        maps = (self.error_map(query, answer) for query, answer in zip(queries, answers, strict=True))
        return torch.stack([one.double().flatten(1).mean(1) for one in maps], dim=1)

    @staticmethod
    def along_schedule(queries: Sequence[Query], values: Tensor) -> Tensor:
        """(N, queries, ...) values with each picture's in the order of its t: of 2^m draws, one in each 2^m-th."""
        order = torch.stack([query.t for query in queries], dim=1).argsort(dim=1).cpu()
        return values[torch.arange(len(order))[:, None], order]

    def noise(self, query: Query, answer: Tensor) -> Tensor:
        """The answer as a prediction of eps, whatever the model predicts."""
        return self.model.predicted_noise(answer, query.noisy, query.t)

    @cached_property
    def _no_caption(self) -> Tensor:
        return self.model.encode_captions([""]).float().expand(len(self.encoded), -1, -1)


def ask_losses(sitting: Sitting, draws: int) -> Ask:
    """{"losses": (N, draws) float64}: adaptation losses at the stream's first draws."""
    queries = [sitting.draw(k) for k in range(draws)]
    return {"losses": sitting.losses(queries, (yield queries)).numpy()}


def ask_error_maps(sitting: Sitting, draws: int) -> Ask:
    """{"maps": (N, draws, C, h, w) float32, "t": (N, draws) in [0, 1)}: the stream's first draws, ordered by t."""
    queries = [sitting.draw(k) for k in range(draws)]
    answers = yield queries
    maps = torch.stack([sitting.error_map(q, a) for q, a in zip(queries, answers, strict=True)], dim=1)
    times = torch.stack([query.t for query in queries], dim=1).cpu() / sitting.model.train_timesteps
    features = {"maps": maps, "t": times.float()}
    return {name: sitting.along_schedule(queries, values).numpy() for name, values in features.items()}


@torch.inference_mode()
def answer(sitting: Sitting, asks: Mapping[str, Ask]) -> dict[str, Features]:
    """Play every attack's rounds to the end; a query that several of them ask, in whatever round, costs one call."""
    known: dict[str, Tensor] = {}
    finished: dict[str, Features] = {}

    def go_on(name: str, answers: list[Tensor] | None) -> None:
        try:
            waiting[name] = asks[name].send(answers)  # type: ignore[arg-type]
        except StopIteration as stop:
            finished[name] = stop.value

    waiting: dict[str, Sequence[Query]] = {}
    for name in asks:
        go_on(name, None)
    while waiting:
        round_, waiting = waiting, {}
        for query in {query.name: query for queries in round_.values() for query in queries}.values():
            if query.name not in known:
                known[query.name] = sitting.predict(query)
        for name, queries in round_.items():
            go_on(name, [known[query.name] for query in queries])
    return finished


def van_der_corput(k: int) -> float:
    """The binary digits of k mirrored at the point: 0, 1/2, 1/4, 3/4, 1/8, ... in [0, 1)."""
    return sum(1 / 2 ** (place + 1) for place, digit in enumerate(reversed(f"{k:b}")) if digit == "1")
