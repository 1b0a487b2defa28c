"""A proxy before PostgreSQL that can go silent: it then keeps its connections open, takes what is sent, and passes on
nothing; connections that come later work, unless it stays silent."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class SilentProxy:
    """`url` leads through it."""

    def __init__(self, url: str) -> None:
        target = conninfo_to_dict(url)
        self._target = str(Path(str(target["host"])) / f".s.PGSQL.{target.get('port') or 5432}")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._silence = Event()
        self._full = Event()
        self._sockets: list[socket.socket] = []
        port = self._listener.getsockname()[1]
        self.url = make_conninfo(url, host="127.0.0.1", port=port)
        Thread(target=self._accept, daemon=True).start()

    def fall_silent(self) -> None:
        """The connections that there are."""
        self._silence.set()
        self._silence = Event()

    def stay_silent(self) -> None:
        """Those that come, too."""
        self._silence.set()

    def stop_reading(self) -> None:
        """Takes nothing more from the connections that there are: what is sent fills their buffers."""
        self._full.set()
        self._full = Event()

    def close(self) -> None:
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
                self._sockets += [client, server]
                for source, sink in ((client, server), (server, client)):
                    Thread(target=self._pass_on, args=(source, sink, self._silence, self._full), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket, silence: Event, full: Event) -> None:
        with suppress(OSError):
            while not full.is_set() and (data := source.recv(65_536)):
                if not silence.is_set():
                    sink.sendall(data)
            if not silence.is_set() and not full.is_set():
                sink.shutdown(socket.SHUT_WR)


@contextmanager
def silent_proxy(url: str) -> Iterator[SilentProxy]:
    proxy = SilentProxy(url)
    try:
        yield proxy
    finally:
        proxy.close()
