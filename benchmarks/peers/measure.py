"""What the runners share: their options, time, the kernel's peak memory, and one line of JSON."""

import argparse
import ctypes
import gc
import json
import os
import pathlib
import platform
import resource
import statistics
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from workloads import SERIES, WORKLOADS  # noqa: E402

#: Bound of the adaptive steps of a series.
MOST = 4096


def parse(methods):
    """The options of a runner; `arguments.work` is the `Workload`. Limits the process's memory."""
    parser = argparse.ArgumentParser(description="Runs one case and prints one line of JSON.")
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--method", choices=methods, required=True)
    parser.add_argument("--max-steps", type=int, default=64, help="bound of adaptive steps")
    parser.add_argument("--reps", type=int, default=5, help="timed gradients (default: 5)")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--gradient", help="file for the flat gradient (.npy)")
    arguments = parser.parse_args()
    arguments.work = WORKLOADS[arguments.workload]
    # A case that needs more than there is raises an error, and does not take the machine down.
    meminfo = pathlib.Path("/proc/meminfo").read_text().splitlines()
    (available,) = [int(x.split()[1]) * 1024 for x in meminfo if x.startswith("MemAvailable")]
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (available, hard))
    return arguments


def report(arguments, framework, version, build, facts):
    """Measures a case and prints its line.

    Args:
        arguments: of `parse`.
        framework: name of the package.
        version: its version and that of what it runs on.
        build: callable that returns the function to measure. That takes nothing and returns the
            loss, the gradients (kernels, then biases) and anything else, all computed.
        facts: callable that gets what else the function returned, and returns more entries for
            the line, such as numbers of evaluations. Called after everything is measured.
    """
    start = time.perf_counter()
    function = build()
    loss, gradients, rest = function()
    first = time.perf_counter() - start
    flat = np.concatenate([np.asarray(x).ravel() for x in gradients])
    del gradients

    row = dict(
        framework=framework,
        version=version,
        method=arguments.method,
        workload=arguments.workload,
        max_steps=arguments.max_steps if arguments.work.adaptive else None,
        loss=float(loss),
        gradient_norm=float(np.linalg.norm(flat.astype(np.float64))),
    )
    if arguments.memory:
        row["peak"] = growth(function) / 2**20
    else:
        row["seconds"] = [seconds(function) for _ in range(arguments.reps)]
        row["median"] = statistics.median(row["seconds"])
        row["min"] = min(row["seconds"])
        row["compile"] = first - row["median"]
    if arguments.gradient:
        np.save(arguments.gradient, flat)
    print(json.dumps({**row, **facts(rest)}), flush=True)


def seconds(function):
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def serve(build, facts, version):
    """Measures what is asked for, for `turns.py`: a line of JSON in, a line of JSON out.

    Args:
        build: callable that takes a `Series`, a method and a number of outputs and returns the
            function to measure, which returns the loss, or a callable for it, and anything else,
            all computed.
        facts: callable that takes the same and what else the function returned, and returns more
            entries for the line. Called after all is measured.
        version: of the package and of what it runs on.
    """
    functions = {}
    for line in sys.stdin:
        request = json.loads(line)
        case = SERIES[request["problem"]], request["method"], request["count"]
        times, first = [], None
        if case not in functions:
            start = time.perf_counter()
            functions[case] = build(*case)
            if request["compiles"]:
                functions[case]()
                first = time.perf_counter() - start
        while not times or (sum(times) < request["budget"] and len(times) < 50):
            start = time.perf_counter()
            loss, rest = functions[case]()
            times.append(time.perf_counter() - start)
        loss = float(loss() if callable(loss) else loss)
        row = dict(seconds=times, first=first, loss=loss, version=version)
        if request.get("memory"):
            row["peak"] = growth(functions[case])
        row.update(facts(*case, rest))
        print(json.dumps(row), flush=True)


def growth(function):
    """Bytes by which the process grows at most during one call."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    before = pages * os.sysconf("SC_PAGE_SIZE")
    function()
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    (peak,) = [int(x.split()[1]) * 1024 for x in status if x.startswith("VmHWM")]
    return peak - before
