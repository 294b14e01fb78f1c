"""What a running prompt tells over the host's websocket, with nothing but the standard library."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import threading
import time
from typing import Any, NamedTuple

from retrace_tests.workflows.server import Server

_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10


class Event(NamedTuple):
    """A message: when it came (time.time()), its type, and its data; the type of a preview picture is "preview"."""

    time: float
    kind: str
    data: Any


class Events:
    """Listens in a thread until closed, as a client id that prompts are queued under; `seen` is all that came."""

    def __init__(self, server: Server, client: str) -> None:
        self.seen: list[Event] = []
        self._news = threading.Condition()
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET /ws?clientId={client} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        status = self._stream.readline()
        if b"101" not in status:
            raise ConnectionError(f"the host must speak websocket, got {status!r}; look at its log.")
        while self._stream.readline() not in (b"\r\n", b""):
            pass
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._thread.join(5)
        self._stream.close()
        self._socket.close()

    def of(self, kind: str) -> list[Event]:
        """The events of one type so far."""
        with self._news:
            return [event for event in self.seen if event.kind == kind]

    def wait(self, kind: str, count: int = 1, seconds: float = 120.0) -> Event:
        """Wait until that many events of a type came, and return the last of them."""
        deadline = time.monotonic() + seconds
        with self._news:
            while True:
                came = [event for event in self.seen if event.kind == kind]
                if len(came) >= count:
                    return came[count - 1]
                if not self._news.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    kinds = [event.kind for event in self.seen][-20:]
                    raise TimeoutError(f"{kind} must come {count} times in {seconds:.0f} s, got {kinds}")

    def _listen(self) -> None:
        while (frame := self._frame()) is not None:
            code, body = frame
            now = time.time()
            if code == _TEXT:
                message = json.loads(body)
                event = Event(now, message["type"], message["data"])
            elif code == _BINARY:
                event = Event(now, "preview", body)
            else:
                continue
            with self._news:
                self.seen.append(event)
                self._news.notify_all()

    def _frame(self) -> tuple[int, bytes] | None:
        body = b""
        first = 0
        while True:
            head = self._stream.read(2)
            if len(head) < 2 or head[0] & 15 == _CLOSE:
                return None
            code, length = head[0] & 15, head[1] & 127
            if length == 126:
                (length,) = struct.unpack(">H", self._stream.read(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self._stream.read(8))
            part = self._stream.read(length)
            if code == _PING:
                mask = os.urandom(4)
                reply = bytes(b ^ mask[i % 4] for i, b in enumerate(part[:125]))
                self._socket.sendall(bytes([128 | _PONG, 128 | len(reply)]) + mask + reply)
                continue
            first = first or code
            body += part
            if head[0] & 128:
                return first, body
