"""Memory does not grow with the length of a video: neither frames nor labels nor tensors stay."""

import gc
import tracemalloc
import weakref
from dataclasses import replace

import pytest
import torch

from diffuseg.eval.video_datasets import Lazy, SceneClips
from diffuseg.eval.video_runner import evaluate_video
from diffuseg.methods.vidseg import VidSeg
from diffuseg.video.running import read_outputs, segment_file
from diffuseg.video.segmenter import open_video_segmenter
from support.linear import LinearDiffusion, shapes
from support.videos import write_clip

SETTINGS = VidSeg(clusters=4, starts=1, batch=4, modulate=False, memory=20)
HAND = LinearDiffusion(scale=2)
SHORT, LONG = 12, 48


def segmenter(truth, settings=SETTINGS):
    return open_video_segmenter(HAND, settings, anchor=truth)


@pytest.mark.parametrize("batch", [2, 4])
def test_frames_and_labels_are_let_go(batch):
    frames, truth = shapes(LONG, side=32)
    find = segmenter(truth[0], replace(SETTINGS, batch=batch))

    def most_alive(n):
        read, given, most = 0, [], 0

        def source():
            nonlocal read
            for pixels in frames[:n]:
                read += 1
                yield pixels

        for one in find(source()):
            given.append([weakref.ref(one.labels), weakref.ref(one.pixels)])
            del one
            alive = sum(any(part() is not None for part in both) for both in given)
            most = max(most, alive + read - len(given))
        return most

    short = most_alive(SHORT)
    assert batch <= short == most_alive(LONG) <= 3 * batch + 1


def test_files_of_any_length_take_the_same_memory(tmp_path):
    frames, truth = shapes(LONG, side=64)
    find = segmenter(truth[0])

    def held(n):
        """Bytes of arrays and objects, and of tensors, held after the last batch."""
        folder = tmp_path / str(n)
        folder.mkdir()
        clip = write_clip(folder / "in.mkv", frames[:n], codec="ffv1")
        names = ("out.mkv", "pictures", "tracks.json")
        outputs = read_outputs([folder / name for name in names], folder / "masks.mkv")
        traced = tensors = 0

        def count(done, _):
            nonlocal traced, tensors
            if done == n:
                gc.collect()  # what is free but not yet collected depends on what ran before
                traced = tracemalloc.get_traced_memory()[0]
                alive = (one for one in gc.get_objects() if type(one) is torch.Tensor)
                tensors = sum(one.nbytes for one in alive)

        tracemalloc.start()
        try:
            assert segment_file(clip, outputs, find, progress=count) == n
            return traced, tensors
        finally:
            tracemalloc.stop()

    held(4)  # what is imported and made once
    (few, some), (many, more) = held(SHORT), held(LONG)
    # A frame is 12 kB, its labels 8 to 16; tracks and times are one or two.
    assert many - few < (LONG - SHORT) * 4000
    assert more == some


def test_scored_videos_are_read_as_they_are_segmented():
    read, seen = [], []

    class Clips(SceneClips):
        def __getitem__(self, index):
            sample = super().__getitem__(index)

            def frame(i):
                read.append(i)
                return sample.frames[i]

            return replace(sample, frames=Lazy(len(sample.frames), frame))

    class Model(LinearDiffusion):
        def encode(self, image, **options):
            seen.append(len(read))
            return super().encode(image, **options)

    data = Clips(n=1, frames=12, hw=(64, 64))
    evaluate_video(data, settings=replace(SETTINGS, clusters=6), model=Model(scale=2))
    assert read == list(range(12))
    assert seen == [8, 8, 12]  # a batch ahead
