"""A tenant of its own for every test."""

import openai
import pytest

from tests.live import Live


@pytest.fixture
def client(live: Live) -> openai.OpenAI:
    """The SDK with its own retries."""
    return live.client()
