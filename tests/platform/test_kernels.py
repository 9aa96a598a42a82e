"""What XLA can compile."""

import pytest

from tfsymadj import _platform


@pytest.mark.parametrize(
    "op", ["MatMul", "While", "PartitionedCall", "Case", "Placeholder", "Assert"]
)
def test_what_can(op):
    assert _platform.can_be_compiled(op)


@pytest.mark.parametrize("op", ["Lu", "PyFunc", "InplaceUpdate", "NoSuchOperation"])
def test_what_can_not(op):
    assert not _platform.can_be_compiled(op)
