"""The world's tokenizer: one token a word, an ordinary CLIP tokenizer otherwise."""

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from diffuseg.world.captions import VOCABULARY
from diffuseg.world.tokenizer import END, START, build_tokenizer, learn_merges


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer(VOCABULARY)


def test_every_word_of_the_world_is_one_token(tokenizer: CLIPTokenizer) -> None:
    pieces = {word: tokenizer.tokenize(word) for word in VOCABULARY}
    assert {word: parts for word, parts in pieces.items() if len(parts) != 1} == {}


def test_words_that_share_beginnings_and_ends_stay_whole() -> None:
    words = ["al", "all", "ball", "tall", "allball", "ballall", "bal", "la", "lab"]
    tokenizer = build_tokenizer(words)
    assert [tokenizer.tokenize(word) for word in words] == [[word + "</w>"] for word in words]


def test_sequence_is_start_words_end_padding(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("a Red car", padding="max_length").input_ids
    assert len(ids) == 77
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[:5] == [START, "a</w>", "red</w>", "car</w>", END]
    assert set(tokens[5:]) == {END}


def test_unknown_words_fall_apart_into_characters(tokenizer: CLIPTokenizer) -> None:
    pieces = tokenizer.tokenize("giraffe, 3!")
    assert len(pieces) > 3
    assert END not in pieces


def test_saved_and_loaded_it_is_the_same(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    text = "a blue tree next to a red car with sky above grass"
    assert (
        again(text, padding="max_length").input_ids
        == tokenizer(text, padding="max_length").input_ids
    )


def test_merges_end_when_every_word_is_whole() -> None:
    merges = learn_merges(["ab", "abc"])
    assert {"".join(pair) for pair in merges} >= {"ab</w>", "abc</w>"}
    assert learn_merges(["a"]) == []
