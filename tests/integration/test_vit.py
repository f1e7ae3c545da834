"""Vision transformers: keys against a direct computation, sizes, and what the loader refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from diffuseg.backbones import Features, load_vit
from diffuseg.errors import InputError, WeightsError
from support.vits import KINDS, write_vit

IMAGES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
FOREIGN = {"vit": 1, "classifier": 1, "dinov2": 1, "registers": 4}  # tokens before the patches


@pytest.fixture(scope="module", params=KINDS)
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, write_vit(folder, request.param)


def stack(model: PreTrainedModel) -> Any:
    base = getattr(model, "vit", model)
    return base.layers if hasattr(base, "layers") else base.encoder.layer


def pixels(images: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor([[0.4, 0.5, 0.6], [0.2, 0.25, 0.3]])[:, :, None, None]
    return (images - mean) / std


@torch.no_grad()
def forward(model: PreTrainedModel) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The input of every layer, and what comes out at the end, by the model's own modules."""
    base = getattr(model, "vit", model)
    fit = {"interpolate_pos_encoding": True} if "Dino" not in type(base).__name__ else {}
    hidden = base.embeddings(pixels(IMAGES), **fit)
    inputs = []
    for layer in stack(model):
        inputs.append(hidden)
        hidden = layer(hidden)
    return inputs, base.layernorm(hidden)


@pytest.mark.parametrize("layer", [0, -1])
def test_keys_are_the_projection_of_the_patches(
    written: tuple[str, Path, PreTrainedModel], layer: int
) -> None:
    kind, folder, model = written
    vit = load_vit(folder, device="cpu")
    inputs, _ = forward(model)
    block = stack(model)[layer]
    norm = block.layernorm_before if hasattr(block, "layernorm_before") else block.norm1
    with torch.no_grad():
        expected = block.attention.k_proj(norm(inputs[layer]))[:, FOREIGN[kind] :]
    found = vit.features(IMAGES, "keys", layer=layer)
    assert found.shape == (2, 4, 6, 16)
    torch.testing.assert_close(found.flatten(1, 2), expected)


def test_tokens_are_the_output_of_a_layer_and_of_the_whole(
    written: tuple[str, Path, PreTrainedModel],
) -> None:
    kind, folder, model = written
    vit = load_vit(folder, device="cpu")
    inputs, last = forward(model)
    first = vit.features(IMAGES, "tokens", layer=0).flatten(1, 2)
    torch.testing.assert_close(first, inputs[1][:, FOREIGN[kind] :])
    torch.testing.assert_close(
        vit.features(IMAGES, "tokens").flatten(1, 2), last[:, FOREIGN[kind] :]
    )


def test_attentions_are_those_transformers_returns(
    written: tuple[str, Path, PreTrainedModel],
) -> None:
    kind, folder, model = written
    vit = load_vit(folder, device="cpu")
    base = getattr(model, "vit", model)
    base.set_attn_implementation("eager")
    fit = {"interpolate_pos_encoding": True} if "Dino" not in type(base).__name__ else {}
    with torch.no_grad():
        expected = base(pixel_values=pixels(IMAGES), output_attentions=True, **fit).attentions
    base.set_attn_implementation("sdpa")
    whole = list(vit.attentions(IMAGES, specials=True))
    assert len(whole) == len(expected) == vit.depth == 2
    skip = FOREIGN[kind]
    for mine, theirs, patches in zip(whole, expected, vit.attentions(IMAGES), strict=True):
        torch.testing.assert_close(mine, theirs)
        torch.testing.assert_close(patches, theirs[:, :, skip:, skip:])


def test_a_vit_is_described_and_has_what_features_ask_for(
    written: tuple[str, Path, PreTrainedModel],
) -> None:
    _, folder, _ = written
    vit = load_vit(str(folder), device="cpu")
    assert isinstance(vit, Features)
    assert (vit.patch, vit.size, vit.depth, vit.heads) == (8, 32, 2, 2)
    assert repr(vit) == f"ViT {folder.name} from {folder} (torch.float32 on cpu)"
    assert not any(parameter.requires_grad for parameter in vit.model.parameters())


def test_no_hook_stays(written: tuple[str, Path, PreTrainedModel]) -> None:
    _, folder, _ = written
    vit = load_vit(folder, device="cpu")
    vit.features(IMAGES)
    list(vit.attentions(IMAGES))
    assert not any(module._forward_hooks for module in vit.model.modules())


def test_bf16_gives_features_in_single_precision(
    written: tuple[str, Path, PreTrainedModel],
) -> None:
    _, folder, _ = written
    vit = load_vit(folder, device="cpu", dtype="bf16")
    assert (vit.dtype, vit.features(IMAGES).dtype) == (torch.bfloat16, torch.float32)


def test_arguments_that_fit_no_layer_or_size_are_refused(
    written: tuple[str, Path, PreTrainedModel],
) -> None:
    _, folder, _ = written
    vit = load_vit(folder, device="cpu")
    with pytest.raises(InputError, match=r"multiples of 8 pixels\n  got: 32x50"):
        vit.features(torch.zeros(1, 3, 32, 50))
    with pytest.raises(InputError, match="multiples of 8 pixels"):
        vit.attentions(torch.zeros(1, 3, 31, 32))
    with pytest.raises(InputError, match="what must be one of keys"):
        vit.features(IMAGES, "nothing")
    with pytest.raises(InputError, match=r"one of 2\n  got: 2"):
        vit.features(IMAGES, layer=2)


def test_the_loader_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        load_vit(tmp_path / "none")
    with pytest.raises(InputError, match='the vit model must be "mini"'):
        load_vit("resnet50")
    with pytest.raises(WeightsError, match=r"not asked \(offline\)"):
        load_vit("nobody/no-such-vit", offline=True)
    folder = tmp_path / "model"
    write_vit(folder, "vit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["SwinModel"]}))
    with pytest.raises(WeightsError, match="configuration of SwinModel"):
        load_vit(folder)
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 24}))
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_vit(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match=r"preprocessor_config.json is missing"):
        load_vit(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="a pickle can run any code"):
        load_vit(folder)
