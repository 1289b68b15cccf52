"""Chat templates with tools in the manner of three families, and tokenizers that have their markers."""

from pathlib import Path

from transformers import AddedToken

from tests.models import CHAT_TEMPLATE, save_tiny_model, tiny_config, tiny_tokenizer

_TURN = "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
_END = "{{ '<|im_end|>' + '\\n' }}"
_ANSWER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

HERMES_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n"
    "You may call these functions: {% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    'To call one, write\n<tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n{% endif %}'
    "{% for message in messages %}"
    "{% if message.role == 'tool' and not message.name %}{{ raise_exception('a name is wanted') }}{% endif %}"
    + _TURN
    + "{% for call in message.tool_calls or [] %}"
    '\n<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}" + _END + "{% endfor %}" + _ANSWER
)
LLAMA_TEMPLATE = (
    "{% if tools %}<|start_header_id|>system<|end_header_id|>\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{% for message in messages %}"
    "{% if message.tool_calls %}"
    "{% if message.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    "{% set call = message.tool_calls[0].function %}<|start_header_id|>assistant<|end_header_id|>\n"
    '{"name": "{{ call.name }}", {{ \'"parameters": \' }}{{ call.arguments | tojson }}}<|im_end|>'
    "{% else %}" + _TURN + _END + "{% endif %}{% endfor %}" + _ANSWER
)
MISTRAL_TEMPLATE = (
    "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{% for message in messages %}{% if message.tool_calls %}[TOOL_CALLS]["
    "{% for call in message.tool_calls %}"
    "{% if call.id | length != 9 %}{{ raise_exception('ids have 9 letters') }}{% endif %}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, '
    '"id": "{{ call.id }}"}{% if not loop.last %}, {% endif %}{% endfor %}]'
    "{% else %}" + _TURN + _END + "{% endif %}{% endfor %}" + _ANSWER
)
PLAIN_TEMPLATE = CHAT_TEMPLATE

# Of each family the template, and its markers with whether decoding leaves them out.
FAMILIES: dict[str, tuple[str, dict[str, bool]]] = {
    "hermes": (HERMES_TEMPLATE, {"<tool_call>": False, "</tool_call>": False}),
    "llama": (LLAMA_TEMPLATE, {"<|python_tag|>": True}),
    "mistral": (MISTRAL_TEMPLATE, {"[TOOL_CALLS]": True}),
}


def save_tool_model(path: Path, family: str) -> Path:
    """A tiny model with random weights whose template and markers are those of the family."""
    save_tiny_model(path, tiny_config(vocab_size=328, max_position_embeddings=2048))
    template, markers = FAMILIES[family]
    tokenizer = tiny_tokenizer()
    for marker, is_special in markers.items():
        tokenizer.add_tokens(
            [AddedToken(marker, special=is_special, normalized=False)], special_tokens=is_special
        )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    return path
