"""Grammars over a tiny tokenizer: which tokens may come, where an output may end, what is refused."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import GrammarError
from engine.request import Grammar, GrammarKind
from engine.text.grammar import Grammars, is_stuck

SCHEMA, REGEX, CHOICE, LARK = GrammarKind
HIDDEN, END, OTHER_END, NOTHING = 256, 257, 258, 259
PIECES = [*(bytes([byte]) for byte in range(256)), b"", b"", b"", b"", b'{"', b'":', b"ab"]
GRAMMARS = Grammars(PIECES, {END, OTHER_END}, str.encode)


def _after(grammar: Grammar, text: str, grammars: Grammars = GRAMMARS) -> set[int] | None:
    """Tokens that may follow the text; None if the grammar does not take the text."""
    matcher = grammars.matcher(grammar)
    if not matcher.consume_tokens(list(text.encode())):
        return None
    mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)[: grammars.num_bytes]
    assert not is_stuck(matcher)
    return set(np.flatnonzero(np.unpackbits(mask & grammars.usable, bitorder="little")).tolist())


def takes(grammar: Grammar, text: str) -> bool:
    """Whether an output may be this text and end."""
    tokens = _after(grammar, text)
    assert tokens is None or ({END, OTHER_END} <= tokens) == bool({END, OTHER_END} & tokens)
    return tokens is not None and END in tokens


def schema(**fields: object) -> Grammar:
    return Grammar(SCHEMA, json.dumps(fields))


PERSON = schema(
    type="object",
    properties={"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "maximum": 150}},
    required=["name", "age"],
    additionalProperties=False,
)


@pytest.mark.parametrize(
    ("grammar", "taken", "not_taken"),
    [
        (PERSON, ['{"name":"Ann","age":7}', '{"name": "Ann",\n  "age": -7}'], ['{"name":"Ann"}', "{}", ""]),
        (PERSON, [], ['{"name":"Annika","age":7}', '{"name":"A","age":151}', '{"name":"A","age":7,"x":1}']),
        (schema(type="object"), ["{}", '{"a": [1, null, {"b": "\\n"}]}'], ["[]", "1", '{"a"}', '{"a": 01}']),
        (schema(enum=["a", 5, None]), ['"a"', "5", "null"], ["a", "6", '"b"']),
        (schema(oneOf=[{"type": "string"}, {"type": "integer"}]), ['"a"', "5"], ["true"]),
        (Grammar(REGEX, r"[ab]{2}\d?"), ["ab", "ba7"], ["a", "abc", "ab77"]),
        (Grammar(REGEX, r"/\w+ ü"), ["/x ü"], ["/ ü"]),
        (Grammar(CHOICE, json.dumps(["yes", 'no\n"\\', "é😀"])), ["yes", 'no\n"\\', "é😀"], ["y", "no", "é"]),
        (Grammar(LARK, 'start: "a" b\nb: /[0-9]/+'), ["a1", "a12"], ["a", "1"]),
        (Grammar(LARK, 'root ::= "a" b\nb ::= [0-9]+'), ["a1", "a12"], ["a", "1"]),
    ],
)
def test_an_output_is_what_the_grammar_says(grammar: Grammar, taken: list[str], not_taken: list[str]) -> None:
    for text in taken:
        assert takes(grammar, text), text
    for text in not_taken:
        assert not takes(grammar, text), text


# What JSON lets stand for itself; llguidance wants U+007F escaped.
_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=["\x7f"]))


@given(st.recursive(st.none() | st.booleans() | st.integers() | _TEXTS, lambda inner: st.lists(inner)))
def test_any_json_passes_a_schema_that_asks_for_nothing(value: object) -> None:
    assert takes(schema(), json.dumps(value, ensure_ascii=False))


def test_blanks_in_json_are_few() -> None:
    assert takes(PERSON, '{\n    "name" : "Ann",\n    "age": 7\n}')
    for text in ('{  "name', "{\n\n", "{\n" + " " * 17, " {", '{"name":"Ann","age":7} ', "{\t"):
        assert _after(PERSON, text) is None, text
    # A schema cannot ask for more of them, nor for keywords to be passed over.
    loose = {"type": "object", "x-guidance": {"whitespace_flexible": True, "lenient": True}}
    assert _after(schema(**loose), "{  ") is None
    with pytest.raises(GrammarError, match="not"):
        GRAMMARS.check(schema(**loose, **{"not": {}}))


def test_only_a_complete_output_can_end_and_nothing_else_can_follow_it() -> None:
    assert _after(PERSON, '{"name":"Ann","age":7}') == {END, OTHER_END}
    assert _after(Grammar(REGEX, "a+"), "a") == {ord("a"), END, OTHER_END}


def test_tokens_longer_than_a_byte_come_where_they_fit() -> None:
    assert PIECES.index(b'{"') in (_after(PERSON, "") or set())
    assert PIECES.index(b'":') in (_after(PERSON, '{"name') or set())


def test_hidden_tokens_never_come() -> None:
    free = _after(Grammar(REGEX, r"(?s).*"), "a")
    assert free is not None
    assert free.isdisjoint({HIDDEN, NOTHING})
    assert len(free) > 100
    for named in ("<[256]>", "<[258]>", "<|ends-2|>", "<|im_end|>"):
        with pytest.raises(GrammarError):
            GRAMMARS.check(Grammar(LARK, f'start: {named} "a"'))


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (schema(type="frob"), "frob"),
        (schema(type="integer", minimum=5, maximum=3), "minimum"),
        (schema(enum=[]), "empty"),
        (schema(**{"not": {"type": "string"}}), "not"),
        (schema(type="array", uniqueItems=True), "uniqueItems"),
        (schema(type="string", format="idn-email"), "idn-email"),
        (schema(type="string", pattern="(?=a)b"), "look-a"),
        (schema(**{"$ref": "#/$defs/missing"}), "missing"),
        (schema(**{"$ref": "#"}), "no text"),
        (schema(oneOf=[{"type": "string"}, {"maxLength": 3}]), "anyOf"),
        (schema(properties={"a": False}, required=["a"], type="object"), "'a'"),
        (Grammar(REGEX, "[a-z"), "unclosed"),
        (Grammar(REGEX, "(?=a)b"), "look-a"),
        (Grammar(REGEX, r"[^\s\S]"), "no text"),
        (Grammar(REGEX, "(" * 5_000 + "a" + ")" * 5_000), "regex"),
        (Grammar(LARK, "start: nothing"), "nothing"),
        (Grammar(LARK, 'start: start "a"'), "no text"),
        (Grammar(LARK, "start: " + "(" * 20_000 + '"a"'), "nested"),
        (Grammar(LARK, "hello"), ""),
        (Grammar(LARK, ""), ""),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(grammar: Grammar, words: str) -> None:
    with pytest.raises(GrammarError) as refused:
        GRAMMARS.check(grammar)
    assert words in str(refused.value)
    assert len(str(refused.value)) <= 600
    assert "\n" not in str(refused.value)


def test_a_grammar_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = Grammars(PIECES, {END}, str.encode)
    compiled = []
    compile_ = grammars._compile
    monkeypatch.setattr(grammars, "_compile", lambda grammar: compiled.append(grammar) or compile_(grammar))
    for _ in range(3):
        grammars.check(schema(type="integer"))
        grammars.matcher(schema(type="integer"))
    assert len(compiled) == 1
    for number in range(300):
        grammars.check(Grammar(CHOICE, f'["{number}"]'))
    grammars.check(Grammar(CHOICE, '["299"]'))
    assert len(compiled) == 301
    grammars.check(schema(type="integer"))  # the oldest made room
    assert len(compiled) == 302


def test_without_a_token_that_ends_outputs_there_are_no_grammars() -> None:
    with pytest.raises(GrammarError, match="ends"):
        Grammars(PIECES, (), str.encode).check(PERSON)
