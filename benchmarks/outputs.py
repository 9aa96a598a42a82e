"""What outputs cost: a gradient of 2 to 1,000 of them, by this package, diffrax and torchdiffeq.

    python benchmarks/outputs.py
    python benchmarks/outputs.py --counts 2 100 --only XLA diffrax

The ODE of a latent ODE (`SERIES` of workloads.py), for which a few steps would do. `make
benchmark-peers` makes the environments that the peers run in. See README.md here.
"""

import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys

import common
from workloads import SERIES

PEERS = pathlib.Path(__file__).resolve().parent / "peers"
LARGEST_LOSS_DIFFERENCE = 0.02  # relative: each package takes steps of its own
BUDGET = 0.25  # seconds of measuring in a round
SLOW = 1.0  # seconds of a gradient that is measured in the first round only


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A way to compute the gradient.

    Attributes:
        name: for tables, unique.
        runner: `outputs_<runner>.py` in peers.
        method: of the runner.
        style: of its line.
    """

    name: str
    runner: str
    method: str
    style: dict

    @property
    def compiles(self):
        """Whether the first gradient is another matter."""
        return self.runner != "torch"


def style(color, marker, line="-", filled=True):
    face = color if filled else "white"
    return dict(color=color, marker=marker, linestyle=line, markerfacecolor=face)


CASES = [
    Case("tfsymadj, auto, XLA", "tensorflow", "auto-xla", style("#0072B2", "o")),
    Case("tfsymadj, auto, graph", "tensorflow", "auto-graph", style("#0072B2", "o", "-", False)),
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


class Peer:
    """A process that measures on request."""

    def __init__(self, runner, python):
        self._process = subprocess.Popen(
            [python, PEERS / f"outputs_{runner}.py"], env=common.peer_environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, case, count):
        """The answer, a dict."""
        request = dict(method=case.method, count=count, compiles=case.compiles, budget=BUDGET)
        print(json.dumps(request), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"{case.name} with {count} outputs failed; see above.")

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def measure(cases, counts, rounds, pythons):
    """(case's name, count) -> the last answer, with the seconds of all; and versions."""
    peers = {runner: Peer(runner, pythons[runner]) for runner in {x.runner for x in cases}}
    found, losses = {}, {}
    for i in range(rounds):
        for count in counts:
            for case in cases:
                key = case.name, count
                if key in found and statistics.median(found[key]["seconds"]) > SLOW:
                    continue
                row = peers[case.runner].ask(case, count)
                expected = losses.setdefault(count, row["loss"])
                # Written so that NaN is an error, too.
                if not abs(row["loss"] - expected) <= LARGEST_LOSS_DIFFERENCE * abs(expected):
                    sys.exit(f"{key}: the loss is {row['loss']}, not {expected}")
                if key in found:
                    row["seconds"] += found[key]["seconds"]
                found[key] = row
                ms = 1e3 * statistics.median(row["seconds"])
                print(f"\rround {i + 1}, {count} outputs, {case.name}: {ms:.1f} ms\033[K", end="")
                sys.stdout.flush()
    print("\r\033[K", end="")
    for peer in peers.values():
        peer.close()
    return found


def table(title, cells, cases, counts):
    """Lines of Markdown."""
    lines = [[title, *(f"{n:,}" for n in counts)]]
    lines += [[case.name, *(cells(case.name, n) for n in counts)] for case in cases]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, [f"{'-' * (w - 1)}{':' if i else '-'}" for i, w in enumerate(widths)])
    texts = [
        [x.rjust(w) if i else x.ljust(w) for i, (x, w) in enumerate(zip(line, widths))]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in texts)


def plot(found, cases, counts, caption, path):
    plt = common.pyplot()
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    ends = {}
    for case in cases:
        ms = [1e3 * statistics.median(found[case.name, n]["seconds"]) for n in counts]
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
    pythons = common.peer_pythons(arguments)
    for case in cases:
        common.check_peer(pythons[case.runner])
    found = measure(cases, counts, arguments.rounds, pythons)

    def ms(name, count):
        return 1e3 * statistics.median(found[name, count]["seconds"])

    def work(name, count):
        return f"{found[name, count]['steps']} / {found[name, count]['evaluations']}"

    versions = {x for row in found.values() for x in row["version"].split(", ")}
    versions = sorted(x for x in versions if not x.startswith("TensorFlow"))
    caption = f"{SERIES.title}\n{common.machine()}\n{', '.join(versions)}"
    print(caption)
    print("\n" + table("ms by outputs", lambda *x: f"{ms(*x):.1f}", cases, counts))
    print("\n" + table("steps / evaluations forward", work, cases, counts) + "\n")
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
