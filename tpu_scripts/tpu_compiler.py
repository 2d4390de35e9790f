"""The TPU compiler, on a machine without a TPU.

`libtpu` compiles for a topology that is named, not attached. Nothing is run and
no weight is allocated: what comes back is the compiler's own account of the
program. Every private name of JAX, jaxlib and XLA that this takes is in here.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from unittest import mock

# The slices of https://cloud.google.com/tpu/docs, up to 1,024 chips.
_FLAT = ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16", "16x32", "32x32")
_CUBES = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
    *("8x8x8", "8x8x16"),
)
_SINGLE_HOST = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
TOPOLOGIES = {
    "v2": _FLAT[:6],
    "v3": _FLAT,
    "v4": _CUBES,
    "v5e": _SINGLE_HOST,
    "v5p": _CUBES,
    "v6e": _SINGLE_HOST,
    "tpu7x": _CUBES,
}

DEVICES_A_CHIP = {"v2": 2, "v3": 2, "v4": 2, "tpu7x": 2}

MISSING = [
    name for name in ("jax", "libtpu") if importlib.util.find_spec(name) is None
]
REQUIREMENT = (
    "The TPU compiler needs jax and libtpu: "
    "pip install 'keras_adafactor[tpu-compile]'."
)

# Without them libtpu asks a metadata server which machine this is, refuses to
# be loaded by two processes, and complains that it was not told of its hosts.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
}

# Custom calls that the compiler makes and the chip itself carries out.
_CALLS_ON_CHIP = {
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "AsyncCollectiveDone",
    "AsyncCollectiveStart",
    "CompactWyHelper",
    "ConcatBitcast",
    "Eigh",
    "EighTpu",
    "GatherScatterIndicesBitpacked",
    "ProductOfElementaryHouseholderReflectors",
    "Qr",
    "QrDecompositionBlock",
    "Sharding",
    "SPMDFullToShardShape",
    "SPMDShardToFullShape",
    "X64Combine",
    "X64SplitHigh",
    "X64SplitLow",
    "ZeroCrop",
}
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_ITEM_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}


class TopologyError(ValueError):
    """There is no such topology. The message lists those there are."""


class DoesNotFit(Exception):
    """The compiler says that the program needs more HBM than there is.

    Attributes:
        required: Bytes that it says are needed.
        available: Bytes that a program may use on one device.
    """

    def __init__(self, message, required, available):
        super().__init__(message)
        self.required = required
        self.available = available

    @classmethod
    def parse(cls, message):
        """The error in a message of the compiler; `None` if it is another."""
        found = re.search(
            r"Ran out of memory.*?\(([\d.]+)([KMGTP]?)\) exceeds available "
            r"\w+ \(([\d.]+)([KMGTP]?)\)",
            message,
            re.DOTALL,
        ) or re.search(
            # Said by a later pass, with the largest arrays.
            r"Used ([\d.]+)([KMGTP]?) of ([\d.]+)([KMGTP]?) hbm",
            message,
        )
        if found is None:
            return None
        required, required_unit, available, available_unit = found.groups()
        return cls(
            found.group(),
            round(float(required) * _UNITS[required_unit]),
            round(float(available) * _UNITS[available_unit]),
        )


@dataclasses.dataclass(frozen=True)
class Argument:
    """One array that a program is given, the part on one device.

    Attributes:
        shape: Tuple of ints.
        dtype: String.
        hbm_bytes: What it takes, padded to the tiles of the chip.
    """

    shape: tuple[int, ...]
    dtype: str
    hbm_bytes: int

    @property
    def unpadded_bytes(self):
        return math.prod(self.shape) * _item_bytes(self.dtype)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One array exchanged between devices.

    The compiler puts several into one exchange; here they are apart.

    Attributes:
        kind: String, such as `"all-reduce"`.
        output_bytes: What a device has of the array afterwards.
    """

    kind: str
    output_bytes: int


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, in bytes of one device.

    Attributes:
        arguments: List of `Argument`: the leaves in their order, then arrays
            that the function itself holds.
        argument_bytes: All arguments.
        output_bytes: All that it returns.
        alias_bytes: What it returns in the place of an argument.
        temporary_bytes: Everything else that lives in HBM while it runs.
        code_bytes: The program itself.
        bytes_accessed: What it reads and writes, by the compiler's count.
        lowered: Text of the StableHLO it was compiled from.
        text: Text of what was compiled, or `None` where jaxlib cannot read
            what a newer libtpu made.
        host_bytes: Bytes kept in the memory of the host.
    """

    arguments: list[Argument] = dataclasses.field(repr=False)
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temporary_bytes: int
    code_bytes: int
    bytes_accessed: float
    lowered: str = dataclasses.field(repr=False)
    text: str | None = dataclasses.field(repr=False)
    host_bytes: int = 0

    @property
    def hbm_bytes(self):
        """HBM of the step: arguments, new outputs, temporaries and code."""
        return (
            self.argument_bytes
            + self.output_bytes
            - self.alias_bytes
            + self.temporary_bytes
            + self.code_bytes
        )

    def collectives(self):
        """List of `Collective`, one an array, in the order of the program."""
        return _collectives(self._compiled_text())

    def estimated_cycles(self):
        """Sum of the compiler's estimates, of operations that have one."""
        cycles = re.findall(
            r'"estimated_cycles":"(\d+)"', self._compiled_text()
        )
        return sum(map(int, cycles))

    def on_host(self):
        """What is left to the host: a list of strings, empty if nothing is."""
        found = _on_host(self.lowered) | _on_host(self.text or "")
        if self.host_bytes:
            found.add(f"{self.host_bytes} bytes of host memory")
        return sorted(found)

    def _compiled_text(self):
        if self.text is None:
            raise ValueError(
                "jaxlib cannot read the compiled program: it is older than "
                "libtpu. Ask for another generation."
            )
        return self.text


def devices(topology):
    """The devices of a topology, as JAX has them.

    Args:
        topology: String, a generation of `TOPOLOGIES` and one of its shapes,
            as in `"v5e:4x4"`. A chip of v2, v3, v4 and tpu7x is two devices.

    Returns:
        List of `jax.Device`, which can be compiled for and not run on.

    Raises:
        TopologyError: If there is no such topology.
        ImportError: If jax or libtpu is not installed.
    """
    check_topology(topology)
    if MISSING:
        raise ImportError(f"{', '.join(MISSING)} not installed. {REQUIREMENT}")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies  # noqa: PLC0415

    return list(
        topologies.get_topology_desc(
            platform="tpu", topology_name=topology
        ).devices
    )


def check_topology(topology):
    """Raises `TopologyError` for a name that is not in `TOPOLOGIES`."""
    generation, _, shape = topology.partition(":")
    if shape not in TOPOLOGIES.get(generation, ()):
        valid = "\n".join(
            "  " + " ".join(f"{name}:{shape}" for shape in shapes)
            for name, shapes in TOPOLOGIES.items()
        )
        raise TopologyError(
            f"There is no topology {topology!r}. There are:\n{valid}"
        )


def chips(topology):
    """Number of chips of a topology."""
    return math.prod(map(int, topology.partition(":")[2].split("x")))


def device_count(topology):
    """Number of devices of a topology, without loading the compiler."""
    generation = topology.partition(":")[0]
    return chips(topology) * DEVICES_A_CHIP.get(generation, 1)


def usable_hbm(device):
    """Bytes that a program may use on a device, by the compiler's word."""
    import jax  # noqa: PLC0415

    too_large = jax.ShapeDtypeStruct((2**21, 2**21), "float32")
    try:
        compile_jax(lambda x: x + 1, on_device(device, [too_large]))
    except DoesNotFit as error:
        return error.available
    raise ValueError(f"{device} has room for 16 TiB.")


def on_device(device, tree):
    """`jax.ShapeDtypeStruct`s that live on one device.

    Args:
        device: One of `devices`.
        tree: Nested lists, tuples and dicts of anything that has a shape and
            a dtype.
    """
    import jax  # noqa: PLC0415

    sharding = jax.sharding.SingleDeviceSharding(device)
    return jax.tree.map(lambda leaf: sharded(leaf, sharding), tree)


def sharded(leaf, sharding):
    """A `jax.ShapeDtypeStruct` of the shape and dtype of `leaf`."""
    import jax  # noqa: PLC0415

    return jax.ShapeDtypeStruct(
        tuple(leaf.shape), leaf.dtype, sharding=sharding
    )


def shardings(tree):
    """The shardings of a tree of `jax.ShapeDtypeStruct`s."""
    import jax  # noqa: PLC0415

    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def compile_jax(
    function, arguments, donate=(), out_shardings=None, keep_unused=False
):
    """Compiles a function of JAX for the devices its arguments live on.

    Args:
        function: Takes `arguments`.
        arguments: List of nested `jax.ShapeDtypeStruct`s with shardings, see
            `on_device`.
        donate: Indices of the arguments whose memory it may reuse.
        out_shardings: As in `jax.jit`.
        keep_unused: As in `jax.jit`: whether arguments that make no difference
            are parameters of the program. In HBM they are in any case.

    Returns:
        `Program`.

    Raises:
        DoesNotFit: If the program needs more HBM than there is.
    """
    import jax  # noqa: PLC0415

    lowered = jax.jit(
        function,
        donate_argnums=donate,
        keep_unused=keep_unused,
        out_shardings=out_shardings,
    ).lower(*arguments)
    with _reading_errors():
        compiled = lowered.compile()
    # JAX passes large arrays that the function holds before the rest.
    held = compiled._params.const_args
    shards = [(array.shape, array.dtype) for array in held]
    shards += [
        (leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
        for leaf in jax.tree.leaves(arguments)
    ]
    kept = compiled._executable._kept_var_idx
    return _program(
        compiled.runtime_executable(),
        [shard for i, shard in enumerate(shards) if i in kept],
        lowered.as_text(),
        held=len(held),
    )


def compile_tensorflow(function, arguments, device):
    """Compiles a function of TensorFlow for one device.

    The way is that of `jit_compile=True` as far as HLO, which is then
    compiled by libtpu. Variables become arguments of the program, after those
    that are given.

    Args:
        function: `tf.function` with `jit_compile=True`.
        arguments: List of nested tensors.
        device: One of `devices`.

    Returns:
        `Program`.

    Raises:
        DoesNotFit: If the program needs more HBM than there is.
        Exception: What TensorFlow raises for an operation that XLA refuses.
    """
    return compile_hlo(tensorflow_hlo(function, arguments), device)


def tensorflow_hlo(function, arguments):
    """The first half of `compile_tensorflow`: a serialized HLO module."""
    import tensorflow as tf  # noqa: PLC0415

    # What is traced asks for one of these, of which there is none here: any
    # strategy is taken for one.
    with mock.patch.object(
        tf.distribute, "TPUStrategy", tf.distribute.Strategy
    ):
        return function.experimental_get_compiler_ir(*arguments)(
            stage="hlo_serialized"
        )


def compile_hlo(hlo, device):
    """The second half of `compile_tensorflow`, the same for all devices."""
    import jaxlib  # noqa: PLC0415
    from jax._src import compiler  # noqa: PLC0415
    from jax._src.interpreters import mlir  # noqa: PLC0415
    from jax._src.lib.mlir import ir  # noqa: PLC0415

    with mlir.make_ir_context():
        module = ir.Module.parse(jaxlib._jax.mlir.hlo_to_stablehlo(hlo))
        # The one operation of TensorFlow that the TPU compiler does not know.
        text = re.sub(
            r"mhlo\.copy (%\S+) : (.*)",
            r"stablehlo.reshape \1 : (\2) -> \2",
            str(module),
        )
        module = ir.Module.parse(text)
        (main,) = (
            operation
            for operation in module.body.operations
            if ir.StringAttr(operation.attributes["sym_name"]).value == "main"
        )
        types = [
            ir.RankedTensorType(type_)
            for type_ in ir.FunctionType(
                ir.TypeAttr(main.attributes["function_type"]).value
            ).inputs
        ]
        shapes = [
            (tuple(type_.shape), _dtype_name(str(type_.element_type)))
            for type_ in types
        ]
        with _reading_errors():
            executable = device.client.compile(
                module,
                jaxlib._jax.DeviceList((device,)),
                compiler.get_compile_options(
                    num_replicas=1, num_partitions=1, backend=device.client
                ),
            )
    return _program(executable, shapes, text)


@contextlib.contextmanager
def _reading_errors():
    """Raises `DoesNotFit` where the compiler says so in words."""
    try:
        yield
    except RuntimeError as error:
        found = DoesNotFit.parse(str(error))
        if found is None:
            raise
        raise found from error


def _program(executable, shapes, lowered, held=0):
    memory = executable.get_compiled_memory_stats()
    layouts = executable.get_parameter_layouts()
    arguments = [
        Argument(
            tuple(shape), str(dtype), _padded_bytes(shape, dtype, str(layout))
        )
        for (shape, dtype), layout in zip(shapes, layouts, strict=True)
    ]
    try:
        text = "\n".join(m.to_string() for m in executable.hlo_modules())
    except RuntimeError:
        text = None
    return Program(
        arguments=arguments[held:] + arguments[:held],
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        bytes_accessed=executable.cost_analysis()["bytes accessed"],
        lowered=lowered,
        text=text,
        host_bytes=memory.host_argument_size_in_bytes
        + memory.host_output_size_in_bytes
        + memory.host_temp_size_in_bytes,
    )


def _padded_bytes(shape, dtype, layout):
    """Bytes of an array in a layout such as `{0,1:T(8,128)(2,1)}`.

    The first tile pads the axes that are innermost in memory; further tiles
    only order what is inside of it.
    """
    order = re.match(r"\{([\d,]*)", layout).group(1)
    tile = re.search(r"T\(([\d,]*)\)", layout)
    # Innermost first.
    sizes = [shape[int(axis)] for axis in order.split(",") if axis]
    tiles = [int(size) for size in tile.group(1).split(",")][::-1]
    sizes += [1] * (len(tiles) - len(sizes))
    for i, size in enumerate(tiles):
        sizes[i] = -(-sizes[i] // size) * size
    return int(math.prod(sizes) * _item_bytes(dtype))


def _collectives(text):
    found, channels = [], set()
    for line in text.splitlines():
        match = re.match(
            rf"\s*(?:ROOT )?%\S+ = (.*?) ({'|'.join(_COLLECTIVES)})"
            r"(-start)?\(",
            line,
        )
        if match:
            shapes, kind, started = match.groups()
            # One that goes on beside what is computed is written once for
            # every piece of that.
            channel = re.search(r"\bchannel_id=\d+", line)
            if channel and channel.group() in channels:
                continue
            channels.add(channel and channel.group())
            sizes = _array_bytes(shapes)
            if started and kind != "all-reduce":
                # What starts an exchange returns its operands and more.
                sizes = [max(sizes)]
            found += [Collective(kind, size) for size in sizes]
    return found


def _array_bytes(text):
    """Bytes of every array type in a text such as `(f32[8,4]{1,0}, s32[])`."""
    return [
        int(
            _item_bytes(dtype)
            * math.prod(int(n) for n in shape.split(",") if n)
        )
        for dtype, shape in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", text)
    ]


def _on_host(text):
    targets = re.findall(
        r'custom_call_target\s*=\s*"([^"]+)"|custom_call @(\w+)', text
    )
    found = {
        f"custom call {name}"
        for name in map("".join, targets)
        if name not in _CALLS_ON_CHIP
    }
    found |= {
        f"operation {name}"
        for name in re.findall(
            r"(?<= )(infeed|outfeed|send|recv)(?=\()"
            r"|(?<=stablehlo\.)(infeed|outfeed|send|recv)\b",
            text,
        )
        for name in name
        if name
    }
    # Memory space 5 of a layout is the host's.
    if re.search(r"\{[\d,]*:[^}]*S\(5\)", text):
        found.add("array in host memory")
    return found


def _item_bytes(dtype):
    """Bytes of an element; dtypes of numpy and of HLO."""
    name = _dtype_name(str(dtype))
    if name in _ITEM_BYTES:
        return _ITEM_BYTES[name]
    if name == "bool":
        return 1
    digits = re.search(r"\d+", name)
    return int(digits.group()) // 8


def _dtype_name(name):
    """numpy's name of an element type of StableHLO; others as they are."""
    if name == "i1":
        return "bool"
    match = re.fullmatch(r"(ui|i|f|bf)(\d+)", name)
    if match is None:
        return name
    kinds = {"ui": "uint", "i": "int", "f": "float", "bf": "bfloat"}
    return kinds[match[1]] + match[2]
