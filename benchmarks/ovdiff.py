"""OVDiff's matching against a loop over prototypes, and with ten times the classes.

Made-up prototypes of the real numbers (65 a sign and class) and features of a real grid. The loop
normalises the cells, compares them with every prototype of the vocabulary one after the other,
enlarges the planes of all classes and chooses labels; the other compares, enlarges and chooses
among the classes that the pre-filter left.
The labels must be equal. Each size of the vocabulary runs in a process of its own, so that peaks
of memory are its own; they are beyond the bank. Times are of the processor, so that what else runs
does not show.

Run: python benchmarks/ovdiff.py [--classes 100 1000] [--kept 13] [--width 768] [--side 56]
"""

import argparse
import multiprocessing
import statistics
import time
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffuseg import ops
from diffuseg.methods.ovdiff.matching import Vocabulary, label_scores, match
from diffuseg.methods.ovdiff.prefilter import best_subset, first_stage
from diffuseg.methods.ovdiff.windows import Merge
from diffuseg.methods.pamr import pamr

ROWS = 65  # positive, and negative, prototypes of a class
WINDOW = 448
TEXT = 512


def made_up(classes: int, width: int) -> Vocabulary:
    """Unit vectors around a direction a class."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(classes, 2 * ROWS, width, generator=generator)
    vectors += 2 * torch.randn(classes, 1, width, generator=generator)
    vectors /= torch.linalg.vector_norm(vectors, dim=2, keepdim=True)
    starts = range(0, classes * 2 * ROWS, 2 * ROWS)
    return Vocabulary(
        vectors=vectors.flatten(0, 1),
        kinds=torch.full((classes * 2 * ROWS,), 2),
        sources=torch.arange(2 * ROWS).repeat(classes),
        spans=tuple((start, start + ROWS, start + 2 * ROWS) for start in starts),
    )


def picture(vocabulary: Vocabulary, selected: list[int], side: int) -> Float[Tensor, "1 h w d"]:
    """Cells near prototypes of the classes selected."""
    generator = torch.Generator().manual_seed(1)
    near = torch.randint(len(selected), (side, side), generator=generator)
    rows = torch.tensor(selected)[near] * 2 * ROWS
    rows += torch.randint(2 * ROWS, rows.shape, generator=generator)
    noise = torch.randn(side, side, vocabulary.vectors.shape[1], generator=generator)
    return (vocabulary.vectors[rows] * 30 + noise)[None]


def fast(
    features: Float[Tensor, "1 h w d"], vocabulary: Vocabulary, selected: list[int]
) -> Int64[Tensor, "H W"]:
    merge = Merge(1 + len(selected), (WINDOW, WINDOW))
    found = match(features, vocabulary, selected=selected)[0]
    merge.add(found, (0, 0, WINDOW, WINDOW))
    return label_scores(merge.mean(), classes=selected)


def loop(
    features: Float[Tensor, "1 h w d"], vocabulary: Vocabulary, selected: list[int]
) -> Int64[Tensor, "H W"]:
    cells = torch.nn.functional.normalize(features[0], dim=2)
    scores = torch.full((1 + len(vocabulary.spans), *cells.shape[:2]), -1.0)
    for number, (start, middle, end) in enumerate(vocabulary.spans):
        for row in range(start, end):
            found = cells @ vocabulary.vectors[row]
            if number in selected:
                place = 1 + number if row < middle else 0
                scores[place] = torch.maximum(scores[place], found)
    planes = ops.resize(scores[None], (WINDOW, WINDOW))[0].clamp(-1, 1)
    return torch.where(planes > 0, planes, 0.0).argmax(0)


def prefiltered(classes: int, kept: int) -> tuple[Tensor, Tensor]:
    """Embeddings of an image and of names, of which `kept` are like it."""
    generator = torch.Generator().manual_seed(2)
    names = torch.randn(classes, TEXT, generator=generator)
    image = names[:: classes // kept][:kept].sum(0)
    return image, names


def seconds_of(function, repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def measure(classes: int, options: argparse.Namespace, answers) -> None:
    """Send milliseconds and megabytes of the pre-filter with matching after it."""
    torch.set_num_threads(options.threads)
    vocabulary = made_up(classes, options.width)
    image, names = prefiltered(classes, options.kept)
    selected = list(range(0, classes, classes // options.kept))[: options.kept]
    features = picture(vocabulary, selected, options.side)

    def whole() -> None:
        candidates = first_stage(image, names, candidates=10)
        best_subset(
            image,
            lambda subsets: torch.stack([names[list(one)].mean(0) for one in subsets]),
            candidates,
        )
        fast(features, vocabulary, selected)

    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    base = memory("VmRSS")
    whole()
    seconds = seconds_of(whole, options.repeats)
    answers.put((seconds, memory("VmHWM") - base, vocabulary.vectors.nbytes))


def memory(name: str) -> int:
    """Bytes this process holds, or has held at most (Linux)."""
    with open("/proc/self/status") as file:
        [line] = [line for line in file if line.startswith(name)]
    return int(line.split()[1]) << 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, nargs=2, default=(100, 1000))
    parser.add_argument("--kept", type=int, default=13)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--side", type=int, default=56)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    # 1. A loop over the prototypes
    print(f"{options.width} channels, {options.side} x {options.side} cells, one window")
    for classes, kept in ((18, 4), (18, 18), (20, 3)):
        vocabulary = made_up(classes, options.width)
        given = picture(vocabulary, list(range(kept)), options.side), vocabulary, list(range(kept))
        equal = torch.equal(fast(*given), loop(*given))
        one, plain = (seconds_of(partial(form, *given), options.repeats) for form in (fast, loop))
        print(
            f"{classes} classes, {kept:2} kept: {1e3 * one:6.1f} ms; a loop {1e3 * plain:5.0f} ms, "
            f"{plain / one:4.1f} x, labels {'equal' if equal else 'DIFFER'}"
        )

    # 2. Ten times the classes, as many kept
    context = multiprocessing.get_context("spawn")
    times = []
    for classes in options.classes:
        answers = context.Queue()
        process = context.Process(target=measure, args=(classes, options, answers))
        process.start()
        seconds, peak, held = answers.get()
        process.join()
        times.append(seconds)
        print(
            f"{classes:4} classes, {options.kept} kept: {1e3 * seconds:6.1f} ms, "
            f"{peak / 2**20:4.0f} MB beyond {held / 2**20:.0f} MB of prototypes"
        )
    print(f"{options.classes[1]} against {options.classes[0]} classes: {times[1] / times[0]:.2f} x")

    # 3. PAMR
    image = torch.rand(3, WINDOW, WINDOW) * 255
    scores = torch.rand(1 + options.kept, options.side, options.side)
    print(f"PAMR, {1 + options.kept} planes: {seconds_of(lambda: pamr(scores, image), 1):.2f} s")


if __name__ == "__main__":
    main()
