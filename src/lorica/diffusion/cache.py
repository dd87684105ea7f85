"""Latents and caption embeddings, encoded once: keyed by content and model hash, written atomically, resumable."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lorica.artefacts import write_bytes
from lorica.data.pictures import Picture, pixels
from lorica.data.views import View
from lorica.diffusion.model import LatentDiffusion
from lorica.errors import LoricaError
from lorica.progress import bar

_TENSOR = "x"


@dataclass(frozen=True)
class Encoded:
    """Pictures as the UNet sees them: latents (N, C, h, w), contexts (N, L, D), float32 on the CPU; ids (N,)."""

    latents: Tensor
    contexts: Tensor
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> "Encoded":
        """Some of them, in the order of `rows`."""
        index = torch.as_tensor(rows, dtype=torch.long)
        return Encoded(self.latents[index], self.contexts[index], tuple(self.ids[i] for i in rows))


def encode(model: LatentDiffusion, pictures: Sequence[Picture], folder: Path | None = None) -> Encoded:
    """Encode pictures and captions, taking from the cache what is there.

    One file per picture (key: picture hash, VAE hash, resolution) and per caption (key: caption, text-encoder hash).
    A killed run has kept what it encoded. Latents are as private as the pictures: keep the folder where they are.

    Args:
        model: encodes what is missing. A LoRA on its text encoder is left out; `encode_captions` has it.
        pictures: in the order of the result.
        folder: the cache; None keeps nothing.

    Raises:
        LoricaError: the folder cannot be written or the disk is full (what was encoded before stays), a picture has
            vanished, or the model's numbers overflow.
    """
    latents = encode_latents(model, pictures, folder)
    contexts = encode_captions(model, [p.caption for p in pictures], folder)
    return Encoded(latents, contexts, tuple(p.id for p in pictures))


def encode_latents(
    model: LatentDiffusion,
    pictures: Sequence[Picture],
    folder: Path | None = None,
    views: Sequence[View] | None = None,
) -> Tensor:
    """Latents (N, C, h, w), float32 on the CPU, of pictures or of one view of each; otherwise as `encode`."""
    seen = views or [View()] * len(pictures)
    keys = [
        _key(p.sha256, model.vae_fingerprint, str(model.resolution), *filter(None, [view.key]))
        for p, view in zip(pictures, seen, strict=True)
    ]

    def latent(row: int) -> Tensor:
        return model.encode_pictures(seen[row](pixels([pictures[row]], model.resolution)))[0]

    return _through_cache("encoding pictures", keys, latent, folder and folder / "latents")


def encode_captions(model: LatentDiffusion, captions: Sequence[str], folder: Path | None = None) -> Tensor:
    """Embeddings (N, L, D), float32 on the CPU, of captions without a LoRA; otherwise as `encode`."""
    keys = [_key(caption, model.text_fingerprint) for caption in captions]

    @torch.inference_mode()
    def context(row: int) -> Tensor:
        return model.encode_captions([captions[row]])[0]

    with model.base_only():  # no key of the cache names a LoRA
        return _through_cache("encoding captions", keys, context, folder and folder / "captions")


def _key(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def _through_cache(what: str, keys: Sequence[str], compute: Callable[[int], Tensor], folder: Path | None) -> Tensor:
    """One row per key: from the cache, or computed (each key once) and stored.

    One at a time: rounding depends on what else is in a batch, and nothing about a picture may depend on its company,
    nor a resumed run on where it was interrupted.
    """
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    values = {key: stored for key in first if (stored := _read(folder, key)) is not None}
    missing = sorted(row for key, row in first.items() if key not in values)
    with bar() as progress:
        task = progress.add_task(what, total=len(missing), visible=bool(missing))
        for row in missing:
            value = compute(row).float().cpu().contiguous()
            if not value.isfinite().all():
                raise LoricaError(f"{what} gave numbers that are not finite", "Use a higher --precision, e.g. fp32.")
            values[keys[row]] = value
            if folder is not None:
                write_bytes(_file(folder, keys[row]), save({_TENSOR: value}))
            progress.advance(task)
    return torch.stack([values[key] for key in keys])


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}.safetensors"


def _read(folder: Path | None, key: str) -> Tensor | None:
    """A stored tensor; None where it is absent or damaged, and so has to be encoded again."""
    if folder is None:
        return None
    try:
        return load_file(_file(folder, key))[_TENSOR]
    except (OSError, SafetensorError, KeyError):
        return None
