"""Rooted trees and their densities."""

import math
from fractions import Fraction

import pytest

from tfsymadj.methods import order_conditions

# Rooted trees of 1, 2, ... vertices.
COUNTS = (1, 1, 2, 4, 9, 20, 48, 115, 286, 719)


@pytest.mark.parametrize("order,count", list(enumerate(COUNTS, start=1)))
def test_rooted_trees(order, count):
    trees = order_conditions.rooted_trees(order)
    assert len(trees) == len(set(trees)) == count
    assert all(order_conditions.num_vertices(tree) == order for tree in trees)


def test_densities():
    tall, bushy = (((),),), ((), (), ())
    assert order_conditions.density(()) == 1
    assert order_conditions.density((tall,)) == math.factorial(4)
    assert order_conditions.density(bushy) == 4
    # The numbers of monotonic labellings of the trees of one order add up to (order - 1)!.
    for order in range(1, 8):
        labellings = 0
        for tree in order_conditions.rooted_trees(order):
            labellings += Fraction(
                math.factorial(order), order_conditions.density(tree) * symmetry(tree)
            )
        assert labellings == math.factorial(order - 1)


def symmetry(tree):
    """Order of the symmetry group of a rooted tree."""
    product = 1
    for subtree in set(tree):
        count = tree.count(subtree)
        product *= math.factorial(count) * symmetry(subtree) ** count
    return product
