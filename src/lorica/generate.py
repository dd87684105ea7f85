"""`lorica generate`: pictures for captions from a base model with or without a LoRA, and how good they are."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, overload

import torch
from PIL import Image
from pydantic import Field, field_validator, model_validator

from lorica.artefacts import prepare_output, provenance, read_json, write_json, write_text, write_with
from lorica.config import Config
from lorica.data.pictures import fit, load_rgb, read_folder
from lorica.diffusion.model import LatentDiffusion
from lorica.errors import LoricaError
from lorica.progress import bar
from lorica.quality import EXTRACTORS, measure
from lorica.sheet import grid

MARKER = "generate.json"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHOWN = 64  # pictures on grid.png
COLUMNS = 8


class GenerateConfig(Config):
    """Draw pictures for captions, and measure FID and KID against reference pictures."""

    output: Path = Field(description="folder for pictures/, grid.png, generate.json and quality.json")
    base: str = Field("builtin", description="'builtin', a hub id, a diffusers folder or a .safetensors checkpoint")
    base_config: str | None = Field(
        None, description="for a single-file base: folder or hub id in the diffusers layout that describes it"
    )
    lora: Path | None = Field(
        None, description="LoRA file or folder of an adapt run; without it the base model itself draws"
    )

    captions: list[str] = Field([], description="what to draw; may be repeated")
    captions_file: Path | None = Field(None, description="text file with one caption per line, in place of --captions")
    data: Path | None = Field(
        None, description="folder of captioned pictures whose captions to draw, in place of --captions"
    )
    count: int = Field(
        1,
        ge=1,
        description="pictures per caption. All captions are drawn once before any is drawn twice, so a larger count "
        "with --resume adds pictures and keeps the earlier ones",
    )

    seed: int = Field(0, ge=0, lt=2**62, description="picture i starts from the noise of seed + i")
    steps: int = Field(30, ge=1, description="denoising steps: more are slower and, up to a point, cleaner")
    guidance: float = Field(
        4.0,
        ge=0,
        description="classifier-free guidance scale: higher follows the caption more closely with less variety; "
        "1 is the model's own distribution, at half the cost",
    )
    scheduler: Literal["ddim", "ddpm", "dpm++", "euler", "pndm"] = Field(
        "ddim", description="how noise becomes a picture; dpm++ needs the fewest steps"
    )
    batch_size: int = Field(16, ge=1, description="pictures drawn at a time; lower it when memory runs out")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the model's weights")
    device: str | None = Field(None, description="cpu or cuda; picks cuda where there is one")

    reference: Path | None = Field(
        None,
        description="folder of real pictures to compare with (FID, KID). Against training pictures a model that "
        "copies them scores best: prefer pictures of the same kind that it was not trained on",
    )
    extractor: str = Field(
        "builtin",
        description=f"features under FID and KID: {', '.join(EXTRACTORS)}. Inception's weights are fetched on first "
        "use; builtin needs no network, but its numbers cannot be compared with published ones",
    )
    kid_subsets: int = Field(100, ge=1, description="random subsets that KID is averaged over")
    kid_subset_size: int | None = Field(
        None, ge=2, description="pictures per KID subset; by default 1000, or half of the smaller set if it has fewer"
    )

    resume: bool = Field(False, description="go on in OUTPUT: keep its pictures and draw the missing ones")
    overwrite: bool = Field(False, description="replace the pictures in OUTPUT")

    @field_validator("captions")
    @classmethod
    def _text(cls, captions: list[str]) -> list[str]:
        return _cleaned(captions)

    @field_validator("extractor")
    @classmethod
    def _known(cls, name: str) -> str:
        EXTRACTORS[name]
        return name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = [bool(self.captions), self.captions_file is not None, self.data is not None]
        if sum(given) != 1:
            raise LoricaError(
                "nothing says what to draw" if not any(given) else "captions come from more than one place",
                "Give one of --captions, --captions-file and --data.",
            )
        if self.resume and self.overwrite:
            raise LoricaError("--resume keeps the pictures, --overwrite replaces them", "Give one or the other.")
        return self


def run(config: GenerateConfig) -> dict[str, Any]:
    """Draw the pictures that are not there yet and measure them where a reference is given.

    Writes, all atomically: `pictures/000000.png`, ... and `pictures/metadata.jsonl` (an imagefolder: `file_name`,
    `text`, `seed`), `grid.png`, `generate.json`, and `quality.json` with a reference.

    Returns:
        The contents of `generate.json`, and those of `quality.json` under "quality" (None without a reference).

    Raises:
        LoricaError: no captions, an output folder that holds something else, a model, LoRA, reference or extractor
            that cannot be had. All of this is checked before the first picture is drawn.
    """
    captions = read_captions(config)
    total = config.count * len(captions)
    prepare_output(config.output, marker=MARKER, resume=config.resume, overwrite=config.overwrite)
    compare = _comparison(config, total) if config.reference is not None else None
    model = LatentDiffusion.load(
        config.base, device=config.device, dtype=PRECISIONS[config.precision], config=config.base_config
    )
    lora = model.load_lora(config.lora) if config.lora is not None else None

    result: dict[str, Any] = {
        "schema": 1,
        "provenance": provenance(config.model_dump(mode="json"), config.seed),
        "request": {
            "base_fingerprint": model.fingerprint,
            "lora_sha256": lora["sha256"] if lora else None,
            "captions": captions,
            **config.model_dump(mode="json", include={"seed", "steps", "guidance", "scheduler", "precision"}),
        },
        "counts": {"captions": len(captions), "per_caption": config.count, "pictures": total},
        "resolution": model.resolution,
        "finished": False,
    }
    _claim(config, result)
    write_json(config.output / MARKER, result)
    files = [config.output / "pictures" / f"{index:06d}.png" for index in range(total)]
    texts = captions * config.count
    _draw(model, config, files, texts)
    rows = [
        {"file_name": file.name, "text": text, "seed": config.seed + index}
        for index, (file, text) in enumerate(zip(files, texts, strict=True))
    ]
    write_text(config.output / "pictures" / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    columns = len(captions) if 1 < len(captions) <= COLUMNS else COLUMNS  # few captions: each has its own column
    _save(grid(_Decoded(files[:SHOWN], model.resolution)[:], columns), config.output / "grid.png")
    quality = None
    if compare is not None:
        quality = compare(model, files)
        write_json(config.output / "quality.json", quality)
    result["finished"] = True
    write_json(config.output / MARKER, result)
    return result | {"quality": quality}


def read_captions(config: GenerateConfig) -> list[str]:
    """The captions to draw, in order, white space tidied, empty ones left out.

    Raises:
        LoricaError: none, or their file or folder cannot be read.
    """
    if config.data is not None:
        captions, source = [picture.caption for picture in read_folder(config.data)], config.data
    elif config.captions_file is not None:
        source = config.captions_file
        try:
            captions = _cleaned(source.read_text(encoding="utf-8-sig").split("\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise LoricaError(
                f"captions cannot be read: {source}: {error}", "It must be a UTF-8 text file."
            ) from error
    else:
        return config.captions
    if not captions:
        raise LoricaError(f"no captions in {source}", "Put one caption on each line.")
    return captions


def _cleaned(captions: Sequence[str]) -> list[str]:
    tidy = [" ".join(caption.split()) for caption in captions]
    if any("\ud800" <= letter <= "\udfff" for caption in tidy for letter in caption):
        raise LoricaError("a caption is not valid Unicode text", "Check the encoding of the terminal or script.")
    return [caption for caption in tidy if caption]


def _claim(config: GenerateConfig, result: dict[str, Any]) -> None:
    """Make sure that every picture in the output folder is one that this very request would draw."""
    folder, earlier = config.output / "pictures", None
    if (config.output / MARKER).exists():
        earlier = read_json(config.output / MARKER, "earlier result")
    elif folder.exists() and any(folder.iterdir()):
        raise LoricaError(f"{folder} holds files but no {MARKER} says where they are from", "Give another --output.")
    if config.overwrite:
        # The old generate.json goes last: if this is cut off, what remains still belongs to it.
        for file in (*folder.glob("[0-9]*.png"), folder / "metadata.jsonl", *config.output.glob("grid.png")):
            file.unlink(missing_ok=True)
        (config.output / "quality.json").unlink(missing_ok=True)
    elif earlier is not None:
        before, now = earlier.get("request", {}), result["request"]
        changed = sorted(key for key in now if before.get(key) != now[key])
        if changed:
            raise LoricaError(
                f"the pictures in {config.output} were drawn with other settings: {', '.join(changed)}",
                "Resume with the same settings, give another --output, or --overwrite.",
            )
        if earlier["counts"]["pictures"] > result["counts"]["pictures"]:
            raise LoricaError(
                f"{config.output} holds {earlier['counts']['pictures']} pictures already",
                f"Ask for at least as many (--count {earlier['counts']['per_caption']}), or --overwrite.",
            )


def _draw(model: LatentDiffusion, config: GenerateConfig, files: list[Path], captions: list[str]) -> None:
    with bar() as progress:
        task = progress.add_task("drawing pictures", total=len(files))
        try:
            for start in range(0, len(files), config.batch_size):
                chosen = slice(start, start + config.batch_size)
                # A batch with a gap is drawn whole: rounding depends on the batch, and resuming must not show.
                if not all(file.exists() for file in files[chosen]):
                    drawn = model.sample(
                        captions[chosen],
                        seed=config.seed + start,
                        steps=config.steps,
                        guidance=config.guidance,
                        scheduler=config.scheduler,
                        batch_size=config.batch_size,
                        progress=False,
                    )
                    for file, picture in zip(files[chosen], drawn, strict=True):
                        if not file.exists():
                            _save(picture, file)
                progress.update(task, completed=min(start + config.batch_size, len(files)))
        except KeyboardInterrupt as interrupt:
            kept = sum(file.exists() for file in files)
            raise KeyboardInterrupt(f"{kept} of {len(files)} pictures are kept; go on with --resume.") from interrupt


def _save(picture: Image.Image, file: Path) -> None:
    """Write pixels and nothing else: no caption, path, date or profile."""
    bare = Image.frombytes("RGB", picture.size, picture.convert("RGB").tobytes())
    write_with(file, lambda path: bare.save(path, format="PNG"))


def _comparison(config: GenerateConfig, total: int) -> Callable[[LatentDiffusion, list[Path]], dict[str, Any]]:
    """Get everything ready for FID and KID, so that what is missing is missed before hours of drawing."""
    assert config.reference is not None
    reference = [picture.file for picture in read_folder(config.reference, captions_required=False)]
    smaller = min(len(reference), total)
    if smaller < max(2, config.kid_subset_size or 0):
        raise LoricaError(
            f"FID and KID of {total} generated against {len(reference)} reference pictures cannot be computed",
            "Both need at least two pictures, and as many as --kid-subset-size.",
        )
    extractor = EXTRACTORS[config.extractor]()

    def compare(model: LatentDiffusion, generated: list[Path]) -> dict[str, Any]:
        return measure(
            _Decoded(reference, model.resolution),
            _Decoded(generated, model.resolution),
            extractor,
            subset_size=config.kid_subset_size,
            subsets=config.kid_subsets,
            seed=config.seed,
            device=model.device,
        ) | {"resolution": model.resolution}

    return compare


@dataclass(frozen=True)
class _Decoded(Sequence[Image.Image]):
    """Picture files as a sequence of square pictures, decoded when they are asked for and not kept."""

    files: list[Path]
    size: int

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(index, slice):
            return [fit(load_rgb(file), self.size) for file in self.files[index]]
        return fit(load_rgb(self.files[index]), self.size)
