"""Batches: a pure function of seed, epoch and place; augmentation equal to a loop over pictures, and fair."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chisquare

from lorica.data.batches import Augment, Batches, ordered
from lorica.data.labelled import LabelledSet
from lorica.errors import LoricaError


def labelled(count, height=8, width=8):
    """Random pictures whose first pixel is their row."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, height, width), dtype=np.uint8))
    pixels[:, :, 0, 0] = torch.arange(count, dtype=torch.uint8)[:, None]
    names = tuple(map(str, range(count)))
    return LabelledSet(pixels, torch.arange(count) % 5, ("a", "b", "c", "d", "e"), names, names)


def batches(count=50, batch_size=8, **options):
    return Batches(labelled(count), batch_size, **({"seed": 0, "device": "cpu"} | options))


def rows(batch):
    """Which pictures an un-augmented batch holds."""
    return (batch[0][:, 0, 0, 0] * 255).round().int().tolist()


def same(first, second):
    pairs = list(zip(first, second, strict=True))
    return bool(pairs) and all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


# Order


def test_an_epoch_shows_every_picture_once_with_its_label():
    supply = batches(50, 8)
    epoch = list(supply.epoch(0))
    assert len(supply) == len(epoch) == 7 and [len(labels) for _, labels in epoch] == [8] * 6 + [2]
    shown = [row for batch in epoch for row in rows(batch)]
    assert sorted(shown) == list(range(50)) and shown != list(range(50))
    assert [label for _, labels in epoch for label in labels.tolist()] == [row % 5 for row in shown]


def test_pixels_are_the_pictures_divided_by_255():
    data = labelled(6)
    for pixels, labels in Batches(data, 3, seed=0, device="cpu").epoch(0):
        assert pixels.dtype == torch.float32 and labels.dtype == torch.int64
        for picture in pixels:
            row = int((picture[0, 0, 0] * 255).round())
            assert torch.equal(picture, data.pixels[row].float() / 255)


def test_the_pictures_themselves_are_not_changed():
    data = labelled(20)
    before = data.pixels.clone()
    for pixels, _ in Batches(data, 8, seed=0, device="cpu", augment=Augment()).epoch(0):
        pixels.zero_()
    assert torch.equal(data.pixels, before)


def test_order_and_augmentation_follow_seed_and_epoch():
    def epoch(seed, number):
        return batches(seed=seed, augment=Augment()).epoch(number)

    assert same(epoch(0, 3), epoch(0, 3))
    assert not same(epoch(0, 3), epoch(0, 4))
    assert not same(epoch(0, 3), epoch(1, 3))


def test_augmentation_differs_from_epoch_to_epoch():
    first, second = (next(batches(shuffle=False, augment=Augment()).epoch(number))[0] for number in (0, 1))
    assert not torch.equal(first, second)


def test_the_global_random_state_is_neither_read_nor_changed():
    torch.manual_seed(1)
    first, after = list(batches(augment=Augment()).epoch(0)), torch.rand(1)
    torch.manual_seed(2)
    assert same(first, batches(augment=Augment()).epoch(0))
    torch.manual_seed(1)
    assert torch.rand(1) == after


@pytest.mark.parametrize("start", [0, 1, 5, 6])
def test_an_epoch_that_is_resumed_goes_on_with_the_same_batches(start):
    supply = batches(augment=Augment())
    assert same(list(supply.epoch(2))[start:], supply.epoch(2, start=start))


def test_an_epoch_resumed_at_its_end_is_over():
    assert list(batches().epoch(0, start=7)) == []


def test_it_does_not_matter_whether_the_pixels_stay_on_the_device():
    streamed = batches(augment=Augment(), resident_limit=50 * 3 * 64 - 1)
    assert not streamed.resident and batches(resident_limit=50 * 3 * 64).resident
    assert same(batches(augment=Augment()).epoch(1), streamed.epoch(1))


def test_a_short_last_batch_may_be_dropped():
    supply = batches(50, 8, drop_last=True)
    assert len(supply) == 6 and [len(labels) for _, labels in supply.epoch(0)] == [8] * 6
    assert same(supply.epoch(0), list(batches(50, 8).epoch(0))[:6])


def test_without_shuffling_the_order_is_that_of_the_data():
    assert [row for batch in batches(shuffle=False).epoch(5) for row in rows(batch)] == list(range(50))


def test_evaluation_sees_every_picture_in_order_and_untouched():
    data = labelled(11)
    pixels, labels = (torch.cat(parts) for parts in zip(*ordered(data, 4, "cpu"), strict=True))
    assert torch.equal(pixels, data.pixels.float() / 255) and torch.equal(labels, data.labels)


@pytest.mark.parametrize("count", [46, 48, 51])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_slices_of_all_processes_make_up_the_batches_of_one(count, drop_last):
    options = {"augment": Augment(), "drop_last": drop_last}
    whole = list(batches(count, 8, **options).epoch(1))
    ranks = [batches(count, 8, shard=(rank, 4), **options) for rank in range(4)]
    slices = list(zip(*(rank.epoch(1) for rank in ranks), strict=True))
    assert len(slices) == len(ranks[0])
    for number, parts in enumerate(slices):
        assert len({len(labels) for _, labels in parts}) == 1
        for joined, wanted in zip(map(torch.cat, zip(*parts, strict=True)), whole[number], strict=True):
            assert torch.equal(joined, wanted[: len(wanted) // 4 * 4])
    lost = sum(len(labels) for _, labels in whole) - sum(len(labels) for parts in slices for _, labels in parts)
    assert lost == (0 if drop_last else count % 4)


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (0, {}),
        (7, {"drop_last": True}),
        (3, {"shard": (0, 4)}),
        (50, {"shard": (0, 3)}),
        (50, {"batch_size": 0}),
    ],
)
def test_what_makes_no_batches_is_refused(count, options):
    with pytest.raises(LoricaError) as caught:
        batches(count, **options)
    assert caught.value.remedy


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("limit", [0, 2**30])
def test_a_gpu_sees_the_batches_of_the_cpu_and_is_never_waited_for(limit):
    supply = batches(device="cuda", augment=Augment(), resident_limit=limit)
    torch.cuda.set_sync_debug_mode("error")
    try:
        epoch = list(supply.epoch(0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert same([[part.cpu() for part in batch] for batch in epoch], batches(augment=Augment()).epoch(0))


# Augmentation


def naive(picture, down, right, flip, padding):
    """Pad, cut, mirror: one picture at a time, as the papers say it."""
    height, width = picture.shape[-2:]
    p, q = (round(padding * side) for side in (height, width))
    padded = np.zeros((3, height + 2 * p, width + 2 * q), picture.numpy().dtype)
    padded[:, p : p + height, q : q + width] = picture
    cut = padded[:, p + down : p + down + height, q + right : q + right + width]
    return torch.from_numpy((cut[:, :, ::-1] if flip else cut).copy())


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size", [(8, 8), (16, 24), (7, 5)])
@pytest.mark.parametrize("padding", [0.0, 0.125, 1.0])
def test_augmentation_equals_a_loop_over_pictures(size, padding, kind):
    augment = Augment(padding=padding)
    pixels = (labelled(40, *size).pixels + 1).clamp(min=1).to(kind)
    shifts, flips = augment.draw(40, size, 1)
    result = augment.apply(pixels, shifts, flips)
    loop = [naive(pixels[row], *map(int, shifts[row]), bool(flips[row]), padding) for row in range(40)]
    assert result.dtype == kind and torch.equal(result, torch.stack(loop))
    assert flips.any() and not flips.all() and (padding == 0 or len(set(shifts[:, 0].tolist())) > 1)


def test_no_padding_and_no_flip_leave_the_pictures_alone():
    supply = batches(augment=Augment(padding=0, flip=False))
    assert same(supply.epoch(0), batches().epoch(0))


def test_shifts_are_uniform_and_independent_and_half_the_pictures_are_mirrored():
    shifts, flips = Augment().draw(40_000, (32, 16), 0)
    down, right = shifts.T
    assert (down.min(), down.max(), right.min(), right.max()) == (-4, 4, -2, 2)
    together = torch.bincount(((down + 4) * 5 + right + 2) * 2 + flips, minlength=90)
    assert len(together) == 90 and chisquare(together.numpy()).pvalue > 1e-4
    assert binomtest(int(flips.sum()), 40_000).pvalue > 1e-4
    assert not Augment(flip=False).draw(1000, (32, 32), 0)[1].any()


def test_the_draws_of_a_picture_do_not_depend_on_how_many_follow():
    few, many = (Augment().draw(count, (32, 32), 5) for count in (10, 1000))
    assert torch.equal(few[0], many[0][:10]) and torch.equal(few[1], many[1][:10])


def test_a_padding_outside_its_range_is_refused():
    with pytest.raises(LoricaError, match="padding"):
        Augment(padding=4)
