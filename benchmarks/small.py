"""Small problems: a gradient by this package, diffrax and torchdiffeq.

    python benchmarks/small.py
    python benchmarks/small.py --problems spiral latent --only XLA diffrax

The problems are those of `SERIES` in workloads.py, in which a step computes little. `make
benchmark-peers` makes the environments that the peers run in. See README.md here.
"""

import math
import statistics
import textwrap

import common
import turns
from turns import Case
from workloads import SERIES

SHARED = [name for name, x in SERIES.items() if x.spread == 1.0 and not x.alike]

LARGEST_LOSS_DIFFERENCE = 0.02  # relative: each package takes steps of its own
CASES = [
    Case("tfsymadj, XLA", "tensorflow", "auto-xla", dict(color="#0072B2", marker="o")),
    Case("tfsymadj, jit_compile", "tensorflow", "auto-jit", dict(color="#56B4E9", marker="s")),
    Case("tfsymadj, graph", "tensorflow", "auto-graph", dict(color="#CC79A7", marker="P")),
    Case("diffrax", "jax", "default", dict(color="#D55E00", marker="^")),
    Case("torchdiffeq, odeint", "torch", "odeint", dict(color="#009E73", marker="D")),
    Case("torchdiffeq, odeint_adjoint", "torch", "odeint_adjoint",
         dict(color="#E69F00", marker="v")),
]  # fmt: skip
# Of whom the first one's time is told relative to the second one's.
RATIOS = [
    ("tfsymadj, XLA", "diffrax"),
    ("tfsymadj, jit_compile", "torchdiffeq, odeint"),
    ("tfsymadj, jit_compile", "torchdiffeq, odeint_adjoint"),
    ("tfsymadj, graph", "torchdiffeq, odeint"),
]


def plot(ms, cases, problems, caption, path):
    plt = common.pyplot()
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    rows = range(len(problems))
    for case in cases:
        times = [ms(case.name, problem) for problem in problems]
        axis.plot(times, rows, linestyle="", markersize=9, label=case.name, **case.style)
    axis.set(xscale="log", xlabel="time of a gradient (ms)")
    axis.set_yticks(rows, [textwrap.fill(SERIES[problem].title, 32) for problem in problems])
    axis.set_ylim(len(problems) - 0.5, -0.5)
    axis.xaxis.set_major_formatter("{x:,g}")
    axis.grid(axis="both", alpha=0.3)
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    axis.set_title(caption, fontsize=9, loc="left")
    common.save(figure, path)


def parse():
    """The options."""
    parser = common.parser(__doc__)
    parser.add_argument("--problems", nargs="+", default=SHARED, choices=SHARED)
    parser.add_argument("--only", nargs="+", help="cases whose names contain one of these")
    parser.add_argument("--rounds", type=int, default=5, help="of measuring (default: 5)")
    common.add_peers(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.problems = 1, arguments.problems[:2]
    return arguments


def main():
    arguments = parse()
    problems = arguments.problems
    cases = [x for x in CASES if not arguments.only or any(y in x.name for y in arguments.only)]
    works = [(problem, SERIES[problem].count) for problem in problems]
    pythons = common.peer_pythons(arguments)
    found = turns.measure(cases, works, arguments.rounds, pythons, LARGEST_LOSS_DIFFERENCE)

    def row(name, problem):
        return found[name, problem, SERIES[problem].count]

    def ms(name, problem):
        return 1e3 * statistics.median(row(name, problem)["seconds"])

    def work(name, problem):
        return f"{row(name, problem)['steps']} / {row(name, problem)['evaluations']}"

    def first(name, problem):
        seconds = row(name, problem)["first"]
        return "-" if seconds is None else f"{seconds:.1f}"

    caption = f"{common.machine()}\n{turns.versions(found)}"
    print(caption)
    for title, cell in (
        ("ms", lambda *x: f"{ms(*x):.2f}"),
        ("seconds of the first call", first),
        ("steps / evaluations forward", work),
    ):
        cells = lambda name, cell=cell: [cell(name, x) for x in problems]  # noqa: E731
        print("\n" + turns.table(title, problems, cells, cases))
    print()
    names = [case.name for case in cases]
    for ours, theirs in RATIOS:
        if ours in names and theirs in names:
            ratios = [ms(ours, x) / ms(theirs, x) for x in problems]
            mean = math.prod(ratios) ** (1.0 / len(ratios))
            each = ", ".join(f"{x:.2f}" for x in ratios)
            print(f"{ours}, relative to {theirs}: {each}; geometric mean {mean:.2f}")
    if arguments.plot:
        plot(ms, cases, problems, caption, arguments.output / "small.png")


if __name__ == "__main__":
    main()
