"""Random views of contrastive learning: torchvision's laws and formulas, a batch at once."""

import colorsys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lorica.errors import LoricaError
from lorica.pretrain.views import BRIGHTNESS, CONTRAST, HUE, SATURATION, Views

SIZES = [(32, 32), (18, 13), (20, 48)]
ADJUST = {
    BRIGHTNESS: F.adjust_brightness,
    CONTRAST: F.adjust_contrast,
    SATURATION: F.adjust_saturation,
    HUE: F.adjust_hue,
}


def pictures(count, size, dtype=torch.float32):
    return torch.rand(count, 3, *size, dtype=dtype, generator=torch.Generator().manual_seed(0))


def one_by_one(pixels, draws):
    """The views by torchvision's own functions."""
    views = []
    for row, view in enumerate(pixels):
        box = draws.boxes[row].tolist()
        view = F.resized_crop(view, *box, list(draws.size), v2.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        view = F.horizontal_flip(view) if draws.flipped[row] else view
        for change in draws.order[row].tolist() if draws.jittered[row] else ():
            view = ADJUST[change](view, draws.factors[row, change].item())
        views.append(F.rgb_to_grayscale(view, 3) if draws.grey[row] else view)
    return torch.stack(views)


def without(draws, *names):
    """The same draws, but none of the pictures is `flipped`, `jittered` or `grey`."""
    return replace(draws, **{name: torch.zeros(len(draws), dtype=torch.bool) for name in names})


def whole(draws):
    return replace(draws, boxes=torch.tensor([[0, 0, *draws.size]]).expand(len(draws), -1))


def same(first, second):
    return all(np.array_equal(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))


# What is done


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0])
def test_every_view_is_what_torchvision_makes_of_the_same_numbers(strength, size):
    views = Views(strength)
    draws = views.draw(96, size, seed=1)
    pixels = pictures(96, size)
    assert torch.allclose(views.apply(pixels, draws), one_by_one(pixels, draws), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_crops_and_mirrors_equal_torchvisions_in_double_precision(size):
    draws = without(Views().draw(96, size, seed=2), "jittered", "grey")
    pixels = pictures(96, size, torch.float64)
    assert torch.allclose(Views().apply(pixels, draws), one_by_one(pixels, draws), rtol=0, atol=1e-12)


def test_blends_and_greys_equal_torchvisions_in_double_precision():
    draws = Views().draw(96, (9, 11), seed=3)
    draws.factors[:, HUE] = 0  # torchvision turns the hue in single precision
    pixels = pictures(96, (9, 11), torch.float64) / 2 + 0.25  # far from grey, where single precision tells
    blended = Views().apply(pixels, draws)
    changes = replace(draws, order=draws.order[draws.order != HUE].view(-1, 3))
    assert torch.allclose(blended, one_by_one(pixels, changes), rtol=0, atol=1e-12)


def test_hues_equal_those_of_the_standard_library():
    draws = whole(without(Views().draw(8, (6, 5), seed=4), "flipped", "grey"))
    draws.jittered[:] = True
    draws.factors[:, :HUE] = 1
    draws.factors[:, HUE] = torch.linspace(-0.5, 0.5, 8)
    pixels = pictures(8, (6, 5), torch.float64)
    pixels[:, :, 0] = pixels[:, :, 0].round()  # the corners of the colour cube, where channels tie

    def turned(colour, turn):
        hue, saturation, value = colorsys.rgb_to_hsv(*colour)
        return colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)

    colours = pixels.permute(0, 2, 3, 1).reshape(8, -1, 3).tolist()
    turns = draws.factors[:, HUE].tolist()
    expected = torch.tensor(
        [[turned(c, turn) for c in row] for row, turn in zip(colours, turns, strict=True)], dtype=torch.float64
    )
    views = Views().apply(pixels, draws).permute(0, 2, 3, 1).reshape(8, -1, 3)
    assert torch.allclose(views, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("colour", [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (1, 0, 0), (0, 1, 1), (1e-30, 0, 0)])
def test_even_pictures_of_any_colour_have_views_as_torchvision_makes_them(colour):
    draws = Views().draw(96, (7, 7), seed=5)
    pixels = torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1).expand(96, -1, 7, 7)
    assert torch.allclose(Views().apply(pixels, draws), one_by_one(pixels, draws), rtol=0, atol=1e-5)


def test_views_lie_between_0_and_1():
    draws = Views().draw(256, (16, 16), seed=6)
    views = Views().apply(pictures(256, (16, 16)).round(), draws)  # hard edges: bicubic overshoots, and so do factors
    assert views.min() == 0 and views.max() == 1


def test_a_picture_to_which_nothing_happens_is_the_same_to_the_last_bit():
    draws = whole(without(Views().draw(96, (16, 12), seed=7), "flipped", "grey"))
    pixels = pictures(96, (16, 12))
    untouched = (Views().apply(pixels, draws) == pixels).flatten(1).all(1)
    assert torch.equal(untouched, ~draws.jittered) and 0 < untouched.sum() < 96


def test_colours_that_are_not_jittered_are_the_same_to_the_last_bit():
    draws = Views().draw(96, (16, 12), seed=8)
    pixels = pictures(96, (16, 12))
    plain = ~(draws.jittered | draws.grey)
    cropped = Views().apply(pixels, without(draws, "jittered", "grey"))
    assert plain.any() and torch.equal(Views().apply(pixels, draws)[plain], cropped[plain])


def test_the_pictures_themselves_are_not_touched():
    draws = whole(without(Views().draw(96, (8, 8), seed=9), "flipped"))
    pixels = pictures(96, (8, 8))
    Views().apply(pixels, draws)
    assert torch.equal(pixels, pictures(96, (8, 8)))


def test_half_precision_of_the_training_does_not_reach_the_views():
    draws = Views().draw(8, (16, 16), seed=10)
    pixels = pictures(8, (16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        views = Views().apply(pixels, draws)
    assert torch.equal(views, Views().apply(pixels, draws))


def test_no_value_is_asked_for_on_the_way():
    draws, pixels = Views().draw(8, (16, 16), seed=11), pictures(8, (16, 16))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # tensors without values: asking for one is an error
        draws = replace(draws, **{f.name: mode.from_tensor(getattr(draws, f.name)) for f in fields(draws)[1:]})
        assert Views().apply(mode.from_tensor(pixels), draws).shape == pixels.shape


# What is drawn


@pytest.mark.parametrize("size", [(32, 32), (96, 64), (20, 48), (3, 3)])
@pytest.mark.parametrize("strength", [1.0, 0.35, 0.0])
def test_crops_follow_the_law_of_torchvision(strength, size):
    torch.manual_seed(0)
    law = v2.RandomResizedCrop(size, scale=(1 - 0.9 * strength, 1))
    canvas = torch.empty(3, *size)
    theirs = np.array([list(law.make_params([canvas]).values()) for _ in range(3000)])
    ours = Views(strength).draw(3000, size, seed=0).boxes.numpy()
    assert law.make_params([canvas]).keys() == dict.fromkeys(["top", "left", "height", "width"]).keys()

    def seen(boxes):
        top, left, high, wide = boxes.T
        up, side = size[0] - high - top, size[1] - wide - left  # what is left below and to the right
        return {"top": top, "left": left, "below": up, "right": side, "area": high * wide, "ratio": wide / high}

    for name, values in seen(ours).items():
        assert stats.ks_2samp(values, seen(theirs)[name], method="asymp").pvalue > 1e-3, name


def test_where_no_crop_fits_it_is_the_one_that_torchvision_falls_back_to():
    torch.manual_seed(0)
    for size in [(10, 41), (41, 10), (4, 3), (2, 1)]:
        canvas = torch.empty(3, *size)
        theirs = {tuple(v2.RandomResizedCrop(size, scale=(1, 1)).make_params([canvas]).values()) for _ in range(400)}
        ours = set(map(tuple, Views(0.0).draw(400, size, seed=0).boxes.tolist()))
        assert ours == theirs


@pytest.mark.parametrize("strength", [1.0, 0.35])
def test_changes_of_colour_follow_the_law_of_torchvision(strength):
    torch.manual_seed(0)
    law = v2.ColorJitter(0.4 * strength, 0.4 * strength, 0.4 * strength, 0.1 * strength)
    theirs = [law.make_params([]) for _ in range(4000)]
    ours = Views(strength).draw(4000, (8, 8), seed=0)
    names = {BRIGHTNESS: "brightness", CONTRAST: "contrast", SATURATION: "saturation", HUE: "hue"}
    for column, name in names.items():
        expected = [params[f"{name}_factor"] for params in theirs]
        assert stats.ks_2samp(ours.factors[:, column], expected).pvalue > 1e-3, name

    def orders(permutations):
        return np.bincount(np.asarray(permutations) @ [64, 16, 4, 1], minlength=256)

    table = np.stack([orders(ours.order), orders(torch.stack([params["fn_idx"] for params in theirs]))])
    table = table[:, table.any(axis=0)]
    assert table.shape == (2, 24) and stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("strength", [1.0, 0.35, 0.0])
def test_each_thing_happens_as_often_as_it_should(strength):
    draws = Views(strength).draw(4000, (8, 8), seed=0)
    for happened, chance in ((draws.flipped, 0.5), (draws.jittered, 0.8 * strength), (draws.grey, 0.2 * strength)):
        assert stats.binomtest(int(happened.sum()), 4000, chance).pvalue > 1e-3


def test_what_is_drawn_for_a_picture_is_drawn_independently():
    draws = Views().draw(8000, (64, 64), seed=0)
    top, left, high, wide = draws.boxes.T.double()
    columns = [top / (65 - high), left / (65 - wide), high * wide, wide / high]
    columns += [draws.flipped, draws.jittered, draws.grey, *draws.factors.T, draws.order[:, 0] == HUE]
    correlations = np.corrcoef(np.stack([np.asarray(column, dtype=float) for column in columns]))
    assert abs(correlations - np.eye(len(columns)))[4:].max() < 0.05
    assert abs(correlations[0, 1]) < 0.05


def test_a_picture_is_drawn_for_the_same_way_however_many_follow():
    assert same(Views().draw(5, (16, 16), seed=0), Views().draw(50, (16, 16), seed=0).take(slice(5)))


def test_draws_are_a_function_of_the_seed():
    assert same(Views().draw(50, (16, 16), seed=1), Views().draw(50, (16, 16), seed=1))
    first, second = Views().draw(50, (16, 16), seed=1), Views().draw(50, (16, 16), seed=2)
    assert not any(np.array_equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(first)[1:])


def test_some_rows_give_the_views_of_these_pictures():
    draws, pixels, rows = Views().draw(12, (16, 16), seed=0), pictures(12, (16, 16)), torch.tensor([7, 2, 11])
    views = Views().apply(pixels, draws)
    assert torch.allclose(Views().apply(pixels[rows], draws.take(rows)), views[rows], rtol=0, atol=1e-6)
    assert torch.allclose(Views().apply(pixels[4:9], draws.take(slice(4, 9))), views[4:9], rtol=0, atol=1e-6)


def test_no_pictures_have_no_views():
    assert Views().apply(pictures(0, (8, 8)), Views().draw(0, (8, 8), seed=0)).shape == (0, 3, 8, 8)


# What is refused


@pytest.mark.parametrize("strength", [-0.1, 1.01, float("nan"), float("inf")])
def test_a_strength_outside_0_to_1_is_refused(strength):
    with pytest.raises(LoricaError, match="strength"):
        Views(strength)


@pytest.mark.parametrize("shape", [(8, 3, 16, 12), (7, 3, 12, 16), (8, 1, 12, 16), (3, 12, 16)])
def test_draws_for_other_pictures_are_refused(shape):
    with pytest.raises(LoricaError, match="draws for"):
        Views().apply(torch.zeros(shape), Views().draw(8, (12, 16), seed=0))


def test_draws_on_another_device_are_refused():
    with pytest.raises(LoricaError, match="meta"):
        Views().apply(pictures(8, (12, 16)), Views().draw(8, (12, 16), seed=0).to("meta"))


def test_pictures_of_whole_levels_are_refused():
    with pytest.raises(LoricaError, match="uint8"):
        Views().apply(torch.zeros(8, 3, 12, 16, dtype=torch.uint8), Views().draw(8, (12, 16), seed=0))
