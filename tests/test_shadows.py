"""Shadow LoRAs: who is a member of which, that each is a run of the recipe, and what an audit makes of them."""

import contextlib
import pickle
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from adapt_runs import contents, press_ctrl_c, spoil, weights
from lorica.adapt import AdaptConfig
from lorica.adapt import run as adapt
from lorica.data import GROUPS, Split, make_split, read_folder
from lorica.data.cohort import write_cohort
from lorica.errors import LoricaError
from lorica.shadows import ShadowsConfig, find_shadows
from lorica.shadows import run as train
from lorica.shadows.plan import divide, recipe


def hashes(split: Split) -> set[str]:
    return {picture.sha256 for picture in split.members}


def sizes(split: Split) -> list[int]:
    return [len(split.groups[group]) for group in GROUPS]


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A finished run, free to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture(scope="module")
def shadowed(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two shadows. Read only."""
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("shadowed") / "run"))
    train(ShadowsConfig(run=folder, count=2))
    return folder


# --- who is a member of which


def test_what_is_a_member_of_one_shadow_of_a_pair_is_none_of_the_other(people: Path) -> None:
    split = make_split(read_folder(people), seed=0)
    for pair in range(4):
        even, odd = divide(split, 0, 2 * pair), divide(split, 0, 2 * pair + 1)
        assert sizes(even) == sizes(odd) == sizes(split)
        assert hashes(even) | hashes(odd) == {p.sha256 for p in split.members + split.nonmembers}
        assert not hashes(even) & hashes(odd)


def test_pairs_are_drawn_anew_and_each_from_the_seed_alone(people: Path) -> None:
    split = make_split(read_folder(people), seed=0)
    drawn = [frozenset(hashes(divide(split, seed, index))) for seed in (0, 1) for index in range(6)]
    assert len(set(drawn)) == len(drawn)
    assert frozenset(hashes(divide(split, 0, 3))) == drawn[3]
    assert hashes(split) not in drawn


def test_shadows_of_a_run_with_unequal_groups_keep_its_sizes_and_are_drawn_independently(people: Path) -> None:
    split = make_split(read_folder(people), seed=0, counts=(3, 5, 7, 9))
    shadows = [divide(split, 0, index) for index in range(30)]
    assert all(sizes(shadow) == [3, 5, 7, 9] for shadow in shadows)
    times = Counter(sha for shadow in shadows for sha in hashes(shadow))
    assert len(times) == 24 and sum(times.values()) == 30 * 8
    assert all(2 <= count <= 19 for count in times.values())  # 30 x 8/24 = 10 each


def test_the_groups_are_cut_anew_where_the_auxiliary_shares_of_the_sides_differ(people: Path) -> None:
    split = make_split(read_folder(people), seed=0, counts=(2, 10, 8, 4))
    even, odd = divide(split, 0, 0), divide(split, 0, 1)
    assert sizes(even) == sizes(odd) == [2, 10, 8, 4] and not hashes(even) & hashes(odd)


# --- training


def test_a_shadow_is_the_runs_recipe_on_another_split_with_another_seed(shadowed: Path, tmp_path: Path) -> None:
    for name in ("000", "001"):
        shadow = shadowed / "shadows" / name
        own = recipe(shadow)
        assert own.seed != recipe(shadowed).seed
        by_hand = recipe(shadowed).model_copy(
            update={
                "output": tmp_path / name,
                "seed": own.seed,
                "split": own.split.model_copy(update={"file": shadow / "split.json"}),
            }
        )
        adapt(by_hand)
        assert weights(shadow) == weights(tmp_path / name)
    assert weights(shadowed / "shadows" / "000") != weights(shadowed / "shadows" / "001")


def test_a_second_call_trains_nothing_and_a_higher_count_leaves_the_earlier_ones_alone(copy: Path) -> None:
    assert train(ShadowsConfig(run=copy, count=1))["trained"] == 1
    before = contents(copy / "shadows")
    again = train(ShadowsConfig(run=copy, count=1))
    assert again == {"shadows": [str(copy / "shadows" / "000")], "trained": 0, "base": recipe(copy).base}
    assert contents(copy / "shadows") == before
    assert train(ShadowsConfig(run=copy, count=2))["trained"] == 1
    assert {name: content for name, content in contents(copy / "shadows").items() if name in before} == before


def test_an_interrupted_shadow_goes_on_where_it_stopped(
    copy: Path, shadowed: Path, before_step: Callable[..., None]
) -> None:
    before_step(3, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        train(ShadowsConfig(run=copy, count=2))
    assert (
        not (copy / "shadows" / "000" / "run.json").exists() and not (copy / "shadows" / "001" / "run.json").exists()
    )
    assert train(ShadowsConfig(run=copy, count=2))["trained"] == 2
    for name in ("000", "001"):
        assert weights(copy / "shadows" / name) == weights(shadowed / "shadows" / name)


def test_shadows_follow_a_run_that_was_made_longer(copy: Path) -> None:
    train(ShadowsConfig(run=copy, count=1))
    adapt(recipe(copy).model_copy(update={"output": copy, "steps": 8, "resume": True}))
    assert train(ShadowsConfig(run=copy, count=1))["trained"] == 1
    assert recipe(copy / "shadows" / "000").steps == 8


def test_nonmembers_from_their_own_folder_become_members_of_shadows(
    adapt_config: Callable[..., AdaptConfig], tmp_path: Path
) -> None:
    inside, outside = (write_cohort(tmp_path / name, 6, 0, start) for name, start in (("in", 0), ("out", 100)))
    adapt(adapt_config(data=inside, output=tmp_path / "run", steps=1, split={"nonmembers": outside}))
    for name in ("in", "out"):
        (tmp_path / name).rename(tmp_path / f"{name} moved")
    moved = {"data": tmp_path / "in moved", "nonmember_data": tmp_path / "out moved"}
    train(ShadowsConfig(run=tmp_path / "run", count=2, **moved))
    pictures = [*read_folder(moved["data"]), *read_folder(moved["nonmember_data"])]
    found = find_shadows(tmp_path / "run" / "shadows", pictures, run=tmp_path / "run")
    assert found[0].members | found[1].members == {p.sha256 for p in pictures}
    assert train(ShadowsConfig(run=tmp_path / "run", count=2, **moved))["trained"] == 0


def test_a_shadow_of_a_run_of_two_processes_sees_as_many_pictures_per_step(copy: Path) -> None:
    record = (copy / "run.json").read_text()
    (copy / "run.json").write_text(record.replace('"processes": 1', '"processes": 2'))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    assert recipe(copy).batch_size == 2 * config["batch_size"]


# --- what is refused


def edit(file: Path, **values: Any) -> None:
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | values))


def test_a_shadow_of_another_configuration_pool_or_seed_is_refused_before_anything_is_trained(copy: Path) -> None:
    train(ShadowsConfig(run=copy, count=1))
    before = contents(copy / "shadows")
    with pytest.raises(LoricaError, match="seed"):
        train(ShadowsConfig(run=copy, count=2, seed=1))
    settings = (copy / "config.yaml").read_text()
    edit(copy / "config.yaml", learning_rate=0.5)
    with pytest.raises(LoricaError, match=r"000 is not a shadow of this run; different: learning_rate"):
        train(ShadowsConfig(run=copy, count=2))
    (copy / "config.yaml").write_text(settings)
    split = Split.load(copy / "split.json")
    smaller = {group: pictures[1:] for group, pictures in split.groups.items()}
    Split(smaller, 0).save(copy / "split.json")
    with pytest.raises(LoricaError, match="different: the pictures"):
        train(ShadowsConfig(run=copy, count=2))
    assert contents(copy / "shadows") == before


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match=r"config\.yaml"):
        train(ShadowsConfig(run=tmp_path))


def test_ray_where_it_is_not_installed_is_refused_with_the_command_that_installs_it(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LoricaError) as refused:
        train(ShadowsConfig(run=copy, count=1, engine="ray"))
    assert "pip install 'lorica[ray]'" in refused.value.remedy
    assert not (copy / "shadows").exists()


class Cluster(ModuleType):
    """Ray's calls, carried out on the spot, each as if on another machine: only plain values arrive."""

    def __init__(self, elsewhere: Path) -> None:
        super().__init__("ray")
        self.elsewhere, self.cancelled = elsewhere, 0

    def init(self, **options: Any) -> None: ...

    def remote(self, **resources: Any) -> Callable[..., Any]:
        assert resources == {"num_cpus": 1, "num_gpus": 0}
        return lambda work: SimpleNamespace(remote=lambda values: (work, pickle.dumps(values)))

    def wait(self, tasks: list[Any]) -> tuple[list[Any], list[Any]]:
        return tasks[:1], tasks[1:]

    def get(self, tasks: list[Any]) -> list[Any]:
        with contextlib.chdir(self.elsewhere):
            return [work(pickle.loads(values)) for work, values in tasks]

    def cancel(self, task: Any) -> None:
        self.cancelled += 1


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    (tmp_path / "elsewhere").mkdir()
    cluster = Cluster(tmp_path / "elsewhere")
    monkeypatch.setitem(sys.modules, "ray", cluster)
    return cluster


def test_relative_paths_mean_the_same_on_every_machine_of_a_cluster(
    copy: Path, shadowed: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy.parent)
    assert train(ShadowsConfig(run=Path("run"), count=2, engine="ray"))["trained"] == 2
    for name in ("000", "001"):
        assert weights(copy / "shadows" / name) == weights(shadowed / "shadows" / name)
    assert not any(cluster.elsewhere.iterdir())
    assert train(ShadowsConfig(run=Path("run"), count=2, engine="ray"))["trained"] == 0


def test_a_shadow_that_fails_on_a_cluster_is_reported_and_the_others_are_called_off(
    copy: Path, cluster: Cluster, before_step: Callable[..., None]
) -> None:
    before_step(1, spoil)
    with pytest.raises(LoricaError, match="diverged") as failed:
        train(ShadowsConfig(run=copy, count=3, engine="ray"))
    assert "learning-rate" in failed.value.remedy
    assert cluster.cancelled == 2


def test_a_cluster_trains_the_very_shadows_that_one_machine_does(
    copy: Path, shadowed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ray.init(num_cpus=2)
    try:
        assert train(ShadowsConfig(run=copy, count=2, engine="ray"))["trained"] == 2
    finally:
        ray.shutdown()
    for name in ("000", "001"):
        assert weights(copy / "shadows" / name) == weights(shadowed / "shadows" / name)


# --- what an audit finds


def test_an_audit_finds_the_finished_shadows_and_who_was_a_member(shadowed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shadowed, tmp_path / "run"))
    split = Split.load(folder / "split.json")
    pictures = split.members + split.nonmembers
    found = find_shadows(folder / "shadows", pictures, run=folder)
    assert [shadow.name for shadow in found] == ["000", "001"]
    for shadow in found:
        assert shadow.members == hashes(Split.load(folder / "shadows" / shadow.name / "split.json"))
    (folder / "shadows" / "000" / "run.json").unlink()
    assert [shadow.name for shadow in find_shadows(folder / "shadows", pictures, run=folder)] == ["001"]


def test_a_checkpoint_is_compared_with_the_checkpoints_of_the_shadows(shadowed: Path) -> None:
    part = Path("checkpoints") / "step_000004"
    found = find_shadows(shadowed / "shadows", [], run=shadowed, part=part)
    assert [shadow.lora for shadow in found] == [shadowed / "shadows" / name / part for name in ("000", "001")]
    assert find_shadows(shadowed / "shadows", [], run=shadowed, part=Path("checkpoints") / "step_000005") == []


@pytest.mark.parametrize("change", [{"learning_rate": 0.5}, {"steps": 7}, {"lora": {"rank": 3}}])
def test_an_audit_refuses_shadows_of_another_recipe(change: dict[str, Any], shadowed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shadowed, tmp_path / "run"))
    edit(folder / "config.yaml", **change)
    with pytest.raises(LoricaError, match=next(iter(change))):
        find_shadows(folder / "shadows", [], run=folder)


def test_an_audit_refuses_shadows_that_do_not_know_its_pictures(shadowed: Path, tmp_path: Path) -> None:
    strangers = read_folder(write_cohort(tmp_path / "others", 3, 0, 500))
    with pytest.raises(LoricaError, match="3 of the audited pictures"):
        find_shadows(shadowed / "shadows", strangers)
