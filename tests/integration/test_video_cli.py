"""`diffuseg video` on the miniature: every output, and a run that was stopped."""

import json
import os
import threading

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

from diffuseg.cli import app
from diffuseg.errors import InputError
from diffuseg.eval.video_datasets import SceneClips, open_video_dataset
from diffuseg.eval.video_runner import evaluate_video
from diffuseg.methods.vidseg import VidSeg
from diffuseg.video.journal import VideoRun
from diffuseg.video.reading import open_video
from diffuseg.video.running import read_outputs, segment_file
from diffuseg.video.segmenter import open_video_segmenter, segment_video
from diffuseg.world import Clips
from diffuseg.world.layouts import write_davis
from support.linear import LinearDiffusion, shapes
from support.videos import read_back, write_clip

_LITTLE = ("starts=1", "clusters=4", "steps=4", "modulate=false")
QUICK = ("--quiet", *(word for one in _LITTLE for word in ("--set", one)))


@pytest.fixture(scope="module")
def clip():
    return Clips("test", seed=1, hw=(64, 64), frames=2)[0]


@pytest.fixture
def street(clip, tmp_path):
    folder = tmp_path / "street"
    folder.mkdir()
    for i, pixels in enumerate(clip.frames):
        PIL.Image.fromarray(pixels).save(folder / f"{i}.png")
    PIL.Image.fromarray(clip.instances[1]).save(tmp_path / "mask.png")
    return folder


def call(*words):
    return CliRunner().invoke(app, ["video", *map(str, words)])


def test_everything_a_video_can_become(street, clip, tmp_path):
    outputs = [tmp_path / name for name in ("out.mp4", "masks", "tracks.json")]
    named = [word for one in outputs for word in ("-o", one)]
    mask = f"{tmp_path / 'mask.png'}@1"
    done = call(street, *named, "--masks", tmp_path / "m.mkv", "--anchor", mask, *QUICK)
    assert done.exit_code == 0, done.output
    assert len(read_back(outputs[0])) == len(read_back(tmp_path / "m.mkv")) == 2
    labels = np.stack([np.array(PIL.Image.open(outputs[1] / f"0000{i}.png")) for i in range(2)])
    assert set(np.unique(labels)) <= set(np.unique(clip.instances[1]))
    assert len(json.loads(outputs[2].read_text())["times"]) == 2
    assert not list(tmp_path.glob(".*"))


def test_words_and_clusters(clip):
    settings = VidSeg(starts=1, clusters=4, modulate=False, steps=4)
    words = ", ".join(clip.stuff)
    found = list(segment_video(clip.frames, "mini", settings=settings, classes=words))
    assert set(clip.stuff) <= set(found[0].names)
    found = list(segment_video(clip.frames, "mini", settings=settings))
    assert max(int(one.labels.max()) for one in found) < 4


def test_a_run_goes_on_with_the_batch_it_was_at(tmp_path, monkeypatch):
    frames, truth = shapes(11, side=32)
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, pixels in enumerate(frames):
        PIL.Image.fromarray(pixels).save(folder / f"{i}.png")
    settings = VidSeg(clusters=4, starts=1, batch=4, modulate=False, memory=50)
    find = open_video_segmenter(LinearDiffusion(scale=2), settings, anchor=truth[0])
    segment_file(folder, read_outputs([tmp_path / "whole"]), find)

    keep, kept = VideoRun.keep, []

    def stopped(run, first, labels, state=None):
        if len(kept) == 1:
            raise KeyboardInterrupt
        kept.append(first)
        keep(run, first, labels, state)

    outputs = read_outputs([tmp_path / "parts"])
    monkeypatch.setattr(VideoRun, "keep", stopped)
    with pytest.raises(KeyboardInterrupt):
        segment_file(folder, outputs, find)
    monkeypatch.setattr(VideoRun, "keep", keep)
    begun: list[tuple[int, int]] = []
    assert segment_file(folder, outputs, find, progress=lambda *at: begun.append(at)) == 11
    assert begun == [(4, 11), (8, 11), (11, 11)]
    for i in range(11):
        both = [(tmp_path / one / f"{i:05d}.png").read_bytes() for one in ("whole", "parts")]
        assert both[0] == both[1]
    with pytest.raises(InputError, match="must not exist yet"):
        segment_file(folder, outputs, find)


def test_a_pipe_is_written_as_it_comes(tmp_path):
    frames, truth = shapes(9, side=32)
    clip, pipe = write_clip(tmp_path / "in.mkv", frames), tmp_path / "pipe"
    os.mkfifo(pipe)
    feed = threading.Thread(target=lambda: pipe.write_bytes(clip.read_bytes()), daemon=True)
    feed.start()
    settings = VidSeg(clusters=4, starts=1, batch=4, modulate=False)
    find = open_video_segmenter(LinearDiffusion(scale=2), settings, anchor=truth[0])
    assert segment_file(pipe, read_outputs([tmp_path / "masks"]), find) == 9
    assert len(list((tmp_path / "masks").iterdir())) == 9


def test_what_cannot_be(street, tmp_path):
    assert open_video(street).length == 2
    for words in (["-o", tmp_path / "a.txt"], ["-o", tmp_path / "a.mp4", "--classes", "unicorn"]):
        assert call(street, *words, *QUICK).exit_code == 2


def test_videos_are_scored_and_a_run_goes_on(tmp_path):
    data = SceneClips(n=2, frames=10, hw=(64, 64))
    settings = VidSeg(clusters=6, starts=1, modulate=False)
    model, done = LinearDiffusion(scale=2), []
    found = evaluate_video(data, settings=settings, model=model, report=tmp_path)
    assert set(found.metrics) >= {"miou", "mvc8", "mvc16", "j", "f", "j_and_f"}
    assert 0 < found.metrics["miou"] <= 1
    assert np.isnan(found.metrics["mvc16"])  # too short for those windows
    again = evaluate_video(
        data, settings=settings, model=model, report=tmp_path, limit=1,
        progress=lambda *at: done.append(at),
    )  # fmt: skip
    assert done == [(1, 1)]
    assert again.per_video == {data[0].id: found.per_video[data[0].id]}
    assert json.loads((tmp_path / "report.json").read_text())["n_videos"] == 1
    assert "| J&F |" in (tmp_path / "report.md").read_text()


def score(data, report):
    settings, model = VidSeg(clusters=4, starts=1, modulate=False), LinearDiffusion(scale=2)
    return evaluate_video(data, settings=settings, model=model, report=report).per_video


def test_clips_of_another_seed_or_size_are_scored_anew(tmp_path):
    first = SceneClips(n=1, frames=3, hw=(64, 64))
    score(first, tmp_path)
    for other in (
        SceneClips(n=1, frames=3, hw=(64, 64), seed=2),
        SceneClips(n=1, frames=3, hw=(64, 96), seed=2),
    ):
        assert score(other, tmp_path) == score(other, None)
    kept = (tmp_path / "videos.jsonl").read_text().splitlines()
    assert [json.loads(row).get("id") for row in kept] == [None, "test-2-0"]


def test_files_of_another_folder_are_scored_anew(tmp_path):
    roots = [tmp_path / "a", tmp_path / "b"]
    for seed, root in enumerate(roots):
        write_davis(Clips("val", seed, (64, 64), frames=3), root, 1)
        # One name in both: only what the files hold tells them apart.
        for kind in ("JPEGImages", "Annotations"):
            next((root / kind / "480p").iterdir()).rename(root / kind / "480p" / "street")
        (root / "ImageSets/2017/val.txt").write_text("street\n")
    first, other = (open_video_dataset("davis2017", root) for root in roots)
    report, done = tmp_path / "report", score(first, None)
    assert score(first, report) == done != score(other, None)
    assert score(other, report) == score(other, None)
    moved = roots[1].rename(tmp_path / "moved")
    before = (report / "videos.jsonl").read_bytes()
    score(open_video_dataset("davis2017", moved), report)
    assert (report / "videos.jsonl").read_bytes() == before  # seconds and all: not done again


def test_scores_from_the_command_line():
    words = "evaluate-video scenes --limit 1 --frames 3 --set size=64,64 --given classes --json"
    done = CliRunner().invoke(app, [*words.split(), *QUICK])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["n_frames"] == 3


def test_the_original_classes_of_camvid(clip, tmp_path):
    held = {"Sky": (128, 128, 128), "Car": (64, 0, 128), "Void": (0, 0, 0)}
    colors = np.array([*held.values()], dtype=np.uint8)
    lines = [" ".join(map(str, color)) + f"\t\t{name}\n" for name, color in held.items()]
    (tmp_path / "label_colors.txt").write_text("".join(lines))
    for name in ("701_StillsRaw_full", "LabeledApproved_full"):
        (tmp_path / name).mkdir()
    for i, pixels in enumerate(clip.frames):
        stem = f"0016E5_{7959 + 2 * i:05d}"
        truth = np.where(clip.instances[i] > 0, 1, 0)
        truth[:2] = 2
        PIL.Image.fromarray(pixels).save(tmp_path / "701_StillsRaw_full" / f"{stem}.png")
        PIL.Image.fromarray(colors[truth]).save(tmp_path / "LabeledApproved_full" / f"{stem}_L.png")
    words = ["evaluate-video", "camvid32", "--root", tmp_path, "--model", "mini", "--json"]
    report = ["--report", tmp_path / "report", "--set", "size=64,64"]
    done = CliRunner().invoke(app, [*map(str, (*words, *report)), *QUICK])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert list(told["per_class"]) == ["Sky", "Car"]
    assert "but Void" in told["notes"][0]
    assert (told["n_frames"], told["metrics"]["mvc8"]) == (2, None)
    assert "j" not in told["metrics"]
