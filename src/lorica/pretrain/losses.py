"""Objectives of robust pre-training: NT-Xent, and the invariance regularisers SIR and AIR in three forms.

Symbols of Xu et al., NeurIPS 2023 (arXiv 2305.00374): sim is the cosine similarity, t the temperature, a batch holds N
pictures, of which i and j are two augmented views.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Form = Literal["paper", "authors", "anchored"]
"""paper: the KL divergence of the paper's definition. authors: what the released code computes instead. anchored: each
picture's own distribution over the batch, as in ReLIC."""


def nt_xent(z_i: Tensor, z_j: Tensor, temperature: float = 0.5) -> Tensor:
    """Cross-entropy of finding a view's partner among the other 2N - 1 views (Chen et al., ICML 2020, arXiv
    2002.05709, equation 1).

    Args:
        z_i: (N, D), outputs of the projector; any length.
        z_j: (N, D), of the other view of the same pictures.
        temperature: t, above 0.

    Returns:
        The mean over all 2N views.
    """
    z = F.normalize(torch.cat([z_i, z_j]), dim=1)
    logits = z @ z.T / temperature
    logits.fill_diagonal_(float("-inf"))  # a view is not its own candidate
    partner = torch.arange(len(z), device=z.device).roll(len(z_i))
    return F.cross_entropy(logits, partner)


def standard_invariance(
    z_i: Tensor, z_j: Tensor, z_orig: Tensor, temperature: float = 0.5, form: Form = "paper"
) -> Tensor:
    """SIR: how far the two views of the pictures are from telling the same about the pictures themselves.

    With a = softmax(sim(z_i, z_orig) / t) and b = softmax(sim(z_j, z_orig) / t), both over the N matched pairs of the
    batch:

    - paper: KL(a || b) = sum a (log a - log b).
    - authors: sum b (log b - a). The released code hands probabilities to a function that expects their logarithms;
      its gradient is all but that of sum b log b, which evens out b over the batch. Negative, about -log N.
    - anchored: for each picture k, a_k = softmax over all pictures' views sim(z_orig_k, z_i) / t, and b_k likewise;
      the mean of KL(a_k || b_k) (Mitrovic et al., ICLR 2021, arXiv 2010.07922, equation 4).

    L_AIR(.; theta, 0) of the paper, taken to the letter, is 1/N of the first: the second of its two factors is then
    the constant 1/N. Its code, and so this function, leave that out.

    Args:
        z_i: (N, D), outputs of the projector for view i; gradients flow into all three.
        z_j: (N, D), for view j.
        z_orig: (N, D), for the pictures without augmentation.
        temperature: t, above 0.
        form: which.

    Returns:
        A scalar.

    Raises:
        ValueError: an unknown form.
    """
    _require_form(form)
    if form == "anchored":
        return _kl(_all_pairs(z_orig, z_i, temperature), _all_pairs(z_orig, z_j, temperature)) / len(z_i)
    a, b = _matched(z_i, z_orig, temperature), _matched(z_j, z_orig, temperature)
    return _kl(a, b) if form == "paper" else _mistaken_kl(a, b)


def adversarial_invariance(
    z_i: Tensor,
    z_j: Tensor,
    z_i_adv: Tensor,
    z_j_adv: Tensor,
    z_orig: Tensor,
    temperature: float = 0.5,
    form: Form = "paper",
) -> Tensor:
    """AIR: the same for adversarial views, along the chain from a picture to its adversarial view to its natural one.

    For u in {i, j}, p_u = softmax(sim(z_u_adv, z_orig) / t) softmax(sim(z_u_adv, z_u) / t), both over the N matched
    pairs; the product does not sum to 1, in the paper as in the code.

    - paper: KL(p_i || p_j) = sum p_i (log p_i - log p_j): N terms of the order of 1/N^2, so of the order of 1/N.
    - authors: sum p_j (log p_j - p_i), as in `standard_invariance`; about -2 log N / N.
    - anchored: for each picture k, p_u,k = softmax over all pictures' adversarial views of
      (sim(z_orig_k, z_u_adv) + sim(z_u_k, z_u_adv)) / t, the product as one distribution; the mean of
      KL(p_i,k || p_j,k). Ours: what the definition says of one picture, of a size that does not shrink with the
      batch.

    Args:
        z_i: (N, D), outputs of the projector for view i; gradients flow into all five.
        z_j: (N, D), for view j.
        z_i_adv: (N, D), for the adversarial version of view i.
        z_j_adv: (N, D), for that of view j.
        z_orig: (N, D), for the pictures without augmentation.
        temperature: t, above 0.
        form: which.

    Returns:
        A scalar.

    Raises:
        ValueError: an unknown form.
    """
    _require_form(form)
    if form == "anchored":
        chains = [
            (F.normalize(z_orig, dim=1) + F.normalize(z, dim=1)) @ F.normalize(attacked, dim=1).T / temperature
            for z, attacked in ((z_i, z_i_adv), (z_j, z_j_adv))
        ]
        return _kl(*(chain.log_softmax(dim=1) for chain in chains)) / len(z_i)
    p_i, p_j = (
        _matched(attacked, z_orig, temperature) + _matched(attacked, z, temperature)
        for z, attacked in ((z_i, z_i_adv), (z_j, z_j_adv))
    )
    return _kl(p_i, p_j) if form == "paper" else _mistaken_kl(p_i, p_j)


def _require_form(form: str) -> None:
    if form not in get_args(Form):
        raise ValueError(f"unknown form {form!r} of the invariance: one of {', '.join(get_args(Form))}")


def _matched(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """log softmax over the batch of the similarities of matched pairs, (N,)."""
    return (F.cosine_similarity(first, second, dim=1) / temperature).log_softmax(dim=0)


def _all_pairs(anchors: Tensor, others: Tensor, temperature: float) -> Tensor:
    """log softmax over the others of each anchor's similarities, (N, N)."""
    return (F.normalize(anchors, dim=1) @ F.normalize(others, dim=1).T / temperature).log_softmax(dim=1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum()


def _mistaken_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_q.exp() * (log_q - log_p.exp())).sum()
