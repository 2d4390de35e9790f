"""Fetches a tfds translation corpus, once, on a machine with a network."""

import http.client
import threading
import time
import urllib.error
import urllib.request

import tensorflow_datasets as tfds

from examples.translation.errors import UserError
from examples.translation.sources import is_prepared
from examples.translation.sources import open_builder

# All archives of the WMT corpora come from these.
WMT_HOSTS = ("http://www.statmt.org", "http://data.statmt.org")
PROBE_SECONDS = 5.0


def prepare(tfds_name: str, data_dir: str | None) -> None:
    """Downloads and writes `tfds_name` under `data_dir` if it is not there yet.

    tfds writes into a temporary directory and renames it at the end, so a run
    that is interrupted leaves nothing that looks finished; archives that were
    downloaded whole are not fetched again. Progress is printed.

    Args:
        tfds_name: Dataset and configuration, such as `wmt14_translate/de-en`.
        data_dir: Local directory or `gs://` bucket; `None` is tfds' default.

    Raises:
        UserError: No network, a package is missing, or the download or the
            writing failed.
    """
    builder = open_builder(tfds_name, data_dir)
    if is_prepared(builder):
        print(f"{tfds_name} is already prepared in {builder.data_dir}")
        return
    if builder.data_path.exists():
        raise UserError(
            f"{builder.data_dir} exists but is not a prepared dataset: it has "
            "no dataset_info.json. It may be half a copy; delete it and run "
            "this again."
        )
    if builder.name.startswith("wmt"):
        _check_network(tfds_name, WMT_HOSTS)
    print(f"Preparing {tfds_name} in {builder.data_dir} ...", flush=True)
    started = time.monotonic()
    try:
        builder.download_and_prepare()
    except ModuleNotFoundError as error:
        raise UserError(
            f"Preparing {tfds_name} needs a Python package that is not "
            f"installed:\n  pip install {error.name}"
        ) from error
    except (
        OSError,
        tfds.download.DownloadError,
        tfds.download.download_manager.NonMatchingChecksumError,
    ) as error:
        raise UserError(
            f"Preparing {tfds_name} in {builder.data_dir} failed: {error}\n"
            "  Run the same command again to go on: archives that arrived "
            "whole are not fetched twice."
        ) from error
    sizes = ", ".join(
        f"{split} {info.num_examples:,}"
        for split, info in builder.info.splits.items()
    )
    print(
        f"Prepared in {(time.monotonic() - started) / 60:.1f} min: "
        f"{sizes} pairs in {builder.data_dir}"
    )


def _check_network(tfds_name, urls):
    silent = _silent(urls)
    if silent:
        raise UserError(
            f"Preparing {tfds_name} needs a network: no answer from "
            f"{' and '.join(silent)} within {PROBE_SECONDS:g} s.\n"
            "  Prepare it on another machine and copy the folder, then pass "
            "--data_dir; or behind a proxy set http_proxy."
        )


def _silent(urls):
    """Those of `urls` that do not answer in time, whatever the answer is.

    Without this, tfds would retry for minutes. Each is asked in a thread of its
    own, for the time limit of a socket does not cover looking up its name.
    """
    answered = set()

    def ask(url):
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
        except (urllib.error.HTTPError, http.client.HTTPException):
            pass
        except OSError:
            return
        answered.add(url)

    threads = [
        threading.Thread(target=ask, args=(url,), daemon=True) for url in urls
    ]
    deadline = time.monotonic() + PROBE_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [url for url in urls if url not in answered]
