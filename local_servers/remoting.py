"""RocketMQ's remoting protocol, as much of it as a few administrative requests need.

A frame is its length, its header's length (the upper byte says JSON), the header and the body; `mqadmin` sends the same
requests, but takes a Java machine and 4.5 s for each. Source: org.apache.rocketmq.remoting.protocol in RocketMQ 5.5.
"""

import json
import socket
import struct
from collections.abc import Mapping
from typing import BinaryIO

UPDATE_TOPIC, UPDATE_BROKER, ROUTE_OF_TOPIC, UPDATE_GROUP = 17, 25, 105, 200
SUCCESS, TOPIC_NOT_EXIST = 0, 17
PERMISSION_READ_WRITE = 6


class RequestRefused(Exception):
    """The server answered with an error: its code and remark."""

    def __init__(self, code: int, remark: str) -> None:
        super().__init__(remark)
        self.code = code


def make_topic(broker_port: int, topic: str, message_type: str) -> None:
    """Creates a topic for messages of that type, as DELAY or NORMAL, or gives an existing one that type."""
    fields = {
        "topic": topic,
        "defaultTopic": "TBW102",
        "readQueueNums": 4,
        "writeQueueNums": 4,
        "perm": PERMISSION_READ_WRITE,
        "topicFilterType": "SINGLE_TAG",
        "topicSysFlag": 0,
        "order": "false",
        "attributes": f"+message.type={message_type}",
    }
    request(broker_port, UPDATE_TOPIC, fields)


def make_group(broker_port: int, group: str) -> None:
    """Creates a consumer group; nothing happens to one that exists."""
    request(broker_port, UPDATE_GROUP, {}, json.dumps({"groupName": group}).encode())


def register_now(broker_port: int) -> None:
    """Makes a broker register at its name server with all it has. Setting its permission, to what it is, does that."""
    request(broker_port, UPDATE_BROKER, {}, f"brokerPermission={PERMISSION_READ_WRITE}".encode())


def knows_route(port: int, topic: str) -> bool:
    """Whether a name server or a proxy can say where the topic lives."""
    try:
        request(port, ROUTE_OF_TOPIC, {"topic": topic})
    except RequestRefused as refusal:
        if refusal.code == TOPIC_NOT_EXIST:
            return False
        raise
    return True


def request(port: int, code: int, fields: Mapping[str, object], body: bytes = b"") -> None:
    """Sends one request to a server on this machine and waits for its answer.

    Raises RequestRefused, and OSError where no answer comes.
    """
    texts = {name: str(value) for name, value in fields.items()}
    header = json.dumps(
        {"code": code, "language": "OTHER", "version": 0, "opaque": 1, "flag": 0, "extFields": texts}
    ).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(struct.pack(">ii", 4 + len(header) + len(body), len(header)) + header + body)
        with connection.makefile("rb") as stream:
            answer = read_header(stream)
    if answer["code"] != SUCCESS:
        raise RequestRefused(answer["code"], str(answer.get("remark")))


def read_header(stream: BinaryIO) -> dict[str, int]:
    prefix = stream.read(8)
    if len(prefix) < 8:
        raise ConnectionError("the connection was closed before the answer")
    _, header_length = struct.unpack(">ii", prefix)
    answer: dict[str, int] = json.loads(stream.read(header_length & 0xFFFFFF))
    return answer
