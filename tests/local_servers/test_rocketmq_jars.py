"""Jars come through jgo from a repository on this machine, whole or not."""

import hashlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from coupon_clock.infrastructure.progress import no_progress
from coupon_clock.local_servers import rocketmq_jars
from coupon_clock.local_servers.errors import JarDamaged, JarNotDownloaded
from coupon_clock.local_servers.rocketmq_jars import Jar, cache_folder
from coupon_clock.local_servers.rocketmq_server import java

CONTENT = {"one": b"1" * 3000, "two": b"2" * 2000, "three": b"3" * 1000}
JARS = [Jar("org.example", n, "", "1.0", hashlib.sha256(c).hexdigest(), len(c)) for n, c in CONTENT.items()]


class Repository(ThreadingHTTPServer):
    """Serves the jars by name, and keeps the names it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = {f"{name}-1.0.jar": content for name, content in CONTENT.items()}
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    server: Repository

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        content = self.server.content.get(name)
        self.send_response(200 if content is not None else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")
        if content is not None:
            self.server.asked.append(name)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Repository]:
    with Repository() as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("jgo.maven._core.DEFAULT_REMOTE_REPOS", {"here": address})
        monkeypatch.setattr(rocketmq_jars, "pinned", lambda: JARS)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr("sys.platform", "linux")
        Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.shutdown()


def jars_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.jar")}


def test_jars_are_fetched_once(repository: Repository) -> None:
    folder = rocketmq_jars.rocketmq_jars()
    assert jars_in(folder) == repository.content
    assert rocketmq_jars.rocketmq_jars() == folder
    assert sorted(repository.asked) == sorted(repository.content)


def test_only_a_jar_cut_short_in_the_cache_is_fetched_again(repository: Repository) -> None:
    folder = rocketmq_jars.rocketmq_jars()
    (folder / "two-1.0.jar").write_bytes(CONTENT["two"][:-1])
    repository.asked.clear()
    rocketmq_jars.rocketmq_jars()
    assert repository.asked == ["two-1.0.jar"]
    assert jars_in(folder) == repository.content


def test_a_jar_of_the_same_size_and_other_content_in_the_cache_is_fetched_again(repository: Repository) -> None:
    folder = rocketmq_jars.rocketmq_jars()
    (folder / "two-1.0.jar").write_bytes(b"5" * len(CONTENT["two"]))
    repository.asked.clear()
    rocketmq_jars.rocketmq_jars()
    assert repository.asked == ["two-1.0.jar"]
    assert jars_in(folder) == repository.content


def test_only_pinned_jars_are_on_the_class_path(tmp_path: Path) -> None:
    class_path = java(tmp_path, tmp_path)[-1]
    assert class_path.split(":") == [str(tmp_path / jar.filename) for jar in rocketmq_jars.pinned()]


def test_a_damaged_download_is_named_and_not_kept_and_the_next_try_fetches_it_again(repository: Repository) -> None:
    repository.content["three-1.0.jar"] = b"4" * 1000
    with pytest.raises(JarDamaged, match=r"org\.example:three:1\.0 arrived damaged"):
        rocketmq_jars.rocketmq_jars()
    folder = cache_folder() / "rocketmq-5.5.0"
    assert "three-1.0.jar" not in jars_in(folder)

    repository.content["three-1.0.jar"] = CONTENT["three"]
    assert jars_in(rocketmq_jars.rocketmq_jars()) == repository.content


def test_what_has_arrived_before_a_failure_is_kept(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rocketmq_jars, "THREADS", 1)
    del repository.content["three-1.0.jar"]
    with pytest.raises(JarNotDownloaded, match=r"org\.example:three:1\.0"):
        rocketmq_jars.rocketmq_jars()
    assert sorted(jars_in(cache_folder() / "rocketmq-5.5.0")) == ["one-1.0.jar", "two-1.0.jar"]


def test_what_a_killed_download_left_is_not_taken_for_a_jar(repository: Repository) -> None:
    folder = cache_folder() / "rocketmq-5.5.0"
    half = folder / "arriving" / "org" / "example" / "one" / "1.0" / "one-1.0.jar"
    half.parent.mkdir(parents=True)
    half.write_bytes(CONTENT["one"][:10])
    assert jars_in(rocketmq_jars.rocketmq_jars()) == repository.content
    assert not (folder / "arriving").exists()


def test_progress_counts_every_byte_up_to_the_total(repository: Repository) -> None:
    steps: list[tuple[str, int, int]] = []
    rocketmq_jars.rocketmq_jars(lambda *step: steps.append(step))
    assert steps[-1] == ("Fetching RocketMQ", 6000, 6000)


def test_without_a_network_the_error_names_a_jar_and_what_to_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    for name in "HTTPS_PROXY", "https_proxy":
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with pytest.raises(JarNotDownloaded, match=r"rocketmq-rocksdb:1\.0\.6 .*check the network"):
        rocketmq_jars.fetch(
            [jar for jar in rocketmq_jars.pinned() if jar.name == "rocketmq-rocksdb"], tmp_path, no_progress
        )


def test_the_pinned_jars_hold_all_servers_and_have_names_of_their_own() -> None:
    jars = rocketmq_jars.pinned()
    names = {jar.filename for jar in jars}
    assert {f"rocketmq-{part}-5.5.0.jar" for part in ("namesrv", "broker", "proxy", "tools")} <= names
    assert len(names) == len(jars) == 151
