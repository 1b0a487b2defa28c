"""What RocketMQ refuses, each as one sentence with how to fix it."""

from dataclasses import dataclass
from datetime import timedelta

from coupon_clock.infrastructure.messaging.broker import BrokerMisconfigured, BrokerUnavailable, Unreachable


@dataclass(eq=False)
class RocketMQRefused(BrokerUnavailable):
    """RocketMQ answers {code}, {text}: the loops keep trying, and the reconciler ends what is due meanwhile."""

    code: int
    text: str


@dataclass(eq=False)
class RocketMQBusy(BrokerUnavailable):
    """RocketMQ is too busy to take more for a moment ({text}): the loops keep trying, and the reconciler ends what is
    due meanwhile."""

    text: str


class ClientNotInstalled(BrokerMisconfigured):
    """COUPON_CLOCK_ROCKETMQ_ENDPOINTS is set, but its client is not installed: pip install 'coupon-clock[rocketmq]'"""


@dataclass(eq=False)
class TopicMissing(BrokerMisconfigured):
    """Topic {topic} does not exist, or its broker is starting. Fix it with: mqadmin updateTopic -n NAMESERVER
    -c CLUSTER -t {topic} -a +message.type=DELAY"""

    topic: str


@dataclass(eq=False)
class TopicIsNotDelay(BrokerMisconfigured):
    """Topic {topic} has message type {type}, not DELAY. Fix it with: mqadmin updateTopic -n NAMESERVER -c CLUSTER
    -t {topic} -a +message.type=DELAY"""

    topic: str
    type: str


@dataclass(eq=False)
class GroupMissing(BrokerMisconfigured):
    """Consumer group {group} does not exist. Fix it with: mqadmin updateSubGroup -n NAMESERVER -c CLUSTER -g {group}"""

    group: str


@dataclass(eq=False)
class CredentialsRefused(BrokerMisconfigured):
    """RocketMQ refuses the credentials ({text}). Set COUPON_CLOCK_ROCKETMQ_ACCESS_KEY and _SECRET_KEY, or fix it with:
    mqadmin createUser -n NAMESERVER -c CLUSTER -u USER -p PASSWORD, then mqadmin createAcl -n NAMESERVER -c CLUSTER
    -s User:USER -r Topic:{topic},Group:{group} -a Pub,Sub -d Allow"""

    topic: str
    group: str
    text: str


@dataclass(eq=False)
class CertificateNotTrusted(BrokerMisconfigured):
    """RocketMQ's certificate is not trusted ({reason}). If the authority that signed it is your own, name the file with
    that authority's certificate in GRPC_DEFAULT_SSL_ROOTS_FILE_PATH before the process starts: gRPC does not ask the
    system's list"""

    reason: str


class CertificateForAnotherName(BrokerMisconfigured):
    """RocketMQ's certificate is for another name than COUPON_CLOCK_ROCKETMQ_ENDPOINTS has. Call it there as its
    certificate does, or have a certificate made for that name"""


class TlsNotSpoken(BrokerMisconfigured):
    """RocketMQ speaks no TLS at COUPON_CLOCK_ROCKETMQ_ENDPOINTS. Set COUPON_CLOCK_ROCKETMQ_TLS=false, or give its proxy
    a certificate and -Dtls.server.mode=permissive"""


@dataclass(eq=False)
class ConnectionClosedAtOnce(BrokerUnavailable):
    """RocketMQ accepts the connection and closes it without an answer ({text}). If it speaks only TLS, set
    COUPON_CLOCK_ROCKETMQ_TLS=true; the port must be that of its gRPC proxy. The loops keep trying, and the reconciler
    ends what is due meanwhile."""

    text: str


@dataclass(eq=False)
class DelayRefused(BrokerMisconfigured):
    """RocketMQ refuses a delivery time: {text}."""

    text: str


@dataclass(eq=False)
class DelayAboveCap(BrokerMisconfigured):
    """RocketMQ refuses messages {ahead} ahead, so messages are now sent {arming_window} ahead. Set
    COUPON_CLOCK_ARMING_WINDOW below its cap, or raise maxDelayTimeMills in rmq-proxy.json and timerMaxDelaySec in
    broker.conf"""

    ahead: timedelta
    arming_window: timedelta


def refusal(code: int, text: str, topic: str, group: str) -> BrokerUnavailable:
    """What the server's status code means."""
    match code:
        case 40_402:
            return TopicMissing(topic)
        case 40_403:
            return GroupMissing(group)
        case 40_100 | 40_300:
            return CredentialsRefused(topic, group, text)
        case 40_012:
            return DelayRefused(text)
        case 42_900:
            return RocketMQBusy(text)
        case _:
            return RocketMQRefused(code, text)


def failed_call(code: str, text: str, topic: str, group: str) -> BrokerUnavailable:
    """What a status of gRPC itself means, where no answer came: a name, and a text, which alone has some causes."""
    if code in {"UNAUTHENTICATED", "PERMISSION_DENIED"}:
        return CredentialsRefused(topic, group, text)
    if "group not found" in text:
        return GroupMissing(group)
    _, distrusted, reason = text.partition("CERTIFICATE_VERIFY_FAILED: ")
    if distrusted:
        return CertificateNotTrusted(reason.removesuffix(": OK"))
    if "Hostname Verification Check failed" in text:
        return CertificateForAnotherName()
    if "WRONG_VERSION_NUMBER" in text:
        return TlsNotSpoken()
    if "failed to connect" in text and "Socket closed" in text:
        return ConnectionClosedAtOnce(text)
    return Unreachable(f"{code}: {text}")
