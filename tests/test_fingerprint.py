"""Digests tell networks apart that answer differently, and only those."""

import torch
from torch import nn

from lorica.fingerprint import weights_digest


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def test_statistics_of_batch_norms_count() -> None:
    one, other = net(), net()
    assert weights_digest(one) == weights_digest(other)
    other[1].running_mean += 0.1  # type: ignore[operator]
    assert weights_digest(one) != weights_digest(other)


def test_what_is_no_weight_does_not_count() -> None:
    one, other = net(), net()
    other[1].num_batches_tracked += 1  # type: ignore[operator]
    other.register_buffer("positions", torch.arange(3.0), persistent=False)
    other.register_parameter("lora_A", nn.Parameter(torch.ones(2)))
    assert weights_digest(one) == weights_digest(other)


def test_half_precision_has_the_digest_of_its_copy() -> None:
    half = net().half()
    digest = weights_digest(half)
    assert weights_digest(half.float()) == digest
