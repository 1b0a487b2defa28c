"""What can keep the local servers from starting, each with what to do."""

from dataclasses import dataclass
from pathlib import Path

from coupon_clock.domain.errors import CouponClockError


@dataclass(eq=False)
class LocalServersUnavailable(CouponClockError):
    """Local servers cannot run here: {reason}; use Linux or macOS with `pip install 'coupon-clock[local]'`, or servers of your own through COUPON_CLOCK_DATABASE_URL and COUPON_CLOCK_ROCKETMQ_ENDPOINTS."""  # noqa: E501

    reason: str


@dataclass(eq=False)
class JarNotDownloaded(CouponClockError):
    """RocketMQ's jar {artifact} could not be downloaded from Maven Central ({reason}): check the network (HTTPS_PROXY is honoured) and run it again, what has arrived is kept."""  # noqa: E501

    artifact: str
    reason: str


@dataclass(eq=False)
class JarDamaged(CouponClockError):
    """RocketMQ's jar {artifact} arrived damaged (its checksum is not the pinned one) and was thrown away: run it again."""  # noqa: E501

    artifact: str


@dataclass(eq=False)
class NoFreePort(CouponClockError):
    """No free TCP port was found between {first} and {last}: stop some of the servers that hold them."""

    first: int
    last: int


@dataclass(eq=False)
class DataFolderOccupied(CouponClockError):
    """{folder} already holds something else than PostgreSQL {version} data: choose another folder, or move it away."""

    folder: Path
    version: str


@dataclass(eq=False)
class FolderUnusable(CouponClockError):
    """{folder} cannot be used for local servers ({reason}): correct that, or choose another folder."""

    folder: Path
    reason: str


@dataclass(eq=False)
class ServerDidNotStart(CouponClockError):
    """{server} did not start: {line} (more in {log}); run it again, and if its data is broken, delete {folder}."""

    server: str
    line: str
    log: Path
    folder: Path


@dataclass(eq=False)
class ServerDidNotAnswer(CouponClockError):
    """{server} did not do what was asked ({reason}): see {log}, and run it again."""

    server: str
    reason: str
    log: Path


@dataclass(eq=False)
class ServersNotStarted(CouponClockError):
    """There are no servers in {folder} yet: start them with `coupon-clock local up --dir {folder}`."""

    folder: Path
