"""Seg-diffusion's segmenter on the golden networks: from a picture to labels, as users call it."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from diffuseg.backbones import TextEmbedding, load
from diffuseg.methods import SegDiffusion
from diffuseg.segdiffusion import segmenter as room
from diffuseg.segdiffusion.levels import noise_levels
from diffuseg.segdiffusion.opening import open_segmenter
from support import folders

CLOSE = 5e-5


def network(golden, part, kind):
    model = kind.from_config(json.loads(bytes(golden[f"param_{part}_config"])))
    prefix = f"param_{part}."
    weights = {
        name.removeprefix(prefix): torch.from_numpy(array)
        for name, array in golden.arrays.items()
        if name.startswith(prefix)
    }
    model.load_state_dict(weights, strict=True)
    return model.eval().requires_grad_(False)


@pytest.mark.golden("segdiffusion_inference")
def test_segmenter(golden, monkeypatch, tmp_path):
    texts = torch.from_numpy(golden["in_text_embeds"])
    noise, pixels = (torch.from_numpy(golden[name]) for name in ("in_noise", "in_image"))
    words = [f"class {number}" for number in range(len(texts))]
    size = pixels.shape[2:]
    # The golden picture is no 8-bit one, and its noise was drawn elsewhere.
    monkeypatch.setattr(room, "padded_pixels", lambda *_: (pixels + 1) / 2)
    monkeypatch.setattr(room, "start_noise", lambda *_, **__: noise)
    networks = {
        "unet": network(golden, "unet", UNet2DConditionModel),
        "vae": network(golden, "vae", AutoencoderKL),
    }
    plain = load(folders.write_sd15(tmp_path / "any"))
    cases = [name.removeprefix("param_cfg.") for name in golden.arrays if "param_cfg." in name]
    for case in cases:
        config = json.loads(bytes(golden[f"param_cfg.{case}"]))
        alphas = noise_levels(config).alphas
        model = replace(plain, **networks, scheduler=config, alphas=alphas)
        settings = SegDiffusion(
            steps=config["steps"],
            spacing=config["timestep_spacing"],
            runs=len(noise),
            side=max(size),
            template="{}",
            background="none",
            batch=4,
        )
        find: Any = open_segmenter(model, settings, keep_scores=True)
        for number, word in enumerate(words):
            find.texts[word] = TextEmbedding(
                vectors=texts[number : number + 1],
                prompts=(word,),
                tokens=(("",) * texts.shape[1],),
            )
        golden.check(f"out_timesteps.{case}", find.schedule.timesteps)
        seg = find(np.zeros((*size, 3), dtype=np.uint8), words)
        golden.check(f"out_mean.{case}", seg.scores, atol=CLOSE)
        at = np.take_along_axis(golden[f"out_std.{case}"], seg.labels[None], 0)[0]
        assert np.abs(seg.uncertainty - at).max() < CLOSE
        assert (seg.labels == golden[f"out_argmax.{case}"]).mean() >= 0.995
