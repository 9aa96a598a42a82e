"""Cost of a gradient by the order of the solver's method, at one tolerance.

    python benchmarks/orders.py
    python benchmarks/orders.py --tolerance 1e-4 --mode XLA

The network of scaling.py, solved adaptively with methods of order 2, 3, 5 and 8, as in the study of
Matsubara, Miyatake, Yaguchi (arXiv:2102.09750). See README.md here.
"""

import json

import common
import tensorflow as tf

import tfsymadj

MIB = 2**20
BATCH, SIZE, WIDTH = 128, 32, 64
TIMES = (0.0, 10.0)
ORDERS = {"adaptive_heun": 2, "bosh3": 3, "dopri5": 5, "dopri8": 8}
NAMES = ["backprop", "ACA", "continuous adjoint", "symplectic, auto"]
COLUMNS = "{:<15}{:>6}{:>7}{:>11}  {:<20}{:>11}{:>10}{:>11}{:>10}  {}"
PANELS = {
    "accepted": "Accepted steps N",
    "evaluations": "Evaluations, forward + backward\n(of the continuous adjoint not known)",
    "time": "Time of a gradient (s)",
    "peak": "Peak memory (MiB)",
}


def problem():
    return common.Network(SIZE, WIDTH), tf.random.stateless_normal([BATCH, SIZE], [1, 1])


def forward_solve(method, tolerance):
    """Stats of the solve alone, without a gradient."""
    network, y0 = problem()
    options = dict(method=method, rtol=tolerance, atol=tolerance, max_steps=2**16)
    solve = tf.function(lambda y0: tfsymadj.solve(network, y0, TIMES, **options).stats)
    return solve(y0)


def measure(request):
    """The rows of one method, for all gradient methods."""
    common.reserve()
    network, y0 = problem()
    functions = {
        name: common.gradient_function(
            [network], common.GRADIENTS[name], request["options"], request["mode"], TIMES
        )
        for name in NAMES
    }
    return common.measure_all(functions, y0, request["seconds"])


def run(method, arguments):
    """Rows of a table, printed."""
    stats = forward_solve(method, arguments.tolerance)
    # Buffers have `max_steps` rows: the power of two that suffices, which one can guess.
    max_steps = 2 ** int(stats.num_steps).bit_length()
    options = dict(
        method=method, rtol=arguments.tolerance, atol=arguments.tolerance, max_steps=max_steps
    )
    request = dict(options=options, mode=arguments.mode, seconds=0.2 if arguments.quick else 2.0)
    measured = common.in_child(__file__, "--child", json.dumps(request))
    rows = []
    for name in NAMES:
        row = dict(method=method, name=name) | measured[name]
        rows.append(row)
        steps = [method, ORDERS[method], int(stats.num_accepted), max_steps]
        if "note" in row:
            print(COLUMNS.format(*steps, name, *["-"] * 4, row["note"]))
            continue
        backward = "?" if row["backward"] is None else row["backward"]
        numbers = [f"{1000 * row['time']:.2f}", f"{row['peak'] / MIB:.2f}"]
        line = COLUMNS.format(*steps, name, *numbers, row["forward"], backward, "")
        print(line.rstrip(), flush=True)
        row["peak"] /= MIB
        if row["backward"] is not None:
            row["evaluations"] = row["forward"] + row["backward"]
    return rows


def plot(rows, title, path):
    """Steps, evaluations, time and memory against the order, a panel each."""
    plt = common.pyplot()
    figure, axes = plt.subplots(1, 4, figsize=(14, 4.3), layout="constrained")
    for axis, (key, label) in zip(axes, PANELS.items()):
        for name in NAMES:
            points = [
                (ORDERS[row["method"]], row[key])
                for row in rows
                if row["name"] == name and key in row
            ]
            if key == "accepted":  # the same for all of them
                axis.plot(*zip(*points), color="black", marker=".")
                for point in points:
                    axis.annotate(
                        point[1], point, xytext=(4, 4), textcoords="offset points", fontsize=9
                    )
                break
            common.draw(axis, points, name)
        axis.set(yscale="log", xlabel="order of the method", title=label)
        axis.set_xticks(list(ORDERS.values()))
        axis.margins(x=0.12, y=0.12)
        axis.grid(True, alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    methods = ", ".join(f"{order}: {method}" for method, order in ORDERS.items())
    figure.suptitle(f"{title}; {methods}\n{common.machine()}", fontsize=10)
    common.save(figure, path)


def main():
    parser = common.parser(__doc__)
    parser.add_argument(
        "--mode", choices=["graph", "XLA"], default="graph", help="of execution (default: graph)"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-5, help="rtol and atol (default: 1e-5)"
    )
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child)))
        return

    title = (
        f"{arguments.mode}, t from 0 to {TIMES[1]:g}, rtol = atol = {arguments.tolerance:g}, "
        f"batch {BATCH}, network {SIZE + 1}-{WIDTH}-{WIDTH}-{SIZE}, float32"
    )
    print(common.machine(), title, sep="\n", end="\n\n", flush=True)
    header = [
        "method", "order", "steps", "max_steps", "gradient",
        "median ms", "peak MiB", "forward", "backward", "",
    ]  # fmt: skip
    print(COLUMNS.format(*header).rstrip())
    rows = []
    for method in ORDERS:
        rows += run(method, arguments)
    if arguments.plot:
        plot(rows, title, arguments.output / "orders.png")


if __name__ == "__main__":
    main()
