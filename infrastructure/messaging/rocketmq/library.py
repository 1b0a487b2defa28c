"""RocketMQ's client, imported in this one place and without its side effects."""

import logging
import sys
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

from coupon_clock.infrastructure.messaging.rocketmq.errors import ClientNotInstalled


class Library(NamedTuple):
    """What we use of it, untyped as it is."""

    rocketmq: Any
    protocol: Any
    MessageIdCodec: Any
    RpcError: Any


def require_library() -> None:
    """Raises ClientNotInstalled; spares the half second that importing takes."""
    if find_spec("rocketmq") is None:
        raise ClientNotInstalled


@cache
def library() -> Library:
    """Imports the client without its log set-up, which writes to the home folder (and fails where that cannot be
    written) and calls dictConfig, which closes the host application's log handlers."""
    log_config = ModuleType("rocketmq.v5.log.log_config")
    log_config.logger = _silent_logger()  # type: ignore[attr-defined]
    sys.modules.setdefault(log_config.__name__, log_config)

    import grpc.aio
    import rocketmq
    import rocketmq.grpc_protocol
    import rocketmq.v5.util

    return Library(rocketmq, rocketmq.grpc_protocol, rocketmq.v5.util.MessageIdCodec, grpc.aio.AioRpcError)


def _silent_logger() -> logging.Logger:
    """What matters of it is raised or logged here; a handler added to this logger gets the rest."""
    logger = logging.getLogger("rocketmq-python-client")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger
