"""A local server that sends whatever bytes a test wants, whatever was asked."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field


@dataclass
class RawServer:
    """
    Args:
        port: Where it listens on 127.0.0.1.
        requests: What was sent to it, one text per connection, without bodies.
    """

    port: int
    requests: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


Respond = Callable[[str], bytes | Iterable[bytes]]


@contextlib.contextmanager
def raw_server(respond: Respond | bytes) -> Iterator[RawServer]:
    """Serve while the block runs. `respond` gets the head of a request and returns bytes, or yields parts of them."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = RawServer(listener.getsockname()[1])

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            head = b""
            while b"\r\n\r\n" not in head and (part := connection.recv(65536)):
                head += part
            text = head.partition(b"\r\n\r\n")[0].decode("latin-1")
            server.requests.append(text)
            content = respond if isinstance(respond, bytes) else respond(text)
            for part in [content] if isinstance(content, bytes) else content:
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):  # a reset would lose what was sent
                pass

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server
    finally:
        listener.close()


def response(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    """Return a response; underscores in the names of headers are dashes."""
    given = {"Content_Length": str(len(body)), **headers}
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in given.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def slowly(content: bytes, seconds: float = 0.05) -> Iterator[bytes]:
    """Yield single bytes with pauses."""
    for number in range(len(content)):
        yield content[number : number + 1]
        time.sleep(seconds)


def endless(head: bytes, part: bytes) -> Iterator[bytes]:
    """Yield a part again and again."""
    yield head
    while True:
        yield part
