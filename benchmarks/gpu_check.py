"""What has to hold on a machine with a GPU: the tests that matter there, and the tables.

    python benchmarks/gpu_check.py --output docs    # or: make gpu-check

Writes `gpu.md`: the machine, how each group of tests ended, and what the benchmarks print. Exits
with 1 if a test failed. On a machine without a GPU it refuses to run, but for `--on-cpu`, which
is there to try the script itself.
"""

import os
import pathlib
import subprocess
import sys

os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # several processes share the device

import common
import tensorflow as tf

ROOT = pathlib.Path(__file__).resolve().parents[1]
#: Title -> what pytest is told.
TESTS = {
    "rows written in loops, on each kind of device": ["tests/checkpoints"],
    "the symplectic adjoint, graph, eager and XLA": ["tests/gradients/test_symplectic_adjoint.py"],
    "every gradient method": ["tests/gradients/test_gradient_methods.py"],
    "outputs inside of steps": ["tests/loop/test_interpolated_outputs.py"],
    "events": ["tests/events"],
    "half precision": ["tests/test_half_precision.py", "tests/layers/test_precision.py"],
    "solves that compile themselves": ["tests/test_xla.py"],
    "layers, and fit, which Keras compiles by itself": ["tests/layers/test_ode_layer.py"],
    "flows": ["tests/bijectors/test_cnf.py"],
}
#: Title -> script and its arguments.
TABLES = {
    "Time and memory of one gradient": ["gradient_cost.py", "--no-plot"],
    "Growth with steps, stages, depth and solves": ["scaling.py", "--no-plot"],
    "A training step of a flow": ["flow.py", "--no-plot"],
}


def run(command):
    """`(exit status, what was printed)`, shown while it comes."""
    print("$", *command, flush=True)
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        print(line, end="", flush=True)
    return process.wait(), "".join(lines)


def tests(quick):
    """A row of the table for each group of tests, and whether all passed."""
    rows, passed = [], True
    marks = ["-m", "not slow"] if quick else ["-m", "slow or not slow"]
    for title, paths in TESTS.items():
        status, output = run([sys.executable, "-m", "pytest", "-q", *marks, *paths])
        passed &= status == 0
        failed = [line for line in output.splitlines() if line.startswith("FAILED")]
        ended = [line for line in output.splitlines() if " in " in line and "passed" in line]
        rows.append(f"| {title} | {ended[-1] if ended else f'exit status {status}'} |")
        rows += [f"| | {line} |" for line in failed]
    return rows, passed


def main():
    parser = common.parser(__doc__, figure=False)
    parser.add_argument("--output", type=pathlib.Path, default="out", help="folder (default: out)")
    parser.add_argument("--on-cpu", action="store_true", help="run although there is no GPU")
    arguments = parser.parse_args()
    if not (tf.config.list_physical_devices("GPU") or arguments.on_cpu):
        sys.exit(
            "TensorFlow sees no GPU. Install a TensorFlow with CUDA (`pip install "
            "'tensorflow[and-cuda]'`) on a machine that has one."
        )
    rows, passed = tests(arguments.quick)
    text = ["# On a GPU", "", common.machine(), "", "| tests | |", "|---|---|", *rows]
    for title, (script, *options) in TABLES.items():
        quick = ["--quick"] if arguments.quick else []
        _, output = run([sys.executable, f"benchmarks/{script}", *options, *quick])
        text += ["", f"## {title}", "", "```", output.rstrip(), "```"]
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "gpu.md"
    path.write_text("\n".join(text) + "\n")
    print(f"\nwritten: {path}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
