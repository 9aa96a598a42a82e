"""How memory and time of a gradient grow with N, s, L and M, for each gradient method.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --quick --mode graph --no-plot

Table 1 of Matsubara, Miyatake, Yaguchi (arXiv:2102.09750), measured. One of N (steps), s (stages of
the solver's method), L (hidden layers of the network) and M (networks solved one after another)
varies at a time. See README.md here.
"""

import json
import math

import common
import numpy as np
import tensorflow as tf

import tfsymadj

MIB, GIB = 2**20, 2**30
BATCH, SIZE, WIDTH = 128, 32, 64
BASE = dict(N=100, s="rk4", L=2, M=1)
SWEEPS = {
    "N": [10, 30, 100, 300, 1000, 3000, 10000],
    "s": ["euler", "midpoint", "bosh3", "rk4", "dopri5", "dopri8"],
    "L": [1, 2, 4, 8, 16],
    "M": [1, 2, 4],
}
QUICK = {"N": [10, 30, 100], "s": ["euler", "midpoint", "rk4"], "L": [1, 2, 4], "M": [1, 2]}
MEANING = {
    "N": "steps N",
    "s": "stages s",
    "L": "hidden layers L",
    "M": "networks in a row M",
}
LIMIT = 2 * GIB
BUDGET = 32

# Bytes of a state and of one network use; the loop's buffers, not the weights.
STATE = 4 * BATCH * SIZE
# What is held at the peak, in words and in bytes, with states of size y and network uses of size L.
THEORY = {
    "backprop": ("M N s L", lambda N, s, L, M, y: M * N * s * L),
    "baseline": ("M y + N s L", lambda N, s, L, M, y: M * y + N * s * L),
    "ACA": ("M N y + s L", lambda N, s, L, M, y: M * N * y + s * L),
    "continuous adjoint": ("M y + L", lambda N, s, L, M, y: M * y + L),
    "symplectic, sqrt": (
        "(M + 1) √(N s) y + L",
        lambda N, s, L, M, y: (M + 1) * math.sqrt(N * s) * y + L,
    ),
    "symplectic, steps": ("(M N + s) y + L", lambda N, s, L, M, y: (M * N + s) * y + L),
    "symplectic, 32": (
        f"{BUDGET} M y + L",
        lambda N, s, L, M, y: min(BUDGET * M, (M + 1) * math.sqrt(N * s)) * y + L,
    ),
}
COLUMNS = "{:<3}{:<10}{:<20}{:>10}{:>7}{:>11}{:>9}{:>10}  {}"


def stages(method):
    return tfsymadj.METHODS[method].without_error().stages


def number(parameter, value):
    """The value as a number: for a method the number of its stages."""
    return stages(value) if parameter == "s" else value


def theory(name, case):
    """Bytes that a gradient method should hold."""
    use = 4 * BATCH * (SIZE + 1 + case["L"] * WIDTH + SIZE)
    _, held = THEORY[name]
    return held(case["N"], stages(case["s"]), use, case["M"], STATE)


def measure(request):
    """The rows of one case, for the gradient methods asked for."""
    common.reserve()
    case = request["case"]
    networks = [common.Network(SIZE, WIDTH, case["L"], seed) for seed in range(case["M"])]
    y0 = tf.random.stateless_normal([BATCH, SIZE], [1, 1])
    options = dict(method=case["s"], num_steps=case["N"])
    functions = {
        name: common.gradient_function(networks, common.GRADIENTS[name], options, request["mode"])
        for name in request["names"]
    }
    return common.measure_all(functions, y0, request["seconds"])


def run_sweep(parameter, values, arguments):
    """Rows with `x` and the name of the gradient method, printed as they come."""
    rows, last = [], {}
    for value in values:
        case = BASE | {parameter: value}
        predicted = {}
        for name in THEORY:
            predicted[name] = theory(name, case)
            if name in last:  # by what was measured before
                peak, expected = last[name]
                predicted[name] *= max(1.0, peak / expected)
        names = [name for name in THEORY if predicted[name] <= LIMIT]
        request = dict(
            case=case, names=names, mode=arguments.mode, seconds=0.2 if arguments.quick else 1.0
        )
        measured = common.in_child(__file__, "--child", json.dumps(request))
        for name in THEORY:
            note = f"skipped ({predicted[name] / GIB:.1f} GiB)"
            row = dict(x=number(parameter, value), name=name, theory=theory(name, case))
            row |= measured.get(name, dict(note=note))
            if "peak" in row:
                last[name] = row["peak"], row["theory"]
            rows.append(row)
            print(line(parameter, value, row), flush=True)
    return rows


def line(parameter, value, row):
    if "note" in row:
        return COLUMNS.format(parameter, value, row["name"], *["-"] * 5, row["note"])
    backward = "?" if row["backward"] is None else row["backward"]
    numbers = [f"{1000 * row['time']:.2f}", row["calls"], f"{row['peak'] / MIB:.2f}"]
    return COLUMNS.format(
        parameter, value, row["name"], *numbers, row["forward"], backward, ""
    ).rstrip()


def exponent(rows, key):
    """Slope of log key over log x by least squares, over the upper half of the points."""
    points = sorted((row["x"], row[key]) for row in rows if "peak" in row)
    points = points[-max(2, (len(points) + 1) // 2) :]
    if len(points) < 2:
        return math.nan
    x, y = np.log(points).T
    return np.polyfit(x, y, 1)[0]


def print_exponents(parameter, rows):
    """Growth as measured, beside that of the theory's formula over the same points."""
    columns = "{:<20}{:>10}{:>10}{:>10}  {}"
    print(f"\nexponents in {parameter}")
    print(columns.format("gradient", "memory", "in theory", "time", "memory in theory"))
    for name, (formula, _) in THEORY.items():
        own = [row for row in rows if row["name"] == name]
        numbers = [f"{exponent(own, key):.2f}" for key in ("peak", "theory", "time")]
        print(columns.format(name, *numbers, formula))
    print(flush=True)


def plot(sweeps, title, path):
    """Memory against each parameter, time against N, and a legend with the theory's formulas."""
    plt = common.pyplot()
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    panels = [
        ("N", "peak"), ("s", "peak"), ("N", "time"),
        ("L", "peak"), ("M", "peak"),
    ]  # fmt: skip
    for axis, (parameter, key) in zip(axes.flat, panels):
        scale = MIB if key == "peak" else 1.0
        rows = [row for row in sweeps[parameter] if key in row]
        for name in THEORY:
            points = [(row["x"], row[key] / scale) for row in rows if row["name"] == name]
            common.draw(axis, points, name)
        axis.set(xscale="log", yscale="log", xlabel=MEANING[parameter])
        if parameter != "N":
            ticks = sorted({row["x"] for row in sweeps[parameter]})
            axis.set_xticks(ticks, [str(x) for x in ticks])
            axis.set_xticks([], minor=True)
        axis.set_title("Peak memory (MiB)" if key == "peak" else "Time of a gradient (s)")
        axis.grid(True, alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles, _ = axes[0, 0].get_legend_handles_labels()
    labels = [f"{name}:  {formula}" for name, (formula, _) in THEORY.items()]
    axes[1, 2].axis("off")
    axes[1, 2].legend(
        handles, labels, loc="center", frameon=False, fontsize=11,
        title="Gradient method and its memory in theory\n(y: a state, L: one network use)",
    )  # fmt: skip
    figure.suptitle(title, fontsize=10)
    common.save(figure, path)


def main():
    parser = common.parser(__doc__)
    parser.add_argument(
        "--mode", choices=["graph", "XLA"], default="XLA", help="of execution (default: XLA)"
    )
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child)))
        return

    title = (
        f"{arguments.mode}, batch {BATCH}, state {SIZE}, hidden layers of width {WIDTH}, float32; "
        "if not varied: " + ", ".join(f"{key} = {value}" for key, value in BASE.items())
    )
    print(common.machine(), title, sep="\n", end="\n\n", flush=True)
    header = ["", "value", "gradient", "median ms", "calls", "peak MiB", "forward", "backward", ""]
    sweeps = {}
    for parameter, values in (QUICK if arguments.quick else SWEEPS).items():
        print(COLUMNS.format(*header).rstrip())
        sweeps[parameter] = run_sweep(parameter, values, arguments)
        print_exponents(parameter, sweeps[parameter])
    if arguments.plot:
        plot(sweeps, f"{title}\n{common.machine()}", arguments.output / "scaling.png")


if __name__ == "__main__":
    main()
