"""`revolve doctor redis://…`: one sentence for each thing that is wrong, and what to do about it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from revolve_assistant import Client
from revolve_assistant.cli import main
from revolve_assistant.engine import Outcome, Parcel
from revolve_assistant.providers import registry
from revolve_assistant.providers.diagnosis import Finding, diagnose
from revolve_assistant.testing.servers import Memcached, Redis, Sentinel
from revolve_assistant.testing.tasks import submit, take
from revolve_assistant.worker import Worker

WAIT = 20.0  # seconds that nothing here should take


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REVOLVE_SECRET", "a secret of 32 characters or more for tests")


@pytest.fixture
def server(need: Any) -> Iterator[Redis]:
    need("redis-server")
    with Redis() as server:
        yield server


def found(address: Any) -> dict[str, Finding]:
    """By subject; each is there once."""
    findings = diagnose(getattr(address, "url", address))
    by_subject = {each.subject: each for each in findings}
    assert len(by_subject) == len(findings)
    return by_subject


def wrong(address: Any) -> dict[str, str]:
    return {name: each.text for name, each in found(address).items() if each.level == "wrong"}


def test_a_sound_server(need: Any, capsys: pytest.CaptureFixture[str]) -> None:
    need("redis-server")
    with Redis("--appendonly", "yes", "--maxmemory", "100mb") as server:
        assert main(["doctor", server.url]) == 0
        out, errors = capsys.readouterr()
        assert errors == ""
        assert "WRONG" not in out
        assert "note" not in out
        seen = found(server)
        assert seen["disk"].text.startswith("it logs every change, and writes once a second")
        here = seen[f"127.0.0.1:{server.port}"]
        assert here.data is not None
        assert here.data["kind"] == "Redis"
        assert 0 < here.data["seconds"] < 1
        assert seen["memory"].text.endswith("of 105 MB used")


def test_one_sentence_says_what_is_wrong(server: Redis, capsys: pytest.CaptureFixture[str]) -> None:
    server.kill()
    assert main(["doctor", server.url]) == 1
    assert capsys.readouterr().err == (
        f"revolve doctor: 127.0.0.1:{server.port}: redis at 127.0.0.1:{server.port}: nothing listens there: start it "
        "(redis-server), or correct host and port\n"
    )


def test_a_server_that_hangs(server: Redis) -> None:
    server.freeze()
    began = time.monotonic()
    assert "no answer in time" in wrong(f"{server.url}?timeout=0.2")[f"127.0.0.1:{server.port}"]
    assert time.monotonic() - began < 2
    server.thaw()


def test_another_program_on_the_port(need: Any) -> None:
    need("memcached")
    with Memcached() as other:
        (text,) = wrong(f"redis://127.0.0.1:{other.port}?timeout=1").values()
        assert "correct the port" in text


def test_addresses_that_cannot_be(server: Redis) -> None:
    assert "number of a database" in wrong(f"{server.url}/shop")["address"]
    assert "timeout" in wrong(f"{server.url}?timout=3")["address"]
    assert "DB index" in next(iter(wrong(f"{server.url}/99").values()))


def test_passwords_are_not_printed(server: Redis, capsys: pytest.CaptureFixture[str]) -> None:
    server.ask("CONFIG", "SET", "requirepass", "the-right-one")
    assert main(["doctor", f"redis://:hunter2-secret@127.0.0.1:{server.port}"]) == 1
    assert main(["doctor", "--json", f"redis://:the-right-one@127.0.0.1:{server.port}"]) == 0
    assert main(["doctor", server.url]) == 1
    out, errors = capsys.readouterr()
    assert "refuses the user or the password" in out
    assert "wants a password" in out
    assert "hunter2" not in out + errors
    assert "the-right-one" not in out + errors


DISKS = {
    (): ("note", "writes nothing to its disk"),
    ("--save", "60 1"): ("note", "only saves a copy now and then"),
    ("--appendonly", "yes", "--appendfsync", "always"): ("ok", "nothing is lost in a crash"),
    ("--appendonly", "yes", "--appendfsync", "no"): ("note", "appendfsync everysec"),
}


@pytest.mark.parametrize("settings", DISKS, ids=lambda settings: "-".join(settings[1::2]) or "none")
def test_what_a_restart_keeps(need: Any, settings: tuple[str, ...]) -> None:
    need("redis-server")
    with Redis(*settings) as server:
        finding = found(server)["disk"]
    level, text = DISKS[settings]
    assert finding.level == level
    assert text in finding.text


def test_a_disk_that_cannot_be_written(need: Any) -> None:
    need("redis-server")
    with Redis("--save", "3600 1", "--dbfilename", "folder") as server:
        os.makedirs(f"{server.folder}/folder/in the way")
        server.ask("SET", "key", "value")
        assert server.ask("SAVE").startswith("-")
        server.ask("BGSAVE")
        server.ask("INFO", until=lambda text: "rdb_last_bgsave_status:err" in text)
        assert "failed to save" in wrong(server)["disk"]


def test_memory(server: Redis) -> None:
    assert "no bound" in found(server)["memory"].text
    used = int(server.ask("INFO", "memory").partition("used_memory:")[2].split()[0])
    server.ask("CONFIG", "SET", "maxmemory", str(used + 100_000))
    server.ask("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    seen = wrong(server)
    assert "throws keys away (volatile-lru" in seen["eviction"]
    assert "soon it takes nothing any more" in seen["memory"]


def test_connections_and_buffers(server: Redis) -> None:
    server.ask("CONFIG", "SET", "maxclients", "1")
    server.ask("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 0 0")
    seen = wrong(server)
    assert seen["connections"] == "1 connection of 1: soon nobody gets in; raise maxclients"
    assert "client-output-buffer-limit pubsub 32mb 8mb 60" in seen["buffers"]


def test_replicas_and_sentinels(server: Redis) -> None:
    with Redis(replica_of=server) as replica, Sentinel(server) as sentinel:
        sentinel.knows(replica)
        assert f"name 127.0.0.1:{server.port}" in wrong(replica)["replica"]
        assert "name the sentinels" in found(server)["replicas"].text
        assert found(sentinel)["replicas"].level == "ok"
        assert f"redis+sentinel://127.0.0.1:{sentinel.port}/SERVICE/0" in str(
            wrong(f"redis://127.0.0.1:{sentinel.port}")
        )
        assert "knows no service" in str(wrong(sentinel.url.replace("/tasks/", "/other/")))


def test_a_user_with_few_rights_is_told_what_is_missing_and_no_more(server: Redis) -> None:
    words = ("~{assistant}:*", "&{assistant}:*", "+@all", "-@admin", "-@dangerous")
    assert server.ask("ACL", "SETUSER", "shop", "on", ">word", *words).startswith("+OK")
    url = f"redis://shop:word@127.0.0.1:{server.port}"
    assert "+info" in found(url)["rights"].text
    assert wrong(url) == {}
    server.ask("ACL", "SETUSER", "shop", "+info")
    assert "rights" not in found(url)


def test_tasks_and_who_takes_them(server: Redis) -> None:
    with Client(server.url) as client:
        waiting = client.options(queue="mails-é").submit(len, "")
        waiting.queued(WAIT)
        assert wrong(server) == {
            "queue mails-é": "1 waiting, 0 running, the oldest for 0 seconds: nobody takes them; start one: revolve "
            f"worker {server.url} -q mails-é"
        }
        data = found(server)["channels"].data
        assert data is not None
        assert (data["channels"], data["tasks"], data["all"]) == (2, 1, True)
        with Worker(server.url, queues="mails-é", concurrency=1) as worker:
            assert worker.wait_ready(WAIT)
            assert waiting.result(WAIT) == 0
            assert wrong(server) == {}
            assert found(server)["workers"].data == {"workers": 1}
    assert found(f"{server.url}?namespace=other")["queues"].text == "no task of the namespace other is here"


def test_what_failed_and_what_is_kept_back(server: Redis) -> None:
    queue: Any = registry.engine(server.url)
    queue.open()
    submit(queue, Parcel("a"), Parcel("b", name="app:send"))
    queue.set_rule("app:send", paused=True)
    (lease,) = take(queue, "default")
    assert list(queue.take(["default"], limit=1, wait=0)) == []
    queue.settle([(lease, Outcome("bury", reason="no"))])
    seen = found(server)
    assert seen["queue default"].text == "0 waiting, 0 running, 1 kept back by a rule, 1 buried"
    assert seen["buried"].text.startswith("1 task failed")
    assert seen["paused"].text.startswith("app:send: nothing of that is run")
    queue.close()


@pytest.mark.timeout(300)
def test_the_kit_by_command(server: Redis, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--check", server.url]) == 0
    out = capsys.readouterr().out
    assert "messenger  made_again" in out
    assert [", 0 failed, " in line for line in out.splitlines()[-2:]] == [True, True]
