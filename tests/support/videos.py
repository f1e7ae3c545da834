"""Small video files, and what can be wrong with them."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FACES = ((200, 40, 40), (40, 160, 40), (40, 60, 200), (220, 200, 40))


def pictures(n: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Frames of one colour each but for a white square that moves to the right and comes again."""
    frames = np.empty((n, *size, 3), dtype=np.uint8)
    for i, frame in enumerate(frames):
        frame[:] = FACES[i % len(FACES)]
        left = 4 * i % (size[1] - 12)
        frame[8:20, left : left + 12] = 255
    return frames


def write_clip(
    path: Path,
    frames: np.ndarray,
    *,
    codec: str = "libx264",
    rate: Fraction | int = 30,
    times: Sequence[Fraction] | None = None,
    format: str | None = None,
    audio: bool = False,
    **options: str,
) -> Path:
    """Write frames with PyAV; `times` (seconds) make the rate vary."""
    with av.open(path, "w", format=format, options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        if codec != "mjpeg":
            odd = any(side % 2 for side in frames.shape[1:3])
            stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv444p" if odd else "yuv420p"
        else:
            stream.pix_fmt = "yuvj420p"
        stream.gop_size = 12
        if codec == "libx264":
            stream.options = {"crf": "10"}
        unit = Fraction(1, 90_000) if times else 1 / Fraction(rate)
        stream.codec_context.time_base = unit
        sound = container.add_stream("aac", rate=16_000) if audio else None
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i if times is None else round(times[i] / unit)
            frame.time_base = unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _hum(container, sound, seconds=len(frames) / float(rate))
    return path


def write_sound(path: Path) -> Path:
    with av.open(path, "w") as container:
        _hum(container, container.add_stream("aac", rate=16_000), seconds=0.5)
    return path


def _hum(container, stream, *, seconds: float) -> None:
    for start in range(0, int(16_000 * seconds), 1024):
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 16_000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def turn(path: Path) -> Path:
    """Say in an mp4 that players must turn it by 90 degrees clockwise, as telephones do."""
    held = bytearray(path.read_bytes())
    box = held.index(b"tkhd")
    # Version and flags, then 20 + 16 bytes, then the matrix: nine numbers, 16.16 and 2.30.
    matrix = box + 4 + 4 + 20 + 16
    one, none, minus = (1 << 16).to_bytes(4), bytes(4), (0xFFFF0000).to_bytes(4)
    held[matrix : matrix + 16] = none + one + none + minus
    path.write_bytes(held)
    return path


def read_back(path: Path) -> np.ndarray:
    """All frames of a file, by PyAV alone."""
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
