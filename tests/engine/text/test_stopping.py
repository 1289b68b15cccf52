from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.request import SamplingParams
from engine.text.stopping import StopStrings, StopWatcher
from engine.text.tokenizer import Tokenizer
from tests.models import tiny_tokenizer

few_letters = st.text("ab\n", max_size=12)


@given(
    pieces=st.lists(few_letters, max_size=6),
    stop=st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_match_is_found_in_the_piece_that_completes_it(pieces: list[str], stop: list[str]) -> None:
    strings = StopStrings(stop)
    for num_pieces, piece in enumerate(pieces, start=1):
        so_far = "".join(pieces[:num_pieces])
        if strings.push(piece):
            cut = strings.cut(so_far)
            assert any(so_far.startswith(cut + each) for each in stop)
            assert not any(each in cut for each in stop)
            return
        assert not any(each in so_far for each in stop)
        assert strings.cut(so_far) == so_far


def test_the_earliest_match_cuts() -> None:
    assert StopStrings(("END", "\n\n")).cut("one\n\ntwoEND") == "one"


@pytest.mark.parametrize("stop", ["Paris", "is P", "ê", "😀!"])
def test_a_stop_string_across_token_borders(tmp_path: Path, stop: str) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    text = "The capital of France is Paris. ê 😀! And so on"
    watcher = StopWatcher(tokenizer, SamplingParams(max_tokens=99, stop=(stop,)))
    token_ids = tokenizer.encode(text).tolist()
    num_tokens = next(n for n, token_id in enumerate(token_ids, start=1) if watcher.push(token_id))
    assert stop in tokenizer.decode(token_ids[:num_tokens])
    assert stop not in tokenizer.decode(token_ids[: num_tokens - 1])
    assert watcher.cut(tokenizer.decode(token_ids[:num_tokens])) == text[: text.index(stop)]
