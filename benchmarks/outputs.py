"""What outputs cost: a gradient of 2 to 1,000 of them, by this package, diffrax and torchdiffeq.

    python benchmarks/outputs.py
    python benchmarks/outputs.py --counts 2 100 --only XLA diffrax

The ODE of a latent ODE (in workloads.py), for which a few steps would do. `make
benchmark-peers` makes the environments that the peers run in. See README.md here.
"""

import statistics

import common
import turns
from turns import Case
from workloads import SERIES

LATENT = "latent"
LARGEST_LOSS_DIFFERENCE = 0.02  # relative: each package takes steps of its own


def style(color, marker, line="-", filled=True):
    face = color if filled else "white"
    return dict(color=color, marker=marker, linestyle=line, markerfacecolor=face)


CASES = [
    Case("tfsymadj, auto, XLA", "tensorflow", "auto-xla", style("#0072B2", "o")),
    Case("tfsymadj, auto, graph", "tensorflow", "auto-graph", style("#0072B2", "o", "-", False)),
    Case(
        "tfsymadj, auto, XLA, no loss", "tensorflow", "auto-xla-given", style("#999999", "o", ":")
    ),
    Case(
        "tfsymadj, auto, graph, no loss",
        "tensorflow",
        "auto-graph-given",
        style("#999999", "o", ":", False),
    ),
    Case("tfsymadj, step, XLA", "tensorflow", "step-xla", style("#56B4E9", "s", "--")),
    Case("tfsymadj, step, graph", "tensorflow", "step-graph", style("#56B4E9", "s", "--", False)),
    Case("diffrax", "jax", "default", style("#D55E00", "^")),
    Case("torchdiffeq, odeint", "torch", "odeint", style("#009E73", "D")),
    Case("torchdiffeq, odeint_adjoint", "torch", "odeint_adjoint", style("#009E73", "v", "--")),
]
# Of whom the first one's time is told relative to the second one's.
RATIOS = [
    ("tfsymadj, auto, XLA", "diffrax"),
    ("tfsymadj, auto, graph", "torchdiffeq, odeint"),
]


def plot(found, cases, counts, caption, path):
    plt = common.pyplot()
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    ends = {}
    for case in (x for x in cases if not x.method.endswith("given")):
        ms = [1e3 * statistics.median(found[case.name, LATENT, n]["seconds"]) for n in counts]
        axis.loglog(counts, ms, linewidth=1.8, markersize=6, **case.style)
        ends[case] = ms[-1]
    lowest = 0.0
    for case, end in sorted(ends.items(), key=lambda item: item[1]):
        lowest = max(end, 1.4 * lowest)  # labels beside each other's
        axis.annotate(
            case.name, (counts[-1], lowest), (9, 0), textcoords="offset points", va="center",
            fontsize=9, color=case.style["color"],
        )  # fmt: skip
    axis.set(xlabel="outputs", ylabel="time of a gradient (ms)")
    axis.set_xticks(counts, [f"{n:,}" for n in counts])
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(caption, fontsize=9, loc="left")
    common.save(figure, path)


def parse():
    """The options."""
    parser = common.parser(__doc__)
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[2, 10, 100, 1000], help="numbers of outputs"
    )
    parser.add_argument("--only", nargs="+", help="cases whose names contain one of these")
    parser.add_argument("--rounds", type=int, default=5, help="of measuring (default: 5)")
    common.add_peers(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.counts = 1, arguments.counts[:2]
    return arguments


def main():
    arguments = parse()
    counts = arguments.counts
    cases = [x for x in CASES if not arguments.only or any(y in x.name for y in arguments.only)]
    works = [(LATENT, n) for n in counts]
    pythons = common.peer_pythons(arguments)
    found = turns.measure(cases, works, arguments.rounds, pythons, LARGEST_LOSS_DIFFERENCE)

    def ms(name, count):
        return 1e3 * statistics.median(found[name, LATENT, count]["seconds"])

    def work(name, count):
        row = found[name, LATENT, count]
        return f"{row['steps']} / {row['evaluations']}"

    caption = f"{SERIES[LATENT].title}\n{common.machine()}\n{turns.versions(found)}"
    print(caption)
    head = [f"{n:,}" for n in counts]
    for title, cell in (
        ("ms by outputs", lambda *x: f"{ms(*x):.1f}"),
        ("steps / evaluations forward", work),
    ):
        cells = lambda name, cell=cell: [cell(name, n) for n in counts]  # noqa: E731
        print("\n" + turns.table(title, head, cells, cases))
    print()
    names = [case.name for case in cases]
    for ours, theirs in RATIOS:
        if ours in names and theirs in names:
            ratios = [f"{ms(ours, n) / ms(theirs, n):.2f}" for n in counts]
            print(f"{ours}, relative to {theirs}: {', '.join(ratios)}")
    if {100, 1000} <= set(counts):
        for name in names:
            print(f"{name}: 1,000 outputs take {ms(name, 1000) / ms(name, 100):.2f} times 100")
    if arguments.plot:
        plot(found, cases, counts, caption, arguments.output / "outputs.png")


if __name__ == "__main__":
    main()
