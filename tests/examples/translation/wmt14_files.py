"""WMT14's archives in small: the real tfds builder is run on them, offline."""

from html import escape
from pathlib import Path

import tensorflow as tf
import tensorflow_datasets as tfds

_TRAIN_CORPORA = (
    "training/europarl-v7.de-en",
    "commoncrawl.de-en",
    "training/news-commentary-v9.de-en",
)


def write_wmt14_files(root, *, train, validation, test):
    """Writes (english, german) pairs where the extracted archives have them."""
    root = Path(root)
    for index, corpus in enumerate(_TRAIN_CORPORA):
        _write_text(root / corpus, train[index :: len(_TRAIN_CORPORA)])
    _write_text(root / "dev/newstest2013", validation)
    for column, name in enumerate(("ref.en", "src.de")):
        path = root / f"dev/newstest2014-deen-{name}.sgm"
        lines = ['<srcset setid="newstest2014" srclang="any">', "<p>"]
        lines += [
            f'<seg id="{number}">{escape(pair[column])}</seg>'
            for number, pair in enumerate(test, 1)
        ]
        path.write_text("\n".join([*lines, "</p>", "</srcset>", ""]))


def _write_text(stem, pairs):
    stem.parent.mkdir(parents=True, exist_ok=True)
    for column, language in enumerate(("en", "de")):
        lines = "".join(f"{pair[column]}\n" for pair in pairs)
        stem.with_name(f"{stem.name}.{language}").write_text(lines)


def serve_wmt14_files(monkeypatch, root):
    """Makes every download of tfds arrive as the files under `root`."""
    monkeypatch.setattr(
        tfds.download.DownloadManager,
        "download_and_extract",
        lambda self, urls: tf.nest.map_structure(lambda url: str(root), urls),
    )


def prepare_wmt14(monkeypatch, files_dir, data_dir, **splits):
    """A genuine `wmt14_translate/de-en` of few sentences in `data_dir`.

    Args:
        monkeypatch: The fixture.
        files_dir: Scratch directory.
        data_dir: Directory of tensorflow-datasets.
        **splits: `train`, `validation` and `test`, lists of (english, german).
    """
    write_wmt14_files(files_dir, **splits)
    with monkeypatch.context() as patch:
        serve_wmt14_files(patch, files_dir)
        tfds.builder(
            "wmt14_translate/de-en", data_dir=data_dir
        ).download_and_prepare()
