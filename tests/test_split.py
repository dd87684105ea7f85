"""The split: disjoint, reproducible, verified against the files, and honest about duplicates."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageOps

from lorica.data import GROUPS, Split, load_rgb, make_split, read_folder
from lorica.data.duplicates import find_duplicates
from lorica.errors import LoricaError


def picture_of(seed):
    """A smooth random picture; two seeds are some 50 grey levels apart."""
    grid = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(grid).resize((48, 48), Image.Resampling.BICUBIC)


def put(folder, name, image, caption="a blur"):
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name)
    (folder / name).with_suffix(".txt").write_text(caption)
    return folder / name


def fill(folder, count, first=0):
    for seed in range(first, first + count):
        put(folder, f"{seed:03}.png", picture_of(seed), f"blur number {seed}")
    return folder


@pytest.fixture
def data(tmp_path):
    return fill(tmp_path / "data", 20)


def hashes(split):
    return {group: [p.sha256 for p in split.groups[group]] for group in GROUPS}


def refusal(call):
    with pytest.raises(LoricaError) as caught:
        call()
    assert caught.value.remedy
    return caught.value.problem


# Making a split


def test_the_four_groups_are_disjoint_and_hold_every_picture(data):
    pictures = read_folder(data)
    split = make_split(pictures, seed=0)
    together = [p for group in GROUPS for p in split.groups[group]]
    assert set(split.groups) == set(GROUPS)
    assert len(together) == 20 and set(together) == set(pictures)
    assert {group: len(split.pictures(group)) for group in GROUPS} == dict.fromkeys(GROUPS, 5)
    assert split.members == split.groups["aux_members"] + split.groups["test_members"]
    assert split.nonmembers == split.groups["aux_nonmembers"] + split.groups["test_nonmembers"]


def test_holding_out_is_stated(data):
    split = make_split(read_folder(data), seed=0)
    assert any("10 of the 20" in note and "NOT trained on" in note for note in split.notes)


def test_given_nonmembers_are_the_nonmembers_and_nothing_is_held_out(data, tmp_path):
    others = read_folder(fill(tmp_path / "others", 8, first=100))
    split = make_split(read_folder(data), others, seed=0)
    assert set(split.members) == set(read_folder(data)) and set(split.nonmembers) == set(others)
    assert split.notes == []


def test_shares_are_followed(data):
    split = make_split(read_folder(data), seed=0, holdout=0.3, aux=0.25)
    assert [len(split.groups[group]) for group in GROUPS] == [4, 10, 2, 4]


def test_the_split_follows_the_seed(data):
    pictures = read_folder(data)
    assert hashes(make_split(pictures, seed=1)) == hashes(make_split(pictures, seed=1))
    assert hashes(make_split(pictures, seed=1)) != hashes(make_split(pictures, seed=2))


def test_the_split_does_not_depend_on_names_order_or_captions(data, tmp_path):
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for index, picture in enumerate(reversed(read_folder(data))):
        shutil.copy(picture.file, renamed / f"x{index:02}.png")
        (renamed / f"x{index:02}.txt").write_text("another caption")
    here, there = read_folder(data), read_folder(renamed)
    assert hashes(make_split(here, seed=3)) == hashes(make_split(there, seed=3))
    assert hashes(make_split(here[::-1], seed=3)) == hashes(make_split(here, seed=3))


def test_the_members_do_not_depend_on_which_nonmembers_are_given(data, tmp_path):
    members = read_folder(data)
    first = make_split(members, read_folder(fill(tmp_path / "a", 6, 100)), seed=0)
    second = make_split(members, read_folder(fill(tmp_path / "b", 9, 200)), seed=0)
    assert first.groups["aux_members"] == second.groups["aux_members"]


def test_every_picture_is_a_member_about_as_often_as_not(data):
    pictures = read_folder(data)
    times = dict.fromkeys(pictures, 0)
    for seed in range(30):
        for picture in make_split(pictures, seed=seed).members:
            times[picture] += 1
    assert min(times.values()) > 4 and max(times.values()) < 26  # four standard deviations


def test_exact_counts_of_one_pool(data):
    split = make_split(read_folder(data), seed=0, counts=(4, 6, 3, 5))
    assert [len(split.groups[group]) for group in GROUPS] == [4, 6, 3, 5]
    assert any(note.startswith("2 pictures are in no group") for note in split.notes)


def test_exact_counts_of_two_folders(data, tmp_path):
    others = read_folder(fill(tmp_path / "others", 8, first=100))
    split = make_split(read_folder(data), others, seed=0, counts=(4, 16, 3, 5))
    assert [len(split.groups[group]) for group in GROUPS] == [4, 16, 3, 5]
    assert split.notes == []


@pytest.mark.parametrize("counts", [(10, 5, 3, 3), (20, 20, 20, 20)])
def test_counts_beyond_the_pool_are_refused(data, counts):
    assert "20 pictures are given" in refusal(lambda: make_split(read_folder(data), seed=0, counts=counts))


def test_counts_beyond_one_of_two_folders_are_refused(data, tmp_path):
    others = read_folder(fill(tmp_path / "others", 8, first=100))
    assert "20 + 8" in refusal(lambda: make_split(read_folder(data), others, seed=0, counts=(4, 4, 4, 5)))


@pytest.mark.parametrize("counts", [(0, 8, 4, 4), (1, 8, 4, 4), (-2, 8, 4, 4)])
def test_groups_that_are_too_small_are_refused(data, counts):
    assert "too few" in refusal(lambda: make_split(read_folder(data), seed=0, counts=counts))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_too_few_pictures_are_refused(tmp_path, count):
    pictures = read_folder(fill(tmp_path / "few", count))
    assert f"{count} given" in refusal(lambda: make_split(pictures, seed=0))


def test_eight_pictures_are_enough(tmp_path):
    split = make_split(read_folder(fill(tmp_path / "few", 8)), seed=0)
    assert [len(split.groups[group]) for group in GROUPS] == [2, 2, 2, 2]


def test_too_few_nonmembers_are_refused(data, tmp_path):
    others = read_folder(fill(tmp_path / "others", 3, first=100))
    assert "20 + 3 given" in refusal(lambda: make_split(read_folder(data), others, seed=0))


@pytest.mark.parametrize("option", ["holdout", "aux"])
@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_shares_outside_zero_and_one_are_refused(data, option, share):
    assert option in refusal(lambda: make_split(read_folder(data), seed=0, **{option: share}))


def test_an_unknown_group_is_refused_with_the_known_ones(data):
    split = make_split(read_folder(data), seed=0)
    with pytest.raises(LoricaError, match="test_nonmembers"):
        split.pictures("validation")


# Duplicates


def slightly_changed(image, amount=3):
    levels = np.asarray(image).astype(int)
    noise = np.random.default_rng(0).choice([-amount, amount], levels.shape)
    return Image.fromarray((levels + noise).clip(0, 255).astype(np.uint8))


def test_a_copied_file_and_the_same_pixels_in_another_format_are_exact_duplicates(data):
    shutil.copy(data / "003.png", data / "copy.png")
    (data / "copy.txt").write_text("a copy")
    put(data, "other.bmp", picture_of(3))
    found = find_duplicates(read_folder(data))
    assert [(d.first.name, d.second.name, d.kind, d.distance) for d in found] == [
        ("003.png", "copy.png", "exact", 0.0),
        ("003.png", "other.bmp", "exact", 0.0),
    ]


def test_pictures_of_the_same_bytes_but_another_shape_are_not_exact_duplicates(tmp_path):
    put(tmp_path, "wide.png", Image.new("RGB", (32, 8), (200, 0, 0)))
    put(tmp_path, "tall.png", Image.new("RGB", (8, 32), (200, 0, 0)))
    assert [d.kind for d in find_duplicates(read_folder(tmp_path))] == ["near"]


def test_slightly_changed_resized_and_mirrored_copies_are_near_duplicates(data):
    put(data, "changed.png", slightly_changed(picture_of(3)))
    put(data, "larger.png", picture_of(4).resize((96, 96), Image.Resampling.BICUBIC))
    put(data, "mirror.png", ImageOps.mirror(picture_of(5)))
    found = {(d.first.name, d.second.name): d for d in find_duplicates(read_folder(data))}
    kinds = {pair: d.kind for pair, d in found.items()}
    assert kinds == {
        ("003.png", "changed.png"): "near",
        ("004.png", "larger.png"): "near",
        ("005.png", "mirror.png"): "mirrored",
    }
    assert 1 < found["003.png", "changed.png"].distance < 4
    assert found["005.png", "mirror.png"].distance < 0.5


@pytest.mark.parametrize(("shift", "is_near"), [(7, True), (9, False)])
def test_the_threshold_is_eight_grey_levels_of_rmse(tmp_path, shift, is_near):
    put(tmp_path, "a.png", Image.new("RGB", (64, 64), (100, 100, 100)))
    put(tmp_path, "b.png", Image.new("RGB", (64, 64), (100 + shift,) * 3))
    found = find_duplicates(read_folder(tmp_path))
    assert [d.distance for d in found] == ([pytest.approx(shift)] if is_near else [])


def test_near_duplicates_agree_with_comparing_all_pairs(tmp_path):
    """Against the naive reference, on pictures whose distances lie on both sides of the threshold."""
    rng = np.random.default_rng(1)
    base = rng.integers(60, 190, (64, 64, 3))
    for index in range(24):
        change = rng.normal(0, rng.uniform(2, 9), (64, 64, 3)) + rng.normal(0, 2)
        levels = (base + change).clip(0, 255).astype(np.uint8)
        put(tmp_path, f"{index:02}.png", Image.fromarray(levels[:, ::-1] if index % 3 == 0 else levels))
    pictures = read_folder(tmp_path)
    levels = [np.asarray(load_rgb(p.file)).astype(float) for p in pictures]
    expected = set()
    for i in range(24):
        for j in range(i + 1, 24):
            straight = np.sqrt(((levels[i] - levels[j]) ** 2).mean())
            mirrored = np.sqrt(((levels[i] - levels[j][:, ::-1]) ** 2).mean())
            if min(straight, mirrored) < 8:
                expected.add((pictures[i].name, pictures[j].name, "near" if straight < 8 else "mirrored"))
    found = {(d.first.name, d.second.name, d.kind) for d in find_duplicates(pictures)}
    assert found == expected
    assert 20 < len(expected) < 24 * 23 // 2 and {kind for *_, kind in expected} == {"near", "mirrored"}


def test_many_pictures_are_compared_in_chunks(tmp_path, monkeypatch):
    fill(tmp_path, 9)
    put(tmp_path, "zz.png", slightly_changed(picture_of(0)))
    monkeypatch.setattr("lorica.data.duplicates._CHUNK", 4)
    assert [(d.first.name, d.second.name) for d in find_duplicates(read_folder(tmp_path))] == [("000.png", "zz.png")]


def test_different_pictures_are_no_duplicates(data):
    assert find_duplicates(read_folder(data)) == []


def test_a_picture_that_is_member_and_nonmember_is_refused_naming_both(data, tmp_path):
    others = fill(tmp_path / "others", 8, first=100)
    put(others, "stolen.bmp", picture_of(7))  # other bytes, the same pixels
    problem = refusal(lambda: make_split(read_folder(data), read_folder(others), seed=0))
    assert "007.png" in problem and "stolen.bmp" in problem


def test_the_same_folder_as_members_and_nonmembers_is_refused(data):
    assert "member and a non-member" in refusal(lambda: make_split(read_folder(data), read_folder(data), seed=0))


@pytest.mark.parametrize("seed", range(6))
def test_held_out_pictures_are_never_copies_of_members(data, seed):
    for index in range(4):
        put(data, f"copy{index}.bmp", picture_of(index))
        put(data, f"copy{index}.tif", picture_of(index))
    split = make_split(read_folder(data), seed=seed)
    inside, outside = ({load_rgb(p.file).tobytes() for p in side} for side in (split.members, split.nonmembers))
    assert not inside & outside
    assert len(split.members) == len(split.nonmembers) == 14


def test_copies_that_cannot_be_kept_together_are_refused(tmp_path):
    for index in range(10):
        put(tmp_path, f"{index}.png", picture_of(0))
    assert "copies" in refusal(lambda: make_split(read_folder(tmp_path), seed=0))


def test_near_duplicates_across_members_and_nonmembers_are_recorded_and_warned_of(data, tmp_path):
    others = fill(tmp_path / "others", 8, first=100)
    put(others, "like.png", slightly_changed(picture_of(7)))
    put(others, "mirror.png", ImageOps.mirror(picture_of(8)))
    split = make_split(read_folder(data), read_folder(others), seed=0)
    group = {p.name: name for name, pictures in split.groups.items() for p in pictures}
    pairs = {pair["kind"]: pair for pair in split.duplicates["pairs"]}
    assert split.duplicates["count"] == 2 and split.duplicates["threshold"] == 8.0 and split.duplicates["method"]
    ends = [pairs["near"]["first"], pairs["near"]["second"]]
    assert {end["name"]: end["group"] for end in ends} == {name: group[name] for name in ("007.png", "like.png")}
    assert 0 < pairs["near"]["distance"] < 8
    assert {pairs["mirrored"]["first"]["name"], pairs["mirrored"]["second"]["name"]} == {"008.png", "mirror.png"}
    assert any(note.startswith("2 near-duplicate pair(s) lie across members and non-members") for note in split.notes)


def test_exact_duplicates_across_the_halves_of_the_members_are_recorded_and_noted(data, tmp_path):
    put(data, "copy.bmp", picture_of(7))
    others = read_folder(fill(tmp_path / "others", 8, first=100))
    crossed = 0
    for seed in range(8):
        split = make_split(read_folder(data), others, seed=seed)
        names = [p.name for p in split.groups["aux_members"]]
        crosses = ("copy.bmp" in names) != ("007.png" in names)
        crossed += crosses
        assert [pair["kind"] for pair in split.duplicates["pairs"]] == (["exact"] if crosses else [])
        assert any("1 exact duplicate pair" in note for note in split.notes) == crosses
    assert 0 < crossed < 8


def test_the_record_of_duplicates_stays_small(data, tmp_path, monkeypatch):
    others = fill(tmp_path / "others", 8, first=100)
    for index in range(5):
        put(others, f"like{index}.png", slightly_changed(picture_of(index)))
    monkeypatch.setattr("lorica.data.split._RECORDED", 3)
    split = make_split(read_folder(data), read_folder(others), seed=0)
    assert split.duplicates["count"] == 5 and len(split.duplicates["pairs"]) == 3


# The file


@pytest.fixture
def saved(data, tmp_path):
    split = make_split(read_folder(data), seed=4)
    file = tmp_path / "run" / "split.json"
    split.save(file)
    return split, file


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_split_is_loaded_as_it_was_saved(saved):
    split, file = saved
    assert Split.load(file) == split


def test_a_split_of_two_folders_is_loaded_as_it_was_saved(data, tmp_path):
    split = make_split(read_folder(data), read_folder(fill(tmp_path / "others", 8, first=100)), seed=0)
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split


def test_the_file_holds_hashes_and_names_but_no_captions(saved):
    split, file = saved
    content = json.loads(file.read_text())
    assert content["version"] == 1 and content["seed"] == 4
    assert set(content) == {"version", "seed", "roots", "groups", "notes", "duplicates"}
    entry = content["groups"]["aux_members"][0]
    assert entry == {"name": split.groups["aux_members"][0].name, "sha256": split.groups["aux_members"][0].sha256}
    assert "blur number" not in file.read_text()


def test_present_captions_are_read(saved, data):
    split, file = saved
    name = split.members[0].name
    (data / name).with_suffix(".txt").write_text("a better caption")
    assert Split.load(file).members[0].caption == "a better caption"


def test_a_changed_picture_is_named(saved, data):
    split, file = saved
    name = split.nonmembers[0].name
    picture_of(999).save(data / name)
    problem = refusal(lambda: Split.load(file))
    assert "changed" in problem and name in problem


def test_a_missing_picture_is_named(saved, data):
    split, file = saved
    name = split.members[3].name
    (data / name).unlink()
    assert name in refusal(lambda: Split.load(file))


def test_a_missing_caption_is_named(saved, data):
    split, file = saved
    name = split.members[3].name
    (data / name).with_suffix(".txt").unlink()
    problem = refusal(lambda: Split.load(file))
    assert name in problem and "no caption" in problem


def test_pictures_that_were_added_since_do_not_matter(saved, data):
    split, file = saved
    put(data, "new.png", picture_of(999))
    (data / "broken.png").write_text("x")
    assert Split.load(file) == split


def test_a_folder_that_moved_is_found_where_it_is_said_to_be(saved, data, tmp_path):
    split, file = saved
    data.rename(tmp_path / "moved")
    assert "not found" in refusal(lambda: Split.load(file))
    moved = Split.load(file, data=tmp_path / "moved")
    assert hashes(moved) == hashes(split)
    assert moved.members[0].file.parent == (tmp_path / "moved").resolve()


def test_two_folders_may_move_one_by_one(data, tmp_path):
    split = make_split(read_folder(data), read_folder(fill(tmp_path / "others", 8, first=100)), seed=0)
    file = tmp_path / "split.json"
    split.save(file)
    data.rename(tmp_path / "moved")
    assert hashes(Split.load(file, data=tmp_path / "moved")) == hashes(split)
    (tmp_path / "others").rename(tmp_path / "gone")
    loaded = Split.load(file, data=tmp_path / "moved", nonmember_data=tmp_path / "gone")
    assert hashes(loaded) == hashes(split)


def test_pictures_in_sub_folders_are_found_again(tmp_path):
    fill(tmp_path / "data" / "a" / "b", 5)
    fill(tmp_path / "data" / "c", 5, first=50)
    split = make_split(read_folder(tmp_path / "data"), seed=0)
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split


def test_an_imagefolder_is_found_again(tmp_path):
    data = fill(tmp_path / "data", 8)
    for file in data.glob("*.txt"):
        file.unlink()
    lines = [json.dumps({"file_name": f"{seed:03}.png", "text": f"number {seed}"}) for seed in range(8)]
    (data / "metadata.jsonl").write_text("\n".join(lines))
    split = make_split(read_folder(data), seed=0)
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split


def test_pictures_of_one_side_from_several_folders_cannot_be_saved(data, tmp_path):
    mixed = read_folder(data) + read_folder(fill(tmp_path / "others", 8, first=100))
    assert "several folders" in refusal(lambda: make_split(mixed, seed=0).save(tmp_path / "split.json"))
    assert not (tmp_path / "split.json").exists()


def test_a_side_may_mix_the_two_folders_of_a_split_and_is_found_again_after_both_moved(data, tmp_path):
    """As the shadows of a run with its own folder of non-members have it; the folders share a file name."""
    other = fill(tmp_path / "other", 20, first=100)
    put(other, "000.png", picture_of(500), "another blur of that name")
    whole = make_split(read_folder(data), read_folder(other), seed=0)
    mixed = make_split([*whole.members, *whole.nonmembers], seed=1)
    assert "several folders" in refusal(lambda: mixed.save(tmp_path / "split.json"))
    mixed = Split(mixed.groups, 1, roots=(data, other))
    mixed.save(tmp_path / "split.json")
    assert hashes(Split.load(tmp_path / "split.json")) == hashes(mixed)
    data.rename(tmp_path / "moved")
    other.rename(tmp_path / "moved too")
    found = Split.load(tmp_path / "split.json", data=tmp_path / "moved", nonmember_data=tmp_path / "moved too")
    assert hashes(found) == hashes(mixed)
    assert {p.caption for p in found.members} == {p.caption for p in mixed.members}


def test_a_picture_from_a_third_folder_cannot_be_saved(data, tmp_path):
    other, third = fill(tmp_path / "other", 20, first=100), fill(tmp_path / "third", 5, first=300)
    split = make_split([*read_folder(data), *read_folder(third)], seed=0)
    split = Split(split.groups, 0, roots=(data, other))
    assert "several folders" in refusal(lambda: split.save(tmp_path / "split.json"))


def test_a_split_that_cannot_be_written_says_so(saved, data):
    split, _ = saved
    assert "cannot write" in refusal(lambda: split.save(data / "000.png" / "split.json"))


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_refused(saved, version):
    edit(saved[1], lambda content: content.update(version=version))
    assert "version" in refusal(lambda: Split.load(saved[1]))


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", "3"])
def test_a_file_that_is_no_split_is_refused(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    assert "split.json" in refusal(lambda: Split.load(tmp_path / "split.json"))


def test_a_missing_file_is_named(tmp_path):
    assert "not found" in refusal(lambda: Split.load(tmp_path / "nowhere.json"))


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "a/../../secret.png", "..\\secret.png", ""])
def test_names_that_leave_the_folder_are_refused(saved, name):
    edit(saved[1], lambda content: content["groups"]["aux_members"][0].update(name=name))
    assert "groups.aux_members.0.name" in refusal(lambda: Split.load(saved[1]))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda c: c["groups"].pop("aux_members"), "groups"),
        (lambda c: c["groups"].update(validation=c["groups"]["aux_members"]), "groups"),
        (lambda c: c["groups"].update(aux_members=[]), "groups.aux_members"),
        (lambda c: c["groups"]["aux_members"][0].update(sha256="0" * 63), "sha256"),
        (lambda c: c["groups"]["aux_members"][0].update(caption="x"), "caption"),
        (lambda c: c["roots"].pop("members"), "roots.members"),
        (lambda c: c.pop("notes"), "notes"),
        (lambda c: c.update(surprise=1), "surprise"),
        (lambda c: c.update(seed="zero"), "seed"),
    ],
)
def test_a_field_that_is_wrong_is_named(saved, change, where):
    edit(saved[1], change)
    assert where in refusal(lambda: Split.load(saved[1]))


def test_a_picture_in_a_members_and_a_nonmembers_group_is_refused(saved):
    split, file = saved
    edit(file, lambda c: c["groups"]["test_nonmembers"].append(c["groups"]["aux_members"][0]))
    problem = refusal(lambda: Split.load(file))
    assert "overlap" in problem and split.groups["aux_members"][0].name in problem


def test_a_picture_in_both_halves_of_the_members_is_refused(saved):
    edit(saved[1], lambda c: c["groups"]["test_members"].append(c["groups"]["aux_members"][0]))
    assert "overlap" in refusal(lambda: Split.load(saved[1]))


def test_the_same_content_under_another_name_across_the_border_is_refused(saved, data):
    split, file = saved
    first = split.groups["aux_members"][0]
    shutil.copy(first.file, data / "copy.png")
    (data / "copy.txt").write_text("x")
    entry = {"name": "copy.png", "sha256": first.sha256}
    edit(file, lambda c: c["groups"]["test_nonmembers"].append(entry))
    problem = refusal(lambda: Split.load(file))
    assert "overlap" in problem and first.name in problem and "copy.png" in problem


def test_recorded_copies_inside_the_members_are_loaded(data, tmp_path):
    shutil.copy(data / "003.png", data / "copy.png")
    (data / "copy.txt").write_text("x")
    others = read_folder(fill(tmp_path / "others", 8, first=100))
    split = make_split(read_folder(data), others, seed=0)
    split.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == split
