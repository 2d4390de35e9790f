"""Where sentence pairs come from: tfds, plain text or the embedded grammar.

Whatever the source, the rest of the example sees one `Corpus`: named splits of
(source, target) sentences in the direction that was asked for, how many there
are, and a fingerprint that changes when the sentences do.
"""

import contextlib
import dataclasses
import fcntl
import gzip
import hashlib
import html
import io
import itertools
import json
import zlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping

import tensorflow_datasets as tfds
from etils import epath

from examples.translation.errors import UserError
from examples.translation.errors import notice
from examples.translation.synthetic import grammar
from examples.translation.synthetic.builder import SyntheticTranslate

_READ_BATCH = 1024
_SYNTHETIC_NAME = f"synthetic grammar v{grammar.VERSION} (not WMT14)"


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Parallel sentences, split by split.

    Attributes:
        name: What to call the corpus in logs, tables and plots.
        kind: `"tfds"`, `"text"` or `"synthetic"`.
        fingerprint: 16 hex digits that change with the sentences, their order
            or the direction. Of tfds' files it covers version, sizes and
            bytes; of the other sources the content.
        sizes: Number of pairs of each split: "train", "validation" and one or
            more whose names begin with "test".
        reader: Yields the pairs of one split; use `read`.
    """

    name: str
    kind: str
    fingerprint: str
    sizes: Mapping[str, int]
    reader: Callable[[str], Iterator[tuple[str, str]]] = dataclasses.field(
        repr=False
    )

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.sizes)

    def size(self, split: str) -> int:
        """Number of pairs in `split`."""
        self._check(split)
        return self.sizes[split]

    def read(self, split: str) -> Iterator[tuple[str, str]]:
        """Yields the (source, target) pairs of `split`, always in one order.

        Raises:
            UserError: There is no such split.
        """
        self._check(split)
        return self.reader(split)

    def _check(self, split):
        if split not in self.sizes:
            raise UserError(
                f"{self.name} has no split {split!r}. "
                f"It has: {', '.join(self.splits)}."
            )


def load_corpus(
    data: str,
    *,
    data_dir: str | None = None,
    tfds_name: str = "wmt14_translate/de-en",
    direction: str = "en-de",
    train_source: str | None = None,
    train_target: str | None = None,
    validation_source: str | None = None,
    validation_target: str | None = None,
    test_source: str | None = None,
    test_target: str | None = None,
    synthetic_train_size: int | None = None,
    max_train_examples: int | None = None,
) -> Corpus:
    """Opens the corpus that the `--data` flags describe. Downloads nothing.

    Args:
        data: `"tfds"` for a prepared tensorflow-datasets corpus, `"text"` for
            parallel files, `"synthetic"` for the embedded grammar, `"auto"` for
            tfds where it is prepared and else the grammar, with a notice.
        data_dir: Directory of tensorflow-datasets, local or `gs://`; `None` is
            tfds' own default. The synthetic corpus is written once under its
            `cache` folder.
        tfds_name: Dataset and configuration, such as `wmt14_translate/de-en`.
        direction: Source and target language, such as `"en-de"`. With `text`
            the files decide and this is not read.
        train_source: With the five arguments after it, the parallel files of
            `"text"`: UTF-8, one sentence a line, plain or gzip.
        train_target: See `train_source`.
        validation_source: See `train_source`.
        validation_target: See `train_source`.
        test_source: See `train_source`.
        test_target: See `train_source`.
        synthetic_train_size: Training pairs of the synthetic corpus; `None` is
            the grammar's default.
        max_train_examples: Keep only the first pairs of the training split.

    Raises:
        UserError: The corpus is not there or not usable; the message says what
            was looked for and what to type next.
    """
    files = {
        "train": (train_source, train_target),
        "validation": (validation_source, validation_target),
        "test": (test_source, test_target),
    }
    given = [
        flag
        for split, paths in files.items()
        for flag, path in zip(_flags(split), paths, strict=True)
        if path
    ]
    if data != "text" and given:
        raise UserError(
            f"{', '.join(given)}: files are read only with --data text. "
            f"Received: --data {data}"
        )
    match data:
        case "tfds" | "auto":
            builder = open_builder(tfds_name, data_dir)
            _check_direction(builder, direction)
            if is_prepared(builder):
                corpus = _tfds_corpus(builder, direction)
            elif data == "tfds":
                raise _not_prepared(builder)
            else:
                notice(
                    f"{tfds_name} is not prepared in {builder.data_dir_root}: "
                    f"using the {_SYNTHETIC_NAME} instead. "
                    "(--data tfds says how to get the real corpus.)"
                )
                corpus = _synthetic_corpus(
                    data_dir, direction, synthetic_train_size
                )
        case "text":
            corpus = _text_corpus(files)
        case "synthetic":
            corpus = _synthetic_corpus(
                data_dir, direction, synthetic_train_size
            )
        case _:
            raise UserError(
                "--data must be one of auto, tfds, text, synthetic. "
                f"Received: {data}"
            )
    if max_train_examples is not None:
        corpus = _first_train_examples(corpus, max_train_examples)
    return corpus


def corpus_kind(data: str, tfds_name: str, data_dir: str | None) -> str:
    """The `kind` that `load_corpus` gives, without opening anything."""
    if data != "auto":
        return data
    prepared = is_prepared(open_builder(tfds_name, data_dir))
    return "tfds" if prepared else "synthetic"


def fingerprint(*parts) -> str:
    """16 hex digits of a SHA-256 over JSON-serialisable `parts`."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _first_train_examples(corpus, count):
    if count < 1:
        raise UserError(
            f"--max_train_examples must be at least 1. Received: {count}"
        )
    size = min(count, corpus.size("train"))

    def read(split):
        pairs = corpus.read(split)
        return itertools.islice(pairs, size) if split == "train" else pairs

    return dataclasses.replace(
        corpus,
        fingerprint=fingerprint(corpus.fingerprint, "train", size),
        sizes={**corpus.sizes, "train": size},
        reader=read,
    )


# --- tensorflow-datasets ---


def open_builder(
    tfds_name: str, data_dir: str | None
) -> tfds.core.DatasetBuilder:
    """The builder of `tfds_name`, prepared or not.

    Raises:
        UserError: tfds knows no such dataset or configuration, or `data_dir`
            cannot be read.
    """
    try:
        return tfds.builder(tfds_name, data_dir=data_dir)
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"--tfds_name must be one of {', '.join(_alike(tfds_name))}. "
            f"Received: {tfds_name}\n"
            "  The other direction of a pair is asked for with --direction."
        ) from error
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"Cannot read --data_dir {data_dir}: {error}"
        ) from error


def _alike(tfds_name):
    """The configurations of the dataset named, or the default dataset's."""
    dataset = tfds_name.partition("/")[0]
    try:
        configs = tfds.builder_cls(dataset).builder_configs
    except ValueError:
        dataset = "wmt14_translate"
        configs = tfds.builder_cls(dataset).builder_configs
    return [f"{dataset}/{config}" for config in configs] or [dataset]


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Whether the data is on disk, asked without a warning from tfds."""
    return builder.data_path.exists() and builder.is_prepared()


def _not_prepared(builder):
    """The error that says what was looked for and what to type next."""
    root = builder.data_dir_root
    folder = builder.data_path.relative_to(root)
    name = folder.parent
    needs = (
        "1.7 GB download, about 10 GB of disk, 20-60 min, "
        "needs www.statmt.org and data.statmt.org"
        if builder.name == "wmt14_translate"
        else "needs a network"
    )
    return UserError(
        f"{name} is not prepared in {root}.\n"
        f"  Looked for: {builder.data_path / 'dataset_info.json'}\n"
        f"  To fetch it ({needs}):\n"
        "      python -m examples.translation prepare"
        f" --tfds_name {name} --data_dir {root}\n"
        "  No network on this machine? Prepare it elsewhere and copy the folder"
        f" {folder}, then pass --data_dir.\n"
        "  Own parallel text:      --data text --train_source a.en"
        " --train_target a.de (and --validation_*, --test_*)\n"
        "  Try the code right now: --data synthetic"
        "  (made-up grammar sentences, minutes on a CPU; NOT WMT14 scores)"
    )


def _tfds_corpus(builder, direction):
    return _builder_corpus(
        builder,
        direction,
        name=f"tensorflow-datasets {builder.info.full_name}",
        kind="tfds",
    )


def _builder_corpus(builder, direction, *, name, kind, content=None):
    info = builder.info
    source, target = direction.split("-")
    sizes = {
        split: info.splits[split].num_examples
        for split in info.splits
        if split in ("train", "validation") or split.startswith("test")
    }
    _check_splits(info.full_name, sizes)
    # The sgm files of the WMT test sets escape `&`, `<` and `"`; tfds leaves
    # them so, which would cost BLEU for what no system writes.
    escaped = builder.name.startswith("wmt")

    def read(split):
        dataset = builder.as_dataset(
            split=split,
            shuffle_files=False,
            read_config=tfds.ReadConfig(try_autocache=False),
        )
        unescape = escaped and split.startswith("test")
        for batch in dataset.batch(_READ_BATCH).as_numpy_iterator():
            for pair in zip(batch[source], batch[target], strict=True):
                sentences = (sentence.decode() for sentence in pair)
                if unescape:
                    sentences = map(html.unescape, sentences)
                yield tuple(sentences)

    shards = {
        split: (info.splits[split].shard_lengths, info.splits[split].num_bytes)
        for split in sizes
    }
    return Corpus(
        name=name,
        kind=kind,
        fingerprint=fingerprint(info.full_name, direction, shards, content),
        sizes=sizes,
        reader=read,
    )


def _check_direction(builder, direction):
    info = builder.info
    if not isinstance(info.features, tfds.features.Translation):
        raise UserError(
            "--tfds_name must name a translation dataset. Received: "
            f"{info.full_name}, whose features are {info.features}"
        )
    choices = ["-".join(p) for p in itertools.permutations(info.features, 2)]
    if direction not in choices:
        raise UserError(
            f"--direction must be one of {', '.join(choices)} for "
            f"{info.full_name}. Received: {direction}"
        )


def _check_splits(name, sizes):
    missing = {"train", "validation"} - {s for s, n in sizes.items() if n}
    if missing or not any(s.startswith("test") for s in sizes):
        raise UserError(
            f"{name} must have train, validation and test splits. It has: "
            + (", ".join(f"{s} ({n:,})" for s, n in sizes.items()) or "none")
        )


# --- The embedded grammar ---


def _synthetic_corpus(data_dir, direction, train_size):
    if train_size is not None and train_size < 1:
        raise UserError(
            f"--synthetic_train_size must be at least 1. Received: {train_size}"
        )
    root = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    # Named by content: another grammar or size never reads this one's files.
    sizes = grammar.SIZES | {"train": train_size or grammar.SIZES["train"]}
    content = fingerprint(grammar.fingerprint(), sizes)
    directory = root / "cache" / f"synthetic-{content}"

    def build():
        return SyntheticTranslate(data_dir=directory, train_size=train_size)

    builder = build()
    _check_direction(builder, direction)
    if not is_prepared(builder):
        builder = _prepare_synthetic(build, directory)
    return _builder_corpus(
        builder,
        direction,
        name=_SYNTHETIC_NAME,
        kind="synthetic",
        content=content,
    )


def _prepare_synthetic(build, directory):
    tfds.disable_progress_bar()
    try:
        with _alone(directory):
            # Another process may have been first; a builder looks only once.
            builder = build()
            if not is_prepared(builder):
                notice(f"Writing the synthetic corpus to {directory} ...")
                # tfds announces a download whatever the builder does.
                with contextlib.redirect_stdout(io.StringIO()):
                    builder.download_and_prepare()
            return builder
    except OSError as error:
        raise UserError(
            f"Cannot write the synthetic corpus to {directory}: {error}\n"
            "  Pass a directory that can be written as --data_dir."
        ) from error


@contextlib.contextmanager
def _alone(directory):
    """Waits until no other process that sees the directory is in here."""
    directory.mkdir(parents=True, exist_ok=True)
    if "://" in str(directory):
        # No store of objects has locks; the worst is work done twice.
        yield
        return
    with open(directory / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- Parallel text files ---


@dataclasses.dataclass(frozen=True)
class _TextFile:
    """What a first reading of a text file found."""

    lines: int
    sha256: str
    problem: str | None = None

    def __str__(self):
        return self.problem or (
            f"{self.lines:,} lines" if self.lines else "empty"
        )


def _text_corpus(files):
    missing = [
        flag
        for split, paths in files.items()
        for flag, path in zip(_flags(split), paths, strict=True)
        if not path
    ]
    if missing:
        raise UserError(f"--data text needs {', '.join(missing)} as well.")
    scans = {}
    for split, (source, target) in files.items():
        scans[split] = _scan(source), _scan(target)
        _check_parallel(split, (source, target), scans[split])
        if len({scan.sha256 for scan in scans[split]}) == 1:
            notice(
                f"The {split} text is the same on both sides: {source} and "
                f"{target}."
            )

    def read(split):
        source, target = files[split]
        return zip(_lines(source), _lines(target), strict=True)

    source, target = (epath.Path(path).name for path in files["train"])
    return Corpus(
        name=f"text files {source} -> {target}",
        kind="text",
        fingerprint=fingerprint(
            {split: [f.sha256 for f in pair] for split, pair in scans.items()}
        ),
        sizes={split: pair[0].lines for split, pair in scans.items()},
        reader=read,
    )


def _flags(split):
    return f"--{split}_source", f"--{split}_target"


def _check_parallel(split, paths, scans):
    lines = {0 if scan.problem else scan.lines for scan in scans}
    if len(lines) > 1 or 0 in lines:
        sides = zip(_flags(split), paths, scans, strict=True)
        raise UserError(
            f"The {split} text must be two UTF-8 files, plain or gzip, with as "
            "many lines each.\n"
            + "\n".join(
                f"  {flag} {path}: {scan}" for flag, path, scan in sides
            )
        )


def _scan(path):
    """Reads a file once: its number of lines, its hash, or what is wrong."""
    digest = hashlib.sha256()
    lines = 0
    try:
        with _open_bytes(path) as stream:
            for line in stream:
                lines += 1
                line.decode()
                digest.update(line)
    except UnicodeDecodeError as error:
        problem = (
            f"line {lines:,} is not UTF-8 "
            f"(byte {error.object[error.start]:#04x})"
        )
        return _TextFile(lines, "", problem)
    except (OSError, EOFError, zlib.error) as error:
        # An OSError of the system has a plain text; one of gzip does not.
        problem = getattr(error, "strerror", None) or f"damaged gzip ({error})"
        return _TextFile(lines, "", problem)
    return _TextFile(lines, digest.hexdigest())


def read_lines(path) -> list[str]:
    """The lines of one file, plain or gzip.

    Raises:
        UserError: It cannot be read; the message names it.
    """
    if problem := _scan(path).problem:
        raise UserError(f"{path}: {problem}")
    return list(_lines(path))


def _lines(path):
    """Yields lines ended by LF or CRLF only: unlike `str.splitlines`, the line
    and paragraph separators inside a sentence stay inside it."""
    with _open_bytes(path) as stream:
        for line in stream:
            yield line.removesuffix(b"\n").removesuffix(b"\r").decode()


@contextlib.contextmanager
def _open_bytes(path):
    """Opens a local or `gs://` file, decompressed if it is gzip inside.

    A file that is only called gzip is refused, as `gzip` itself would.
    """
    path = epath.Path(path).expanduser()
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b" or path.suffix == ".gz"
        raw.seek(0)
        if is_gzip:
            with gzip.GzipFile(fileobj=raw) as stream:
                yield stream
        else:
            yield raw
