"""The interface of a gradient method."""

from tfsymadj.config import Configured
from tfsymadj.loop.problem import Outcome, Problem


class Gradient(Configured):
    """A way to differentiate a solve; derive your own from this class.

    `solve` is needed, and `get_config` if the constructor takes arguments.

    Attributes:
        plans_by_length: whether an eager solve is to be traced for its number of equal steps, not
            for any number.
        interpolates: whether outputs may lie inside of steps, by the method's continuous extension.
    """

    plans_by_length: bool = False
    interpolates: bool = True

    def solve(self, problem: Problem) -> Outcome:
        """Solves `problem` in such a way that `Outcome.ys` can be differentiated.

        `Outcome.stats.num_backward_evaluations` says how many evaluations one gradient will take.
        """
        raise NotImplementedError
