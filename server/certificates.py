"""A certificate for fal's host names, from an authority of our own: clients trust its file, and it vouches for no more.

Both lie in the data folder, made on first use. The authority may sign for fal's names alone, so that even a stolen key
opens nothing else on the machines that trust it.
"""

import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from filelock import FileLock

from pipeline.errors import StudioError
from server.proxy import MOUNTS

AUTHORITY_FILE = "fal-ca.pem"  # the only one that others may have
AUTHORITY_KEY_FILE = "fal-ca.key"
SERVER_FILE = "fal-server.key"

AUTHORITY_AGE = timedelta(days=3650)
SERVER_AGE = timedelta(days=1825)
# Looked at when the program starts: longer than any of its runs.
RENEWED_BEFORE = timedelta(days=365)
CLOCKS_APART = timedelta(days=1)


@dataclass(frozen=True)
class Certificate:
    """Where the files are. authority: what clients have to trust; server: our certificate and its private key."""

    authority: Path
    server: Path


@dataclass(frozen=True)
class _Signed:
    """A certificate and its private key; one file holds both, so that they always fit each other."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def to_pem(self) -> bytes:
        private = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return private + self.certificate.public_bytes(Encoding.PEM)


def load_certificate(folder: Path, now: datetime) -> Certificate:
    """Give the certificate of this data folder, made or renewed where that is due.

    A renewed server certificate needs nothing of the clients; a renewed authority, after nine years, has to be handed
    out again. Raises StudioError for a file that holds no certificate.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = Certificate(folder / AUTHORITY_FILE, folder / SERVER_FILE)
    with FileLock(folder / f"{AUTHORITY_KEY_FILE}.lock"):  # programs that share the folder start at the same moment
        authority = _read(folder / AUTHORITY_KEY_FILE, now)
        server = _read(files.server, now)
        if authority is None:
            authority, server = _make_authority(now), None
            _write(folder / AUTHORITY_KEY_FILE, authority.to_pem(), mode=0o600)
        if server is None:
            _write(files.server, _make_server(authority, now).to_pem(), mode=0o600)
        _write(files.authority, authority.certificate.public_bytes(Encoding.PEM), mode=0o644)
    return files


def _read(path: Path, now: datetime) -> _Signed | None:
    """Give what a file holds; None when there is none, or it is due for renewal."""
    if not path.exists():
        return None
    data = path.read_bytes()
    try:
        certificate, key = x509.load_pem_x509_certificate(data), load_pem_private_key(data, None)
    except ValueError as error:
        raise StudioError(f"The file {path} holds no certificate; remove it, and a new one is made.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.not_valid_after_utc - now < RENEWED_BEFORE:
        return None
    return _Signed(certificate, key)


def _write(path: Path, data: bytes, *, mode: int) -> None:
    """Replace a file as a whole; it is never readable to more than it should be."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=mode)
    fresh.write_bytes(data)
    fresh.replace(path)


def _make_authority(now: datetime) -> _Signed:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Video-As-Prompt Studio, for fal's names only")
    builder = _begin(name, name, key, now, now + AUTHORITY_AGE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    allowed = x509.NameConstraints([x509.DNSName(host) for host in MOUNTS], None)
    builder = builder.add_extension(allowed, critical=True)
    return _Signed(builder.sign(key, SHA256()), key)


def _make_server(authority: _Signed, now: datetime) -> _Signed:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate
    ends_at = min(now + SERVER_AGE, issuer.not_valid_after_utc)
    builder = _begin(_name("Video-As-Prompt Studio"), issuer.subject, key, now, ends_at)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    names = x509.SubjectAlternativeName([x509.DNSName(host) for host in MOUNTS])
    builder = builder.add_extension(names, critical=False)
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(issuer_key, critical=False)
    return _Signed(builder.sign(authority.key, SHA256()), key)


def _begin(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, ends_at: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - CLOCKS_APART)
        .not_valid_after(ends_at)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
