"""The audit from pictures to audit.json: extraction, controls, verdict and gate."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pydantic import ValidationError

from analytic_model import AnalyticModel
from lorica.audit import ATTACKS, AuditConfig, MembershipScores, run, runner
from lorica.audit.attacks import Attack, StatisticAttack
from lorica.audit.attacks.mc_loss import McLossOptions
from lorica.audit.controls import blind_scores, control
from lorica.audit.extract import row_key
from lorica.audit.gate import Gate
from lorica.audit.shadows import shadows_of
from lorica.audit.subjects import split_of, subjects_of
from lorica.audit.target import training_facts
from lorica.audit.verdict import judge
from lorica.config import load
from lorica.data import GROUPS, Picture, Split, make_split, pixels, read_folder
from lorica.diffusion import LatentDiffusion, LoraConfig, add_lora, save_lora
from lorica.diffusion.lora import PEFT_FILE
from lorica.errors import LoricaError
from lorica.shadows.plan import divide

COUNT = 40  # pictures per side
FAST = {"nn-loss": {"epochs": 4, "learning_rate": 1e-3}, "adaptive-nn": {"draws": 8, "epochs": 12}}


def write_pictures(folder: Path, count: int, seed: int, brightness: float = 0.0, word: str = "noise") -> Path:
    """8 x 8 pictures of uniform noise: i.i.d., so that no two groups of them differ but by chance.

    Their captions are numbered, and so tell a model that knows them by heart which picture is meant.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        levels = np.clip(rng.integers(0, 256, (8, 8, 3)) + brightness, 0, 255).astype(np.uint8)
        Image.fromarray(levels).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"{word} {rng.choice(['red', 'green', 'blue'])} {i:03d}")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pictures")
    return write_pictures(root / "members", COUNT, 1), write_pictures(root / "nonmembers", COUNT, 2)


@pytest.fixture(scope="module")
def lora_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("lora") / "some.safetensors"
    file.write_bytes(b"analytic")
    return file


class Models:
    """Stands in for `LatentDiffusion.load`; remembers the model it gave."""

    def __init__(self, members: torch.Tensor | None, captions: Sequence[str] = ()) -> None:
        self.members, self.captions, self.given, self.loads = members, captions, AnalyticModel(), 0

    def __call__(self, base: str, *, device: str | None = None, config: str | None = None) -> AnalyticModel:
        self.loads += 1
        self.given = AnalyticModel(self.members, self.captions)
        self.given.adapted = False
        return self.given


@pytest.fixture
def memorised(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Models:
    pictures = read_folder(folders[0])
    latents = AnalyticModel().encode_pictures(pixels(pictures, 8)).double()
    models = Models(latents, [picture.caption for picture in pictures])
    monkeypatch.setattr(LatentDiffusion, "load", models)
    return models


@pytest.fixture
def innocent(monkeypatch: pytest.MonkeyPatch) -> Models:
    models = Models(None)
    monkeypatch.setattr(LatentDiffusion, "load", models)
    return models


@pytest.fixture
def config(folders: tuple[Path, Path], lora_file: Path, tmp_path: Path) -> AuditConfig:
    return AuditConfig(
        output=tmp_path / "audit",
        lora=lora_file,
        members=folders[0],
        nonmembers=folders[1],
        settings=FAST,
        fprs=[0.05, 0.5],
    )


@pytest.fixture(scope="module")
def shadows(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shadows of the analytic model, that learned their members by heart: the files of `lorica shadows`."""
    folder = tmp_path_factory.mktemp("run") / "shadows"
    split = make_split(*map(read_folder, folders), seed=0)
    split = Split(split.groups, 0, roots=folders)
    for index in range(4):
        own = divide(split, 0, index)
        own.save(folder / f"{index:03d}" / "split.json")
        latents = AnalyticModel().encode_pictures(pixels(own.members, 8)).double()
        np.save(file := folder / f"{index:03d}" / "weights.npy", latents.numpy())
        file.rename(file.with_name(PEFT_FILE))
        file.with_name("config.yaml").write_text("")
        file.with_name("run.json").write_text(json.dumps({"base_fingerprint": AnalyticModel().fingerprint}))
    return folder


def changed(config: AuditConfig, **values: Any) -> AuditConfig:
    return AuditConfig.model_validate(config.model_dump() | values)


# --- end to end


def test_every_registered_attack_convicts_a_lora_that_learned_its_pictures_by_heart(
    memorised: Models, config: AuditConfig, shadows: Path
) -> None:
    audit = run(changed(config, shadows=shadows))
    assert set(audit["attacks"]) == set(ATTACKS) and audit["target"]["shadows"] == 4
    for result in audit["attacks"].values():
        assert result["auc"]["value"] > 0.9
        assert result["auc"]["low"] > 0.5
        assert result["asr"]["value"] > 0.8
        assert result["oracle_asr"]["value"] >= result["asr"]["value"]
    assert audit["verdict"]["leaks"] and audit["verdict"]["trusted"]
    assert audit["verdict"]["worst_attack"] in ATTACKS
    assert audit["collection"]["detected"] and audit["collection"]["trusted"]
    assert set(audit["collection"]["attacks"]) == {n for n in ATTACKS if issubclass(ATTACKS[n], StatisticAttack)}
    assert audit["controls"]["blind"]["fair"]
    asked = {name for name in ATTACKS if not (ATTACKS[name].needs_base or ATTACKS[name].needs_lora)}
    assert set(audit["controls"]["base"]) == asked
    assert all(control["covers_chance"] for control in audit["controls"]["base"].values())


def test_a_lora_that_learned_nothing_is_acquitted(innocent: Models, config: AuditConfig) -> None:
    audit = run(config)
    assert not audit["verdict"]["leaks"] and not audit["collection"]["detected"]
    assert all(r["auc"]["low"] <= 0.5 <= r["auc"]["high"] for r in audit["attacks"].values())
    assert audit["attacks"]["calibrated-loss"]["auc"]["value"] == 0.5  # the LoRA is the base: every score is zero


def test_a_collection_is_tested_on_fixed_scores_alone(memorised: Models, config: AuditConfig) -> None:
    assert run(changed(config, attacks=["sima", "clid"]))["collection"] is None
    assert run(changed(config, attacks=["sima", "loss"]))["collection"]["attacks"] == ["loss"]


def test_audit_json_follows_its_schema(memorised: Models, config: AuditConfig) -> None:
    audit = run(changed(config, fail_if="auc>0.6"))
    assert json.loads((config.output / "audit.json").read_text()) == audit
    assert list(audit) == [
        "schema", "provenance", "target", "captions", "counts", "attacks", "exposed", "collection",
        "canaries", "controls", "verdict", "warnings", "gate",
    ]  # fmt: skip
    assert audit["schema"] == 1
    assert audit["provenance"]["config"]["settings"] == FAST
    assert audit["counts"] == dict.fromkeys(GROUPS, COUNT // 2)
    assert audit["target"]["lora"] == "some.safetensors" and audit["target"]["rank"] == 1
    for result in audit["attacks"].values():
        assert {"threat_model", "needs_caption", "queries", "source", "options", "auc_distance"} <= set(result)
        assert set(result["auc"]) == {"value", "low", "high", "level"}
        assert {"value", "low", "high", "threshold"} <= set(result["asr"]) & set(result["oracle_asr"])
        assert set(result["tpr"]) == {"0.05", "0.5"}
        tpr = result["tpr"]["0.05"]
        assert set(tpr) == {"value", "low", "high", "attained_fpr", "reliable", "note"}
        assert not tpr["reliable"] and "20 non-members" in tpr["note"]
        scores = MembershipScores(result["scores"]["members"], result["scores"]["nonmembers"])
        assert scores.auc == result["auc"]["value"]
        assert scores.asr(result["asr"]["threshold"]) == result["asr"]["value"]
    assert audit["gate"]["failed"]
    assert set(audit["exposed"]) == set(audit["attacks"]) and audit["exposed"]["mc-loss"][0]["fpr"] == 0
    assert audit["canaries"] is None


def test_no_path_and_no_caption_is_in_the_features(memorised: Models, config: AuditConfig) -> None:
    run(changed(config, attacks=["loss"]))
    stored = b"".join(file.read_bytes() for file in (config.output / "features").rglob("*") if file.is_file())
    for private in (b"members", b"noise red", b"000.png", str(config.members).encode()):
        assert private not in stored


def test_the_base_model_alone_can_be_audited_and_says_which_attacks_it_had_to_skip(
    innocent: Models, config: AuditConfig
) -> None:
    audit = run(changed(config, lora=None))
    assert "calibrated-loss" not in audit["attacks"]
    assert any("calibrated-loss was not run" in warning for warning in audit["warnings"])
    assert audit["target"]["lora"] is None
    assert "base model" in audit["verdict"]["text"]


WITH_SHADOWS = [name for name in ATTACKS if ATTACKS[name].needs_shadows]


def test_attacks_that_need_shadows_are_left_out_with_a_warning_where_there_are_none(
    innocent: Models, config: AuditConfig
) -> None:
    audit = run(changed(config, attacks=["loss", *WITH_SHADOWS]))
    assert set(audit["attacks"]) == {"loss"} and audit["target"]["shadows"] == 0
    assert any(
        warning.startswith(f"{', '.join(WITH_SHADOWS)} were not run") and "lorica shadows" in warning
        for warning in audit["warnings"]
    )


def test_an_attack_on_the_weights_of_a_lora_is_left_out_where_there_is_none(
    innocent: Models, config: AuditConfig, shadows: Path
) -> None:
    audit = run(changed(config, lora=None, shadows=shadows, attacks=WITH_SHADOWS))
    assert set(audit["attacks"]) == {"lira", "rmia"}
    assert any("gsa was not run: there is no LoRA whose weights" in warning for warning in audit["warnings"])


def test_shadows_are_asked_once_and_only_by_the_attacks_that_need_them(
    memorised: Models, config: AuditConfig, shadows: Path
) -> None:
    config = changed(config, shadows=shadows, attacks=["loss", "pfami", "lira", "rmia", "gsa"])
    first = run(config)
    stream, gradients, loss, pfami = 16, 10, 1, 20
    by_lora, by_base, by_shadow = stream + gradients + loss + pfami, stream + loss + pfami, stream + gradients
    assert calls(memorised) == 2 * COUNT * (by_lora + by_base + 4 * by_shadow)
    second = run(config)
    assert calls(memorised) == 0
    assert first["attacks"] == second["attacks"]


def test_features_of_shadows_say_who_was_a_member_of_which(
    memorised: Models, config: AuditConfig, shadows: Path
) -> None:
    split = split_of(config)
    models, _, _ = subjects_of(config, split)
    config = changed(config, shadows=shadows)
    attack = ATTACKS["lira"]()
    features = runner._extract(config, {"lira": attack}, models, shadows_of(config, split)[0])["target", "lira"]
    assert features["shadow_losses"].shape == (2 * COUNT, 4, 16)
    assert (features["shadow_in"].sum(axis=1) == 2).all()
    inside = features["shadow_losses"][features["shadow_in"]].mean()
    assert inside < 0.5 * features["shadow_losses"][~features["shadow_in"]].mean()
    assert memorised.given.adapted and memorised.given.members is memorised.members  # the LoRA is back on


def test_shadows_of_another_base_model_or_of_other_pictures_leave_the_other_attacks_to_run(
    memorised: Models, config: AuditConfig, shadows: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(shadows, tmp_path / "other"))
    (other / "002" / "run.json").write_text(json.dumps({"base_fingerprint": "0" * 64}))
    audit = run(changed(config, shadows=other, attacks=["lira", "loss"]))
    assert set(audit["attacks"]) == {"loss"} and audit["target"]["shadows"] == 0
    assert "lira was not run: shadow 002 was trained on another base model" in " ".join(audit["warnings"])

    strangers = write_pictures(tmp_path / "strangers", COUNT, 3)
    audit = run(changed(config, shadows=shadows, members=strangers, attacks=["lira", "loss"], output=tmp_path / "b"))
    assert set(audit["attacks"]) == {"loss"}
    assert f"shadow 000 is not one of the audited LoRA: {COUNT} of the audited" in " ".join(audit["warnings"])


def test_a_folder_of_shadows_that_holds_none_is_refused(
    memorised: Models, config: AuditConfig, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoricaError, match="no finished shadow"):
        run(changed(config, shadows=tmp_path / "empty"))


def test_the_asr_threshold_does_not_come_from_the_test_pictures(memorised: Models, config: AuditConfig) -> None:
    """Auxiliary members that look like non-members spoil the transferred ASR and leave the oracle alone."""

    class Shifted(ATTACKS["loss"]):  # type: ignore[misc, name-defined]
        def score(self, groups: Any, seed: int) -> Any:
            scores = super().score(groups, seed)
            return {g: s + 100 * g.startswith("aux") for g, s in scores.items()}

    attack = Shifted()
    models, _, _ = subjects_of(config, split := split_of(config))
    features = runner._extract(config, {"loss": attack}, models)
    result = runner._result(attack, *runner._score(attack, features["target", "loss"], split, config), config)
    assert result["asr"]["value"] == 0.5
    assert result["oracle_asr"]["value"] > 0.9


# --- extraction


def calls(models: Models) -> int:
    """Pictures that the model was asked about since it was loaded, or since this was last looked at."""
    count = sum(models.given.calls)
    models.given.calls.clear()
    return count


def test_an_audit_whose_features_are_there_never_loads_the_model(
    memorised: Models, config: AuditConfig, shadows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(config, shadows=shadows)
    first = run(config)
    assert calls(memorised) > 0
    with monkeypatch.context() as patch:
        patch.setattr(LatentDiffusion, "load", lambda *args, **kwargs: pytest.fail("the model was loaded"))
        second = run(config)
    assert {**first, "provenance": None} == {**second, "provenance": None}


def test_a_base_model_whose_files_changed_is_looked_at_again(
    memorised: Models, config: AuditConfig, tmp_path: Path
) -> None:
    """Names, sizes and times stand for the files; an audit of the changed model is another audit."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "weights").write_bytes(b"some")
    config = changed(config, base=str(base), attacks=["loss"])
    run(config)
    assert calls(memorised) > 0
    for change in (lambda: (base / "weights").write_bytes(b"others"), lambda: (base / "more").touch()):
        memorised.loads = 0
        change()
        run(config)
        assert memorised.loads == 1
    memorised.loads = 0
    for damaged in config.output.glob("features/model-*.json"):
        damaged.write_text("{")
    run(config)
    assert memorised.loads == 1


def test_an_audit_asks_each_question_once_although_two_attacks_need_the_answer(
    memorised: Models, config: AuditConfig
) -> None:
    run(config)
    stream, without_caption = 16, 16  # mc-loss, calibrated-loss, nn-loss and both forms of CLiD share them
    clean, loss, pfami, secmi, pia, pian, sima = 1, 1, 20, 11, 1, 1, 5  # four ask about the clean picture at t = 0
    drawn = ATTACKS["reconstruction"]().queries  # pictures that no other attack has a use for
    once = stream + without_caption + clean + loss + pfami + secmi + pia + pian + sima + drawn
    assert calls(memorised) == 2 * once * 2 * COUNT  # LoRA and base, all pictures
    alone = sum(ATTACKS[name]().queries / (1 + ATTACKS[name].needs_base) for name in ATTACKS)
    assert once - drawn < 0.5 * (alone - drawn)


def test_an_interrupted_audit_goes_on_where_it_stopped(memorised: Models, config: AuditConfig, tmp_path: Path) -> None:
    whole = run(changed(config, output=tmp_path / "whole"))
    total = calls(memorised)

    class Interrupted(AnalyticModel):
        def predict(self, *args: Any) -> torch.Tensor:
            if len(self.calls) == 100:
                raise KeyboardInterrupt
            return super().predict(*args)

    def load(base: str, *, device: str | None = None, config: str | None = None) -> AnalyticModel:
        load.given = Interrupted(memorised.members, memorised.captions)  # type: ignore[attr-defined]
        return load.given  # type: ignore[attr-defined]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LatentDiffusion, "load", load)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    lost = sum(load.given.calls)  # type: ignore[attr-defined]
    resumed = run(config)
    batch = config.batch_size * total // (2 * 2 * COUNT)  # at most one batch is asked about twice
    assert total - lost <= calls(memorised) <= total - lost + batch
    assert resumed["attacks"] == whole["attacks"]


@pytest.mark.parametrize("change", ["seed", "lora", "caption"])
def test_features_of_another_seed_lora_or_caption_are_not_reused(
    change: str, memorised: Models, config: AuditConfig, tmp_path: Path
) -> None:
    config = changed(config, attacks=["loss"])
    if change == "caption":
        moved = write_pictures(tmp_path / "members", COUNT, 1)
        config = changed(config, members=moved)
    run(config)
    whole = calls(memorised)
    if change == "seed":
        run(changed(config, seed=1))
        assert calls(memorised) == whole
    elif change == "lora":
        other = tmp_path / "other.safetensors"
        other.write_bytes(b"another")
        run(changed(config, lora=other, overwrite=True))
        assert calls(memorised) == whole / 2  # the base model's are
    else:
        (tmp_path / "members" / "000.txt").write_text("another caption")
        run(config)
        assert calls(memorised) == 2  # this picture, by LoRA and base


def test_options_of_the_scoring_alone_ask_nothing_again(memorised: Models, config: AuditConfig) -> None:
    config = changed(config, attacks=["nn-loss", "calibrated-loss"])
    run(changed(config, settings={"nn-loss": {"epochs": 2}}))
    assert calls(memorised) > 0
    run(changed(config, settings={"nn-loss": {"epochs": 1}, "calibrated-loss": {"form": "difference"}}))
    assert calls(memorised) == 0


def test_damaged_features_are_measured_again(memorised: Models, config: AuditConfig) -> None:
    config = changed(config, attacks=["mc-loss"])
    before = run(config)
    for file in (config.output / "features").rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:50])
    after = run(config)
    assert calls(memorised) == 2 * 16 * 2 * COUNT
    assert before["attacks"] == after["attacks"]


def test_results_do_not_depend_on_the_batch_size(memorised: Models, config: AuditConfig, tmp_path: Path) -> None:
    one, other = (
        run(changed(config, attacks=["calibrated-loss", "loss"], batch_size=size, output=tmp_path / str(size)))
        for size in (7, 64)
    )
    for name in ("calibrated-loss", "loss"):
        for group in ("members", "nonmembers"):
            scores = [a["attacks"][name]["scores"][group] for a in (one, other)]
            np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-7)


def test_no_batch_is_made_of_one_group_alone(memorised: Models, config: AuditConfig) -> None:
    run(changed(config, attacks=["loss"]))
    split = make_split(read_folder(config.members), read_folder(config.nonmembers), seed=0)  # type: ignore[arg-type]
    members = {row_key(picture) for picture in split.members}
    for file in (config.output / "features").rglob("*.npz"):
        with np.load(file, allow_pickle=False) as stored:
            inside = [key in members for key in stored["keys"].tolist()]
        assert any(inside) and not all(inside)


# --- the real thing


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline_folder: Path) -> Iterator[tuple[Path, Path]]:
    """The tiny Stable Diffusion with a random LoRA on UNet and text encoder: (base folder, LoRA folder)."""
    folder = tmp_path_factory.mktemp("real")
    model = LatentDiffusion.load(str(tiny_pipeline_folder), device="cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in add_lora(model.pipeline, LoraConfig(rank=4, text_encoder=True)):
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_lora(model.pipeline, folder, base_fingerprint=model.fingerprint)
    yield tiny_pipeline_folder, folder


def test_every_registered_attack_runs_end_to_end_on_a_stable_diffusion(
    real: tuple[Path, Path], config: AuditConfig
) -> None:
    few = {"mc-loss": {"draws": 2}, "calibrated-loss": {"draws": 2}, "nn-loss": {"draws": 2, "epochs": 1}}
    few |= {"adaptive-nn": {"draws": 2, "epochs": 1}, "reconstruction": {"pictures": 1, "steps": 2}}
    audit = run(changed(config, base=str(real[0]), lora=real[1], settings=few))
    assert set(audit["attacks"]) == set(ATTACKS) - set(WITH_SHADOWS)
    assert audit["target"]["rank"] == 4 and audit["target"]["base_matches"]
    # The base in `calibrated-loss` reads captions without the LoRA on the text encoder.
    scores = audit["attacks"]["calibrated-loss"]["scores"]
    model = LatentDiffusion.load(str(real[0]), device="cpu")
    split = make_split(read_folder(config.members), read_folder(config.nonmembers), seed=0)  # type: ignore[arg-type]
    picture = split.groups["test_members"][0]
    assert scores["members"][0] == pytest.approx(by_hand(model, real[1], picture), rel=1e-3)


def by_hand(model: LatentDiffusion, lora: Path, picture: Picture) -> float:
    """The log-ratio of one picture: base model first, LoRA second, nothing shared but the noise."""
    from lorica.audit.queries import Sitting, answer
    from lorica.diffusion import Encoded, encode

    def losses(encoded: Encoded) -> Any:
        sitting = Sitting(model, encoded, 0)
        ask = ATTACKS["mc-loss"](McLossOptions(draws=2)).ask(sitting)
        return answer(sitting, {"it": ask})["it"]["losses"]

    encoded = encode(model, [picture])
    base = losses(encoded)
    model.load_lora(lora)
    with torch.inference_mode():
        captions = model.encode_captions([picture.caption])
    adapted = losses(Encoded(encoded.latents, captions, encoded.ids))
    return float(np.log(base / adapted).mean())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_drawing_costs_as_many_unet_calls_as_the_attack_states(
    guidance: float, real: tuple[Path, Path], config: AuditConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the base model draws without the LoRA."""
    asked: list[int] = []
    load = LatentDiffusion.load

    def counted(base: str, **options: Any) -> LatentDiffusion:
        model = load(base, **options)
        model.unet.register_forward_hook(lambda module, inputs, output: asked.append(len(output[0])))
        return model

    monkeypatch.setattr(LatentDiffusion, "load", counted)
    settings = {"reconstruction": {"pictures": 2, "steps": 3, "guidance": guidance}}
    config = changed(config, base=str(real[0]), attacks=["reconstruction"], settings=settings)
    audit = run(changed(config, lora=real[1]))
    assert sum(asked) == 2 * 2 * COUNT * audit["attacks"]["reconstruction"]["queries"]
    alone = run(changed(config, lora=None, output=tmp_path / "base"))["attacks"]["reconstruction"]["auc"]["value"]
    assert alone == pytest.approx(audit["controls"]["base"]["reconstruction"]["auc"]["value"], abs=0.01)
    assert alone != pytest.approx(audit["attacks"]["reconstruction"]["auc"]["value"], abs=1e-6)


def test_a_lora_of_another_base_model_makes_the_verdict_untrusted(
    real: tuple[Path, Path], config: AuditConfig, tmp_path: Path
) -> None:
    model = LatentDiffusion.load(str(real[0]), device="cpu")
    add_lora(model.pipeline, LoraConfig(rank=2))
    save_lora(model.pipeline, tmp_path / "lora", base_fingerprint="0" * 64)
    audit = run(changed(config, base=str(real[0]), lora=tmp_path / "lora", attacks=["loss"]))
    assert audit["target"]["base_matches"] is False
    assert not audit["verdict"]["trusted"] and "another base model" in audit["verdict"]["text"]


# --- controls


def groups_of(members: Path, nonmembers: Path) -> dict[str, list[Picture]]:
    return make_split(read_folder(members), read_folder(nonmembers), seed=0).groups


def test_the_blind_baseline_finds_nothing_in_a_random_split(folders: tuple[Path, Path]) -> None:
    low, high = blind_scores(groups_of(*folders)).interval("auc")
    assert low <= 0.5 <= high


@pytest.mark.parametrize("difference", [{"brightness": 25.0}, {"word": "photo"}])
def test_the_blind_baseline_finds_groups_that_differ_by_themselves(
    difference: dict[str, Any], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    other = write_pictures(tmp_path / "other", COUNT, 3, **difference)
    assert blind_scores(groups_of(folders[0], other)).interval("auc")[0] > 0.5


def test_an_unfair_split_makes_the_verdict_untrusted(innocent: Models, config: AuditConfig, tmp_path: Path) -> None:
    other = write_pictures(tmp_path / "other", COUNT, 3, word="photo")
    audit = run(changed(config, nonmembers=other, attacks=["loss"]))
    assert not audit["controls"]["blind"]["fair"]
    assert not audit["verdict"]["trusted"] and not audit["collection"]["trusted"]
    assert "unfair" in audit["verdict"]["text"]
    assert any("unfair" in warning for warning in audit["warnings"])


def test_a_base_model_that_knows_the_members_makes_the_verdict_untrusted(
    memorised: Models, config: AuditConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tainted(AnalyticModel):
        """Switching its LoRA off changes nothing."""

        def expected_noise(self, noisy: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
            self.adapted = True
            return super().expected_noise(noisy, a)

    monkeypatch.setattr(LatentDiffusion, "load", lambda base, device=None, config=None: Tainted(memorised.members))
    audit = run(changed(config, attacks=["mc-loss"]))
    assert not audit["controls"]["base"]["mc-loss"]["covers_chance"]
    assert not audit["verdict"]["trusted"] and "saw no member" in audit["verdict"]["text"]


def test_one_of_many_controls_may_stray_as_far_as_chance_takes_one_of_that_many() -> None:
    stray = MembershipScores(np.arange(40.0) + 6.2, np.arange(40.0))
    fair = MembershipScores(np.arange(40.0) + 0.5, np.arange(40.0))
    low, _ = stray.interval("auc", level=0.95)
    assert low > 0.5 > stray.interval("auc", level=1 - 0.05 / 4)[0]
    assert not control({"a": stray}, 0.95, "fair")["a"]["fair"]
    family = control({"a": stray, "b": fair, "c": fair, "d": fair}, 0.95, "fair")
    assert all(entry["fair"] for entry in family.values())
    assert family["a"]["auc"]["low"] == low  # what is shown stays the common interval


# --- captions


def without_captions(config: AuditConfig, folder: Path) -> AuditConfig:
    """The same pictures in folders that hold nothing else."""
    for side in ("members", "nonmembers"):
        (folder / side).mkdir()
        for file in getattr(config, side).glob("*.png"):
            (folder / side / file.name).write_bytes(file.read_bytes())
    return changed(config, members=folder / "members", nonmembers=folder / "nonmembers")


def test_pictures_without_captions_are_refused_with_the_ways_out_before_the_model_is_loaded(
    config: AuditConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatentDiffusion, "load", None)
    bare = without_captions(config, tmp_path)
    with pytest.raises(LoricaError, match="80 of 80 pictures have no caption") as refused:
        run(bare)
    assert "--captions none" in str(refused.value.remedy) and "trigger word" in str(refused.value.remedy)


@pytest.mark.parametrize(
    ("captions", "asked", "source"),
    [
        ("file", None, "file"),
        ("none", {""}, "none"),
        ("a  sks person", {"a sks person"}, "constant"),
    ],
)
def test_the_model_is_asked_with_the_captions_that_the_audit_names(
    captions: str,
    asked: set[str] | None,
    source: str,
    memorised: Models,
    config: AuditConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: set[str] = set()

    class Hearing(AnalyticModel):
        def encode_captions(self, captions: Any) -> torch.Tensor:
            heard.update(captions)
            return super().encode_captions(captions)

    monkeypatch.setattr(LatentDiffusion, "load", lambda base, device=None, config=None: Hearing(memorised.members))
    audit = run(changed(config, captions=captions, attacks=["loss"]))
    own = {file.read_text() for folder in (config.members, config.nonmembers) for file in folder.glob("*.txt")}  # type: ignore[union-attr]
    assert heard == (own if asked is None else asked)
    assert audit["captions"]["source"] == source
    assert source != "constant" or "a sks person" in audit["captions"]["used"]


def test_without_the_pictures_own_captions_the_attacks_on_captions_are_left_out_and_the_others_run(
    memorised: Models, config: AuditConfig, tmp_path: Path
) -> None:
    bare = changed(without_captions(config, tmp_path), captions="none", attacks=["loss", "clid", "pia"])
    audit = run(bare)
    assert list(audit["attacks"]) == ["loss", "pia"] and audit["verdict"]["leaks"]
    assert any(warning.startswith("clid was not run") for warning in audit["warnings"])


def test_captions_may_be_missing_from_the_pictures_of_a_split_too(
    memorised: Models, config: AuditConfig, tmp_path: Path
) -> None:
    folder = adapt_run(tmp_path / "run", config)
    bare = without_captions(config, tmp_path)
    moved = changed(
        bare, members=None, nonmembers=None, split=folder / "split.json", data=bare.members,
        nonmember_data=bare.nonmembers, attacks=["loss"],
    )  # fmt: skip
    with pytest.raises(LoricaError, match="no caption"):
        run(moved)
    assert run(changed(moved, captions="sks"))["counts"]["test_members"] == COUNT // 2


# --- verdict


def judged(scores: dict[str, MembershipScores], **options: Any) -> dict[str, Any]:
    attacks: dict[str, Attack] = {name: ATTACKS["loss"]() for name in scores}
    defaults: dict[str, Any] = {
        "subject": "The LoRA",
        "shadows": 0,
        "fprs": [0.01, 0.05],
        "level": 0.95,
        "objections": [],
    }
    return judge(scores, attacks, **defaults | options)


def shifted(shift: float, seed: int, count: int = 100) -> MembershipScores:
    rng = np.random.default_rng(seed)
    return MembershipScores(rng.normal(shift, 1, count), rng.normal(0, 1, count))


def test_the_verdict_names_the_strongest_attack_and_says_how_many_were_tried() -> None:
    verdict = judged({"weak": shifted(0.5, 0), "strong": shifted(2.0, 1), "none": shifted(0.0, 2)})
    assert verdict["leaks"] and verdict["worst_attack"] == "strong"
    assert "strong" in verdict["text"] and "of 3 attacks" in verdict["text"]


def test_an_inverted_ranking_is_a_leak_too() -> None:
    verdict = judged({"inverted": shifted(-2.0, 0), "weak": shifted(0.1, 1)})
    assert verdict["leaks"] and verdict["worst_attack"] == "inverted"
    assert "inverted" in verdict["text"]


def test_a_few_exposed_pictures_are_a_leak_even_when_the_auc_is_at_chance() -> None:
    rng = np.random.default_rng(0)
    members = np.r_[rng.normal(5, 1, 60), rng.normal(-0.15, 1, 940)]
    scores = MembershipScores(members, rng.normal(0, 1, 1000))
    low, high = scores.interval("auc")
    assert low <= 0.5 <= high
    verdict = judged({"loss": scores})
    assert verdict["leaks"] and "1 % false alarms" in verdict["text"]


def test_models_that_leak_nothing_are_rarely_accused_however_many_attacks_are_tried() -> None:
    accused = [
        judged({f"attack {i}": shifted(0.0, 1000 * trial + i, 60) for i in range(8)})["leaks"] for trial in range(60)
    ]
    assert np.mean(accused) <= 0.1


def test_an_acquittal_says_how_much_it_cannot_rule_out() -> None:
    few, many = (judged({"loss": shifted(0.0, 3, count)})["text"] for count in (10, 1000))
    assert "cannot be ruled out" in few
    bounds = [float(text.split("AUC of up to ")[1].split(" ")[0]) for text in (few, many)]
    assert bounds[0] > 0.7 > 0.6 > bounds[1]


def test_an_acquittal_says_that_no_attacker_with_shadows_was_tried_until_one_was() -> None:
    weak = shifted(0.0, 3)
    without = judged({"loss": weak})["text"]
    assert "No attacker with shadow LoRAs was tried: they find leaks that others miss" in without
    assert "shadow" not in judged({"loss": shifted(2.0, 3)})["text"]  # a leak is a leak
    assert "shadow" not in judged({"loss": weak}, shadows=None)["text"]
    attacks = {"loss": ATTACKS["loss"](), "rmia": ATTACKS["rmia"]()}
    options = {"subject": "The LoRA", "fprs": [0.05], "level": 0.95, "objections": []}
    blunt = {"loss": MembershipScores(np.arange(40), np.arange(40)), "rmia": MembershipScores([1, 2, 3], [0, 2, 3])}
    with_shadows = judge(blunt, attacks, shadows=4, **options)["text"]
    assert "With 4 shadow LoRAs and 16 UNet queries per picture, the strongest" in with_shadows
    assert "No attacker" not in with_shadows


# --- gate


def test_a_gate_compares_the_strongest_attack_with_its_limit() -> None:
    scores = {"weak": shifted(0.2, 0), "strong": shifted(1.5, 1)}
    thresholds = {"weak": 0.0, "strong": 0.7}
    strong = scores["strong"]
    values = {
        "auc": strong.auc,
        "auc_distance": strong.auc_distance,
        "asr": strong.asr(0.7),
        "oracle_asr": strong.oracle_asr(),
        "tpr@0.1": strong.tpr_at(0.1),
        "upper(auc)": strong.interval("auc")[1],
        "upper(asr)": strong.interval("asr", threshold=0.7)[1],
        "upper(tpr@0.1)": strong.interval("tpr", fpr=0.1)[1],
    }
    for metric, value in values.items():
        for rule, failed in ((f"{metric}>{value - 1e-6}", True), (f"{metric} > {value + 1e-6:.9f}", False)):
            found = Gate.parse(rule).check(scores, thresholds, 0.95)
            assert found["failed"] is failed, rule
            assert found["attack"] == "strong" and "strong" in found["reason"]
            assert found["value"] == pytest.approx(value)


def test_an_inverted_leak_does_not_pass_a_gate_on_the_auc() -> None:
    inverted = {"loss": shifted(-1.5, 0)}
    assert inverted["loss"].auc < 0.3
    assert Gate.parse("auc>0.6").check(inverted, {"loss": 0.0}, 0.95)["failed"]


def test_the_upper_bound_fails_an_audit_of_too_few_pictures() -> None:
    scores = {"loss": shifted(0.0, 3, 8)}
    point, upper = (
        Gate.parse(rule).check(scores, {"loss": 0.0}, 0.95)["failed"] for rule in ("auc>0.7", "upper(auc)>0.7")
    )
    assert not point and upper


def test_a_limit_is_passed_when_it_is_only_reached_unless_the_rule_says_otherwise() -> None:
    scores = {"loss": MembershipScores([1.0, 1.0], [1.0, 1.0])}
    assert not Gate.parse("auc>0.5").check(scores, {"loss": 0.0}, 0.95)["failed"]
    assert Gate.parse("auc>=0.5").check(scores, {"loss": 0.0}, 0.95)["failed"]


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "auc",
        "auc<0.5",
        "auc>",
        "auc>0.6.1",
        "upper(auc>0.6",
        "upper auc)>0.6",
        "f1>0.6",
        "tpr>0.1",
        "auc>60",
        "tpr@5>0.1",
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused_before_anything_runs(rule: str, config: AuditConfig) -> None:
    with pytest.raises(LoricaError, match="--fail-if"):
        changed(config, fail_if=rule)


# --- configuration and target


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nonmembers": None}, "go together"),
        ({"split": Path("split.json")}, "one or the other"),
        ({"members": None, "nonmembers": None, "lora": None}, "which pictures are members"),
        ({"attacks": ["mc-los"]}, "mc-loss"),
        ({"settings": {"mc-loss": {"drawz": 3}}}, "draws"),
        ({"settings": {"nope": {}}}, "nope"),
        ({"captions": "none", "attacks": ["clid"]}, "nothing to run"),
    ],
)
def test_a_contradictory_configuration_is_refused_with_a_remedy(
    values: dict[str, Any], message: str, config: AuditConfig
) -> None:
    with pytest.raises(LoricaError, match=message):
        changed(config, **values)


def test_a_rate_in_percent_is_refused(config: AuditConfig) -> None:
    with pytest.raises(ValidationError, match=r"0\.01"):
        changed(config, fprs=[1, 5])


def test_several_attacks_may_be_named_in_one_word(config: AuditConfig) -> None:
    assert changed(config, attacks=["loss, pia", "clid"]).attacks == ["loss", "pia", "clid"]


def test_all_means_every_attack(config: AuditConfig) -> None:
    assert changed(config, attacks=["loss", "all"]).attacks == ["loss", *(name for name in ATTACKS if name != "loss")]


def test_options_of_attacks_can_be_set_from_the_command_line(config: AuditConfig, tmp_path: Path) -> None:
    options = {"output": tmp_path, "members": config.members, "nonmembers": config.nonmembers}
    found = load(AuditConfig, assignments=["settings.mc-loss.draws=3"], options=options)
    assert found.attack("mc-loss").queries == 3


def test_every_field_of_the_configuration_is_described() -> None:
    assert all(field.description for field in AuditConfig.model_fields.values())


def test_the_audit_of_one_lora_does_not_silently_replace_that_of_another(
    memorised: Models, config: AuditConfig, tmp_path: Path
) -> None:
    config = changed(config, attacks=["loss"])
    run(config)
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"another")
    with pytest.raises(LoricaError, match="another model"):
        run(changed(config, lora=other))
    assert json.loads((config.output / "audit.json").read_text())["target"]["lora"] == "some.safetensors"
    assert run(changed(config, lora=other, overwrite=True))["target"]["lora"] == "other.safetensors"


def test_a_lora_from_nowhere_without_a_split_is_refused(innocent: Models, config: AuditConfig) -> None:
    with pytest.raises(LoricaError, match="which pictures are members"):
        run(changed(config, members=None, nonmembers=None))


def adapt_run(folder: Path, config: AuditConfig, *, finished: bool = True) -> Path:
    """The files that `lorica adapt` leaves, as far as an audit reads them."""
    settings = {"objective": "smp-lora", "lam": 0.05, "steps": 1000}
    folder.mkdir()
    make_split(read_folder(config.members), read_folder(config.nonmembers), seed=3).save(folder / "split.json")  # type: ignore[arg-type]
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    if finished:
        record = {"config": settings, "steps_per_picture": 200.0, "augmentation": "none", "base_fingerprint": "f" * 64}
        (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_the_split_and_the_training_facts_are_found_beside_the_lora(
    memorised: Models, config: AuditConfig, tmp_path: Path
) -> None:
    folder = adapt_run(tmp_path / "run", config)
    lora = folder / "pytorch_lora_weights.safetensors"
    lora.write_bytes(b"x")
    audit = run(changed(config, members=None, nonmembers=None, lora=lora, attacks=["loss"]))
    expected = {
        "objective": "smp-lora",
        "lam": 0.05,
        "steps": 1000,
        "steps_per_picture": 200.0,
        "augmentation": "none",
    }
    assert expected.items() <= audit["target"].items()
    assert audit["counts"]["test_members"] == COUNT // 2
    assert not any("steps per picture are unknown" in warning for warning in audit["warnings"])


def test_a_checkpoint_has_had_only_its_own_share_of_the_steps(config: AuditConfig, tmp_path: Path) -> None:
    folder = adapt_run(tmp_path / "run", config)
    checkpoint = folder / "checkpoints" / "step_000250"
    checkpoint.mkdir(parents=True)
    facts = training_facts(checkpoint)
    assert (facts["steps"], facts["steps_per_picture"]) == (250, 50.0)
    assert training_facts(folder)["steps"] == 1000


def test_an_unfinished_run_and_a_lora_from_elsewhere_have_fewer_facts(config: AuditConfig, tmp_path: Path) -> None:
    folder = adapt_run(tmp_path / "run", config, finished=False)
    assert training_facts(folder)["objective"] == "smp-lora"
    assert "steps_per_picture" not in training_facts(folder)
    (tmp_path / "elsewhere").mkdir()
    assert training_facts(tmp_path / "elsewhere" / "lora.safetensors") == {}


# --- trouble


def test_an_attack_that_fails_is_named_and_the_others_still_run(
    memorised: Models, config: AuditConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ATTACKS["loss"], "statistic", lambda self, features: np.full(len(features["loss"]), np.nan))
    audit = run(changed(config, attacks=["loss", "mc-loss"]))
    assert set(audit["attacks"]) == {"mc-loss"}
    assert any(warning.startswith("loss was not run") and "finite" in warning for warning in audit["warnings"])
    with pytest.raises(LoricaError, match="no attack"):
        run(changed(config, attacks=["loss"]))


def test_too_few_nonmembers_and_unequal_groups_are_warned_about(
    innocent: Models, config: AuditConfig, tmp_path: Path
) -> None:
    fewer = write_pictures(tmp_path / "few", 20, 4)
    warnings = " ".join(run(changed(config, nonmembers=fewer, attacks=["loss"]))["warnings"])
    assert "10 test non-members are too few for a TPR at 5 %, 50 % FPR" in warnings
    assert "constant answer has an ASR of 0.667" in warnings
    assert "steps per picture are unknown" in warnings


def test_near_duplicates_across_the_groups_are_warned_about(
    innocent: Models, config: AuditConfig, tmp_path: Path
) -> None:
    other = write_pictures(tmp_path / "other", COUNT, 2)
    levels = np.array(Image.open(config.members / "000.png")).astype(int)  # type: ignore[operator]
    Image.fromarray((levels // 2 * 2).astype(np.uint8)).save(other / "000.png")
    warnings = run(changed(config, nonmembers=other, attacks=["loss"]))["warnings"]
    assert any("near-duplicate" in warning for warning in warnings)


def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    config: AuditConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **options: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(LatentDiffusion, "load", load)
    (tmp_path / "file").write_text("")
    with pytest.raises(LoricaError, match="file"):
        run(changed(config, output=tmp_path / "file" / "audit"))
