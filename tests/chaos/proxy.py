"""A proxy before PostgreSQL that loses answers, or freezes connections: they stay open, and nothing passes any more.

Connections that come later work; those that are frozen are cut in the end, as keep-alives would. Where the log goes to
another server, the proxy can follow.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from psycopg.conninfo import conninfo_to_dict, make_conninfo

CHUNK = 1 << 16
CUT_AFTER_S = 25.0
"""Longer than the product waits for any answer of its own."""


LOST_OF = 10
"""While answers are lost, one of so many is."""


class Together:
    """The connections of one time: all are frozen, or none."""

    def __init__(self) -> None:
        self.is_frozen = False
        self.loses_answers = False
        self.answers = 0
        self.writers: set[asyncio.StreamWriter] = set()

    def loses_this(self) -> bool:
        self.answers += 1
        return self.loses_answers and self.answers % LOST_OF == 0

    def cut(self) -> None:
        for writer in self.writers:
            writer.close()


class Proxies:
    """One for each name, all on one thread. `urls`: by name."""

    def __init__(self, url: str, names: list[str]) -> None:
        self._socket = socket_of(url)
        self._together = {name: Together() for name in names}
        self._loop = asyncio.new_event_loop()
        Thread(target=self._loop.run_forever, daemon=True).start()
        self.urls = {name: make_conninfo(url, host="127.0.0.1", port=self._listen(name)) for name in names}

    def freeze(self, name: str) -> None:
        """The connections that there are."""
        frozen, self._together[name] = self._together[name], Together()
        frozen.is_frozen = True
        self._loop.call_soon_threadsafe(self._loop.call_later, CUT_AFTER_S, frozen.cut)

    @contextmanager
    def losing_answers(self, name: str) -> Iterator[None]:
        """Statements arrive, and are executed; instead of some answers, the connection is closed."""
        self._together[name].loses_answers = True
        try:
            yield
        finally:
            self._together[name].loses_answers = False

    def lead_to(self, url: str) -> None:
        """The connections that come."""
        self._socket = socket_of(url)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _listen(self, name: str) -> int:
        async def begin() -> int:
            server = await asyncio.start_server(lambda r, w: self._serve(name, r, w), "127.0.0.1", 0, backlog=512)
            return int(server.sockets[0].getsockname()[1])

        return asyncio.run_coroutine_threadsafe(begin(), self._loop).result()

    async def _serve(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        together = self._together[name]
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self._socket)
        except OSError:
            writer.close()
            return
        together.writers |= {writer, server_writer}
        await asyncio.gather(
            pass_on(reader, server_writer, together, lambda: False),
            pass_on(server_reader, writer, together, together.loses_this),
        )
        together.writers -= {writer, server_writer}


async def pass_on(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, together: Together, is_lost: Callable[[], bool]
) -> None:
    """The end of the source too, unless it is frozen: then the other side never hears of it."""
    with suppress(OSError):
        while (data := await source.read(CHUNK)) and not is_lost():
            if not together.is_frozen:
                sink.write(data)
                await sink.drain()
    if not together.is_frozen:
        sink.close()


def socket_of(url: str) -> str:
    parts = conninfo_to_dict(url)
    return str(Path(str(parts["host"])) / f".s.PGSQL.{parts.get('port') or 5432}")
