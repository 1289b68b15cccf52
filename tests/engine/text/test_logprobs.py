"""What tokens are told as: their bytes join to the text, whatever the tokenizer's spelling."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from engine.scheduling.batch import RowLogprobs
from engine.text.logprobs import token_logprobs
from engine.text.tokenizer import Tokenizer
from tests.models import tiny_tokenizer

TEXT = "The capital é of 😀 France\nis 42 \t\x00."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(path)
    return Tokenizer(path)


def _recorded(token_ids: np.ndarray) -> list[RowLogprobs]:
    nothing = np.zeros(0)
    return [RowLogprobs(0, -1.0, nothing.astype(np.int32), nothing.astype(np.float32)) for _ in token_ids]


def test_bytes_of_tokens_join_to_the_text(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode(TEXT).tolist()
    assert b"".join(map(tokenizer.token_bytes, token_ids)) == TEXT.encode()
    assert tokenizer.token_bytes(2) == b"<|im_end|>"
    assert tokenizer.token_bytes(tokenizer.vocab_size + 5) == b""  # a model may have more tokens


def test_sentencepiece_spelling(tmp_path: Path) -> None:
    words = ["\u2581The", "\u2581cap", "ital", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "</s>"]
    backend = Backend(BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    assert b"".join(map(tokenizer.token_bytes, range(7))) == " The capital😀".encode()
    assert tokenizer.token_bytes(7) == b"</s>"


def test_offsets_are_where_a_token_begins(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode(TEXT)
    tokens = token_logprobs(tokenizer, token_ids, _recorded(token_ids))
    for token in tokens:
        before = TEXT[: token.offset].encode()
        assert TEXT.encode()[len(before) :].startswith(token.token) or token.token in "é😀".encode()
    offsets = [token.offset for token in tokens]
    assert offsets == sorted(offsets)
    assert offsets.count(TEXT.index("😀")) == 4  # bytes of one character begin together
