"""The split of labelled pictures: stratified, reproducible, free of copies across parts, and found again."""

import hashlib
import json

import numpy as np
import pytest
import torch

from lorica.data.label_split import load_split, split_labelled
from lorica.data.labelled import LabelledSet
from lorica.errors import LoricaError

CLASSES = ("cat", "dog", "owl")


def labelled(*pictures):
    """A set from (name, label, content) triples; equal contents are exact copies."""
    names, labels, contents = zip(*pictures, strict=True) if pictures else ((), (), ())
    pixels = torch.stack([torch.full((3, 2, 2), content % 256, dtype=torch.uint8) for content in contents])
    sha256 = tuple(hashlib.sha256(str(content).encode()).hexdigest() for content in contents)
    return LabelledSet(pixels, torch.tensor(labels), CLASSES, names, sha256)


def some(part, counts, first=0):
    """`counts[c]` different pictures of class c."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return labelled(*[(f"{part}/{row}.png", label, first + row) for row, label in enumerate(labels)])


def per_class(data):
    return torch.bincount(data.labels, minlength=3).tolist()


def known(split):
    return {part: getattr(split, part).names for part in ("train", "val", "test")}


def refusal(call, *arguments, **options):
    with pytest.raises(LoricaError) as caught:
        call(*arguments, **options)
    assert caught.value.remedy
    return caught.value.problem


# What is drawn


def test_every_picture_is_in_exactly_one_part():
    data = some("all", (40, 60, 20))
    split = split_labelled({"all": data})
    together = [name for names in known(split).values() for name in names]
    assert len(together) == len(set(together)) == 120 and set(together) == set(data.names)


def test_both_draws_keep_the_shares_of_every_class():
    split = split_labelled({"all": some("all", (400, 600, 20))}, val_share=0.05, test_share=0.2)
    assert per_class(split.test) == [80, 120, 4]
    assert per_class(split.val) == [16, 24, 1]
    assert per_class(split.train) == [304, 456, 15]


def test_pixels_labels_and_hashes_stay_with_their_names():
    data = some("all", (40, 60, 20))
    split = split_labelled({"all": data})
    for part in (split.train, split.val, split.test):
        for row, name in enumerate(part.names):
            source = data.names.index(name)
            assert part.sha256[row] == data.sha256[source] and part.labels[row] == data.labels[source]
            assert torch.equal(part.pixels[row], data.pixels[source])


def test_a_declared_test_set_is_kept_whole_and_is_never_used_for_validation():
    train, test = some("train", (20, 20, 20)), some("test", (5, 5, 5), first=1000)
    split = split_labelled({"train": train, "test": test})
    assert split.test is test
    assert set(split.val.names) < set(train.names) and set(split.train.names) < set(train.names)
    assert per_class(split.val) == [1, 1, 1] and per_class(split.train) == [19, 19, 19]


def test_declared_parts_are_kept():
    parts = {part: some(part, (3, 3, 3), first=100 * i) for i, part in enumerate(("train", "val", "test"))}
    split = split_labelled(parts)
    assert known(split) == {part: data.names for part, data in parts.items()} and split.notes == ()


def test_a_test_set_is_drawn_where_only_a_validation_set_is_declared():
    split = split_labelled({"train": some("train", (10, 10, 10)), "val": some("val", (2, 2, 2), first=500)})
    assert per_class(split.test) == [2, 2, 2] and per_class(split.train) == [8, 8, 8]
    assert split.val.names == some("val", (2, 2, 2)).names


def test_small_classes_give_one_picture_but_never_their_last():
    parts = {"train": some("train", (1, 2, 3)), "test": some("test", (1, 1, 1), first=50)}
    split = split_labelled(parts, val_share=0.9)
    assert per_class(split.val) == [0, 1, 2] and per_class(split.train) == [1, 1, 1]
    split = split_labelled({"all": some("all", (2, 3, 4))}, val_share=0.01, test_share=0.01)
    assert per_class(split.test) == [1, 1, 1] and per_class(split.val) == [0, 1, 1]
    assert any("1 of 3 classes have no validation picture" in note for note in split.notes)


def test_the_draw_depends_on_the_seed():
    data = {"all": some("all", (40, 60, 20))}
    assert known(split_labelled(data, seed=1)) == known(split_labelled(data, seed=1))
    assert set(split_labelled(data, seed=1).test.names) != set(split_labelled(data, seed=2).test.names)


def test_the_draw_does_not_depend_on_order_or_names():
    data = some("all", (40, 60, 20))
    shuffled = data.take(np.random.default_rng(0).permutation(120).tolist())
    renamed = LabelledSet(shuffled.pixels, shuffled.labels, CLASSES, tuple(map(str, range(120))), shuffled.sha256)
    first, second = split_labelled({"all": data}), split_labelled({"all": renamed})
    for part in ("train", "val", "test"):
        assert sorted(getattr(first, part).sha256) == sorted(getattr(second, part).sha256)


def test_what_was_held_out_is_said():
    first, second = split_labelled({"all": some("all", (50, 50, 50))}, seed=7).notes
    assert "no test set: 30" in first and "seed 7" in first and "NOT trained on" in first
    assert "6 of the training pictures" in second


@pytest.mark.parametrize("options", [{"val_share": 0.0}, {"val_share": 1.0}, {"test_share": -0.1}])
def test_a_share_outside_its_range_is_named(options):
    (name,) = options
    assert name in refusal(split_labelled, {"all": some("all", (9, 9, 9))}, **options)


def test_a_validation_set_of_nothing_is_refused():
    parts = {"train": some("train", (1, 1, 1)), "test": some("test", (2, 2, 2), first=50)}
    assert "validation set" in refusal(split_labelled, parts)


# Copies


def test_training_copies_of_test_and_validation_pictures_are_dropped_and_said():
    train = some("train", (10, 10, 10))
    test = labelled(("test/a", 0, 3), ("test/b", 1, 1003))
    val = labelled(("val/a", 0, 4), ("val/b", 1, 12), ("val/c", 1, 1003), ("val/d", 2, 1004))
    split = split_labelled({"train": train, "val": val, "test": test})
    assert split.test is test
    assert split.val.names == ("val/a", "val/b", "val/d")
    assert set(train.names) - set(split.train.names) == {"train/3.png", "train/4.png", "train/12.png"}
    assert any(
        n.startswith("1 validation picture(s) are exact copies of pictures in the test set") for n in split.notes
    )
    assert any(n.startswith("1 training picture(s) are exact copies of pictures in the test set") for n in split.notes)
    assert any(n.startswith("2 training picture(s) are exact copies of pictures in the val") for n in split.notes)


def test_a_validation_set_that_is_the_test_set_is_replaced():
    test = some("test", (2, 2, 2), first=50)
    split = split_labelled({"train": some("train", (10, 10, 10)), "val": test, "test": test})
    assert per_class(split.val) == [1, 1, 1] and not set(split.val.sha256) & set(test.sha256)


def test_copies_inside_the_training_pictures_stay_together():
    data = labelled(*[(f"{row}.png", row % 3, row // 6 * 3 + row % 3) for row in range(60)])
    assert len(set(data.sha256)) == 30
    split = split_labelled({"all": data}, val_share=0.3, test_share=0.3)
    hashes = [set(part.sha256) for part in (split.train, split.val, split.test)]
    assert sum(map(len, hashes)) == 30 and len(split.train) + len(split.val) + len(split.test) == 60


def test_one_picture_with_two_labels_is_said():
    data = some("all", (10, 10, 10))
    twice = labelled(
        *[(n, int(k), i) for i, (n, k) in enumerate(zip(data.names, data.labels, strict=True))], ("z", 2, 0)
    )
    split = split_labelled({"all": twice})
    (note,) = [note for note in split.notes if "two labels" in note]
    assert note.startswith("1 picture(s)") and "all/0.png and z" in note
    assert sum(twice.sha256[0] in part.sha256 for part in (split.train, split.val, split.test)) == 1


def test_a_class_whose_training_pictures_are_all_copies_is_refused():
    train = some("train", (5, 5, 2))
    test = labelled(("test/a", 2, 10), ("test/b", 2, 11))
    assert "owl" in refusal(split_labelled, {"train": train, "test": test})


# The artefact


@pytest.fixture
def parts():
    return {"train": some("train", (12, 8, 10)), "test": some("test", (2, 3, 2), first=300)}


@pytest.fixture
def saved(parts, tmp_path):
    split_labelled(parts, seed=3).save(tmp_path / "split.json")
    return tmp_path / "split.json"


def test_a_split_is_found_again_whatever_the_order(parts, saved):
    split = split_labelled(parts, seed=3)
    rng = np.random.default_rng(0)
    again = load_split(saved, {part: data.take(rng.permutation(len(data)).tolist()) for part, data in parts.items()})
    assert known(again) == known(split) and (again.seed, again.notes) == (3, split.notes)
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(again, part).pixels, getattr(split, part).pixels)
        assert torch.equal(getattr(again, part).labels, getattr(split, part).labels)


def test_a_split_of_one_pool_is_found_again(tmp_path):
    data = {"all": some("all", (20, 20, 20))}
    split = split_labelled(data)
    split.save(tmp_path / "split.json")
    assert known(load_split(tmp_path / "split.json", data)) == known(split)


def test_the_file_holds_names_labels_and_hashes(parts, saved):
    content = json.loads(saved.read_text())
    assert set(content) == {"version", "seed", "classes", "parts", "notes"}
    assert content["classes"] == list(CLASSES)
    test = parts["test"]
    assert content["parts"]["test"][0] == {"name": "test/0.png", "label": "cat", "sha256": test.sha256[0]}


def joined(first, second):
    pixels, labels = torch.cat([first.pixels, second.pixels]), torch.cat([first.labels, second.labels])
    return LabelledSet(pixels, labels, CLASSES, first.names + second.names, first.sha256 + second.sha256)


def test_new_pictures_do_not_disturb_a_split(parts, saved):
    more = joined(some("more", (2, 2, 2), first=700), parts["train"])
    assert known(load_split(saved, parts | {"train": more})) == known(load_split(saved, parts))


def altered(data, row, **changes):
    """The set with one picture's name, hash or label changed."""
    names, sha256, labels = list(data.names), list(data.sha256), data.labels.clone()
    names[row], sha256[row] = changes.get("name", names[row]), changes.get("sha256", sha256[row])
    labels[row] = changes.get("label", int(labels[row]))
    return LabelledSet(data.pixels, labels, CLASSES, tuple(names), tuple(sha256))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"name": "train/other.png"}, "train/5.png: missing"),
        ({"sha256": "0" * 64}, "train/5.png: changed"),
        ({"label": 2}, "train/5.png: was 'cat', is 'owl'"),
    ],
)
def test_pictures_that_are_not_what_they_were_are_named(parts, saved, changes, complaint):
    assert complaint in refusal(load_split, saved, parts | {"train": altered(parts["train"], 5, **changes)})


def test_pictures_that_moved_to_the_test_set_are_not_trained_on(parts, saved):
    moved = {"train": some("new", (5, 5, 5), first=800), "test": joined(parts["train"], parts["test"])}
    assert "missing, or in another part" in refusal(load_split, saved, moved)


def test_other_classes_are_refused(parts, saved):
    train = parts["train"]
    other = LabelledSet(train.pixels, train.labels, ("cat", "dog", "fox"), train.names, train.sha256)
    assert "'owl'" in refusal(load_split, saved, parts | {"train": other})


def edited(saved, edit):
    content = json.loads(saved.read_text())
    edit(content)
    saved.write_text(json.dumps(content))
    return saved


def test_a_split_whose_parts_overlap_is_refused(parts, saved):
    edited(saved, lambda content: content["parts"]["train"].append(content["parts"]["test"][0]))
    assert "test/0.png is in test and in train" in refusal(load_split, saved, parts)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda c: c.update(version=2), "version 1"),
        (lambda c: c.pop("seed"), "seed"),
        (lambda c: c["parts"].update(val=[]), "parts.val"),
        (lambda c: c["parts"]["test"][0].update(sha256="no hash"), "parts.test.0.sha256"),
        (lambda c: c["parts"]["test"][0].update(more=1), "parts.test.0.more"),
    ],
)
def test_a_file_that_is_no_valid_split_is_refused(parts, saved, edit, complaint):
    assert complaint in refusal(load_split, edited(saved, edit), parts)


def test_other_files_are_refused(parts, tmp_path):
    assert "not found" in refusal(load_split, tmp_path / "none.json", parts)
    (tmp_path / "list.json").write_text("[]")
    assert "version" in refusal(load_split, tmp_path / "list.json", parts)
