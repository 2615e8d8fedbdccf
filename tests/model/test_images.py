"""Pictures in and out: the release's resizing to the pixel (parity case 7), and files good and bad."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from triptych.errors import OutputError, PictureError
from triptych.model import images
from triptych.model.config import BAGEL_7B, SKETCH, Resize
from triptych.model.images import (
    flatten_rgba,
    frames_note,
    normalize,
    read_image,
    resize,
    resized_size,
    to_pixels,
    write_image,
)

sides = st.integers(1, 6000)


@pytest.fixture(scope="module")
def case(shared):
    folder = shared / "parity"
    facts = json.loads((folder / "case7_image_transforms.json").read_text())
    return facts, load_file(folder / "case7_image_transforms.safetensors")


def test_sizes_are_golden(case):
    facts, _ = case
    for name, expected in facts["output_hw"].items():
        base = name.removesuffix("_img_num3")
        rule = Resize(*facts["transforms"][base])
        sizes = [resized_size((w, h), rule, 1 if name == base else 3) for w, h in facts["input_wh"]]
        assert [[height, width] for width, height in sizes] == expected, name


def test_resized_pixels_are_golden(case):
    facts, tensors = case
    for name, (longest, shortest, stride) in facts["pixel_transforms"].items():
        for image in ("image0", "image1"):
            small = resize(tensors[f"in.{image}_uint8"].numpy(), Resize(longest, shortest, stride))
            assert np.array_equal(small, tensors[f"out.{image}_{name}_resized_uint8"].numpy())
            if image == "image0":
                assert torch.equal(normalize(small), tensors[f"out.{image}_{name}"])


def test_transparency_is_laid_on_white(case):
    _, tensors = case
    flat = flatten_rgba(Image.fromarray(tensors["in.image_rgba_uint8"].numpy()))
    assert np.array_equal(np.asarray(flat), tensors["out.image_rgba_to_rgb"].numpy())


@given(st.tuples(sides, sides), st.sampled_from([BAGEL_7B.vae_resize, BAGEL_7B.vit_resize, SKETCH.vae_resize]))
def test_every_size_comes_out_on_the_stride_and_within_the_limit(size, rule):
    width, height = resized_size(size, rule)
    assert width % rule.stride == height % rule.stride == 0
    assert rule.stride <= min(width, height) and max(width, height) <= rule.max_side + rule.stride // 2


@given(st.tuples(sides, sides))
def test_width_and_height_play_the_same_part(size):
    """Forbids c.A12 of the parity kit: swapped sides in the branches that drop something."""
    width, height = resized_size(size, BAGEL_7B.vae_resize)
    assert resized_size(size[::-1], BAGEL_7B.vae_resize) == (height, width)


def test_an_empty_picture_is_refused():
    with pytest.raises(PictureError, match="0x5"):
        resized_size((0, 5), BAGEL_7B.vae_resize)


def test_a_picture_of_the_right_size_is_left_alone():
    picture = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    assert np.array_equal(resize(picture, SKETCH.vae_resize), picture)


def test_every_level_survives_the_way_in_and_out():
    """Truncation must not lose a level that rounding in float32 has shaved off."""
    levels = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
    back = to_pixels(normalize(levels))
    assert np.abs(back.astype(int) - levels).max() <= 1
    assert to_pixels(torch.tensor([-9.0, 9.0])[None, :, None].expand(3, 2, 1)).ravel().tolist() == [0] * 3 + [255] * 3


def test_what_is_written_is_read(tmp_path):
    for shape in ((1, 1, 3), (7, 5, 3)):
        picture = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        write_image(tmp_path / "p.png", picture)
        assert np.array_equal(read_image(tmp_path / "p.png"), picture)
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode_is_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("p.tiff" if mode in ("CMYK", "F") else "p.png")
    Image.new("L", (4, 3), 0).convert(mode).save(path)
    assert np.array_equal(read_image(path), np.zeros((3, 4, 3), np.uint8))


def test_a_transparent_palette_is_laid_on_white(tmp_path):
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([10, 20, 30, 0, 0, 0])
    picture.save(tmp_path / "p.png", transparency=0)
    assert (read_image(tmp_path / "p.png") == 255).all()


def test_sixteen_bits_keep_their_brightness(tmp_path):
    Image.fromarray(np.full((2, 2), 40000, np.uint16)).save(tmp_path / "p.png")
    assert (read_image(tmp_path / "p.png") == 40000 // 256).all()


def test_a_picture_taken_sideways_is_turned_up(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    Image.new("RGB", (8, 4)).save(tmp_path / "p.jpg", exif=exif)
    assert read_image(tmp_path / "p.jpg").shape == (8, 4, 3)


def test_bad_files_are_picture_errors(tmp_path):
    with pytest.raises(PictureError, match="does not exist"):
        read_image(tmp_path / "none.png")
    with pytest.raises(PictureError, match="cannot be read"):
        read_image(tmp_path)
    for name, content in (("empty.png", b""), ("words.png", b"three red apples")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PictureError, match="is not a picture"):
            read_image(tmp_path / name)
    write_image(tmp_path / "good.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PictureError, match=r"cut\.png"):
        read_image(tmp_path / "cut.png")


def test_a_picture_with_a_damaged_exif_is_read_without_a_word(tmp_path, recwarn):
    exif = b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 60  # a directory of 65,535 entries, and none of them there
    Image.new("RGB", (8, 4)).save(tmp_path / "p.png", exif=exif)
    assert read_image(tmp_path / "p.png").shape == (4, 8, 3)
    assert not recwarn.list


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (8000, 100_000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
        with pytest.raises(PictureError, match=str(images.MAX_PIXELS)):
            read_image(tmp_path / "huge.png")


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        write_image(tmp_path / "missing" / "p.png", np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError):
        write_image(tmp_path / "folder.png", np.zeros((2, 2, 3), np.uint8))
    assert [file.name for file in tmp_path.iterdir()] == ["folder.png"]


# --- modes that are read wrongly by a plain conversion ----------------------------------------------------------------


def saved(tmp_path: Path, image: Image.Image, name: str, **options) -> np.ndarray:
    image.save(tmp_path / name, **options)
    return read_image(tmp_path / name)


def test_one_transparent_color_is_laid_on_white(tmp_path: Path):
    colors = np.full((4, 4, 3), (220, 30, 30), np.uint8)
    colors[0, 0] = (10, 20, 30)
    pixels = saved(tmp_path, Image.fromarray(colors), "a.png", transparency=(220, 30, 30))
    assert pixels[1, 1].tolist() == [255, 255, 255] and pixels[0, 0].tolist() == [10, 20, 30]


def test_one_transparent_level_of_16_bits_is_laid_on_white(tmp_path: Path):
    levels = np.full((4, 4), 25700, np.uint16)
    levels[0, 0] = 65535 // 2
    pixels = saved(tmp_path, Image.fromarray(levels), "a.png", transparency=25700)
    assert pixels[1, 1].tolist() == [255] * 3 and pixels[0, 0].tolist() == [127] * 3


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4), 255),
        (np.linspace(0, 255, 16, dtype=np.float32).reshape(4, 4), 255),
        (np.linspace(0, 200, 16).astype(np.int32).reshape(4, 4), 200),
        (np.linspace(0, 65535, 16).astype(np.int32).reshape(4, 4), 255),
        (np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4), 255),
    ],
    ids=["shares", "levels", "int32 of 8 bits", "int32 of 16 bits", "16 bits"],
)
def test_a_tiff_of_numbers_is_scaled_and_never_black(tmp_path: Path, values: np.ndarray, expected: int):
    pixels = saved(tmp_path, Image.fromarray(values), "a.tiff")
    assert pixels[0, 0].tolist() == [0] * 3 and pixels[-1, -1].tolist() == [expected] * 3
    assert (np.diff(pixels[:, :, 0].reshape(-1).astype(int)) > 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e6])
def test_a_tiff_of_an_unknown_range_is_refused(tmp_path: Path, value: float):
    Image.fromarray(np.full((4, 4), value, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(PictureError, match=r"a\.tiff"):
        read_image(tmp_path / "a.tiff")


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path):
    (tmp_path / "a.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(PictureError, match="git lfs pull"):
        read_image(tmp_path / "a.png")


def png(depth: int, kind: int, row: bytes, transparent: bytes, palette: bytes = b"") -> bytes:
    """A PNG of 2 x 1 pixels, of which Pillow writes no such kind: `kind` is 0 for gray, 2 for RGB, 3 for a palette."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 2, 1, depth, kind, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *([chunk(b"PLTE", palette)] if palette else []), chunk(b"tRNS", transparent)]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")])


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (png(1, 0, b"\x40", b"\0\1"), [0, 0, 0]),
        (png(2, 0, b"\x60", b"\0\2"), [85, 85, 85]),
        (png(4, 0, b"\x5a", b"\0\x0a"), [85, 85, 85]),
        (png(8, 0, b"\x05\x0a", b"\0\x0a"), [5, 5, 5]),
        (png(16, 0, struct.pack(">HH", 25700, 60000), struct.pack(">H", 60000)), [100, 100, 100]),
        (
            png(16, 2, struct.pack(">6H", 256, 512, 768, 9000, 8000, 7001), struct.pack(">3H", 9000, 8000, 7001)),
            [1, 2, 3],
        ),
        (png(8, 3, b"\0\1", b"\xff\0", bytes([255, 0, 0, 0, 255, 0])), [255, 0, 0]),
    ],
    ids=["1 bit", "2 bits", "4 bits", "8 bits", "16 bits", "RGB of 16 bits", "palette"],
)
def test_the_transparent_color_of_every_depth_is_white(tmp_path: Path, content: bytes, shown: list[int]):
    (tmp_path / "a.png").write_bytes(content)
    left, right = read_image(tmp_path / "a.png")[0]
    assert left.tolist() == shown and right.tolist() == [255, 255, 255]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame_counts_and_that_is_told(tmp_path: Path, suffix: str):
    red, blue = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    red.save(tmp_path / f"one.{suffix}")
    red.save(tmp_path / f"two.{suffix}", save_all=True, append_images=[blue])
    assert read_image(tmp_path / f"two.{suffix}")[0, 0].tolist()[2] == 0
    assert frames_note(tmp_path / f"one.{suffix}") == "" and "2 frames" in frames_note(tmp_path / f"two.{suffix}")


def test_a_program_is_no_picture(tmp_path: Path):
    """Ghostscript would run it."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(PictureError, match="is EPS, which is not read here"):
        read_image(tmp_path / "a.png")


def test_a_print_in_four_inks_is_read_in_three_colors(tmp_path: Path):
    assert saved(tmp_path, Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "a.jpg")[0, 0].tolist() == [255, 0, 0]
    assert saved(tmp_path, Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "a.tiff")[0, 0].tolist() == [255, 0, 0]


def test_the_shared_cases_of_pictures(shared: Path):
    (rgb,) = (shared / "cases").glob("30-*/a.png")
    assert read_image(rgb)[30, 5].tolist() == [255, 255, 255] or read_image(rgb)[5, 30].tolist() == [255, 255, 255]
    for number in ("32", "33"):
        (path,) = (shared / "cases").glob(f"{number}-*/a.tiff")
        assert read_image(path).max() > 100
    (pointer,) = (shared / "cases").glob("35-*/a.png")
    with pytest.raises(PictureError, match="LFS"):
        read_image(pointer)
