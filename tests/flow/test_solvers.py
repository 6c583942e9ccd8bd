import pytest
import torch
from golden_cases import assert_close, case_id, cases, family, tensor
from jaxtyping import TypeCheckError

from imgrl.flow import euler_step, sample_ode, sigma_schedule


def gaussian_velocity(mean, std):
    """Exact velocity of data N(mean, std^2), whose flow ends at mean + std * start."""

    def velocity(x, t):
        t, wide = t.double(), x.double()
        slope = (t - (1 - t) * std**2) / ((1 - t) ** 2 * std**2 + t**2)
        return (-mean + slope * (wide - (1 - t) * mean)).to(x.dtype)

    return velocity


@pytest.mark.parametrize("solver", ["euler", "dpm2"])
@pytest.mark.parametrize("case", cases("dpm2_ode"), ids=case_id)
def test_trajectory_equals_the_recorded_one(case, solver):
    axes = [-1] + [1] * (len(case["shape"]) - 1)
    mean, std = (tensor(case[key], torch.float64).view(axes) for key in ("data_mean", "data_std"))
    states = [tensor(case["x_init"])]
    final = sample_ode(
        gaussian_velocity(mean, std),
        states[0],
        tensor(case["sigmas"]),
        solver=solver,
        callback=lambda i, x: states.append(x),
    )
    tolerance = family("dpm2_ode")["tolerance"]
    assert_close(torch.stack(states), case[f"trajectory_{solver}"], tolerance)
    assert_close(final, case[f"final_{solver}"], tolerance)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("dpm2", 2)])
def test_order_of_convergence(solver, order):
    # The exact end point is mean + std * start; halving the step divides the error by 2^order.
    velocity, start = gaussian_velocity(1.5, 0.5), torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    errors = []
    for steps in (80, 160):
        levels = torch.linspace(0.95, 0.05, steps + 1, dtype=torch.float64)
        # start on the trajectory: x_t = (1 - t) mean + sqrt((1 - t)^2 std^2 + t^2) z
        begin, end = (((1 - t) * 1.5 + (((1 - t) * 0.5) ** 2 + t**2) ** 0.5 * start) for t in (0.95, 0.05))
        errors.append((sample_ode(velocity, begin, levels, solver=solver) - end).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)


def test_euler_is_exact_for_a_straight_path():
    clean, noise = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, -2.0]])
    out = sample_ode(lambda x, s: noise - clean, noise, sigma_schedule(4))
    torch.testing.assert_close(out, clean)
    assert euler_step(noise, noise - clean, sigma=1.0, sigma_next=0.5).tolist() == [[3.0, 0.0]]


def test_velocity_function_sees_scalar_levels_in_order():
    seen = []
    sigmas = sigma_schedule(3)
    sample_ode(lambda x, s: (seen.append(s), torch.zeros_like(x))[1], torch.zeros(2, 2), sigmas)
    assert [s.ndim for s in seen] == [0, 0, 0] and torch.equal(torch.stack(seen), sigmas[:-1])


def test_wrong_solver_or_levels_are_refused():
    x = torch.zeros(1, 2)
    with pytest.raises((ValueError, TypeCheckError)):
        sample_ode(lambda x, s: x, x, sigma_schedule(2), solver="heun")
    with pytest.raises(ValueError, match="strictly falling"):
        sample_ode(lambda x, s: x, x, torch.tensor([0.5, 0.5]))
