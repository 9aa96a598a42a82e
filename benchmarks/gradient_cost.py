"""Time and peak memory of one gradient, by gradient method, in one run.

    python benchmarks/gradient_cost.py
    python benchmarks/gradient_cost.py --steps 1000 --modes XLA

The dynamics are a tanh network 65-256-256-64 with the time as an extra input. See README.md here.
"""

import json
import statistics
import sys

import common
import tensorflow as tf

import tfsymadj

MODES = ["graph", "XLA", "eager"]
METHODS = {
    "backprop": tfsymadj.Backprop(),
    "symplectic, auto": tfsymadj.SymplecticAdjoint("auto"),
    "symplectic, sqrt": tfsymadj.SymplecticAdjoint("sqrt"),
    "symplectic, steps": tfsymadj.SymplecticAdjoint("steps"),
    "symplectic, stages": tfsymadj.SymplecticAdjoint("stages"),
}
COLUMNS = "{:<7}{:<20}{:>10}{:>10}{:>8}{:>10}{:>9}{:>10}"


def functions_and_input(mode, arguments):
    """The gradient function of each method, and what they are called with."""
    networks = [common.Network()]
    options = dict(method=arguments.method, num_steps=arguments.steps)
    functions = {
        name: common.gradient_function(networks, gradient, options, mode)
        for name, gradient in METHODS.items()
    }
    return functions, tf.random.stateless_normal([arguments.batch, 64], [1, 1])


def measure_time(mode, arguments):
    """Seconds of each call, and counts; the methods take turns to see the same machine."""
    functions, y0 = functions_and_input(mode, arguments)
    times, stats = {name: [] for name in functions}, {}
    for i in range(1 + arguments.rounds):
        for name, function in functions.items():
            seconds, stats[name] = common.call(function, y0)
            if i > 0:  # the first call traces and compiles
                times[name].append(seconds)
    return times, stats


def measure_peaks(mode, arguments):
    """Peak bytes of each method's first call, above what was held before."""
    functions, y0 = functions_and_input(mode, arguments)
    return {name: common.peak_of_first_call(function, y0) for name, function in functions.items()}


def measure(mode, arguments):
    """Rows of a table for one mode."""
    # TensorFlow's usual CPU allocator does not count tensors below 256 KiB, and the one that does
    # has another speed: memory is measured in a process of its own.
    peaks = common.in_child(__file__, *sys.argv[1:], "--child", json.dumps(mode))
    times, stats = measure_time(mode, arguments)
    reference = statistics.median(times["backprop"])
    return [
        dict(
            mode=mode,
            name=name,
            median=statistics.median(times[name]),
            min=min(times[name]),
            ratio=statistics.median(times[name]) / reference,
            peak=peaks[name] / 2**20,
            forward=int(stats[name].num_evaluations),
            backward=int(stats[name].num_backward_evaluations),
        )
        for name in METHODS
    ]


def plot(rows, title, path):
    """Time beside peak memory, one pair of panels, a row per mode and method."""
    plt = common.pyplot()
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    # From the top down, a gap of one row between two modes.
    positions = [-(i + modes.index(row["mode"])) for i, row in enumerate(rows)]
    figure, axes = plt.subplots(
        1, 2, figsize=(9, 1.2 + 0.3 * (len(rows) + len(modes))), sharey=True, layout="constrained"
    )
    panels = [
        ("median", "{:.2f}", "Time per gradient (s)"),
        ("peak", "{:.0f}", "Peak memory (MiB, log scale)"),
    ]
    for axis, (key, form, label) in zip(axes, panels):
        values = [row[key] for row in rows]
        bars = axis.barh(positions, values, color=[common.STYLES[row["name"]][0] for row in rows])
        axis.bar_label(bars, [form.format(value) for value in values], padding=3)
        axis.set_xlabel(label)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(positions, [f"{row['name']} ({row['mode']})" for row in rows])
    axes[0].set_xlim(0, 1.15 * max(row["median"] for row in rows))
    axes[1].set_xscale("log")
    axes[1].set_xlim(right=2 * max(row["peak"] for row in rows))
    figure.suptitle(title, fontsize=10)
    common.save(figure, path)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--method", default="rk4", help="of the solver (default: rk4)")
    parser.add_argument("--steps", type=int, default=100, help="of the solver (default: 100)")
    parser.add_argument("--batch", type=int, default=512, help="size of the batch (default: 512)")
    parser.add_argument("--rounds", type=int, default=7, help="of measuring (default: 7)")
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=["graph", "XLA"],
        help="of execution (default: graph XLA)",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 1
    if arguments.child:
        print(json.dumps(measure_peaks(arguments.child, arguments)))
        return

    title = (
        f"{arguments.method}, N = {arguments.steps} steps, batch {arguments.batch}, "
        "network 65-256-256-64, float32"
    )
    print(common.machine(), title, sep="\n", end="\n\n", flush=True)
    header = ["mode", "gradient", "median s", "min s", "ratio", "peak MiB", "forward", "backward"]
    print(COLUMNS.format(*header))
    rows = []
    for mode in arguments.modes:
        for row in measure(mode, arguments):
            rows.append(row)
            numbers = [f"{row[key]:.3f}" for key in ("median", "min")]
            numbers += [f"{row['ratio']:.2f}", f"{row['peak']:.1f}"]
            line = COLUMNS.format(mode, row["name"], *numbers, row["forward"], row["backward"])
            print(line, flush=True)
    if arguments.plot:
        plot(rows, f"{title}\n{common.machine()}", arguments.output / "gradient_cost.png")


if __name__ == "__main__":
    main()
