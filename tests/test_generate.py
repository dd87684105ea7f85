"""`lorica generate`: what it draws, what it writes, what it refuses, and that stopping it loses nothing."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from lorica.data.pictures import read_folder
from lorica.diffusion import SCHEDULERS
from lorica.diffusion.lora import LoraConfig, add_lora, save_lora
from lorica.diffusion.model import LatentDiffusion
from lorica.errors import LoricaError
from lorica.generate import GenerateConfig, read_captions, run
from lorica.quality import EXTRACTORS, measure
from lorica.sheet import GAP, grid

CAPTIONS = ["a red hat", "two <b>cats</b>", "a blue fish"]


@pytest.fixture
def config(tiny_pipeline_folder, tmp_path):
    """A configuration that draws three captions in batches of two, with the given changes."""

    def make(**changes) -> GenerateConfig:
        sources = {"captions", "captions_file", "data"}
        defaults = {} if sources & set(changes) else {"captions": CAPTIONS}
        defaults |= {"output": tmp_path / "drawn", "base": str(tiny_pipeline_folder), "steps": 2, "batch_size": 2}
        return GenerateConfig(**(defaults | {"device": "cpu", "guidance": 1.0} | changes))

    return make


def drawn(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "pictures").glob("*.png"))}


@pytest.fixture
def photos(tmp_path):
    """Six real pictures of another size, without captions."""
    folder = tmp_path / "photos"
    folder.mkdir()
    levels = np.random.default_rng(0).integers(0, 256, size=(6, 80, 100, 3), dtype=np.uint8)
    for index, picture in enumerate(levels):
        Image.fromarray(picture).save(folder / f"{index}.png")
    return folder


# ----- pictures ---------------------------------------------------------------------------------------------------
def test_pictures_captions_overview_and_provenance_are_written(config, tmp_path):
    result = run(config(count=2, seed=5))
    rows = [json.loads(line) for line in (tmp_path / "drawn/pictures/metadata.jsonl").read_text().splitlines()]
    assert rows == [
        {"file_name": f"{index:06d}.png", "text": CAPTIONS[index % 3], "seed": 5 + index} for index in range(6)
    ]
    assert list(drawn(tmp_path / "drawn")) == [row["file_name"] for row in rows]
    assert Image.open(tmp_path / "drawn/pictures/000003.png").size == (64, 64)
    assert Image.open(tmp_path / "drawn/grid.png").size == (3 * (64 + GAP) - GAP, 2 * (64 + GAP) - GAP)
    saved = json.loads((tmp_path / "drawn/generate.json").read_text())
    assert saved["finished"] is True
    assert saved["counts"] == {"captions": 3, "per_caption": 2, "pictures": 6}
    assert saved["provenance"]["config"]["steps"] == 2
    assert {"seed", "versions", "hardware"} <= set(saved["provenance"])
    assert result == saved | {"quality": None}


def test_the_pictures_are_those_of_the_model_and_picture_i_depends_on_seed_plus_i_only(
    config, tmp_path, tiny_pipeline_folder
):
    run(config(seed=7))
    model = LatentDiffusion.load(str(tiny_pipeline_folder), device="cpu")
    for index, caption in enumerate(CAPTIONS):
        alone = model.sample([caption], seed=7 + index, steps=2, guidance=1.0, progress=False)[0]
        with Image.open(tmp_path / f"drawn/pictures/{index:06d}.png") as picture:
            difference = np.abs(np.asarray(picture, dtype=int) - np.asarray(alone, dtype=int))
        assert difference.max() <= 1  # a batch of two rounds differently


def test_another_seed_gives_other_pictures(config, tmp_path):
    run(config(seed=0))
    run(config(seed=100, output=tmp_path / "other"))
    assert not set(drawn(tmp_path / "drawn").values()) & set(drawn(tmp_path / "other").values())


def test_a_lora_changes_the_pictures_and_is_named_by_its_hash(config, tmp_path, tiny_model):
    for parameter in add_lora(tiny_model.pipeline, LoraConfig(rank=2, alpha=2.0)):
        parameter.data.normal_(std=0.5)
    save_lora(tiny_model.pipeline, tmp_path / "run", base_fingerprint=tiny_model.fingerprint)
    run(config())
    result = run(config(output=tmp_path / "adapted", lora=tmp_path / "run"))
    assert len(result["request"]["lora_sha256"]) == 64
    assert not set(drawn(tmp_path / "drawn").values()) & set(drawn(tmp_path / "adapted").values())


def test_the_pictures_hold_pixels_and_no_caption_path_or_date(config, tmp_path, monkeypatch):
    original = LatentDiffusion.sample

    def talkative(self, captions, **options):
        pictures = original(self, captions, **options)
        for picture, caption in zip(pictures, captions, strict=True):
            picture.info |= {"parameters": caption, "icc_profile": caption.encode(), "exif": b"Exif\0\0secret"}
        return pictures

    monkeypatch.setattr(LatentDiffusion, "sample", talkative)
    run(config())
    for file in (*(tmp_path / "drawn/pictures").glob("*.png"), tmp_path / "drawn/grid.png"):
        chunks, position, content = [], 8, file.read_bytes()
        while position < len(content):
            chunks.append(content[position + 4 : position + 8])
            position += 12 + int.from_bytes(content[position : position + 4], "big")
        assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}


def test_the_output_is_read_back_as_captioned_pictures(config, tmp_path):
    run(config())
    assert [picture.caption for picture in read_folder(tmp_path / "drawn/pictures")] == CAPTIONS


def test_the_schedulers_on_offer_are_those_of_the_model():
    assert get_args(GenerateConfig.model_fields["scheduler"].annotation) == tuple(SCHEDULERS)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_draws(config, scheduler):
    assert run(config(scheduler=scheduler, captions=["a hat"], steps=3))["finished"]


# ----- captions ---------------------------------------------------------------------------------------------------
def test_captions_come_from_a_file_line_by_line(config, tmp_path):
    file = tmp_path / "captions.txt"
    file.write_text("﻿a  red hat\r\n\r\n  ein Fisch 🐟\n", encoding="utf-8")
    assert read_captions(config(captions_file=file)) == ["a red hat", "ein Fisch 🐟"]


def test_captions_come_from_a_folder_of_captioned_pictures(config, photos):
    for index in range(6):
        (photos / f"{index}.txt").write_text(f"picture {index}")
    assert read_captions(config(data=photos)) == [f"picture {index}" for index in range(6)]


@pytest.mark.parametrize("changes", [{"captions": []}, {"captions": ["  "]}, {"captions": ["a"], "data": Path("x")}])
def test_captions_must_come_from_exactly_one_place(config, changes):
    with pytest.raises(LoricaError, match="--captions, --captions-file and --data"):
        config(**changes)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00"])
def test_a_captions_file_without_captions_or_that_is_not_text_is_refused(config, tmp_path, content):
    file = tmp_path / "captions.txt"
    file.write_bytes(content)
    with pytest.raises(LoricaError, match=r"captions\.txt"):
        run(config(captions_file=file))
    assert not (tmp_path / "drawn").exists()


def test_a_missing_captions_file_is_named(config, tmp_path):
    with pytest.raises(LoricaError, match=r"nowhere\.txt"):
        run(config(captions_file=tmp_path / "nowhere.txt"))


def test_a_caption_that_is_no_valid_text_is_refused(config):
    with pytest.raises(LoricaError, match="not valid Unicode"):
        config(captions=["a hat \udcff"])


# ----- an output folder that is not empty ---------------------------------------------------------------------------
def test_earlier_pictures_are_not_overwritten_unasked(config, tmp_path):
    run(config())
    before = drawn(tmp_path / "drawn")
    with pytest.raises(LoricaError, match="already holds a result"):
        run(config(seed=100))
    assert drawn(tmp_path / "drawn") == before


def test_overwrite_replaces_the_earlier_pictures_all_of_them(config, tmp_path, photos):
    run(config(count=2, reference=photos))
    run(config(seed=100, overwrite=True))
    run(config(seed=100, output=tmp_path / "fresh"))
    assert drawn(tmp_path / "drawn") == drawn(tmp_path / "fresh")
    assert not (tmp_path / "drawn/quality.json").exists()


def test_files_that_are_not_ours_are_never_touched(config, tmp_path):
    (tmp_path / "drawn/pictures").mkdir(parents=True)
    (tmp_path / "drawn/pictures/000000.png").write_bytes(b"holiday")
    for changes in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(LoricaError, match="holds files but no"):
            run(config(**changes))
    assert drawn(tmp_path / "drawn") == {"000000.png": b"holiday"}


def test_a_run_killed_between_two_pictures_resumes_to_the_very_same_pictures(config, tmp_path, monkeypatch):
    run(config(count=2, output=tmp_path / "whole"))
    import lorica.generate as module

    save, saved = module._save, []

    def killed(picture, file):
        if len(saved) == 3:  # in the middle of the second batch
            raise SystemExit
        saved.append(file)
        save(picture, file)

    monkeypatch.setattr(module, "_save", killed)
    with pytest.raises(SystemExit):
        run(config(count=2))
    assert len(drawn(tmp_path / "drawn")) == 3
    assert json.loads((tmp_path / "drawn/generate.json").read_text())["finished"] is False
    monkeypatch.setattr(module, "_save", save)
    assert run(config(count=2, resume=True))["finished"]
    assert drawn(tmp_path / "drawn") == drawn(tmp_path / "whole")


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(config, monkeypatch):
    original, calls = LatentDiffusion.sample, []

    def interrupted(self, captions, **options):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return original(self, captions, **options)

    monkeypatch.setattr(LatentDiffusion, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt, match="2 of 3 pictures are kept; go on with --resume"):
        run(config())


def test_resuming_a_finished_run_draws_nothing(config, tmp_path, monkeypatch):
    run(config())
    before = drawn(tmp_path / "drawn")
    monkeypatch.setattr(LatentDiffusion, "sample", lambda *_, **__: pytest.fail("drawn again"))
    run(config(resume=True))
    assert drawn(tmp_path / "drawn") == before


def test_a_larger_count_with_resume_adds_pictures_and_keeps_the_earlier_ones(config, tmp_path):
    run(config())
    before = drawn(tmp_path / "drawn")
    run(config(count=2, resume=True))
    after = drawn(tmp_path / "drawn")
    assert len(after) == 6
    assert before.items() <= after.items()


def test_a_smaller_count_with_resume_is_refused(config):
    run(config(count=2))
    with pytest.raises(LoricaError, match="holds 6 pictures"):
        run(config(count=1, resume=True))


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"seed": 1}, "seed"), ({"steps": 3, "guidance": 2.0}, "guidance, steps"), ({"captions": ["a dog"]}, "captions")],
)
def test_resuming_with_other_settings_is_refused_and_names_them(config, tmp_path, changes, named):
    run(config())
    before = drawn(tmp_path / "drawn")
    with pytest.raises(LoricaError, match=f"other settings: {named}"):
        run(config(resume=True, **changes))
    assert drawn(tmp_path / "drawn") == before


def test_resuming_with_a_smaller_batch_is_allowed(config, tmp_path):
    run(config(batch_size=2))
    assert run(config(batch_size=1, count=2, resume=True))["finished"]


def test_resume_and_overwrite_together_are_refused(config):
    with pytest.raises(LoricaError, match="--resume keeps"):
        config(resume=True, overwrite=True)


# ----- quality ----------------------------------------------------------------------------------------------------
def test_quality_is_that_of_the_drawn_against_the_reference_pictures_at_the_models_size(config, tmp_path, photos):
    result = run(config(count=2, reference=photos, kid_subsets=5))
    assert json.loads((tmp_path / "drawn/quality.json").read_text()) == result["quality"]
    assert result["quality"]["counts"] == {"real": 6, "generated": 6}
    assert result["quality"]["comparable"] is False

    def fitted(folder: Path) -> list[Image.Image]:
        pictures = [Image.open(file).convert("RGB") for file in sorted(folder.glob("*.png"))]
        return [
            p if p.size == (64, 64) else p.resize((80, 64), Image.Resampling.LANCZOS).crop((8, 0, 72, 64))
            for p in pictures
        ]

    expected = measure(fitted(photos), fitted(tmp_path / "drawn/pictures"), "builtin", subsets=5)
    assert result["quality"]["fid"] == pytest.approx(expected["fid"], rel=0.02)
    assert result["quality"]["kid"]["value"] == pytest.approx(expected["kid"]["value"], rel=0.02)


def test_quality_of_pictures_drawn_earlier_is_measured_without_drawing_again(config, photos, monkeypatch):
    run(config())
    monkeypatch.setattr(LatentDiffusion, "sample", lambda *_, **__: pytest.fail("drawn again"))
    assert run(config(resume=True, reference=photos))["quality"]["fid"] > 0


@pytest.mark.parametrize("changes", [{"captions": ["one"]}, {"kid_subset_size": 4}])
def test_too_few_pictures_for_fid_and_kid_are_refused_before_any_is_drawn(config, photos, tmp_path, changes):
    with pytest.raises(LoricaError, match="cannot be computed"):
        run(config(reference=photos, **changes))
    assert not drawn(tmp_path / "drawn")


def test_an_extractor_that_cannot_be_had_is_reported_before_any_picture_is_drawn(
    config, photos, tmp_path, monkeypatch
):
    def missing(self):
        raise LoricaError("no weights", "use builtin")

    monkeypatch.setattr(EXTRACTORS["inception-2048"], "__init__", missing)
    with pytest.raises(LoricaError, match="no weights"):
        run(config(reference=photos, extractor="inception-2048"))
    assert not drawn(tmp_path / "drawn")


def test_an_unknown_extractor_is_refused(config):
    with pytest.raises(LoricaError, match="unknown extractor"):
        config(extractor="inceptoin")


# ----- the contact sheet --------------------------------------------------------------------------------------------
def test_a_sheet_shows_every_picture_in_order_with_smaller_ones_centred():
    pictures = [Image.new("RGB", (4, 4), (10 * i, 0, 0)) for i in range(4)] + [Image.new("RGB", (2, 2), (99, 0, 0))]
    sheet = grid(pictures, columns=3)
    assert sheet.size == (3 * (4 + GAP) - GAP, 2 * (4 + GAP) - GAP)
    corner = [(index % 3 * (4 + GAP), index // 3 * (4 + GAP)) for index in range(5)]
    assert [sheet.getpixel(place)[0] for place in corner] == [0, 10, 20, 30, 255]
    assert sheet.getpixel((corner[4][0] + 1, corner[4][1] + 1)) == (99, 0, 0)


def test_a_sheet_without_columns_is_nearly_square():
    assert grid([Image.new("RGB", (4, 4))] * 10).size == (4 * (4 + GAP) - GAP, 3 * (4 + GAP) - GAP)


@pytest.mark.parametrize(("images", "columns"), [([], 3), ([Image.new("RGB", (1, 1))], 0)])
def test_a_sheet_of_nothing_is_refused(images, columns):
    with pytest.raises(ValueError, match="no sheet"):
        grid(images, columns)
