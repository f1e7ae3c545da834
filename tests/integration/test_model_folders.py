"""Where models come from: folders of every kind, caches and mirrors."""

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
from diffuseg.errors import WeightsError
from support import folders, hub

UNET = "unet/diffusion_pytorch_model.safetensors"


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
    (damaged / UNET).unlink()
    (damaged / "unet/diffusion_pytorch_model.bin").write_bytes(b"")
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
