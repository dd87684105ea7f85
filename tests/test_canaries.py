"""Canaries: drawn from a seed, included by fair coins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorica import adapt, audit
from lorica.adapt import AdaptConfig
from lorica.adapt.step import Step
from lorica.audit import AuditConfig
from lorica.audit.canaries import _sentence
from lorica.data.canaries import draw_canary, load_canaries, make_canaries, toss
from lorica.errors import LoricaError


def test_canaries_are_the_same_again_for_a_seed_and_different_for_another(tmp_path: Path) -> None:
    places = (("a", 1), ("b", 1), ("c", 2))
    first, again, other = (make_canaries(tmp_path / name, 12, seed) for name, seed in places)
    assert [p.sha256 for p in first.pictures] == [p.sha256 for p in again.pictures]
    assert first.included == again.included
    assert not {p.sha256 for p in first.pictures} & {p.sha256 for p in other.pictures}
    assert len({p.sha256 for p in first.pictures}) == 12 and all(p.caption for p in first.pictures)
    assert [p.sha256 for p in load_canaries(tmp_path / "a", 12, 1).trained] == [
        p.sha256 for p, coin in zip(first.pictures, first.included, strict=True) if coin
    ]


def test_coins_are_fair_and_have_nothing_to_do_with_the_pictures() -> None:
    coins = np.array([toss(8, seed) for seed in range(100)])
    assert 340 < coins.sum() < 460  # 400 +- 3 sigma of 14
    brightness = np.array([[np.asarray(draw_canary(s, i, 8)[0]).mean() for i in range(8)] for s in range(100)])
    assert abs(np.corrcoef(coins.ravel(), brightness.ravel())[0, 1]) < 3 / np.sqrt(800)


def test_canaries_of_another_seed_are_left_alone_and_damage_is_named(tmp_path: Path) -> None:
    first = make_canaries(tmp_path, 4, 0)
    make_canaries(tmp_path, 4, 1)
    assert load_canaries(tmp_path, 4, 0) == make_canaries(tmp_path, 4, 0) == first
    first.pictures[1].file.unlink()
    with pytest.raises(LoricaError, match="incomplete"):
        load_canaries(tmp_path, 4, 0)


def test_a_run_trains_on_the_canaries_whose_coins_say_so_and_an_audit_bounds_epsilon_with_them(
    adapt_config: Callable[..., AdaptConfig],
    tiny_pipeline_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: set[str] = set()
    batch = Step._batch

    def watched(self: Step, *arguments: Any, **options: Any) -> Any:
        made = batch(self, *arguments, **options)
        if made.pool.name == "train":
            seen.update(made.pool.caption(int(row)) for row in made.captions)
        return made

    monkeypatch.setattr(Step, "_batch", watched)
    config = adapt_config(output=tmp_path / "run", canaries=20, steps=60, objective="lora", learning_rate=1e-2)
    record = adapt.run(config)
    canaries = load_canaries(tmp_path / "run", 20, config.seed)
    captions = {p.caption: coin for p, coin in zip(canaries.pictures, canaries.included, strict=True)}
    assert {caption for caption in captions if caption in seen} == {c for c, coin in captions.items() if coin}
    assert record["steps_per_picture"] == 60 * config.batch_size / (12 + sum(canaries.included))

    audited = AuditConfig(
        base=str(tiny_pipeline_folder), lora=tmp_path / "run", attacks=["loss"], output=tmp_path / "a", device="cpu"
    )
    found = audit.run(audited)["canaries"]
    assert (found["count"], found["included"]) == (20, sum(canaries.included))
    assert found["epsilon_lower_bound"] >= 0 and "Of 20 canaries" in found["text"]

    canaries.pictures[0].file.unlink()
    without = audit.run(audited)
    assert without["canaries"] is None and any("canaries" in warning for warning in without["warnings"])
    assert "loss" in without["attacks"]


@pytest.mark.parametrize(
    ("bound", "claimed", "words"),
    [
        (0.0, None, "disprove any"),
        (1.5, None, "at least 1.50"),
        (1.5, 0.1, "contradicts"),
        (1.5, 50.0, "50.00 was claimed"),
    ],
)
def test_what_canaries_prove_stands_beside_what_was_claimed(bound: float, claimed: float | None, words: str) -> None:
    about = {"count": 100, "included": 48, "epsilon_lower_bound": bound, "delta": 0.0, "level": 0.95}
    assert words in _sentence(about | {"claimed_epsilon": claimed})
