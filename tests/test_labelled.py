"""Labelled pictures: every source is read right, or refused by name before anything starts."""

import hashlib
import pickle
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from lorica.data import load_rgb
from lorica.data.labelled import read_labelled
from lorica.errors import LoricaError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def put(folder, *names, size=(8, 8)):
    """Pictures, each of another colour."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        colour = tuple(hashlib.sha256(name.encode()).digest()[:3])
        Image.new("RGB", size, colour).save(file)
    return folder


@pytest.fixture
def pets(tmp_path):
    return put(tmp_path / "pets", "dog/2.png", "cat/b.png", "cat/a.png", "dog/1.png", "dog/deep/3.png")


@pytest.fixture
def divided(tmp_path):
    names = [
        f"{part}/{pet}/{n}.png" for part in ("train", "validation", "test") for pet in ("cat", "dog") for n in "12"
    ]
    return put(tmp_path / "divided", *names)


def table(folder, text, name="table.csv"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def refusal(source, **options):
    with pytest.raises(LoricaError) as caught:
        read_labelled(source, **({"size": (8, 8)} | options))
    assert caught.value.remedy
    return caught.value.problem


# Folders


def test_a_folder_of_class_folders_is_one_part_sorted_by_name(pets):
    sets = read_labelled(pets, size=(8, 8))
    assert list(sets) == ["all"]
    data = sets["all"]
    assert data.names == ("cat/a.png", "cat/b.png", "dog/1.png", "dog/2.png", "dog/deep/3.png")
    assert data.classes == ("cat", "dog") and data.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.labels.dtype == torch.int64 and data.pixels.dtype == torch.uint8
    assert data.pixels.shape == (5, 3, 8, 8) and len(data) == 5
    for row, name in enumerate(data.names):
        assert data.sha256[row] == hashlib.sha256((pets / name).read_bytes()).hexdigest()
        assert (data.pixels[row].permute(1, 2, 0).numpy() == np.asarray(load_rgb(pets / name))).all()


@pytest.mark.parametrize(
    "spellings", [("train", "val", "test"), ("training", "valid", "testing"), ("Train", "VALIDATION", "Test")]
)
def test_train_val_and_test_folders_are_parts(divided, spellings):
    for plain, spelling in zip(("train", "validation", "test"), spellings, strict=True):
        (divided / plain).rename(divided / f"{plain}.old")
        (divided / f"{plain}.old").rename(divided / spelling)
    sets = read_labelled(divided, size=(8, 8))
    assert list(sets) == ["train", "val", "test"]
    for part, folder in zip(("train", "val", "test"), spellings, strict=True):
        assert sets[part].names == tuple(f"{folder}/{pet}/{n}.png" for pet in ("cat", "dog") for n in "12")
        assert sets[part].classes == ("cat", "dog") and sets[part].labels.tolist() == [0, 0, 1, 1]
        assert (
            sets[part].pixels[3, :, 0, 0].numpy() == load_rgb(divided / sets[part].names[3]).getpixel((0, 0))
        ).all()


def test_a_test_set_may_lack_a_class(divided):
    for n in "12":
        (divided / "test/cat" / f"{n}.png").unlink()
    data = read_labelled(divided, size=(8, 8))["test"]
    assert data.classes == ("cat", "dog") and data.labels.tolist() == [1, 1]


def test_a_class_that_training_lacks_is_named(divided):
    put(divided, "test/fox/1.png")
    assert "fox" in refusal(divided)


def test_hidden_files_and_other_files_are_ignored(pets):
    (pets / "cat/notes.txt").write_text("x")
    (pets / "README.md").write_text("x")
    put(pets, ".cache/1.png", "cat/.hidden.png")
    assert len(read_labelled(pets, size=(8, 8))["all"]) == 5


def test_the_rows_that_are_taken_keep_everything_together(pets):
    data = read_labelled(pets, size=(8, 8))["all"]
    some = data.take([4, 1])
    assert some.names == ("dog/deep/3.png", "cat/b.png") and some.labels.tolist() == [1, 0]
    assert some.sha256 == (data.sha256[4], data.sha256[1]) and some.classes == data.classes
    assert torch.equal(some.pixels, data.pixels[[4, 1]])
    assert len(data.take([])) == 0
    assert data.take(range(5)) is data


def test_a_source_that_is_not_there_is_named(tmp_path):
    assert "nowhere" in refusal(tmp_path / "nowhere")


def test_an_archive_is_refused(tmp_path):
    (tmp_path / "pets.zip").write_bytes(b"PK")
    assert "pets.zip" in refusal(tmp_path / "pets.zip")


def test_an_empty_folder_is_refused(tmp_path):
    assert "no pictures" in refusal(tmp_path)


def test_pictures_outside_the_class_folders_are_named(pets, divided):
    put(pets, "stray.png")
    assert "stray.png" in refusal(pets)
    put(divided, "test/stray.png")
    assert "test/stray.png" in refusal(divided)


def test_one_class_is_too_few(tmp_path):
    assert "only one class" in refusal(put(tmp_path, "cat/1.png", "cat/2.png"))


def test_a_class_with_one_picture_is_named(pets):
    put(pets, "fox/1.png")
    assert "fox: 1" in refusal(pets)


def test_an_empty_class_folder_is_named(pets, divided):
    (pets / "fox").mkdir()
    assert "fox" in refusal(pets)
    (divided / "train/owl").mkdir()
    assert "train/owl" in refusal(divided)


def test_a_validation_folder_that_is_a_link_to_the_test_folder_is_refused(divided):
    (divided / "validation").rename(divided / "old")
    (divided / "old").rename(divided.parent / "old")
    (divided / "val").symlink_to(divided / "test", target_is_directory=True)
    assert "val" in refusal(divided)


def test_parts_without_a_training_part_are_refused(divided):
    (divided / "train").rename(divided.parent / "elsewhere")
    assert "no folder train" in refusal(divided)


def test_two_validation_folders_are_refused(divided):
    put(divided, "val/cat/9.png")
    assert "twice" in refusal(divided)


def test_folders_that_are_neither_parts_nor_classes_are_refused(divided):
    put(divided, "extra/cat/1.png")
    assert "extra" in refusal(divided)


def test_a_class_may_be_called_train(tmp_path):
    vehicles = put(tmp_path, "train/1.png", "train/2.png", "bus/1.png", "bus/2.png")
    assert read_labelled(vehicles, size=(8, 8))["all"].classes == ("bus", "train")


# Pixels


def test_the_centre_of_an_oblong_picture_is_kept(pets):
    image = Image.new("RGB", (60, 20), RED)
    image.paste(GREEN, (20, 0, 40, 20))
    image.save(pets / "cat/a.png")
    pixels = read_labelled(pets, size=(20, 20))["all"].pixels[0]
    assert pixels.shape == (3, 20, 20)
    assert (pixels == torch.tensor(GREEN, dtype=torch.uint8)[:, None, None]).all()


def test_height_comes_before_width(pets):
    image = Image.new("RGB", (24, 12), RED)
    image.paste(BLUE, (0, 6, 24, 12))
    image.save(pets / "cat/a.png")
    pixels = read_labelled(pets, size=(6, 12))["all"].pixels
    assert pixels.shape == (5, 3, 6, 12)
    top, bottom = pixels[0, :, 0, 6].int(), pixels[0, :, 5, 6].int()
    assert (top - torch.tensor(RED)).abs().max() < 3 and (bottom - torch.tensor(BLUE)).abs().max() < 3


def test_the_order_and_the_pictures_do_not_depend_on_the_number_of_threads(tmp_path, monkeypatch):
    names = [f"{pet}/{n:03}.png" for pet in ("cat", "dog") for n in range(150)]
    put(tmp_path, *names, size=(4, 4))
    monkeypatch.setattr("lorica.data.labelled._TASK", 3)
    monkeypatch.setattr("lorica.data.labelled._TASKS_AHEAD", 5)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    data = read_labelled(tmp_path, size=(4, 4))["all"]
    assert data.names == tuple(names)
    colours = [list(hashlib.sha256(name.encode()).digest()[:3]) for name in names]
    assert data.pixels[:, :, 0, 0].tolist() == colours


def test_all_unreadable_pictures_are_in_one_error_and_ten_are_named(pets):
    for number in range(12):
        (pets / f"cat/broken{number:02}.png").write_bytes(b"no picture")
    (pets / "cat/broken00.png").unlink()
    (pets / "cat/broken00.png").symlink_to(pets / "gone")
    problem = refusal(pets)
    assert "cat/broken00.png: No such file" in problem and "cat/broken09.png" in problem
    assert "broken10" not in problem and "and 2 more" in problem


def test_a_file_name_that_is_not_utf8_is_refused(pets):
    try:
        (pets / "cat/\udcff.png").write_bytes((pets / "cat/a.png").read_bytes())
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system knows no such names")
    assert "not valid UTF-8" in refusal(pets)


def test_a_decompression_bomb_is_refused_and_the_warning_filters_are_left_alone(pets, monkeypatch):
    before = list(warnings.filters)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (12, 12)).save(pets / "cat/bomb.png")
    assert "bomb.png: too many pixels" in refusal(pets)
    assert warnings.filters == before


# The cache


def cached_files(folder):
    return [file for file in folder.rglob("*") if file.is_file()]


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that were decoded."""
    import lorica.data.labelled as module

    seen = []
    monkeypatch.setattr(module, "load_rgb", lambda file: seen.append(file.name) or load_rgb(file))
    return seen


def test_the_second_reading_decodes_nothing_and_gives_the_same(pets, tmp_path, decoded):
    first = read_labelled(pets, size=(8, 8), cache=tmp_path / "cache")["all"]
    assert len(decoded) == 5
    second = read_labelled(pets, size=(8, 8), cache=tmp_path / "cache")["all"]
    assert len(decoded) == 5
    assert torch.equal(first.pixels, second.pixels)
    assert torch.equal(first.pixels, read_labelled(pets, size=(8, 8))["all"].pixels)
    assert (first.names, first.sha256, first.classes) == (second.names, second.sha256, second.classes)


def test_another_size_or_a_changed_picture_is_decoded_anew(pets, tmp_path, decoded):
    read_labelled(pets, size=(8, 8), cache=tmp_path / "cache")
    assert read_labelled(pets, size=(4, 8), cache=tmp_path / "cache")["all"].pixels.shape == (5, 3, 4, 8)
    assert len(decoded) == 10
    Image.new("RGB", (8, 8), RED).save(pets / "cat/a.png")
    assert read_labelled(pets, size=(8, 8), cache=tmp_path / "cache")["all"].pixels[0, :, 0, 0].tolist() == list(RED)


def test_the_cache_is_one_npy_file(pets, tmp_path):
    data = read_labelled(pets, size=(8, 8), cache=tmp_path / "cache")["all"]
    (file,) = cached_files(tmp_path / "cache")
    assert (np.load(file, allow_pickle=False) == data.pixels.numpy()).all()


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other shape", "other type", "pickle"])
def test_a_damaged_cache_is_decoded_again(pets, tmp_path, damage, decoded):
    whole = read_labelled(pets, size=(8, 8), cache=tmp_path / "cache")["all"].pixels.clone()
    (file,) = cached_files(tmp_path / "cache")
    content = file.read_bytes()
    if damage in ("cut", "empty", "text"):
        file.write_bytes({"cut": content[:-1], "empty": b"", "text": b"not an array"}[damage])
    elif damage == "pickle":
        np.save(file, np.array([Bomb()], dtype=object), allow_pickle=True)
    else:
        shape, kind = ((3, 5, 8, 8), np.uint8) if damage == "other shape" else ((5, 3, 8, 8), np.int8)
        np.save(file, np.zeros(shape, kind))
    assert torch.equal(read_labelled(pets, size=(8, 8), cache=tmp_path / "cache")["all"].pixels, whole)
    assert len(decoded) == 10
    assert file.read_bytes() == content


class Bomb:
    """Unpickling it fails the test."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def test_a_failed_reading_leaves_no_cache(pets, tmp_path):
    (pets / "cat/broken.png").write_bytes(b"no picture")
    refusal(pets, cache=tmp_path / "cache")
    assert cached_files(tmp_path / "cache") == []


# Tables


def test_a_table_names_paths_and_labels(pets):
    text = '\ufeffpath, label,note\ndog/2.png,hund,\n"cat/a.png",katze,"a, b"\ncat/b.png,katze,\ndog/./1.png,hund,\n'
    sets = read_labelled(table(pets, text), size=(8, 8))
    assert list(sets) == ["all"]
    assert sets["all"].names == ("cat/a.png", "cat/b.png", "dog/1.png", "dog/2.png")
    assert sets["all"].classes == ("hund", "katze") and sets["all"].labels.tolist() == [1, 1, 0, 0]


def test_a_table_may_name_the_parts(divided):
    rows = [
        f"{'train' if n == '1' else 'validation'}/{pet}/{n}.png,{pet},{split}"
        for n, splits in (("1", ("train", "train")), ("2", ("val", "test")))
        for pet, split in zip(("cat", "dog"), splits, strict=True)
    ]
    rows += ["train/cat/2.png,cat,train", "train/dog/2.png,dog,train"]
    sets = read_labelled(table(divided, "path,label,split\n" + "\n".join(rows)), size=(8, 8))
    assert list(sets) == ["train", "val", "test"]
    assert sets["val"].names == ("validation/cat/2.png",) and sets["test"].names == ("validation/dog/2.png",)
    assert sets["test"].labels.tolist() == [1] and len(sets["train"]) == 4


def test_a_parquet_table_is_read_like_a_csv_one(pets):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"label": [7, 7, 12, 12], "path": ["dog/1.png", "dog/2.png", "cat/a.png", "cat/b.png"], "x": [0.5] * 4}
    parquet.write_table(pyarrow.table(columns), pets / "table.parquet")
    data = read_labelled(pets / "table.parquet", size=(8, 8))["all"]
    assert data.names[0] == "cat/a.png" and data.classes == ("12", "7") and data.labels.tolist() == [0, 0, 1, 1]
    parquet.write_table(pyarrow.table({"path": ["a", None], "label": ["x", "y"]}), pets / "table.parquet")
    assert "row 2" in refusal(pets / "table.parquet")
    (pets / "table.parquet").write_bytes(b"PAR1 nothing else")
    assert "cannot be read as Parquet" in refusal(pets / "table.parquet")


def test_without_pyarrow_a_parquet_table_is_refused_with_the_remedy(pets, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (pets / "table.parquet").write_bytes(b"")
    with pytest.raises(LoricaError, match="pip install pyarrow"):
        read_labelled(pets / "table.parquet", size=(8, 8))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("cat/a.png,,train", "label of 'cat/a.png' is empty"),
        ("cat/a.png", "label of 'cat/a.png' is empty"),
        (",cat,train", "not a path inside the folder"),
        ("../pets/cat/a.png,cat,train", "not a path inside the folder"),
        ("/etc/a.png,cat,train", "not a path inside the folder"),
        ("C:\\a.png,cat,train", "not a path inside the folder"),
        ("cat/a.png,cat,dev", "'dev', not train, val or test"),
        ("cat/a.png,cat,", "'', not train, val or test"),
        ("cat/a.png,cat,train,more", "more fields than columns"),
        ("dog/1.png,dog,train", "named before, in line 2"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_its_line(pets, row, complaint):
    problem = refusal(table(pets, f"path,label,split\ndog/1.png,dog,train\n{row}\n"))
    assert "line 3" in problem and complaint in problem


def test_missing_columns_are_named(pets):
    problem = refusal(table(pets, "path;label\ncat/a.png;cat\n"))
    assert "no column path and no column label" in problem and "'path;label'" in problem
    assert "no column label" in refusal(table(pets, "path,split\ncat/a.png,train\n"))


def test_a_table_that_is_no_text_is_refused(pets):
    (pets / "table.csv").write_bytes(b"path,label\n\xff\xfe,cat\n")
    assert "cannot be read as CSV" in refusal(pets / "table.csv")


@pytest.mark.parametrize("text", ["", "path,label\n"])
def test_an_empty_table_is_refused(pets, text):
    assert "table.csv has no" in refusal(table(pets, text))


def test_a_table_without_training_rows_is_refused(pets):
    assert "no row whose split is train" in refusal(table(pets, "path,label,split\ncat/a.png,cat,test\n"))


def test_a_picture_that_a_table_names_and_nobody_has_is_named(pets):
    text = "path,label\ncat/a.png,cat\ncat/b.png,cat\ndog/1.png,dog\ndog/99.png,dog\n"
    assert "dog/99.png: No such file" in refusal(table(pets, text))


# CIFAR

CLASSES = {"10": ("airplane", "automobile", "bird"), "100": ("apple", "aquarium_fish", "baby")}


def write_cifar(folder, kind, per_file=6, labels=None):
    """Random records in the layout of the original files; returns labels and pixels by file."""
    folder.mkdir(parents=True)
    names = (
        [f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]
        if kind == "10"
        else ["train.bin", "test.bin"]
    )
    (folder / ("batches.meta.txt" if kind == "10" else "fine_label_names.txt")).write_text(
        "\n".join(CLASSES[kind]) + "\n\n"
    )
    rng, written = np.random.default_rng(0), {}
    for name in names:
        own = np.arange(per_file, dtype=np.uint8) % 3 if labels is None else np.array(labels, dtype=np.uint8)
        planes = rng.integers(0, 256, (per_file, 3, 32, 32), dtype=np.uint8)
        coarse = [np.full((per_file, 1), 19, np.uint8)] * (kind == "100")
        records = np.concatenate([*coarse, own[:, None], planes.reshape(per_file, -1)], axis=1)
        (folder / name).write_bytes(records.tobytes())
        written[name] = own, planes
    return written


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["10", "100"])
def test_the_binary_files_of_cifar_are_read(tmp_path, kind, nested):
    folder = {"10": "cifar-10-batches-bin", "100": "cifar-100-binary"}[kind] if nested else "here"
    written = write_cifar(tmp_path / folder, kind)
    sets = read_labelled(tmp_path if nested else tmp_path / folder, size=(32, 32))
    assert list(sets) == ["train", "test"]
    *train, test = written
    assert sets["train"].names == tuple(f"{name}#{row}" for name in train for row in range(6))
    for part, names in (("train", train), ("test", [test])):
        assert sets[part].classes == CLASSES[kind]
        assert sets[part].labels.tolist() == np.concatenate([written[name][0] for name in names]).tolist()
        planes = np.concatenate([written[name][1] for name in names])
        assert (sets[part].pixels.numpy() == planes).all()
        assert sets[part].sha256 == tuple(hashlib.sha256(p.tobytes()).hexdigest() for p in planes)


def test_cifar_can_be_had_larger(tmp_path):
    written = write_cifar(tmp_path / "c", "100")
    pixels = read_labelled(tmp_path / "c", size=(48, 40), cache=tmp_path / "cache")["test"].pixels
    image = Image.fromarray(written["test.bin"][1][2].transpose(1, 2, 0))
    expected = image.resize((40, 48), Image.Resampling.LANCZOS, box=(32 / 12, 0, 32 - 32 / 12, 32))
    assert pixels.shape == (6, 3, 48, 40)
    assert (pixels[2].permute(1, 2, 0).numpy() == np.asarray(expected)).all()


@pytest.mark.parametrize("folder", ["cifar-10-batches-py", "."])
def test_the_pickles_of_cifar_are_refused_with_the_remedy(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    for name in ("data_batch_1", "batches.meta"):
        (tmp_path / folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(LoricaError, match="never loaded") as caught:
        read_labelled(tmp_path, size=(32, 32))
    assert "binary version" in caught.value.remedy


def test_the_pickles_of_cifar_100_are_refused(tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    for name in ("train", "test", "meta"):
        (tmp_path / "cifar-100-python" / name).write_bytes(b"")
    assert "never loaded" in refusal(tmp_path)


def test_pickles_beside_the_binary_files_do_not_matter(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-bin", "10")
    for name in ("data_batch_1", "batches.meta"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    assert len(read_labelled(tmp_path, size=(32, 32))["train"]) == 30


def test_an_incomplete_cifar_is_named(tmp_path):
    write_cifar(tmp_path / "c", "10")
    (tmp_path / "c/data_batch_4.bin").unlink()
    assert "data_batch_4.bin" in refusal(tmp_path / "c")


def test_a_cut_cifar_file_is_named(tmp_path):
    write_cifar(tmp_path / "c", "10")
    file = tmp_path / "c/data_batch_2.bin"
    file.write_bytes(file.read_bytes()[:-5])
    assert "data_batch_2.bin" in refusal(tmp_path / "c")


def test_a_cifar_label_without_a_class_is_named(tmp_path):
    write_cifar(tmp_path / "c", "100", labels=[0, 1, 2, 0, 3, 1])
    assert "record 4 has label 3" in refusal(tmp_path / "c")


def test_two_cifars_in_one_folder_are_refused(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-bin", "10")
    write_cifar(tmp_path / "cifar-100-binary", "100")
    assert "more than one data set" in refusal(tmp_path)
