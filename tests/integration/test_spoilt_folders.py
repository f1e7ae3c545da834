"""Folders of models that are not what they should be, and what is said of them."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffuseg.backbones import load
from diffuseg.backbones.folder import inspect_folder
from diffuseg.errors import InputError, WeightsError
from support import folders
from support.folders import edit
from support.refusal import refused

UNET = "unet/diffusion_pytorch_model.safetensors"


def lose(name: str):
    def spoil(folder: Path) -> None:
        (folder / name).unlink()

    return spoil


def write(name: str, content: str):
    def spoil(folder: Path) -> None:
        (folder / name).write_text(content)

    return spoil


def change(name: str, **changes: object):
    def spoil(folder: Path) -> None:
        edit(folder / name, **changes)

    return spoil


def cut(folder: Path) -> None:
    data = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(data[: len(data) // 2])


def cut_to_nothing(folder: Path) -> None:
    (folder / UNET).write_bytes(b"\x00\x01")


def scramble_header(folder: Path) -> None:
    data = bytearray((folder / UNET).read_bytes())
    data[8:12] = b"oops"
    (folder / UNET).write_bytes(bytes(data))


def point(folder: Path) -> None:
    (folder / UNET).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def pickle_only(folder: Path) -> None:
    (folder / UNET).unlink()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"")


def drop_tensors(folder: Path) -> None:
    state = load_file(folder / UNET)
    kept = {key: value for key, value in state.items() if "mid_block" not in key}
    save_file(kept, folder / UNET, {"format": "pt"})


def drop_text_tensors(folder: Path) -> None:
    file = folder / "text_encoder/model.safetensors"
    state = {key: value for key, value in load_file(file).items() if "final_layer" not in key}
    save_file(state, file, {"format": "pt"})


def swap_weights(folder: Path) -> None:
    shutil.copy(folder / "vae/diffusion_pytorch_model.safetensors", folder / UNET)


INDEX = "model_index.json"


UNET_CONFIG = "unet/config.json"


TEXT_CONFIG = "text_encoder/config.json"


SPOILT = {
    "no U-Net config": (lose(UNET_CONFIG), "unet/config.json is missing"),
    "no VAE config": (lose("vae/config.json"), "vae/config.json is missing"),
    "no U-Net weights": (lose(UNET), f"must have the file {UNET}"),
    "no merges": (lose("tokenizer/merges.txt"), "tokenizer/merges.txt is missing"),
    "no vocabulary": (lose("tokenizer/vocab.json"), "tokenizer/vocab.json is missing"),
    "no schedule": (lose("scheduler/scheduler_config.json"), "scheduler_config.json is missing"),
    "config no JSON": (write(UNET_CONFIG, "{oops"), "unet/config.json cannot be read as JSON"),
    "config no object": (write(UNET_CONFIG, "[1]"), "must hold a JSON object"),
    "config no text": (write(UNET_CONFIG, "\udcff"), "cannot be read as JSON"),
    "index no JSON": (write(INDEX, ""), "model_index.json cannot be read as JSON"),
    "vocabulary no JSON": (write("tokenizer/vocab.json", "{"), "vocab.json cannot be read"),
    "merges of another": (write("tokenizer/merges.txt", "a b\nc\n"), "tokenizer cannot be loaded"),
    "index of a transformer": (
        write(INDEX, '{"_class_name": "FluxPipeline", "transformer": ["diffusers", "X"]}'),
        "describes FluxPipeline, which has no U-Net",
    ),
    "index of a video model": (
        change(INDEX, unet=["diffusers", "UNetSpatioTemporalConditionModel"]),
        "has UNetSpatioTemporalConditionModel as unet",
    ),
    "U-Net of another kind": (
        change(UNET_CONFIG, _class_name="UNet3DConditionModel"),
        "is the configuration of UNet3DConditionModel",
    ),
    "text encoder of another kind": (
        change(TEXT_CONFIG, architectures=["T5EncoderModel"]),
        "is the configuration of T5EncoderModel",
    ),
    "an unknown block": (
        change(UNET_CONFIG, mid_block_type="Nonsense"),
        "unet cannot be loaded: unknown mid_block_type",
    ),
    "other sizes": (
        change(UNET_CONFIG, block_out_channels=[16, 16, 16]),
        "unet cannot be loaded: ",
    ),
    "other text sizes": (change(TEXT_CONFIG, intermediate_size=7), "text_encoder cannot be loaded"),
    "truncated weights": (cut, "is truncated or damaged"),
    "no weights at all": (cut_to_nothing, "is truncated or no safetensors file"),
    "scrambled header": (scramble_header, "has a damaged header"),
    "git-lfs pointer": (point, "git-lfs pointer"),
    "pickle": (pickle_only, "only unet/diffusion_pytorch_model.bin"),
    "tensors missing": (drop_tensors, "tensors of the model, such as mid_block"),
    "text tensors missing": (drop_text_tensors, "lacks 2 tensors of the model, such as"),
    "weights of another part": (swap_weights, "unet "),
    "other prediction": (
        change("scheduler/scheduler_config.json", prediction_type="sample"),
        "has prediction_type 'sample'",
    ),
    "other schedule": (
        change("scheduler/scheduler_config.json", beta_schedule="sigmoid"),
        "beta_schedule 'sigmoid'",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_folder_names_the_file(copy, case):
    folder = copy()
    spoil, message = SPOILT[case]
    if case == "config no text":
        (folder / UNET_CONFIG).write_bytes(b"\xff\xfe\xff")
    else:
        spoil(folder)
    with pytest.raises(WeightsError) as caught:
        load(folder, device="cpu")
    assert message in str(caught.value)
    assert caught.value.remedy


def test_pickles_are_never_opened_and_the_conversion_is_named(copy):
    folder = copy()
    pickle_only(folder)
    with pytest.raises(WeightsError, match="a pickle can run any code") as caught:
        load(folder)
    assert "safe_serialization=True" in caught.value.remedy


def rewrite_unet(folder: Path, **config: object) -> None:
    model = folders._unet(folders.TEXT_WIDTH, 0, **config)
    model.save_pretrained(folder / "unet")


def test_parts_that_do_not_belong_together_are_refused(copy, tmp_path):
    folder = copy()
    rewrite_unet(folder, in_channels=9)
    with pytest.raises(WeightsError, match=r"takes 9 channels and gives 4.*inpainting"):
        load(folder)
    rewrite_unet(folder, cross_attention_dim=24)
    with pytest.raises(WeightsError, match="attends to text 24 wide, the text encoder gives 16"):
        load(folder)
    rewrite_unet(folder)
    load(folder)
    edit(folder / "tokenizer/vocab.json", **{f"more{i}": 554 + i for i in range(9)})
    with pytest.raises(WeightsError, match="tokenizer has 563 tokens, the text encoder only 554"):
        load(folder)


def test_an_sdxl_folder_needs_its_second_text_encoder(copy):
    folder = copy("sdxl")
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(WeightsError, match=r"text_encoder_2/config\.json is missing"):
        load(folder)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"size": "big"}, "has size 'big'"),
        ({"size": 0}, "has size 0"),
        ({"vocabulary": "car"}, "a vocabulary that is no list of words"),
        ({"vocabulary": ["car", 3]}, "a vocabulary that is no list of words"),
        ({"mask_padding": 1}, "has mask_padding 1"),
        ({"preset": []}, "a preset that is not"),
        ({"preset": {"attend": 3}}, "a preset that is not"),
    ],
)
def test_facts_of_our_own_are_checked(copy, facts, message):
    folder = copy("mini")
    edit(folder / "diffuseg.json", **facts)
    with pytest.raises(WeightsError, match=r"diffuseg\.json") as caught:
        load(folder)
    assert message in str(caught.value)


def test_checksums_are_verified(copy):
    folder = copy()
    names = [UNET, "tokenizer/merges.txt"]
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "checksums.json").write_text(json.dumps(sums))
    load(folder, device="cpu")
    data = bytearray((folder / UNET).read_bytes())
    data[-1] ^= 1
    (folder / UNET).write_bytes(bytes(data))
    inspect_folder(folder)
    with pytest.raises(WeightsError, match=f"{UNET} is damaged or was changed"):
        load(folder)
    (folder / "checksums.json").write_text(json.dumps({"vae/gone.json": "0"}))
    with pytest.raises(WeightsError, match=r"gone.json is missing or unreadable"):
        load(folder)


def test_devices_and_precisions_that_are_not_there(originals):
    for device in ("cuda:99", "gpu", "", 3.5):
        with refused("the device must be one that torch can use here"):
            load(originals["sd15"], device=device)
    for dtype in ("fp8", torch.int8, torch.float64, 32):
        with refused("the dtype must be fp32, fp16 or bf16"):
            load(originals["sd15"], dtype=dtype)
    with pytest.raises(InputError, match="must be a known name"):
        load("sd9")
    for name in (None, 3, ["sd1.5"]):
        with refused("must be a known name"):
            load(name)
