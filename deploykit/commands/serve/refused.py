"""A request that gets no answer, and why."""

from __future__ import annotations

from collections.abc import Mapping


class RefusedError(Exception):
    """A request that is refused: what its client, or the server's load, is the reason for.

    Args:
        status: The HTTP status, 400 to 599.
        message: What is wrong, with the values, for the client.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})


class GoneError(Exception):
    """The client closed the connection before its request was whole."""
