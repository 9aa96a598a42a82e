"""One case with torchdiffeq: `python run_torch.py --workload W1b --method odeint`."""

import measure
import torch
import torchdiffeq

METHODS = {"odeint": torchdiffeq.odeint, "odeint_adjoint": torchdiffeq.odeint_adjoint}


class Dynamics(torch.nn.Module):
    """The network, or the flow that it drives; counts its evaluations and the accepted steps."""

    def __init__(self, work, data):
        super().__init__()
        self.kernels = torch.nn.ParameterList([torch.from_numpy(x) for x in data.kernels])
        self.biases = torch.nn.ParameterList([torch.from_numpy(x) for x in data.biases])
        self.noise = torch.from_numpy(data.noise)
        self.flow = work.flow
        self.evaluations = self.accepted = 0
        if work.adaptive:  # or torchdiffeq warns that nobody calls it
            self.callback_accept_step = self.count_step

    def count_step(self, *_):
        self.accepted += 1

    def network(self, t, y):
        x = torch.cat([y, t.to(y.dtype).expand(y.shape[0], 1)], dim=1)
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1]):
            x = torch.tanh(torch.addmm(bias, x, kernel))
        return torch.addmm(self.biases[-1], x, self.kernels[-1])

    def forward(self, t, y):
        self.evaluations += 1
        if not self.flow:
            return self.network(t, y)
        # Whoever calls records: the graph of the divergence is kept only then.
        recording = torch.is_grad_enabled()
        with torch.enable_grad():
            z = y[:, :-1]
            if not z.requires_grad:
                z = z.detach().requires_grad_()
            dz = self.network(t, z)
            (product,) = torch.autograd.grad(dz, z, self.noise, create_graph=recording)
            divergence = torch.sum(product * self.noise, dim=1, keepdim=True)
            result = torch.cat([dz, -divergence], dim=1)
        return result if recording else result.detach()


def solver_options(work, method):
    """Keyword arguments of torchdiffeq for a workload."""
    if not work.adaptive:  # what torchdiffeq calls rk4 is the 3/8 rule
        return dict(method="rk4", options=dict(step_size=1 / work.num_steps))
    # `step_t`: the last step ends at t = 1, as in the other packages, instead of an interpolation
    # within a step beyond it.
    options = dict(
        method=work.method,
        rtol=work.tolerance,
        atol=work.tolerance,
        options=dict(step_t=torch.tensor([1.0], dtype=torch.float64)),
    )
    if method == "odeint_adjoint":
        options["adjoint_options"] = dict(step_t=torch.tensor([0.0], dtype=torch.float64))
    return options


def main():
    arguments = measure.parse(METHODS)
    work = arguments.work
    data = work.data()
    dynamics = Dynamics(work, data)
    parameters = [*dynamics.kernels, *dynamics.biases]
    y0 = torch.from_numpy(data.y0)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    odeint = METHODS[arguments.method]
    options = solver_options(work, arguments.method)

    def run():
        dynamics.evaluations = dynamics.accepted = 0
        y = odeint(dynamics, y0, times, **options)[-1]
        if work.flow:
            density = -0.5 * torch.sum(y[:, :-1] ** 2, dim=1) - work.log_normalizer - y[:, -1]
            loss = -torch.mean(density)
        else:
            loss = torch.mean(y**2)
        forward = dynamics.evaluations
        gradients = torch.autograd.grad(loss, parameters)
        facts = dict(
            accepted=dynamics.accepted if work.adaptive else work.num_steps,
            forward=forward,
            backward=dynamics.evaluations - forward,
        )
        return loss.detach(), gradients, facts

    version = f"torchdiffeq {torchdiffeq.__version__}, PyTorch {torch.__version__}"
    measure.report(arguments, "torchdiffeq", version, lambda: run, lambda facts: facts)


if __name__ == "__main__":
    main()
