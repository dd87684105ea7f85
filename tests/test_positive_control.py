"""The positive control on a real LoRA: the built-in model learns 16 people by heart, and attacks must find them."""

import pytest

from lorica import adapt, audit, shadows
from lorica.adapt import AdaptConfig
from lorica.audit import ATTACKS, AuditConfig
from lorica.data.cohort import write_cohort
from lorica.shadows import ShadowsConfig

FLOOR = 0.9
"""AUC below which an attack has lost its sting; on 8 members and 8 non-members it is coarse."""
# Guidance exaggerates what a LoRA has learned. One that knows its pictures by heart then draws them garish: with the
# default guidance of 3, which finds most on LoRAs of ordinary length, this attack is at chance here.
SETTINGS = {"reconstruction": {"guidance": 1.0, "steps": 10}}


@pytest.fixture(scope="module")
def aucs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    folder = tmp_path_factory.mktemp("memorised")
    members, nonmembers = (write_cohort(folder / name, 16, 0, start) for name, start in (("in", 0), ("out", 10**6)))
    adapt.run(
        AdaptConfig(
            data=members,
            output=folder / "run",
            steps=120,
            batch_size=16,
            learning_rate=6e-3,
            lora={"rank": 16, "alpha": 16.0, "targets": "transformer-blocks"},
            split={"nonmembers": nonmembers},
            validate_every=1000,
            sample_every=0,
            device="cpu",
        )
    )
    shadows.run(ShadowsConfig(run=folder / "run", count=2))
    found = audit.run(
        AuditConfig(
            output=folder / "audit",
            lora=folder / "run",
            attacks=list(ATTACKS),
            settings=SETTINGS,
            batch_size=32,
            device="cpu",
        )
    )
    return {name: result["auc"]["value"] for name, result in found["attacks"].items()}


def test_every_attack_finds_what_a_lora_learned_by_heart(aucs: dict[str, float]) -> None:
    assert set(aucs) == set(ATTACKS)
    assert {name: auc for name, auc in aucs.items() if auc < FLOOR} == {}
