"""Grammars over a model's tokens, compiled by llguidance: what an output may be, token by token."""

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark
from numpy.typing import NDArray

from engine.errors import GrammarError
from engine.request import Grammar, GrammarKind

# Where JSON may have blanks: one, or a line break and an indentation. Small models would write them for ever.
JSON_BLANKS = r"\x20|\x0A\x20{0,16}"
# Set here and not by a schema's own `x-guidance`, so that none of its keywords is passed over.
JSON_OPTIONS: Any = {"whitespace_pattern": JSON_BLANKS, "lenient": False, "coerce_one_of": False}
Encode = Callable[[str], Iterable[int]]
_TOKEN_BY_ID = re.compile(r"<\[\^?\d")
_MAX_COMPILED = 256  # kept ready; to compile one again costs about a millisecond, large ones 0.1 s
_LIMITS = LLParserLimits(verbose_errors=False)  # errors are shown to users


class Grammars:
    """Grammars over the tokens of one tokenizer, each compiled once. For use by one thread at a time.

    num_tokens: ids that a mask has a bit for.
    usable: uint8 [num_bytes], packed as a mask: the tokens that outputs may hold, and those that end them.
    ending: uint8 [num_bytes], the same of the tokens that end an output.
    """

    def __init__(self, pieces: Sequence[bytes], eos_token_ids: Collection[int], encode: Encode) -> None:
        """pieces: the bytes of each token, none where no output may hold it.
        eos_token_ids: each ends an output where its grammar lets it end.
        encode: text to tokens as the model knows it: text that a grammar leaves no choice is written so."""
        self.num_tokens = max([len(pieces) - 1, *eos_token_ids]) + 1
        endings = sorted(eos_token_ids)
        self.ending = self._packed(endings)
        self.usable = self.ending | self._packed([id_ for id_, piece in enumerate(pieces) if piece])
        self._tokenizer: LLTokenizer | None = None
        if endings:
            pieces = [*pieces, *[b""] * (self.num_tokens - len(pieces))]
            wrapper = TokenizerWrapper(_Tokens(pieces, endings, encode))
            self._tokenizer = LLTokenizer(wrapper, n_vocab=self.num_tokens, eos_token=endings)
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """Of a mask: whole words of 32 bits."""
        return (self.num_tokens + 31) // 32 * 4

    def check(self, grammar: Grammar) -> None:
        """Raises GrammarError if there is no output that it allows, or it says what is not supported."""
        self._template(grammar)

    def matcher(self, grammar: Grammar) -> LLMatcher:
        """At the beginning of an output. Raises GrammarError."""
        return self._template(grammar).deep_copy()

    def _template(self, grammar: Grammar) -> LLMatcher:
        template = self._compiled.get(grammar)
        if template is None:
            template = self._compiled[grammar] = self._compile(grammar)
            if len(self._compiled) > _MAX_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return template

    def _compile(self, grammar: Grammar) -> LLMatcher:
        if self._tokenizer is None:
            raise GrammarError("this model has no token that ends an output")
        matcher = LLMatcher(self._tokenizer, _as_llguidance(grammar), log_level=0, limits=_LIMITS)
        first = np.frombuffer(matcher.compute_bitmask(), np.uint8)[: self.num_bytes]
        error = matcher.get_error()
        if error and "NoExtension" not in error:
            raise GrammarError(_reason(error))
        if error or is_stuck(matcher) or not (first & self.usable).any():
            raise GrammarError("no text of this model's tokens can match it")
        return matcher

    def _packed(self, token_ids: Sequence[int]) -> NDArray[np.uint8]:
        bits = np.zeros(self.num_bytes * 8, dtype=np.uint8)
        bits[list(token_ids)] = 1
        return np.packbits(bits, bitorder="little")


class _Tokens:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, pieces: Sequence[bytes], eos_token_ids: Sequence[int], encode: Encode) -> None:
        self._pieces = pieces
        self._encode = encode
        self._token_of_piece = {piece: id_ for id_, piece in enumerate(pieces) if piece}
        self._longest = max(map(len, pieces))
        self.eos_token_id = eos_token_ids[0]
        self.special_token_ids = eos_token_ids
        self.tokens = list(pieces)
        for token_id in eos_token_ids:
            self.tokens[token_id] = b"<|ends-%d|>" % token_id  # a name that no grammar thinks of

    def __call__(self, text: bytes) -> list[int]:
        token_ids = list(self._encode(text.decode()))
        if b"".join(self._pieces[id_] for id_ in token_ids) == text:
            return token_ids
        return self._greedy(text)  # SentencePiece may put a blank before the text

    def _greedy(self, text: bytes) -> list[int]:
        token_ids: list[int] = []
        while text:
            sizes = range(min(self._longest, len(text)), 0, -1)
            size = next((size for size in sizes if text[:size] in self._token_of_piece), None)
            if size is None:
                break  # llguidance goes on from what it got
            token_ids.append(self._token_of_piece[text[:size]])
            text = text[size:]
        return token_ids


def is_stuck(matcher: LLMatcher) -> bool:
    """Whether an output can neither go on nor end; known once its next mask was computed."""
    return matcher.is_stopped() and not matcher.is_accepting()


def _as_llguidance(grammar: Grammar) -> str:
    """The grammar in llguidance's notation. Raises GrammarError."""
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return LLMatcher.grammar_from_json_schema(grammar.text, overrides=JSON_OPTIONS)
        case GrammarKind.REGEX:
            return LLMatcher.grammar_from_regex(grammar.text)
        case GrammarKind.CHOICE:
            choices = (json.dumps(choice, ensure_ascii=False) for choice in json.loads(grammar.text))
            return LLMatcher.grammar_from_lark("start: " + " | ".join(choices))
        case GrammarKind.LARK:
            if _TOKEN_BY_ID.search(grammar.text):
                raise GrammarError("tokens cannot be named by their ids")  # it could end an output anywhere
            try:
                return LLMatcher.grammar_from_lark(any_to_lark(grammar.text))
            except Exception as error:  # the converter of GBNF raises plain Exception
                raise GrammarError(f"it cannot be read: {error}") from error


def _reason(error: str) -> str:
    """llguidance's message in one line; its hint at an option that is not offered here goes."""
    if error.startswith("panic"):
        return "llguidance failed on it"
    if "oneOf constraints" in error:
        return "oneOf is supported only where no value can match two of its schemas; use anyOf"
    lines = [line.strip() for line in error.strip().splitlines()]
    return "; ".join(line for line in lines if line and not set(line) <= {"^", " "})[:500]
