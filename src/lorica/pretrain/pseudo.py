"""Pseudo-labels of DynACL++: clusters of an encoder's features stand in for classes (Luo et al., ICLR 2023, arXiv
2303.01289), on which the encoder is then fine-tuned adversarially."""

import warnings
from dataclasses import replace

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from lorica.data.labelled import LabelledSet
from lorica.errors import LoricaError
from lorica.seeds import stable_seed

_TRIALS = 10


def pseudo_labels(features: Tensor, clusters: int, seed: int) -> Tensor:
    """Clusters of pictures by Euclidean k-means: the best of ten starts by k-means++.

    As the authors do, of features as they are, not of unit length; they take those of natural pictures without
    augmentation along the natural route, and as many clusters as there are classes. They start once, at random.

    Args:
        features: (N, D), of any device and type.
        clusters: how many, 2 or more.
        seed: of the starts.

    Returns:
        (N,) int64 on the CPU, in [0, clusters); every cluster has pictures, and they are numbered in the order in
        which their first pictures come.

    Raises:
        LoricaError: fewer than two clusters, fewer different pictures than clusters, or features that are not finite.
    """
    count = len(features)
    if clusters < 2 or clusters > count:
        raise LoricaError(f"{clusters} clusters of {count} pictures", f"Give a number from 2 to {count}.")
    if not features.isfinite().all():
        raise LoricaError("the encoder's features are not finite", "Has its training diverged?")
    model = KMeans(clusters, n_init=_TRIALS, random_state=stable_seed(seed, "pseudo-labels") % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer clusters than asked for, which is refused below
        found = torch.from_numpy(model.fit_predict(features.detach().cpu().float().numpy())).long()
    names = list(dict.fromkeys(found.tolist()))
    if len(names) < clusters:
        raise LoricaError(
            f"the encoder tells only {len(names)} kinds of pictures apart, not {clusters}",
            "Ask for fewer clusters, or train the encoder for longer.",
        )
    return torch.tensor([names.index(cluster) for cluster in range(clusters)])[found]


def relabelled(data: LabelledSet, labels: Tensor) -> LabelledSet:
    """The same pictures under pseudo-labels; classes are named "cluster 0" and so on.

    Args:
        data: pictures, with whatever labels.
        labels: (N,) int64, 0 or more.

    Raises:
        ValueError: as many labels as pictures are needed.
    """
    if labels.shape != (len(data),):
        raise ValueError(f"{tuple(labels.shape)} labels for {len(data)} pictures")
    count = int(labels.max()) + 1
    width = len(str(count - 1))
    return replace(data, labels=labels.long().cpu(), classes=tuple(f"cluster {i:0{width}d}" for i in range(count)))
