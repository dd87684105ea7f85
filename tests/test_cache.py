"""Nothing is encoded twice, nothing stale is used, and an interrupted run has kept what it encoded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from conftest import tiny_pipeline
from lorica.data.pictures import Picture, read_folder
from lorica.diffusion import Encoded, LatentDiffusion, LoraConfig, add_lora, encode
from lorica.errors import LoricaError

CAPTIONS = ["a cat", "a dog", "a cat", "", "a very long caption about a cat and a dog"]


class Counted:
    """A model that remembers what it was asked to encode."""

    def __init__(self, model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = model
        self.pictures: list[int] = []
        self.captions: list[str] = []
        encode_pictures, encode_captions = model.encode_pictures, model.encode_captions

        def pictures(pixels: Tensor) -> Tensor:
            self.pictures.append(len(pixels))
            return encode_pictures(pixels)

        def captions(texts: list[str]) -> Tensor:
            self.captions += texts
            return encode_captions(texts)

        monkeypatch.setattr(model, "encode_pictures", pictures)
        monkeypatch.setattr(model, "encode_captions", captions)

    def encode(self, pictures: list[Picture], folder: Path | None) -> Encoded:
        """Encode, and remember this call only."""
        self.pictures, self.captions = [], []
        return encode(self.model, pictures, folder)

    @property
    def idle(self) -> bool:
        return not self.pictures and not self.captions


@pytest.fixture
def counted(tiny_model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(tiny_model, monkeypatch)


def write_pictures(folder: Path, captions: list[str] = CAPTIONS, seed: int = 0) -> list[Picture]:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    for index, caption in enumerate(captions):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(caption, encoding="utf-8")
    return read_folder(folder, captions_required=False)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    return write_pictures(tmp_path / "pictures")


def stored(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def assert_equal(one: Encoded, other: Encoded) -> None:
    assert one.ids == other.ids
    assert torch.equal(one.latents, other.latents) and torch.equal(one.contexts, other.contexts)


def test_encoded_is_what_the_model_makes_of_each_picture_in_order(
    tiny_model: LatentDiffusion, pictures: list[Picture], tmp_path: Path
) -> None:
    encoded = encode(tiny_model, pictures, tmp_path / "cache")
    assert encoded.ids == tuple(picture.id for picture in pictures) and len(encoded) == len(pictures)
    assert encoded.latents.dtype == encoded.contexts.dtype == torch.float32
    for index, picture in enumerate(pictures):
        pixels = torch.from_numpy(np.asarray(Image.open(picture.file)).copy()).permute(2, 0, 1)[None] / 127.5 - 1
        torch.testing.assert_close(encoded.latents[index], tiny_model.encode_pictures(pixels)[0], atol=1e-5, rtol=1e-4)
        context = tiny_model.encode_captions([picture.caption])[0]
        torch.testing.assert_close(encoded.contexts[index], context, atol=1e-5, rtol=1e-4)


def test_a_second_run_does_not_encode_again_and_gives_the_same_bits(
    counted: Counted, pictures: list[Picture], tmp_path: Path
) -> None:
    first = counted.encode(pictures, tmp_path / "cache")
    assert sum(counted.pictures) == 5
    files = stored(tmp_path / "cache")
    second = counted.encode(pictures, tmp_path / "cache")
    assert counted.idle
    assert_equal(first, second)
    assert stored(tmp_path / "cache") == files


def test_the_order_of_the_result_is_the_order_asked_for(
    counted: Counted, pictures: list[Picture], tmp_path: Path
) -> None:
    first = counted.encode(pictures, tmp_path / "cache")
    order = [3, 0, 4, 4]
    assert_equal(counted.encode([pictures[i] for i in order], tmp_path / "cache"), first.take(order))
    assert counted.idle


def test_identical_captions_and_pictures_are_encoded_once(counted: Counted, pictures: list[Picture]) -> None:
    encoded = counted.encode([*pictures, pictures[1]], None)
    assert sum(counted.pictures) == 5
    assert sorted(counted.captions) == sorted(set(CAPTIONS))
    assert torch.equal(encoded.contexts[0], encoded.contexts[2])
    assert torch.equal(encoded.latents[1], encoded.latents[5])


def test_what_is_made_of_a_picture_does_not_depend_on_the_pictures_around_it(
    tiny_model: LatentDiffusion, pictures: list[Picture]
) -> None:
    together = encode(tiny_model, pictures)
    for index in range(len(pictures)):
        assert_equal(encode(tiny_model, [pictures[index]]), together.take([index]))


def test_without_a_folder_nothing_is_written(counted: Counted, pictures: list[Picture], tmp_path: Path) -> None:
    before = stored(tmp_path)
    in_memory = counted.encode(pictures, None)
    assert stored(tmp_path) == before
    assert_equal(in_memory, counted.encode(pictures, tmp_path / "cache"))
    assert sum(counted.pictures) == 5


def test_an_interrupted_run_has_kept_what_it_encoded_and_goes_on_from_there(
    counted: Counted, pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_pictures, calls = counted.model.encode_pictures, iter(range(4))

    def interrupted(pixels: Tensor) -> Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return encode_pictures(pixels)

    monkeypatch.setattr(counted.model, "encode_pictures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        counted.encode(pictures, tmp_path / "cache")
    assert len(stored(tmp_path / "cache")) == 4
    monkeypatch.setattr(counted.model, "encode_pictures", encode_pictures)
    resumed = counted.encode(pictures, tmp_path / "cache")
    assert counted.pictures == [1]
    assert_equal(resumed, counted.encode(pictures, None))


def _damages(file: Path) -> Iterator[bytes]:
    content = file.read_bytes()
    yield b""
    yield content[: len(content) // 2]
    yield b"\x00" * len(content)
    save_file({"other": torch.zeros(4, 8, 8)}, file)
    yield file.read_bytes()


def test_a_damaged_file_is_encoded_again_and_replaced(
    counted: Counted, pictures: list[Picture], tmp_path: Path
) -> None:
    first = counted.encode(pictures, tmp_path / "cache")
    whole = stored(tmp_path / "cache")
    for kind in ("latents", "captions"):
        name = next(name for name in whole if name.startswith(kind))
        for content in _damages(tmp_path / "cache" / name):
            (tmp_path / "cache" / name).write_bytes(content)
            assert_equal(counted.encode(pictures, tmp_path / "cache"), first)
            assert (sum(counted.pictures), len(counted.captions)) == ((1, 0) if kind == "latents" else (0, 1))
            assert stored(tmp_path / "cache").keys() == whole.keys()
            assert counted.encode(pictures, tmp_path / "cache") and counted.idle


def _change_vae(pipeline: Any) -> None:
    pipeline.vae.encoder.conv_out.bias.data += 0.1


def _change_scale(pipeline: Any) -> None:
    pipeline.vae.register_to_config(scaling_factor=0.5)


def _change_resolution(pipeline: Any) -> None:
    pipeline.unet.register_to_config(sample_size=4)


def _change_text_encoder(pipeline: Any) -> None:
    pipeline.text_encoder.final_layer_norm.bias.data += 0.1


def _change_unet(pipeline: Any) -> None:
    pipeline.unet.conv_out.bias.data += 0.1


@pytest.mark.parametrize(
    ("change", "encodes_pictures", "encodes_captions"),
    [
        (_change_vae, True, False),
        (_change_scale, True, False),
        (_change_resolution, True, False),
        (_change_text_encoder, False, True),
        (_change_unet, False, False),
    ],
)
def test_another_model_uses_of_the_cache_what_it_would_compute_the_same(
    change: Any, encodes_pictures: bool, encodes_captions: bool, counted: Counted, pictures: list[Picture],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    counted.encode(pictures, tmp_path / "cache")
    pipeline = tiny_pipeline()
    change(pipeline)
    other = Counted(LatentDiffusion(pipeline, name="other"), monkeypatch)
    cached = other.encode(pictures, tmp_path / "cache")
    assert (bool(other.pictures), bool(other.captions)) == (encodes_pictures, encodes_captions)
    assert_equal(cached, other.encode(pictures, None))


def test_another_precision_does_not_use_the_cache(
    counted: Counted, pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted.encode(pictures, tmp_path / "cache")
    half = Counted(LatentDiffusion(tiny_pipeline(), name="half", dtype=torch.bfloat16), monkeypatch)
    half.encode(pictures, tmp_path / "cache")
    assert sum(half.pictures) == 5 and half.captions


def test_a_changed_picture_or_caption_is_encoded_again_and_only_that(
    counted: Counted, pictures: list[Picture], tmp_path: Path
) -> None:
    counted.encode(pictures, tmp_path / "cache")
    folder = pictures[0].file.parent
    (folder / "1.txt").write_text("a wolf")
    after_caption = counted.encode(read_folder(folder, captions_required=False), tmp_path / "cache")
    assert (counted.pictures, counted.captions) == ([], ["a wolf"])
    Image.open(folder / "4.png").rotate(90).save(folder / "4.png")
    after_picture = counted.encode(read_folder(folder, captions_required=False), tmp_path / "cache")
    assert (counted.pictures, counted.captions) == ([1], [])
    assert torch.equal(after_picture.latents[:4], after_caption.latents[:4])
    assert not torch.equal(after_picture.latents[4], after_caption.latents[4])


def test_a_renamed_picture_is_not_encoded_again(counted: Counted, pictures: list[Picture], tmp_path: Path) -> None:
    counted.encode(pictures, tmp_path / "cache")
    folder = pictures[0].file.parent
    for suffix in ("png", "txt"):
        (folder / f"0.{suffix}").rename(folder / f"zebra.{suffix}")
    counted.encode(read_folder(folder, captions_required=False), tmp_path / "cache")
    assert counted.idle


def test_a_lora_on_the_text_encoder_does_not_get_into_the_cache(
    counted: Counted, pictures: list[Picture], tmp_path: Path
) -> None:
    base = counted.encode(pictures, None)
    with torch.no_grad():
        for parameter in add_lora(counted.model.pipeline, LoraConfig(rank=2, text_encoder=True)):
            parameter += 0.5
    with torch.inference_mode():
        assert not torch.allclose(counted.model.encode_captions([pictures[0].caption])[0], base.contexts[0])
    assert_equal(counted.encode(pictures, tmp_path / "cache"), base)


def test_no_file_name_in_the_cache_tells_a_picture_s_name_or_caption(counted: Counted, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures", ["Zanzibar"])
    counted.encode(pictures, tmp_path / "cache")
    for name, content in stored(tmp_path / "cache").items():
        assert "Zanzibar" not in name and b"Zanzibar" not in content and str(tmp_path).encode() not in content


def test_numbers_that_are_not_finite_are_refused_and_not_stored(
    counted: Counted, pictures: list[Picture], tmp_path: Path
) -> None:
    counted.model.pipeline.vae.encoder.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(LoricaError, match="not finite"):
        counted.encode(pictures, tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or not stored(tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_a_clear_error(
    counted: Counted, pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LoricaError, match="cannot write"):
        counted.encode(pictures, tmp_path / "file")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(LoricaError, match="No space left on device"):
        counted.encode(pictures, tmp_path / "cache")
    assert not stored(tmp_path / "cache")
