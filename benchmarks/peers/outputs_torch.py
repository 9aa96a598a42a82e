"""Gradients of many outputs with torchdiffeq, as `outputs.py` asks for them."""

import measure
import torch
import torchdiffeq
from workloads import SERIES


class Dynamics(torch.nn.Module):
    """The network; counts its evaluations and the steps."""

    def __init__(self, kernels, biases):
        super().__init__()
        self.kernels = torch.nn.ParameterList([torch.from_numpy(x) for x in kernels])
        self.biases = torch.nn.ParameterList([torch.from_numpy(x) for x in biases])
        self.evaluations = self.steps = 0

    def callback_step(self, *_):
        self.steps += 1

    def forward(self, t, y):
        self.evaluations += 1
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1]):
            y = torch.nn.functional.elu(torch.addmm(bias, y, kernel))
        return torch.addmm(self.biases[-1], y, self.kernels[-1])


def build(method, count):
    """The gradient; `method` is the name of the function of torchdiffeq."""
    kernels, biases, start = SERIES.data()
    dynamics, start = Dynamics(kernels, biases), torch.from_numpy(start).requires_grad_()
    times = torch.from_numpy(SERIES.times(count))
    odeint = getattr(torchdiffeq, method)
    options = dict(method="dopri5", rtol=SERIES.rtol, atol=SERIES.atol)

    def run():
        dynamics.evaluations = dynamics.steps = 0
        loss = torch.mean(odeint(dynamics, start, times, **options) ** 2)
        found = dict(steps=dynamics.steps, evaluations=dynamics.evaluations)
        torch.autograd.grad(loss, [start, *dynamics.parameters()])
        return loss.detach(), found

    return run


def facts(method, count, found):
    return found


if __name__ == "__main__":
    version = f"torchdiffeq {torchdiffeq.__version__}, PyTorch {torch.__version__}"
    measure.serve(build, facts, version)
