"""What code looks up, and whose a class is."""

import enum
import json

import keras
import numpy as np
import tensorflow as tf

import tfsymadj
from tfsymadj.dynamics import code

SCALE = 2.0


def outer(y):
    import math

    def inner(x):
        from os import path

        return SCALE * np.sin(x.real) + len(path.sep)

    return inner(y) * math.pi


def test_names_of_functions_inside_are_found():
    names, attributes, imports = code.names_in(outer.__code__)
    assert names == ("SCALE", "len", "np")
    assert attributes == ("path", "pi", "real", "sep", "sin")
    assert imports == ("math", "os")


class Users(enum.Enum):
    RED = 1


def test_libraries():
    for module in (json, keras, np, tf, tfsymadj):
        assert code.is_library(module.__file__)
    assert not code.is_library(__file__)
    for kind in (int, dict, json.JSONDecoder, keras.layers.Dense, tfsymadj.ODELayer):
        assert code.is_library_class(kind)
    assert not code.is_library_class(Users)


class Base:
    __slots__ = ("a", "__b", "__dict__")


class Derived(Base):
    __slots__ = "__c"


def test_slots_are_named_as_attributes():
    assert code.slots_of(Derived) == ("_Derived__c", "a", "_Base__b")
    assert code.slots_of(Users) == code.slots_of(tf.Module) == ()
