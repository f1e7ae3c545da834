"""What the command line makes of odd images and of all that cannot be: messages, exit codes."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

import diffuseg as ds
from diffuseg.cli.terminal import progress_bar
from support.commands import call, files, pixels, segment, write_picture
from support.folders import write_mini


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_mini(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Wide enough that no message is wrapped.
    monkeypatch.setenv("COLUMNS", "400")
    return tmp_path


ESCAPE = "\x1b"


def png_header(width, height):
    """A PNG that says how large it is, and little more."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


def cmyk(path):
    PIL.Image.fromarray(pixels()).convert("CMYK").save(path.with_suffix(".jpg"))
    return path.with_suffix(".jpg")


def sixteen_bit(path):
    PIL.Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257).save(path)
    return path


def with_alpha(path):
    PIL.Image.fromarray(np.dstack([pixels(), pixels()[..., :1]])).save(path)
    return path


def rotated(path):
    picture = PIL.Image.fromarray(pixels())
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path.with_suffix(".jpg"), exif=exif)
    return path.with_suffix(".jpg")


def grey(path):
    PIL.Image.fromarray(pixels()[..., 0]).save(path)
    return path


@pytest.mark.parametrize(
    ("write", "hw"),
    [
        (cmyk, (64, 80)),
        (sixteen_bit, (64, 80)),
        (with_alpha, (64, 80)),
        (rotated, (80, 64)),
        (grey, (64, 80)),
    ],
)
def test_odd_images_come_out_right(here, tiny, write, hw):
    path = write(here / "odd.png")
    done = segment(path, "-o", "out", "-f", "npz", tiny=tiny)
    assert done.exit_code == 0, done.output
    assert ds.Segmentation.load(here / "out/odd.npz").hw == hw


def truncated(path):
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels((256, 256))).save(stream, "JPEG")
    path.write_bytes(stream.getvalue()[:-4000])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "the image file must exist"),
        (lambda path: path.write_bytes(b""), "must be an image in a format Pillow reads"),
        (truncated, "complete and undamaged"),
        (lambda path: PIL.Image.new("RGB", (1, 1)).save(path, "PNG"), "at least 16 pixels"),
        (lambda path: path.write_bytes(png_header(20000, 20000)), "at most 100 million pixels"),
    ],
)
def test_images_that_cannot_be_used(here, tiny, write, message):
    write(here / "bad.jpg")
    done = segment("bad.jpg", "-o", "out", tiny=tiny)
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.count("  got: ") == done.stderr.count("  fix: ") == 1
    assert "Traceback" not in done.output
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("", "at least one class must be named"),
        ("cat,,dog", "every class must have a name"),
        ("cat, dog, Cat", "every word may stand for one class"),
        ("cat, giraffe", "knows only these words"),
    ],
)
def test_classes_that_cannot_be(here, tiny, classes, message):
    write_picture(here / "a.png")
    done = segment("a.png", "-o", "out", tiny=tiny, classes=classes)
    assert done.exit_code == 2
    assert message in done.stderr
    assert files(here) == ["a.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "refin=1"], "did you mean refine?"),
        (["--set", "refine=often"], "refine must be a whole number"),
        (["--set", "refine"], "settings are given as name=value"),
        (["--method", "magic"], "the method must be a known name"),
        (["-f", "bmp"], "a format must be a known one"),
        (["--device", "abacus"], "the device must be one that torch can use"),
        (["--batch-size", "0"], "batch_size must be"),
        (["--seed", "-3"], "seed must be"),
    ],
)
def test_options_that_cannot_be(here, tiny, options, message):
    write_picture(here / "a.png")
    done = call("segment", "a.png", "-c", "cat", "-m", tiny, "-o", "out", *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert files(here) == ["a.png"]


def test_classes_left_out(here, tiny):
    write_picture(here / "a.png")
    done = call("segment", "a.png", "-m", tiny)
    assert done.exit_code == 2
    assert "needs the names of the classes" in done.stderr


def test_a_method_without_classes(here, tiny):
    write_picture(here / "a.png")
    options = ["-m", tiny, "--device", "cpu", "--method", "diffseg"]
    done = call("segment", "a.png", *options)
    assert done.exit_code == 0, done.output
    assert ds.Segmentation.load(here / "out/a.png").names[0] == "segment 0"
    done = call("segment", "a.png", *options, "-c", "cat")
    assert done.exit_code == 2
    assert "finds segments without names" in done.stderr


def test_a_corrupt_model_folder(here, tiny):
    write_picture(here / "a.png")
    broken = here / "broken"
    write_mini(broken)
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    done = call("segment", "a.png", "-c", "cat", "-m", broken, "-o", "out")
    assert done.exit_code == 1
    assert "  got: " in done.stderr
    assert "  fix: " in done.stderr
    assert "Traceback" not in done.output
    assert not (here / "out").exists()


def test_a_model_nobody_knows(here):
    write_picture(here / "a.png")
    done = call("segment", "a.png", "-c", "cat", "-m", "mimi", "-o", "out")
    assert done.exit_code == 2
    assert "did you mean mini" in done.stderr


def test_a_model_that_is_not_here(here, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    write_picture(here / "a.png")
    done = call("segment", "a.png", "-c", "cat", "-m", "sd1.5", "-o", "out", "--offline")
    assert done.exit_code == 1
    assert "  fix: " in done.stderr


def test_a_record_that_is_none(here):
    (here / "a.safetensors").write_bytes(b"nothing")
    done = call("replay", "a.safetensors")
    assert done.exit_code == 2
    assert "  got: " in done.stderr


def test_unknown_commands_and_options_are_usage_errors(here):
    assert call("segmnt", "a.png").exit_code == 2
    assert call("segment", "a.png", "--clases", "cat").exit_code == 2
    assert call("segment").exit_code == 2


def test_keyboard_interrupt_is_130(here, tiny, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    write_picture(here / "a.png")
    monkeypatch.setattr("diffuseg.folders.segment_files", interrupt)
    done = segment("a.png", tiny=tiny)
    assert done.exit_code == 130
    assert "stopped" in done.stderr


def test_no_color_or_bar_where_nobody_watches(here, tiny, capsys):
    with progress_bar("counting") as advance:
        advance(1, 2)
    assert capsys.readouterr().err == ""
    write_picture(here / "a.png")
    assert ESCAPE not in segment("a.png", "no.png", tiny=tiny).output
