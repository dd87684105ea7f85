"""Few labels: training on a share of the labelled pictures, as in semi-supervised comparisons of encoders."""

from dataclasses import replace

import numpy as np

from lorica.data.label_split import LabelledSplit
from lorica.seeds import stable_seed


def keep_labels(split: LabelledSplit, share: float, seed: int) -> LabelledSplit:
    """A split whose training set has a share of each class; validation and test pictures are left alone.

    Which pictures are kept depends on their content and the seed. Copies of a picture count once and stay together;
    what a smaller share keeps, a larger one keeps too.

    Args:
        split: whose training set is to shrink.
        share: of each class's different training pictures, in (0, 1]; at least one is kept.
        seed: of the choice.

    Returns:
        The split itself for a share of 1; else a new one, with a note that says what was left out.
    """
    if share == 1:
        return split
    train = split.train
    kept: set[str] = set()
    for label, name in enumerate(train.classes):
        rows = (train.labels == label).nonzero().flatten().tolist()
        different = sorted({train.sha256[row] for row in rows})
        order = np.random.default_rng(stable_seed(seed, "labels", name)).permutation(len(different))
        kept.update(different[place] for place in order[: max(1, round(share * len(different)))])
    few = train.take([row for row, value in enumerate(train.sha256) if value in kept])
    note = (
        f"The labels of {len(few)} of {len(train)} training pictures are used, about {share:.3g} of each class, drawn "
        f"by chance (seed {seed}); the others are not trained on."
    )
    return replace(split, train=few, notes=(*split.notes, note))
