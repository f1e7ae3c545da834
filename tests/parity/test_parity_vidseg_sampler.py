"""VidSeg's schedules, sampling and blending against the authors' own loop on a toy network."""

import pytest
import torch

from diffuseg.methods.vidseg.denoising import denoise_modulated, denoise_plain
from diffuseg.methods.vidseg.network import Counted
from diffuseg.methods.vidseg.schedule import guidance_scales, sd_schedule, svd_schedule


def tensor(array):
    return torch.from_numpy(array).float()


class Toy:
    """The network of the golden files: it has no attention, so its output is modulated itself."""

    def __init__(self, context):
        self.context = context.mean((1, 2))
        self.flags = []

    def __call__(self, x, call):
        mean = self.context[call.frames].view(-1, 1, 1, 1)
        rows = 0.5 * torch.sin(x) + 1e-4 * call.time
        if call.added is not None:
            added = call.added.repeat_interleave(2, 1).repeat_interleave(2, 2)
            rows = rows + 0.002 * added[:, None]
        self.flags.append((2 * len(x), call.time, call.added is not None, call.modulated))
        return torch.cat([rows, rows + 0.1 * mean])


@pytest.mark.golden("vidseg_sampler")
def test_sampler(golden):
    video = "out_guidance" in golden
    close = 1e-4 if video else 1e-5
    start, steps = golden.scalar("param_t_m"), len(golden["out_sigmas"]) - 1
    frames = len(golden["in_z"])
    schedule = svd_schedule(steps) if video else sd_schedule(steps)
    golden.check("out_sigmas", schedule.sigmas, atol=1e-12, rtol=1e-6)
    if video:
        scales = guidance_scales(frames, (1.0, 2.5))
        golden.check("out_guidance", scales, atol=1e-6)
    else:
        scales = guidance_scales(frames, 5.0)
        golden.check("out_timesteps", schedule.times)
    noisy = schedule.add_noise(tensor(golden["in_z"]), tensor(golden["in_eps"]), start)
    golden.check("out_noised", noisy, atol=close)

    toy = Toy(tensor(golden["in_context"]))
    network = Counted(toy)
    plain = denoise_plain(network, noisy, schedule, start=start, scales=scales, clip=video)
    golden.check("out_flags_plain", toy.flags, atol=1e-6)
    for index in range(start, steps):
        golden.check(f"out_xt_{index}", plain.after(index), atol=close)
    golden.check("out_final_plain", plain.states[-1], atol=close)

    mask = torch.from_numpy(golden["in_mask"]).bool()[None]
    # A window is given by its first and last step, of which there may be no more than there are.
    first, last = golden["param_blend_window"].tolist()
    window = range(first, min(last + 1, steps))
    strengths = torch.full((frames,), golden.scalar("param_lambda"))
    for blended, signs in ((window, ("pos", "neg")), (range(0), ("pos_noblend",))):
        toy.flags.clear()
        before = network.rows
        found = plain.states[-1].repeat(2, 1, 1, 1, 1)
        for part in denoise_modulated(
            network, plain, mask, schedule, strengths=strengths, blended=blended
        ):
            found[0, part.frames], found[1, part.frames] = part.positive, part.negative
        for got, sign in zip(found, signs, strict=False):
            golden.check(f"out_final_{sign}", got, atol=close)
        shown = frames if video else int(mask.flatten(2).any(2).sum())
        assert network.rows - before == 2 * 2 * shown * (steps - start)
        # Here both signs share a call and empty masks are left out.
        rows = [(2 * frames, *one[1:]) for one in toy.flags]
        golden.check("out_flags", rows, atol=1e-6)
