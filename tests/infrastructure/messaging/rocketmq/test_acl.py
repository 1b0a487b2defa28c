"""Against a RocketMQ that asks who is there: the right credentials work, all others learn what to fix."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr

from broker_contract import NO_LEAD, due_now, received, refusals
from coupon_clock.infrastructure.messaging.rocketmq.broker import RocketMQBroker
from coupon_clock.infrastructure.messaging.rocketmq.errors import CredentialsRefused
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.local_servers.rocketmq_server import LocalRocketMQ
from coupon_clock.maintenance.doctor import examine
from rocketmq_acl import Credentials, admit, guarded_rocketmq

pytestmark = pytest.mark.rocketmq

TOPIC, GROUP, ANOTHER_TOPIC = "guarded", "guard", "not-theirs"
ON_TOPIC, AS_GROUP = f"Topic:{TOPIC}", f"Group:{GROUP}"
SECRET = "open sesame"
OWNER = Credentials("owner", SecretStr("only the owner knows"))
CLOCK = Credentials("clock", SecretStr(SECRET))


@pytest.fixture(scope="module")
def guarded(server_folder: Path) -> Iterator[LocalRocketMQ]:
    server = guarded_rocketmq(server_folder / "guarded", OWNER)
    server.start()
    server.provision(TOPIC, GROUP)
    server.provision(ANOTHER_TOPIC, GROUP)
    admit(server, CLOCK, {ON_TOPIC: ["Pub", "Sub"], AS_GROUP: ["Sub"]})
    yield server
    server.kill()


def signed(server: LocalRocketMQ, topic: str, access_key: str, secret_key: str, **others: object) -> Settings:
    return Settings.load(
        rocketmq_endpoints=server.endpoints,
        rocketmq_topic=topic,
        rocketmq_group=GROUP,
        rocketmq_access_key=access_key,
        rocketmq_secret_key=secret_key,
        **others,
    )


@contextmanager
def opened(settings: Settings) -> Iterator[RocketMQBroker]:
    broker = RocketMQBroker.open(settings)
    try:
        yield broker
    finally:
        broker.close()


def test_the_right_credentials_publish_receive_and_acknowledge(guarded: LocalRocketMQ) -> None:
    with opened(signed(guarded, TOPIC, "clock", SECRET)) as broker:
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
def test_other_credentials_are_refused_with_how_to_fix_it_and_without_the_secret(
    guarded: LocalRocketMQ,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    topic: str,
    access_key: str,
    secret_key: str,
) -> None:
    with opened(signed(guarded, topic, access_key, secret_key)) as broker:
        refused = refusals(broker)
    for refusal in refused:
        assert isinstance(refusal, CredentialsRefused)
        assert "COUPON_CLOCK_ROCKETMQ_ACCESS_KEY" in str(refusal)
        assert f"Topic:{topic},Group:{GROUP}" in str(refusal)
    written = "".join([*capfd.readouterr(), caplog.text, *map(str, refused), *map(repr, refused)])
    assert "broker_lost" in written
    assert SECRET not in written


@pytest.mark.parametrize(
    ("rights", "part", "refused"),
    [
        pytest.param({ON_TOPIC: ["Pub"], AS_GROUP: ["Sub"]}, "group", ON_TOPIC, id="not receive from the topic"),
        pytest.param({ON_TOPIC: ["Pub", "Sub"]}, "group", AS_GROUP, id="not receive as the group"),
        pytest.param({ON_TOPIC: ["Sub"], AS_GROUP: ["Sub"]}, "topic", ON_TOPIC, id="not publish"),
    ],
)
def test_doctor_names_what_the_credentials_may_not_do(
    guarded: LocalRocketMQ, database_url: str, rights: dict[str, list[str]], part: str, refused: str
) -> None:
    user = f"user-{uuid4()}"
    admit(guarded, Credentials(user, SecretStr(SECRET)), rights)

    settings = signed(guarded, TOPIC, user, SECRET, database_url=database_url)
    found = {diagnosis.part: diagnosis.says for diagnosis in examine(settings) if not diagnosis.ok}

    assert list(found) == ["processes", part]  # none runs here
    assert f"User:{user} has no permission to access {refused} " in found[part]
    assert "mqadmin createAcl" in found[part]
