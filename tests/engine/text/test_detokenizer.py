from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from engine.text.detokenizer import IncrementalDetokenizer
from engine.text.tokenizer import Tokenizer
from tests.models import VOCAB_SIZE, tiny_tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(path)
    return Tokenizer(path)


@pytest.fixture(scope="module")
def real(smollm2_dir: Path) -> Tokenizer:
    return Tokenizer(smollm2_dir)


def check_every_prefix(tokenizer: Tokenizer, token_ids: list[int]) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer)
    shown = ""
    for num_tokens, token_id in enumerate(token_ids, start=1):
        shown += detokenizer.push(token_id)
        whole = tokenizer.decode(token_ids[:num_tokens])
        if whole.endswith("\ufffd"):
            assert whole.startswith(shown), (whole, shown)
        else:
            assert shown == whole


# All 256 bytes are tokens, so most sequences hold broken and split characters.
@given(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=40))
def test_pieces_join_to_the_whole_at_every_prefix(tiny: Tokenizer, token_ids: list[int]) -> None:
    check_every_prefix(tiny, token_ids)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 49151), max_size=40))
def test_pieces_join_to_the_whole_with_the_real_tokenizer(real: Tokenizer, token_ids: list[int]) -> None:
    check_every_prefix(real, token_ids)


@given(st.text())
def test_any_text_comes_back(tiny: Tokenizer, text: str) -> None:
    token_ids = tiny.encode(text).tolist()
    check_every_prefix(tiny, token_ids)


def test_a_character_appears_with_its_last_byte(tiny: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(tiny)
    assert [detokenizer.push(int(token_id)) for token_id in tiny.encode("€")] == ["", "", "€"]


def test_leading_spaces_that_depend_on_the_token_before_are_kept(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    # As sentencepiece models do: the first token of a text loses its leading space.
    strip = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.backend_tokenizer.decoder = strip
    tokenizer.save_pretrained(tmp_path)
    stripping = Tokenizer(tmp_path)
    token_ids = stripping.encode(" is  the capital").tolist()
    assert stripping.decode(token_ids) == "is  the capital"
    check_every_prefix(stripping, token_ids)


def test_endless_broken_bytes_do_not_pile_up(tiny: Tokenizer) -> None:
    broken = next(id_ for id_ in range(VOCAB_SIZE) if tiny.decode([id_]) == "\ufffd")
    detokenizer = IncrementalDetokenizer(tiny)
    assert len("".join(detokenizer.push(broken) for _ in range(1000))) >= 900
