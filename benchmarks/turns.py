"""Cases that take turns on the same work, each package in a process of its own."""

import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys

import common

PEERS = pathlib.Path(__file__).resolve().parent / "peers"
BUDGET = 0.25  # seconds of measuring in a round
SLOW = 1.0  # seconds of a gradient that is measured in the first round only


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A way to compute a gradient.

    Attributes:
        name: for tables, unique.
        runner: `series_<runner>.py` in peers.
        method: of the runner.
        style: of its line or marks.
    """

    name: str
    runner: str
    method: str
    style: dict

    @property
    def compiles(self):
        """Whether the first gradient is another matter."""
        return self.runner != "torch"


class _Peer:
    """A process that measures on request."""

    def __init__(self, runner, python):
        self._process = subprocess.Popen(
            [python, PEERS / f"series_{runner}.py"], env=common.peer_environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, case, problem, count, memory=False):
        """The answer, a dict; with `memory` the bytes by which a gradient makes the process grow,
        which is so measured in a process of its own only.
        """
        request = dict(
            problem=problem,
            method=case.method,
            count=count,
            compiles=case.compiles,
            budget=BUDGET,
            memory=memory,
        )
        print(json.dumps(request), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"{case.name}, {problem}, with {count} outputs failed; see above.")

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def measure(cases, works, rounds, pythons, largest_loss_difference):
    """Measures every case on every work, in turns.

    Args:
        cases: list of `Case`.
        works: list of `(problem, number of outputs)`, the former a key of `workloads.SERIES`.
        rounds: of measuring.
        pythons: runner -> interpreter.
        largest_loss_difference: relative, from that of the first case.

    Returns:
        `(case's name, problem, count)` -> the last answer, with the seconds of all.
    """
    for case in cases:
        common.check_peer(pythons[case.runner])
    peers = {runner: _Peer(runner, pythons[runner]) for runner in {x.runner for x in cases}}
    found, losses = {}, {}
    for i in range(rounds):
        for work in works:
            for case in cases:
                key = case.name, *work
                if key in found and statistics.median(found[key]["seconds"]) > SLOW:
                    continue
                row = peers[case.runner].ask(case, *work)
                expected = losses.setdefault(work, row["loss"])
                # Written so that NaN is an error, too.
                if not abs(row["loss"] - expected) <= largest_loss_difference * abs(expected):
                    sys.exit(f"{key}: the loss is {row['loss']}, not {expected}")
                if key in found:
                    row["seconds"] += found[key]["seconds"]
                    row["first"] = found[key]["first"]
                found[key] = row
                ms = 1e3 * statistics.median(row["seconds"])
                print(f"\rround {i + 1}, {key}: {ms:.1f} ms\033[K", end="")
                sys.stdout.flush()
    print("\r\033[K", end="")
    for peer in peers.values():
        peer.close()
    return found


def memory(case, work, pythons):
    """The bytes by which a process grows at most during one gradient."""
    peer = _Peer(case.runner, pythons[case.runner])
    row = peer.ask(case, *work, memory=True)
    peer.close()
    return row["peak"]


def versions(found):
    """Those of the packages, less TensorFlow's, which is among the machine's."""
    known = {x for row in found.values() for x in row["version"].split(", ")}
    return ", ".join(sorted(x for x in known if not x.startswith("TensorFlow")))


def table(title, head, cells, cases):
    """Lines of Markdown: a row for each case, `cells(case's name)`."""
    lines = [[title, *head]]
    lines += [[case.name, *cells(case.name)] for case in cases]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, [f"{'-' * (w - 1)}{':' if i else '-'}" for i, w in enumerate(widths)])
    texts = [
        [x.rjust(w) if i else x.ljust(w) for i, (x, w) in enumerate(zip(line, widths))]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in texts)
