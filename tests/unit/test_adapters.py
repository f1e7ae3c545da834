"""Adapters: what peft saves of a U-Net comes back without it, and folders that do not fit."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from diffuseg.backbones import load
from diffuseg.backbones.adapters import apply_adapter, read_adapter
from diffuseg.backbones.folder import inspect_folder
from diffuseg.errors import InputError, WeightsError
from diffuseg.models import find_model
from diffuseg.segdiffusion.surgery import widen_conv_in
from support import adapters, folders, models

WEIGHTS = "adapter/adapter_model.safetensors"
CONFIG = "adapter/adapter_config.json"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    base = folders.write_sd15(root / "base")
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    adapters.write_adapter(
        root / "seg", unet, base="base", scheduler=base, preset={"segdiffusion": {"steps": 2}}
    )
    adapters.write_whole(root / "whole", base)
    return root


@pytest.fixture
def root(originals, tmp_path):
    """Copies of the folders, to be spoilt."""
    return Path(shutil.copytree(originals, tmp_path / "root"))


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_weights(folder, change):
    held = load_file(folder / WEIGHTS)
    change(held)
    save_file(held, folder / WEIGHTS)


def refused(folder, part):
    with pytest.raises(WeightsError) as error:
        load(folder)
    assert part in f"{error.value.expected} {error.value.got}", error.value
    assert error.value.remedy


def test_what_peft_saves_comes_back(tmp_path):
    peft = pytest.importorskip("peft")
    unet, plain = models.sd15(levels=3, layers=1), models.sd15(levels=3, layers=1)
    widen_conv_in(unet)
    layers = r"to_q|to_out\.0|proj_in|ff\.net\.2|conv1|conv_shortcut|time_emb_proj|conv"
    config = peft.LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=rf".*\.({layers})",
        modules_to_save=["conv_in", "conv_out"],
    )
    learned = peft.get_peft_model(unet, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in learned.parameters():
            if one.requires_grad:
                one += torch.randn(one.shape, generator=generator) * 0.05
    learned.save_pretrained(tmp_path)
    apply_adapter(plain, read_adapter(tmp_path))
    assert plain.config["in_channels"] == 8
    call = models.inputs(plain, batch=2)
    with torch.no_grad():
        wanted, found = learned(**call).sample, plain(**call).sample
        untouched = models.sd15(levels=3, layers=1)
        call["sample"] = call["sample"][:, :4]
        other = untouched(**call).sample
    assert torch.allclose(found, wanted, atol=1e-5)
    assert (other - wanted).abs().max() > 1e-2


def test_an_adapter_changes_its_base(root):
    model, base = load(root / "seg"), load(root / "base")
    assert model.denoises_masks
    assert not base.denoises_masks
    assert (model.name, model.source, model.base) == ("seg", str(root / "seg"), str(root / "base"))
    assert (model.prediction, base.prediction) == ("v_prediction", "epsilon")
    assert model.alphas[-1] == 0
    assert model.preset == {"segdiffusion": {"steps": 2}}
    held, config = (
        load_file(root / "seg" / WEIGHTS),
        json.loads((root / "seg" / CONFIG).read_text()),
    )
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = (held[f"{adapters.PREFIX}{name}.lora_{one}.weight"].float() for one in "AB")
    scale = config["lora_alpha"] / config["r"]
    wanted = base.unet.get_submodule(name).weight + scale * up @ down
    assert torch.allclose(model.unet.get_submodule(name).weight, wanted, atol=1e-6)
    assert not model.unet.conv_in.weight.requires_grad
    assert not model.unet.training
    inspected = inspect_folder(root / "seg")
    assert (inspected.kind, inspected.masks) == ("adapter", True)


def test_a_whole_folder_needs_to_say_what_it_is(root):
    model = load(root / "whole")
    assert model.denoises_masks
    assert model.base is None
    (root / "whole/diffuseg.json").unlink()  # as of InstructPix2Pix, which takes 8 channels, too
    refused(root / "whole", "inpainting, depth and editing models cannot be used")


def test_precision(root):
    model = load(root / "seg", dtype="fp16")
    assert (model.unet.conv_in.weight.dtype, model.vae.dtype) == (torch.float16, torch.float32)
    assert load(root / "seg", dtype="bf16").vae.dtype == torch.bfloat16


def test_the_base_is_looked_for_beside_and_in_the_catalog(root):
    facts = root / "seg/diffuseg.json"
    for base in ("../base", str(root / "base")):
        change_json(facts, base=base)
        assert load(root / "seg").denoises_masks
    change_json(facts, base="bse")
    refused(root / "seg", "the base model 'bse' of the adapter")
    change_json(facts, base="someone/nothing")
    with pytest.raises(WeightsError, match="must be to be had") as error:
        load(root / "seg", offline=True)
    assert "put its folder beside the adapter" in error.value.remedy
    # A name of the catalog is not the folder beside that happens to be called so.
    shutil.copytree(root / "base", root / "mini")
    change_json(facts, base="mini")
    refused(root / "seg", "with this base model it must be")
    change_json(facts, base="whole")
    refused(root / "seg", "is named as a base and denoises masks itself")


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"base": 3}, "has base 3"),
        ({"masks": None}, 'lacks "masks"'),
        ({"masks": "others"}, "has masks 'others'"),
        ({"size": "big"}, "has size 'big'"),
    ],
)
def test_facts_that_make_no_sense(root, values, part):
    change_json(root / "seg/diffuseg.json", **values)
    refused(root / "seg", part)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"peft_type": "IA3"}, "is not of low-rank updates"),
        ({"use_dora": True}, "has use_dora True, which is not supported"),
        ({"alpha_pattern": {"to_q": 1}}, "has alpha_pattern"),
        ({"r": 3}, "r is 3"),
        ({"r": None}, "has r None"),
        ({"modules_to_save": ["conv_in", "time_embedding"]}, "lacks time_embedding"),
    ],
)
def test_configurations_that_are_not_supported(root, values, part):
    change_json(root / "seg" / CONFIG, **values)
    refused(root / "seg", part)


def rename(old, new):
    def change(held):
        held[new] = held.pop(old)

    return change


def spoil(held):
    held[f"{adapters.PREFIX}conv_out.bias"][1] = torch.nan


CONV = f"{adapters.PREFIX}conv_in.weight"
DOWN = f"{adapters.PREFIX}mid_block.resnets.0.conv1.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (spoil, "not finite in base_model.model.conv_out.bias"),
        (rename(CONV, f"{adapters.PREFIX}conv_im.weight"), "lacks conv_in"),
        (rename(CONV, "conv_in.weight"), "no weight as peft names them"),
        (rename(DOWN, f"{adapters.PREFIX}mid_block.conv9.lora_A.weight"), "one of the two factors"),
        (
            lambda held: held.update({CONV: held[CONV][:, :4].contiguous()}),
            "it must be (8, 8, 3, 3)",
        ),
        (
            lambda held: held.update({DOWN: held[DOWN][..., :1].contiguous()}),
            "it must be (16, 16, 3",
        ),
        (lambda held: held.pop(CONV), "lacks conv_in"),
        (
            lambda held: held.update({f"{adapters.PREFIX}more.bias": torch.ones(1)}),
            "more.bias, which the base model has not",
        ),
    ],
)
def test_weights_that_do_not_fit(root, change, part):
    change_weights(root / "seg", change)
    refused(root / "seg", part)


def test_updates_of_what_is_not_there(root):
    def change(held):
        for one in "AB":
            end = f".lora_{one}.weight"
            held[f"{adapters.PREFIX}gone{end}"] = (
                held[DOWN.removesuffix(".lora_A.weight") + end] + 0
            )

    change_weights(root / "seg", change)
    refused(root / "seg", "has an update of gone, which the base has not")


def test_another_base_does_not_fit(root):
    unet = root / "base/unet"
    shutil.rmtree(unet)
    other = models.sd15(levels=3, layers=1)
    other.register_to_config(cross_attention_dim=folders.TEXT_WIDTH)
    UNet2DConditionModel.from_config({**other.config, "norm_num_groups": 4}).save_pretrained(unet)
    refused(root / "seg", "with this base model it must be")


def test_pickles_are_never_opened(root):
    (root / "seg" / WEIGHTS).rename(root / "seg/adapter/adapter_model.bin")
    refused(root / "seg", "a pickle can run any code")


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, "scheduler/scheduler_config.json"])
def test_files_that_are_missing(root, name):
    (root / "seg" / name).unlink()
    refused(root / "seg", f"{name} is missing")


def test_a_damaged_file(root):
    path = root / "seg" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-9])
    refused(root / "seg", "truncated or damaged")


def test_checksums(root):
    digest = hashlib.sha256((root / "seg" / WEIGHTS).read_bytes()).hexdigest()
    (root / "seg/checksums.json").write_text(json.dumps({WEIGHTS: digest}))
    load(root / "seg")
    (root / "seg/checksums.json").write_text(json.dumps({WEIGHTS: "0" * 64}))
    refused(root / "seg", "is damaged or was changed")
    (root / "seg/checksums.json").unlink()
    (root / "base/checksums.json").write_text(json.dumps({"model_index.json": "0" * 64}))
    refused(root / "seg", "base/model_index.json is damaged or was changed")


@pytest.mark.parametrize("kind", ["seg", "whole"])
def test_noise_cannot_be_told_where_no_signal_is_left(root, kind):
    path = root / kind / "scheduler/scheduler_config.json"
    change_json(path, prediction_type="epsilon", rescale_betas_zero_snr=True)
    refused(root / kind, "'epsilon' with rescale_betas_zero_snr")


def test_a_whole_folder_with_weights_that_are_not_finite(root):
    path = root / "whole/unet/diffusion_pytorch_model.safetensors"
    held = load_file(path)
    held["conv_in.weight"][0, 0, 0, 0] = torch.inf
    save_file(held, path, metadata={"format": "pt"})
    refused(root / "whole", "not finite in conv_in.weight of the U-Net")


def test_pictures_are_for_other_models(root):
    model = load(root / "seg")
    text = model.embed("a cat")
    with pytest.raises(InputError, match="denoises masks") as error:
        model.denoise(torch.zeros(1, 4, 8, 8), 500, text)
    assert 'method="segdiffusion"' in error.value.remedy
    assert str(root / "base") in error.value.remedy
    assert model.denoise(torch.zeros(1, 8, 8, 8), 500, text).shape == (1, 4, 8, 8)
    with pytest.raises(InputError, match="denoises masks"):
        model.sample("a cat")
    for backbone in ("diffusion", "video"):
        for one in (model, root / "seg"):
            with pytest.raises(InputError, match="must be one that draws pictures"):
                find_model(one, backbone=backbone)
    for one in (load(root / "base"), root / "base", "sd1.5"):
        with pytest.raises(InputError, match="made to denoise masks"):
            find_model(one, backbone="masks")
    assert find_model(root / "seg", backbone="masks").denoises_masks
