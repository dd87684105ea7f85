"""Picture folders: everything a user may bring is read right, or refused by name before anything starts."""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lorica.data import fit, load_rgb, pixels, read_folder
from lorica.data.pictures import read_pictures, relative_name
from lorica.errors import LoricaError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def put(folder, name, caption="a thing", colour=RED, size=(16, 16), **options):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file, **options)
    if caption is not None:
        file.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return file


def near(picture, colour, tolerance=6):
    centre = picture.getpixel((picture.width // 2, picture.height // 2))
    return max(abs(a - b) for a, b in zip(centre, colour, strict=True)) <= tolerance


def refusal(folder, **options):
    with pytest.raises(LoricaError) as caught:
        read_folder(folder, **options)
    assert caught.value.remedy
    return caught.value.problem


# Reading a folder


def test_a_picture_knows_its_place_content_and_caption(tmp_path):
    file = put(tmp_path, "sub/fox.png", "a fox")
    (picture,) = read_folder(tmp_path)
    assert picture.file == file.resolve() and picture.file.is_absolute()
    assert picture.name == "sub/fox.png"
    assert picture.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert picture.id == picture.sha256[:16]
    assert picture.caption == "a fox"


def test_pictures_come_sorted_by_name_from_all_sub_folders(tmp_path):
    for name in ("b.png", "a/z.png", "a.png", "c/d/e.png"):
        put(tmp_path, name)
    assert [p.name for p in read_folder(tmp_path)] == ["a.png", "a/z.png", "b.png", "c/d/e.png"]


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif", "PNG", "JPG"])
def test_every_format_is_read(tmp_path, suffix):
    put(tmp_path, f"fox.{suffix}", colour=BLUE)
    (picture,) = read_folder(tmp_path)
    assert near(load_rgb(picture.file), BLUE)


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        (b"\xef\xbb\xbfa fox", "a fox"),
        (b"  a fox \n", "a fox"),
        (b"a fox\r\nin the\n\n snow", "a fox in the snow"),
        ("ein Füchslein 🦊".encode(), "ein Füchslein 🦊"),
    ],
)
def test_captions_are_utf8_stripped_and_on_one_line(tmp_path, content, caption):
    put(tmp_path, "fox.png", None)
    (tmp_path / "fox.txt").write_bytes(content)
    assert read_folder(tmp_path)[0].caption == caption


def test_hidden_files_and_folders_and_other_files_are_ignored(tmp_path):
    put(tmp_path, "fox.png")
    put(tmp_path, ".hidden/fox.png")
    (tmp_path / "._fox.png").write_bytes(b"resource fork")
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "alone.txt").write_text("a caption of nothing")
    assert [p.name for p in read_folder(tmp_path)] == ["fox.png"]


def test_a_link_that_leaves_the_folder_is_read(tmp_path):
    target = put(tmp_path / "elsewhere", "fox.png", colour=GREEN)
    data = tmp_path / "data"
    data.mkdir()
    (data / "link.png").symlink_to(target)
    (data / "link.txt").write_text("a fox")
    (data / "folder").symlink_to(tmp_path / "elsewhere")
    assert [p.name for p in read_folder(data)] == ["folder/fox.png", "link.png"]


def test_links_that_form_a_loop_end(tmp_path):
    put(tmp_path, "fox.png")
    (tmp_path / "again").symlink_to(tmp_path)
    assert [p.name for p in read_folder(tmp_path)] == ["fox.png"]


def test_a_relative_folder_gives_absolute_files(tmp_path, monkeypatch):
    put(tmp_path, "fox.png")
    monkeypatch.chdir(tmp_path.parent)
    assert read_folder(Path(tmp_path.name))[0].file == (tmp_path / "fox.png").resolve()


# Refusals


def test_a_missing_folder_is_named(tmp_path):
    assert "not found" in refusal(tmp_path / "nowhere") and "nowhere" in refusal(tmp_path / "nowhere")


def test_a_file_instead_of_a_folder_is_named(tmp_path):
    assert "is a file" in refusal(put(tmp_path, "fox.png"))


def test_an_empty_folder_is_refused(tmp_path):
    assert "no pictures" in refusal(tmp_path)


def corrupt(file, kind):
    content = file.read_bytes()
    if kind == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "text":
        file.write_text("not a picture")
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])


@pytest.mark.parametrize("kind", ["truncated", "empty", "text"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif"])
def test_a_damaged_file_is_named(tmp_path, suffix, kind):
    put(tmp_path, "good.png")
    file = tmp_path / f"bad.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    file.with_suffix(".txt").write_text("noise")
    corrupt(file, kind)
    problem = refusal(tmp_path)
    assert f"bad.{suffix}" in problem and "good.png" not in problem


def test_a_png_with_a_flipped_byte_is_named(tmp_path):
    put(tmp_path, "bad.png", size=(64, 64))
    corrupt(tmp_path / "bad.png", "zeroed")
    assert "bad.png" in refusal(tmp_path)


def test_a_missing_an_empty_and_a_blank_caption_are_named_together(tmp_path):
    put(tmp_path, "none.png", None)
    put(tmp_path, "empty.png", "")
    put(tmp_path, "blank.png", " \n ")
    put(tmp_path, "good.png")
    problem = refusal(tmp_path)
    assert "none.png: no caption" in problem
    assert "empty.png: the caption is empty" in problem and "blank.png: the caption is empty" in problem
    assert "good.png" not in problem


def test_captions_may_be_missing_where_they_are_not_needed(tmp_path):
    put(tmp_path, "none.png", None)
    put(tmp_path, "some.png", "a fox")
    assert [p.caption for p in read_folder(tmp_path, captions_required=False)] == ["", "a fox"]


def test_a_caption_that_is_not_utf8_is_named(tmp_path):
    put(tmp_path, "fox.png", None)
    (tmp_path / "fox.txt").write_bytes("Füchslein".encode("latin-1"))
    assert "fox.txt" in refusal(tmp_path)


def test_a_file_with_two_faults_is_named_once_with_both(tmp_path):
    (tmp_path / "bad.png").write_text("x")
    problem = refusal(tmp_path)
    assert problem.count("bad.png") == 1 and "no caption" in problem and "not a picture" in problem


def test_ten_offenders_are_listed_and_the_rest_counted(tmp_path):
    for index in range(23):
        (tmp_path / f"bad{index:02}.png").write_text("x")
    problem = refusal(tmp_path)
    assert "bad09.png" in problem and "bad10.png" not in problem and "13 more" in problem


def test_a_decompression_bomb_is_named_and_not_decoded(tmp_path, monkeypatch):
    put(tmp_path, "huge.png", size=(60, 60))
    put(tmp_path, "small.png", size=(30, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    problem = refusal(tmp_path)
    assert "huge.png: too many pixels" in problem and "small.png" not in problem
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # Pillow alone would merely warn up to twice the limit
    assert "huge.png: too many pixels" in refusal(tmp_path)


def test_a_file_of_a_format_that_starts_foreign_programs_is_not_opened(tmp_path):
    put(tmp_path, "fox.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "page.eps")
    (tmp_path / "page.eps").rename(tmp_path / "page.png")
    (tmp_path / "page.txt").write_text("x")
    assert "page.png: is not a picture" in refusal(tmp_path)


def test_a_name_with_terminal_codes_is_shown_escaped(tmp_path):
    (tmp_path / "\x1b[31mred.png").write_text("x")
    problem = refusal(tmp_path)
    assert "\x1b" not in problem and "\\x1b[31mred.png" in problem


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    try:
        put(tmp_path, "f\udcffx.png")
    except OSError:
        pytest.skip("this file system stores valid names only")
    assert "not valid UTF-8" in refusal(tmp_path)


# metadata.jsonl


def rows(folder, *lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("key", ["text", "caption"])
def test_an_imagefolder_is_read_through_its_metadata(tmp_path, key):
    put(tmp_path, "a/fox.png", None)
    rows(tmp_path, {"file_name": "a/fox.png", key: " a \nfox ", "licence": "x"}, "")
    (picture,) = read_folder(tmp_path)
    assert (picture.name, picture.caption) == ("a/fox.png", "a fox")


def test_metadata_comes_before_text_files(tmp_path):
    put(tmp_path, "fox.png", "from the text file")
    rows(tmp_path, {"file_name": "./fox.png", "text": "from the metadata"})
    (picture,) = read_folder(tmp_path)
    assert (picture.name, picture.caption) == ("fox.png", "from the metadata")


def test_a_picture_that_the_metadata_forgets_is_named(tmp_path):
    put(tmp_path, "fox.png", None)
    put(tmp_path, "owl.png", None)
    rows(tmp_path, {"file_name": "fox.png", "text": "a fox"})
    assert "owl.png: no caption" in refusal(tmp_path)


def test_a_picture_that_only_the_metadata_knows_is_named(tmp_path):
    put(tmp_path, "fox.png", None)
    rows(tmp_path, {"file_name": "fox.png", "text": "a fox"}, {"file_name": "ghost.png", "text": "boo"})
    assert "ghost.png: No such file" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "a/../../secret.png",
        "/etc/secret.png",
        "C:\\secret.png",
        "..\\secret.png",
        "\\\\host\\x.png",
        "",
    ],
)
def test_metadata_that_leaves_the_folder_is_refused(tmp_path, name):
    put(tmp_path, "secret.png")
    data = tmp_path / "data"
    put(data, "fox.png", None)
    rows(data, {"file_name": "fox.png", "text": "a fox"}, {"file_name": name, "text": "x"})
    assert "line 2" in refusal(data) and "inside the folder" in refusal(data)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{broken", "not JSON"),
        ("[1]", "file_name"),
        ('{"text": "a fox"}', "file_name"),
        ('{"file_name": 3, "text": "a fox"}', "file_name"),
        ('{"file_name": "fox.png", "text": ["a", "fox"]}', "not text"),
        ('{"file_name": "fox.png", "text": "\\ud800"}', "not valid Unicode"),
        ('{"file_name": "fox.png", "text": ""}', "fox.png: the caption is empty"),
        ('{"file_name": "fox.png", "text": null}', "fox.png: the caption is empty"),
        ('{"file_name": "fox.png"}', "fox.png: the caption is empty"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_of_metadata_is_explained(tmp_path, line, problem):
    put(tmp_path, "fox.png", None)
    rows(tmp_path, line)
    assert problem in refusal(tmp_path)


def test_a_picture_that_is_named_twice_is_refused(tmp_path):
    put(tmp_path, "fox.png", None)
    rows(tmp_path, {"file_name": "fox.png", "text": "a"}, {"file_name": "./fox.png", "text": "b"})
    assert "line 2: 'fox.png' is named twice" in refusal(tmp_path)


def test_metadata_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "metadata.jsonl").write_bytes(b"\xff\xfe")
    assert "UTF-8" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["fox.png", "a/fox.png", "./a/fox.png", "a..b.png", "ünï.png"])
def test_names_inside_the_folder_are_kept(name):
    assert relative_name(name) == name.removeprefix("./")


# Some pictures of a folder


def test_named_pictures_are_read_whatever_else_the_folder_holds(tmp_path):
    put(tmp_path, "fox.png", "a fox")
    (tmp_path / "bad.png").write_text("x")
    assert [p.caption for p in read_pictures(tmp_path, ["fox.png"])] == ["a fox"]


def test_a_named_picture_that_is_missing_is_named(tmp_path):
    put(tmp_path, "fox.png")
    with pytest.raises(LoricaError, match=r"owl\.png"):
        read_pictures(tmp_path, ["fox.png", "owl.png"])


# Decoding


def test_transparency_is_composited_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "half.png")
    Image.new("LA", (4, 4), (0, 64)).save(tmp_path / "grey.png")
    assert near(load_rgb(tmp_path / "clear.png"), WHITE, 0)
    assert near(load_rgb(tmp_path / "half.png"), (255, 127, 127), 1)
    assert near(load_rgb(tmp_path / "grey.png"), (191, 191, 191), 1)


def test_a_transparent_palette_colour_is_white(tmp_path):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "opaque.png")
    palette.save(tmp_path / "clear.png", transparency=1)
    palette.save(tmp_path / "clear.gif", transparency=1)
    assert near(load_rgb(tmp_path / "opaque.png"), GREEN, 0)
    assert near(load_rgb(tmp_path / "clear.png"), WHITE, 0)
    assert near(load_rgb(tmp_path / "clear.gif"), WHITE, 0)


def test_a_transparent_key_colour_is_white(tmp_path):
    Image.new("RGB", (4, 4), GREEN).save(tmp_path / "key.png", transparency=GREEN)
    Image.new("L", (4, 4), 7).save(tmp_path / "grey.png", transparency=7)
    assert near(load_rgb(tmp_path / "key.png"), WHITE, 0) and near(load_rgb(tmp_path / "grey.png"), WHITE, 0)


@pytest.mark.parametrize(("mode", "value", "expected"), [("L", 90, 90), ("1", 1, 255)])
def test_greyscale_and_bitmaps_become_rgb(tmp_path, mode, value, expected):
    Image.new(mode, (4, 4), value).save(tmp_path / "grey.png")
    picture = load_rgb(tmp_path / "grey.png")
    assert picture.mode == "RGB" and near(picture, (expected,) * 3, 0)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_rgb(tmp_path, suffix):
    file = tmp_path / f"print.{suffix}"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(file)
    with Image.open(file) as image:
        assert image.mode == "CMYK"
    assert near(load_rgb(file), RED)


def ramp():
    return np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)


@pytest.mark.parametrize(("suffix", "order"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2")])
def test_16_bit_greyscale_is_scaled_and_not_clipped(tmp_path, suffix, order):
    file = tmp_path / f"deep.{suffix}"
    if order == ">u2":
        write_big_endian_tiff(file, ramp())
    else:
        Image.fromarray(ramp()).save(file)
    with Image.open(file) as image:
        assert image.mode == ("I;16B" if order == ">u2" else "I;16")
    grey = np.asarray(load_rgb(file))[..., 0].ravel()
    assert (grey == np.arange(256)).all()


def test_dark_16_bit_greyscale_stays_dark(tmp_path):
    Image.fromarray((ramp() // 256).astype(np.uint16)).save(tmp_path / "dark.png")
    assert np.asarray(load_rgb(tmp_path / "dark.png")).max() == 1


def write_big_endian_tiff(file, levels):
    """The smallest big-endian TIFF: header, one directory, one strip."""
    height, width = levels.shape
    tags = [(256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 0), (277, 3, 1)]
    tags += [(278, 3, height), (279, 4, levels.size * 2)]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        tag.to_bytes(2, "big")
        + kind.to_bytes(2, "big")
        + (1).to_bytes(4, "big")
        + (value.to_bytes(2, "big") + bytes(2) if kind == 3 else (start if tag == 273 else value).to_bytes(4, "big"))
        for tag, kind, value in tags
    )
    header = b"MM\x00\x2a" + (8).to_bytes(4, "big") + len(tags).to_bytes(2, "big")
    file.write_bytes(header + entries + bytes(4) + levels.astype(">u2").tobytes())


def png_chunk(kind, content):
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def test_16_bit_colour_is_scaled(tmp_path):
    row = b"\x00" + b"".join(level.to_bytes(2, "big") for level in (65535, 32768, 0)) * 4
    header = (4).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
    chunks = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(row * 4)), png_chunk(b"IEND", b"")]
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    assert near(load_rgb(tmp_path / "deep.png"), (255, 128, 0), 0)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_32_bit_pixels_of_unknown_range_are_refused(tmp_path, dtype):
    Image.fromarray(np.zeros((4, 4), dtype)).save(tmp_path / "deep.tif")
    with pytest.raises(LoricaError, match="32-bit"):
        load_rgb(tmp_path / "deep.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_as_exif_says(tmp_path, orientation, suffix):
    upright = Image.new("RGB", (32, 16), WHITE)
    upright.paste(RED, (0, 0, 8, 8))  # top left
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # the inverse of what the viewer must do
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    stored = upright if method is None else upright.transpose(method)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"photo.{suffix}", exif=exif)
    picture = load_rgb(tmp_path / f"photo.{suffix}")
    assert picture.size == (32, 16)
    red, white = picture.getpixel((3, 3)), picture.getpixel((28, 12))
    assert red[0] > 200 and red[1] < 60 and min(white) > 200


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, suffix):
    first, second = Image.new("RGB", (16, 16), BLUE), Image.new("RGB", (16, 16), RED)
    first.save(tmp_path / f"film.{suffix}", save_all=True, append_images=[second], duration=100)
    assert near(load_rgb(tmp_path / f"film.{suffix}"), BLUE)


def test_the_suffix_of_a_picture_may_lie(tmp_path):
    Image.new("RGB", (16, 16), BLUE).save(tmp_path / "fox.png")
    (tmp_path / "fox.png").rename(tmp_path / "fox.jpg")
    assert near(load_rgb(tmp_path / "fox.jpg"), BLUE)


def test_a_missing_picture_is_named(tmp_path):
    with pytest.raises(LoricaError, match=r"gone\.png"):
        load_rgb(tmp_path / "gone.png")


# Fitting


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (64, 128), (20, 10), (1, 400), (400, 1), (33, 65)])
def test_any_size_and_aspect_fits(size):
    assert fit(Image.new("RGB", size, RED), 32).size == (32, 32)
    assert near(fit(Image.new("RGB", size, RED), 32), RED, 0)


@pytest.mark.parametrize("turn", [False, True])
def test_the_centre_is_kept_and_the_ends_are_cut(turn):
    image = Image.new("RGB", (96, 32), RED)
    image.paste(GREEN, (32, 0, 64, 32))
    image = image.transpose(Image.Transpose.TRANSPOSE) if turn else image
    levels = np.asarray(fit(image, 32))
    assert (levels == GREEN).all()


def test_shrinking_averages_instead_of_skipping():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    levels = np.asarray(fit(Image.fromarray(stripes), 16))[:, 2:-2]  # Lanczos rings at the borders
    assert abs(levels.astype(int) - 127).max() < 8


def test_a_picture_of_the_right_size_is_untouched():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    assert (np.asarray(fit(image, 32)) == np.asarray(image)).all()


def test_pixels_are_floats_between_minus_one_and_one(tmp_path):
    put(tmp_path, "a.png", colour=(0, 255, 51))
    put(tmp_path, "b.png", colour=WHITE, size=(40, 20))
    tensor = pixels(read_folder(tmp_path), 8)
    assert tensor.shape == (2, 3, 8, 8) and tensor.dtype == torch.float32
    assert torch.allclose(tensor[0, :, 4, 4], torch.tensor([-1.0, 1.0, -0.6]))
    assert (tensor[1] == 1).all()
