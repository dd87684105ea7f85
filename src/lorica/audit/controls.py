"""Checks on the audit itself, without which no number of it means anything.

The **blind baseline** tries to tell members from non-members without the model. If it succeeds, the groups differ by
themselves, and a membership attack may see that difference instead of the training (Das, Zhang and Tramer, "Blind
Baselines Beat Membership Inference Attacks", 2024). The **negative control** runs attacks on the base model, which saw
no member: whatever they find there is not the LoRA's doing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

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


def control(scores: Mapping[str, MembershipScores], level: float, passed: str) -> dict[str, dict[str, Any]]:
    """Whether scores that must know nothing do: the entries of audit.json for a family of controls.

    One control out of line is enough to reject the audit, so each is judged at a level raised by Bonferroni's rule: a
    fair audit is rejected by this family with a probability of about 1 - `level` at most. The interval shown is the
    common one at `level`.

    Args:
        scores: test scores of the controls by name.
        level: confidence level of the family.
        passed: what to call the answer.

    Returns:
        {name: {"auc": estimate with interval and level, `passed`: bool}}.
    """
    strict = 1 - (1 - level) / max(1, len(scores))
    entries = {}
    for name, found in scores.items():
        low, high = found.interval("auc", level=strict)
        auc = estimate(found.auc, found.interval("auc", level=level)) | {"level": level}
        entries[name] = {"auc": auc, passed: low <= 0.5 <= high}
    return entries


def estimate(value: float, interval: tuple[float, float]) -> dict[str, float]:
    """A figure and its interval as audit.json holds them."""
    return {"value": value, "low": interval[0], "high": interval[1]}


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
