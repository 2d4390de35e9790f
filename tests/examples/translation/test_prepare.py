import http.server
import socket
import threading
import time

import pytest
import tensorflow_datasets as tfds

from examples.translation import prepare as prepare_module
from examples.translation.errors import UserError
from examples.translation.prepare import prepare
from examples.translation.sources import load_corpus
from tests.examples.translation.wmt14_files import serve_wmt14_files
from tests.examples.translation.wmt14_files import write_wmt14_files

NAME = "wmt14_translate/de-en"
PAIRS = [(f"sentence {i}", f"Satz {i}") for i in range(12)]


@pytest.fixture
def host(monkeypatch):
    """A web server that answers 404, in place of WMT's."""
    server = http.server.HTTPServer(
        ("127.0.0.1", 0), http.server.BaseHTTPRequestHandler
    )
    server.RequestHandlerClass.log_message = lambda *args: None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(
        prepare_module,
        "WMT_HOSTS",
        (f"http://127.0.0.1:{server.server_port}",),
    )
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def archives(tmp_path, monkeypatch, host):
    root = tmp_path / "archives"
    write_wmt14_files(root, train=PAIRS, validation=PAIRS[:3], test=PAIRS[:2])
    serve_wmt14_files(monkeypatch, root)
    return root


def test_prepares_what_load_corpus_reads_and_only_once(
    tmp_path, archives, monkeypatch, capsys
):
    data_dir = str(tmp_path / "tfds")
    prepare(NAME, data_dir)
    assert "train 12, validation 3, test 2 pairs" in capsys.readouterr().out
    corpus = load_corpus("tfds", data_dir=data_dir)
    assert sorted(corpus.read("train")) == sorted(PAIRS)

    monkeypatch.setattr(prepare_module, "WMT_HOSTS", ("http://nowhere",))
    prepare(NAME, data_dir)
    assert "already prepared" in capsys.readouterr().out


def test_offline_is_told_after_the_probe_and_nothing_is_left(
    tmp_path, monkeypatch
):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(prepare_module, "WMT_HOSTS", (url,))
        monkeypatch.setattr(prepare_module, "PROBE_SECONDS", 0.3)
        started = time.monotonic()
        with pytest.raises(UserError, match=f"no answer from {url} within 0.3"):
            prepare(NAME, str(tmp_path / "tfds"))
    assert time.monotonic() - started < 2.0
    assert not (tmp_path / "tfds").exists()


def test_a_name_that_is_never_looked_up_does_not_hang(tmp_path, monkeypatch):
    over = threading.Event()

    def stuck(*args, **kwargs):
        over.wait()
        raise OSError("gave up")

    monkeypatch.setattr(prepare_module.urllib.request, "urlopen", stuck)
    monkeypatch.setattr(prepare_module, "PROBE_SECONDS", 0.2)
    started = time.monotonic()
    with pytest.raises(UserError, match="needs a network"):
        prepare(NAME, str(tmp_path))
    assert time.monotonic() - started < 2.0
    over.set()


def test_a_missing_package_is_named(tmp_path, monkeypatch, archives):
    def missing(self, urls):
        import package_nobody_has  # noqa: F401, PLC0415

    monkeypatch.setattr(
        tfds.download.DownloadManager, "download_and_extract", missing
    )
    with pytest.raises(UserError, match="pip install package_nobody_has"):
        prepare(NAME, str(tmp_path / "tfds"))


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("connection reset"),
        OSError(28, "No space left on device"),
        tfds.download.DownloadError("status code 503"),
    ],
)
def test_a_failed_download_is_told_and_leaves_nothing_prepared(
    tmp_path, monkeypatch, archives, failure
):
    def fail(self, urls):
        raise failure

    data_dir = tmp_path / "tfds"
    with monkeypatch.context() as patch:
        patch.setattr(
            tfds.download.DownloadManager, "download_and_extract", fail
        )
        with pytest.raises(UserError, match="Run the same command again"):
            prepare(NAME, str(data_dir))
    with pytest.raises(UserError, match="not prepared"):
        load_corpus("tfds", data_dir=str(data_dir))
    prepare(NAME, str(data_dir))
    assert load_corpus("tfds", data_dir=str(data_dir)).size("test") == 2


def test_half_a_copy_is_not_taken_for_prepared(tmp_path, archives):
    folder = tmp_path / "wmt14_translate" / "de-en" / "1.0.0"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match="half a copy; delete it"):
        prepare(NAME, str(tmp_path))


def test_unknown_dataset_lists_the_configurations(tmp_path):
    with pytest.raises(UserError, match="wmt14_translate/de-en"):
        prepare("wmt14_translate/en-de", str(tmp_path))
