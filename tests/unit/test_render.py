import numpy as np
import PIL.Image
import PIL.ImageFont
import pytest

from diffuseg import render
from diffuseg.errors import InputError
from diffuseg.palettes import UNDECIDED, color_of
from diffuseg.render import legend
from diffuseg.result import IGNORE, Segmentation
from support import images

GREY = np.full((40, 56, 3), 100, np.uint8)


def make(hw: tuple[int, int] = (40, 56), k: int = 3) -> Segmentation:
    names = ("sky", "grass", "car", *(f"thing {i}" for i in range(k)))[:k]
    return Segmentation(labels=images.blobs(hw, k), names=names)


def blank(hw: tuple[int, int]) -> np.ndarray:
    return np.full((*hw, 3), 100, np.uint8)


def array(picture: PIL.Image.Image) -> np.ndarray:
    assert picture.mode == "RGB"
    return np.asarray(picture)


def refused(call, *, expected: str, got: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    error = caught.value
    assert expected in error.expected
    assert got in (error.got if isinstance(error.got, str) else repr(error.got))
    assert remedy in error.remedy


@pytest.mark.parametrize("opacity", [0.0, 0.25, 0.5, 1.0])
def test_overlay_mixes_image_and_colours(opacity):
    seg = make()
    drawn = array(render.overlay(GREY, seg, opacity=opacity, contours=False, legend=False))
    for name in seg.names:
        expected = 100 * (1 - opacity) + np.array(color_of(name)) * opacity
        assert np.abs(drawn[seg[name]] - expected).max() <= 1.0


def test_undecided_pixels_are_left_alone():
    labels = images.blobs()
    labels[:10] = IGNORE
    seg = Segmentation(labels=labels, names=("a", "b", "c", "d"))
    drawn = array(render.overlay(GREY, seg, contours=False, legend=False))
    assert (drawn[:10] == 100).all()
    assert (drawn[10:] != 100).any(axis=-1).all()


def test_contours_lie_on_the_borders_only():
    labels = np.zeros((40, 56), np.int32)
    labels[:, 20:] = 1
    seg = Segmentation(labels=labels, names=("sky", "grass"))
    plain = array(render.overlay(GREY, seg, contours=False, legend=False))
    lined = array(render.overlay(GREY, seg, legend=False))
    columns = np.flatnonzero((plain != lined).any(axis=(0, 2)))
    assert columns.tolist() == [19, 20]


def test_a_name_has_one_colour_in_all_pictures():
    one = Segmentation(labels=np.zeros((40, 56), int), names=("car", "sky"))
    two = Segmentation(labels=np.ones((40, 56), int), names=("dog", "car"))
    assert np.array_equal(
        array(render.overlay(GREY, one, legend=False)),
        array(render.overlay(GREY, two, legend=False)),
    )


@pytest.mark.parametrize(
    ("hw", "beside"),
    [((96, 96), True), ((16, 16), True), ((90, 300), False), ((300, 90), True), ((30, 20), True)],
)
def test_the_legend_hides_nothing(hw, beside):
    seg, image = make(hw), images.noise(hw)
    drawn = array(render.overlay(image, seg))
    factor = -(-320 // max(hw))
    height, width = hw[0] * factor, hw[1] * factor
    margin = legend.text_size(max(height, width))
    assert max(height, width) >= 320
    picture = drawn[margin : margin + height, margin : margin + width]
    big = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BICUBIC)
    alone = render.overlay(big, seg.resize((height, width)), legend=False)
    assert np.array_equal(picture, array(alone))
    rest = drawn[:, margin + width :] if beside else drawn[margin + height :]
    assert set(map(tuple, rest.reshape(-1, 3).tolist())) >= {color_of(name) for name in seg.present}


def test_large_pictures_are_reduced_for_the_legend_only():
    hw = (300, 4100)
    seg, image = make(hw, 2), blank(hw)
    drawn = render.overlay(image, seg)
    assert drawn.width == 2048 + 2 * legend.text_size(2048)
    assert render.overlay(image, seg, legend=False).size == (4100, 300)


def test_text_grows_with_the_picture():
    assert legend.text_size(100) == 13
    assert legend.text_size(2048) == 40
    assert legend.text_size(1000) == 26


def test_overlay_takes_any_image_and_does_not_change_it(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(images.encoded(GREY))
    before = GREY.copy()
    expected = array(render.overlay(GREY, make()))
    for form in (path, str(path), path.read_bytes(), PIL.Image.fromarray(GREY)):
        assert np.array_equal(array(render.overlay(form, make())), expected)
    assert np.array_equal(GREY, before)


def test_overlay_refuses():
    refused(
        lambda: render.overlay(blank((56, 40)), make()),
        expected="same size",
        got="image 56x40, segmentation 40x56",
        remedy="seg.resize((56, 40))",
    )
    for opacity in (-0.1, 1.5, float("nan")):
        refused(
            lambda opacity=opacity: render.overlay(GREY, make(), opacity=opacity),
            expected="opacity must lie in [0, 1]",
            got=str(opacity),
            remedy="0.5",
        )


def test_legend_lists_the_largest_first():
    labels = np.zeros((10, 100), np.int32)
    labels[:, 10:] = 1
    labels[0, 0] = 2
    labels[1, :5] = IGNORE
    seg = Segmentation(labels=labels, names=("sky", "grass", "dot", "absent"))
    assert [(e.name, e.share, e.color) for e in legend.legend_entries(seg)] == [
        ("grass", "90.0 %", color_of("grass")),
        ("sky", "9.4 %", color_of("sky")),
        ("dot", "0.1 %", color_of("dot")),
        ("undecided", "0.5 %", UNDECIDED),
    ]


def test_legend_of_very_many_names():
    seg = Segmentation.from_labels(np.arange(100 * 100).reshape(100, 100) // 100)
    entries = legend.legend_entries(seg)
    assert len(entries) == 49
    assert (entries[-1].name, entries[-1].share) == ("52 more", "52.0 %")
    assert render.overlay(blank((100, 100)), seg).mode == "RGB"


def test_long_and_foreign_names_fit():
    font = legend.text_font(20)
    assert legend.fit_text("a" * 500, font, 200).endswith("…")
    assert font.getlength(legend.fit_text("a" * 500, font, 200)) <= 200
    assert legend.fit_text("  café \n crème ", font, 500) == "cafe creme"
    assert legend.fit_text("wide", font, 1) == "…"
    seg = Segmentation(labels=np.zeros((40, 56), int), names=("x" * 300,))
    assert render.overlay(GREY, seg).width < 1000


def test_a_font_file(tmp_path):
    path = tmp_path / "own.ttf"
    path.write_bytes(PIL.ImageFont.load_default(10).font_bytes)
    own = render.overlay(GREY, make(), font=str(path))
    assert own.height == render.overlay(GREY, make()).height
    path.write_bytes(b"no font")
    for font in (str(path), str(tmp_path / "missing.ttf")):
        refused(
            lambda font=font: render.overlay(GREY, make(), font=font),
            expected="TrueType or OpenType",
            got=font,
            remedy=".ttf",
        )


def test_side_by_side():
    seg, image = make((400, 500)), images.noise((400, 500))
    drawn = array(render.side_by_side(image, seg))
    size = legend.text_size(500)
    top, gap = size + round(size * 1.6), size // 2
    panels = [drawn[top : top + 400, size + i * (500 + gap) :][:, :500] for i in range(3)]
    assert np.array_equal(panels[0], image)
    assert np.array_equal(panels[1], array(render.overlay(image, seg, legend=False)))
    for name in seg.names:
        assert (panels[2][seg[name]] == color_of(name)).all()


def test_side_by_side_of_small_and_large():
    assert render.side_by_side(images.noise((20, 20)), make((20, 20))).width > 3 * 320
    assert render.side_by_side(blank((300, 3000)), make((300, 3000))).width < 3 * 1024 + 200
    refused(
        lambda: render.side_by_side(blank((20, 20)), make()),
        expected="same size",
        got="image 20x20",
        remedy="resize",
    )


def test_heatmap():
    scores = np.zeros((40, 56), np.float32)
    scores[:, 28:] = 4.0
    drawn = array(render.heatmap(GREY, scores, opacity=1.0, colorbar=False))
    assert (drawn[:, :20] == render.heat_colors(np.zeros(()))).all()
    assert (drawn[:, 36:] == render.heat_colors(np.ones(()))).all()
    low = array(render.heatmap(GREY, scores, opacity=1.0, limits=(-4.0, 4.0), colorbar=False))
    assert (low[:, :20] == render.heat_colors(np.array(0.5))).all()
    assert (array(render.heatmap(GREY, scores, opacity=0.0, colorbar=False)) == 100).all()


def test_heatmap_of_any_size_and_flat():
    assert render.heatmap(GREY, np.eye(3), colorbar=False).size == (56, 40)
    assert render.heatmap(GREY, np.eye(3).astype(np.float16)).width > 320
    flat = array(render.heatmap(GREY, np.ones((3, 3)), opacity=1.0, colorbar=False))
    assert (flat == render.heat_colors(np.zeros(()))).all()


def test_heat_colours_rise_evenly_in_lightness():
    share = render.heat_colors(np.linspace(0, 1, 64)) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_lms = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
    lightness = np.cbrt(linear @ np.transpose(to_lms)) @ [0.2105, 0.7936, -0.0041]
    steps = np.diff(lightness)
    assert steps.min() > 0.008
    assert steps.max() < 0.018


@pytest.mark.parametrize(
    ("scores", "got"),
    [
        (np.zeros((2, 3, 4)), "shape (2, 3, 4)"),
        (np.zeros((0, 3)), "shape (0, 3)"),
        ([[np.nan, 1.0]], "1 not finite"),
        ([[np.inf, -np.inf]], "2 not finite"),
    ],
)
def test_heatmap_refuses_scores(scores, got):
    refused(
        lambda: render.heatmap(GREY, scores),
        expected="finite numbers of shape (h, w)",
        got=got,
        remedy="seg.scores[0]",
    )


def test_heatmap_refuses():
    scores = np.eye(4)
    refused(
        lambda: render.heatmap(GREY, scores, limits=(1.0, 1.0)),
        expected="limits must increase",
        got="(1.0, 1.0)",
        remedy="(low, high)",
    )
    refused(
        lambda: render.heatmap(GREY, scores, opacity=2.0), expected="opacity", got="2", remedy="0.5"
    )


def test_strip():
    panels = [images.noise((64, 64)), images.corners((100, 50)), PIL.Image.new("RGB", (90, 30))]
    size = legend.text_size(96)
    gap = size // 2
    row = array(render.strip(panels, height=64))
    assert row.shape == (64 + 2 * gap, 64 + 32 + 192 + 4 * gap, 3)
    assert np.array_equal(row[gap : gap + 64, gap : gap + 64], panels[0])
    titled = render.strip(panels, ("best", "", "worst " * 20), height=64)
    assert titled.height > row.shape[0]
    assert titled.width == row.shape[1]
    rows = render.strip(panels, columns=2, height=64)
    assert rows.height == 2 * 64 + 3 * gap


def test_strip_refuses():
    one = [images.noise()]
    for panels, titles in (([], ()), (one, ("a", "b"))):
        refused(
            lambda panels=panels, titles=titles: render.strip(panels, titles),
            expected="a title for all or for none",
            got=f"{len(panels)} pictures, {len(titles)} titles",
            remedy="as many titles",
        )
    refused(
        lambda: render.strip(one, height=3), expected="16 pixels high", got="height=3", remedy="256"
    )
    refused(
        lambda: render.strip(one, columns=0), expected="one picture", got="columns=0", remedy="256"
    )
