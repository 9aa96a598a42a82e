"""The package's order, as its source tells: rooms that import one way, and what they may use."""

import ast
import functools
import pathlib
import sys

import pytest

import tfsymadj

PACKAGE = pathlib.Path(tfsymadj.__file__).parent

#: The rooms and modules of the package, lowest first: none knows of what comes after it.
ORDER = [
    "_platform",
    "_backend",
    "warning",
    "config",
    "arithmetic",
    "xla",
    "controls",
    "dynamics",
    "methods",
    "solution",
    "steps",
    "checkpoints",
    "loop",
    "gradients",
    "events",
    "compiled",
    "options",
    "arguments",
    "solve",
    "steady_state",
    "sensitivities",
    "layers",
    "callbacks",
    "bijectors",
    "controllers",
    "tableaus",
]
LIBRARIES = ("tensorflow", "keras", "tensorflow_probability", "tf_keras")
#: Imported by those who only look at tables, so it should not take seconds.
WITHOUT_TENSORFLOW = [
    f"tfsymadj.methods.{name}" for name in ("tableaus", "tables", "order_conditions")
]
LONGEST = 80


def name_of(path):
    parts = ("tfsymadj", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def tree_of(module):
    return ast.parse(SOURCES[module].read_text())


def imports_in(tree):
    """`(node, name of the module)`, where a module may be one that a package is asked for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node, inner if inner in SOURCES else node.module


@functools.cache
def imported_by(module):
    """The package's modules that a module names in its imports."""
    return sorted({name for _, name in imports_in(tree_of(module)) if name in SOURCES} - {module})


def room_of(module):
    return module.split(".")[1]


def where(module, node):
    return f"{SOURCES[module].relative_to(PACKAGE.parent)}:{node.lineno}"


def test_every_room_has_its_place():
    assert {room_of(module) for module in SOURCES if module != "tfsymadj"} == set(ORDER)


def test_rooms_import_what_is_lower():
    wrong = [
        f"{module} imports {name}"
        for module in SOURCES
        if module != "tfsymadj"
        for name in imported_by(module)
        if name == "tfsymadj" or ORDER.index(room_of(name)) > ORDER.index(room_of(module))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_cycles():
    done, pending = set(), []

    def visit(module):
        assert module not in pending, " -> ".join([*pending[pending.index(module) :], module])
        if module not in done:
            pending.append(module)
            for name in imported_by(module):
                visit(name)
            pending.pop()
            done.add(module)

    for module in SOURCES:
        visit(module)


def test_imports_are_at_the_top():
    """None is left for later, but for the bijectors, which need TensorFlow Probability."""
    late = {
        where(module, node)
        for module in SOURCES
        for function in ast.walk(tree_of(module))
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert not late
    dynamic = {
        (module, ast.unparse(node.args[0]))
        for module in SOURCES
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")
    }
    assert dynamic == {("tfsymadj", "f'tfsymadj.{name}'")}


@pytest.mark.parametrize("module", WITHOUT_TENSORFLOW)
def test_tables_need_no_tensorflow(module):
    seen, pending = set(), [module]
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending += imported_by(name)
    for name in seen:
        roots = {imported.partition(".")[0] for _, imported in imports_in(tree_of(name))}
        assert roots <= {"tfsymadj", "numpy", *sys.stdlib_module_names}, name


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


def root_of(node):
    """The name at the start of a chain of attributes."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def pairs_of(assignment):
    """`(target, value)` of an assignment, also of one to several names."""
    for target in assignment.targets:
        if isinstance(target, ast.Tuple) and isinstance(assignment.value, ast.Tuple):
            yield from zip(target.elts, assignment.value.elts)
        else:
            yield target, assignment.value


def library_names(tree):
    """Names that stand for something of TensorFlow, Keras or TensorFlow Probability."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in LIBRARIES:
                    found.add(alias.asname or alias.name.partition(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in LIBRARIES:
            found |= {alias.asname or alias.name for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target, value in pairs_of(node):
                is_chain = isinstance(value, (ast.Name, ast.Attribute))
                if is_chain and root_of(value) in found and isinstance(target, ast.Name):
                    found.add(target.id)
    return found


def private_uses(tree):
    """Nodes that reach into what the libraries don't promise to keep."""
    names = library_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            for alias in node.names:
                modules.append(".".join([*modules[:1], alias.name]))
            for parts in (module.split(".") for module in modules):
                private = parts[1:2] in (["python"], ["src"]) or any(map(is_private, parts))
                if parts[0] in LIBRARIES and private:
                    yield node
                    break
        elif isinstance(node, ast.Attribute) and root_of(node) in names:
            inside = ast.unparse(node).split(".")[1:2] in (["python"], ["src"])
            if is_private(node.attr) or (inside and node.attr in ("python", "src")):
                yield node
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            subject, name = node.args[:2]
            named = isinstance(name, ast.Constant) and is_private(str(name.value))
            if named and root_of(subject) in names:
                yield node


def test_private_names_are_in_platform():
    wrong = [
        f"{where(module, node)}: {ast.unparse(node)}"
        for module in SOURCES
        if module != "tfsymadj" and room_of(module) != "_platform"
        for node in private_uses(tree_of(module))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line, count",
    [
        ("from tensorflow.python.eager import record", 1),
        ("import keras.src", 1),
        ("import tensorflow as tf; tf._api", 1),
        ("import tensorflow as tf; tf.python.eager", 1),
        ("import tensorflow_probability as tfp; tfb = tfp.bijectors; tfb.Exp._cache", 1),
        ("import keras; getattr(keras.Layer, '_path')", 1),
        ("from keras import _secret", 1),
        ("import tensorflow as tf; tf.Module.__init__; tf.nn.relu", 0),
        ("import numpy as np; np._core", 0),
    ],
)
def test_private_names_are_found(line, count):
    assert len(list(private_uses(ast.parse(line)))) == count


def test_functions_are_short():
    long = [
        f"{where(module, node)}: {node.name}, {node.end_lineno - node.lineno + 1} lines"
        for module in SOURCES
        for node in ast.walk(tree_of(module))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno - node.lineno + 1 > LONGEST
    ]
    assert not long, "\n".join(long)
