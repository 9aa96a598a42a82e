"""Time over memory of one gradient: budgets of bytes, every gradient method, diffrax' settings.

    python benchmarks/frontier.py
    python benchmarks/frontier.py --workloads W1b --rounds 1

All under XLA, on the work of compare_peers.py, by the same processes. `make benchmark-peers` makes
the environment that diffrax runs in. See README.md here.
"""

import tempfile

import common
import compare_peers
from compare_peers import Case, Comparison, Work
from workloads import WORKLOADS

MEMORY = [2, 4, 8, 16, 32, 64, 256, 2048]  # MiB
CHECKPOINTS = [2, 4, 8, 16, 32, 64]  # of diffrax

# The settings of a line, in the order of their memory, and all others.
BUDGETS = [Case(f"tfsymadj, {n} MiB", "tensorflow", f"{n}MiB-xla", "o") for n in MEMORY]
RECURSIVE = [Case(f"diffrax, {n} checkpoints", "jax", str(n), "s") for n in CHECKPOINTS]
OTHERS = [
    Case("tfsymadj, auto", "tensorflow", "auto-xla", "*"),
    Case("tfsymadj, sqrt", "tensorflow", "sqrt-xla", "s"),
    Case("tfsymadj, steps", "tensorflow", "steps-xla", "P"),
    Case("tfsymadj, stages", "tensorflow", "stages-xla", "^"),
    Case("tfsymadj, aca", "tensorflow", "aca-xla", "v"),
    Case("tfsymadj, baseline", "tensorflow", "baseline-xla", "<"),
    Case("tfsymadj, backprop", "tensorflow", "backprop-xla", "D"),
    Case("tfsymadj, continuous adjoint", "tensorflow", "continuous-xla", "X"),
    Case("diffrax, default", "jax", "default", "*"),
    Case("diffrax, checkpoint per step", "jax", "per_step", "P"),
    Case("diffrax, DirectAdjoint", "jax", "direct", "D"),
    Case("diffrax, BacksolveAdjoint", "jax", "backsolve", "X"),
]


def plot(summaries, caption, path):
    """A panel for each workload."""
    plt = common.pyplot()
    size = (5.2 * len(summaries) + 2.6, 4.6)
    figure, axes = plt.subplots(
        1, len(summaries), figsize=size, layout="constrained", squeeze=False
    )
    for axis, (work, results) in zip(axes[0], summaries.items()):
        found = {x["case"]: (x["seconds"], x["peak"]) for x in results}
        for cases, label in (
            (BUDGETS, f"tfsymadj, memory of {MEMORY[0]} MiB to {MEMORY[-1] // 1024} GiB"),
            (RECURSIVE, f"diffrax, {CHECKPOINTS[0]} to {CHECKPOINTS[-1]} checkpoints"),
        ):
            points = [found[case.name] for case in cases if case.name in found]
            if points:
                color = compare_peers.COLORS[cases[0].package]
                axis.loglog(
                    *zip(*points), color=color, marker=cases[0].marker, markersize=5, label=label
                )
        for case in OTHERS:
            if case.name in found:
                color = compare_peers.COLORS[case.package]
                axis.loglog(
                    *found[case.name], linestyle="none", color=color, marker=case.marker,
                    markersize=9, markeredgecolor="white", label=case.name,
                )  # fmt: skip
        axis.set_title(work.title.replace(": ", "\n", 1), fontsize=9)
        axis.set(xlabel="seconds per gradient", ylabel="peak MiB")
        axis.margins(0.12)
        common.few_labels(axis.xaxis, axis.yaxis)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles = {
        label: handle
        for axis in axes[0]
        for handle, label in zip(*axis.get_legend_handles_labels())
    }
    figure.legend(handles.values(), handles, loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(caption, fontsize=9)
    common.save(figure, path)


def parse():
    """The options."""
    parser = common.parser(__doc__)
    parser.add_argument(
        "--workloads", nargs="+", choices=WORKLOADS, default=["W1a-100", "W1b"],
        help="names (default: W1a-100 W1b)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="of measuring (default: 3)")
    parser.add_argument(
        "--max-steps", type=int, default=64, help="of adaptive solves (default: 64)"
    )
    common.add_peers(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.workloads = 1, arguments.workloads[:1]
    return arguments


def main():
    arguments = parse()
    works = [
        Work(name, arguments.max_steps if WORKLOADS[name].adaptive else 0)
        for name in arguments.workloads
    ]
    cases = [*OTHERS, *BUDGETS, *RECURSIVE]
    pythons = common.peer_pythons(arguments)
    common.check_peer(pythons["jax"])
    plan = [(case, work) for work in works for case in cases]
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(pythons, folder, len(plan) * (1 + arguments.rounds), None)
        for label in ("memory", *(f"round {i + 1}" for i in range(arguments.rounds))):
            for case, work in plan:
                comparison.run(case, work, label, *["--memory"] * (label == "memory"))
        summaries = {work: comparison.summary(work, cases) for work in works}
    caption = compare_peers.report(comparison, summaries, ", under XLA")
    if arguments.plot:
        plot(summaries, caption, arguments.output / "frontier.png")


if __name__ == "__main__":
    main()
