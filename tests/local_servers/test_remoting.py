"""The wire form, against a server that gives the answers it was given."""

import json
import socket
import struct
from threading import Thread

import pytest

from coupon_clock.local_servers import remoting


class Server:
    """Takes one request and gives one answer."""

    def __init__(self, answer: bytes) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.answer = answer
        self.header: dict[str, object] = {}
        self.body = b""
        self.thread = Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        connection, _ = self.listener.accept()
        with connection, connection.makefile("rb") as stream:
            length, header_length = struct.unpack(">ii", stream.read(8))
            rest = stream.read(length - 4)
            self.header, self.body = json.loads(rest[:header_length]), rest[header_length:]
            connection.sendall(self.answer)


def answer(code: int, remark: str = "") -> bytes:
    header = json.dumps({"code": code, "remark": remark}).encode()
    return struct.pack(">ii", 4 + len(header), len(header)) + header


def test_a_topic_is_asked_for_with_its_type() -> None:
    server = Server(answer(remoting.SUCCESS))
    remoting.make_topic(server.port, "alarms", "DELAY")
    fields = server.header["extFields"]
    assert isinstance(fields, dict)
    assert server.header["code"] == 17
    assert (fields["topic"], fields["attributes"], fields["order"]) == ("alarms", "+message.type=DELAY", "false")


def test_a_group_is_asked_for_in_the_body() -> None:
    server = Server(answer(remoting.SUCCESS))
    remoting.make_group(server.port, "clock")
    assert (server.header["code"], json.loads(server.body)) == (200, {"groupName": "clock"})


def test_a_broker_registers_when_its_permission_is_set() -> None:
    server = Server(answer(remoting.SUCCESS))
    remoting.register_now(server.port)
    assert (server.header["code"], server.body) == (25, b"brokerPermission=6")


def test_an_unknown_topic_has_no_route() -> None:
    assert not remoting.knows_route(Server(answer(remoting.TOPIC_NOT_EXIST)).port, "alarms")
    assert remoting.knows_route(Server(answer(remoting.SUCCESS)).port, "alarms")


def test_any_other_refusal_is_an_error_with_the_remark() -> None:
    server = Server(answer(1, "no space left"))
    with pytest.raises(remoting.RequestRefused, match="no space left"):
        remoting.knows_route(server.port, "alarms")


def test_a_connection_closed_without_an_answer_is_a_connection_error() -> None:
    server = Server(b"")
    with pytest.raises(ConnectionError, match="closed before the answer"):
        remoting.make_group(server.port, "clock")
