"""Where CRD's regression comes to rest: closed forms for Gaussians with exact velocities.

With the path weight ``(1 - t) / t`` and the mean over levels and noises taken inside the square, the
denoising gain is the log-density ratio itself, and the optimum is the old density tilted by ``exp(reward /
beta)``.
"""

import pytest
import torch
from gaussian import F64, Points, hermite, legendre, log_density

from imgrl.anchor import centered_match, denoising_gain

OLD = (0.5, 0.8)


def gain(points, new, old, samples):
    """Path-weighted gain of each clean sample."""
    rows = denoising_gain(points.velocity(*new), points.velocity(*old), points.target, adaptive=False)
    return points.average((1 - points.sigma) / points.sigma * rows, samples)


@pytest.mark.parametrize("new", [(1.0, 1.0), (-0.3, 0.6), (0.2, 1.5)])
@pytest.mark.parametrize("old", [(0.0, 1.0), (0.5, 0.8)])
def test_path_weighted_gain_is_the_log_ratio(new, old):
    # E1
    x = torch.tensor([-2.0, 0.1, 1.7], dtype=F64)
    points = Points(x, legendre(400), hermite(60))
    expected = log_density(x, *new) - log_density(x, *old)
    torch.testing.assert_close(gain(points, new, old, 3), expected, rtol=1e-6, atol=1e-6)


def optimum(reward, beta, sampler=OLD, groups=1):
    """Mean and standard deviation at which the regression rests, and the loss there, by LBFGS from the old ones."""
    x = sampler[0] + sampler[1] * torch.linspace(-2, 2, 9, dtype=F64)
    points, target = Points(x, legendre(40), hermite(12)), reward(x)
    group = torch.zeros(9, dtype=torch.int64)
    parameters = torch.tensor([OLD[0], OLD[1]], dtype=F64).requires_grad_()
    solver = torch.optim.LBFGS(
        [parameters],
        max_iter=200,
        tolerance_grad=1e-12,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def loss():
        return centered_match(gain(points, parameters, OLD, 9), target, group, beta=beta).mean()

    def closure():
        solver.zero_grad()
        value = loss()
        value.backward()
        return value

    solver.step(closure)
    return (*parameters.tolist(), loss().item())


@pytest.mark.parametrize("sampler", [OLD, (2.0, 1.5)], ids=["on_policy", "off_policy"])
@pytest.mark.parametrize(("beta", "mean"), [(2.0, 0.82), (1.0, 1.14), (0.5, 1.78)])
def test_linear_reward_moves_the_mean_by_variance_over_beta(beta, mean, sampler):
    # E2: N(m0 + s0^2 / beta, s0^2); E3: the same from a wrong sampler
    found = optimum(lambda x: x, beta, sampler)
    assert found == (pytest.approx(mean, abs=1e-5), pytest.approx(0.8, abs=1e-5), pytest.approx(0, abs=1e-9))


@pytest.mark.parametrize("beta", [2.0, 1.0, 0.5])
def test_quadratic_reward_adds_precision(beta):
    # E4: reward -k/2 (x - x*)^2 with k = x* = 2: precision 1/s0^2 + k/beta, mean (m0/s0^2 + k x*/beta) / precision
    precision = 1 / 0.64 + 2 / beta
    mean, std = (0.5 / 0.64 + 4 / beta) / precision, precision**-0.5
    found = optimum(lambda x: -((x - 2.0) ** 2), beta)
    assert found[:2] == (pytest.approx(mean, abs=1e-5), pytest.approx(std, abs=1e-5))


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_constant_reward_changes_nothing(constant):
    # E5
    found = optimum(lambda x: torch.full_like(x, constant), 1.0)
    assert found == (*(pytest.approx(value, abs=1e-9) for value in OLD), pytest.approx(0, abs=1e-15))


def test_adding_a_constant_to_the_reward_changes_nothing():
    # E6
    assert optimum(lambda x: x + 100, 1.0)[0] == pytest.approx(1.14, abs=1e-5)


@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_prompts_are_independent_only_if_centred_one_by_one(offset):
    # E7: two prompts, old N(0, 1) each, reward .2 x and 2 x + offset: the answers are N(.2, 1) and N(2, 1).
    slope = torch.tensor([0.2, 2.0], dtype=F64).repeat_interleave(7)
    x = torch.linspace(-2, 2, 7, dtype=F64).repeat(2)
    points, prompt = Points(x, legendre(24), hermite(8)), torch.arange(2).repeat_interleave(7)
    reward = slope * x + offset * prompt

    def solve(group):
        parameters = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=F64).requires_grad_()
        solver = torch.optim.LBFGS(
            [parameters], max_iter=300, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
        )

        def closure():
            solver.zero_grad()
            mean, std = parameters[:, prompt[points.sample]]
            value = centered_match(gain(points, (mean, std), (0.0, 1.0), 14), reward, group, beta=1.0).mean()
            value.backward()
            return value

        solver.step(closure)
        return parameters.detach()

    exact = torch.tensor([[0.2, 2.0], [1.0, 1.0]], dtype=F64)
    torch.testing.assert_close(solve(prompt), exact, rtol=0, atol=1e-4)
    assert (solve(torch.zeros_like(prompt)) - exact).abs().max() > 0.1
