"""Memory of segmenting a video from file to file: a long clip against a short one.

Each clip is drawn frame by frame into a file, then segmented on the miniature and written as
overlay, mask video, pictures and tracks, all in a process of its own, so that peaks are its own.
Few steps and small frames make it quick; what is kept from frame to frame is the same as with more.

Run: python benchmarks/video_memory.py [--frames 100 1000] [--size 64] [--steps 4]

With --most RATIO it ends with exit code 1 if the long clip's peak is more than that many times the
short one's.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import UInt8

from diffuseg.methods.vidseg import VidSeg
from diffuseg.video.running import read_outputs, segment_file
from diffuseg.video.segmenter import open_video_segmenter

RATE = 25
PERIOD = 90


def drawn(size: int, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """A red disk and a blue square that go round on green, and what is where."""
    rows, columns = np.mgrid[:size, :size] / size
    angle = 2 * np.pi * index / PERIOD
    disk = (rows - 0.5 - 0.3 * np.sin(angle)) ** 2 + (columns - 0.5 - 0.3 * np.cos(angle)) ** 2
    square = np.abs(rows - 0.5 + 0.3 * np.sin(angle)) + np.abs(columns - 0.5 + 0.3 * np.cos(angle))
    labels = np.where(disk < 0.03, 1, np.where(square < 0.25, 2, 0)).astype(np.uint8)
    colors = np.array([(40, 160, 60), (220, 40, 40), (40, 60, 220)], dtype=np.uint8)
    return colors[labels], labels


def write_clip(path: Path, frames: Iterator[UInt8[np.ndarray, "h w 3"]], size: int) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(RATE))
        stream.height = stream.width = size
        stream.pix_fmt = "bgr0"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))


def measure(frames: int, options: argparse.Namespace, answers) -> None:
    """Send the peak of memory before and after, bytes, and the seconds of this process."""
    torch.set_num_threads(1)
    settings = VidSeg(
        steps=options.steps, clusters=6, starts=1, memory=200, modulate=not options.coarse
    )
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mkv"
        write_clip(clip, (drawn(options.size, i)[0] for i in range(frames)), options.size)
        find = open_video_segmenter("mini", settings, anchor=drawn(options.size, 0)[1])
        outputs = read_outputs(
            [Path(folder) / name for name in ("out.mp4", "pictures", "tracks.json")],
            Path(folder) / "masks.mkv",
        )
        before, start = peak(), time.process_time()
        done = segment_file(clip, outputs, find)
        answers.put((done, before, peak(), time.process_time() - start))


def peak() -> int:
    """Most memory this process has held, bytes (Linux).

    Not `getrusage`, whose peak a process inherits from the one that started it.
    """
    with open("/proc/self/status") as file:
        [line] = [line for line in file if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs=2, default=(100, 1000))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--coarse", action="store_true", help="without modulation")
    parser.add_argument("--most", type=float, default=0.0)
    options = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    peaks = []
    for frames in options.frames:
        answers = context.Queue()
        process = context.Process(target=measure, args=(frames, options, answers))
        process.start()
        done, before, most, seconds = answers.get()
        process.join()
        peaks.append(most)
        print(
            f"{done:5} frames: peak {most / 2**20:5.0f} MB, {before / 2**20:.0f} before the first; "
            f"{seconds:.0f} s",
            flush=True,
        )
    ratio = peaks[1] / peaks[0]
    print(f"{ratio:.3f} x")
    return int(0 < options.most < ratio)


if __name__ == "__main__":
    raise SystemExit(main())
