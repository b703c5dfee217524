"""The certificate for fal's names: what it vouches for, who may read it, and when it is made anew."""

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StudioError
from server.certificates import AUTHORITY_AGE, AUTHORITY_KEY_FILE, SERVER_AGE, Certificate, load_certificate
from server.proxy import MOUNTS

NOW = datetime.now(UTC)


def shake_hands(certificate: Certificate, name: str) -> Any:
    """Do a TLS handshake in memory, as strictly as Python can, and give what the client saw. Raises ssl.SSLError."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate.server)
    client = ssl.create_default_context(cafile=str(certificate.authority))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname=name)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for side in (near, far):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return near.getpeercert()


@pytest.mark.parametrize("name", MOUNTS)
def test_it_vouches_for_each_of_fals_names(tmp_path: Path, name: str) -> None:
    """A client that trusts the authority takes it without complaint."""
    seen = shake_hands(load_certificate(tmp_path, NOW), name)

    assert ("DNS", name) in seen["subjectAltName"]


@pytest.mark.parametrize("name", ["example.com", "localhost", "evil.v3.fal.media"])
def test_it_vouches_for_nothing_else(tmp_path: Path, name: str) -> None:
    """Whoever trusts the authority trusts it for five names."""
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(load_certificate(tmp_path, NOW), name)


def test_the_authority_may_sign_for_fals_names_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with its key nobody can make a certificate for a bank that such a client would take."""
    server = load_certificate(tmp_path, NOW).server
    server.unlink()
    monkeypatch.setattr("server.certificates.MOUNTS", {"bank.example": "/bank"})

    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        shake_hands(load_certificate(tmp_path, NOW), "bank.example")


def test_private_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    """Only the authority's certificate is for others, and it holds no key."""
    certificate = load_certificate(tmp_path, NOW)

    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in (certificate.server, tmp_path / AUTHORITY_KEY_FILE)
    }

    assert set(modes.values()) == {0o600}
    assert b"PRIVATE" not in certificate.authority.read_bytes()


def test_it_is_made_once(tmp_path: Path) -> None:
    """A restart changes nothing that clients were given."""
    first = load_certificate(tmp_path, NOW)
    before = [path.read_bytes() for path in (first.authority, first.server)]

    second = load_certificate(tmp_path, NOW + timedelta(days=30))

    assert [path.read_bytes() for path in (second.authority, second.server)] == before


def test_it_is_renewed_under_the_same_authority_before_it_ends(tmp_path: Path) -> None:
    """Clients keep the file they have."""
    first = load_certificate(tmp_path, NOW - SERVER_AGE + timedelta(days=100))
    authority, server = first.authority.read_bytes(), first.server.read_bytes()

    second = load_certificate(tmp_path, NOW)

    assert second.authority.read_bytes() == authority
    assert second.server.read_bytes() != server
    shake_hands(second, "fal.run")


def test_an_authority_that_ends_soon_is_replaced_with_all_it_signed(tmp_path: Path) -> None:
    """What is in use is always good for a year."""
    first = load_certificate(tmp_path, NOW - AUTHORITY_AGE + timedelta(days=100))
    authority = first.authority.read_bytes()

    second = load_certificate(tmp_path, NOW)

    assert second.authority.read_bytes() != authority
    shake_hands(second, "fal.run")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    """And what to do about it."""
    load_certificate(tmp_path, NOW).server.write_text("nonsense")

    with pytest.raises(StudioError, match=r"fal-server\.key holds no certificate; remove it"):
        load_certificate(tmp_path, NOW)
