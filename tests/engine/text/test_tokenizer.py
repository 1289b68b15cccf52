import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ChatTemplateError, ModelNotUsable
from engine.text.tokenizer import Tokenizer
from tests.models import SPECIAL_TOKENS, tiny_tokenizer
from tests.tool_templates import FAMILIES

ENDOFTEXT, IM_START, IM_END = range(3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(path)
    return Tokenizer(path)


def test_a_conversation_is_rendered_by_the_template(tokenizer: Tokenizer) -> None:
    ids = tokenizer.render_chat([{"role": "user", "content": "Hi"}])
    assert ids.dtype == np.int32
    assert ids.tolist() == [
        IM_START,
        *tokenizer.encode("user\nHi"),
        IM_END,
        *tokenizer.encode("\n"),
        IM_START,
        *tokenizer.encode("assistant\n"),
    ]


@given(
    st.lists(st.sampled_from([*SPECIAL_TOKENS, "Hi", " ", "<|im_", "end|>", "é"]), max_size=6).map("".join)
)
def test_user_text_never_becomes_a_control_token(tokenizer: Tokenizer, content: str) -> None:
    ids = tokenizer.render_chat([{"role": "user", "content": content}])
    assert np.count_nonzero(ids == IM_START) == 2
    assert np.count_nonzero(ids == IM_END) == 1
    assert np.count_nonzero(ids == ENDOFTEXT) == 0
    without_ends = ids[1:][~np.isin(ids[1:], [IM_START, IM_END])]
    assert tokenizer.decode(without_ends) == f"user\n{content}\nassistant\n"


def test_a_sanitised_conversation_leaves_no_trace_on_the_next(tokenizer: Tokenizer) -> None:
    before = tokenizer.render_chat([{"role": "user", "content": "Hi"}])
    tokenizer.render_chat([{"role": "user", "content": "<|im_end|>"}])
    assert tokenizer.render_chat([{"role": "user", "content": "Hi"}]).tolist() == before.tolist()
    assert tokenizer.encode("<|im_end|>").tolist() == [IM_END]


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "user", "content": [{"type": "text"}]}])
def test_a_conversation_the_template_cannot_take_is_rejected(
    tokenizer: Tokenizer, message: dict[str, object]
) -> None:
    with pytest.raises(ChatTemplateError, match="rejects this conversation"):
        tokenizer.render_chat([message])


def test_a_model_without_template_says_so(tmp_path: Path) -> None:
    plain = tiny_tokenizer()
    plain.chat_template = None
    plain.save_pretrained(tmp_path)
    with pytest.raises(ChatTemplateError, match="no chat template"):
        Tokenizer(tmp_path).render_chat([{"role": "user", "content": "Hi"}])


def test_decoding_leaves_special_tokens_out(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("Paris is 42 , it 's<|im_end|>")) == "Paris is 42 , it 's"


def test_end_tokens_come_from_generation_config_and_tokenizer(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    assert Tokenizer(tmp_path).eos_token_ids == {IM_END}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    assert Tokenizer(tmp_path).eos_token_ids == {ENDOFTEXT, IM_END, 7}


@pytest.mark.parametrize("broken", ["tokenizer.json", "generation_config.json"])
def test_a_broken_tokenizer_is_one_sentence(tmp_path: Path, broken: str) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / broken).write_text("{cut")
    with pytest.raises(ModelNotUsable, match="fetch the model again"):
        Tokenizer(tmp_path)


def test_the_real_model_splits_white_space_and_digits_as_its_original(smollm2_dir: Path) -> None:
    tokenizer = Tokenizer(smollm2_dir)
    pieces = [tokenizer.decode([token_id]) for token_id in tokenizer.encode("a  12\n  5")]
    assert pieces == ["a", "  ", "1", "2", "\n  ", "5"]
    assert tokenizer.eos_token_ids == {2}
    assert tokenizer.vocab_size == 49152
    prompt = tokenizer.render_chat([{"role": "user", "content": "Hi"}])
    assert prompt[:4].tolist() == [1, 9690, 198, 2683]


@pytest.mark.parametrize("family", FAMILIES)
def test_templates_that_know_tools_show_them(tmp_path: Path, family: str) -> None:
    tokenizer = _with_template(tmp_path, FAMILIES[family][0])
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    user = {"role": "user", "content": "Hi <|im_end|>"}
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "called", "arguments": {"a": 5}}}
    conversation = [user, {"role": "assistant", "content": "", "tool_calls": [call]}]
    shown = tokenizer.decode(tokenizer.render_chat(conversation, [tool]))
    assert "look_up" in shown
    assert '"a": 5' in shown
    assert "<|im_end|>" in shown  # as text: decoding leaves out what is a control token
    assert "look_up" not in tokenizer.decode(tokenizer.render_chat([user]))


def test_templates_that_drop_tools_refuse_them(tokenizer: Tokenizer) -> None:
    user = {"role": "user", "content": "Hi"}
    with pytest.raises(ChatTemplateError, match="no tools"):
        tokenizer.render_chat([user], [{"type": "function", "function": {"name": "f"}}])
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {}}}
    with pytest.raises(ChatTemplateError, match="tool_calls"):
        tokenizer.render_chat([user, {"role": "assistant", "content": "", "tool_calls": [call]}])


def test_of_several_templates_the_one_for_tools_is_told(tmp_path: Path) -> None:
    tokenizer = _with_template(tmp_path, {"default": "plain", "tool_use": "with tools"})
    assert tokenizer.chat_template == "with tools"
    assert _with_template(tmp_path / "none", None).chat_template == ""


def test_markup_has_control_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_markup("<|im_start|>Hi").tolist() == [IM_START, *tokenizer.encode("Hi")]


def _with_template(path: Path, template: str | dict[str, str] | None) -> Tokenizer:
    plain = tiny_tokenizer()
    plain.chat_template = template
    plain.save_pretrained(path)
    return Tokenizer(path)
