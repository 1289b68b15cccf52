"""The endpoints a batch can name, each with its two translations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.openai.body import BodyError, Json, Translated, TranslationContext
from app.openai.chat import chat_body, parse_chat
from app.openai.completions import completion_body, parse_completion
from app.openai.embeddings import embeddings_body, parse_embeddings
from app.openai.ranking import (
    parse_rerank,
    parse_score,
    rerank_body,
    score_body,
)
from app.openai.responses import parse_response, response_body
from engine.request import Completion


class ResponseBuilder(Protocol):
    def __call__(
        self,
        asked: Translated,
        completions: Sequence[Completion],
        *,
        response_id: str,
        created: int,
        fingerprint: str,
    ) -> dict[str, Any]: ...


class BodyParser(Protocol):
    def __call__(
        self, body: Json, context: TranslationContext, *, seed_key: str
    ) -> Translated | BodyError: ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """parse: request body to the engine's words. respond: completions of its requests to response body."""

    parse: BodyParser
    respond: ResponseBuilder


ENDPOINTS = {
    "/v1/chat/completions": Endpoint(parse_chat, chat_body),
    "/v1/completions": Endpoint(parse_completion, completion_body),
    "/v1/embeddings": Endpoint(parse_embeddings, embeddings_body),
    "/v1/score": Endpoint(parse_score, score_body),
    "/v1/responses": Endpoint(parse_response, response_body),
    "/v1/rerank": Endpoint(parse_rerank, rerank_body),
}
