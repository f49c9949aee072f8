"""uvicorn's HTTP protocol, with a limit that it lacks."""

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 64 * 1024


class BoundedProtocol(HttpToolsProtocol):
    """Refuses a request whose line, headers or trailers never end: the parser keeps them in memory,
    and whoever sends them has shown no key yet. Bodies have limits of their own."""

    _head_bytes = 0  # that came since a message ended or a part of a body came

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"A request's head may have at most {MAX_HEAD_BYTES} bytes.")

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of a request."""
        self._head_bytes = 0
        super().on_message_complete()
