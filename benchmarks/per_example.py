"""A batch of easy and hard examples, each with steps of its own: beside torchode and diffrax.

    python benchmarks/per_example.py

A gradient for all weights and the initial state of 128 examples of which the last one moves 100
times as fast as the first (in workloads.py). `make benchmark-peers` makes the environments that the
peers run in. See README.md here.
"""

import statistics

import common
import turns
from turns import Case
from workloads import SERIES

MIXED = "mixed"
LARGEST_LOSS_DIFFERENCE = 1e-3  # relative: each package takes steps of its own

CASES = [
    Case("tfsymadj, XLA", "tensorflow", "own-xla", {}),
    Case("tfsymadj, graph", "tensorflow", "own-graph", {}),
    Case("tfsymadj, shared steps, XLA", "tensorflow", "auto-xla", {}),
    Case("diffrax under vmap", "jax", "default", {}),
    Case("torchode", "torch", "torchode", {}),
]


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of measuring (default: 5)")
    parser.add_argument("--count", type=int, default=2, help="number of outputs (default: 2)")
    common.add_peers(parser)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = 1
    work, pythons = (MIXED, arguments.count), common.peer_pythons(arguments)
    found = turns.measure(CASES, [work], arguments.rounds, pythons, LARGEST_LOSS_DIFFERENCE)
    print(f"{SERIES[MIXED].title}, {arguments.count} outputs")
    print(f"{common.machine()}\n{turns.versions(found)}\n")

    def cells(name):
        row = found[(name, *work)]
        case = next(case for case in CASES if case.name == name)
        first = "" if row["first"] is None else f"{row['first']:.1f}"
        mib = turns.memory(case, work, pythons) / 2**20
        ms = 1e3 * statistics.median(row["seconds"])
        return [f"{ms:.1f}", f"{mib:.1f}", str(row["steps"]), str(row["evaluations"]), first]

    head = ["ms", "MiB", "steps", "evaluations", "first call, s"]
    print(turns.table("a gradient", head, cells, CASES))


if __name__ == "__main__":
    main()
