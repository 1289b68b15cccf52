"""The server of the API's tests serves the pages too."""

from tests.app.api.conftest import server

__all__ = ["server"]
