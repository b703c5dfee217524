"""A model of the hub comes once, whole and checked, goes on after a break, and stays at its commit."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from pipeline import VideoAsPromptPipeline, store
from pipeline.errors import ModelError, StoppedError
from pipeline.hub import RemoteFile, Repository, size_of
from pipeline.model_progress import ModelProgress
from pipeline.store import HubModel
from tests.pipeline.conftest import GOLDEN
from tests.pipeline.fake_hub import CHUNK_BYTES, REPOSITORY, FakeHub, point_at, read_files

ROOT = Path(__file__).parent.parent.parent
SHARD = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"


@pytest.fixture
def model(hub: FakeHub, tmp_path: Path) -> HubModel:
    """Its place on a machine that never saw it."""
    return HubModel(Repository(REPOSITORY), cache_dir=tmp_path / "hub")


def forbid(monkeypatch: pytest.MonkeyPatch, target: Any, name: str) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(target, name, refuse)


def test_a_model_comes_whole_and_loads(hub: FakeHub, model: HubModel) -> None:
    """Every byte of the model's parts comes once, nothing else comes, and the strict loader takes it."""
    folder = model.fetch()

    files = {path: content for path, content in hub.commits[hub.main].items() if path != "README.md"}
    assert read_files(folder) == files
    assert hub.sent == {path: len(content) for path, content in files.items()}
    assert VideoAsPromptPipeline.from_pretrained(folder).transformer is not None


def test_progress_goes_from_nothing_to_all(hub: FakeHub, model: HubModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told in bytes of the whole, never goes back, and names a size people know."""
    monkeypatch.setattr(store, "POLL_S", 0.01)
    told: list[ModelProgress] = []

    model.fetch(told.append)

    done = [progress.done for progress in told]
    assert {(progress.stage, progress.total) for progress in told} == {("downloading", hub.total_bytes)}
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, hub.total_bytes)
    assert ModelProgress("downloading", 12_340_000_000, 66_400_000_000).amount == "12.3 of 66.4 GB"


def test_a_model_that_is_here_needs_no_hub(hub: FakeHub, model: HubModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time nothing is asked, and no file is read to be checked."""
    folder = model.fetch()
    forbid(monkeypatch, RemoteFile, "matches")
    hub.asked.clear()

    again = model.fetch()

    assert (again, hub.asked) == (folder, [])


def test_stock_is_told_before_a_download(
    hub: FakeHub, model: HubModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """How much it is, what of it is here, and what the disk has; nothing is fetched for that."""
    set_free_bytes(monkeypatch, 5_000_000_000)

    before = model.take_stock()

    assert (before.commit, before.total_bytes, before.here_bytes) == (hub.main, hub.total_bytes, 0)
    assert before.free_bytes == 5_000_000_000
    assert hub.sent == {}


def test_a_broken_connection_is_gone_on_with(hub: FakeHub, model: HubModel, caplog: pytest.LogCaptureFixture) -> None:
    """What came before the break is not fetched again, up to the piece that was not written yet."""
    hub.break_after[SHARD] = 300_000

    model.fetch()

    size = len(hub.commits[hub.main][SHARD])
    assert size <= hub.sent[SHARD] < size + CHUNK_BYTES
    assert "Trying to resume" in caplog.text


def test_a_killed_download_is_gone_on_with(hub: FakeHub, tmp_path: Path) -> None:
    """The program ends in the middle of a file; the next one fetches the rest of it."""
    size, written = 25_000_000, 20 * 2**20
    hub.add_commit(transformer__large=os.urandom(size))
    hub.pause_after["transformer/large"] = written + 2**20
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "pipeline", "models", "download", REPOSITORY]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as program:
        deadline = time.monotonic() + 20
        while not any(size_of(part) == written for part in tmp_path.rglob("*.part")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        program.send_signal(signal.SIGKILL)
    hub.sent.clear()
    hub.pause_after.clear()

    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)

    assert hub.sent["transformer/large"] == size - written
    assert "is here and whole" in done.stdout


def test_a_stopped_download_writes_nothing_more(
    hub: FakeHub, model: HubModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who is told of the progress may end it by raising; what came stays for the next time."""
    monkeypatch.setattr(store, "POLL_S", 0.01)
    hub.pause_after[SHARD] = 200_000

    def stop_midway(progress: ModelProgress) -> None:
        if any(size_of(part) > 100_000 for part in tmp_path.rglob("*.part")):
            raise StoppedError

    with pytest.raises(StoppedError):
        model.fetch(stop_midway)
    hub.pause_after.clear()
    hub.go_on.set()
    model.fetch()

    size = len(hub.commits[hub.main][SHARD])
    assert read_files(model.fetch())[SHARD] == hub.commits[hub.main][SHARD]
    assert hub.sent[SHARD] < 2 * size


def test_a_file_with_a_wrong_checksum_is_named_and_fetched_again(hub: FakeHub, model: HubModel) -> None:
    """It never gets into its place; trying again fetches it and no other."""
    hub.spoilt.add(SHARD)
    with pytest.raises(ModelError, match=rf"{SHARD} of “{REPOSITORY}” arrived damaged.*try again") as failure:
        model.fetch()
    hub.spoilt.clear()
    hub.sent.clear()

    model.fetch()

    assert failure.value.field == "model"
    assert hub.sent == {SHARD: len(hub.commits[hub.main][SHARD])}


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)


def test_a_file_damaged_here_is_found_and_fetched_again(hub: FakeHub, model: HubModel) -> None:
    """`verify` names it, of the right size as it is; `fetch` brings it and no other."""
    folder = model.fetch()
    hub.sent.clear()
    damage(folder / SHARD)
    (folder / "vae" / "config.json").unlink()

    broken = model.verify()
    model.fetch()

    assert broken == [SHARD]  # what was removed from the folder still lies in the cache, and is back
    assert hub.sent == {SHARD: len(hub.commits[hub.main][SHARD])}
    assert model.verify() == []


def test_a_changed_file_is_checked_before_it_is_used(hub: FakeHub, model: HubModel) -> None:
    """A file that changed since it was found right is found out without asking for it."""
    damage(model.fetch() / SHARD)

    folder = model.fetch()

    assert (folder / SHARD).read_bytes() == hub.commits[hub.main][SHARD]


def test_nothing_is_checked_that_was_never_fetched(hub: FakeHub, model: HubModel) -> None:
    """There is nothing to compare with."""
    with pytest.raises(ModelError, match="was not downloaded yet"):
        model.verify()


Usage = namedtuple("Usage", "total used free")


def set_free_bytes(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))


def test_what_does_not_fit_is_refused_with_figures(
    hub: FakeHub, model: HubModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Needed and free, before anything is fetched; some room must stay."""
    hub.add_commit(vae__large=bytes(200_000_000))
    set_free_bytes(monkeypatch, store.SPARE_BYTES + 100_000_000)

    with pytest.raises(ModelError, match=r"needs 0.2 GB more in .*, where 1.1 GB are free; make room for 0.1 GB"):
        model.fetch()

    assert hub.sent == {}


def test_offline_means_that_nothing_is_asked(
    hub: FakeHub, model: HubModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is here whole is used; what is not, is told with the way out."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=r"neither a folder here nor .* downloaded.*offline mode.*unset HF_HUB_OFFLINE"
    ):
        model.fetch()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = model.fetch()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()

    assert model.fetch() == folder
    damage(folder / SHARD)
    with pytest.raises(ModelError, match=rf"lacks {SHARD}, and the hub is not to be asked"):
        model.fetch()
    assert hub.asked == []


def refuse_connections(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        point_at(f"http://127.0.0.1:{probe.getsockname()[1]}", monkeypatch)


def know_no_name(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    point_at("http://hub.invalid", monkeypatch)


def fail_inside(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.status = 503


def say_nothing(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.is_silent = True


AWAY = [
    (refuse_connections, "no connection"),
    (know_no_name, "no connection"),
    (fail_inside, "it answers with status 503"),
    (say_nothing, "no answer"),
]


@pytest.mark.parametrize(("leave", "reason"), AWAY)
def test_a_hub_that_is_away_is_told_at_once(
    leave: Callable[[FakeHub, pytest.MonkeyPatch], None],
    reason: str,
    hub: FakeHub,
    model: HubModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One plain sentence within five seconds, from one question, not after retries."""
    leave(hub, monkeypatch)
    began = time.monotonic()

    with pytest.raises(ModelError, match=rf"the hub at http://.* cannot be reached \({reason}\); check the connection"):
        model.fetch()

    assert time.monotonic() - began < 5
    assert len(hub.asked) <= 1


REFUSALS = [
    ({"status": 401, "error_code": "GatedRepo"}, "only for those who accept its terms.*hf auth login"),
    ({"status": 404, "error_code": "RepoNotFound"}, f"The hub has no model “{REPOSITORY}”"),
    ({"status": 403}, r"The hub refuses “studio/tiny” \(status 403\)"),
]


@pytest.mark.parametrize(("answer", "sentence"), REFUSALS)
def test_a_refusal_is_told_as_what_it_is(answer: dict[str, Any], sentence: str, hub: FakeHub, model: HubModel) -> None:
    """Who must act is the person, and the sentence says how."""
    vars(hub).update(answer)

    with pytest.raises(ModelError, match=sentence):
        model.fetch()


def test_a_download_that_breaks_off_says_how_far_it_came(
    hub: FakeHub, model: HubModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the hub in the middle ends it, with what is here kept."""
    model.take_stock()
    hub.status = 500

    with pytest.raises(ModelError, match=r"broke off at 0.0 of 0.0 GB \(it answers with status 500\); try again"):
        model.fetch()


def test_the_first_download_pins_the_commit(hub: FakeHub, model: HubModel) -> None:
    """When `main` moves on, even in the middle of that download, the model stays what it was."""
    first = hub.main
    model.take_stock()
    hub.add_commit(vae__config=b"another")

    folder = model.fetch()

    assert folder.name == first
    assert not (folder / "vae" / "config").exists()


def test_an_update_fetches_only_what_changed(hub: FakeHub, model: HubModel) -> None:
    """It is asked for; files that both commits have are not fetched again."""
    model.fetch()
    first, hub.sent = hub.main, Counter()
    second = hub.add_commit(vae__added=b"another")

    moved = model.update()

    assert moved == (first, second)
    assert hub.sent == {"vae/added": 7}
    assert model.fetch().name == second


def test_an_update_that_fails_leaves_the_model_as_it_was(hub: FakeHub, model: HubModel) -> None:
    """The commit changes when all of it is here."""
    folder = model.fetch()
    hub.add_commit(vae__added=b"another")
    hub.spoilt.add("vae/added")

    with pytest.raises(ModelError, match=r"vae/added .* arrived damaged"):
        model.update()

    assert model.fetch() == folder


def test_a_commit_can_be_asked_for(hub: FakeHub, model: HubModel, tmp_path: Path) -> None:
    """As the pin of a model's entry, or as a library's argument; a name that is none is told."""
    first = hub.main
    hub.add_commit(vae__added=b"another")

    folder = HubModel(Repository(REPOSITORY), first, tmp_path).fetch()

    assert folder.name == first
    with pytest.raises(ModelError, match="The hub has no revision “old” of “studio/tiny”; try main"):
        HubModel(Repository(REPOSITORY), "old", tmp_path).fetch()


def test_the_model_is_safe_from_pruning(hub: FakeHub, model: HubModel, tmp_path: Path) -> None:
    """For huggingface_hub it is a referenced revision of its cache, without a fault."""
    model.fetch()

    cache = huggingface_hub.scan_cache_dir(tmp_path / "hub")

    assert cache.warnings == []
    revisions = [revision for repo in cache.repos for revision in repo.revisions]
    assert [(revision.commit_hash, set(revision.refs)) for revision in revisions] == [(hub.main, {store.OURS})]


def test_what_another_program_brought_serves_while_the_hub_is_away(
    hub: FakeHub, model: HubModel, tmp_path: Path
) -> None:
    """It cannot be checked without the hub, but it is better than nothing."""
    place = tmp_path / "hub" / "models--studio--tiny"
    shutil.copytree(GOLDEN / "tiny_vap", place / "snapshots" / hub.main)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(hub.main)
    hub.status = 503

    folder = model.fetch()

    assert folder == place / "snapshots" / hub.main


def test_what_another_program_brought_is_checked_and_not_fetched_again(
    hub: FakeHub, model: HubModel, tmp_path: Path
) -> None:
    """The hub tells the checksums; the files are here."""
    shutil.copytree(GOLDEN / "tiny_vap", tmp_path / "hub" / "models--studio--tiny" / "snapshots" / hub.main)

    told: list[ModelProgress] = []
    model.fetch(told.append)

    assert hub.sent == {}
    assert told[-1] == ModelProgress("verifying", hub.total_bytes, hub.total_bytes)


def test_files_that_are_alike_do_not_disturb_each_other(hub: FakeHub, model: HubModel) -> None:
    """They come at the same time and are one in the cache."""
    content = os.urandom(50_000)
    hub.add_commit(vae__one=content, vae__two=content, vae__three=content)

    folder = model.fetch()

    assert [(folder / "vae" / name).read_bytes() == content for name in ("one", "two", "three")] == [True] * 3


def test_a_cache_one_may_only_read_serves_what_is_in_it(
    hub: FakeHub, model: HubModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container with the models mounted; without the model, the sentence names the folder."""

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store, "_write", refuse)
    with pytest.raises(ModelError, match=r"hub cannot be written \(Permission denied\); set HF_HUB_CACHE"):
        model.fetch()
    place = tmp_path / "hub" / "models--studio--tiny"
    shutil.rmtree(place)
    shutil.copytree(GOLDEN / "tiny_vap", place / "snapshots" / hub.main)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(hub.main)

    assert model.fetch() == place / "snapshots" / hub.main


def test_two_programs_fetch_it_once(hub: FakeHub, model: HubModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits, tells how far the first is, and finds it here."""
    monkeypatch.setattr(store, "POLL_S", 0.02)
    hub.pause_after[SHARD] = 100_000
    told: list[ModelProgress] = []
    first = threading.Thread(target=model.fetch)
    first.start()
    while not hub.sent[SHARD]:
        time.sleep(0.01)

    def let_go(progress: ModelProgress) -> None:
        told.append(progress)
        hub.go_on.set()

    folder = model.fetch(let_go)
    first.join()

    assert hub.sent[SHARD] == len(hub.commits[hub.main][SHARD])
    assert told[0].stage == "downloading"
    assert read_files(folder)[SHARD] == hub.commits[hub.main][SHARD]
