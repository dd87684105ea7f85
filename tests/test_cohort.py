"""The built-in private set: deterministic, unlimited, and each person an individual."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lorica.data import draw_cohort, load_rgb, read_folder, write_cohort
from lorica.data.cohort import draw_person
from lorica.data.cohort.portrait import paint
from lorica.data.cohort.traits import COLOURS, HAIR_COLOURS, HAIR_SHAPES, HATS, PATTERNS, describe, draw_traits
from lorica.data.duplicates import find_duplicates
from lorica.errors import LoricaError


def levels(picture):
    return np.asarray(picture, dtype=np.float32)


def rmse(first, second):
    return float(np.sqrt(((levels(first) - levels(second)) ** 2).mean()))


def test_a_person_depends_on_seed_and_index_only():
    (_, _, third) = draw_cohort(3, seed=5)
    alone = draw_person(5, 2)
    assert alone[1] == third[1]
    assert (levels(alone[0]) == levels(third[0])).all()
    assert draw_cohort(1, seed=5, start=2)[0][1] == third[1]


def test_other_seeds_and_other_indices_give_other_people():
    here, next_one, elsewhere = draw_person(0, 0)[0], draw_person(0, 1)[0], draw_person(1, 0)[0]
    assert min(rmse(here, next_one), rmse(here, elsewhere), rmse(next_one, elsewhere)) > 15


@pytest.mark.parametrize("size", [8, 64, 96])
def test_pictures_are_rgb_of_the_size_asked_for(size):
    picture, _ = draw_person(0, 3, size)
    assert picture.mode == "RGB" and picture.size == (size, size)


def test_a_person_is_the_same_at_every_size():
    small, large = draw_person(0, 4, 64), draw_person(0, 4, 128)
    assert small[1] == large[1]
    assert rmse(small[0], large[0].resize((64, 64))) < 8  # other people are over 15 away


def test_people_differ_in_structure_that_is_wider_than_a_latent_pixel():
    # What is left of a picture after 8x8 blocks are averaged is what an f8 autoencoder is sure to keep.
    blocks = np.stack([levels(p).reshape(8, 8, 8, 8, 3).mean((1, 3)) for p, _ in draw_cohort(24, seed=2)])
    shape = blocks - blocks.mean((1, 2), keepdims=True)  # without each person's mean colour
    distances = np.sqrt(((shape[:, None] - shape[None]) ** 2).mean((2, 3, 4)))
    assert distances[~np.eye(24, dtype=bool)].min() > 15


def test_people_with_the_same_traits_are_still_individuals():
    traits = draw_traits(np.random.default_rng(0))
    twins = [paint(traits, np.random.default_rng(seed), 64) for seed in (1, 2)]
    assert rmse(*twins) > 15


def test_pictures_are_shaded_rather_than_flat():
    for picture, _ in draw_cohort(6, seed=1):
        assert len(picture.getcolors(64 * 64)) > 2000  # of 4096 pixels
        assert levels(picture).std() > 15


SENTENCE = "a an painted portrait of person with and hair jumper background glasses round square beard"
CAPTION_WORDS = set(SENTENCE.split(" ")) | {
    word for names in (COLOURS, HAIR_COLOURS, HAIR_SHAPES, HATS, PATTERNS) for name in names for word in name.split()
}


def test_captions_are_short_lowercase_and_name_two_or_three_traits():
    for index in range(200):
        rng = np.random.default_rng([7, index])
        caption = describe(draw_traits(rng), rng)
        assert set(caption.replace(",", "").split()) <= CAPTION_WORDS
        assert len(caption.split()) <= 18
        named = caption.removeprefix("a painted portrait of a person with ").replace(" and ", ", ").split(", ")
        assert len(named) in (2, 3) and len(set(named)) == len(named)


def test_captions_name_only_traits_that_the_person_has():
    for index in range(200):
        rng = np.random.default_rng([8, index])
        traits = draw_traits(rng)
        caption = describe(traits, rng)
        assert ("glasses" in caption) <= (f"{traits.glasses} glasses" in caption and bool(traits.glasses))
        assert ("beard" in caption) <= traits.beard
        assert (" hair" in caption) <= (f"{traits.hair_colour} hair" in caption)
        assert ("background" in caption) <= (f"{traits.backdrop} background" in caption)
        assert ("jumper" in caption) <= (f"{traits.garment_colour} jumper" in caption)
        for hat in HATS:
            assert (hat in caption) <= (traits.hat == hat and f"{traits.hat_colour} {hat}" in caption)


def test_hair_that_a_hat_hides_is_not_named():
    hidden = replace(draw_traits(np.random.default_rng(0)), hair_shape="cropped", hat="cap")
    captions = [describe(hidden, np.random.default_rng(seed)) for seed in range(40)]
    assert not any(" hair" in caption for caption in captions)
    assert any(" hair" in describe(replace(hidden, hat=""), np.random.default_rng(seed)) for seed in range(40))


def test_every_trait_is_drawn_and_every_article_fits():
    captions = []
    seen = Counter()
    for index in range(400):
        rng = np.random.default_rng([9, index])
        traits = draw_traits(rng)
        seen.update([traits.hair_shape, traits.hat, traits.pattern, traits.glasses, traits.beard])
        captions.append(describe(traits, rng))
    assert set(seen) >= {*HAIR_SHAPES, *HATS, *PATTERNS, "round", "square", "", True, False}
    assert any("an orange" in caption for caption in captions)
    assert not any("a orange" in caption for caption in captions)


@pytest.mark.parametrize(("part", "box"), [("backdrop", (0, 0, 10, 20)), ("garment_colour", (20, 58, 44, 64))])
def test_the_named_colour_is_the_one_that_is_painted(part, box):
    """Red and blue things are told apart by the mean colour of where they are."""
    plain = replace(draw_traits(np.random.default_rng(3)), pattern="plain", hair_shape="cropped", beard=False)
    for seed in range(5):
        red, blue = (
            levels(paint(replace(plain, **{part: name}), np.random.default_rng(seed), 64).crop(box)).mean((0, 1))
            for name in ("red", "blue")
        )
        assert red[0] > blue[0] and blue[2] > red[2]


def test_no_two_people_of_a_cohort_are_near_duplicates(tmp_path):
    assert find_duplicates(read_folder(write_cohort(tmp_path / "people", 60, seed=0))) == []


def test_written_people_are_read_back_as_drawn(tmp_path):
    folder = write_cohort(tmp_path / "people", 3, seed=4, start=10)
    pictures = read_folder(folder)
    assert [p.name for p in pictures] == ["person_00010.png", "person_00011.png", "person_00012.png"]
    for picture, (drawn, caption) in zip(pictures, draw_cohort(3, seed=4, start=10), strict=True):
        assert picture.caption == caption
        assert (levels(load_rgb(picture.file)) == levels(drawn)).all()
    assert len(list(folder.iterdir())) == 6  # nothing temporary is left


def test_written_pictures_carry_no_metadata(tmp_path):
    folder = write_cohort(tmp_path / "people", 1, seed=0)
    with Image.open(folder / "person_00000.png") as image:
        assert image.info == {}


def test_an_interrupted_cohort_is_completed(tmp_path):
    folder = write_cohort(tmp_path / "people", 2, seed=0)
    (folder / "person_00001.png").unlink()
    assert len(read_folder(write_cohort(folder, 3, seed=0))) == 3


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "holiday.png").write_bytes(b"mine")
    with pytest.raises(LoricaError, match=r"holiday\.png"):
        write_cohort(tmp_path, 2, seed=0)
    assert [file.name for file in tmp_path.iterdir()] == ["holiday.png"]


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LoricaError, match="is a file"):
        write_cohort(tmp_path / "file", 2, seed=0)


@pytest.mark.parametrize(("seed", "index", "size"), [(-1, 0, 64), (0, -1, 64), (0, 0, 7)])
def test_impossible_people_are_refused(seed, index, size):
    with pytest.raises(LoricaError, match="no person"):
        draw_person(seed, index, size)
