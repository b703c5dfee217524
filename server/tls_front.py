"""A second door to the API, for programs that can be told nothing but an https proxy: fal's own addresses lead here.

`HTTPS_PROXY` makes a client ask this port for a connection to one of fal's hosts. It gets one to us, under a
certificate for these names, and calls fal's API at the root as ever. Nobody is ever called.
"""

import asyncio
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

import uvicorn
from starlette.applications import Starlette

from server.api import api_routes
from server.calls import ApiServices
from server.certificates import Certificate
from server.proxy import MOUNTS

HTTPS_PORT = "443"
HEAD_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 3  # for calls under way
CHUNK_BYTES = 64 * 1024
EVERYWHERE = ("0.0.0.0", "::", "[::]")  # noqa: S104 - what a person may have asked for; nothing listens here

_CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class TlsFront:
    """The proxy's port and the TLS listener behind it, in a thread of their own: Gradio starts its server by itself."""

    def __init__(self, services: ApiServices, certificate: Certificate, listener: socket.socket) -> None:
        """Take the port that clients have as their HTTPS_PROXY, as a bound socket, which is ours from here on."""
        self._certificate = certificate
        self._listener = listener
        config = uvicorn.Config(
            Starlette(routes=api_routes(_reachable(services))),
            ssl_certfile=certificate.server,
            log_level="warning",
            lifespan="off",
            ws="none",
            proxy_headers=False,  # all callers seem to be on this machine; what they say of others proves nothing
            timeout_graceful_shutdown=STOP_TIMEOUT_S,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="fal proxy", daemon=True)

    @property
    def environment(self) -> Mapping[str, str]:
        """Give the variables that point a client here, beside its FAL_KEY."""
        host, port = self._listener.getsockname()[:2]
        host = "localhost" if host in EVERYWHERE else f"[{host}]" if ":" in host else host
        return {"HTTPS_PROXY": f"http://{host}:{port}", "SSL_CERT_FILE": str(self._certificate.authority)}

    def __enter__(self) -> Self:
        """Begin to serve, and say how to get here."""
        self._listener.listen()
        self._thread.start()
        variables = " ".join(f"{name}={value}" for name, value in self.environment.items())
        sys.stdout.write(f"* Programs written for fal's Python client come here with: {variables} FAL_KEY=...\n")
        sys.stdout.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and wait until it is so."""
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()

    async def _serve(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as inner:
            door = await open_proxy(self._listener, inner.getsockname())
            try:
                await self._server.serve(sockets=[inner])
            finally:
                door.close()


async def open_proxy(listener: socket.socket, inner: tuple[str, int]) -> asyncio.Server:
    """Answer the callers of the proxy's port. inner: where those who want one of fal's hosts are led."""
    # Nothing else holds the call of a client that has sent all it will: it would be collected as garbage halfway.
    calls: set[asyncio.Task[None] | None] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.add(call := asyncio.current_task())
        try:
            await _answer(reader, writer, inner)
        finally:
            calls.discard(call)

    return await asyncio.start_server(answer, sock=listener)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, inner: tuple[str, int]) -> None:
    """Answer one caller of the proxy's port."""
    try:
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
        if not leads_to_fal(head):
            writer.write(_refusal())
            await writer.drain()
            return
        inner_reader, inner_writer = await asyncio.open_connection(*inner)
        try:
            writer.write(_CONNECTED)
            await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))
        finally:
            inner_writer.close()
    except (OSError, EOFError, asyncio.LimitOverrunError):
        return  # a caller who went away, was too slow, or speaks something else
    finally:
        writer.close()


def leads_to_fal(head: bytes) -> bool:
    """Say whether a proxy's caller wants a connection to the https port of one of fal's hosts.

    head: its request up to the empty line, such as `CONNECT queue.fal.run:443 HTTP/1.1`; only the first line counts.
    """
    method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
    host, _, port = rest.partition(" ")[0].rpartition(":")
    return method == "CONNECT" and port == HTTPS_PORT and host.lower() in MOUNTS


def _refusal() -> bytes:
    body = f"This proxy leads to {', '.join(MOUNTS)} on port {HTTPS_PORT} only.\n".encode()
    head = "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand on what comes until it ends or breaks, and then its end."""
    with suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        if not writer.is_closing():
            writer.write_eof()


def _reachable(services: ApiServices) -> ApiServices:
    """Give services whose answers hold addresses that a client behind this proxy can follow.

    It sends every https call through the proxy, which leads to fal's names alone, and trusts our authority alone. So an
    https address of ours is of no use to it, and answers hold the name it called, below which all routes work too: that
    is what happens without a public address. Plain http passes by the proxy: such a public address stays, and is the
    better one, as other programs can open it as well.
    """
    if services.public_url is None or services.public_url.startswith("http:"):
        return services
    return replace(services, public_url=None)
