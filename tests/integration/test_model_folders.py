"""Where models come from, and folders that are not what they should be."""

import hashlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from diffuseg.backbones import catalog, load, weights
from diffuseg.backbones.folder import inspect_folder
from diffuseg.errors import InputError, WeightsError
from support import folders, hub
from support.refusal import refused

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("originals")
    return {
        "sd15": folders.write_sd15(root / "sd15"),
        "sdxl": folders.write_sdxl(root / "sdxl"),
        "mini": folders.write_mini(root / "mini"),
    }


@pytest.fixture
def copy(originals, tmp_path):
    """Copies one of the folders, to be spoilt."""
    return lambda kind="sd15": Path(shutil.copytree(originals[kind], tmp_path / kind))


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to reach the network fails the test, though nothing says to be offline."""

    def refuse(*args: object) -> None:
        raise AssertionError(f"the network was asked for {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({key: one for key, one in content.items() if one is not None}))


def same_weights(one, other) -> bool:
    states = one.unet.state_dict(), other.unet.state_dict()
    return all(torch.equal(states[0][key], states[1][key]) for key in states[1])


# -- loading what is there ------------------------------------------------------------------------


def test_a_folder_is_loaded_without_asking_the_network(originals, no_network, caplog):
    with caplog.at_level(logging.INFO, logger="diffuseg"):
        model = load(originals["sdxl"], device="cpu")
    assert (model.name, model.source) == ("sdxl", str(originals["sdxl"]))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"model sdxl from {originals['sdxl']} (torch.float32 on cpu)"]


def test_a_folder_may_be_named_by_text_or_relative(originals, monkeypatch):
    monkeypatch.chdir(originals["sd15"].parent)
    assert load("./sd15", device="cpu").name == "sd15"
    assert load(str(originals["sd15"]), device="cpu").source == str(originals["sd15"])


def test_the_embedded_folder_goes_through_the_same_code(originals, monkeypatch, no_network, cache):
    monkeypatch.setattr(weights, "embedded_folder", lambda name: originals.get(name, Path("none")))
    model = load("Mini", device="cpu")
    assert (model.name, model.source) == ("mini", "embedded")
    assert catalog.list_models()[0].here == "embedded"


def test_a_cached_mirror_is_used_without_asking_the_network(originals, no_network, cache):
    repo = cache / "models--benjamin-paine--stable-diffusion-v1-5"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    shutil.copytree(originals["sd15"], repo / "snapshots" / "abc")
    model = load("sd1.5", device="cpu")
    assert (model.name, model.source) == ("sd1.5", "benjamin-paine/stable-diffusion-v1-5")
    by_id = load("benjamin-paine/stable-diffusion-v1-5", device="cpu", offline=True)
    assert by_id.name == by_id.source == model.source
    rows = {row.model.name: row for row in catalog.list_models()}
    assert (rows["sd1.5"].here, rows["sd1.5"].source) == ("cached", model.source)
    assert rows["sd2.1"].here == "absent"


def test_a_folder_without_an_index_is_accepted(originals, copy):
    folder = copy()
    (folder / "model_index.json").unlink()
    assert same_weights(load(folder, device="cpu"), load(originals["sd15"], device="cpu"))


def test_a_folder_that_names_no_schedule_gets_the_usual_one(originals, copy, caplog):
    folder = copy()
    (folder / "model_index.json").unlink()
    shutil.rmtree(folder / "scheduler")
    model = load(folder, device="cpu")
    usual = load(originals["sd15"], device="cpu")
    assert torch.equal(model.alphas, usual.alphas)
    assert "taking Stable Diffusion's usual schedule" in caplog.text
    assert model.sample("a dog", steps=2).shape == (1, 3, 64, 64)


def test_half_precision_files_are_taken_when_they_suit(originals, copy):
    folder = copy()
    state = load_file(folder / UNET)
    marked = {key: torch.zeros_like(value).half() for key, value in state.items()}
    save_file(marked, folder / "unet/diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    assert not any(value.any() for value in load(folder, dtype="fp16").unet.parameters())
    assert same_weights(load(folder, dtype="fp32"), load(originals["sd15"], dtype="fp32"))
    with pytest.raises(WeightsError, match="variant 'fp16' of the file vae/") as caught:
        load(folder, variant="fp16")
    assert caught.value.remedy == "leave the variant out"
    (folder / UNET).unlink()
    assert not any(value.any() for value in load(folder, dtype="fp32").unet.parameters())


def test_sharded_weights_are_one_model(originals, copy):
    folder = copy("sdxl")
    whole = load(originals["sdxl"], device="cpu")
    for part, model in (("unet", whole.unet), ("text_encoder_2", whole.tower.encoder_2)):
        for file in (folder / part).glob("*.safetensors"):
            file.unlink()
        model.save_pretrained(folder / part, max_shard_size="20KB")
        assert len(list((folder / part).glob("*-of-*.safetensors"))) > 1
    assert same_weights(load(folder, device="cpu"), whole)
    lost = sorted((folder / "unet").glob("*-00001-of-*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(WeightsError, match=f"{lost.name} is missing"):
        load(folder)


def test_the_names_of_old_checkpoints_are_understood(originals, copy):
    folder = copy()
    text = folder / "text_encoder/model.safetensors"
    state = load_file(text)
    old = {
        key if key.startswith("text_model.") else f"text_model.{key}": value
        for key, value in state.items()
    }
    old["text_model.embeddings.position_ids"] = torch.arange(folders.CONTEXT)[None]
    save_file(old, text, {"format": "pt"})
    vae = folder / "vae/diffusion_pytorch_model.safetensors"
    renamed = {}
    for key, value in load_file(vae).items():
        for new, former in (
            ("to_q.", "query."),
            ("to_k.", "key."),
            ("to_v.", "value."),
            ("to_out.0.", "proj_attn."),
        ):
            key = key.replace(f"attentions.0.{new}", f"attentions.0.{former}")
        renamed[key] = value
    assert any("query" in key for key in renamed)
    save_file(renamed, vae, {"format": "pt"})
    model, plain = load(folder, device="cpu"), load(originals["sd15"], device="cpu")
    assert torch.equal(model.embed("a dog").vectors, plain.embed("a dog").vectors)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.encode(image), plain.encode(image))


# -- folders that are not what they should be -----------------------------------------------------


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


# -- the hub --------------------------------------------------------------------------------------


def find_on(address: str, cache: Path, call: str) -> subprocess.CompletedProcess[str]:
    """Ask for a model in a process of its own: the hub's address is read when it starts."""
    code = (
        "import logging; logging.basicConfig(level=logging.INFO, format='%(name)s %(message)s')\n"
        "from diffuseg.backbones.weights import find_model\n"
        f"found = {call}\n"
        "print(found.name, found.source, found.folder)"
    )
    settings = {
        "HF_ENDPOINT": address,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_next_mirror_is_tried_and_only_what_is_needed_is_fetched(copy, tmp_path):
    folder = copy()
    for part in ("unet", "vae"):
        stem = folder / part / "diffusion_pytorch_model"
        shutil.copy(f"{stem}.safetensors", f"{stem}.fp16.safetensors")
    text = folder / "text_encoder"
    shutil.copy(text / "model.safetensors", text / "model.fp16.safetensors")
    (text / "pytorch_model.bin").write_bytes(b"never")
    (folder / "v1-5-pruned.ckpt").write_bytes(b"never")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/model.safetensors").write_bytes(b"never")
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    pickle_only(damaged)
    (damaged / "unet/diffusion_pytorch_model.fp16.safetensors").unlink()
    repos = {"benjamin-paine/stable-diffusion-v1-5": damaged, "botp/stable-diffusion-v1-5": folder}
    cache = tmp_path / "hub"
    with hub.serve(repos) as (address, fetched):
        done = find_on(address, cache, 'find_model("sd1.5", half=True)')
        assert done.returncode == 0, done.stderr
        name, source, found = done.stdout.split()
        assert (name, source) == ("sd1.5", "botp/stable-diffusion-v1-5")
        assert "downloading sd1.5 (CreativeML Open RAIL-M; 4.3 GB, 2.1 GB in fp16)" in done.stderr
        assert set(fetched) == {
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.fp16.safetensors",
            "tokenizer/merges.txt",
            "tokenizer/special_tokens_map.json",
            "tokenizer/tokenizer_config.json",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.fp16.safetensors",
        }
        inspect_folder(Path(found), half=True)
        fetched.clear()
        again = find_on(address, cache, 'find_model("sd1.5")')
        assert again.stdout.split()[1] == source
        assert fetched == []


def test_what_every_mirror_answered_is_told(tmp_path):
    with hub.serve({}) as (address, _):
        done = find_on(address, tmp_path, 'find_model("sd2.1")')
    assert done.returncode != 0
    for repo in catalog.KNOWN["sd2.1"].ids:
        assert f"{repo}: RepositoryNotFoundError" in done.stderr
    assert "gated model needs: hf auth login" in done.stderr
    with_no_one_there = find_on(address, tmp_path, 'find_model("someone/something")')
    assert "WeightsError" in with_no_one_there.stderr
    assert "someone/something: Connect" in with_no_one_there.stderr
