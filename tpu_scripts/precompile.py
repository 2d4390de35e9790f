"""Will the training step fit? Asked of the TPU compiler, before renting.

python -m tpu_scripts.precompile --topology v5e:4x4 --preset big
    --global_batch 512 --optimizer adafactor --compare adam

Compiles the real training step (JAX) for the slice and prints the HBM that it
needs on one device, by kind, for every optimizer. Nothing is run on a TPU and
no weight is allocated, so that models of any size can be asked about; it takes
one to a few minutes of one CPU core a compilation. `--search batch` and
`--search layers` look for the largest that fits.

Optimizers are those of the translation example: adafactor, keras_adafactor
(Keras' own), adam, adamw, sgd. `adafactor@bfloat16` has weights of that dtype.

On a slice the batch is split over the mesh axis `data`. Weights of the
translation model are split as the example does it, over `model` alone; every
matrix of the decoder over `data` and `model` both, and gathered where it is
used.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import sys
import time

from absl import flags

from examples.translation.config import OPTIMIZERS
from examples.translation.config import PRESETS
from examples.translation.config import TranslationConfig
from examples.translation.errors import UserError
from tpu_scripts import tpu_compiler
from tpu_scripts.search import largest_that_fits

MODELS = ("translation", "decoder")
POLICIES = ("float32", "mixed_bfloat16", "bfloat16")
SEARCHES = ("batch", "layers")
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Request:
    """A model, a batch and a slice.

    Attributes:
        topology: Name of a slice, see `tpu_compiler.TOPOLOGIES`.
        model: `"translation"`, the example's, or `"decoder"`.
        preset: Of the translation model.
        layers: Blocks; of the translation model so many on either side.
        width: Width of the model.
        ff_dim: Width inside the feed-forward networks.
        heads: Attention heads.
        vocab_size: Pieces.
        length: Tokens of a row.
        global_batch: Rows of a batch, over all devices.
        policy: Dtype policy of Keras.
        remat: Whether the decoder's blocks are computed again in the backward
            pass.
        model_parallel: Devices that the axis `model` has.
    """

    topology: str
    model: str
    preset: str
    layers: int
    width: int
    ff_dim: int
    heads: int
    vocab_size: int
    length: int
    global_batch: int
    policy: str
    remat: bool
    model_parallel: int

    def translation_config(self, optimizer):
        """The example's configuration of this model."""
        return TranslationConfig.from_preset(
            self.preset,
            optimizer=optimizer,
            num_layers=self.layers,
            model_dim=self.width,
            ff_dim=self.ff_dim,
            num_heads=self.heads,
            vocab_size=self.vocab_size,
            max_length=self.length,
        )

    def mesh_shape(self, devices):
        """Sizes of the axes `data` and `model`."""
        return devices // self.model_parallel, self.model_parallel

    def sizes(self):
        """The sizes that axes of weights have."""
        return {
            "vocab": self.vocab_size,
            "width": self.width,
            "ff": self.ff_dim,
            "heads": self.heads,
        }

    def described(self):
        layers = f"{self.layers}"
        name = "decoder-only"
        if self.model == "translation":
            name = f"translation, {self.preset}"
            layers = f"{self.layers} + {self.layers}"
        return (
            f"{name}: {layers} layers, width {self.width:,}, feed-forward "
            f"{self.ff_dim:,}, {self.heads} heads, {self.vocab_size:,} pieces, "
            f"{self.policy}\n"
            f"batch: {self.global_batch:,} rows of {self.length:,} tokens"
        )


def define_flags():
    """Returns absl flags."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    known = {"flag_values": values}
    flags.DEFINE_string("topology", None, "Slice, as in v5e:4x4.", **known)
    flags.DEFINE_string("model", "translation", " or ".join(MODELS), **known)
    flags.DEFINE_string(
        "preset", "big", "Translation: tiny, base or big.", **known
    )
    for name, description in {
        "layers": "Layers. Default: the preset's; decoder: 12.",
        "width": "Width. Default: the preset's; decoder: 1024.",
        "ff_dim": "Feed-forward width. Default: preset's; decoder: 4 width.",
        "heads": "Heads. Default: the preset's; decoder: width / 128.",
        "vocab_size": "Pieces. Default: the preset's; decoder: 32768.",
        "length": "Tokens of a row. Default: the preset's; decoder: 512.",
        "global_batch": "Rows of a batch over all devices. Default: 8 for each "
        "device of the axis data.",
    }.items():
        flags.DEFINE_integer(name, None, description, lower_bound=1, **known)
    flags.DEFINE_string("policy", "mixed_bfloat16", "Dtype policy.", **known)
    flags.DEFINE_bool(
        "remat", True, "Decoder: compute blocks again going backward.", **known
    )
    flags.DEFINE_integer(
        "model_parallel", 1, "Devices of the axis model.", 1, **known
    )
    flags.DEFINE_string("optimizer", "adafactor", "Optimizer.", **known)
    flags.DEFINE_list("compare", [], "More optimizers, with commas.", **known)
    flags.DEFINE_string("search", None, " or ".join(SEARCHES), **known)
    flags.DEFINE_string("json", None, "File to write the results to.", **known)
    flags.DEFINE_bool("help", False, "Show this.", short_name="h", **known)
    return values


def parse(argv):
    """Returns the `Request`, the optimizers and the flags.

    Raises:
        UserError: A flag is unknown or out of range, or flags do not fit
            together.
    """
    values = define_flags()
    try:
        _, *words = values(argv)
    except flags.Error as error:
        raise UserError(f"{error}. --help lists the flags.") from error
    if values.help:
        return None, [], values
    if words:
        raise UserError(f"Only flags are taken. Received: {words[0]}")
    if values.topology is None:
        raise UserError("Give a --topology, as in v5e:4x4.")
    try:
        tpu_compiler.check_topology(values.topology)
    except tpu_compiler.TopologyError as error:
        raise UserError(f"--topology: {error}") from error
    for name, choices in {
        "model": MODELS,
        "preset": PRESETS,
        "policy": POLICIES,
        "search": (None, *SEARCHES),
    }.items():
        if values[name].value not in choices:
            allowed = ", ".join(c for c in choices if c)
            raise UserError(
                f"--{name} must be one of {allowed}. Received: "
                f"{values[name].value}"
            )
    optimizers = [values.optimizer, *values.compare]
    for optimizer in optimizers:
        name, at, policy = optimizer.partition("@")
        if name not in OPTIMIZERS or (at and policy not in POLICIES):
            raise UserError(
                "--optimizer and --compare must be of "
                f"{', '.join(OPTIMIZERS)}, with @ and one of "
                f"{', '.join(POLICIES)} if need be. Received: {optimizer}"
            )
    return _request(values), optimizers, values


def _request(values):
    sizes = {
        "layers": 12,
        "width": 1024,
        "vocab_size": 32_768,
        "length": 512,
    }
    if values.model == "translation":
        config = TranslationConfig.from_preset(values.preset)
        sizes = {
            "layers": config.num_layers,
            "width": config.model_dim,
            "ff_dim": config.ff_dim,
            "heads": config.num_heads,
            "vocab_size": config.vocab_size,
            "length": config.max_length,
        }
    for name in ("ff_dim", "heads", *sizes):
        if values[name].value is not None:
            sizes[name] = values[name].value
    sizes.setdefault("ff_dim", 4 * sizes["width"])
    sizes.setdefault("heads", max(1, sizes["width"] // 128))
    if sizes["width"] % 2 or sizes["width"] % sizes["heads"]:
        raise UserError(
            "--width must be even and a multiple of --heads "
            f"({sizes['heads']}). Received: {sizes['width']}"
        )
    devices = tpu_compiler.device_count(values.topology)
    if devices % values.model_parallel:
        raise UserError(
            f"--model_parallel must divide the {devices} devices of "
            f"{values.topology}. Received: {values.model_parallel}"
        )
    data = devices // values.model_parallel
    batch = values.global_batch or 8 * data
    if batch % data:
        raise UserError(
            f"--global_batch must be a multiple of {data}, the devices of the "
            f"axis data. Received: {batch}"
        )
    return Request(
        topology=values.topology,
        model=values.model,
        preset=values.preset,
        global_batch=batch,
        policy=values.policy,
        remat=values.remat,
        model_parallel=values.model_parallel,
        **sizes,
    )


def search(request, optimizer, what, measure):
    """Finds the largest batch or number of layers that fits.

    Args:
        request: Where to begin.
        optimizer: Its name.
        what: `"batch"` or `"layers"`.
        measure: `(request, optimizer) -> Measurement`.

    Returns:
        Tuple of the request that fits, `None` if none does, and a dict from
        every size that was compiled to its `Measurement`.
    """
    tried = {}
    name, multiple = "layers", 1
    if what == "batch":
        devices = tpu_compiler.device_count(request.topology)
        name, multiple = "global_batch", request.mesh_shape(devices)[0]

    def needed(size):
        tried[size] = measure(
            dataclasses.replace(request, **{name: size}), optimizer
        )
        return tried[size]

    largest = largest_that_fits(needed, getattr(request, name), multiple)
    if not largest:
        return None, tried
    return dataclasses.replace(request, **{name: largest}), tried


def format_table(columns):
    """Side by side what optimizers need, in GiB of one device.

    Args:
        columns: Dict from a column's name to `Measurement`.
    """
    kinds = {
        "weights": "weights",
        "optimizer state": "optimizer_state",
        "activations and temporaries": "temporaries",
        "program": "program",
        "batch and the rest": "others",
        "needed": "required",
        "usable": "available",
    }
    rows = [["GiB of one device", *columns]]
    for kind, attribute in kinds.items():
        rows.append(
            [kind]
            + [f"{getattr(m, attribute) / GIB:.3f}" for m in columns.values()]
        )
    rows.append(
        [""] + ["FITS" if m.fits else "DOES NOT FIT" for m in columns.values()]
    )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def run(request, optimizers, what=None, measure=None):
    """Measures or searches, prints, and returns the results as JSON data."""
    devices = tpu_compiler.device_count(request.topology)
    chips = tpu_compiler.chips(request.topology)
    data, model = request.mesh_shape(devices)
    measure = measure or importlib.import_module("tpu_scripts.measure").measure
    each = "" if devices == chips else f" of {devices // chips} devices each"
    print(
        f"{request.topology}: {chips} chips{each}, data {data} x model {model}"
    )
    print(request.described())
    print("Compiled by the TPU compiler; nothing is run on a TPU.", flush=True)

    def told(request, optimizer):
        began = time.time()
        found = measure(request, optimizer)
        print(
            f"  {optimizer}: {request.layers} layers, batch "
            f"{request.global_batch:,}, {found.parameters:,} parameters: "
            f"{found.required / GIB:.2f} of {found.available / GIB:.2f} GiB, "
            f"{'fits' if found.fits else 'does not fit'} "
            f"({time.time() - began:.0f} s)",
            flush=True,
        )
        return found

    columns, results = {}, []
    for optimizer in optimizers:
        if what is None:
            columns[optimizer] = told(request, optimizer)
            results.append(
                {"optimizer": optimizer, **columns[optimizer].as_dict()}
            )
            continue
        largest, tried = search(request, optimizer, what, told)
        size = 0
        if largest is not None:
            size = largest.layers if what == "layers" else largest.global_batch
            columns[f"{optimizer}, {size:,}"] = tried[size]
        results.append(
            {
                "optimizer": optimizer,
                "search": what,
                "largest": size,
                **(tried[size].as_dict() if size else {}),
                "compiled": {
                    str(n): {"required": m.required, "fits": m.fits}
                    for n, m in sorted(tried.items())
                },
            }
        )
        print(
            f"{optimizer}: largest {what} that fits: {size:,}. Compiled: "
            + ", ".join(
                f"{n:,} ({'fits' if m.fits else 'does not'})"
                for n, m in sorted(tried.items())
            ),
            flush=True,
        )
    if columns:
        print(f"\n{format_table(columns)}")
    return {
        **dataclasses.asdict(request),
        "chips": chips,
        "devices": devices,
        "results": results,
    }


def main(argv):
    request, optimizers, values = parse(argv)
    if request is None:
        print(f"{__doc__}\nFlags:\n{values.get_help(prefix='  ')}")
        return
    if tpu_compiler.MISSING:
        raise UserError(tpu_compiler.REQUIREMENT)
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["JAX_PLATFORMS"] = "cpu"  # run here, compile for a TPU
    results = run(request, optimizers, values.search)
    if values.json:
        pathlib.Path(values.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    try:
        main(sys.argv)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
