"""Common corruptions: the published definitions, for any size, the same for a picture in whatever batch it is."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats

import naive_corruptions
from lorica.errors import LoricaError
from lorica.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt, official
from lorica.robustness.corruptions.draws import Draws
from lorica.robustness.corruptions.filters import gaussian

NAMES = tuple(CORRUPTIONS)
PAPER = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
# As published: glass_blur and elastic_transform trade one strength for another, and frost covers a picture more
# evenly, not more strangely, at its last severities.
NOT_RISING = {"glass_blur", "elastic_transform", "frost"}


def pictures(number, height, width, seed=0, patches=True):
    """Smooth 8-bit pictures, with an even and a black patch."""
    noise = np.random.default_rng(seed).normal(size=(number, 3, height, width))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 2, 2))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    if patches:
        smooth[:, :, : height // 4, : width // 2] = 200 / 255
        smooth[:, :, -height // 4 :, : width // 3] = 0
    return torch.from_numpy(smooth * 255).round().float() / 255


def grey(level, number=1, size=64):
    return torch.full((number, 3, size, size), level / 255)


# The definitions


def test_the_fifteen_types_of_the_paper_come_in_its_order():
    assert NAMES == PAPER


@pytest.mark.parametrize("name", NAMES)
def test_every_type_says_what_it_is_and_has_two_sets_of_five_severities(name):
    corruption = CORRUPTIONS[name]
    assert corruption.summary and corruption.__doc__ and corruption.category in {"noise", "blur", "weather", "digital"}
    assert len(corruption.cifar) == len(corruption.imagenet) == len(SEVERITIES) == 5
    assert len({len(constants) for constants in (*corruption.cifar, *corruption.imagenet)}) == 1
    assert corruption.fidelity == {"frost": "own", "elastic_transform": "approximate"}.get(name, "exact")


@pytest.mark.parametrize(
    ("height", "width", "severities"), [(17, 40, SEVERITIES), (72, 90, (2, 4)), (130, 128, (1, 5))]
)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "frost"])
def test_a_type_equals_its_naive_version_given_the_same_random_numbers(name, height, width, severities):
    clean = pictures(2, height, width)
    for severity in severities:
        found = (corrupt(clean, name, severity, ids=[3, 8], seed=5) * 255).round()
        for row, key in enumerate((3, 8)):
            levels = (clean[row].permute(1, 2, 0) * 255).round().byte().numpy()
            constants = CORRUPTIONS[name].constants(severity, height, width)
            naive = getattr(naive_corruptions, name)(levels, Draws(5, name, severity, [key]), *constants)
            gap = np.abs(found[row].permute(1, 2, 0).numpy() - np.round(np.clip(naive, 0, 1) * 255))
            # Ties may be rounded either way; only an amount of half a level (0.1 * 255 = 25.5), snow's intermediate
            # rounding and glass_blur's make many.
            assert gap.max() <= 1
            assert (gap > 0).mean() < (0.25 if name in {"brightness", "snow"} else 0.005)


def test_small_pictures_get_the_constants_of_cifar_and_large_ones_those_of_imagenet():
    for corruption in (CORRUPTIONS[name] for name in NAMES):
        for at, severity in enumerate(SEVERITIES):
            assert corruption.constants(severity, 32, 32) == corruption.constants(severity, 64, 900)
            assert corruption.constants(severity, 32, 32) == tuple(corruption.cifar[at])
            assert corruption.constants(severity, 224, 224) == corruption.constants(severity, 900, 128)
            assert corruption.constants(severity, 224, 224) == tuple(corruption.imagenet[at])


def test_between_64_and_128_pixels_the_constants_are_interpolated_in_the_shorter_side():
    assert CORRUPTIONS["gaussian_noise"].constants(1, 96, 300) == pytest.approx((0.06,))
    assert CORRUPTIONS["jpeg_compression"].constants(3, 80, 80) == pytest.approx((0.75 * 58 + 0.25 * 15,))


@pytest.mark.parametrize(("sigma", "size"), [(0.3, 9), (1.5, 40), (30.0, 17)])
@pytest.mark.parametrize("border", ["nearest", "reflect"])
def test_the_gaussian_is_that_of_scipy_even_where_it_is_wider_than_the_picture(sigma, size, border):
    clean = pictures(1, size, size + 6)
    found = gaussian(clean, sigma, truncate=3, border=border)
    naive = ndimage.gaussian_filter(clean.double().numpy(), (0, 0, sigma, sigma), mode=border, truncate=3)
    assert np.abs(found.numpy() - naive).max() < 1e-12


@pytest.mark.parametrize("severity", SEVERITIES)
def test_glass_blur_takes_small_pictures_pixels_from_above_and_left_only(severity):
    clean = torch.zeros(1, 3, 32, 32)
    clean[..., 16, 16] = 1
    spread = torch.stack([corrupt(clean, "glass_blur", severity, seed=seed) for seed in range(40)]).mean((0, 1, 2))
    rows, columns = (torch.arange(32.0) - 16).expand(32, 32).T, (torch.arange(32.0) - 16).expand(32, 32)
    rounds = CORRUPTIONS["glass_blur"].cifar[severity - 1][2]
    # Each round moves a pixel down and right by 0 or 1, half a pixel in the mean.
    for offset in (rows, columns):
        assert float((spread * offset).sum() / spread.sum()) == pytest.approx(rounds / 2, abs=0.15)


def test_frost_lays_the_same_ice_over_any_picture():
    height, width = 48, 40
    clean = pictures(3, height, width)
    for severity in SEVERITIES:
        keep, weight = CORRUPTIONS["frost"].constants(severity, height, width)
        ice = corrupt(torch.zeros_like(clean), "frost", severity)
        frosted = corrupt(clean, "frost", severity)
        assert (frosted - (keep * clean + ice).clamp(max=1)).abs().max() < 1.01 / 255
        assert 0.35 < float(ice.mean() / weight) < 0.9
        assert (ice[0] - ice[1]).abs().mean() > 0.01


# Noise


@pytest.mark.parametrize("severity", [1, 5])
def test_the_noise_has_the_moments_of_its_distribution(severity):
    clean = grey(128, 20)
    mean, rounding = 128 / 255, 1 / 12 / 255**2
    (std,) = CORRUPTIONS["gaussian_noise"].constants(severity, 64, 64)
    (photons,) = CORRUPTIONS["shot_noise"].constants(severity, 64, 64)
    for name, variance in (("gaussian_noise", std**2), ("shot_noise", mean / photons)):
        noisy = corrupt(clean, name, severity)
        assert float(noisy.mean()) == pytest.approx(mean, abs=0.001)
        assert float(noisy.var()) == pytest.approx(variance + rounding, rel=0.02)


def test_impulse_noise_makes_as_many_white_as_black_points():
    noisy = corrupt(grey(100, 20), "impulse_noise", 5)
    for level in (0, 1):
        assert float((noisy == level).float().mean()) == pytest.approx(0.035, rel=0.05)
    assert set((noisy * 255).round().unique().tolist()) == {0, 100, 255}


def test_shot_noise_leaves_black_black():
    assert (corrupt(grey(0), "shot_noise", 5) == 0).all()


# The random numbers


def test_the_draws_follow_their_distributions():
    draws = Draws(0, "test", 1, range(50))
    assert stats.kstest(draws.uniform(1000).flatten(), "uniform").pvalue > 0.001
    assert stats.kstest(draws.normal(1001).flatten(), "norm").pvalue > 0.001
    shifted = draws.integers(-3, 4, 10, 100) + 3
    assert stats.chisquare(shifted.flatten().bincount(minlength=7)).pvalue > 0.001


def test_the_draws_of_a_picture_do_not_depend_on_the_others():
    together, alone = Draws(1, "fog", 2, [4, 7, 9]), Draws(1, "fog", 2, torch.tensor([7]))
    for method in ("uniform", "normal"):
        assert torch.equal(getattr(together, method)(3, 5)[1], getattr(alone, method)(3, 5)[0])
    assert torch.equal(together.integers(0, 99, 7)[1], alone.integers(0, 99, 7)[0])


@pytest.mark.parametrize("other", [(1, "fog", 1, 0), (0, "snow", 1, 0), (0, "fog", 2, 0), (0, "fog", 1, 1)])
def test_seed_type_severity_and_picture_each_change_the_draws(other):
    *key, picture = other
    first, second = Draws(0, "fog", 1, [0]).normal(20_000), Draws(*key, [picture]).normal(20_000)
    assert abs(np.corrcoef(first[0], second[0])[0, 1]) < 0.03


def test_later_draws_differ_from_earlier_ones():
    draws = Draws(0, "fog", 1, [0])
    assert abs(np.corrcoef(draws.normal(20_000)[0], draws.normal(20_000)[0])[0, 1]) < 0.03


# What corrupt promises


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (96, 64)])
def test_pictures_of_any_size_stay_8_bit_pictures_of_that_size(name, height, width):
    clean = pictures(2, height, width)
    before = clean.clone()
    for severity in (1, 5):
        found = corrupt(clean, name, severity)
        assert found.shape == clean.shape and found.dtype == clean.dtype
        assert torch.equal(found, (found.clamp(0, 1) * 255).round() / 255)
    assert not torch.equal(found, clean)
    assert torch.equal(clean, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_corrupted_alike_in_any_batch(name):
    clean = pictures(200, 32, 32)  # more than are worked on at once
    whole = corrupt(clean, name, 3, ids=range(1000, 1200), seed=2)
    for row in (0, 57, 199):
        assert torch.equal(corrupt(clean[row : row + 1], name, 3, ids=[1000 + row], seed=2)[0], whole[row])
    backwards = corrupt(clean.flip(0)[:50], name, 3, ids=range(1199, 1149, -1), seed=2)
    assert torch.equal(backwards.flip(0), whole[-50:])


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"defocus_blur", "zoom_blur", "brightness", "contrast"}))
def test_id_and_seed_change_what_is_random(name):
    clean = pictures(1, 32, 32)
    if name in {"pixelate", "jpeg_compression"}:
        assert torch.equal(corrupt(clean, name, 2), corrupt(clean, name, 2, ids=[5], seed=1))
        return
    first = corrupt(clean, name, 2)
    assert torch.equal(first, corrupt(clean, name, 2, ids=[0], seed=0))
    assert not torch.equal(first, corrupt(clean, name, 2, ids=[1]))
    assert not torch.equal(first, corrupt(clean, name, 2, seed=1))


@pytest.mark.parametrize("name", sorted(set(NAMES) - NOT_RISING))
def test_a_higher_severity_is_further_from_the_clean_picture(name):
    clean = pictures(24, 32, 32, patches=False)
    distances = [float((corrupt(clean, name, severity) - clean).abs().mean()) for severity in SEVERITIES]
    assert distances == sorted(distances) and distances[4] > 1.4 * distances[0] > 0


def test_the_type_of_the_numbers_is_kept_and_pictures_are_rounded_to_8_bits_first():
    clean = pictures(1, 32, 32)
    for dtype in (torch.float64, torch.float16):
        assert corrupt(clean.to(dtype), "fog", 2).dtype == dtype
    shifted = (clean + 0.3 / 255).clamp(max=1)
    assert torch.equal(corrupt(shifted, "contrast", 2), corrupt(clean, "contrast", 2))


def test_no_pictures_are_no_problem():
    for name in NAMES:
        assert corrupt(torch.zeros(0, 3, 32, 32), name, 1).shape == (0, 3, 32, 32)


def test_black_pictures_survive_every_type():
    for name in NAMES:
        assert corrupt(grey(0, size=32), name, 5).isfinite().all()


def test_brighter_black_is_grey():
    assert (corrupt(grey(0), "brightness", 2) * 255).round().unique().tolist() == [26]


def test_an_unknown_type_is_refused_with_the_nearest_name():
    with pytest.raises(LoricaError, match="unknown corruption 'gausian_noise'\nDid you mean 'gaussian_noise'"):
        corrupt(grey(9), "gausian_noise", 1)


@pytest.mark.parametrize("severity", [0, 6, -1, 2.5, "3", None])
def test_a_severity_that_does_not_exist_is_refused(severity):
    with pytest.raises(LoricaError, match="severity"):
        corrupt(grey(9), "fog", severity)


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(3, 32, 32),
        torch.zeros(1, 1, 32, 32),
        torch.zeros(1, 3, 7, 32),
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        torch.full((1, 3, 32, 32), 2.0),
        torch.full((1, 3, 32, 32), -0.1),
        torch.full((1, 3, 32, 32), torch.nan),
    ],
)
def test_what_is_no_batch_of_pictures_is_refused(pixels):
    with pytest.raises(LoricaError):
        corrupt(pixels, "fog", 1)


@pytest.mark.parametrize("ids", [[1], [1, 2, 3], [[1, 2]], [0.5, 1.5]])
def test_there_must_be_one_whole_id_per_picture(ids):
    with pytest.raises(LoricaError, match="ids"):
        corrupt(grey(9, 2), "fog", 1, ids=ids)


# The official files


def cifar_c(folder, types=("fog", "gaussian_noise", "speckle_noise"), count=4):
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 256, (5 * count, 32, 32, 3), dtype=np.uint8) for name in types}
    arrays["labels"] = np.tile(np.arange(count, dtype=np.uint8), 5)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return arrays


def imagenet_c(folder, types=("fog", "snow"), classes=("n02", "n01"), size=(20, 16)):
    for name in types:
        for severity in SEVERITIES:
            for label, kind in enumerate(sorted(classes)):
                place = folder / name / str(severity) / kind
                place.mkdir(parents=True)
                for number in range(2):
                    colour = (severity * 40, label * 100, number * 100)
                    Image.new("RGB", size, colour).save(place / f"{number}.JPEG", quality=100)


def test_cifar_c_is_read_severity_by_severity(tmp_path):
    arrays = cifar_c(tmp_path)
    files = official(tmp_path)
    assert files.types == ("gaussian_noise", "fog", "speckle_noise")
    assert files.classes is None and files.count("fog", 1) == 4
    pixels, labels = files.load("fog", 3)
    assert pixels.dtype == torch.uint8 and labels.dtype == torch.int64
    assert torch.equal(pixels.permute(0, 2, 3, 1), torch.from_numpy(arrays["fog"][8:12]))
    assert labels.tolist() == [0, 1, 2, 3]
    some, which = files.load("fog", 5, rows=[3, 0])
    assert torch.equal(some.permute(0, 2, 3, 1), torch.from_numpy(arrays["fog"][[19, 16]])) and which.tolist() == [
        3,
        0,
    ]


def test_imagenet_c_is_read_with_labels_in_the_order_of_the_class_names(tmp_path):
    imagenet_c(tmp_path)
    (tmp_path / "fog" / "2" / ".DS_Store").touch()
    (tmp_path / "fog" / "2" / "n01" / "notes.txt").touch()
    files = official(tmp_path)
    assert files.types == ("snow", "fog") and files.classes == ("n01", "n02") and files.count("fog", 2) == 4
    pixels, labels = files.load("fog", 2)
    assert pixels.shape == (4, 3, 16, 20) and pixels.dtype == torch.uint8 and labels.tolist() == [0, 0, 1, 1]
    expected = torch.tensor([[80, 0, 0], [80, 0, 100], [80, 100, 0], [80, 100, 100]])
    assert (pixels[:, :, 8, 10].int() - expected).abs().max() <= 3
    some, which = files.load("fog", 2, rows=slice(1, 3))
    assert torch.equal(some, pixels[1:3]) and which.tolist() == [0, 1]


def test_a_type_that_is_not_there_is_named_with_those_that_are(tmp_path):
    cifar_c(tmp_path)
    with pytest.raises(LoricaError, match=r"holds no 'snow'\n.*gaussian_noise, fog"):
        official(tmp_path).load("snow", 1)
    with pytest.raises(LoricaError, match="severity"):
        official(tmp_path).load("fog", 6)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("fog", np.zeros((19, 32, 32, 3), np.uint8), r"fog\.npy holds uint8 of shape \(19, 32, 32, 3\)"),
        ("fog", np.zeros((20, 3, 32, 32), np.uint8), r"fog\.npy holds uint8"),
        ("fog", np.zeros((20, 32, 32, 3), np.float32), r"fog\.npy holds float32"),
        ("labels", np.zeros(4, np.uint8), r"labels\.npy.* holds uint8 of shape \(4,\)"),
        ("labels", np.zeros(20), r"labels\.npy.* holds float64"),
        ("fog", np.array([{"a": 1}], dtype=object), r"fog\.npy.* cannot be read"),
    ],
)
def test_arrays_that_are_not_the_official_ones_are_refused(tmp_path, name, array, message):
    cifar_c(tmp_path)
    np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
    with pytest.raises(LoricaError, match=message):
        official(tmp_path).load("fog", 1)


def test_files_that_are_no_arrays_are_refused(tmp_path):
    cifar_c(tmp_path)
    whole = (tmp_path / "fog.npy").read_bytes()
    np.savez(tmp_path / "archive.npz", fog=np.zeros(3))
    for content in (whole[:-1], whole[:50], b"", b"text", (tmp_path / "archive.npz").read_bytes()):
        (tmp_path / "fog.npy").write_bytes(content)
        with pytest.raises(LoricaError, match=r"fog\.npy cannot be read"):
            official(tmp_path).load("fog", 1)


def test_missing_labels_are_named(tmp_path):
    cifar_c(tmp_path)
    (tmp_path / "labels.npy").unlink()
    with pytest.raises(LoricaError, match=r"labels\.npy is missing"):
        official(tmp_path).load("fog", 1)


def test_a_folder_of_another_layout_is_refused(tmp_path):
    with pytest.raises(LoricaError, match="laid out neither"):
        official(tmp_path)
    with pytest.raises(LoricaError, match="no folder"):
        official(tmp_path / "absent")


def test_faults_in_imagenet_c_are_named(tmp_path):
    imagenet_c(tmp_path)
    (tmp_path / "fog" / "3" / "n03").mkdir()
    with pytest.raises(LoricaError, match="other class folders"):
        official(tmp_path).load("fog", 3)
    (tmp_path / "fog" / "1" / "n01" / "0.JPEG").write_bytes(b"not a picture")
    with pytest.raises(LoricaError, match=r"0\.JPEG is not a picture"):
        official(tmp_path).load("fog", 1)
    Image.new("RGB", (9, 9)).save(tmp_path / "fog" / "2" / "n02" / "1.JPEG")
    with pytest.raises(LoricaError, match=r"1\.JPEG is not as large"):
        official(tmp_path).load("fog", 2)
    (tmp_path / "snow" / "4").rename(tmp_path / "snow" / "four")
    with pytest.raises(LoricaError, match="4 is missing"):
        official(tmp_path).load("snow", 4)
