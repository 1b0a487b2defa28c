"""RocketMQBroker where no RocketMQ is: at start, by mistake, in a host that wants nothing touched."""

import subprocess
import sys
import textwrap
from pathlib import Path
from threading import active_count

import pytest

from broker_contract import LONG, NO_LEAD, SHORT, due_now
from coupon_clock.infrastructure.messaging.broker import BrokerUnavailable, Delivery
from coupon_clock.infrastructure.messaging.rocketmq.access import Access
from coupon_clock.infrastructure.messaging.rocketmq.broker import RocketMQBroker
from coupon_clock.infrastructure.settings import Settings

NOBODY = "127.0.0.1:1"


def test_an_unreachable_broker_shows_at_the_first_call_not_before() -> None:
    broker = RocketMQBroker.open(Settings(rocketmq_endpoints=NOBODY))
    with pytest.raises(BrokerUnavailable):
        broker.publish([due_now()], NO_LEAD)
    with pytest.raises(BrokerUnavailable):
        broker.receive(1, LONG, SHORT)
    with pytest.raises(BrokerUnavailable):
        broker.acknowledge([Delivery("id", b"body", None)])
    broker.close()
    assert broker.receive(1, LONG, SHORT) == []


def test_many_failed_tries_leave_no_threads_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coupon_clock.infrastructure.backoff.LONGEST_S", 0.0)
    broker = RocketMQBroker.open(Settings(rocketmq_endpoints=NOBODY))
    fail(broker, 1)
    one = active_count()
    fail(broker, 100)
    assert active_count() <= one + 10
    broker.close()


def test_the_secret_is_in_no_repr() -> None:
    settings = Settings(rocketmq_endpoints=NOBODY, rocketmq_access_key="key", rocketmq_secret_key="sesame")
    assert "sesame" not in repr(Access.of(settings))
    assert "sesame" not in repr(vars(RocketMQBroker.open(settings)))


def test_the_client_touches_neither_the_home_folder_nor_the_hosts_logging(tmp_path: Path) -> None:
    host = """
        import logging, sys
        logging.basicConfig(filename=sys.argv[1], level=logging.DEBUG)
        handlers, before = list(logging.root.handlers), logging.root.level

        from coupon_clock.infrastructure.messaging.broker import BrokerUnavailable
        from coupon_clock.infrastructure.messaging.rocketmq.access import Access
        from coupon_clock.infrastructure.messaging.rocketmq.connection import Connection
        from coupon_clock.infrastructure.settings import Settings

        access = Access.of(Settings(rocketmq_endpoints="127.0.0.1:1"))
        for build in Connection.for_sending, Connection.for_receiving:
            build(access).close()
        assert logging.root.handlers == handlers and logging.root.level == before
        logging.getLogger("host").info("still heard")
    """
    (home := tmp_path / "home").write_text("a file, so that nothing can be made in it, not even by root")
    log = tmp_path / "host.log"
    command = [sys.executable, "-c", textwrap.dedent(host), str(log)]
    ran = subprocess.run(command, env={"HOME": str(home), **search_path()}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""
    assert "INFO:host:still heard" in log.read_text()
    assert "rocketmq" not in log.read_text()


def search_path() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(filter(None, sys.path))}


def fail(broker: RocketMQBroker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(BrokerUnavailable):
            broker.receive(1, LONG, SHORT)
