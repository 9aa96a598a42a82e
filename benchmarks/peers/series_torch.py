"""Gradients of small problems with torchdiffeq, as `turns.py` asks for them."""

import measure
import torch
import torchdiffeq
import torchode

ACTIVATIONS = {"elu": torch.nn.functional.elu, "tanh": torch.tanh}


class Dynamics(torch.nn.Module):
    """The network, or the equations; counts its evaluations and the steps."""

    def __init__(self, kernels, biases, activation):
        super().__init__()
        self.kernels = torch.nn.ParameterList([torch.from_numpy(x) for x in kernels])
        self.biases = torch.nn.ParameterList([torch.from_numpy(x) for x in biases])
        self.activation, self.rates = ACTIVATIONS[activation], None
        self.evaluations = self.steps = 0

    def callback_step(self, *_):
        self.steps += 1

    def forward(self, t, y):
        self.evaluations += 1
        if not len(self.biases):
            (a, b, c, d), (prey, predators) = self.kernels[0], y
            meetings = prey * predators
            return torch.stack([a * prey - b * meetings, d * meetings - c * predators])
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1]):
            y = self.activation(torch.addmm(bias, y, kernel))
        slopes = torch.addmm(self.biases[-1], y, self.kernels[-1])
        return slopes if self.rates is None else self.rates * slopes


def build(series, method, count):
    """The gradient; `method` is the name of the function of torchdiffeq, or `torchode`, or
    `torchode-forward` for the loss alone.
    """
    kernels, biases, start = series.data()
    dynamics = Dynamics(kernels, biases, series.activation)
    start = torch.from_numpy(start).requires_grad_()
    times = torch.from_numpy(series.times(count))
    if series.spread != 1.0:
        dynamics.rates = torch.from_numpy(series.rates)
    if method.startswith("torchode"):
        return build_torchode(series, dynamics, start, times, method.endswith("forward"))
    odeint = getattr(torchdiffeq, method)
    if series.num_steps is None:
        options = dict(method="dopri5", rtol=series.rtol, atol=series.atol)
    else:
        # Its `rk4` is the 3/8 rule, of as many stages.
        options = dict(method="rk4", options=dict(step_size=series.end / series.num_steps))

    def run():
        dynamics.evaluations = dynamics.steps = 0
        loss = torch.mean(odeint(dynamics, start, times, **options) ** 2)
        found = dict(steps=dynamics.steps, evaluations=dynamics.evaluations)
        torch.autograd.grad(loss, [start, *dynamics.parameters()])
        return loss.detach(), found

    return run


def build_torchode(series, dynamics, start, times, forward):
    """The gradient with steps of each example, by back-propagation, or the loss alone."""
    term = torchode.ODETerm(dynamics)
    solver = torchode.AutoDiffAdjoint(
        torchode.Dopri5(term=term),
        torchode.IntegralController(atol=series.atol, rtol=series.rtol, term=term),
        max_steps=measure.MOST,
    )
    problem = torchode.InitialValueProblem(
        y0=start, t_eval=times.to(start.dtype).expand(len(start), -1)
    )

    def run():
        dynamics.evaluations = 0
        with torch.set_grad_enabled(not forward):
            solution = solver.solve(problem)
            loss = torch.mean(solution.ys**2)
        if not forward:
            torch.autograd.grad(loss, [start, *dynamics.parameters()])
        steps = int(solution.stats["n_steps"].max())
        return loss.detach(), dict(steps=steps, evaluations=dynamics.evaluations)

    return run


def facts(series, method, count, found):
    return found


if __name__ == "__main__":
    version = f"torchdiffeq {torchdiffeq.__version__}, torchode {torchode.__version__}"
    version += f", PyTorch {torch.__version__}"
    measure.serve(build, facts, version)
