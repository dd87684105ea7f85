"""The MI gain: how well the proxy attacker tells members from non-members."""

import torch.nn.functional as F
from torch import Tensor


def member_log_probability(logits: Tensor) -> Tensor:
    """log h (N,), from logits (N, 2) with class 1 = member, or from one logit per sample (N,)."""
    return F.log_softmax(logits, dim=-1)[:, 1] if logits.dim() == 2 else F.logsigmoid(logits)


def nonmember_log_probability(logits: Tensor) -> Tensor:
    """log (1 - h) (N,), from logits as in `member_log_probability`."""
    return F.log_softmax(logits, dim=-1)[:, 0] if logits.dim() == 2 else F.logsigmoid(-logits)


def mi_gain(member_logits: Tensor, nonmember_logits: Tensor | None) -> Tensor:
    """G = 1/2 mean log h over members + 1/2 mean log(1 - h) over non-members (arXiv 2402.11989, equation 5).

    Computed from log-probabilities, so that an extreme attacker gives a large finite number and never NaN.

    Args:
        member_logits: (N, 2) logits of the attacker, class 1 = member; or (N,) with h = sigmoid(logit).
        nonmember_logits: (M, 2) or (M,) likewise; None leaves the member half alone, which is what equation (10)
            evaluates on D_tr, a set of members only.

    Returns:
        Scalar <= 0. An attacker that knows nothing (h = 1/2) has G = -log 2; a perfect one reaches 0.

    Raises:
        ValueError: a batch is empty or the logits are of another shape.

    Example:
        >>> mi_gain(torch.zeros(4, 2), torch.zeros(4, 2))
        tensor(-0.6931)
    """
    _check(member_logits)
    gain = 0.5 * member_log_probability(member_logits).mean()
    if nonmember_logits is not None:
        _check(nonmember_logits)
        gain = gain + 0.5 * nonmember_log_probability(nonmember_logits).mean()
    return gain


def _check(logits: Tensor) -> None:
    if logits.numel() == 0 or not (logits.dim() == 1 or (logits.dim() == 2 and logits.shape[1] == 2)):
        raise ValueError(f"attacker logits must be (N, 2) or (N,) with N > 0, not {tuple(logits.shape)}")
