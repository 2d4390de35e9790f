"""A bucket of an object store on this machine, under the name `gs://`.

The emulator of Google Cloud Storage is a package. TensorFlow's client (which
`epath` uses, and so Orbax) has Google's addresses in its code, so it is sent
through a proxy, which the emulator's handler becomes here by one method;
TensorStore (which writes the arrays) has a variable for the address.
"""

import contextlib
import functools
import http.server
import logging
import re
import ssl
import subprocess
import threading
import urllib.parse

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage

# What the emulator does not know: objects of no bytes, and names that end in
# a slash, which is how a store without directories has empty ones.
_read_data = server._read_data
server._read_data = lambda *of: _read_data(*of) or b""
server.HANDLERS = tuple(
    (address.replace(r".*[^/]+)", ".+)"), methods)
    for address, methods in server.HANDLERS
)

_CONTENT = re.compile(
    r"(/storage/v1/b)?/(?P<bucket>[^/?]+)(/o)?/(?P<object>[^?]+)(\?.*)?"
)
HOSTS = ("www.googleapis.com", "storage.googleapis.com")


def _one_at_a_time(method):
    """A method of a handler; the storage is not made for threads."""

    @functools.wraps(method)
    def answer(handler):
        with handler.alone:
            method(handler)

    return answer


class _Handler(server.RequestHandler):
    """Answers what is asked of Google's hosts, also through a proxy."""

    protocol_version = "HTTP/1.1"
    context: ssl.SSLContext
    alone = threading.Lock()

    def do_CONNECT(self):
        """Stays where another proxy would pass on to the host."""
        self.send_response(200)
        self.end_headers()
        self.request = self.context.wrap_socket(self.request, server_side=True)
        self.setup()
        self.close_connection = False

    def parse_request(self):
        parsed = super().parse_request()
        if parsed and self.command != "CONNECT":
            # A proxy is given whole addresses.
            self.path = (
                urllib.parse.urlsplit(self.path)
                ._replace(scheme="", netloc="")
                .geturl()
            )
            if "Transfer-Encoding" in self.headers:
                # TensorFlow sends both, the emulator reads the other one.
                del self.headers["Content-Length"]
        return parsed

    def end_headers(self):
        """Says which version is read, which TensorStore's writes name."""
        found = _CONTENT.fullmatch(self.path)
        if self.command == "GET" and found:
            name = urllib.parse.unquote(found["object"])
            with contextlib.suppress(NotFound):
                about = self.storage.get_file_obj(found["bucket"], name)
                self.send_header("x-goog-generation", about["generation"])
        super().end_headers()

    do_GET = _one_at_a_time(server.RequestHandler.do_GET)
    do_POST = _one_at_a_time(server.RequestHandler.do_POST)
    do_PUT = _one_at_a_time(server.RequestHandler.do_PUT)
    do_DELETE = _one_at_a_time(server.RequestHandler.do_DELETE)


@contextlib.contextmanager
def bucket(name, directory):
    """An empty bucket `gs://{name}` for programs started with what it gives.

    Args:
        name: Of the bucket.
        directory: For the certificate.

    Yields:
        Dict of environment variables, and a function that returns the list
        of the names of the objects.
    """
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes"),
            *("-keyout", key, "-out", certificate, "-days", "2"),
            *("-subj", "/CN=emulator", "-addext"),
            "subjectAltName=" + ",".join(f"DNS:{host}" for host in HOSTS),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    handler = type("Handler", (_Handler,), {"context": context})
    storage = Storage(use_memory_fs=True)
    buckets.create_bucket(name, storage)
    emulator = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, storage)
    )
    emulator.daemon_threads = True

    def objects():
        with handler.alone:
            return list(storage.objects.get(name, ()))

    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    address = f"http://127.0.0.1:{emulator.server_port}"
    thread = threading.Thread(target=emulator.serve_forever, daemon=True)
    thread.start()
    try:
        yield (
            {
                "http_proxy": address,
                "https_proxy": address,
                "no_proxy": "127.0.0.1,localhost",
                "CURL_CA_BUNDLE": str(certificate),
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
                "TENSORSTORE_GCS_HTTP_URL": address,
                "STORAGE_EMULATOR_HOST": address,
                "GOOGLE_CLOUD_PROJECT": "project",
            },
            objects,
        )
    finally:
        emulator.shutdown()
        emulator.server_close()
