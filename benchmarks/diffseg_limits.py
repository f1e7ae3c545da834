"""What limits DiffSeg on Scenes: the grid, the model, the merging, or the threshold.

Per-image matching on scenes of a split, accuracy and mean IoU in per cent, of

* the true labels on the grid of cells, resized back: nothing can be better (grid);
* the mean map of every true segment, pixels to the highest or to the nearest: all that a perfect
  merging of these maps would give (model, and how pixels are assigned);
* merging with thresholds found from each image, and with fixed ones (merging, threshold);
* k-means with the true number of segments of each image and with the average, and DBSCAN.

Run: python benchmarks/diffseg_limits.py [--model mini] [--split val] [--scenes 60]
     [--timestep 300] [--weights 0 0.67 0.33 0] [--tau 0.02 0.04 0.08]
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

import diffuseg as ds
from diffuseg.eval.hungarian import ImageMatching
from diffuseg.methods import DiffSeg, merging
from diffuseg.methods.attend import best_class
from diffuseg.methods.clustering import dbscan_cells, kmeans_cells
from diffuseg.methods.fusing import fuse_record
from diffuseg.world.scenes import CLASSES, Scenes

QUANTILES = (0.01, 0.02, 0.05, 0.1, 0.2)


def true_cells(truth: Int[np.ndarray, "H W"], grid: tuple[int, int]) -> Float[Tensor, "k n"]:
    """Which share of every cell each class of the picture has."""
    planes = torch.from_numpy(np.stack([truth == one for one in np.unique(truth)])).float()
    return torch.nn.functional.adaptive_avg_pool2d(planes, grid).flatten(1)


def means_of(index: Int[Tensor, " n"], fused: Float[Tensor, "n m"]) -> Float[Tensor, "k m"]:
    """The mean map of the cells of each number."""
    return merging.mean_of(index == index.unique()[:, None], fused)


def variants(
    truth: Int[np.ndarray, "H W"],
    fused: Float[Tensor, "1 n n"],
    grid: tuple[int, int],
    taus: tuple[float, ...],
    average: int,
) -> Iterator[tuple[str, Float[Tensor, "k n"]]]:
    """Every way of segmenting a picture, as planes of which the highest wins a pixel."""
    cells = true_cells(truth, grid)
    owner = cells.argmax(0)
    yield "grid", torch.nn.functional.one_hot(owner, len(cells)).T.float()
    proposals = {"true means": means_of(owner, fused[0])}
    points = merging.anchor_grid(grid, 16)
    anchors = torch.from_numpy(points @ np.array([grid[1], 1]))
    for tau in (None, *taus):
        each: merging.Tau = "auto" if tau is None else tau
        [found] = merging.merge(fused, anchors, (each, each, each))
        proposals[f"tau {each}"] = found.maps
    for name, maps in proposals.items():
        yield f"{name}, highest", maps
        yield f"{name}, nearest", -merging.distances(maps, fused[0])
    k = len(cells)
    groups = {
        "k-means, true k": kmeans_cells(fused[0], k),
        f"k-means, k = {average}": kmeans_cells(fused[0], average),
        **{f"dbscan, {q:.0%} of pairs": dbscan_cells(fused[0], quantile=q) for q in QUANTILES},
    }
    for name, index in groups.items():
        yield name, means_of(torch.from_numpy(index), fused[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--split", default="val")
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--timestep", type=int, default=300)
    parser.add_argument("--weights", type=float, nargs="+")
    parser.add_argument("--tau", type=float, nargs="*", default=[0.02, 0.03, 0.045, 0.07])
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    find = ds.build_segmenter(chosen.model, DiffSeg(timestep=chosen.timestep))
    scenes = [Scenes(chosen.split)[i] for i in range(chosen.scenes)]
    average = round(float(np.mean([len(np.unique(one.labels)) for one in scenes])))
    scores: dict[str, ImageMatching] = defaultdict(lambda: ImageMatching(len(CLASSES)))
    for scene in scenes:
        truth = scene.labels.astype(np.int64)
        fused, grid = fuse_record(find.capture(scene.image), weights=chosen.weights)
        for name, planes in variants(truth, fused, grid, tuple(chosen.tau), average):
            labels, _ = best_class(planes.unflatten(1, grid), truth.shape)
            scores[name].update(truth, labels)
    print(f"| {chosen.scenes} scenes of {chosen.split} | accuracy | mIoU |\n|---|---|---|")
    for name, one in scores.items():
        print(f"| {name} | {100 * one.accuracy():.1f} | {100 * one.miou():.1f} |")


if __name__ == "__main__":
    main()
