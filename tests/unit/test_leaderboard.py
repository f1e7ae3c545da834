"""The page of all methods: one table a protocol, the best first, every row with its source."""

from diffuseg.eval.leaderboard import board_text
from diffuseg.eval.protocols import PROTOCOLS, VIDEO_PROTOCOLS


def report(method, miou, **changes):
    held = {
        "method": method,
        "dataset": "scenes",
        "split": "test",
        "n_images": 200,
        "metrics": {"miou": miou, "acc": 0.9},
        "protocol": PROTOCOLS[True, "classes"],
        "uses_gt_image_labels": True,
        "model": {"name": "mini", "unet_sha256": "a" * 64},
        "hardware": {"device": "cpu"},
        "versions": {"diffuseg": "0.1.0", "torch": "2"},
        "seconds_per_image": {"median": 0.5},
        "peak_memory_mb": {"process": 900.4},
    }
    return held | changes


def test_one_table_a_protocol():
    matched = {"uses_gt_assignment": True, "protocol": PROTOCOLS[False, "nothing"]}
    text = board_text(
        {
            "scenes-attend.json": report("attend", 0.5, intervals={"miou": [0.4, 0.6]}),
            "scenes-iseg-plain.json": report("iseg", 0.7),
            "leaderboard/diffseg.json": report("diffseg", 0.9, **matched),
            "video/scenes-vidseg.json": {
                **report("vidseg", 0.8),
                "n_videos": 20,
                "n_frames": 560,
                "protocol": VIDEO_PROTOCOLS["anchor"],
                "seconds_per_frame": 0.25,
            },
        }
    )
    titles = [line for line in text.splitlines() if line.startswith("### ")]
    assert len(titles) == 4
    assert text.index("| iseg, plain | 70.0 |") < text.index("| attend | 50.0 (40.0 to 60.0) |")
    assert text.index("matched to classes by the truth") < text.index("| diffseg | 90.0 |")
    assert "| attend | 50.0 (40.0 to 60.0) | - | 90.0 | 0.50 | 900 | 200 |" in text
    assert "| vidseg | 80.0 | - | - | - | 0.25 | 900 | 20, 560 |" in text
    assert "`leaderboard/diffseg.json`" in text


def test_rows_of_an_older_miniature_are_marked():
    held = {"scenes-attend.json": report("attend", 0.5)}
    assert "since trained anew" in board_text(held, unet="b" * 64)
    assert "since trained anew" not in board_text(held, unet="a" * 64)
