"""The server's one secret: it signs webhooks, and the upload addresses and tokens that we hand out."""

import base64
import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pipeline.errors import StudioError

SEED_BYTES = 32


class TokenError(StudioError):
    """A token is not ours, was changed, or is too old."""


class Signer:
    """Signs with one secret seed. Whoever reads the seed can forge webhooks and upload into the store."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._token_key = hmac.digest(seed, b"upload tokens", "sha256")

    def sign(self, message: bytes) -> str:
        """Give the Ed25519 signature as hexadecimal digits."""
        return self._key.sign(message).hex()

    def public_keys(self) -> dict[str, Any]:
        """Give the JSON Web Key Set that checks the signatures."""
        public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        key = {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "x": _encode(public)}
        return {"keys": [{**key, "kid": hashlib.sha256(public).hexdigest()[:16]}]}

    def issue(self, purpose: str, subject: str, expires_at: float) -> str:
        """Give a token that says: whoever holds it may do `purpose` with `subject` until then (Unix seconds)."""
        claims = _encode(json.dumps([purpose, subject, expires_at]).encode())
        return f"{claims}.{self._mark(claims)}"

    def check(self, token: str, purpose: str, now: float) -> str:
        """Give the subject of a token for this purpose. Raises TokenError."""
        claims, _, mark = token.partition(".")
        if not hmac.compare_digest(mark.encode(), self._mark(claims).encode()):
            raise TokenError("The upload token is not one of this server's; ask for a new one.")
        given_purpose, subject, expires_at = json.loads(_decode(claims))
        if given_purpose != purpose:
            raise TokenError("The upload token is for something else; ask for a new one.")
        if now >= expires_at:
            raise TokenError("The upload token is too old; ask for a new one.")
        return str(subject)

    def _mark(self, claims: str) -> str:
        return _encode(hmac.digest(self._token_key, claims.encode(), "sha256"))


def load_signer(path: Path) -> Signer:
    """Read the seed of this server, made on first use; the file is for its owner alone.

    Several fronts and workers need the same file: receivers of webhooks keep the public key for a day.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.touch(mode=0o600)
    try:
        fresh.write_bytes(os.urandom(SEED_BYTES))
        os.link(fresh, path)  # fails where another process was first, and theirs holds
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
    seed = path.read_bytes()
    if len(seed) != SEED_BYTES:
        raise StudioError(
            f"The key file {path} has {len(seed)} bytes instead of {SEED_BYTES}; remove it or restore it."
        )
    return Signer(seed)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
