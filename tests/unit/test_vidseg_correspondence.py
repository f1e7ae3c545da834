"""VidSeg's tracks and votes against plain loops, and what must always hold."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseg.errors import InputError
from diffuseg.methods.vidseg import correspondence
from diffuseg.methods.vidseg.correspondence import Tracks, refine_labels, track

HW = (5, 6)
N = HW[0] * HW[1]


def features_of(frames, seed=0, width=8):
    return torch.randn(frames, N, width, generator=torch.Generator().manual_seed(seed))


def tracked_plainly(features, aux):
    """Cell by cell, in double precision."""
    unit = torch.nn.functional.normalize(features.double(), dim=2)
    points = [list(range(features.shape[1]))]
    for q in range(len(features) - 1):
        step = []
        for cell in points[-1]:
            scores = unit[q + 1] @ unit[q][cell]
            if aux:
                scores = q / (q + 1) * scores + 1 / (q + 1) * (unit[0] @ unit[q][cell])
            step.append(int(scores.argmax()))
        points.append(step)
    return points


def refined_plainly(labels, points, jump, signed):
    """Track after track, each writing over the one before."""
    frames, height, width = labels.shape
    result = labels.clone()
    for start in range(height * width):
        places = [divmod(points[frame][start], width) for frame in range(frames)]
        moves = [
            one - other
            for after, before in zip(places[1:], places, strict=False)
            for one, other in zip(after, before, strict=True)
        ]
        if any((one if signed else abs(one)) > jump for one in moves):
            continue
        met = [int(labels[frame][place]) for frame, place in enumerate(places)]
        vote = Counter(met).most_common(1)[0][0]
        for frame, place in enumerate(places):
            result[frame][place] = vote
    return result


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), frames=st.integers(1, 6), aux=st.booleans())
def test_tracking_is_a_loop_over_cells(seed, frames, aux):
    features = 20 * features_of(frames, seed)
    assert track(features, HW, aux=aux).points.tolist() == tracked_plainly(features, aux)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    frames=st.integers(1, 7),
    reach=st.integers(0, 3),
    jump=st.integers(0, 3),
    signed=st.booleans(),
    room=st.sampled_from([1, 200, 1 << 25]),
)
def test_refining_is_a_loop_over_tracks(seed, frames, reach, jump, signed, room):
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(N) // HW[1], torch.arange(N) % HW[1]
    points = []
    for _ in range(frames):  # tracks that wander, meet and leave cells uncovered
        points.append(rows * HW[1] + columns)
        rows = (rows + torch.randint(-reach, reach + 1, (N,), generator=generator)).clamp(
            0, HW[0] - 1
        )
        columns = (columns + torch.randint(-reach, reach + 1, (N,), generator=generator)).clamp(
            0, HW[1] - 1
        )
    tracks = Tracks(points=torch.stack(points), hw=HW)
    labels = torch.randint(3, (frames, *HW), generator=generator)
    with pytest.MonkeyPatch.context() as patch:  # however little fits at once
        patch.setattr(correspondence, "_VOTES_BYTES", room)
        got = refine_labels(labels, tracks, jump=jump, signed=signed)
    assert torch.equal(got, refined_plainly(labels, tracks.points.tolist(), jump, signed))


def test_lengths_of_features_do_not_matter():
    features = features_of(4)
    lengths = torch.rand(4, N, 1, generator=torch.Generator().manual_seed(5)) + 0.1
    assert torch.equal(track(features * lengths, HW).points, track(features, HW).points)


def test_half_precision_is_compared_in_single():
    features = features_of(4).half()
    assert torch.equal(track(features, HW).points, track(features.float(), HW).points)


@pytest.mark.parametrize("aux", [True, False])
def test_the_first_step_stands_still_only_with_the_first_frame(aux):
    shifted = torch.stack([features_of(1)[0].roll(one, 0) for one in (0, 1)])
    second = track(shifted, HW, aux=aux).points[1]
    assert torch.equal(second, torch.arange(N).add(0 if aux else 1) % N)


def test_tracks_follow_what_moves():
    # A pattern that moves a column a frame: nearest neighbours follow it from the start, and with
    # the first frame's pull they do so from the second step on, where it has left that frame.
    wide = torch.randn(HW[0], 12, 64, generator=torch.Generator().manual_seed(0))
    frames = [wide[:, 4 - one : 10 - one].reshape(N, 64) for one in range(4)]
    plain = track(torch.stack(frames), HW, aux=False)
    inner = torch.arange(N) % HW[1] < HW[1] - 3
    for frame in range(4):
        assert torch.equal(plain.columns[frame][inner], plain.columns[0][inner] + frame)
        assert torch.equal(plain.rows[frame][inner], plain.rows[0][inner])
    pulled = track(torch.stack(frames), HW)
    assert torch.equal(pulled.points[1], pulled.points[0])
    # Tracks that after that step are on what the first frame does not show: nothing pulls them.
    fresh = pulled.columns[0] == 0
    assert torch.equal(pulled.columns[3][fresh], torch.full((HW[0],), 2))


@settings(max_examples=20, deadline=None)
@given(label=st.integers(0, 255), seed=st.integers(0, 10**6))
def test_one_label_stays_and_refining_twice_is_refining_once(label, seed):
    tracks = track(features_of(5, seed), HW)
    labels = torch.full((5, *HW), label)
    assert torch.equal(refine_labels(labels, tracks, jump=9), labels)


def test_labels_keep_their_type_and_input():
    tracks = track(features_of(3), HW)
    labels = torch.randint(255, (3, *HW), dtype=torch.uint8)
    before = labels.clone()
    found = refine_labels(labels, tracks, jump=9)
    assert found.dtype == torch.uint8
    assert torch.equal(labels, before)


def test_one_frame_is_left_alone():
    tracks = track(features_of(1), HW)
    labels = torch.randint(9, (1, *HW))
    assert torch.equal(refine_labels(labels, tracks), labels)
    assert tracks.steady().all()


def test_frames_of_one_colour_have_tracks():
    tracks = track(torch.ones(3, N, 4), HW)
    labels = torch.full((3, *HW), 7)
    assert torch.equal(refine_labels(labels, tracks), labels)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="5 x 7 finite"):
        track(features_of(2), (5, 7))
    with pytest.raises(InputError, match="finite"):
        track(features_of(2).fill_(torch.inf), HW)
    tracks = track(features_of(2), HW)
    for shape in ((3, *HW), (2, 6, 5)):
        with pytest.raises(InputError, match="that were tracked"):
            refine_labels(torch.zeros(shape, dtype=torch.int64), tracks)
