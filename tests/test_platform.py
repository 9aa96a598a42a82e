"""Tests of what the library relies on in TensorFlow: they fail the day that it changes."""

import inspect
import sys
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfsymadj import _platform
from tfsymadj.checkpoints import buffers

JIT = pytest.mark.parametrize("jit", [None, True], ids=["graph", "xla"])


@pytest.fixture
def variable():
    return tf.Variable(1.0)


def by_two(variable):
    """Substitutes the constant 2 for that variable."""

    def substitute(other):
        return tf.constant(2.0) if other is variable else None

    return _platform.substituted(substitute)


# Variable reads


def test_plain_reads(variable):
    assert float(variable) == 1.0
    assert float(variable + 1.0) == 2.0
    assert float(tf.function(lambda: variable * 3.0)()) == 3.0
    with tf.GradientTape() as tape:
        y = variable * 3.0
    assert float(tape.gradient(y, variable)) == 3.0


@pytest.mark.parametrize(
    "read",
    [
        lambda v: v.read_value(),
        lambda v: v.value(),
        lambda v: v + 0.0,
        lambda v: tf.convert_to_tensor(v),
        lambda v: tf.identity(v),
        lambda v: tf.stack([v])[0],
        lambda v: tf.matmul([[v]], [[1.0]])[0, 0],
    ],
)
def test_reads_are_substituted(variable, read):
    # In graphs: operations called eagerly may read a variable without any Python.
    @tf.function
    def compute():
        with by_two(variable):
            inside = read(variable)
        return inside, read(variable)

    inside, after = compute()
    assert float(inside) == 2.0
    assert float(after) == 1.0


def test_other_variables_are_read_as_ever(variable):
    other = tf.Variable(5.0)

    @tf.function
    def compute():
        with by_two(variable):
            return other + variable

    assert float(compute()) == 7.0


def test_reads_in_bodies_of_loops_and_branches(variable):
    @tf.function
    def compute():
        with by_two(variable):
            _, loop = tf.while_loop(
                lambda i, x: i < 3, lambda i, x: (i + 1, x + variable), (0, 0.0)
            )
            branch = tf.cond(loop > 0.0, lambda: variable + 0.0, lambda: -variable)
            nested = tf.while_loop(
                lambda i, x: i < 1,
                lambda i, x: (i + 1, tf.cond(x < 1.0, lambda: x + variable, lambda: x)),
                (0, 0.0),
            )[1]
            mapped = tf.map_fn(lambda x: x * variable, tf.ones([2]))
        return loop, branch, nested, mapped

    loop, branch, nested, mapped = compute()
    assert float(loop) == 6.0
    assert float(branch) == 2.0
    assert float(nested) == 2.0
    np.testing.assert_array_equal(mapped, [2.0, 2.0])


def test_a_nested_function_is_traced_inline(variable):
    """Its own trace serves other callers and must not hold tensors of the solver."""
    inner = tf.function(lambda: variable + 0.0)

    @tf.function
    def compute():
        with by_two(variable):
            return inner(), variable + 0.0

    nested, here = compute()
    assert float(nested) == 2.0
    assert float(here) == 2.0
    assert float(inner()) == 1.0


def test_gradient_flows_to_the_substitute(variable):
    value = tf.constant(2.0)

    @tf.function
    def compute():
        with tf.GradientTape() as tape:
            tape.watch(value)
            with _platform.substituted(lambda other: value):
                y = variable * variable
        found = tape.gradient(y, [value, variable])
        assert found[1] is None
        return y, found[0]

    y, gradient = compute()
    assert float(y) == 4.0
    assert float(gradient) == 4.0


def test_innermost_substitution_wins(variable):
    @tf.function
    def compute():
        with by_two(variable):
            with _platform.substituted(lambda other: tf.constant(3.0)):
                inner = variable + 0.0
            with _platform.substituted(lambda other: None):
                passed_on = variable + 0.0
        return inner, passed_on

    inner, passed_on = compute()
    assert float(inner) == 3.0
    assert float(passed_on) == 2.0


def test_substitution_ends_with_an_error(variable):
    with pytest.raises(ZeroDivisionError), by_two(variable):
        raise ZeroDivisionError
    assert float(variable + 0.0) == 1.0


def test_other_threads_read_as_ever(variable):
    inside, done, seen = threading.Event(), threading.Event(), []

    def other():
        inside.wait(10)
        seen.append(float(variable + 0.0))
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with by_two(variable):
        inside.set()
        assert done.wait(10)
    thread.join()
    assert seen == [1.0]


def test_storages():
    a, b = tf.Variable(1.0), tf.Variable(1.0)
    keys = [_platform.storage(a), _platform.storage(b)]
    assert keys[0] != keys[1]
    assert _platform.storage(a) == keys[0]
    inside = []
    tf.function(lambda: inside.append(_platform.storage(a)))()
    assert inside == keys[:1]
    assert _platform.is_variable(a)
    assert not _platform.is_variable(tf.constant(1.0))


def test_where_we_are():
    seen = {}

    def look(name):
        seen[name] = _platform.in_function_graph(), _platform.in_control_flow()
        return tf.constant(0)

    look("eager")

    @tf.function
    def compute():
        look("function")
        tf.while_loop(lambda i: i < 1, lambda i: (i + 1 + look("while"),), (0,))
        tf.cond(tf.constant(True), lambda: look("cond"), lambda: tf.constant(1))
        tf.function(lambda: look("inner"))()

    compute()
    assert seen == {
        "eager": (False, False),
        "function": (True, False),
        "while": (True, True),
        "cond": (True, True),
        "inner": (True, False),
    }


def test_stateful_operations():
    for op in ("RandomStandardNormal", "AssignAddVariableOp", "EagerPyFunc", "PyFunc", "NoSuchOp"):
        assert _platform.is_stateful(op)
    for op in ("MatMul", "StatelessRandomNormalV2", "TensorListSetItem", "PartitionedCall"):
        assert not _platform.is_stateful(op)


# Buffers


@JIT
def test_device_index_tells_xla(jit):
    @tf.function(jit_compile=jit)
    def compute():
        device = tf.raw_ops.DeviceIndex(device_names=["CPU", "GPU"])
        return tf.switch_case(device, [lambda i=i: tf.constant(i) for i in range(3)])

    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    assert int(compute()) == (2 if jit else int(on_gpu))


@JIT
@pytest.mark.parametrize("write", [buffers.write_row, buffers.replace_row])
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64, tf.complex64, tf.bfloat16])
def test_write_row(jit, dtype, write):
    @tf.function(jit_compile=jit)
    def compute(value, row):
        buffer = write(buffers.dense_rows(4, value), row, 3.0 * value)
        return write(buffer, row, value)

    value = tf.cast([[1.0, 2.0]], dtype)
    for row in (0, 3):
        expected = np.zeros([4, 1, 2])
        expected[row] = [[1.0, 2.0]]
        np.testing.assert_array_equal(tf.cast(compute(value, tf.constant(row)), tf.complex128),
                                      expected)  # fmt: skip


@JIT
@pytest.mark.parametrize("write", [buffers.write_row, buffers.replace_row])
def test_gradient_through_rows(jit, write):
    """What was overwritten gets none."""

    @tf.function(jit_compile=jit)
    def compute(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            buffer = buffers.dense_rows(3, x)
            for row, factor in [(0, 2.0), (1, 3.0), (0, 5.0)]:
                buffer = write(buffer, row, factor * x)
            value = tf.reduce_sum(tf.constant([[1.0], [10.0], [100.0]]) * buffer)
        return tape.gradient(value, x)

    np.testing.assert_array_equal(compute(tf.ones([2])), [35.0, 35.0])


@JIT
def test_write_row_in_a_loop(jit):
    @tf.function(jit_compile=jit)
    def compute(n, rows):
        def body(i, x, buffer):
            return i + 1, 2.0 * x, buffers.write_row(buffer, i, x)

        x = tf.ones([3])
        buffer = buffers.dense_rows(5, x)
        return tf.while_loop(
            lambda i, x, buffer: i < n, body, (0, x, buffer), maximum_iterations=5
        )[2]

    expected = np.zeros([5, 3])
    expected[:4] = 2.0 ** np.arange(4)[:, None]
    np.testing.assert_array_equal(compute(tf.constant(4), 5), expected)


def test_replace_row_copies_what_is_still_needed():
    """A buffer that the caller still needs is not written into."""

    @tf.function
    def compute(value):
        before = buffers.dense_rows(2, value)
        return before + 0.0, buffers.replace_row(before, 1, value)

    before, after = compute(tf.ones([2]))
    np.testing.assert_array_equal(before, np.zeros([2, 2]))
    np.testing.assert_array_equal(after, [[0, 0], [1, 1]])


@JIT
def test_tensor_list_rows(jit):
    @tf.function(jit_compile=jit, input_signature=[tf.TensorSpec([None, 2])])
    def compute(like):
        rows = buffers.reserve_rows(3, like)
        for i in range(3):
            rows = buffers.set_row(rows, i, like + float(i))
        rows = buffers.set_row(rows, 1, 10.0 * like)
        return buffers.get_row(rows, 1, like), buffers.stack_rows(rows, like, 3)

    like = tf.ones([2, 2])
    row, stacked = compute(like)
    np.testing.assert_array_equal(row, 10.0 * like)
    np.testing.assert_array_equal(stacked[:, 0, 0], [1.0, 10.0, 3.0])
    assert stacked.shape == (3, 2, 2)


def test_rows_of_unknown_number():
    @tf.function
    def compute(n, like):
        buffer = buffers.dense_rows(n, like)
        assert buffer.shape.as_list() == [None, 2]
        return buffers.write_row(buffer, n - 1, like)

    np.testing.assert_array_equal(compute(tf.constant(2), tf.ones([2])), [[0, 0], [1, 1]])


def test_adopted_variables_share_their_storage():
    variable = tf.Variable([1.0, 2.0], name="block/kernel", trainable=False)
    adopted = _platform.adopted(variable)
    assert isinstance(adopted, keras.Variable)
    assert adopted is _platform.adopted(variable)
    assert adopted.value is variable
    assert (adopted.name, adopted.trainable) == ("block_kernel", False)
    adopted.assign([3.0, 4.0])
    np.testing.assert_array_equal(variable, [3.0, 4.0])


def test_losses_of_layers():
    outer = keras.Sequential([keras.layers.ActivityRegularization(l1=1.0)])
    inner = outer.layers[0]
    outer(np.ones([1, 2]))
    inner.add_loss(tf.constant(3.0))
    pairs = _platform.collected_losses(outer)
    assert [(layer, float(loss)) for layer, loss in pairs] == [(inner, 2.0), (inner, 3.0)]
    _platform.drop_loss(*pairs[0])
    assert [float(x) for x in outer.losses] == [3.0]


def test_layers_are_built_with_all_their_parts():
    outer = keras.Sequential([keras.layers.Dense(1)])
    assert not _platform.is_built(outer)
    outer.built = True
    assert not _platform.is_built(outer)
    outer.build([None, 2])
    assert _platform.is_built(outer)


def test_parts_of_layers():
    inner = keras.Sequential([keras.layers.Dense(1)])
    outer = keras.Sequential([inner])
    assert [id(x) for x in _platform.parts(outer)] == [id(x) for x in (outer, inner, *inner.layers)]


def test_masks_of_tensors():
    x = tf.constant([[1.0], [0.0]])[None]
    mask = _platform.mask_of(keras.layers.Masking()(x))
    np.testing.assert_array_equal(mask, [[True, False]])
    assert _platform.mask_of(x) is None
    outputs = keras.layers.Dense(1)(_platform.with_mask(x, mask))
    np.testing.assert_array_equal(_platform.mask_of(outputs), mask)


# Lines of code


@tf.autograph.experimental.do_not_convert
def generated_line():
    """The innermost line of generated code, None if there is none."""
    frame = sys._getframe(1)
    while frame is not None and _platform.original_line(frame) is None:
        frame = frame.f_back
    return frame and _platform.original_line(frame)


def test_original_line_of_generated_code():
    found = []

    def dynamics(y):
        found.append(generated_line())
        return y

    tf.function(lambda y: dynamics(y))(tf.constant(1.0))
    dynamics(1.0)
    line = inspect.getsourcelines(dynamics)[1] + 1
    assert found == [(__file__, line), None]
