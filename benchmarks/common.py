"""What the benchmarks share: networks, the function that is measured, measuring, colours."""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

import tfsymadj

tf.get_logger().setLevel("ERROR")
DEVICE = "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"
GRADIENTS = {
    "backprop": "backprop",
    "baseline": "baseline",
    "ACA": "aca",
    "continuous adjoint": "continuous_adjoint",
    "symplectic, auto": tfsymadj.SymplecticAdjoint("auto"),
    "symplectic, sqrt": tfsymadj.SymplecticAdjoint("sqrt"),
    "symplectic, steps": tfsymadj.SymplecticAdjoint("steps"),
    "symplectic, stages": tfsymadj.SymplecticAdjoint("stages"),
    "symplectic, 32": tfsymadj.SymplecticAdjoint(32),
}
# Colours that the colour-blind can tell (Okabe and Ito), and markers for print without colours.
STYLES = {
    "backprop": ("#555555", "s"),
    "baseline": ("#E69F00", "D"),
    "ACA": ("#CC79A7", "^"),
    "continuous adjoint": ("#56B4E9", "v"),
    "symplectic, auto": ("#0072B2", "o"),
    "symplectic, sqrt": ("#8C510A", "h"),
    "symplectic, steps": ("#009E73", "P"),
    "symplectic, stages": ("#D55E00", "X"),
    "symplectic, 32": ("#000000", "*"),
}


class Network(tf.Module):
    """dy/dt = W_n tanh(... tanh(W1 [y, t])), weights uniform in +-3 / sqrt(fan-in).

    The weights are drawn in float32, so that those of another dtype have the same values.
    """

    def __init__(self, size=64, width=256, hidden=2, seed=0, dtype=tf.float32):
        super().__init__()
        sizes = [size + 1, *[width] * hidden, size]
        self.kernels, self.biases = [], []
        for i, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:])):
            bound = 3.0 / fan_in**0.5
            kernel = tf.random.stateless_uniform([fan_in, fan_out], [seed, i], -bound, bound)
            self.kernels.append(tf.Variable(tf.cast(kernel, dtype)))
            self.biases.append(tf.Variable(tf.zeros([fan_out], dtype)))

    def __call__(self, t, y):
        x = tf.concat([y, t * tf.ones_like(y[:, :1])], axis=1)
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1]):
            x = tf.tanh(x @ kernel + bias)
        return x @ self.kernels[-1] + self.biases[-1]


def gradient_function(networks, gradient, options, mode, t=(0.0, 1.0)):
    """`y0 -> (gradients, stats)`: a solve after another and the gradient for y0 and all weights."""
    weights = [weight for network in networks for weight in network.trainable_variables]

    def run(y0):
        stats = []
        with tf.GradientTape() as tape:
            tape.watch(y0)
            y = y0
            for network in networks:
                solution = tfsymadj.solve(network, y, t, gradient=gradient, **options)
                y = solution.y[-1]
                stats.append(solution.stats)
            loss = tf.reduce_mean(y**2)
        stats = tf.nest.map_structure(lambda *counts: tf.add_n(counts), *stats)
        return tape.gradient(loss, [y0, *weights]), stats

    return run if mode == "eager" else tf.function(run, jit_compile=mode == "XLA")


def call(function, y0):
    """Calls a gradient function and waits for the device; returns seconds and stats."""
    start = time.perf_counter()
    gradients, stats = function(y0)
    for gradient in gradients:
        gradient.numpy()
    return time.perf_counter() - start, stats


def peak_of_first_call(function, y0):
    """Peak bytes of a call, above what was held before; see `in_child`."""
    before = tf.config.experimental.get_memory_info(DEVICE)["current"]
    tf.config.experimental.reset_memory_stats(DEVICE)
    call(function, y0)
    return tf.config.experimental.get_memory_info(DEVICE)["peak"] - before


def reserve(gibibytes=8):
    """Gives the allocator of `in_child` a large block to cut from; nothing is written to it.

    Without it tensors get blocks of up to twice their size, and that is what peaks count.
    """
    # All that is left of the allocator's first block, of 2 MiB.
    _kept.append(tf.raw_ops.Empty(shape=[2**20], dtype=tf.uint8, init=False))
    tf.raw_ops.Empty(shape=[gibibytes, 2**30], dtype=tf.uint8, init=False)


_kept = []


def measure(function, y0, seconds):
    """One row of a table: peak of the first call, median time of the calls that fit in `seconds`.

    Counts that are not known beforehand are None.
    """
    peak, times = peak_of_first_call(function, y0), []
    while not times or (sum(times) < seconds and len(times) < 100):
        elapsed, stats = call(function, y0)
        times.append(elapsed)
    backward = int(stats.num_backward_evaluations)
    return dict(
        time=statistics.median(times),
        calls=len(times),
        peak=peak,
        accepted=int(stats.num_accepted),
        forward=int(stats.num_evaluations),
        backward=backward if backward >= 0 else None,
    )


def measure_all(functions, y0, seconds):
    """A row for each of the functions in a dict; for one that raises, what it raised."""
    rows = {}
    for name, function in functions.items():
        try:
            rows[name] = measure(function, y0, seconds)
        except Exception as error:  # one failure must not cost the rest of the table
            rows[name] = dict(note=f"failed: {type(error).__name__}")
            print(name, error, sep=": ", file=sys.stderr)
    return rows


def in_child(script, *arguments):
    """The last line that a script prints, from JSON, run in a process that counts all tensors.

    TensorFlow's usual CPU allocator does not count tensors below 256 KiB.
    """
    environment = {**os.environ, "TF_CPU_ALLOCATOR_USE_BFC": "1"}
    command = [sys.executable, script, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def parser(documentation, figure=True):
    """The command line that the benchmarks share; `--child` is for `in_child`."""
    parser = argparse.ArgumentParser(description=documentation.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, to try it out")
    if figure:
        parser.add_argument(
            "--output", type=pathlib.Path, default="out", help="folder to write to (default: out)"
        )
        parser.add_argument(
            "--plot", action=argparse.BooleanOptionalAction, default=True, help="write the figure"
        )
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    return parser


def peer_environment():
    """Environment variables of the processes that are compared with each other."""
    cores = str(len(os.sched_getaffinity(0)))
    # Threads of PyTorch that wait actively make it many times slower if anything else runs.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    return environment | {"OMP_NUM_THREADS": cores}


def add_peers(parser):
    """The options that name the interpreters of the other packages."""
    for peer in ("jax", "torch"):
        python = f".peers/{peer}/bin/python"
        parser.add_argument(f"--{peer}-python", default=python, help=f"default: {python}")


def peer_pythons(arguments):
    """Framework -> interpreter."""
    return dict(tensorflow=sys.executable, jax=arguments.jax_python, torch=arguments.torch_python)


def check_peer(python):
    """Exits if there is no such interpreter."""
    if not pathlib.Path(python).exists():
        sys.exit(f"There is no {python}: run `make benchmark-peers`.")


def machine():
    """What the numbers depend on, in one line."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    parts = [f"{cpu}, {os.cpu_count()} cores"]
    for gpu in tf.config.list_physical_devices("GPU")[:1]:
        parts.append(tf.config.experimental.get_device_details(gpu).get("device_name", "GPU"))
    parts += [f"TensorFlow {tf.__version__}", f"{datetime.date.today():%Y-%m-%d}"]
    return ", ".join(parts)


def pyplot():
    """matplotlib.pyplot that draws into files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw(axis, points, name, **style):
    """A method's line through `(x, y)` points, sorted; names have colours and markers."""
    color, marker = STYLES[name]
    points = sorted(points)
    size = 8.5 - 0.6 * list(STYLES).index(name)  # so that equal points show, one on another
    style = dict(color=color, marker=marker, markersize=size, linewidth=1.5) | style
    axis.plot([x for x, _ in points], [y for _, y in points], label=name, **style)


def few_labels(*sides):
    """Few labels on the logarithmic ones of a plot's axes, also for less than a factor of ten.

    Args:
        *sides: `axis.xaxis` or `axis.yaxis`, their margins set.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for side in sides:
        low, high = sorted(side.get_view_interval())
        digits = (1.0,) if high / low > 100 else (1.0, 2.0, 5.0)
        side.set_major_locator(LogLocator(subs=digits))
        side.set_major_formatter(StrMethodFormatter("{x:g}"))
        side.set_minor_formatter(NullFormatter())


def save(figure, path):
    """Writes a figure and says where."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"\nfigure: {path}")
