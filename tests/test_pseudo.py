"""Pseudo-labels: clusters that are there are found, always the same ones, and what has none is refused."""

import pytest
import torch
from torch import Tensor

from lorica.data.labelled import LabelledSet
from lorica.errors import LoricaError
from lorica.pretrain.pseudo import pseudo_labels, relabelled


def blobs(seed: int = 0) -> tuple[Tensor, Tensor]:
    """90 points of three clusters, well apart, in random order; the third lies behind the first, seen from zero."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[10.0, 0], [0, 10], [30, 0]])
    truth = (torch.arange(90) % 3)[torch.randperm(90, generator=generator)]
    return centres[truth] + torch.randn((90, 2), generator=generator), truth


@pytest.mark.parametrize("seed", [0, 1])
def test_clusters_are_found_also_where_only_the_length_tells_them_apart(seed):
    features, truth = blobs(seed)
    found = pseudo_labels(features, 3, seed)
    assert found.shape == (90,) and found.dtype == torch.int64 and set(found.tolist()) == {0, 1, 2}
    for cluster in range(3):
        assert len(truth[found == cluster].unique()) == 1


def test_pseudo_labels_are_numbered_as_they_come_and_the_same_again():
    features = torch.randn((200, 5), generator=torch.Generator().manual_seed(1))
    found = pseudo_labels(features, 7, seed=3)
    assert list(dict.fromkeys(found.tolist())) == list(range(7))
    assert torch.equal(pseudo_labels(features.double(), 7, seed=3), found)


def test_every_picture_is_nearest_to_the_mean_of_its_own_cluster():
    features = torch.randn((80, 3), generator=torch.Generator().manual_seed(2))
    found = pseudo_labels(features, 4, seed=0)
    means = torch.stack([features[found == cluster].mean(0) for cluster in range(4)])
    assert torch.equal(torch.cdist(features, means).argmin(1), found)


@pytest.mark.parametrize("clusters", [-1, 0, 1, 91])
def test_a_number_of_clusters_that_cannot_be_is_refused(clusters):
    with pytest.raises(LoricaError, match=f"{clusters} clusters of 90 pictures"):
        pseudo_labels(blobs()[0], clusters, 0)


def test_an_encoder_that_tells_too_few_pictures_apart_is_refused():
    with pytest.raises(LoricaError, match="only 2 kinds"):
        pseudo_labels(torch.tensor([[0.0], [1.0]]).repeat(10, 1), 5, 0)
    with pytest.raises(LoricaError, match="not finite"):
        pseudo_labels(torch.full((10, 2), float("nan")), 2, 0)


def test_pictures_keep_all_but_their_labels():
    pixels = torch.randint(0, 255, (12, 3, 2, 2), dtype=torch.uint8)
    names = tuple(map(str, range(12)))
    data = LabelledSet(pixels, torch.zeros(12, dtype=torch.int64), ("unlabelled",), names, names)
    found = relabelled(data, torch.arange(12) % 11)
    assert found.classes[0] == "cluster 00" and found.classes[10] == "cluster 10" and len(found.classes) == 11
    assert torch.equal(found.labels, torch.arange(12) % 11)
    assert found.pixels is data.pixels and found.names == names and found.sha256 == names
    with pytest.raises(ValueError, match="12 pictures"):
        relabelled(data, torch.arange(11))
