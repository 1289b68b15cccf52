"""What every request body has in common: the error it can end in, and the readers of its fields.

A body is plain JSON. Readers raise `BodyRefused`, which never leaves this package: the parsers of
the endpoints catch it and return the `BodyError` as a value.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol, TypeVar

from app.openai.tool_formats import Calling
from engine.request import Grammar, Request, SamplingParams, TokenIds

Json = Mapping[str, Any]
# Between the seeds of siblings: so far that no seeds which people count up meet (2**64 / golden ratio).
_SEED_STEP = 0x9E3779B97F4A7C15

T = TypeVar("T")
D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class BodyError:
    """Why a line has no answer, as OpenAI words it: an HTTP status and the error envelope."""

    message: str
    param: str | None = None
    code: str | None = None
    status: int = 400
    type: str = "invalid_request_error"

    def as_body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class BodyRefused(Exception):
    def __init__(self, error: BodyError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True)
class EmbeddingForm:
    """What the answer makes of the prompts' embeddings, or of the scores of a model that generates.

    size: numbers shown of each, which is then scaled to length 1 again if `normalises`.
    num_queries: how many of the first prompts are compared with the others; 0: nothing is.
    top_n: most results; documents: what each result shows beside its score, None: nothing.
    """

    is_base64: bool = False
    size: int | None = None
    normalises: bool = False
    num_queries: int = 0
    top_n: int | None = None
    documents: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Translated:
    """A body in the engine's words: some samples of each of its prompts.

    model: the name that the body asked for.
    prompts: each int32 [num_prompt_tokens], at least one token.
    sampling: of the first sample; the others differ in their seed.
    num_samples: of each prompt.
    num_choices: of each prompt, how many of its samples are the answer: the likeliest if it is not all.
    has_logprobs: whether the answer shows them.
    echo: what the answer shows before each prompt's choices; empty: nothing.
    embedding: of a body that asks for no text.
    calling: of a body whose answers may call tools.
    shown: what the answer repeats of the body; None: nothing.
    num_yes: how many of the first `sampling.logprobs_of` mean yes, the rest no.
    """

    model: str
    prompts: tuple[TokenIds, ...]
    sampling: SamplingParams
    num_samples: int = 1
    num_choices: int = 1
    has_logprobs: bool = False
    echo: tuple[str, ...] = ()
    embedding: EmbeddingForm | None = None
    calling: Calling | None = None
    shown: Json | None = None
    num_yes: int = 0

    @property
    def num_requests(self) -> int:
        return len(self.prompts) * self.num_samples

    def requests(self, request_ids: Iterable[int]) -> list[Request]:
        """The samples as requests of the engine: all of the first prompt, then all of the second, ..."""
        return [
            Request(
                request_id,
                self.prompts[index // self.num_samples],
                replace(self.sampling, seed=(self.sampling.seed + index * _SEED_STEP) % 2**64),
            )
            for index, request_id in zip(range(self.num_requests), request_ids, strict=True)
        ]


class PromptTokenizer(Protocol):
    """What translation needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> TokenIds: ...

    def decode(self, token_ids: TokenIds) -> str: ...

    @property
    def chat_template(self) -> str: ...

    def encode_markup(self, text: str) -> TokenIds: ...

    def render_chat(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> TokenIds: ...

    def check_grammar(self, grammar: Grammar) -> None: ...


@dataclass(frozen=True, slots=True)
class TranslationContext:
    """What a body is read against.

    max_context: most tokens of prompt and output together.
    default_max_tokens: output bound of a chat body that names none; None: the rest of the context.
    embedding_size: numbers of an embedding, which are scaled to length 1 if `normalises`; None: it generates.
    """

    tokenizer: PromptTokenizer
    max_context: int
    default_max_tokens: int | None = None
    embedding_size: int | None = None
    normalises: bool = False


def refuse(message: str, param: str | None, code: str) -> NoReturn:
    raise BodyRefused(BodyError(message, param, code))


_JSON_TYPES: dict[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def wrong_type(param: str, expected: str, value: object) -> NoReturn:
    got = _JSON_TYPES[type(value)]
    refuse(f"Invalid type for '{param}': expected {expected}, but got {got} instead.", param, "invalid_type")


def boolean(param: str, value: object) -> bool:
    if not isinstance(value, bool):
        wrong_type(param, "a boolean", value)
    return value


def string(param: str, value: object) -> str:
    if not isinstance(value, str):
        wrong_type(param, "a string", value)
    return value


def array(param: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        wrong_type(param, "an array", value)
    return value


def json_object(param: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        wrong_type(param, "an object", value)
    return value


def anything(param: str, value: object) -> object:
    return value


def integer(low: int, high: int | None = None) -> Callable[[str, object], int]:
    """Reader of an integer in low..high, both included."""

    def read(param: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            wrong_type(param, "an integer", value)
        _check_range("integer", param, value, low, high)
        return value

    return read


def number(low: float, high: float) -> Callable[[str, object], float]:
    """Reader of a number in low..high, both included."""

    def read(param: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            wrong_type(param, "a decimal number", value)
        _check_range("decimal", param, value, low, high)
        return float(value)

    return read


def _check_range(kind: str, param: str, value: float, low: float, high: float | None) -> None:
    if value < low:
        below = f"Invalid '{param}': {kind} below minimum value. Expected a value >= {low}, "
        refuse(f"{below}but got {value} instead.", param, "invalid_value")
    if high is not None and value > high:
        above = f"Invalid '{param}': {kind} above maximum value. Expected a value <= {high}, "
        refuse(f"{above}but got {value} instead.", param, "invalid_value")


def required(body: Json, name: str, reader: Callable[[str, object], T]) -> T:
    """The field's value; absent or null is an error."""
    value = body.get(name)
    if value is None:
        refuse(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    return reader(name, value)


def required_at(param: str, fields: Json, name: str, reader: Callable[[str, object], T]) -> T:
    """The same of an object within the body, which stands at `param`."""
    where = f"{param}.{name}"
    return required({where: fields.get(name)}, where, reader)


def optional(body: Json, name: str, reader: Callable[[str, object], T], default: D) -> T | D:
    """The field's value; absent or null is the default."""
    value = body.get(name)
    return default if value is None else reader(name, value)
