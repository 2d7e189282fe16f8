"""A proxy before the server that can lose the answer to a command which the server has carried out."""

import contextlib
import socket
import threading


class Proxy:
    """Listens on `port`. `lose` makes it cut the connection instead of passing on the next answer to a command."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._lost: bytes | None = None
        self._skip = 0
        self.lost = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, command: str, skip: int = 0) -> None:
        """Lose the answer to the next command of this name, after letting `skip` of them pass."""
        with self._lock:
            self._lost, self._skip = command.encode() + b"\0", skip

    def close(self) -> None:
        self._listener.close()
        for each in self._sockets:
            _end(each)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                doomed = threading.Event()
                for source, sink, checks in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pass, args=(source, sink, doomed, checks), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, doomed: threading.Event, checks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if checks:
                    self._check(data, doomed)
                elif doomed.is_set():
                    break
                sink.sendall(data)
        _end(source)
        _end(sink)

    def _check(self, data: bytes, doomed: threading.Event) -> None:
        """The name of a command is the first field of its message, so it stands within the first bytes."""
        with self._lock:
            if self._lost is None or self._lost not in data[:64]:
                return
            if self._skip:
                self._skip -= 1
                return
            self._lost = None
            self.lost += 1
            doomed.set()


def _end(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
