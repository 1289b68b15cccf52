"""Masks of a step's rows, beside the engine: begun, waited for, and nothing left behind."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from engine.request import Grammar, GrammarKind, SamplingParams
from engine.scheduling.batch import StepBatch, TokenMasks
from engine.text.masks import FEW, TokenMasker
from tests.engine.execution.sampled_rows import sampled_rows
from tests.engine.text.test_grammar import END, GRAMMARS, OTHER_END

WORD = Grammar(GrammarKind.REGEX, "[a-c]{2,4}")


def _batch(
    grammars: Sequence[Grammar | None], output: str = "", banned: Sequence[int] = (), first_id: int = 0
) -> StepBatch:
    params = [SamplingParams(max_tokens=9, grammar=grammar, top_logprobs=0) for grammar in grammars]
    rows = sampled_rows(params, output=list(output.encode()), banned=banned)
    return replace(rows, request_ids=np.arange(first_id, first_id + len(params)))


def _masks(masker: TokenMasker, batch: StepBatch) -> TokenMasks:
    begun = masker.begin(batch)
    assert begun.masks is not None
    return begun.masks()


def _allowed(masks: TokenMasks, row: int) -> set[int]:
    bits = np.unpackbits(masks.allowed[masks.row[row]], bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def test_rows_with_a_grammar_have_masks_and_the_others_none() -> None:
    masker = TokenMasker(lambda: GRAMMARS)
    masks = _masks(masker, _batch([None, WORD, None, WORD]))
    assert set(masks.row) == {1, 3}
    assert _allowed(masks, 3) == set(masks.few[3].tolist()) >= set(b"abc")
    masks = _masks(masker, _batch([WORD], "ab"))
    assert {*b"abc", END, OTHER_END} <= _allowed(masks, 0)
    assert len(GRAMMARS.usable) * 8 < FEW  # of this tokenizer all masks are short
    assert _allowed(_masks(masker, _batch([WORD], "abca")), 0) == {END, OTHER_END}


def test_tokens_that_may_not_come_yet_come_where_there_are_no_others() -> None:
    masker = TokenMasker(lambda: GRAMMARS)
    banned = [END, OTHER_END, 5_000]
    assert not {END, OTHER_END} & _allowed(_masks(masker, _batch([WORD], "ab", banned)), 0)
    assert _allowed(_masks(masker, _batch([WORD], "abca", banned)), 0) == {END, OTHER_END}
    assert masker.end(0) is None


def test_a_dead_end_ends_the_output_and_is_noted() -> None:
    masker = TokenMasker(lambda: GRAMMARS)
    dead = Grammar(GrammarKind.LARK, r'start: "a" /[^\s\S]/')
    masks = _masks(masker, _batch([WORD, dead], "a", first_id=40))
    assert _allowed(masks, 1) == {END, OTHER_END}
    assert masker.end(40) is None
    assert masker.end(41)
    assert masker.end(41) is None


def test_outputs_are_followed_from_where_they_were_or_anew() -> None:
    masker = TokenMasker(lambda: GRAMMARS)
    _masks(masker, _batch([WORD, WORD], "a"))
    matcher = masker._outputs[0].matcher
    _masks(masker, _batch([WORD, WORD], "ab"))
    assert masker._outputs[0].matcher is matcher
    _masks(masker, _batch([WORD], "ab", first_id=1))  # the first sits this step out
    assert _allowed(_masks(masker, _batch([WORD, WORD], "abca")), 0) == {END, OTHER_END}
    assert masker._outputs[0].matcher is matcher
    masker.end(0)  # and its id comes again
    assert END not in _allowed(_masks(masker, _batch([WORD], "a")), 0)
    assert _allowed(_masks(masker, _batch([WORD], "abca", first_id=7)), 0) == {END, OTHER_END}
    for request_id in (0, 1, 7):
        masker.end(request_id)
    assert masker._outputs == {}
    assert masker.begin(_batch([None])).masks is None


def test_without_grammars_there_is_no_thread() -> None:
    masker = TokenMasker(lambda: pytest.fail("not needed"))
    masker.begin(_batch([None]))
    assert masker._thread is None


def test_a_process_that_used_grammars_ends() -> None:
    program = (
        "from tests.engine.text.test_masks import GRAMMARS, WORD, TokenMasker, _batch, _masks\n"
        "masker = TokenMasker(lambda: GRAMMARS)\n"
        "print(len(_masks(masker, _batch([WORD] * 3)).few))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=120, stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"3\n"
