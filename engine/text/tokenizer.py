"""The model's own tokenizer: text and conversations to token ids, and back."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from engine.errors import ChatTemplateError, ModelNotUsable
from engine.request import Grammar, TokenIds
from engine.text.grammar import Grammars


class Tokenizer:
    """The tokenizer of a model directory. For use by one thread at a time.

    eos_token_ids: tokens that end a sequence: the generation config's and the tokenizer's own.
    special_token_ids: tokens that decode to nothing.
    vocab_size: number of tokens, added ones included.
    """

    def __init__(self, model_dir: Path) -> None:
        """Raises ModelNotUsable if the directory's tokenizer cannot be read."""
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                model_dir, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the tokenizers library raises plain Exception for a broken file
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelNotUsable(
                f"The tokenizer in {model_dir} cannot be read ({first_line}): fetch the model again."
            ) from error
        self.vocab_size = len(self._tokenizer)
        self.special_token_ids = frozenset(self._tokenizer.all_special_ids)
        self.eos_token_ids = _generation_eos(model_dir) | _as_ids(self._tokenizer.eos_token_id)
        decoder = self._tokenizer.backend_tokenizer.decoder
        self._is_byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()
        self._added_tokens = frozenset(self._tokenizer.get_added_vocab())
        control_tokens = sorted(self._added_tokens, key=len, reverse=True)
        self._control_token = re.compile("|".join(map(re.escape, control_tokens)) or "(?!)")

    @cached_property
    def grammars(self) -> Grammars:
        """Grammars over these tokens; those that decode to nothing can only end an output."""
        hidden = self.special_token_ids | {
            token_id for token_id, token in self._tokenizer.added_tokens_decoder.items() if token.special
        }
        pieces = [b"" if id_ in hidden else self.token_bytes(id_) for id_ in range(self.vocab_size)]
        return Grammars(pieces, self.eos_token_ids, self._encode_as_text)

    def _encode_as_text(self, text: str) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return list(map(int, ids))

    def check_grammar(self, grammar: Grammar) -> None:
        """Raises GrammarError if no output of this model can be held to it."""
        self.grammars.check(grammar)

    def encode(self, text: str) -> TokenIds:
        """Token ids of a plain prompt, with the special tokens this tokenizer adds (a bos, usually)."""
        return np.asarray(self._tokenizer(text)["input_ids"], np.int32)

    def encode_markup(self, text: str) -> TokenIds:
        """Token ids of text that a chat template writes: control tokens in it are control tokens."""
        return np.asarray(self._tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

    @property
    def chat_template(self) -> str:
        """The template that conversations with tools are rendered by; empty if there is none."""
        template = self._tokenizer.chat_template or ""
        if isinstance(template, dict):  # several, by name
            template = template.get("tool_use", template.get("default", ""))
        return str(template)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> TokenIds:
        """Token ids of a conversation by the model's chat template, up to where its answer begins.

        tools: functions that the answer may call, as OpenAI describes them.
        Text in a message that spells a control token stays text. Raises ChatTemplateError if the
        model has no template, or the template does not take this conversation or would drop a part of it.
        """
        if not self._tokenizer.chat_template:
            raise ChatTemplateError("This model has no chat template; use /v1/completions.")
        if tools and not self._knows_tools:
            raise ChatTemplateError("The model's chat template knows no tools.")
        if any(message.get("tool_calls") for message in messages) and not self._knows_calls:
            raise ChatTemplateError("The model's chat template shows no 'tool_calls' of earlier messages.")
        # Marking control tokens costs a third on top, so only conversations that contain one pay it.
        sanitize = self._has_control_token(messages) or self._has_control_token(tools)
        try:
            token_ids = self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) if tools else None,
                add_generation_prompt=True,
                return_dict=False,
                sanitize_control_tokens=sanitize,
            )
        except Exception as error:  # a template is the model's own program and raises what it likes
            raise ChatTemplateError(
                f"The model's chat template rejects this conversation: {error}"
            ) from error
        return np.asarray(token_ids, np.int32)

    @cached_property
    def _knows_tools(self) -> bool:
        return _PROBE in self._rendered([{"role": "user", "content": "Hi"}], [_tool(_PROBE)])

    @cached_property
    def _knows_calls(self) -> bool:
        """Whether the name of a function that was called stands in what is rendered."""
        call = {"id": "probe0001", "type": "function", "function": {"name": _PROBE, "arguments": {}}}
        conversation: list[dict[str, Any]] = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "probe0001", "name": "another", "content": "Hi"},
        ]
        return _PROBE in self._rendered(conversation, [_tool("another")])

    def _rendered(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        """Empty if the template does not take it."""
        try:
            return str(self._tokenizer.apply_chat_template(messages, tools=tools, tokenize=False))
        except Exception:
            return ""

    def decode(self, token_ids: Sequence[int] | NDArray[np.int32]) -> str:
        """The text of these tokens, special tokens left out; bytes that are no UTF-8 become U+FFFD."""
        text: str = self._tokenizer.decode(
            np.asarray(token_ids).tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; of a control token its spelling, of an unused id none."""
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if piece is None:
            return b""
        if piece in self._added_tokens:
            return str(piece).encode()
        if self._is_byte_level:
            return bytes(_BYTE_OF_CHARACTER[character] for character in piece)
        if byte := re.fullmatch(
            "<0x([0-9A-F]{2})>", piece
        ):  # how SentencePiece spells what it has no word for
            return bytes.fromhex(byte[1])
        return str(piece).replace("\u2581", " ").encode()

    def _has_control_token(self, value: Any) -> bool:
        if isinstance(value, str):
            return self._control_token.search(value) is not None
        if isinstance(value, Mapping):
            return any(map(self._has_control_token, value.values()))
        return isinstance(value, Sequence) and any(map(self._has_control_token, value))


_PROBE = "probe_of_the_template"


def _tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {"name": name, "description": "A test.", "parameters": parameters},
    }


def _byte_of_character() -> dict[str, int]:
    """How byte-level BPE spells bytes: printable Latin-1 as itself, the rest from U+0100 on (GPT-2)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()


def _generation_eos(model_dir: Path) -> frozenset[int]:
    file = model_dir / "generation_config.json"
    if not file.is_file():
        return frozenset()
    try:
        return _as_ids(json.loads(file.read_bytes()).get("eos_token_id"))
    except (ValueError, AttributeError) as error:
        raise ModelNotUsable(f"{file} is not a JSON object: fetch the model again.") from error


def _as_ids(value: int | list[int] | None) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)
