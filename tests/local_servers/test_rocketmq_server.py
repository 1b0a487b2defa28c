"""A real RocketMQ; it takes some seconds to start, so the tests share one and leave it running."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from coupon_clock.local_servers import ports, remoting
from coupon_clock.local_servers.detached import find
from coupon_clock.local_servers.errors import ServerDidNotStart
from coupon_clock.local_servers.rocketmq_server import BROKER, NAME_SERVER, LocalRocketMQ, home

pytestmark = pytest.mark.rocketmq


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRocketMQ]:
    server = LocalRocketMQ(tmp_path_factory.mktemp("rocketmq with spaces"))
    yield server
    server.kill()


@pytest.fixture
def rocketmq(shared: LocalRocketMQ) -> LocalRocketMQ:
    shared.start()
    return shared


def pid_of(rocketmq: LocalRocketMQ) -> int:
    process = rocketmq.process()
    assert process is not None
    return process.pid


def topic_of_store(rocketmq: LocalRocketMQ, topic: str) -> bool:
    return f'"{topic}"' in (rocketmq.folder / "store" / "config" / "topics.json").read_text()


def test_what_is_provisioned_can_be_used_at_once_and_may_be_provisioned_again(rocketmq: LocalRocketMQ) -> None:
    here = rocketmq.ports
    for _ in range(2):
        rocketmq.provision("alarms", "clock")
        assert remoting.knows_route(here.proxy_remoting, "alarms")
    assert topic_of_store(rocketmq, "alarms")
    assert not remoting.knows_route(here.name_server, "another")


def test_a_running_one_is_adopted_also_from_another_process(rocketmq: LocalRocketMQ) -> None:
    endpoints, pid = rocketmq.endpoints, pid_of(rocketmq)
    start = (
        "from pathlib import Path;"
        "from coupon_clock.local_servers.rocketmq_server import LocalRocketMQ;"
        f"print(LocalRocketMQ(Path({str(rocketmq.folder)!r})).start())"
    )
    other = subprocess.run([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True, check=True)
    assert other.stdout.strip() == endpoints
    assert pid_of(rocketmq) == pid


def test_both_servers_carry_the_folder_in_their_arguments_and_write_nowhere_else(rocketmq: LocalRocketMQ) -> None:
    process = rocketmq.process()
    assert process is not None
    arguments = process.cmdline()
    for place in "rocketmq.home.dir", "user.home":
        assert f"-D{place}={rocketmq.folder}" in arguments
    assert (rocketmq.folder / "logs").is_dir()


def test_it_listens_on_the_loopback_interface_only(rocketmq: LocalRocketMQ) -> None:
    processes = [find(home(rocketmq.folder), program) for program in (NAME_SERVER, BROKER)]
    listening = [
        connection.laddr
        for process in processes
        for connection in (process.net_connections("tcp") if process else [])
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.port for address in listening} == set(rocketmq.ports)
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_killed_hard_it_starts_again_at_the_same_address_with_what_it_had(rocketmq: LocalRocketMQ) -> None:
    rocketmq.provision("kept", "clock")
    endpoints, here = rocketmq.endpoints, rocketmq.ports
    os.kill(pid_of(rocketmq), signal.SIGKILL)
    assert rocketmq.start() == endpoints
    rocketmq.provision("alarms", "clock")
    assert remoting.knows_route(here.name_server, "kept")


def test_a_port_taken_meanwhile_makes_it_move(rocketmq: LocalRocketMQ) -> None:
    before = rocketmq.ports
    rocketmq.stop()
    assert not rocketmq.is_running()
    assert rocketmq.process() is None
    with socket.create_server(("127.0.0.1", before.broker)):
        rocketmq.start()
        assert not set(before) & set(rocketmq.ports)
        rocketmq.provision("alarms", "clock")


def test_a_broker_that_will_not_start_is_reported_with_its_log_and_leaves_nothing_running(tmp_path: Path) -> None:
    rocketmq = LocalRocketMQ(tmp_path)
    (tmp_path / "store").touch()
    with pytest.raises(ServerDidNotStart, match=r"RocketMQ's broker did not start: .*broker\.log"):
        rocketmq.start()
    assert rocketmq.process() is None
    assert all(ports.is_free(port) for port in rocketmq.ports)
