"""Keys are made and revoked on the command line, and kept as hashes."""

import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.errors import StudioError
from server.keys import KEYS_FILE, KeyRing, main

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    """No keys yet."""
    return KeyRing(tmp_path / KEYS_FILE)


def test_without_any_key_the_api_is_open(ring: KeyRing) -> None:
    """Nobody has to make a key to try the app; no key is a good one then."""
    assert ring.is_open
    assert ring.owner_of("some:key") is None


def test_each_key_tells_its_owner(ring: KeyRing) -> None:
    """Several keys hold side by side, two of one owner too."""
    ada, bob, again = (ring.create(name, NOW) for name in ("ada", "bob", "ada"))

    assert [ring.owner_of(key) for key in (ada, bob, again)] == ["ada", "bob", "ada"]
    assert not ring.is_open


def test_a_changed_key_is_no_key(ring: KeyRing) -> None:
    """Every part of a key counts."""
    key = ring.create("ada", NOW)
    key_id, _, secret = key.partition(":")

    for wrong in ("", key_id, f"{key_id}:", f"{key_id}:{secret}x", f"x{key}", f":{secret}", secret, f"{key_id}:ü"):
        assert ring.owner_of(wrong) is None


def test_the_file_does_not_tell_the_keys(ring: KeyRing, tmp_path: Path) -> None:
    """Only hashes are kept, for the owner of the file alone."""
    _, _, secret = ring.create("ada", NOW).partition(":")

    path = tmp_path / KEYS_FILE
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_revoked_key_is_worthless_and_the_api_stays_closed(ring: KeyRing) -> None:
    """Revoking the last key does not open the door to everybody."""
    key = ring.create("ada", NOW)

    ring.revoke(key.partition(":")[0], NOW)

    assert ring.owner_of(key) is None
    assert not ring.is_open


def test_a_running_server_sees_changes_at_once(ring: KeyRing, tmp_path: Path) -> None:
    """A key made by another process holds from then on, and one revoked does not."""
    other = KeyRing(tmp_path / KEYS_FILE)
    assert ring.is_open

    key = other.create("ada", NOW)
    assert ring.owner_of(key) == "ada"

    other.revoke(key.partition(":")[0], NOW)
    assert ring.owner_of(key) is None


@pytest.mark.parametrize("owner", ["", "  "])
def test_a_key_has_an_owner(ring: KeyRing, owner: str) -> None:
    """A key without a name is refused."""
    with pytest.raises(StudioError, match="needs a name"):
        ring.create(owner, NOW)


def test_the_command_line_makes_shows_and_revokes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The three commands do what they say; a key is shown once."""
    folder = ["--data-dir", str(tmp_path)]

    assert main(["list", *folder], NOW) == 0
    assert "the API is open while the studio is for this machine only and has no login" in capsys.readouterr().out
    assert main(["create", "ada", *folder], NOW) == 0
    key = capsys.readouterr().out.strip()
    key_id = key.partition(":")[0]
    assert main(["list", *folder], NOW) == 0
    assert capsys.readouterr().out == f"{key_id}  ada  created 2026-01-31T12:00:00+00:00  valid\n"
    assert main(["revoke", key_id, *folder], NOW) == 0
    assert main(["list", *folder], NOW) == 0
    assert capsys.readouterr().out.endswith("revoked 2026-01-31T12:00:00+00:00\n")
    assert KeyRing(tmp_path / KEYS_FILE).owner_of(key) is None


def test_an_unknown_key_cannot_be_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with a sentence and a code that scripts understand."""
    assert main(["revoke", "nothing", "--data-dir", str(tmp_path)], NOW) == 2
    assert capsys.readouterr().err == "There is no key 'nothing'; `python -m server.keys list` shows them.\n"


def test_a_server_that_others_can_reach_is_never_open(tmp_path: Path) -> None:
    """Without any key it takes no call at all."""
    ring = KeyRing(tmp_path / "keys.json", may_be_open=False)

    assert not ring.is_open
    assert ring.owner_of("") is None
