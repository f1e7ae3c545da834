"""VidSeg without modulation: blocks joined, shares of votes, and borders that run through cells."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from diffuseg.errors import InputError
from diffuseg.methods.vidseg.batching import label_batch
from diffuseg.methods.vidseg.context import ContextModel
from diffuseg.methods.vidseg.enlarging import enlarge_shares
from diffuseg.methods.vidseg.features import join_queries
from diffuseg.methods.vidseg.nearest import share_votes, vote_nearest
from diffuseg.methods.vidseg.settings import VidSeg


def test_joined_blocks_keep_their_own_directions():
    generator = torch.Generator().manual_seed(0)
    coarse, fine = (torch.randn(2, n, c, generator=generator) for n, c in ((6, 5), (24, 3)))
    joined = join_queries([coarse, fine], [(2, 3), (4, 6)])
    assert joined.shape == (2, 24, 8)
    enlarged = F.interpolate(
        coarse.transpose(1, 2).unflatten(2, (2, 3)), (4, 6), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(
        joined[..., :5], F.normalize(enlarged.flatten(2).transpose(1, 2), dim=2)
    )
    torch.testing.assert_close(joined[..., 5:], F.normalize(fine, dim=2))
    # How long a block's queries are says nothing.
    torch.testing.assert_close(join_queries([7 * coarse, fine], [(2, 3), (4, 6)]), joined)


def test_joined_blocks_must_fit_their_grids():
    with pytest.raises(InputError, match="grid of each"):
        join_queries([torch.ones(1, 6, 2)], [(2, 2)])
    with pytest.raises(InputError, match="grid of each"):
        join_queries([], [])
    with pytest.raises(InputError, match="finite"):
        join_queries([torch.full((1, 4, 2), torch.nan)], [(2, 2)])


@pytest.mark.parametrize("neighbours", [1, 3, 4, 7])
def test_the_largest_share_is_the_vote(neighbours):
    generator = torch.Generator().manual_seed(neighbours)
    references = torch.randn(40, 6, generator=generator)
    labels = torch.randint(0, 5, (40,), generator=generator) * 3
    cells = torch.randn(30, 6, generator=generator)
    shares, known = share_votes(cells, references, labels, neighbours=neighbours)
    torch.testing.assert_close(shares.sum(1), torch.ones(30))
    near = torch.cdist(cells, references).topk(neighbours, largest=False).indices
    expected = (labels[near][..., None] == known).float().mean(1)
    torch.testing.assert_close(shares, expected)
    voted = vote_nearest(cells, references, labels, neighbours=neighbours)
    assert torch.equal(known[shares.argmax(1)], voted)


def test_what_tracks_change_is_whole():
    features = torch.tensor([[[0.0], [1.0], [9.0]]]).repeat(3, 1, 1)
    features[1, 1] = 8.6  # one frame has it otherwise
    model = ContextModel(neighbours=1).fit(features[0], torch.tensor([3, 3, 8]))
    still = torch.eye(3).expand(3, -1, -1)
    settings = VidSeg(jump=1).ready("sd")
    found = label_batch(settings, model, features, (1, 3), tracked=still)
    assert found.labels.tolist() == [[[3, 3, 8]]] * 3
    assert found.shares[1, 0, 1].tolist() == [1.0, 0.0]
    assert found.values.tolist() == [3, 8]


def test_a_border_runs_where_shares_are_equal():
    shares = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    frame = np.zeros((4, 16, 3), np.uint8)
    found = enlarge_shares(shares, frame, (2, 8))
    assert found.shape == (4, 16)
    assert (found[:, :8] == 0).all()
    assert (found[:, 8:] == 1).all()


def test_borders_go_to_the_frames_edges():
    frame = np.zeros((24, 24, 3), np.uint8)
    frame[:, 10:] = (200, 180, 40)  # inside the second cell of three
    shares = torch.tensor([[[1.0, 0.0], [0.4, 0.6], [0.0, 1.0]]])
    plain = enlarge_shares(shares, frame, (24, 24))
    led = enlarge_shares(shares, frame, (24, 24), edges=8)
    truth = torch.arange(24) >= 10
    assert (plain.bool() != truth).float().mean() > 0.02
    assert torch.equal(led.bool(), truth.expand(24, -1))


def test_edges_need_shares():
    with pytest.raises(InputError, match="shares"):
        VidSeg(edges=8).ready("sd")
    assert VidSeg(edges=8, shares=True).ready("sd").edges == 8
