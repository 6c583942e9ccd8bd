"""One-dimensional Gaussians, where velocities, densities and expectations are exact (float64, quadrature)."""

import math

import numpy as np
import torch

from imgrl.flow import add_noise, velocity_target

F64 = torch.float64


def velocity(x, t, mean, std):
    """Marginal velocity of data N(mean, std^2) at level t, by conditioning (noise, clean) on x."""
    variance = (1 - t) ** 2 * std**2 + t**2
    return -mean + (t - (1 - t) * std**2) / variance * (x - (1 - t) * mean)


def hermite(count):
    """Nodes and weights of the standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.tensor(nodes, dtype=F64), torch.tensor(weights / math.sqrt(2 * math.pi), dtype=F64)


def legendre(count):
    """Nodes and weights of the uniform distribution on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.tensor((nodes + 1) / 2, dtype=F64), torch.tensor(weights / 2, dtype=F64)


class Points:
    """Every clean sample at every level with every noise, as rows ``[samples * levels * noises, 1]``."""

    def __init__(self, clean, levels, noises):
        (t, w_t), (e, w_e) = levels, noises
        grid = torch.cartesian_prod(torch.arange(len(clean)), torch.arange(len(t)), torch.arange(len(e)))
        self.sample = grid[:, 0]
        self.sigma = t[grid[:, 1]]
        self.weight = w_t[grid[:, 1]] * w_e[grid[:, 2]]
        self.clean, self.noise = clean[grid[:, 0]][:, None], e[grid[:, 2]][:, None]
        self.noisy = add_noise(self.clean, self.noise, self.sigma)
        self.target = velocity_target(self.clean, self.noise)

    def velocity(self, mean, std):
        """Rows of the exact velocity; parameters are numbers or one per row."""
        mean, std = (torch.as_tensor(p, dtype=F64) for p in (mean, std))
        mean, std = (p[:, None] if p.ndim else p for p in (mean, std))
        return velocity(self.noisy, self.sigma[:, None], mean, std)

    def average(self, rows, samples):
        """Weighted sum of rows over levels and noises, per clean sample."""
        return torch.zeros(samples, dtype=F64).index_add(0, self.sample, self.weight * rows)


def log_density(x, mean, std):
    """Logarithm of N(mean, std^2) at x."""
    return torch.distributions.Normal(mean, std).log_prob(x)
