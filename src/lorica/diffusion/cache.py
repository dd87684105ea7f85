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
from lorica.diffusion.model import LatentDiffusion
from lorica.errors import LoricaError
from lorica.progress import bar

CHUNK = 32  # pictures or captions per call
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
    latent_keys = [_key(p.sha256, model.vae_fingerprint, str(model.resolution)) for p in pictures]
    text_keys = [_key(p.caption, model.text_fingerprint) for p in pictures]

    @torch.inference_mode()
    def captions(rows: Sequence[int]) -> Tensor:
        with model.base_only():  # the cache's key does not name a LoRA
            return model.encode_captions([pictures[i].caption for i in rows])

    def latents(rows: Sequence[int]) -> Tensor:
        return model.encode_pictures(pixels([pictures[i] for i in rows], model.resolution))

    return Encoded(
        _through_cache("encoding pictures", latent_keys, latents, folder and folder / "latents"),
        _through_cache("encoding captions", text_keys, captions, folder and folder / "captions"),
        tuple(p.id for p in pictures),
    )


def _key(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def _through_cache(
    what: str, keys: Sequence[str], compute: Callable[[Sequence[int]], Tensor], folder: Path | None
) -> Tensor:
    """One row per key: from the cache, or computed (each key once) and stored."""
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    rows = {key: stored for key in first if (stored := _read(folder, key)) is not None}
    missing = sorted(i for key, i in first.items() if key not in rows)
    with bar() as progress:
        task = progress.add_task(what, total=len(missing), visible=bool(missing))
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            values = compute(chunk).float().cpu()
            if not values.isfinite().all():
                raise LoricaError(f"{what} gave numbers that are not finite", "Use a higher --precision, e.g. fp32.")
            for i, value in zip(chunk, values, strict=True):
                rows[keys[i]] = value.clone(memory_format=torch.contiguous_format)
                if folder is not None:
                    write_bytes(_file(folder, keys[i]), save({_TENSOR: rows[keys[i]]}))
            progress.update(task, advance=len(chunk))
    return torch.stack([rows[key] for key in keys])


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
