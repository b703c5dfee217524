"""What a user names is fetched from public addresses only. No packet leaves: look-ups and connections are fakes."""

import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpcore
import pytest

from server.fetch import Caller, FetchError, FetchRules, ForbiddenAddressError, SourceResolver, check_url, is_public
from server.files import FileStore, split_key

PUBLIC = "93.184.216.34"
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def answer(body: bytes = b"content", status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class FakeNet:
    """A name service and a network. hosts: the addresses of a name, one list per look-up, the last for all later ones.

    answers: what comes back on each connection in turn. chunk: bytes per read. drip_s: the clock's advance per read.
    """

    hosts: dict[str, list[list[str]]] = field(default_factory=dict)
    answers: list[bytes] = field(default_factory=lambda: [answer()])
    chunk: int = 65536
    drip_s: float = 0.0
    now: float = 0.0
    connected: list[tuple[str, int]] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    secured: list[str | None] = field(default_factory=list)

    def resolve(self, host: str, port: int) -> list[str]:
        """Look a name up. Numbers in any spelling are read as the system reads them."""
        if host in self.hosts:
            turns = self.hosts[host]
            return turns.pop(0) if len(turns) > 1 else turns[0]
        found = socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST, type=socket.SOCK_STREAM)
        return [str(entry[4][0]) for entry in found]

    def connect(self, address: str, port: int, timeout_s: float) -> httpcore.NetworkStream:
        """Open a connection that plays the next answer."""
        assert ipaddress.ip_address(address)
        self.connected.append((address, port))
        return FakeStream(self, self.answers.pop(0))

    def caller(self, **rules: Any) -> Caller:
        """Give a caller that stands on this net."""
        return Caller(
            FetchRules(**rules),
            resolve=self.resolve,
            connect=self.connect,
            clock=lambda: self.now,
            ssl_context=NO_TLS,
        )


class FakeStream(httpcore.NetworkStream):
    """One connection."""

    def __init__(self, net: FakeNet, content: bytes) -> None:
        self._net = net
        self._content = content

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Give the next bytes, slowly if the net is slow."""
        self._net.now += self._net.drip_s
        size = min(max_bytes, self._net.chunk)
        piece, self._content = self._content[:size], self._content[size:]
        return piece

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Keep what was sent."""
        self._net.sent.append(buffer)

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Keep the name that the certificate would be checked against."""
        self._net.secured.append(server_hostname)
        return self

    def get_extra_info(self, info: str) -> Any:
        """Tell nothing."""

    def close(self) -> None:
        """Do nothing."""


HOSTILE = {
    "127.0.0.1": "loopback",
    "127.8.9.1": "loopback",
    "::1": "loopback",
    "0.0.0.0": "this machine",
    "::": "this machine",
    "10.1.2.3": "private",
    "172.16.0.1": "private",
    "192.168.1.1": "private",
    "fd00:ec2::254": "private, a cloud's metadata",
    "fc00::1": "private",
    "169.254.169.254": "link-local, a cloud's metadata",
    "fe80::1": "link-local",
    "fe80::1%1": "link-local with a zone",
    "fec0::1": "site-local",
    "100.64.0.1": "carrier NAT",
    "100.100.100.200": "carrier NAT, a cloud's metadata",
    "168.63.129.16": "Azure's host",
    "192.0.0.192": "a cloud's metadata",
    "192.0.2.1": "documentation",
    "198.18.0.1": "benchmarks",
    "192.88.99.1": "6to4 relay",
    "224.0.0.1": "multicast",
    "224.0.1.1": "multicast",
    "240.0.0.1": "reserved",
    "255.255.255.255": "broadcast",
    "ff0e::1": "multicast",
    "::ffff:127.0.0.1": "IPv4-mapped loopback",
    "::ffff:93.184.216.34": "IPv4-mapped",
    "::127.0.0.1": "IPv4-compatible loopback",
    "2002:7f00:1::": "6to4 of loopback",
    "2002:a01:203::1": "6to4 of a private address",
    "64:ff9b::7f00:1": "NAT64 of loopback",
    "64:ff9b::a9fe:a9fe": "NAT64 of link-local",
    "64:ff9b:1::1": "local NAT64",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2": "Teredo",
    "2001:db8::1": "documentation",
    "3fff::1": "documentation",
    "5f00::1": "segment routing",
}


@pytest.mark.parametrize("address", HOSTILE, ids=lambda address: f"{HOSTILE[address]} {address}")
def test_a_name_that_leads_to_a_hostile_address_is_never_called(address: str, tmp_path: Path) -> None:
    """One address that is not public among good ones is enough, and no connection is opened."""
    net = FakeNet(hosts={"innocent.example": [[PUBLIC, address]]})

    with pytest.raises(ForbiddenAddressError, match="not a public address"):
        net.caller().download("https://innocent.example/a.mp4", tmp_path / "a")

    assert net.connected == []


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "2606:2800:220:1:248:1893:25c8:1946", "2a00:1450::1"])
def test_ordinary_addresses_are_public(address: str) -> None:
    """What the internet is made of may be called."""
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0x7f.1",
        "127.1",
        "0",
        "[::1]",
        "[::ffff:7f00:1]",
        "[::ffff:169.254.169.254]",
        "localhost",
        "localhost.",
        "studio.localhost",
        "3232235777",
    ],
)
def test_an_address_in_disguise_is_seen_through(host: str, tmp_path: Path) -> None:
    """Decimal, octal, hexadecimal, short and mapped spellings are refused before any connection, and at submit too."""
    net = FakeNet()

    with pytest.raises(ForbiddenAddressError):
        net.caller().download(f"http://{host}/a.mp4", tmp_path / "a")
    with pytest.raises(ForbiddenAddressError):
        check_url(f"http://{host}/a.mp4", FetchRules())

    assert net.connected == []


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://example.com/a", "must start with http:// or https://"),
        ("file:///etc/passwd", "must start with http:// or https://"),
        ("gopher://127.0.0.1/", "must start with http:// or https://"),
        ("http:///a", "name a host"),
        ("http://[::1", "not a web address"),
        ("http://example.com:99999/", "not a web address"),
        ("http://example.com:22/", "Port 22 is not one this server may call; 80 and 443 are."),
        ("https://example.com:8443/", "Port 8443"),
    ],
)
def test_only_web_addresses_on_web_ports_are_called(url: str, sentence: str, tmp_path: Path) -> None:
    """Other schemes, other ports and broken addresses end with a sentence."""
    net = FakeNet()

    with pytest.raises(ForbiddenAddressError, match=sentence):
        net.caller().download(url, tmp_path / "a")

    assert net.connected == []


def test_a_public_file_is_fetched(tmp_path: Path) -> None:
    """The connection goes to the address that was checked; TLS and the Host header know the name."""
    net = FakeNet(hosts={"files.example": [[PUBLIC]]}, answers=[answer(b"video", Content_Type="video/mp4")])

    content_type = net.caller().download("https://files.example/a.mp4?x=1", tmp_path / "a")

    assert (tmp_path / "a").read_bytes() == b"video"
    assert content_type == "video/mp4"
    assert (net.connected, net.secured) == ([(PUBLIC, 443)], ["files.example"])
    request = b"".join(net.sent).decode().lower()
    assert request.startswith("get /a.mp4?x=1 http/1.1\r\nhost: files.example\r\n")
    assert "accept-encoding: identity" in request
    assert "python" not in request


def test_a_name_that_changes_its_address_is_looked_up_once(tmp_path: Path) -> None:
    """DNS rebinding has no second look-up to lie to."""
    net = FakeNet(hosts={"rebinding.example": [[PUBLIC], ["127.0.0.1"]]})

    net.caller().download("http://rebinding.example/a.mp4", tmp_path / "a")

    assert net.connected == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://2130706433/",
        "http://inside.example/",
        "http://files.example:6379/",
        "file:///etc/passwd",
        "//[::1]/",
    ],
)
def test_a_redirect_to_a_hostile_address_is_not_followed(location: str, tmp_path: Path) -> None:
    """Each step of a redirect is checked as the first address was."""
    moved = answer(b"", "302 Found", Location=location)
    net = FakeNet(hosts={"files.example": [[PUBLIC]], "inside.example": [["10.0.0.1"]]}, answers=[moved])

    with pytest.raises(FetchError):
        net.caller().download("http://files.example/a.mp4", tmp_path / "a")

    assert net.connected == [(PUBLIC, 80)]


@pytest.mark.parametrize(("redirects", "arrives"), [(5, True), (6, False)])
def test_redirects_end(redirects: int, arrives: bool, tmp_path: Path) -> None:
    """Five redirects are followed, a sixth is not."""
    moved = [answer(b"", "302 Found", Location=f"http://files.example/{n}") for n in range(redirects)]
    net = FakeNet(hosts={"files.example": [[PUBLIC]]}, answers=[*moved, answer(b"video")])

    def fetch() -> None:
        net.caller().download("http://files.example/a.mp4", tmp_path / "a")

    if arrives:
        fetch()
        assert (tmp_path / "a").read_bytes() == b"video"
    else:
        with pytest.raises(FetchError, match="redirects more than 5 times"):
            fetch()


@pytest.mark.parametrize("size", [100, 101])
@pytest.mark.parametrize("tells_length", [True, False])
def test_a_file_may_have_only_so_many_bytes(size: int, tells_length: bool, tmp_path: Path) -> None:
    """The limit holds for the length announced and for the bytes that come."""
    content = answer(bytes(size))
    if not tells_length:
        content = content.replace(f"Content-Length: {size}\r\n".encode(), b"")
    net = FakeNet(hosts={"files.example": [[PUBLIC]]}, answers=[content])

    def fetch() -> None:
        net.caller(max_bytes=100).download("http://files.example/a", tmp_path / "a")

    if size <= 100:
        fetch()
        assert (tmp_path / "a").stat().st_size == size
    else:
        with pytest.raises(FetchError, match="larger than") as caught:
            fetch()
        assert caught.value.fault_type == "file_too_large"


@pytest.mark.parametrize("chunk", [1, 50])
def test_a_slow_drip_ends_with_the_deadline(chunk: int, tmp_path: Path) -> None:
    """Whether headers or body drip: the transfer as a whole has a deadline, however lively each read is."""
    net = FakeNet(hosts={"files.example": [[PUBLIC]]}, answers=[answer(bytes(10_000))], chunk=chunk, drip_s=1.0)

    with pytest.raises(FetchError, match="took too long"):
        net.caller(timeout_s=30.0).download("http://files.example/a", tmp_path / "a")

    assert net.now <= 31


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (answer(b"", "404 Not Found"), "files.example answered with 404 instead of the file"),
        (answer(b"x", Content_Encoding="gzip"), "sent the file compressed"),
        (b"nonsense", "cannot be reached, or broke the connection"),
        (answer(bytes(100))[:-50], "cannot be reached, or broke the connection"),
    ],
)
def test_what_goes_wrong_is_told_without_the_address(content: bytes, sentence: str, tmp_path: Path) -> None:
    """The sentence names the host only: a path or query may hold a secret."""
    net = FakeNet(hosts={"files.example": [[PUBLIC]]}, answers=[content])

    with pytest.raises(FetchError, match=sentence) as caught:
        net.caller().download("http://files.example/secret?token=secret", tmp_path / "a")

    assert "secret" not in caught.value.message


def test_a_name_that_does_not_exist_is_told(tmp_path: Path) -> None:
    """An unknown host ends with a sentence."""
    net = FakeNet()

    with pytest.raises(FetchError, match="no host named nowhere"):
        net.caller().download("http://nowhere.example/", tmp_path / "a")


def test_the_next_address_is_tried_when_one_does_not_answer(tmp_path: Path) -> None:
    """A host with several addresses is reached by any that works."""
    net = FakeNet(hosts={"files.example": [["2606:2800:220:1::1", PUBLIC]]})
    tried = []

    def connect(address: str, port: int, timeout_s: float) -> httpcore.NetworkStream:
        tried.append(address)
        if ":" in address:
            raise httpcore.ConnectError("unreachable")
        return net.connect(address, port, timeout_s)

    Caller(FetchRules(), resolve=net.resolve, connect=connect, ssl_context=NO_TLS).download(
        "http://files.example/", tmp_path / "a"
    )

    assert tried == ["2606:2800:220:1::1", PUBLIC]


def test_a_setting_opens_private_addresses_and_ports(tmp_path: Path) -> None:
    """An intranet's files can be fetched where the operator says so."""
    net = FakeNet(hosts={"nas.intranet": [["10.0.0.5"]]})

    net.caller(allow_private=True).download("http://nas.intranet:8080/a", tmp_path / "a")

    assert net.connected == [("10.0.0.5", 8080)]


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A proxy would make the look-up for us, unchecked."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    net = FakeNet(hosts={"files.example": [[PUBLIC]]})

    net.caller().download("http://files.example/a", tmp_path / "a")

    assert net.connected == [(PUBLIC, 80)]


@pytest.mark.parametrize("call", ["post", "redirected"])
def test_webhooks_are_under_the_same_rules(call: str) -> None:
    """A body is never posted to a private address; a redirect is an answer, not an order."""
    net = FakeNet(
        hosts={"inside.example": [["127.0.0.1"]], "hooks.example": [[PUBLIC]]},
        answers=[answer(b"", "307 Temporary Redirect", Location="http://inside.example/")],
    )

    if call == "post":
        with pytest.raises(ForbiddenAddressError):
            net.caller().post("http://inside.example/", b"{}", {})
        assert net.connected == []
    else:
        assert net.caller().post("http://hooks.example/", b"{}", {}) == 307
        assert net.connected == [(PUBLIC, 80)]


@pytest.fixture
def resolver(tmp_path: Path) -> Callable[[Iterable[bytes]], tuple[SourceResolver, FileStore]]:
    """Makes a resolver whose network gives these answers."""

    def make(answers: Iterable[bytes]) -> tuple[SourceResolver, FileStore]:
        net = FakeNet(hosts={"files.example": [[PUBLIC]]}, answers=list(answers))
        files = FileStore(tmp_path / "files", tmp_path / "cache")
        return SourceResolver(net.caller(), files), files

    return make


def test_a_source_of_ours_needs_no_network(resolver: Any, tmp_path: Path) -> None:
    """A key leads to the stored file itself."""
    sources, files = resolver([])
    (clip := tmp_path / "a.mp4").write_bytes(b"video")
    key = files.add(clip, folder="uploads")

    assert sources.resolve(f"file:{key}").read_bytes() == b"video"


@pytest.mark.parametrize("source", ["file:../../etc/passwd", f"file:uploads/{'a' * 32}/gone.mp4"])
def test_a_source_that_is_not_here_is_told(resolver: Any, source: str) -> None:
    """A file that is gone ends with a sentence, and no key leads out of the store."""
    sources, _ = resolver([])

    with pytest.raises(FetchError, match="no such file here"):
        sources.resolve(source)


def test_a_fetched_source_is_stored_for_the_job(resolver: Any) -> None:
    """What comes from a URL gets a key of its own, its name and its type."""
    sources, files = resolver([answer(b"video", Content_Type="video/mp4")])

    path = sources.resolve("https://files.example/some/My%20clip?x=1")

    assert path.read_bytes() == b"video"
    [stored] = files.stored("inputs")
    assert split_key(stored.key).name == "My_clip.mp4"
