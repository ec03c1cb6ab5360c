"""An S3 server on loopback for tests: ``python -m tests.storage.s3_server LOG``.

Prints its URL, then writes one line for each request to LOG: method, path, range. While the file
LOG.faults holds a number, that many further requests are answered with 503.
"""

import sys
import threading
from pathlib import Path

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *args) -> None:
        pass


class Recorder:
    """Writes down each request before moto answers it."""

    def __init__(self, log: str) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._log = open(log, "a", buffering=1)  # noqa: PTH123, SIM115 - as long as the process
        self._faults = Path(f"{log}.faults")
        self._lock = threading.Lock()
        self._conditional = threading.Lock()

    def __call__(self, environ, start_response):
        line = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {environ.get('HTTP_RANGE', '')}"
        with self._lock:
            print(line.rstrip(), file=self._log)
            left = int(self._faults.read_text() or 0) if self._faults.exists() else 0
            if left:
                self._faults.write_text(str(left - 1))
        if left:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if "HTTP_IF_NONE_MATCH" in environ:  # moto looks and writes in two steps, a store in one
            with self._conditional:
                return self._app(environ, start_response)
        return self._app(environ, start_response)


if __name__ == "__main__":
    server = make_server(
        "127.0.0.1", 0, Recorder(sys.argv[1]), threaded=True, request_handler=Quiet
    )
    print(f"http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201 - to the test
    server.serve_forever()
