"""Tables of methods that are none of the package."""

# A correct tableau for tests to spoil.
GOOD = dict(
    name="mine",
    order=2,
    c=(0, 1),
    a=((), (1,)),
    b=(0.5, 0.5),
    b_error=(-0.5, 0.5),
    embedded_order=1,
)
