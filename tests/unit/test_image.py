import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from diffuseg.errors import InputError
from diffuseg.image import Image, read_image, to_tensor, working_hw
from support import images

WHITE, RED = [255, 255, 255], [255, 0, 0]


def refused(source: object, *, expected: str, got: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        read_image(source)
    error = caught.value
    assert expected in error.expected
    assert got in str(error.got)
    assert remedy in error.remedy


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "corners.png"
    path.write_bytes(images.encoded(images.corners()))
    return path


def test_every_form_gives_the_same_pixels(png):
    pixels = images.corners()
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    forms = [
        png,
        str(png),
        png.read_bytes(),
        bytearray(png.read_bytes()),
        PIL.Image.fromarray(pixels),
        pixels,
        pixels.astype(np.float64) / 255,
        pixels.astype(np.uint16) * 257,
        pixels.astype(">u2") * 257,
        np.asfortranarray(pixels),
        np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
        planes,
        planes.permute(1, 2, 0),
        planes.float() / 255,
        (planes.float() / 255).requires_grad_(),
        (planes.float() / 255).bfloat16(),
    ]
    for form in forms:
        assert np.array_equal(read_image(form).pixels, pixels)


def test_the_source_is_named(png):
    assert read_image(png).source == "corners.png"
    with PIL.Image.open(png) as opened:
        assert read_image(opened).source == "corners.png"
    assert read_image(png.read_bytes()).source == "bytes"
    assert read_image(images.corners()).source == "array"
    assert repr(read_image(png)) == "Image 32x48 (corners.png)"


def test_an_image_stays_itself():
    image = Image(pixels=images.corners())
    assert read_image(image) is image


def test_the_pixels_are_a_copy():
    pixels = images.corners()
    image = read_image(pixels)
    pixels[:] = 0
    assert image.pixels.max() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(orientation, kind):
    read = read_image(images.turned(orientation, kind))
    assert read.hw == (32, 48)
    assert np.abs(read.pixels.astype(int) - images.corners()).mean() < 8


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0broken", b"Exif\0\0MM\0*\0\0\0\x08\0\x05broken", b"?"]
)
def test_broken_exif_does_no_harm(exif):
    jpeg = images.encoded(images.corners(), "JPEG", exif=exif, quality=95)
    assert read_image(jpeg).hw == (32, 48)


def test_exif_orientation_of_a_pillow_image_is_applied():
    with PIL.Image.open(io.BytesIO(images.turned(6))) as opened:
        assert opened.size == (32, 48)
        assert read_image(opened).hw == (32, 48)


@pytest.mark.parametrize(
    "picture",
    [
        images.see_through(),
        images.encoded(images.see_through()),
        images.encoded(images.see_through(), "WEBP", lossless=True),
        np.asarray(images.see_through()),
        images.see_through_palette(),
        images.encoded(PIL.Image.new("RGB", (48, 32), "black"), transparency=(0, 0, 0)),
        images.see_through().convert("PA"),
        images.see_through().convert("RGBa"),
    ],
)
def test_transparency_lies_over_white(picture):
    pixels = read_image(picture).pixels
    assert pixels[16, 40].tolist() == WHITE
    assert pixels[16, 8].tolist() in (RED, WHITE)


def test_half_transparent_grey_is_mixed_with_white():
    grey = np.zeros((16, 16, 2), dtype=np.uint8)
    grey[..., 1] = 128
    bands = [PIL.Image.fromarray(np.ascontiguousarray(grey[..., i])) for i in (0, 1)]
    for form in (grey, PIL.Image.merge("LA", bands)):
        assert (read_image(form).pixels == 127).all()


def test_cmyk():
    ink = PIL.Image.new("CMYK", (48, 32), (0, 255, 255, 0))
    assert read_image(ink).pixels[0, 0].tolist() == RED
    read = read_image(images.encoded(ink, "JPEG", quality=100)).pixels[0, 0]
    assert np.abs(read.astype(int) - RED).max() < 8


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bit_grey_is_scaled(mode):
    values = np.linspace(0, 65535, 16 * 16).round().reshape(16, 16)
    if mode == "I":
        picture = PIL.Image.fromarray(values.astype(np.int32))
    else:
        kind = "<u2" if mode == "I;16" else ">u2"
        picture = PIL.Image.frombytes(mode, (16, 16), values.astype(kind).tobytes())
    assert picture.mode == mode
    expected = np.rint(values / 257).astype(np.uint8)
    assert np.array_equal(read_image(picture).pixels[..., 1], expected)
    if mode == "I;16":
        assert np.array_equal(read_image(images.encoded(picture)).pixels[..., 0], expected)
        assert np.array_equal(read_image(images.encoded(picture, "TIFF")).pixels[..., 2], expected)


def test_one_bit_and_bool_are_black_and_white():
    mask = np.eye(16, dtype=bool)
    for form in (mask, mask[..., None], torch.from_numpy(mask), torch.from_numpy(mask)[None]):
        assert np.array_equal(
            read_image(form).pixels, np.repeat(mask[..., None] * np.uint8(255), 3, 2)
        )
    assert np.array_equal(
        read_image(PIL.Image.fromarray(mask)).pixels[..., 0], mask * np.uint8(255)
    )


@pytest.mark.parametrize("mode", ["L", "P", "YCbCr", "HSV", "RGBX"])
def test_other_modes_become_rgb(mode):
    grey = PIL.Image.new("RGB", (48, 32), (102, 102, 102)).convert(mode)
    assert np.abs(read_image(grey).pixels.astype(int) - 102).max() <= 1


def test_float_tiff():
    picture = PIL.Image.fromarray(np.full((16, 16), 0.5, dtype=np.float32))
    assert (read_image(images.encoded(picture, "TIFF")).pixels == 128).all()


def test_the_first_frame_of_an_animation():
    assert read_image(images.animation()).pixels[0, 0].tolist() == RED


def test_missing_file(tmp_path):
    refused(tmp_path / "no.png", expected="must exist", got="no.png", remedy="check the path")
    refused("https://example.org/a.png", expected="must exist", got="a.png", remedy="download")


def test_unreadable_path():
    refused("a\0b.png", expected="readable", got="a\\x00b.png", remedy="check the path")


def test_folder(tmp_path):
    refused(tmp_path, expected="must be a file", got="the folder", remedy="name a file inside")


@pytest.mark.parametrize(
    "content", [b"hello, I am text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"]
)
def test_not_an_image(tmp_path, content):
    path = tmp_path / "text.png"
    path.write_bytes(content)
    refused(path, expected="must be an image", got="not recognised", remedy="save it as PNG")
    refused(content, expected="must be an image", got="the bytes given", remedy="save it as PNG")


def test_empty_file(tmp_path):
    path = tmp_path / "empty.jpg"
    path.write_bytes(b"")
    refused(path, expected="must be an image", got="an empty file", remedy="save it as PNG")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_truncated_file(tmp_path, kind):
    whole = images.encoded(images.noise((64, 64)), kind)
    path = tmp_path / "cut"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError) as caught:
        read_image(path)
    # Some formats keep what is needed to know them at the end of the file.
    assert "complete and undamaged" in caught.value.expected or "image" in caught.value.expected
    assert "cut" in str(caught.value.got)
    if kind in ("JPEG", "PNG", "BMP"):
        assert "complete and undamaged" in caught.value.expected
        assert "again" in caught.value.remedy


def test_a_damaged_png_is_refused():
    broken = bytearray(images.encoded(images.noise((64, 64))))
    broken[200:300] = bytes(100)
    refused(bytes(broken), expected="undamaged", got="the bytes given", remedy="again")


@pytest.mark.parametrize("hw", [(1, 1), (15, 100), (100, 15)])
def test_too_small(hw):
    small = np.zeros((*hw, 3), dtype=np.uint8)
    got = f"{hw[0]} high, {hw[1]} wide"
    for form in (small, PIL.Image.fromarray(small), images.encoded(small), torch.from_numpy(small)):
        refused(form, expected="at least 16 pixels", got=got, remedy="larger")


def test_zero_size():
    refused(np.zeros((0, 40, 3), np.uint8), expected="at least 16", got="0 high", remedy="larger")
    refused(np.zeros((40, 0), np.uint8), expected="at least 16", got="0 wide", remedy="larger")


def test_sixteen_pixels_are_enough():
    assert read_image(np.zeros((16, 16), np.uint8)).hw == (16, 16)


@pytest.mark.parametrize("hw", [(9_600, 10_500), (12_000, 12_000), (20_000, 20_000)])
def test_too_large_is_seen_in_the_header(tmp_path, hw):
    path = tmp_path / "huge.png"
    path.write_bytes(images.huge_png(hw))
    refused(path, expected="at most 100 million pixels", got="", remedy="scale it down")


def test_between_the_limits_of_pillow_and_ours():
    # 95 megapixels: Pillow would warn. The data behind this header is missing, which comes next.
    refused(images.huge_png((9_500, 10_000)), expected="undamaged", got="", remedy="again")


def test_too_large_array():
    view = np.broadcast_to(np.uint8(0), (20_000, 20_000, 3))
    refused(view, expected="at most 100 million", got="20000 high", remedy="scale it down")


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((32,), "pass one image"),
        ((), "pass one image"),
        ((32, 32, 5), "pass one image"),
        ((3, 32, 32), "transpose(1, 2, 0)"),
        ((1, 32, 32, 3), "batch[0]"),
    ],
)
def test_wrong_shape(shape, remedy):
    refused(np.zeros(shape, np.uint8), expected="1 to 4 channels", got=str(shape), remedy=remedy)


def test_a_batch_of_tensors_is_refused():
    refused(torch.zeros(2, 3, 32, 32), expected="1 to 4 channels", got="2, 3", remedy="batch[0]")


@pytest.mark.parametrize("dtype", [np.int64, np.complex64, object, "U3"])
def test_wrong_dtype(dtype):
    got = str(np.dtype(dtype))
    refused(np.zeros((32, 32), dtype), expected="must be uint8", got=got, remedy="astype")


@pytest.mark.parametrize(
    ("value", "got"), [(255.0, "0 to 255"), (-0.5, "-0.5 to 0"), (np.nan, "nan"), (np.inf, "inf")]
)
def test_floats_out_of_range(value, got):
    pixels = np.zeros((32, 32), np.float32)
    pixels[3, 4] = value
    refused(pixels, expected="in [0, 1]", got=got, remedy="divide by 255")


def test_wide_integers_out_of_range():
    picture = PIL.Image.fromarray(np.full((16, 16), 70_000, np.int32))
    refused(picture, expected="0 to 65535", got="70000", remedy="scale it")


def test_colours_that_cannot_be_converted():
    picture = PIL.Image.new("La", (16, 16))
    refused(picture, expected="convertible to RGB", got="mode La", remedy="RGB PNG")


def test_wrong_type():
    for form in (None, 3, [[1, 2]], {"a": 1}):
        refused(form, expected="must be a path", got=type(form).__name__, remedy="pass one of")


@pytest.mark.parametrize(
    ("hw", "size", "expected"),
    [
        ((512, 512), 512, (512, 512)),
        ((480, 640), 512, (448, 576)),
        ((640, 480), 512, (576, 448)),
        ((100, 2000), 256, (64, 1152)),
        ((16, 16), 256, (256, 256)),
        ((16, 100_000), 256, (64, 20_224)),
    ],
)
def test_working_size_keeps_the_aspect(hw, size, expected):
    assert working_hw(hw, size=size) == expected


def test_working_size_square_and_other_multiples():
    assert working_hw((480, 640), size=256, fit="square") == (256, 256)
    assert working_hw((480, 640), size=256, multiple=8) == (224, 296)


def test_working_size_refuses_nonsense():
    with pytest.raises(InputError, match=r"positive\n  got: hw=\(0, 5\)"):
        working_hw((0, 5), size=256)
    with pytest.raises(InputError, match="positive"):
        working_hw((5, 5), size=0)
    with pytest.raises(InputError, match=r"multiple of 64\n  got: 500\n  fix: use 512"):
        working_hw((5, 5), size=500, fit="square")


def test_working_size_refuses_other_fits():
    # Where types are checked, the check comes first.
    with pytest.raises((InputError, TypeError), match="fit") as caught:
        working_hw((5, 5), size=256, fit="stretch")
    if isinstance(caught.value, InputError):
        assert caught.value.expected == 'fit must be "aspect" or "square"'
        assert (caught.value.got, caught.value.remedy) == ("'stretch'", "use one of the two")


def test_tensor_is_exact_at_the_own_size():
    pixels = images.noise()
    tensor = to_tensor(Image(pixels=pixels), (32, 48))
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor[0], torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)


@pytest.mark.parametrize("hw", [(64, 96), (16, 24), (64, 24)])
def test_tensor_is_bilinear_and_antialiased(hw):
    image = Image(pixels=images.noise())
    whole = torch.from_numpy(image.pixels).permute(2, 0, 1)[None].float() / 255
    expected = torch.nn.functional.interpolate(
        whole, size=hw, mode="bilinear", align_corners=False, antialias=hw != (64, 96)
    )
    tensor = to_tensor(image, hw)
    assert tensor.shape == (1, 3, *hw)
    assert torch.allclose(tensor, expected, atol=1e-6)
    assert tensor.min() >= 0
    assert tensor.max() <= 1


def test_shrinking_averages():
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    tensor = to_tensor(read_image(board), (16, 16))
    assert torch.allclose(tensor, torch.full_like(tensor, 0.5), atol=0.02)
