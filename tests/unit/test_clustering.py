"""The baselines on attention that was made up: clusters, what joins them, and their settings."""

import numpy as np
import pytest
import torch

from diffuseg.attention import AttentionRecord, LayerId, RecordHeader
from diffuseg.attention.captured import Contents, ReducedMap
from diffuseg.errors import InputError
from diffuseg.methods import Dbscan, KMeans, find_method, method_name, with_settings
from diffuseg.methods.clustering import dbscan_cells, kmeans_cells

GRID = (4, 6)
N = GRID[0] * GRID[1]


def made_up(values, preset="{}") -> AttentionRecord:
    """A record of the mean of one layer, of an image eight times its size."""
    layer = LayerId(
        name="x", stage="down", block=0, index=0, depth=0, kind="self", heads=1, width=1, scale=1.0,
        factor=1,
    )  # fmt: skip
    mean = ReducedMap(kind="self", hw=GRID, count=1, values=values)
    size = (8 * GRID[0], 8 * GRID[1])
    header = RecordHeader(model="made up", image_hw=size, provenance={"preset": preset})
    contents = Contents(header=header, layers=[layer], grids={"x": GRID}, reduced=[mean])
    return AttentionRecord(contents)


def thirds(outliers=()):
    """Three stripes of two columns that look at themselves; outliers look at one cell each."""
    owner = torch.arange(N) % GRID[1] // 2
    noise = torch.rand(N, N, generator=torch.Generator().manual_seed(0))
    maps = (owner[:, None] == owner).float() + 0.05 + 0.02 * noise
    for cell in outliers:
        maps[cell] += 4 * (torch.arange(N) == cell)
    return (maps / maps.sum(-1, keepdim=True))[None], owner


class Model:
    def __init__(self, preset=None):
        self.unet = torch.nn.Identity()
        self.preset = preset or {}


# ---- what comes out


@pytest.mark.parametrize("method", [KMeans(k=3), Dbscan(quantile=0.2, min_samples=3)])
def test_planted_stripes(method):
    values, owner = thirds()
    seg = method(made_up(values), scores=True)
    assert seg.hw == (8 * GRID[0], 8 * GRID[1])
    assert seg.names == ("segment 0", "segment 1", "segment 2")
    centres = seg.labels[4::8, 4::8].reshape(-1)
    for stripe in range(3):
        assert len(np.unique(centres[owner.numpy() == stripe])) == 1
    assert np.array_equal(seg.scores.argmax(0), seg.labels)
    assert seg.provenance.method == method_name(method)
    assert with_settings(type(method)(), seg.provenance.parameters).timestep == 300


def test_segments_compete_by_the_mean_maps_of_clusters():
    values, _ = thirds()
    index = kmeans_cells(values[0], 3)
    means = torch.stack([values[0, torch.from_numpy(index == i)].mean(0) for i in range(3)])
    up = torch.nn.functional.interpolate(
        means.view(1, 3, *GRID), size=(8 * GRID[0], 8 * GRID[1]), mode="bilinear"
    )[0]
    seg = KMeans(k=3)(made_up(values), scores=True)
    np.testing.assert_allclose(seg.scores, up.numpy(), atol=1e-7)


def test_kmeans_is_the_same_every_time():
    values = torch.softmax(torch.randn(1, N, N, generator=torch.Generator().manual_seed(1)), -1)
    a, b = (kmeans_cells(values[0], 5) for _ in range(2))
    assert np.array_equal(a, b)
    assert sorted(np.unique(a)) == list(range(5))


def test_no_more_clusters_than_cells_or_different_maps():
    assert kmeans_cells(torch.eye(4), 9).max() == 3
    assert kmeans_cells(torch.full((N, N), 1 / N), 4).tolist() == [0] * N


def test_noise_joins_the_nearest_mean_or_keeps_a_number():
    values, owner = thirds(outliers=(0, 23))
    near = dbscan_cells(values[0], quantile=0.2, min_samples=3)
    own = dbscan_cells(values[0], quantile=0.2, min_samples=3, noise="own")
    assert near.max() == 2
    assert near[0] == near[owner.numpy() == 0][1]
    assert np.flatnonzero(own == 3).tolist() == [0, 23]
    assert np.array_equal(np.delete(near, [0, 23]), np.delete(own, [0, 23]))


def test_a_quantile_is_a_distance():
    values, _ = thirds()
    apart = torch.cdist(values[0].double(), values[0].double())
    eps = float(apart[torch.ones(N, N).triu(1).bool()].quantile(0.2))
    assert np.array_equal(
        dbscan_cells(values[0], eps * 1.0001, min_samples=3),
        dbscan_cells(values[0], quantile=0.2, min_samples=3),
    )


@pytest.mark.parametrize("noise", ["nearest", "own"])
@pytest.mark.parametrize(("eps", "count"), [(1e-9, 1), (10.0, 1)])
def test_nothing_dense_and_everything_dense_are_one_segment(eps, count, noise):
    values, _ = thirds()
    assert dbscan_cells(values[0], eps, noise=noise).max() + 1 == count


@pytest.mark.parametrize("method", [KMeans(k=3), Dbscan()])
def test_constant_attention_is_one_segment(method):
    seg = method(made_up(torch.full((1, N, N), 1 / N)))
    assert seg.names == ("segment 0",)


def test_numbers_by_area_on_request():
    values, _ = thirds()
    seg = KMeans(k=3, relabel=True)(made_up(values))
    assert list(seg.areas.values()) == sorted(seg.areas.values(), reverse=True)


# ---- settings


def test_the_fused_maps_are_diffsegs_and_the_rest_its_own():
    preset = {"diffseg": {"timestep": 50, "tau": 0.02, "weights": [1.0]}, "kmeans": {"k": 4}}
    assert KMeans().needs(Model(preset)).timesteps == (50,)
    assert KMeans(timestep=7).needs(Model(preset)).timesteps == (7,)
    needs = Dbscan().needs(Model())
    assert (needs.timesteps, needs.kinds, needs.prompt, needs.noise) == (
        (300,),
        ("self",),
        "empty",
        False,
    )
    values, _ = thirds()
    record = made_up(values, '{"diffseg": {"weights": [2.0]}, "kmeans": {"k": 2}}')
    seg = KMeans()(record, scores=True)
    assert len(seg.names) == 2
    assert seg.provenance.parameters["weights"] == [2.0]
    assert seg.scores.sum() == pytest.approx(
        2 * KMeans(weights=(1.0,))(record, scores=True).scores.sum()
    )


def test_found_by_name():
    assert find_method("kmeans") == KMeans()
    assert find_method("dbscan") == Dbscan()
    assert method_name(Dbscan()) == "dbscan"


def test_kmeans_without_a_number():
    values, _ = thirds()
    with pytest.raises(InputError, match="how many segments"):
        KMeans()(made_up(values))


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (KMeans, {"k": 0}, "k must be 1"),
        (KMeans, {"starts": 0}, "starts must be 1"),
        (KMeans, {"random_state": -1}, "random_state must be 0"),
        (KMeans, {"timestep": -1}, "timestep must be 0"),
        (Dbscan, {"weights": (0.0,)}, "weights must not"),
        (Dbscan, {"eps": 0.0}, "eps must be positive"),
        (Dbscan, {"quantile": 1.0}, "quantile must lie"),
        (Dbscan, {"min_samples": 0}, "min_samples must be 1"),
    ],
)
def test_settings_that_cannot_be(make, settings, message):
    with pytest.raises(InputError, match=message):
        make(**settings)


def test_attention_that_is_not_finite():
    values, _ = thirds()
    values[0, 3, 3] = torch.nan
    with pytest.raises(InputError, match="must be finite"):
        KMeans(k=2)(made_up(values))
