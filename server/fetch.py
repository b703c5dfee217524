"""Requests to addresses that users name: inputs to fetch, webhooks to call. Only public addresses, unless opened.

A name is resolved once, every address it has must be public, and the connection goes to the address that was checked:
so a second look-up cannot lead elsewhere. The same holds at each redirect. Each transfer as a whole has a deadline.
"""

import ipaddress
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpcore
import httpx

from pipeline.errors import MediaError
from server.files import INPUTS, FileStore, UnknownFileError
from server.job import FILE_SCHEME

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]  # host, port -> addresses as text
Connect = Callable[[str, int, float], httpcore.NetworkStream]  # address, port, timeout in seconds

PORTS = (80, 443)
MAX_REDIRECTS = 5
STEP_TIMEOUT_S = 15.0  # to connect, and between two pieces of an answer
USER_AGENT = "video-as-prompt-studio"

# Ranges that Python's table calls global, but that lead into a private network or to an IPv4 address in disguise.
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure's host, reachable from every machine there
        "192.0.0.0/24",  # protocol assignments; a cloud keeps its metadata here
        "192.88.99.0/24",  # relays to 6to4
        "2001::/23",  # Teredo and other protocol assignments
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)
_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")  # all that is assigned; leaves out IPv4-mapped, NAT64, site-local ...


class FetchError(MediaError):
    """A file could not be fetched. `fault_type` is fal's word for it."""

    def __init__(self, message: str, fault_type: str = "file_download_error") -> None:
        super().__init__("", message)
        self.field = None  # whoever knows which input it was for says so
        self.fault_type = fault_type


class ForbiddenAddressError(FetchError):
    """The address is not one this server may call."""


@dataclass(frozen=True)
class FetchRules:
    """What may be called and for how long. allow_private: any address and port, for tests and intranets."""

    allow_private: bool = False
    timeout_s: float = 120.0  # for a whole transfer, redirects included
    max_bytes: int = 200 * 1024 * 1024


def is_public(text: str) -> bool:
    """Say whether an IP address belongs to the public internet."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if any(address in network for network in _NOT_PUBLIC if network.version == address.version):
        return False
    if isinstance(address, ipaddress.IPv6Address) and address not in _PUBLIC_IPV6:
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def resolve_host(host: str, port: int) -> list[str]:
    """Give all addresses of a host, in the order of the system's preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def connect(address: str, port: int, timeout_s: float) -> httpcore.NetworkStream:
    """Open a connection to one address."""
    return httpcore.SyncBackend().connect_tcp(address, port, timeout=timeout_s)


def check_url(url: str, rules: FetchRules) -> None:
    """Refuse an address whose text alone shows that it cannot be called, without looking its name up.

    Raises ForbiddenAddressError.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ForbiddenAddressError("This is not a web address.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ForbiddenAddressError("The address must start with http:// or https:// and name a host.")
    if rules.allow_private:
        return
    _check_port(port or (443 if parts.scheme == "https" else 80))
    if host.rstrip(".") == "localhost" or host.endswith(".localhost"):
        raise _forbidden(host)
    try:
        # Also understands 127.1, 0x7f000001 and the like, as every program does that would connect to them.
        addresses = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return  # a name
    if not all(is_public(str(entry[4][0])) for entry in addresses):
        raise _forbidden(host)


class Caller:
    """Makes requests under the rules. resolve and connect are the network's two doors; tests put fakes there."""

    def __init__(
        self,
        rules: FetchRules,
        *,
        resolve: Resolve = resolve_host,
        connect: Connect = connect,
        clock: Callable[[], float] = time.monotonic,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._rules = rules
        self._resolve = resolve
        self._connect = connect
        self._clock = clock
        self._ssl_context = ssl_context or ssl.create_default_context()

    def download(self, url: str, to: Path) -> str | None:
        """Fetch what is at a URL into a file. Gives its content type, where the other side tells one.

        Raises FetchError with a sentence that tells the host only: the rest of a URL may hold secrets.
        """
        check_url(url, self._rules)
        try:
            with self._client() as client, client.stream("GET", url) as response, to.open("wb") as file:
                self._check_answer(response)
                for chunk in self._limited(response):
                    file.write(chunk)
                return response.headers.get("content-type")
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise FetchError(_explain(error, url, self._rules)) from error

    def post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        """Send a body and give the status code. Redirects are not followed. Raises FetchError."""
        check_url(url, self._rules)
        try:
            with (
                self._client() as client,
                client.stream("POST", url, content=body, headers=headers, follow_redirects=False) as response,
            ):
                return response.status_code
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise FetchError(_explain(error, url, self._rules)) from error

    @contextmanager
    def _client(self) -> Iterator[httpx.Client]:
        """Give a client for one transfer: its deadline begins now."""
        transport = httpx.HTTPTransport(verify=self._ssl_context, trust_env=False)
        # httpx has no public place for a network backend; hence its version is pinned, and a test would notice.
        transport._pool = httpcore.ConnectionPool(
            ssl_context=self._ssl_context, network_backend=_CheckedNetwork(self, self._clock() + self._rules.timeout_s)
        )
        with httpx.Client(
            transport=transport,
            trust_env=False,
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            timeout=STEP_TIMEOUT_S,
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        ) as client:
            yield client

    def _check_answer(self, response: httpx.Response) -> None:
        host = response.url.host
        if response.status_code != httpx.codes.OK:
            raise FetchError(f"{host} answered with {response.status_code} instead of the file; check the address.")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise FetchError(f"{host} sent the file compressed, though it was asked not to; upload it instead.")
        length = response.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._rules.max_bytes:
            raise self._too_large()

    def _limited(self, response: httpx.Response) -> Iterator[bytes]:
        size = 0
        for chunk in response.iter_raw():
            size += len(chunk)
            if size > self._rules.max_bytes:
                raise self._too_large()
            yield chunk

    def _too_large(self) -> FetchError:
        megabytes = self._rules.max_bytes // 2**20
        return FetchError(f"The file is larger than {megabytes} MB; give a shorter or smaller one.", "file_too_large")

    def open_checked(self, host: str, port: int, deadline: "Deadline") -> httpcore.NetworkStream:
        """Connect to a host by an address that was checked. Raises ForbiddenAddressError."""
        if not self._rules.allow_private:
            _check_port(port)
        try:
            addresses = self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise FetchError(f"There is no host named {host}; check the address.") from error
        if not self._rules.allow_private and not all(map(is_public, addresses)):
            raise _forbidden(host)
        return self._connect_any(addresses, port, deadline)

    def _connect_any(self, addresses: list[str], port: int, deadline: "Deadline") -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError("no address")
        for address in addresses:
            try:
                return self._connect(address, port, deadline.limit(STEP_TIMEOUT_S))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    def deadline(self, ends_at: float) -> "Deadline":
        """Give a deadline on this caller's clock."""
        return Deadline(self._clock, ends_at)


@dataclass(frozen=True)
class Deadline:
    """The end of a whole transfer, on a clock in seconds."""

    clock: Callable[[], float]
    ends_at: float

    def limit(self, timeout_s: float | None) -> float:
        """Give the time that one step may take. Raises FetchError once there is none left."""
        left = self.ends_at - self.clock()
        if left <= 0:
            raise FetchError("The transfer took too long; upload the file instead.")
        return left if timeout_s is None else min(timeout_s, left)


class _CheckedNetwork(httpcore.NetworkBackend):
    """httpcore's network, with every connection checked and every step under the deadline."""

    def __init__(self, caller: Caller, ends_at: float) -> None:
        self._caller = caller
        self._deadline = caller.deadline(ends_at)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        return _DeadlineStream(self._caller.open_checked(host, port, self._deadline), self._deadline)


class _DeadlineStream(httpcore.NetworkStream):
    """A connection on which a slow drip ends too: no step lasts beyond the deadline."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.limit(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.limit(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        secured = self._stream.start_tls(ssl_context, server_hostname, self._deadline.limit(timeout))
        return _DeadlineStream(secured, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class SourceResolver:
    """Turns the sources of a job into files of this machine."""

    def __init__(self, caller: Caller, files: FileStore) -> None:
        self._caller = caller
        self._files = files

    def resolve(self, source: str) -> Path:
        """Give a path for "file:" and a key, or for an http(s) URL, which is fetched into the store first.

        Raises FetchError.
        """
        key = source.removeprefix(FILE_SCHEME) if source.startswith(FILE_SCHEME) else self._fetch(source)
        try:
            return self._files.local(key)
        except UnknownFileError as error:
            raise FetchError(error.message) from error

    def _fetch(self, url: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "download"
            content_type = self._caller.download(url, file)
            name = unquote(urlsplit(url).path).rpartition("/")[2]
            key = self._files.reserve(INPUTS, name or None, content_type)
            self._files.take(file, key)
        return key


def _check_port(port: int) -> None:
    if port not in PORTS:
        raise ForbiddenAddressError(f"Port {port} is not one this server may call; 80 and 443 are.")


def _forbidden(host: str) -> ForbiddenAddressError:
    return ForbiddenAddressError(f"{host} is not a public address, and this server calls no others; give one that is.")


def _explain(error: Exception, url: str, rules: FetchRules) -> str:
    host = urlsplit(url).hostname or ""
    match error:
        case httpx.TooManyRedirects():
            return f"{host} redirects more than {MAX_REDIRECTS} times; give the address at the end."
        case httpx.TimeoutException():
            return f"{host} does not answer in time; try again, or upload the file."
        case httpx.UnsupportedProtocol() | httpx.InvalidURL():
            return f"{host} leads to an address that is not http:// or https://."
        case _:
            return f"{host} cannot be reached, or broke the connection; check the address, or upload the file."
