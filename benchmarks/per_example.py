"""A batch of easy and hard examples, each with steps of its own: beside torchode and diffrax.

    python benchmarks/per_example.py

A solve, and a gradient for all weights and the initial state, of 128 examples of which the last one
moves 100 times as fast as the first; then of as many that are all alike, with steps of their own
and with shared ones (both in workloads.py). `make benchmark-peers` makes the environments that the
peers run in. See README.md here.
"""

import statistics

import common
import turns
from turns import Case
from workloads import SERIES

LARGEST_LOSS_DIFFERENCE = 1e-3  # relative: each package takes steps of its own

MIXED = [
    Case("tfsymadj, XLA", "tensorflow", "own-xla", {}),
    Case("tfsymadj, graph", "tensorflow", "own-graph", {}),
    Case("tfsymadj, shared steps, XLA", "tensorflow", "auto-xla", {}),
    Case("diffrax under vmap", "jax", "default", {}),
    Case("torchode", "torch", "torchode", {}),
]
ALIKE = [
    Case("own steps, XLA", "tensorflow", "own-xla", {}),
    Case("shared steps, XLA", "tensorflow", "auto-xla", {}),
    Case("own steps, graph", "tensorflow", "own-graph", {}),
    Case("shared steps, graph", "tensorflow", "auto-graph", {}),
]


def forward(case):
    """The case without its gradient."""
    method = "forward" if case.runner == "jax" else f"{case.method}-forward"
    return Case(f"{case.name}, forward", case.runner, method, case.style)


def show(problem, cases, with_memory, arguments, pythons):
    work = problem, arguments.count
    every = [*cases, *map(forward, cases)]
    found = turns.measure(every, [work], arguments.rounds, pythons, LARGEST_LOSS_DIFFERENCE)
    print(f"{SERIES[problem].title}, {arguments.count} outputs")
    print(f"{common.machine()}\n{turns.versions(found)}\n")

    def ms(name):
        return 1e3 * statistics.median(found[(name, *work)]["seconds"])

    def cells(name):
        row = found[(name, *work)]
        case = next(case for case in cases if case.name == name)
        columns = [f"{ms(f'{name}, forward'):.1f}", f"{ms(name):.1f}"]
        if with_memory:
            columns.append(f"{turns.memory(case, work, pythons) / 2**20:.1f}")
        first = "" if row["first"] is None else f"{row['first']:.1f}"
        return [*columns, str(row["steps"]), str(row["evaluations"]), first]

    head = ["forward, ms", "gradient, ms", *["MiB"] * with_memory]
    head += ["steps", "evaluations", "first call, s"]
    print(turns.table(problem, head, cells, cases), "\n")
    return ms


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of measuring (default: 5)")
    parser.add_argument("--count", type=int, default=2, help="number of outputs (default: 2)")
    common.add_peers(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 1
    pythons = common.peer_pythons(arguments)
    show("mixed", MIXED, True, arguments, pythons)
    ms = show("alike", ALIKE, False, arguments, pythons)
    for own, shared in (ALIKE[:2], ALIKE[2:]):
        ratios = [ms(own.name + x) / ms(shared.name + x) for x in (", forward", "")]
        print(f"{own.name}: {ratios[0]:.2f} and {ratios[1]:.2f} times the time of shared ones")


if __name__ == "__main__":
    main()
