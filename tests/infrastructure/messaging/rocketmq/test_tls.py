"""Over TLS, as the settings ask for it: with a certificate that can be trusted it works, else one sentence says why."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from broker_contract import refusals
from coupon_clock.infrastructure.messaging.broker import BrokerUnavailable
from coupon_clock.infrastructure.messaging.rocketmq.broker import RocketMQBroker
from coupon_clock.infrastructure.messaging.rocketmq.errors import (
    CertificateNotTrusted,
    ConnectionClosedAtOnce,
    TlsNotSpoken,
)
from coupon_clock.infrastructure.settings import Settings
from coupon_clock.local_servers import ports
from coupon_clock.local_servers.detached import end, launch, running, telling_line, until
from coupon_clock.local_servers.rocketmq_configuration import CLUSTER
from coupon_clock.local_servers.rocketmq_jars import rocketmq_jars
from coupon_clock.local_servers.rocketmq_server import (
    START_SECONDS,
    STOP_SECONDS,
    LocalRocketMQ,
    empty,
    java,
    prepare,
)
from rocketmq_cluster import PROXY

pytestmark = pytest.mark.rocketmq

NAME = "sealed"

# gRPC reads once a process whom to trust, so whoever trusts the authority is a process of its own.
CLIENT = """
    from broker_contract import NO_LEAD, due_now, received
    from coupon_clock.infrastructure.messaging.rocketmq.broker import RocketMQBroker
    from coupon_clock.infrastructure.settings import Settings

    broker = RocketMQBroker.open(Settings.load())
    message = due_now()
    broker.publish([message], NO_LEAD)
    print("received and acknowledged:", len(received(broker, [message])))
    broker.close()
"""


@pytest.fixture(scope="module")
def folder(server_folder: Path) -> Path:
    """With `authority.pem`, and what that authority has certified: the proxy of 127.0.0.1."""
    folder = server_folder / NAME
    empty(folder)
    authority = trustme.CA()
    certified = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    certified.cert_chain_pems[0].write_to_path(folder / "proxy.pem")
    key = load_pem_private_key(certified.private_key_pem.bytes(), password=None)
    (folder / "proxy.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder


@pytest.fixture(scope="module")
def sealed(rocketmq: LocalRocketMQ, folder: Path) -> Iterator[int]:
    """The port of another proxy of the shared RocketMQ, which speaks nothing but TLS."""
    rocketmq.provision(NAME, NAME)
    port = ports.free_block(2)
    configuration = {
        "rocketMQClusterName": CLUSTER,
        "proxyMode": "CLUSTER",
        "namesrvAddr": f"127.0.0.1:{rocketmq.ports.name_server}",
        "grpcServerPort": port,
        "remotingListenPort": port + 1,
        "tlsTestModeEnable": False,
        "tlsCertPath": str(folder / "proxy.pem"),
        "tlsKeyPath": str(folder / "proxy.key"),
    }
    (folder / "proxy.json").write_text(json.dumps(configuration))
    prepare(folder, rocketmq_jars())
    only_tls = ["-Dtls.server.mode=enforcing", "-Dtls.enable=false"]  # the latter: but not to the broker behind it
    command = [*java(folder, rocketmq_jars()), *only_tls, "-Xmx256m", PROXY, "-pm", "cluster", "-pc", "proxy.json"]
    proxy = psutil.Process(launch(command, folder / "proxy.log"))
    until(lambda: ports.accepts(port) or not running(proxy), START_SECONDS)
    assert ports.accepts(port), telling_line(folder / "proxy.log")
    yield port
    end([proxy], signal.SIGKILL, STOP_SECONDS)


def test_over_tls_messages_are_published_received_and_acknowledged(sealed: int, folder: Path) -> None:
    ran = client(f"127.0.0.1:{sealed}", trusting=folder / "authority.pem")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["received and acknowledged: 1"]


def test_a_certificate_for_another_name_is_refused_with_how_to_fix_it(sealed: int, folder: Path) -> None:
    ran = client(f"localhost:{sealed}", trusting=folder / "authority.pem")
    assert ran.returncode == 1
    assert "CertificateForAnotherName: RocketMQ's certificate is for another name" in ran.stderr
    assert "COUPON_CLOCK_ROCKETMQ_ENDPOINTS" in ran.stderr


def test_a_certificate_of_an_unknown_authority_is_refused_with_how_to_fix_it(sealed: int) -> None:
    for refusal in refused(f"127.0.0.1:{sealed}", tls=True):
        assert isinstance(refusal, CertificateNotTrusted)
        assert refusal.reason == "unable to get local issuer certificate"
        assert "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH" in str(refusal)


def test_tls_with_a_proxy_that_speaks_none_is_named_with_the_setting(rocketmq: LocalRocketMQ) -> None:
    for refusal in refused(rocketmq.endpoints, tls=True):
        assert isinstance(refusal, TlsNotSpoken)
        assert "COUPON_CLOCK_ROCKETMQ_TLS=false" in str(refusal)


def test_no_tls_with_a_proxy_that_speaks_nothing_else_is_named_with_the_setting(sealed: int) -> None:
    for refusal in refused(f"127.0.0.1:{sealed}", tls=False):
        assert isinstance(refusal, ConnectionClosedAtOnce)
        assert "COUPON_CLOCK_ROCKETMQ_TLS=true" in str(refusal)


def client(endpoints: str, trusting: Path) -> subprocess.CompletedProcess[str]:
    settings = {
        "COUPON_CLOCK_ROCKETMQ_ENDPOINTS": endpoints,
        "COUPON_CLOCK_ROCKETMQ_TOPIC": NAME,
        "COUPON_CLOCK_ROCKETMQ_GROUP": NAME,
        "COUPON_CLOCK_ROCKETMQ_TLS": "true",
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(trusting),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CLIENT)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(endpoints: str, tls: bool) -> list[BrokerUnavailable]:
    broker = RocketMQBroker.open(Settings(rocketmq_endpoints=endpoints, rocketmq_tls=tls))
    try:
        return refusals(broker)
    finally:
        broker.close()
