"""Seg-diffusion with small networks: the codec, a training step and sampling from end to end."""

import json
import math

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from diffuseg.methods.segdiffusion.codec import mask_pixels, mask_shares, picture_pixels
from diffuseg.methods.segdiffusion.ensemble import label_classes, pool_runs
from diffuseg.methods.segdiffusion.noise import Pyramid, PyramidNoise, compose
from diffuseg.methods.segdiffusion.sampling import denoise_masks
from diffuseg.methods.segdiffusion.schedule import ddim_schedule, one_step_latents
from diffuseg.methods.segdiffusion.training import denoising_loss, valid_cells
from diffuseg.segdiffusion.autoencoder import decode_channel, encode_pixels
from diffuseg.segdiffusion.levels import noise_levels
from diffuseg.train.segdiffusion.batches import MaskBatch
from diffuseg.train.segdiffusion.step import MaskLearner

KINDS = {"vae": AutoencoderKL, "unet": UNet2DConditionModel}


def tensor(array):
    return torch.from_numpy(array)


def check(golden, name, found, *, close=0.0):
    golden.check(name, found.detach(), atol=close)


def config_of(golden, name):
    return json.loads(bytes(golden[name]))


def network(golden, part):
    model = KINDS[part].from_config(config_of(golden, f"param_{part}_config"))
    prefix = f"param_{part}."
    weights = {
        name.removeprefix(prefix): tensor(array)
        for name, array in golden.arrays.items()
        if name.startswith(prefix)
    }
    model.load_state_dict(weights, strict=True)
    # Gradients are kept everywhere, as they were in the references: attention on a CPU rounds
    # otherwise without, which the decoder makes 100 times as much.
    return model.eval()


@pytest.mark.golden("segdiffusion_codec")
def test_codec(golden):
    vae = network(golden, "vae")
    pictures, masks = tensor(golden["in_image_u8"]), tensor(golden["in_mask_u8"])
    assert vae.config["scaling_factor"] == pytest.approx(golden.scalar("param_scale"))
    check(golden, "out_rgb_norm", picture_pixels(pictures), close=1e-5)
    stacked = mask_pixels(masks[:, 0] > 0)
    check(golden, "out_mask_stacked", stacked, close=1e-5)
    check(golden, "out_image_latent", encode_pixels(vae, picture_pixels(pictures)), close=1e-5)
    latents = encode_pixels(vae, stacked)
    check(golden, "out_mask_latent", latents, close=1e-5)
    for case, z in (("roundtrip", latents), ("random", tensor(golden["in_latent"]))):
        channel = decode_channel(vae, z)
        check(golden, f"out_decoded_mean.{case}", channel[:, None], close=1e-5)
        check(golden, f"out_prob.{case}", mask_shares(channel)[:, None], close=1e-5)
    # What is not done: pictures in [0, 1].
    wrong = encode_pixels(vae, pictures.float() / 255)
    check(golden, "out_image_latent.legacy01", wrong, close=1e-5)
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    config |= {"prediction_type": "v_prediction"}
    for case in ("zsnr", "nozsnr"):
        levels = noise_levels({**config, "rescale_betas_zero_snr": case == "zsnr"})
        z = one_step_latents(tensor(golden["in_e2e_model_out"]), levels)
        check(golden, f"out_e2e_latent.{case}", z, close=1e-5)
        shares = mask_shares(decode_channel(vae, z))
        check(golden, f"out_e2e_prob.{case}", shares[:, None], close=1e-5)


@pytest.mark.golden("segdiffusion_train_step")
def test_train_step(golden):
    vae, unet = network(golden, "vae"), network(golden, "unet").train()
    config = config_of(golden, "param_cfg")
    levels, times = noise_levels(config), tensor(golden["in_t"])
    picture = encode_pixels(vae, tensor(golden["in_image"]))
    check(golden, "out_image_latent", picture, close=1e-5)
    masks = tensor(golden["in_mask"])[:, 0] > 0
    latents = encode_pixels(vae, mask_pixels(masks))
    check(golden, "out_mask_latent", latents, close=1e-5)
    drawn = Pyramid(
        base=tensor(golden["in_base"]),
        levels=tuple(tensor(golden[f"in_level{number}"]) for number in range(len(golden["in_r"]))),
        factors=tuple(golden["in_r"].tolist()),
    )
    strength = PyramidNoise(strength=config["k"]).strengths(times, len(levels))
    noise = compose(drawn, strength, norm="batch")
    check(golden, "out_noise_batchnorm", noise, close=2e-6)
    noisy = levels.add_noise(latents, noise, times)
    check(golden, "out_noisy", noisy, close=1e-5)
    valid = valid_cells(tensor(golden["in_valid"])[:, 0].bool())
    check(golden, "out_valid_latent", valid[:, None])
    target = levels.target(latents, noise, times)
    check(golden, "out_target", target, close=1e-5)
    text = tensor(golden["in_text_embed"]).expand(len(times), -1, -1)
    output = unet(torch.cat([picture, noisy], 1), times, encoder_hidden_states=text).sample
    check(golden, "out_pred", output, close=5e-6)
    loss = denoising_loss(output, target, valid)
    golden.check("out_loss", [loss.item()], atol=1e-6)
    loss.backward()
    gradients = [one.grad for one in unet.parameters() if one.grad is not None]
    norm = torch.stack([one.norm() for one in gradients]).norm()
    golden.check("out_grad_norm", [norm.item()], atol=1e-5)
    check(golden, "out_grad_conv_in", unet.conv_in.weight.grad, close=1e-5)


@pytest.mark.golden("segdiffusion_train_step")
def test_the_trainers_own_step(golden):
    vae, unet = network(golden, "vae"), network(golden, "unet").train()
    times, noise = tensor(golden["in_t"]).long(), tensor(golden["out_noise_batchnorm"])
    batch = MaskBatch(
        pixels=torch.zeros(len(times), 3, *golden["in_mask"].shape[2:], dtype=torch.uint8),
        known=tensor(golden["in_valid"])[:, 0].bool(),
        owners=torch.arange(len(times)),
        classes=(0,) * len(times),
        masks=tensor(golden["in_mask"])[:, 0] > 0,
        timesteps=times,
        noise=noise,
    )
    learner = MaskLearner(
        unet=unet,
        vae=vae,
        texts=tensor(golden["in_text_embed"]),
        text_mask=None,
        levels=noise_levels(config_of(golden, "param_cfg")),
    )
    # The pictures of the file are no bytes: those go past their reading.
    learned = learner.learn_from(encode_pixels(vae, tensor(golden["in_image"])).detach(), batch)
    golden.check("out_loss", [learned.loss.item()], atol=1e-6)
    learned.loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(unet.parameters(), math.inf)
    golden.check("out_grad_norm", [norm.item()], atol=1e-5)
    check(golden, "out_grad_conv_in", unet.conv_in.weight.grad, close=1e-5)


@pytest.mark.golden("segdiffusion_inference")
def test_inference(golden):
    vae, unet = network(golden, "vae"), network(golden, "unet")
    texts, noise = tensor(golden["in_text_embeds"]), tensor(golden["in_noise"])
    classes, runs = len(texts), len(noise)
    picture = encode_pixels(vae, tensor(golden["in_image"]))
    # Every class with every run, all at once.
    words, start = texts.repeat_interleave(runs, 0), noise.repeat(classes, 1, 1, 1)

    def asked(x, time):
        return unet(x, time, encoder_hidden_states=words).sample

    cases = [name.removeprefix("param_cfg.") for name in golden.arrays if "param_cfg." in name]
    for case in cases:
        config = config_of(golden, f"param_cfg.{case}")
        close = 1e-4 if config["prediction_type"] == "epsilon" else 1e-5
        schedule = ddim_schedule(
            noise_levels(config),
            config["steps"],
            spacing=config["timestep_spacing"],
            offset=config["steps_offset"],
        )
        golden.check(f"out_timesteps.{case}", schedule.timesteps)
        path = []
        found = denoise_masks(
            asked, picture, start, schedule, on_step=lambda _, x, path=path: path.append(x)
        )
        states = torch.stack(path, 1).unflatten(0, (classes, runs))
        golden.check(f"out_traj.{case}", states, atol=close)
        channel = decode_channel(vae, found).detach()
        shares = mask_shares(channel).unflatten(0, (classes, runs))
        golden.check(f"out_prob.{case}", shares, atol=5e-5)
        pooled = [pool_runs(one) for one in shares]
        means = torch.stack([one.share for one in pooled])
        golden.check(f"out_mean.{case}", means, atol=5e-5)
        if all(one.uncertainty is not None for one in pooled):
            spread = torch.stack([one.uncertainty for one in pooled])
            golden.check(f"out_std.{case}", spread, atol=5e-5)
        labels, _ = label_classes(means, means.shape[1:], background="none")
        # Where two classes are as good as equal, either is right.
        assert (labels == golden[f"out_argmax.{case}"]).mean() >= 0.995
