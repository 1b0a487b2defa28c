import socket
from pathlib import Path

import pytest

from coupon_clock.local_servers import ports
from coupon_clock.local_servers.errors import NoFreePort


def test_a_port_somebody_listens_on_is_not_free_and_accepts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not ports.is_free(port)
        assert ports.accepts(port)
    assert ports.is_free(port)
    assert not ports.accepts(port)


def test_no_free_port_is_an_error_with_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "is_free", lambda port: False)
    with pytest.raises(NoFreePort, match="between 20000 and 32000"):
        ports.free_block(6)


def test_a_block_is_free_throughout() -> None:
    first = ports.free_block(6)
    assert all(ports.is_free(port) for port in range(first, first + 6))


def test_an_unreadable_memory_is_no_memory(tmp_path: Path) -> None:
    assert ports.remembered(tmp_path / "missing") is None
    (tmp_path / "half-written").write_text("")
    assert ports.remembered(tmp_path / "half-written") is None
