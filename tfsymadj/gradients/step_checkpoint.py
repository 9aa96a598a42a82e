"""The adaptive checkpoint adjoint: back-propagation step by step."""

from tfsymadj.checkpoints.recording import Recording
from tfsymadj.gradients.recomputing import Recomputing
from tfsymadj.gradients.sweep import Sweep, planned_evaluations


class StepCheckpoint(Recomputing):
    """Keeps the state before every accepted step and back-propagates through one step at a time.

    Exact, at the memory of N states and s uses of the network: a step is evaluated again with all
    its stages under one tape (ACA: Zhuang et al., Adaptive Checkpoint Adjoint Method for Gradient
    Estimation in Neural ODE, ICML 2020, arXiv:2006.02493). An adaptive solve needs the memory of
    `max_steps` states.

    Example:

    >>> import tfsymadj
    >>> y = tfsymadj.odeint(lambda t, y: -y, [1.0], [0.0, 1.0], gradient="aca")
    """

    def recording(self, problem):
        return Recording(stride=1, rows=problem.max_steps, tapes_steps=True)

    def backward(self, problem, recording, outcome, cotangents):
        return Sweep(problem, recording, outcome, cotangents).run()

    def backward_evaluations(self, problem, recording, outcome):
        return planned_evaluations(problem, recording, outcome)
