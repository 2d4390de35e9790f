"""How fast a large corpus becomes batches, and what memory that takes.

    python -m benchmarks.data_input [--pairs 100000 4500000]

Writes parallel text of so many pairs with the embedded grammar (4.5 million are
the size of WMT14), then starts the input of the translation example in new
processes: cold, when the vocabulary has to be learned and every sentence cut
into pieces, and warm, as after a restart, when the files of the first time are
mapped into memory. Each time it reads batches of 25,000 tokens, as the preset
`base` has them.

Prints a table, and writes `results/data_input.json` beside this file unless
other numbers of pairs are asked for. With 4.5 million pairs it takes a quarter
of an hour and 2 GB of disk space.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

from benchmarks import records
from benchmarks import tables
from examples.translation import batching
from examples.translation.config import PRESETS
from examples.translation.errors import notice
from examples.translation.sources import load_corpus
from examples.translation.synthetic import grammar
from examples.translation.tokenizer import train_tokenizer

PAIRS = (100_000, 4_500_000)
BATCHES = 200
SETTINGS = PRESETS["base"]
SPLITS = {"train": None, "validation": 1_000, "test": 1_000}


def write_text(pairs, directory):
    """Writes the sides of three splits, a sentence a line."""
    for split, size in SPLITS.items():
        began = time.monotonic()
        size = size or pairs
        with (
            open(directory / f"{split}.en", "w") as source_file,
            open(directory / f"{split}.de", "w") as target_file,
        ):
            for number, (english, german) in enumerate(
                grammar.generate(split, size), start=1
            ):
                source_file.write(f"{english}\n")
                target_file.write(f"{german}\n")
                if number % 500_000 == 0:
                    seconds = time.monotonic() - began
                    notice(f"wrote {number:,} pairs in {seconds:.0f} s")


def measure(directory):
    """Starts the input once, in this process; returns what was measured."""
    seconds = {}
    began = last = time.monotonic()

    def passed(name):
        nonlocal last
        now = time.monotonic()
        seconds[name] = now - last
        last = now

    corpus = load_corpus(
        "text",
        **{
            f"{split}_{side}": str(directory / f"{split}.{language}")
            for split in SPLITS
            for side, language in (("source", "en"), ("target", "de"))
        },
    )
    passed("files read")
    tokenizer = train_tokenizer(corpus, directory / "cache", 4_096)
    passed("vocabulary")
    encoded = batching.encode_split(
        corpus,
        "train",
        tokenizer,
        directory / "cache",
        SETTINGS["max_length"],
        drop_long=True,
    )
    passed("pieces")
    plan = batching.make_plan(
        encoded,
        batching="bucket",
        tokens_per_batch=SETTINGS["tokens_per_batch"],
        batch_size=None,
        bucket_lengths=SETTINGS["bucket_lengths"],
        max_length=SETTINGS["max_length"],
        seed=0,
    )
    batches = iter(batching.train_dataset(encoded, plan))
    next(batches)
    passed("first batch")
    first = time.monotonic() - began
    for _ in range(BATCHES):
        next(batches)
    passed("batches")
    return {
        "pairs": len(encoded),
        "seconds": seconds,
        "seconds_to_first_batch": first,
        "batches_a_second": BATCHES / seconds["batches"],
        # Of Linux, in KiB.
        "peak_resident_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / 2**20,
    }


def in_a_new_process(directory):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.data_input", "--in", directory],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def table():
    """What was measured, as a Markdown table."""
    return table_of(records.load("data_input")["rows"])


def table_of(rows):
    header = [
        "pairs",
        "start",
        "to the first batch",
        "pieces, pairs a second",
        "batches a second",
        "peak resident memory",
    ]
    return tables.markdown(
        header,
        [
            [
                f"{row['pairs']:,}",
                row["start"],
                f"{row['seconds_to_first_batch']:.1f} s",
                f"{row['pairs'] / row['seconds']['pieces']:,.0f}"
                if row["start"] == "cold"
                else "",
                f"{row['batches_a_second']:.0f}",
                f"{row['peak_resident_gib']:.2f} GiB",
            ]
            for row in rows
        ],
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, nargs="+", default=PAIRS)
    parser.add_argument("--in", dest="directory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.directory:
        print(json.dumps(measure(pathlib.Path(options.directory))))
        return
    rows = []
    for pairs in options.pairs:
        with tempfile.TemporaryDirectory() as directory:
            write_text(pairs, pathlib.Path(directory))
            for start in ("cold", "warm"):
                rows.append({"start": start, **in_a_new_process(directory)})
                notice(json.dumps(rows[-1]))
    print(table_of(rows))
    if tuple(options.pairs) == PAIRS:
        print(f"written to {records.save('data_input', {'rows': rows})}")


if __name__ == "__main__":
    main()
