"""The loss that makes words find their pixels: what it is shown, and what it rewards."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from diffuseg.train.denoiser import Denoiser, scaled_linear_alphas, tokenize
from diffuseg.train.grounding import (
    Mosaics,
    Tiles,
    alone_loss,
    attention,
    draw_mosaics,
    edge_loss,
    find_words,
    grounding_loss,
    lend_keys,
    mosaic_loss,
    read_tiles,
    share_out,
    watch,
    wordless_loss,
)
from diffuseg.train.recipe import DenoiserRecipe, GroundingRecipe
from diffuseg.world.captions import VOCABULARY
from diffuseg.world.scenes import CLASSES
from diffuseg.world.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer(VOCABULARY, max_length=24)
CAPTIONS = [("a red car on grass", "a car"), ("a tree", "a blue tree above snow")]


def tiles_of(side: int = 8) -> Tiles:
    """Two pictures, of which the first is all 1 and the second all 2 (mirrored: -1 and -2)."""
    ones = torch.ones(2, 2, 4, side, side) * torch.tensor([1.0, 2.0])[:, None, None, None, None]
    ones[:, 1] *= -1
    return read_tiles(ones, tokenize(TOKENIZER, CAPTIONS), find_words(TOKENIZER))


def test_nouns_of_a_picture_are_those_of_all_its_phrasings() -> None:
    names = [[CLASSES[i] for i in row.nonzero().flatten()] for row in tiles_of().nouns]
    assert names == [["car", "grass"], ["tree", "snow"]]


def test_tiles_lie_where_their_nouns_are_allowed() -> None:
    recipe = GroundingRecipe(grid=(2, 3), batch=5, most_absent=3)
    drawn = [draw_mosaics(tiles_of(), recipe, key=(0, step)) for step in range(6)]
    assert {one.grid for one in drawn} == {(2, 3), (3, 2)}
    for one in drawn:
        down, across = one.grid
        assert one.clean.shape == (5, 4, 8 * down, 8 * across)
        for row in range(5):
            for tile in range(6):
                top, left = 8 * (tile // across), 8 * (tile % across)
                patch = one.clean[row, :, top : top + 8, left : left + 8]
                which = int(patch.abs().unique().item()) - 1
                at = one.columns[row][one.allowed[row, tile]]
                words = TOKENIZER.convert_ids_to_tokens(one.tokens[row, at].tolist())
                assert sorted(words) == sorted(
                    [["car</w>", "grass</w>"], ["snow</w>", "tree</w>"]][which]
                )


def test_prompts_list_nouns_of_the_mosaic_and_others() -> None:
    recipe = GroundingRecipe(grid=(1, 2), batch=40, most_absent=2)
    one = draw_mosaics(tiles_of(), recipe, key=(3,))
    texts = TOKENIZER.batch_decode(one.tokens, skip_special_tokens=True)
    assert any(text.startswith("a photo of ") for text in texts)
    counts = set()
    for row, text in enumerate(texts):
        listed = text.removeprefix("a photo of ").strip().split(" and ")
        assert len(listed) == len(set(listed)) == int(one.named[row].sum())
        counts.add(len(listed) - int(one.allowed[row].any(0).sum()))
    assert counts == {0, 1, 2}
    assert 0 <= int(one.timesteps.min()) <= int(one.timesteps.max()) <= 500
    again = draw_mosaics(tiles_of(), recipe, key=(3,))
    assert torch.equal(one.noise, again.noise)
    assert torch.equal(one.tokens, again.tokens)


def shares_of(mosaics: Mosaics, *, right: bool) -> Tensor:
    """Every pixel to the first noun allowed in its tile, or to the first that is not."""
    down, across = mosaics.grid
    height, width = mosaics.clean.shape[2] // down, mosaics.clean.shape[3] // across
    planes = (mosaics.allowed == right) & mosaics.named[:, None]
    first = nn.functional.one_hot(planes.int().argmax(2), planes.shape[2]).float()
    grid = first.unflatten(1, (down, across))
    return grid.repeat_interleave(height, 1).repeat_interleave(width, 2).flatten(1, 2)


def test_loss_rewards_the_nouns_of_the_tile() -> None:
    recipe = GroundingRecipe(grid=(1, 2), batch=1, most_absent=4, top=(0.1, 0.1))
    mosaics = draw_mosaics(tiles_of(), recipe, key=(1,))
    mosaics = replace(mosaics, allowed=mosaics.allowed & (mosaics.allowed.cumsum(2) == 1))
    right, wrong = (shares_of(mosaics, right=one) for one in (True, False))
    even = mosaics.named[:, None].expand(-1, 128, -1).float()
    even = even / even.sum(2, keepdim=True)
    losses = [grounding_loss(one, mosaics).item() for one in (right, even, wrong)]
    assert losses[0] == pytest.approx(0.0, abs=1e-4)
    assert losses[0] < losses[1] < losses[2]


def test_every_noun_has_to_win_pixels() -> None:
    recipe = GroundingRecipe(grid=(1, 1), batch=1, most_absent=0, top=(0.25, 0.25))
    mosaics = draw_mosaics(tiles_of(), recipe, key=(0,))
    one = shares_of(mosaics, right=True)  # all pixels to one of the two nouns
    both = one.clone()
    both[:, :16] = both[:, :16].flip(2)
    assert grounding_loss(both, mosaics).item() == pytest.approx(0.0, abs=1e-4)
    assert grounding_loss(one, mosaics).item() > 5


def test_the_loss_reaches_queries_keys_and_the_text_tower() -> None:
    torch.manual_seed(0)
    recipe = DenoiserRecipe(channels=(16, 16, 16, 16), heads=2, text_width=16, text_heads=2)
    network = Denoiser(recipe, TOKENIZER, side=16)
    settings = GroundingRecipe(
        grid=(1, 2), batch=2, edges=1.0, products=2, completing="all", alone=1, wordless=1
    )
    mosaics = draw_mosaics(tiles_of(16), settings, key=(0,))
    loss = mosaic_loss(network, mosaics, scaled_linear_alphas(), settings)
    loss.backward()
    assert loss.item() > 0
    block = network.unet.up_blocks[3].attentions[1].transformer_blocks[0]
    for part in (block.attn2.to_q, block.attn2.to_k, block.attn1.to_q, block.attn1.to_k):
        assert part.weight.grad.abs().sum() > 0
    assert network.text.get_input_embeddings().weight.grad.abs().sum() > 0
    # It only watches: no hook is left on the network.
    assert not any(module._forward_hooks for module in network.unet.modules())


def test_watched_attention_is_that_of_the_network() -> None:
    torch.manual_seed(0)
    recipe = DenoiserRecipe(channels=(16, 16, 16, 16), heads=2, text_width=16, text_heads=2)
    unet = Denoiser(recipe, TOKENIZER, side=16).unet
    seen: list[Tensor] = []
    layer = unet.up_blocks[3].attentions[0].transformer_blocks[0].attn2
    plain = layer.get_attention_scores

    def spy(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        seen.append(plain(query, key, mask))
        return seen[-1]

    from diffusers.models.attention_processor import AttnProcessor

    unet.set_attn_processor(AttnProcessor())
    layer.get_attention_scores = spy
    states = torch.randn(1, 5, 16)
    with watch(unet, ("up_blocks.3",)) as kept, torch.no_grad():
        unet(torch.randn(1, 4, 16, 16), torch.tensor([10]), states)
    name = next(one for one in kept if "attentions.0" in one and one.endswith("attn2"))
    found = attention(kept[name], 2)
    assert torch.allclose(found, seen[0].unflatten(0, (1, 2)).mean(1), atol=1e-6)


def test_mosaics_move_as_a_whole() -> None:
    one = draw_mosaics(tiles_of(), GroundingRecipe(batch=1), key=(0,))
    moved = one.to(torch.device("meta"))
    assert moved.clean.device.type == moved.allowed.device.type == "meta"
    assert moved.grid == one.grid
    assert replace(moved, top=0.5).top == 0.5


def test_edges_cost_nothing_where_the_picture_has_them() -> None:
    picture = torch.zeros(1, 4, 6, 6)
    picture[..., 3:] = 3.0
    along = torch.zeros(1, 6, 6, 2)
    along[:, :, :3, 0] = along[:, :, 3:, 1] = 1.0
    across = along.transpose(1, 2)
    fitting, crossing = (edge_loss(one.flatten(1, 2), picture).item() for one in (along, across))
    assert fitting == pytest.approx(0.0, abs=1e-6)
    assert crossing > 0.2
    # Where the picture has none, any border costs the same, wherever it runs.
    plain = torch.zeros(1, 4, 6, 6)
    assert edge_loss(along.flatten(1, 2), plain).item() == pytest.approx(
        edge_loss(across.flatten(1, 2), plain).item()
    )


def test_a_noun_alone_has_to_find_what_it_has_among_others() -> None:
    recipe = GroundingRecipe(grid=(1, 2), batch=6, alone=4)
    mosaics = draw_mosaics(tiles_of(), recipe, key=(2,))
    for part in (mosaics.clean, mosaics.noise, mosaics.timesteps):
        assert len(part) == 10
        assert torch.equal(part[6:], part[:4])
    texts = TOKENIZER.batch_decode(mosaics.tokens, skip_special_tokens=True)
    shares = torch.rand(6, 128, mosaics.columns.shape[1])
    maps = torch.zeros(10, 128, mosaics.tokens.shape[1])
    for row, (of, at) in enumerate(zip(mosaics.alone_of, mosaics.alone_at, strict=True)):
        noun = mosaics.tokens[row, mosaics.columns[row, of]]
        assert mosaics.named[row, of]
        assert mosaics.tokens[6 + row, at] == noun
        assert texts[6 + row].strip() in (word := TOKENIZER.decode([noun]), f"a photo of {word}")
        maps[6 + row, :, at] = shares[row, :, of]
    equal, other = (alone_loss(one, shares, mosaics).item() for one in (maps, maps.flip(1)))
    assert equal < other
    blank = alone_loss(maps, shares, draw_mosaics(tiles_of(), replace(recipe, alone=0), key=(2,)))
    assert blank.item() == 0


def test_shares_are_those_of_the_nouns_in_the_prompt() -> None:
    mosaics = draw_mosaics(tiles_of(), GroundingRecipe(batch=3, alone=1), key=(5,))
    maps = torch.rand(4, 128, mosaics.tokens.shape[1])
    shares = share_out(maps, mosaics)
    assert torch.allclose(shares.sum(2), torch.ones(3, 128))
    assert (shares.transpose(1, 2)[~mosaics.named] == 0).all()
    first, second = mosaics.columns[0, :2]
    ratio = shares[0, :, 0] / shares[0, :, 1]
    assert torch.allclose(ratio, maps[0, :, first] / maps[0, :, second], rtol=1e-4)


def test_rows_without_words_come_last_and_show_the_first_mosaics() -> None:
    recipe = GroundingRecipe(grid=(1, 2), batch=3, alone=1, wordless=2)
    mosaics = draw_mosaics(tiles_of(), recipe, key=(4,))
    assert mosaics.wordless == 2
    for part in (mosaics.clean, mosaics.noise, mosaics.timesteps):
        assert len(part) == 6
        assert torch.equal(part[4:], part[:2])
    texts = TOKENIZER.batch_decode(mosaics.tokens, skip_special_tokens=True)
    assert texts[4:] == ["", ""]
    plain = draw_mosaics(tiles_of(), replace(recipe, wordless=0), key=(4,))
    assert torch.equal(plain.tokens, mosaics.tokens[:4])


def test_queries_without_words_have_to_find_the_same_with_the_words_keys() -> None:
    layer = {"to_q": torch.randn(6, 8, 4), "to_k": torch.randn(6, 3, 4)}
    [lent] = lend_keys([layer], 2)
    assert torch.equal(lent["to_q"], layer["to_q"][4:])
    assert torch.equal(lent["to_k"], layer["to_k"][:2])
    shares = torch.rand(3, 8, 2).softmax(2)
    equal, other = (wordless_loss(one, shares).item() for one in (shares[:2], shares[:2].flip(2)))
    assert equal < other
    entropy = -(shares[:2] * shares[:2].log()).sum(2).mean().item()
    assert equal == pytest.approx(entropy, abs=1e-4)
