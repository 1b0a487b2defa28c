"""Against a RocketMQ that asks who is there: the right credentials work, all others are told what to mend."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from broker_contract import NO_LEAD, due_now, received, refusals
from coupon_clock.infrastructure.local.rocketmq_configuration import Credentials
from coupon_clock.infrastructure.local.rocketmq_server import LocalRocketMQ
from coupon_clock.infrastructure.rocketmq import RocketMQBroker
from coupon_clock.infrastructure.rocketmq_client.errors import CredentialsRefused
from coupon_clock.infrastructure.settings import Settings

pytestmark = pytest.mark.rocketmq

TOPIC, GROUP, ANOTHER_TOPIC = "guarded", "guard", "not-theirs"
SECRET = "open sesame"
OWNER = Credentials("owner", SecretStr("only the owner knows"))
CLOCK = Credentials("clock", SecretStr(SECRET))


@pytest.fixture(scope="module")
def guarded(server_folder: Path) -> Iterator[LocalRocketMQ]:
    server = LocalRocketMQ(server_folder / "guarded", OWNER)
    server.start()
    server.provision(TOPIC, GROUP)
    server.provision(ANOTHER_TOPIC, GROUP)
    server.admit(CLOCK, TOPIC, GROUP)
    yield server
    server.kill()


@contextmanager
def opened(server: LocalRocketMQ, topic: str, access_key: str, secret_key: str) -> Iterator[RocketMQBroker]:
    settings = Settings(
        rocketmq_endpoints=server.endpoints,
        rocketmq_topic=topic,
        rocketmq_group=GROUP,
        rocketmq_access_key=access_key,
        rocketmq_secret_key=secret_key,
    )
    broker = RocketMQBroker.open(settings)
    try:
        yield broker
    finally:
        broker.close()


def test_the_right_credentials_publish_receive_and_acknowledge(guarded: LocalRocketMQ) -> None:
    with opened(guarded, TOPIC, "clock", SECRET) as broker:
        message = due_now()
        broker.publish([message], NO_LEAD)
        assert len(received(broker, [message])) == 1


@pytest.mark.parametrize(
    ("topic", "access_key", "secret_key"),
    [
        pytest.param(TOPIC, "", "", id="missing"),
        pytest.param(TOPIC, "clock", f"{SECRET}?", id="wrong"),
        pytest.param(TOPIC, "nobody", SECRET, id="of nobody"),
        pytest.param(ANOTHER_TOPIC, "clock", SECRET, id="for another topic"),
    ],
)
def test_other_credentials_are_refused_with_what_mends_it_and_without_the_secret(
    guarded: LocalRocketMQ, capfd: pytest.CaptureFixture[str], topic: str, access_key: str, secret_key: str
) -> None:
    with opened(guarded, topic, access_key, secret_key) as broker:
        told = refusals(broker)
    for refusal in told:
        assert isinstance(refusal, CredentialsRefused)
        assert "COUPON_CLOCK_ROCKETMQ_ACCESS_KEY" in str(refusal)
        assert f"Topic:{topic},Group:{GROUP}" in str(refusal)
    written = "".join([*capfd.readouterr(), *map(str, told), *map(repr, told)])
    assert "broker_lost" in written
    assert SECRET not in written
