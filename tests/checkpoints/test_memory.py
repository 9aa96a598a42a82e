"""Budgets of bytes, and what is held without asking."""

import types

import numpy as np
import pytest
import tensorflow as tf
from helpers.gradients import FLOAT64, gradients, relative_error
from helpers.modes import MODES, run, slow
from helpers.problems import mlp

import tfsymadj
from tfsymadj import Backprop, SymplecticAdjoint
from tfsymadj.checkpoints import memory as plans
from tfsymadj.checkpoints.memory import as_bytes, root_recording

STATE = 5 * 3 * 8  # bytes of the state of `mlp()`
FIXED = dict(method="rk4", num_steps=6)
ADAPTIVE = dict(method="bosh3", rtol=1e-3, max_steps=40, outputs="step")


@pytest.mark.parametrize(
    "memory, count",
    [
        (1, 1),
        (np.int64(2**40), 2**40),
        ("64 B", 64),
        ("256 MiB", 256 * 2**20),
        ("1.5GiB", 3 * 2**29),
        (" 2 kB ", 2000),
        ("1 TB", 10**12),
    ],
)
def test_bytes(memory, count):
    assert as_bytes(memory) == count


@pytest.mark.parametrize("memory", [0, -1, 1.5, True, "", "256", "MiB", "1 mib", "0 B", "-1 B"])
def test_wrong_bytes(memory):
    with pytest.raises(ValueError, match="`memory` must be a positive number of bytes"):
        SymplecticAdjoint(memory=memory)


def test_objects():
    gradient = SymplecticAdjoint(memory="1 MiB")
    assert gradient == SymplecticAdjoint.from_config(gradient.get_config())
    assert gradient not in (SymplecticAdjoint(), SymplecticAdjoint(memory="2 MiB"))
    assert repr(gradient) == "SymplecticAdjoint(memory='1 MiB')"
    with pytest.raises(ValueError, match="can't both be given"):
        SymplecticAdjoint(8, memory=1024)


def work(gradient, mode, **options):
    """Evaluations backward."""
    problem = mlp()

    def solved():
        return tfsymadj.solve(
            problem.dynamics, problem.y0, problem.t, gradient=gradient, **options
        ).stats.num_backward_evaluations

    return int(run(solved, mode))


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("states", [8, slow(9), 20, 47, 48, slow(100)])
def test_plans_of_so_many_states(states, mode):
    """All of 12 steps of 4 stages from 48 states on, or activations; else as many of the last steps
    as fit.
    """
    found = work(SymplecticAdjoint(memory=states * STATE + STATE // 2), mode, **FIXED)
    assert found <= 48 or states < 48
    at_most = work(SymplecticAdjoint(states), "graph", **FIXED)
    assert found < at_most or found == at_most == 48


@pytest.mark.parametrize("memory", [8 * STATE, slow(14 * STATE), "1 MiB"])
@pytest.mark.parametrize("options", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("mode", [*map(slow, MODES[:1]), "graph", slow("xla")])
def test_gradients(memory, options, mode):
    expected = gradients(mlp(), Backprop(), "graph", **options)
    actual = gradients(mlp(), SymplecticAdjoint(memory=memory), mode, **options)
    assert relative_error(actual, expected) < FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [None, True])
@pytest.mark.parametrize("options", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
def test_unknown_batch_size(options, jit_compile):
    problem = mlp()
    signature = [tf.TensorSpec([None, 3], tf.float64)]

    def compute(gradient):
        @tf.function(input_signature=signature, jit_compile=jit_compile)
        def run(y0):
            with tf.GradientTape() as tape:
                tape.watch(y0)
                solution = tfsymadj.solve(
                    problem.dynamics, y0, problem.t, gradient=gradient, **options
                )
            return tape.gradient(solution.y, y0), solution.stats

        return run(problem.y0)

    expected, _ = compute(SymplecticAdjoint("steps"))
    evaluations = []
    for memory in (8 * STATE, 40 * STATE, 1000 * STATE):
        actual, stats = compute(SymplecticAdjoint(memory=memory))
        assert relative_error(actual, expected) < FLOAT64
        evaluations.append(int(stats.num_backward_evaluations))
    assert evaluations[0] >= evaluations[1] >= evaluations[2] < evaluations[0]
    assert evaluations[2] == int(stats.num_accepted) * (4 if options is FIXED else 3)


def test_too_little():
    with pytest.raises(ValueError, match=f"at least {8 * STATE} bytes, s . 4 states of {STATE}"):
        work(SymplecticAdjoint(memory=8 * STATE - 1), "graph", **FIXED)


def test_everything_on_tape():
    assert work(SymplecticAdjoint(memory="1 MiB"), "graph", **FIXED) == 0
    # What is compiled by itself would begin its derivative with another solve, but for activations.
    assert work(SymplecticAdjoint(memory="1 MiB"), "graph", jit_compile=True, **FIXED) == 0


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("tapes_steps", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 17, 100, 103, 1000])
def test_root_recordings(n, known, tapes_steps):
    """As many states as there is room for, and never less than two roots need."""
    method = types.SimpleNamespace(stages=4)
    problem = types.SimpleNamespace(max_steps=n, known_length=known, method=method)
    values = 1 if tapes_steps else 4
    root = root_recording(problem, tapes_steps)
    assert root.num_states(4) <= 1.1 * (2 * np.sqrt(n * values) + values + 1)
    for room in (0, 20, 50, 150, 10**4):
        found = root_recording(problem, tapes_steps, room)
        assert found.num_states(4) <= max(room, root.num_states(4))
        assert found.stride * max(found.rows, 1) >= n
        assert found.ring >= root.ring
        assert (found.ring == n) == (n * values <= room) or found.stride == n
        at_run_time = types.SimpleNamespace(
            max_steps=tf.constant(n), known_length=known, method=method
        )
        other = root_recording(at_run_time, tapes_steps, room)
        assert int(other.num_states(4)) <= max(room, root.num_states(4) + values + 1) + 1
        assert int(other.stride) * int(other.rows) >= n


def automatic(mode="graph", **options):
    """`Stats` of a solve with the default."""
    problem = mlp()

    def solved():
        return tfsymadj.solve(problem.dynamics, problem.y0, problem.t, **options).stats

    return tf.nest.map_structure(int, run(solved, mode))


def test_small_tapes_hold_whole_steps():
    stats = automatic(**FIXED)
    assert (stats.num_states, stats.num_backward_evaluations) == (48, 0)  # activations
    stats = automatic(**ADAPTIVE)
    assert (stats.num_states, stats.num_backward_evaluations) == (40, 3 * stats.num_accepted)


def test_large_tapes_hold_a_stage(monkeypatch):
    tape = 4 * 5 * 3 * 8  # bytes: of each stage at least its value
    monkeypatch.setattr(plans, "FREE", tape - 1)
    stats = automatic(**FIXED)
    # No room for all stage values either.
    assert (stats.num_states, stats.num_backward_evaluations) == (6 + 2 * 4, 2 * 48)
    monkeypatch.setattr(plans, "_tape", lambda problem: None)
    monkeypatch.setattr(plans, "FREE", 48 * STATE)
    stats = automatic(**FIXED)
    assert (stats.num_states, stats.num_backward_evaluations) == (48, 48)


@pytest.mark.slow
@pytest.mark.parametrize("room", [20, 30])
def test_as_many_as_there_is_room_for(room, monkeypatch):
    monkeypatch.setattr(plans, "_tape", lambda problem: None)
    monkeypatch.setattr(plans, "FREE", room * STATE)
    stats = automatic(**FIXED)
    assert 48 < stats.num_backward_evaluations < 96 and stats.num_states <= room
    expected = gradients(mlp(), Backprop(), "graph", **FIXED)
    actual = gradients(mlp(), SymplecticAdjoint(), "graph", **FIXED)
    assert relative_error(actual, expected) < FLOAT64


@pytest.mark.parametrize("mode", [slow("eager"), "graph", slow("xla")])
@pytest.mark.parametrize("max_steps", [200, slow(2000)])
def test_adaptive_steps_that_are_recomputed(mode, max_steps, monkeypatch):
    """By segments of whole steps."""
    monkeypatch.setattr(plans, "FREE_ADAPTIVE", 0)
    options = dict(ADAPTIVE, rtol=1e-7, max_steps=max_steps)
    expected = gradients(mlp(), Backprop(), "graph", **options)
    actual = gradients(mlp(), SymplecticAdjoint(), mode, **options)
    assert relative_error(actual, expected) < FLOAT64
