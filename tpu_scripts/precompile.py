"""Will the training step fit? Asked of the TPU compiler, before renting.

python -m tpu_scripts.precompile --topology v5e:4x4 --preset big
    --global_batch 512 --optimizer adafactor --compare adam

Compiles the real training step (JAX) for the slice and prints the HBM that it
needs on one device, by kind, for every optimizer. Nothing is run on a TPU and
no weight is allocated, so that models of any size can be asked about; it takes
one to a few minutes of one CPU core a compilation. `--search batch` and
`--search layers` look for the largest that fits. `--search chips` looks for the
smallest slice of a generation, `--topology v5e`, on which a `--global_batch`
fits: it tries those slices whose devices divide the batch.

Optimizers are those of the translation example: adafactor, keras_adafactor
(Keras' own), adam, adamw, sgd. `adafactor@bfloat16` has weights of that dtype.

On a slice the batch is split over the mesh axis `data`, and by `--sharding`

  replicated      every weight is whole on every device;
  model_parallel  heads, feed-forward width and vocabulary are split over the
                  axis `model`, of `--model_parallel` devices (Megatron-LM);
  fully_sharded   everything is split over `data`, and gathered where it is
                  used (`keras_adafactor.FullySharded`); with
                  `--model_parallel`, over both.

The translation model is model_parallel unless said otherwise, others are
fully_sharded.

`--model module:function` asks about a model of your own. The function takes
nothing, and returns a tuple: a `keras.Model`, compiled with its loss, whose
optimizer is replaced by that of `--optimizer`; and what `fit` gives to a step,
`(features, labels)` or with weights of samples, nested as the model takes it,
of anything that has a `shape`, without the axis of the batch, and a `dtype`. It
is called with the dtype policy set to `--policy`, more than once, and while JAX
traces: no value of a weight can be read or loaded.
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
from tpu_scripts.search import first_that_fits
from tpu_scripts.search import largest_that_fits

MODELS = ("translation", "decoder")
POLICIES = ("float32", "mixed_bfloat16", "bfloat16")
SEARCHES = ("batch", "layers", "chips")
SHARDINGS = ("replicated", "fully_sharded", "model_parallel")
# Flags that say how large a model of our own is.
SIZES = ("layers", "width", "ff_dim", "heads", "vocab_size", "length")
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Request:
    """A model, a batch and a slice.

    Attributes:
        topology: Name of a slice, see `tpu_compiler.TOPOLOGIES`; for a search
            of chips of a generation.
        model: `"translation"`, the example's, `"decoder"`, or
            `"module:function"`, which has no sizes: they are `None`.
        preset: Of the translation model.
        layers: Blocks; of the translation model so many on either side.
        width: Width of the model.
        ff_dim: Width inside the feed-forward networks.
        heads: Attention heads.
        vocab_size: Pieces.
        length: Tokens of a row.
        global_batch: Rows of a batch, over all devices.
        policy: Dtype policy of Keras.
        remat: Whether what is inside layers is computed again in the backward
            pass.
        model_parallel: Devices that the axis `model` has.
        sharding: One of `SHARDINGS`.
        gradient_accumulation_steps: Batches to an update.
    """

    topology: str
    model: str
    preset: str
    layers: int | None
    width: int | None
    ff_dim: int | None
    heads: int | None
    vocab_size: int | None
    length: int | None
    global_batch: int
    policy: str
    remat: bool
    model_parallel: int
    sharding: str
    gradient_accumulation_steps: int

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
            remat="on" if self.remat else "off",
            gradient_accumulation_steps=self.gradient_accumulation_steps,
        )

    def mesh_shape(self, devices):
        """Sizes of the axes `data` and `model`."""
        return devices // self.model_parallel, self.model_parallel

    def described(self):
        batch = f"batch: {self.global_batch:,} rows"
        if self.length:
            batch += f" of {self.length:,} tokens"
        if self.gradient_accumulation_steps > 1:
            batch += f", {self.gradient_accumulation_steps} to an update"
        return f"{self._model_described()}, {self.policy}\n{batch}"

    def _model_described(self):
        if self.layers is None:
            return self.model
        layers = f"{self.layers}"
        name = "decoder-only"
        if self.model == "translation":
            name = f"translation, {self.preset}"
            layers = f"{self.layers} + {self.layers}"
        return (
            f"{name}: {layers} layers, width {self.width:,}, feed-forward "
            f"{self.ff_dim:,}, {self.heads} heads, {self.vocab_size:,} pieces"
            f"{', rematerialised' if self.remat else ''}"
        )


def define_flags():
    """Returns absl flags."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    known = {"flag_values": values}
    flags.DEFINE_string(
        "topology",
        None,
        "Slice, as in v5e:4x4; for --search chips a generation, as in v5e.",
        **known,
    )
    flags.DEFINE_string(
        "model",
        "translation",
        f"{', '.join(MODELS)} or module:function, see above.",
        **known,
    )
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
        "remat",
        None,
        "Compute again, going backward, what is inside layers. Default: for "
        "the decoder.",
        **known,
    )
    flags.DEFINE_string(
        "sharding",
        None,
        f"{', '.join(SHARDINGS)}. Default: model_parallel of the translation "
        "model, fully_sharded of others.",
        **known,
    )
    flags.DEFINE_integer(
        "model_parallel", 1, "Devices of the axis model.", 1, **known
    )
    flags.DEFINE_integer(
        "gradient_accumulation_steps",
        1,
        "Batches, each of --global_batch rows, to an update.",
        1,
        **known,
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
    if values.search != "chips":
        try:
            tpu_compiler.check_topology(values.topology)
        except tpu_compiler.TopologyError as error:
            raise UserError(f"--topology: {error}") from error
    elif values.topology not in tpu_compiler.TOPOLOGIES:
        raise UserError(
            "--search chips looks through a generation: --topology must be one "
            f"of {', '.join(tpu_compiler.TOPOLOGIES)}. Received: "
            f"{values.topology}"
        )
    elif values.global_batch is None:
        raise UserError("--search chips needs a --global_batch.")
    of_user = ":" in values.model
    for name, choices in {
        "model": (values.model,) if of_user else MODELS,
        "preset": PRESETS,
        "policy": POLICIES,
        "search": (None, *SEARCHES),
        "sharding": (None, *SHARDINGS),
    }.items():
        if values[name].value not in choices:
            allowed = ", ".join(c for c in choices if c)
            if name == "model":
                allowed += ", module:function"
            raise UserError(
                f"--{name} must be one of {allowed}. Received: "
                f"{values[name].value}"
            )
    if of_user:
        _check_of_user(values)
    if values.sharding == "replicated" and values.model_parallel > 1:
        raise UserError(
            "--sharding replicated has no axis model: --model_parallel must "
            f"be 1. Received: {values.model_parallel}"
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


def _check_of_user(values):
    """Raises where a flag needs to know what is in the model."""
    given = [
        name for name in (*SIZES, "remat") if values[name].value is not None
    ]
    if given or values.search == "layers":
        flag = f"--{given[0]}" if given else "--search layers"
        raise UserError(
            f"{flag} is of the models {' and '.join(MODELS)}. Received: "
            f"--model {values.model}"
        )
    if values.sharding == "model_parallel" or values.model_parallel > 1:
        raise UserError(
            "What is split over an axis model is known of the models "
            f"{' and '.join(MODELS)} alone. Received: --model {values.model}"
        )


def _request(values):
    sharding = values.sharding or (
        "model_parallel" if values.model == "translation" else "fully_sharded"
    )
    remat = values.remat
    if remat is None:
        remat = values.model == "decoder"
    return Request(
        topology=values.topology,
        model=values.model,
        preset=values.preset,
        global_batch=_batch(values),
        policy=values.policy,
        remat=remat,
        model_parallel=values.model_parallel,
        sharding=sharding,
        gradient_accumulation_steps=values.gradient_accumulation_steps,
        **(dict.fromkeys(SIZES) if ":" in values.model else _sizes(values)),
    )


def _batch(values):
    """Rows of a batch, where the slices there are can share them out."""
    if values.search == "chips":
        slices = slices_of(
            values.topology, values.global_batch, values.model_parallel
        )
        if not slices:
            raise UserError(
                f"No slice of {values.topology} has devices that "
                f"--model_parallel {values.model_parallel} divides and that "
                f"share out --global_batch {values.global_batch}."
            )
        return values.global_batch
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
    return batch


def slices_of(generation, global_batch, model_parallel):
    """The slices of a generation that can share out a batch, by their size."""
    found = []
    for shape in tpu_compiler.TOPOLOGIES[generation]:
        topology = f"{generation}:{shape}"
        data, left = divmod(tpu_compiler.device_count(topology), model_parallel)
        if data and not left and global_batch % data == 0:
            found.append(topology)
    return sorted(found, key=tpu_compiler.device_count)


def _sizes(values):
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
    for name in SIZES:
        if values[name].value is not None:
            sizes[name] = values[name].value
    sizes.setdefault("ff_dim", 4 * sizes["width"])
    sizes.setdefault("heads", max(1, sizes["width"] // 128))
    if sizes["width"] % 2 or sizes["width"] % sizes["heads"]:
        raise UserError(
            "--width must be even and a multiple of --heads "
            f"({sizes['heads']}). Received: {sizes['width']}"
        )
    return sizes


def search(request, optimizer, what, measure):
    """Finds the largest batch or number of layers, or the smallest slice.

    Args:
        request: Where to begin; for `"chips"` its topology is a generation.
        optimizer: Its name.
        what: `"batch"`, `"layers"` or `"chips"`.
        measure: `(request, optimizer) -> Measurement`.

    Returns:
        Tuple of the size that fits, 0 or `None` if none does, and a dict from
        every size that was compiled, in their order, to its `Measurement`. A
        size is a number, or the name of a slice.
    """
    tried = {}
    name = {"batch": "global_batch", "layers": "layers", "chips": "topology"}

    def needed(size):
        tried[size] = measure(
            dataclasses.replace(request, **{name[what]: size}), optimizer
        )
        return tried[size]

    if what == "chips":
        slices = slices_of(
            request.topology, request.global_batch, request.model_parallel
        )
        found = first_that_fits(needed, slices)
        return found, {s: tried[s] for s in slices if s in tried}
    multiple = 1
    if what == "batch":
        devices = tpu_compiler.device_count(request.topology)
        multiple = request.mesh_shape(devices)[0]
    start = getattr(request, name[what])
    found = largest_that_fits(needed, start, multiple)
    return found, dict(sorted(tried.items()))


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
    measure = measure or importlib.import_module("tpu_scripts.measure").measure
    if what == "chips":
        print(
            f"{request.topology}: the smallest slice, model "
            f"{request.model_parallel}, {request.sharding}"
        )
    else:
        print(_slice_described(request))
    print(request.described())
    print("Compiled by the TPU compiler; nothing is run on a TPU.", flush=True)

    def told(request, optimizer):
        began = time.time()
        found = measure(request, optimizer)
        sizes = [f"batch {request.global_batch:,}"]
        if request.layers is not None:
            sizes.insert(0, f"{request.layers} layers")
        if what == "chips":
            sizes.insert(0, request.topology)
        print(
            f"  {optimizer}: {', '.join(sizes)}, {found.parameters:,} "
            f"parameters: {found.required / GIB:.2f} of "
            f"{found.available / GIB:.2f} GiB, "
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
        size, tried = search(request, optimizer, what, told)
        if size:
            columns[f"{optimizer}, {_text(size)}"] = tried[size]
        end = "smallest" if what == "chips" else "largest"
        results.append(
            {
                "optimizer": optimizer,
                "search": what,
                end: size,
                **(tried[size].as_dict() if size else {}),
                "compiled": {
                    str(n): {"required": m.required, "fits": m.fits}
                    for n, m in tried.items()
                },
            }
        )
        kind = "slice" if what == "chips" else what
        print(
            f"{optimizer}: {end} {kind} that fits: {_text(size)}. Compiled: "
            + ", ".join(
                f"{_text(n)} ({'fits' if m.fits else 'does not'})"
                for n, m in tried.items()
            ),
            flush=True,
        )
    if columns:
        print(f"\n{format_table(columns)}")
    slices = {}
    if what != "chips":
        slices = {
            "chips": tpu_compiler.chips(request.topology),
            "devices": tpu_compiler.device_count(request.topology),
        }
    return {**dataclasses.asdict(request), **slices, "results": results}


def _slice_described(request):
    devices = tpu_compiler.device_count(request.topology)
    chips = tpu_compiler.chips(request.topology)
    data, model = request.mesh_shape(devices)
    each = "" if devices == chips else f" of {devices // chips} devices each"
    return (
        f"{request.topology}: {chips} chips{each}, data {data} x model "
        f"{model}, {request.sharding}"
    )


def _text(size):
    return f"{size:,}" if isinstance(size, int) else str(size).lower()


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
