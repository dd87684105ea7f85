"""Checks on the audit itself, without which no number of it means anything.

The **blind baseline** tries to tell members from non-members without the model. If it succeeds, the groups differ by
themselves, and a membership attack may see that difference instead of the training (Das, Zhang and Tramer, "Blind
Baselines Beat Membership Inference Attacks", 2024). The **negative control** runs attacks on the base model, which saw
no member: whatever they find there is not the LoRA's doing.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lorica.audit.score import MembershipScores
from lorica.data import Picture, fit, load_rgb

METHOD = (
    "logistic regression on 8x8 thumbnails, channel statistics, gradient energy, hashed caption words and caption "
    "length, trained on the auxiliary pictures, scored on the test pictures"
)
_SIDE = 64
_WORDS = 64
# With some 270 inputs and often fewer pictures, a strong penalty; not tuned, since tuning would cost pictures.
_PENALTY = 0.01


def blind_scores(groups: Mapping[str, Sequence[Picture]]) -> MembershipScores:
    """Scores of the test pictures by a classifier that never saw the model.

    Trained on the auxiliary half and scored once on the test half, exactly as an attack is. Cross-validation over all
    pictures would use more of them, but its folds share training data, so that its interval would not hold, and its
    AUC is biased below 0.5 when there is nothing to find.

    Only what the model itself receives is used: the picture as resized and cropped, and the caption. File sizes, names
    and original resolutions are not.

    Args:
        groups: the four groups of a split, none empty.
    """
    inputs = {group: features(pictures) for group, pictures in groups.items()}
    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(C=_PENALTY, class_weight="balanced", max_iter=1000)
    )
    members, nonmembers = inputs["aux_members"], inputs["aux_nonmembers"]
    classifier.fit(np.concatenate([members, nonmembers]), np.r_[np.ones(len(members)), np.zeros(len(nonmembers))])
    return MembershipScores(
        classifier.decision_function(inputs["test_members"]), classifier.decision_function(inputs["test_nonmembers"])
    )


def features(pictures: Sequence[Picture]) -> NDArray[np.float64]:
    """(N, D) simple statistics of pictures and captions."""
    words = HashingVectorizer(n_features=_WORDS, norm=None, alternate_sign=False)
    captions = [picture.caption for picture in pictures]
    lengths = [[len(caption), len(caption.split())] for caption in captions]
    looks = np.stack([_look(fit(load_rgb(picture.file), _SIDE)) for picture in pictures])
    return np.hstack([looks, words.transform(captions).toarray(), np.array(lengths, dtype=np.float64)])


def _look(image: Image.Image) -> NDArray[np.float64]:
    pixels = np.asarray(image, dtype=np.float64) / 255
    thumbnail = np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=np.float64) / 255
    gradients = [np.square(np.diff(pixels, axis=axis)).mean() for axis in (0, 1)]
    return np.r_[thumbnail.ravel(), pixels.mean((0, 1)), pixels.std((0, 1)), gradients]
