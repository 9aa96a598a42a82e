"""The interface of a gradient method."""

from tfsymadj.config import Configured
from tfsymadj.loop.problem import Outcome, Problem


class Gradient(Configured):
    """A way to differentiate a solve; derive your own from this class.

    `solve` is needed, and `get_config` if the constructor takes arguments.

    Attributes:
        plans_by_length: whether an eager solve is to be traced for its number of equal steps, not
            for any number.
        discretises: whether it solves another scheme than the method's own, see `discretised`,
            whose steps end at all outputs.
    """

    plans_by_length: bool = False
    discretises: bool = False

    def discretised(self, problem: Problem) -> Problem:
        """The problem in the scheme that it solves; the first tensors of the state are the state
        of `problem`.
        """
        return problem

    def solve(self, problem: Problem) -> Outcome:
        """Solves `problem` in such a way that `Outcome.ys` can be differentiated.

        `Outcome.stats.num_backward_evaluations` says how many evaluations one gradient will take.
        """
        raise NotImplementedError
