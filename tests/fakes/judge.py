"""A chat endpoint on this machine that judges as the test says."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, dict[str, str], str]  # status, headers, body


def says(text: object) -> Answer:
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up on purpose are no news."""


class Server:
    """Answers by a function of the question, and remembers what it was asked."""

    def __init__(self, answer: Callable[[str], Answer], port: int = 0) -> None:
        self.answer = answer
        self.questions: list[str] = []
        self.bodies: list[dict] = []
        self.keys: set[str | None] = set()
        self.released = threading.Event()
        self.busy = self.most_busy = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, headers, text = server.take(self.path, dict(self.headers), body)
                data = text.encode("latin-1")
                self.send_response(status)
                for name, value in {"content-length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                with contextlib.suppress(ConnectionError):  # the client may have given up
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self._http = _QuietServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def take(self, path: str, headers: dict[str, str], body: dict) -> Answer:
        assert path == "/v1/chat/completions"
        question = body["messages"][0]["content"]
        with self._lock:
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
            self.questions.append(question)
            self.bodies.append(body)
            self.keys.add({k.lower(): v for k, v in headers.items()}.get("authorization"))
        try:
            return self.answer(question)
        finally:
            with self._lock:
                self.busy -= 1

    def close(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
