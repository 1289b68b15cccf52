"""Log probabilities in the two shapes that the endpoints have for them."""

from collections.abc import Sequence
from typing import Any

from engine.request import TokenLogprob

_VERY_UNLIKELY = -9999.0  # JSON has no minus infinity


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Of a chat choice. A token that is no whole text has U+FFFD in it; its bytes say what it is."""
    content = [
        _chat_token(token.token, token.logprob)
        | {"top_logprobs": [_chat_token(*likely) for likely in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _chat_token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(token)}


def completion_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Of a choice of a text completion, as parallel lists; the chosen token is always beside the likeliest.

    A token that is no whole text is spelled `bytes:\\xe2\\x80`, so that each has a name of its own.
    """
    return {
        "tokens": [_name(token.token) for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [
            {
                _name(likely): _finite(logprob)
                for likely, logprob in (*token.top, (token.token, token.logprob))
            }
            for token in tokens
        ],
        "text_offset": [token.offset for token in tokens],
    }


def _name(token: bytes) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _finite(logprob: float) -> float:
    return max(logprob, _VERY_UNLIKELY)
