"""The labelled sets of the experiments, written in the layouts that `lorica finetune` reads.

They come from a folder of public data that is not part of the package; each set's README there has origin and licence.
"""

import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image


def clothing(data: Path, folder: Path) -> Path:
    """3,781 photographs of ten kinds of garment, 128 pixels, with the original train, val and test parts."""
    rows = (data / "clothing" / "index.csv").read_text(encoding="utf-8").splitlines()
    header = rows[0].split(",")
    split, cls = header.index("split"), header.index("cls")
    with np.load(data / "clothing" / "images.npz") as archive:
        blob, offsets = archive["blob"], archive["offsets"]
    for i, row in enumerate(rows[1:]):
        part = {"validation": "val"}.get(row.split(",")[split], row.split(",")[split])
        file = folder / part / row.split(",")[cls] / f"{i:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(blob[offsets[i] : offsets[i + 1]].tobytes())).convert("RGB").save(file)
    return folder


def faces(data: Path, folder: Path) -> Path:
    """400 grey portraits of 40 people; no parts declared."""
    with np.load(data / "orl_faces" / "orl_faces.npz") as archive:
        for image, subject, shot in zip(archive["images"], archive["subject"], archive["shot"], strict=True):
            file = folder / f"person_{subject:02d}" / f"{shot:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).convert("RGB").save(file)
    return folder


def cifar10(data: Path, folder: Path, *, train: int = 25_000, test: int = 10_000) -> Path:
    """CIFAR-10 in its binary layout: the first pictures of each part, of which every 2,500 have balanced classes."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.char.decode(np.load(data / "cifar10" / "labels.npz")["classes"])
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    files = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    for part, count in (("train", train), ("test", test)):
        pictures, numbers = cifar10_pictures(data, part, count)
        records = np.concatenate([numbers[:, None].astype(np.uint8), pictures.reshape(count, -1)], axis=1)
        for name, rows in zip(files[part], np.array_split(records, len(files[part])), strict=True):
            (folder / name).write_bytes(rows.tobytes())
    return folder


def cifar10_pictures(data: Path, part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first pictures (N, 3, 32, 32) uint8 of "train" or "test", and their labels (N,) int64."""
    shards = [_tiles(data / "cifar10" / f"{part}_{i:02d}.webp") for i in range(-(-count // 2500))]
    labels = np.load(data / "cifar10" / "labels.npz")[f"{part}_labels"]
    return np.concatenate(shards)[:count], labels[:count].astype(np.int64)


def _tiles(file: Path) -> np.ndarray:
    """(2500, 3, 32, 32) uint8 of a mosaic of 50 x 50 pictures."""
    mosaic = np.asarray(Image.open(file).convert("RGB"))
    return mosaic.reshape(50, 32, 50, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)


SETS = {"clothing": clothing, "faces": faces, "cifar10": cifar10}


def written(data: Path, folder: Path, name: str, *, train: int, test: int) -> Path:
    """A set in a folder of its own below `folder`, whole or not at all; of CIFAR-10 so many pictures of each part."""
    place = folder / (f"{name}_{train}_{test}" if name == "cifar10" else name)
    if not place.exists():
        options = {"train": train, "test": test} if name == "cifar10" else {}
        unfinished = place.with_name(f".{place.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        SETS[name](data, unfinished, **options)
        unfinished.rename(place)
    return place
