"""One gradient by this package, diffrax, torchdiffeq and TensorFlow Probability, on the same work.

    python benchmarks/compare_peers.py
    python benchmarks/compare_peers.py --workloads 'W1a-*' --only XLA diffrax --rounds 1

`make benchmark-peers` also makes the environments that the peers run in. See README.md here.
"""

import dataclasses
import fnmatch
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import common
import numpy as np
from workloads import WORKLOADS

HERE = pathlib.Path(__file__).resolve().parent
RUNNERS = {
    "tensorflow": HERE / "peers" / "run_tensorflow.py",
    "jax": HERE / "peers" / "run_jax.py",
    "torch": HERE / "peers" / "run_torch.py",
}
LARGEST_LOSS_DIFFERENCE = 1e-4  # relative


@dataclasses.dataclass(frozen=True)
class Case:
    """A way to compute the gradient.

    Attributes:
        name: for tables, unique.
        runner: key of `RUNNERS`.
        method: option of the runner.
        marker: of matplotlib.
        most_steps: largest `max_steps` that it is run with; back-propagation under XLA and
            `DirectAdjoint` need memory for all `max_steps`.
        only: name of the only solver that it has.
    """

    name: str
    runner: str
    method: str
    marker: str
    most_steps: int = 2**31
    only: str | None = None

    @property
    def package(self):
        """Name of the package."""
        return self.name.split()[0].rstrip(",")

    def fits(self, work, max_steps):
        """Whether it can do this work."""
        if work.adaptive and max_steps > self.most_steps:
            return False
        return self.only is None or (work.adaptive and work.method == self.only)


CASES = [
    Case("tfsymadj, auto, XLA", "tensorflow", "auto-xla", "o"),
    Case("tfsymadj, auto, graph", "tensorflow", "auto-graph", "o"),
    Case("tfsymadj, sqrt, XLA", "tensorflow", "sqrt-xla", "s"),
    Case("tfsymadj, sqrt, graph", "tensorflow", "sqrt-graph", "s"),
    Case("tfsymadj, 64 states, XLA", "tensorflow", "64-xla", "P"),
    Case("tfsymadj, stages, XLA", "tensorflow", "stages-xla", "^"),
    Case("tfsymadj, stages, graph", "tensorflow", "stages-graph", "^"),
    Case("tfsymadj, backprop, XLA", "tensorflow", "backprop-xla", "D", most_steps=64),
    Case("tfsymadj, backprop, graph", "tensorflow", "backprop-graph", "D"),
    Case("diffrax, default", "jax", "default", "o"),
    Case("diffrax, checkpoint per step", "jax", "per_step", "s"),
    Case("diffrax, DirectAdjoint", "jax", "direct", "D", most_steps=64),
    Case("diffrax, BacksolveAdjoint", "jax", "backsolve", "v"),
    Case("torchdiffeq, odeint", "torch", "odeint", "D"),
    Case("torchdiffeq, odeint_adjoint", "torch", "odeint_adjoint", "v"),
    Case("TFP, XLA", "tensorflow", "tfp-xla", "v", only="dopri5"),
    Case("TFP, graph", "tensorflow", "tfp-graph", "v", only="dopri5"),
]
RATIO_TO = ["diffrax, default", "diffrax, checkpoint per step"]  # to the faster of them
COLORS = {"tfsymadj": "#0072B2", "diffrax": "#D55E00", "torchdiffeq": "#009E73", "TFP": "#CC79A7"}


@dataclasses.dataclass(frozen=True)
class Work:
    """A workload, and the bound of its steps where the solver chooses them."""

    name: str
    max_steps: int

    @property
    def label(self):
        """For progress lines."""
        adaptive = WORKLOADS[self.name].adaptive
        return f"{self.name}, max_steps {self.max_steps}" if adaptive else self.name

    @property
    def title(self):
        """For headings."""
        return f"{self.label}: {WORKLOADS[self.name].title}"


def run(case, work, pythons, options):
    """The line of one process as a dict, which has nothing but `error` if it failed."""
    environment = common.peer_environment()
    if "--memory" in options:
        # TensorFlow's usual allocator never returns what it holds, and a gradient after the first
        # would not grow the process at all.
        environment["TF_ONEDNN_USE_SYSTEM_ALLOCATOR"] = "1"
        environment["MALLOC_ARENA_MAX"] = "1"  # or what one thread freed another does not get
    command = [pythons[case.runner], RUNNERS[case.runner], "--method", case.method]
    command += ["--workload", work.name, "--max-steps", str(work.max_steps), *options]
    result = subprocess.run(
        [str(x) for x in command], env=environment, capture_output=True, text=True
    )
    lines = [x for x in result.stdout.splitlines() if x.startswith("{")]
    if result.returncode == 0 and lines:
        return json.loads(lines[-1])
    lines = [x for x in result.stderr.splitlines() if x.strip()]
    errors = [x for x in lines if "Error" in x] or lines or ["no output"]
    return dict(error=f"exit status {result.returncode}: {errors[-1].strip()}")


class Comparison:
    """Runs processes one at a time and collects what they report.

    Args:
        pythons: runner -> interpreter.
        folder: for the gradients.
        total: number of processes, for the progress lines.
        json_file: file for what the processes reported, or None; written after each of them.
    """

    def __init__(self, pythons, folder, total, json_file):
        self._pythons, self._folder = pythons, pathlib.Path(folder)
        self._total, self._done, self._json_file = total, 0, json_file
        self._losses = {}
        self.rows = []
        self.failed = {}

    def run(self, case, work, label, *options):
        """Runs one process, prints a line, and compares the loss with that of the first case."""
        self._done += 1
        start = f"[{self._done}/{self._total}] {label}, {work.label}, {case.name}: "
        if (case, work) in self.failed:
            print(f"{start}left out, it failed before", flush=True)
            return
        row = run(case, work, self._pythons, ["--gradient", self._path(case, work), *options])
        if "error" in row:
            self.failed[case, work] = row["error"]
            print(start + row["error"], flush=True)
            return
        found = f"{row['peak']:.1f} MiB" if "peak" in row else f"{row['median']:.3f} s"
        print(start + found, flush=True)
        expected = self._losses.setdefault(work, row["loss"])
        # Written so that NaN is an error, too.
        if not abs(row["loss"] - expected) <= LARGEST_LOSS_DIFFERENCE * abs(expected):
            sys.exit(f"{case.name}, {work.label}: the loss is {row['loss']}, not {expected}")
        self.rows.append(dict(case=case.name, work=work.label, **row))
        if self._json_file:
            content = dict(machine=common.machine(), rows=self.rows)
            self._json_file.write_text(json.dumps(content, indent=1))

    def summary(self, work, cases):
        """One dict for each case that ran: medians over all rounds, counts, differences."""
        results, reference = [], None
        for case in cases:
            rows = [x for x in self.rows if (x["case"], x["work"]) == (case.name, work.label)]
            if (case, work) in self.failed or not rows:
                continue
            gradient = np.load(self._path(case, work)).astype(np.float64)
            reference = gradient if reference is None else reference
            found = {key: value for row in rows for key, value in row.items()}
            found["seconds"] = statistics.median(x for row in rows for x in row.get("seconds", []))
            found["peak"] = statistics.median(row["peak"] for row in rows if "peak" in row)
            found["per_evaluation"] = found["seconds"] / found["forward"]
            difference = np.linalg.norm(gradient - reference) / np.linalg.norm(reference)
            found["difference"] = float(difference)
            results.append(found)
        times = [x["seconds"] for x in results if x["case"] in RATIO_TO]
        for found in results:
            found["ratio"] = found["seconds"] / min(times) if times else None
        return results

    def _path(self, case, work):
        return self._folder / f"{work.label}-{case.runner}-{case.method}.npy"


COLUMNS = {
    "gradient": lambda x: x["case"],
    "median s": lambda x: f"{x['seconds']:.3f}",
    "ratio": lambda x: "" if x["ratio"] is None else f"{x['ratio']:.2f}",
    "peak MiB": lambda x: f"{x['peak']:.1f}",
    "steps": lambda x: str(x.get("accepted", "")),
    "forward": lambda x: str(x["forward"]),
    "backward": lambda x: str(x.get("backward", "")),
    "ms / forward": lambda x: f"{1e3 * x['per_evaluation']:.2f}",
    "difference": lambda x: f"{x['difference']:.0e}",
}


def table(results):
    """A Markdown table."""
    lines = [list(COLUMNS)] + [[form(x) for form in COLUMNS.values()] for x in results]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    rule = [f"{'-' * (width - 1)}{':' if i else '-'}" for i, width in enumerate(widths)]
    texts = []
    for line in [lines[0], rule, *lines[1:]]:
        cells = [x.rjust(width) for x, width in zip(line, widths)]
        cells[0] = line[0].ljust(widths[0])
        texts.append(f"| {' | '.join(cells)} |")
    return "\n".join(texts)


def report(comparison, summaries, mode=""):
    """Prints the tables and what failed; returns their caption, for a figure."""
    caption = f"{common.machine()}{mode}\n{versions(comparison.rows)}"
    print(f"\n{caption}")
    for work, results in summaries.items():
        print(f"\n{work.title}\n\n{table(results)}")
    for (case, work), error in comparison.failed.items():
        print(f"\nFailed: {work.label}, {case.name}: {error}")
    return caption


def versions(rows):
    """Of the packages that these rows are of, but for that which the machine tells."""
    found = {part for row in rows for part in row["version"].split(", ")}
    return ", ".join(sorted(x for x in found if not x.startswith("TensorFlow")))


def plot(summaries, title, path):
    """Peak memory against time, a panel per workload."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    cases = {case.name: case for case in CASES}

    def style(case):
        color = COLORS[case.package]
        face = "none" if case.name.endswith("graph") else color
        return dict(marker=case.marker, color=color, markerfacecolor=face, markersize=7)

    columns = min(3, len(summaries) + 1)
    rows = -(-(len(summaries) + 1) // columns)
    size = (3.7 * columns, 3.2 * rows + 0.5)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    axes = list(axes.flat)
    for axis, (work, results) in zip(axes, summaries.items()):
        for found in results:
            marks = style(cases[found["case"]])
            axis.loglog(found["seconds"], found["peak"], linestyle="none", alpha=0.9, **marks)
        axis.set_title(work.title.replace(": ", "\n", 1), fontsize=9)
        axis.set_xlabel("seconds per gradient")
        axis.set_ylabel("peak MiB")
        axis.margins(0.12)
        common.few_labels(axis.xaxis, axis.yaxis)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(summaries) :]:
        axis.axis("off")
    shown = {found["case"] for results in summaries.values() for found in results}
    handles = [
        Line2D([], [], linestyle="none", label=case.name, **style(case))
        for case in CASES
        if case.name in shown
    ]
    axes[len(summaries)].legend(handles=handles, loc="center", frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=9)
    common.save(figure, path)


def parse():
    """The options."""
    parser = common.parser(__doc__)
    parser.add_argument(
        "--workloads", nargs="+", default=["*"], help=f"names or patterns of {', '.join(WORKLOADS)}"
    )
    parser.add_argument("--only", nargs="+", help="cases whose names contain one of these")
    parser.add_argument("--rounds", type=int, default=3, help="of measuring (default: 3)")
    parser.add_argument("--reps", type=int, default=5, help="gradients of a round (default: 5)")
    parser.add_argument(
        "--max-steps", type=int, nargs="+", default=[64], help="of adaptive solves (default: 64)"
    )
    common.add_peers(parser)
    parser.add_argument("--json", type=pathlib.Path, help="file for what every process reported")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds = arguments.reps = 1
    return arguments


def main():
    arguments = parse()
    works = [
        Work(name, max_steps)
        for name, workload in WORKLOADS.items()
        if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.workloads)
        for max_steps in (arguments.max_steps if workload.adaptive else [0])
    ]
    cases = [x for x in CASES if not arguments.only or any(y in x.name for y in arguments.only)]
    plan = [(c, w) for w in works for c in cases if c.fits(WORKLOADS[w.name], w.max_steps)]
    if not plan:
        sys.exit("No case left: see --workloads and --only.")
    pythons = common.peer_pythons(arguments)
    for runner in {case.runner for case, _ in plan}:
        common.check_peer(pythons[runner])

    with tempfile.TemporaryDirectory() as folder:
        total = len(plan) * (1 + arguments.rounds)
        comparison = Comparison(pythons, folder, total, arguments.json)
        for case, work in plan:
            comparison.run(case, work, "memory", "--memory")
        for i in range(arguments.rounds):
            for case, work in plan:
                reps = str(arguments.reps)
                comparison.run(case, work, f"round {i + 1}", "--reps", reps)
        summaries = {work: comparison.summary(work, cases) for work in works}

    caption = report(comparison, summaries)
    if arguments.plot:
        plot(summaries, caption, arguments.output / "peers.png")
    sys.exit(1 if comparison.failed else 0)


if __name__ == "__main__":
    main()
