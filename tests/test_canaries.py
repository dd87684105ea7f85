"""Canaries: drawn from a seed, included by fair coins."""

from pathlib import Path

import numpy as np
import pytest

from lorica.data.canaries import draw_canary, load_canaries, make_canaries
from lorica.errors import LoricaError


def test_canaries_are_the_same_again_for_a_seed_and_different_for_another(tmp_path: Path) -> None:
    places = (("a", 1), ("b", 1), ("c", 2))
    first, again, other = (make_canaries(tmp_path / name, 12, seed, 32) for name, seed in places)
    assert [p.sha256 for p in first.pictures] == [p.sha256 for p in again.pictures]
    assert first.included == again.included
    assert not {p.sha256 for p in first.pictures} & {p.sha256 for p in other.pictures}
    assert len({p.sha256 for p in first.pictures}) == 12 and all(p.caption for p in first.pictures)
    assert [p.sha256 for p in load_canaries(tmp_path / "a").trained] == [
        p.sha256 for p, coin in zip(first.pictures, first.included, strict=True) if coin
    ]


def test_coins_are_fair_and_have_nothing_to_do_with_the_pictures(tmp_path: Path) -> None:
    coins = np.array([make_canaries(tmp_path / str(seed), 8, seed, 8).included for seed in range(100)])
    assert 340 < coins.sum() < 460  # 400 +- 3 sigma of 14
    brightness = np.array([[np.asarray(draw_canary(s, i, 8)[0]).mean() for i in range(8)] for s in range(100)])
    assert abs(np.corrcoef(coins.ravel(), brightness.ravel())[0, 1]) < 3 / np.sqrt(800)


def test_canaries_of_another_seed_are_not_replaced_and_damage_is_named(tmp_path: Path) -> None:
    make_canaries(tmp_path, 4, 0, 16)
    with pytest.raises(LoricaError, match="other canaries"):
        make_canaries(tmp_path, 4, 1, 16)
    (tmp_path / "canaries" / "00001.png").unlink()
    with pytest.raises(LoricaError, match="incomplete"):
        load_canaries(tmp_path)
