"""Who may use the API: keys kept as hashes, in one file of the data folder.

`python -m server.keys create NAME` prints a new key once; `list` and `revoke ID` manage them. As long as no key was
ever created the API is open; revoking the last one closes it.
"""

import argparse
import hashlib
import hmac
import json
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import StudioError

KEYS_FILE = "api-keys.json"
OPEN_OWNER = "everyone"
SECRET_BYTES = 32
# What this command cannot know are the server's settings.
NO_KEYS = (
    "There are no keys: the API is open while the studio is for this machine only and has no login; otherwise it is "
    "closed until you create one."
)


@dataclass(frozen=True)
class ApiKey:
    """A key as it is kept. owner: whose jobs it may see; keys of one owner see the same ones.

    secret_hash: SHA-256 in hexadecimal; the secret is random and long, so a slow hash would add nothing.
    """

    key_id: str
    owner: str
    secret_hash: str
    created_at: str
    revoked_at: str | None = None


class KeyRing:
    """The keys of one file. Changes on the command line hold at once in a running server."""

    def __init__(self, path: Path, *, may_be_open: bool = True) -> None:
        """may_be_open: whether nobody needs a key before there is one, as on a machine that serves itself only."""
        self._path = path
        self._may_be_open = may_be_open
        self._read: tuple[tuple[int, int], tuple[ApiKey, ...]] | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls need no key: none was ever created, and nobody else can reach us."""
        return self._may_be_open and not self.entries()

    def entries(self) -> tuple[ApiKey, ...]:
        """Give all keys, the revoked ones too."""
        if not self._path.exists():
            return ()
        facts = self._path.stat()
        version = (facts.st_mtime_ns, facts.st_ino)
        if self._read is None or self._read[0] != version:
            entries = json.loads(self._path.read_text(encoding="utf-8"))
            self._read = (version, tuple(ApiKey(**entry) for entry in entries))
        return self._read[1]

    def owner_of(self, text: str) -> str | None:
        """Give the owner of a key as a client sends it; None when it is not a valid one."""
        key_id, _, secret = text.partition(":")
        given = _hash(secret)
        for key in self.entries():
            if key.key_id == key_id and key.revoked_at is None and hmac.compare_digest(given, key.secret_hash):
                return key.owner
        return None

    def create(self, owner: str, now: datetime) -> str:
        """Make a key and give its text, which is not kept. Raises StudioError for an owner without a name."""
        if not owner.strip():
            raise StudioError("A key needs a name that says whose it is.")
        key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(SECRET_BYTES)
        self._write([*self.entries(), ApiKey(key_id, owner.strip(), _hash(secret), now.isoformat(timespec="seconds"))])
        return f"{key_id}:{secret}"

    def revoke(self, key_id: str, now: datetime) -> None:
        """Make a key worthless. Raises StudioError when there is none with this id."""
        if key_id not in {key.key_id for key in self.entries()}:
            raise StudioError(f"There is no key {key_id!r}; `python -m server.keys list` shows them.")
        moment = now.isoformat(timespec="seconds")
        self._write([replace(key, revoked_at=moment) if key.key_id == key_id else key for key in self.entries()])

    def _write(self, keys: Sequence[ApiKey]) -> None:
        """Replace the file as a whole, so that a running server never reads half of it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps([asdict(key) for key in keys], indent=1), encoding="utf-8")
        fresh.replace(self._path)


def main(arguments: Sequence[str], now: datetime) -> int:
    """Create, list or revoke keys from the command line."""
    options = _parser().parse_args(arguments)
    try:
        ring = KeyRing(options.data_dir.expanduser() / KEYS_FILE)
        sys.stdout.write(_run(ring, options, now) + "\n")
    except StudioError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    return 0


def _run(ring: KeyRing, options: argparse.Namespace, now: datetime) -> str:
    match options.action:
        case "create":
            return ring.create(options.owner, now)
        case "revoke":
            ring.revoke(options.key_id, now)
            return f"The key {options.key_id} is no longer valid."
        case _:
            return "\n".join(_describe(key) for key in ring.entries()) or NO_KEYS


def _describe(key: ApiKey) -> str:
    state = f"revoked {key.revoked_at}" if key.revoked_at else "valid"
    return f"{key.key_id}  {key.owner}  created {key.created_at}  {state}"


def _parser() -> argparse.ArgumentParser:
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("STUDIO_DATA_DIR") or "data"),
        help="the app's data folder (or STUDIO_DATA_DIR)",
    )
    parser = argparse.ArgumentParser("python -m server.keys", description="Keys for the API.")
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", parents=[folder], help="make a key; it is shown once")
    create.add_argument("owner", help="whose it is; keys of one owner see the same jobs")
    actions.add_parser("list", parents=[folder], help="show all keys, not their secrets")
    revoke = actions.add_parser("revoke", parents=[folder], help="make a key worthless")
    revoke.add_argument("key_id", help="the part of the key before the colon")
    return parser


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], datetime.now(UTC)))
