"""Part 1 of meta_distillation.py: the statements on the probability simplex, in double precision, for one seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from imgrl.anchor import categorical_kl
from imgrl.objectives.text import meta_target

TRIALS, OUTCOMES, STEPS = 4000, 8, 30
STRENGTHS = (0.0, 0.1, 0.3, 0.5)


def points(generator: torch.Generator, count: int) -> Tensor:
    """Log-probabilities [count, OUTCOMES], from nearly even to nearly at a corner."""
    scale = 0.2 + 3 * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, OUTCOMES, generator=generator, dtype=torch.float64)
    return (scale * noise).log_softmax(-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities."""
    return categorical_kl(q, p, direction="forward")


def ratios(generator: torch.Generator) -> dict[str, Any]:
    """Facts 1, 2 and 8: KL after one application over (1 - strength) times the KL before, both directions."""
    q, older, p = (points(generator, TRIALS) for _ in range(3))
    out: dict[str, Any] = {}
    for strength in (0.1, 0.3, 0.5, 0.8):
        for operator in ("arithmetic", "geometric"):
            m = meta_target(q, base=p, strength=strength, operator=operator)
            forward = kl(p, m) / ((1 - strength) * kl(p, q))
            reverse = kl(m, p) / ((1 - strength) * kl(q, p))
            out[f"{operator}/{strength}"] = {
                "forward_worst": forward.max().item(),
                "reverse_worst": reverse.max().item(),
                "reverse_violations": (reverse > 1 + 1e-9).double().mean().item(),
            }
        m = meta_target(q, older, base=p, strength=strength, operator="history")
        window = torch.maximum(kl(p, q), kl(p, older))
        out[f"history/{strength}"] = {"forward_worst": (kl(p, m) / ((1 - strength) * window)).max().item()}
    return out


def recursion(generator: torch.Generator, *, strength: float = 0.3, error: float = 0.02) -> dict[str, Any]:
    """Facts 3, 4 and 5: distance over generations, its closed form, its rate near the base, and with errors."""
    start, p = points(generator, 200), points(generator, 200)
    out: dict[str, Any] = {}
    for operator in ("arithmetic", "geometric"):
        q, curve, worst = start, [], 0.0
        for t in range(1, STEPS + 1):
            q = meta_target(q, base=p, strength=strength, operator=operator)
            at_once = meta_target(start, base=p, strength=1 - (1 - strength) ** t, operator=operator)
            worst = max(worst, (q.exp() - at_once.exp()).abs().max().item())
            curve.append((kl(p, q) / kl(p, start)).max().item())
        near = meta_target((p + 1e-3 * start).log_softmax(-1), base=p, strength=strength, operator=operator)
        rate = kl(p, near) / kl(p, (p + 1e-3 * start).log_softmax(-1))
        out[operator] = {"closed_form_error": worst, "curve": curve, "rate_near_base": rate.mean().item()}
    still = meta_target(start, base=p, strength=0.0)
    out["moved_without_anchor"] = (still.exp() - start.exp()).abs().max().item()
    q, distance = start.exp(), []
    for _ in range(STEPS):
        m = meta_target(q.log(), base=p, strength=strength).exp()
        away = points(generator, 200).exp() - m
        total = away.abs().sum(-1, keepdim=True) / 2
        q = m + away * (error / total).clamp(max=1)
        distance.append((q - p.exp()).abs().sum(-1).div(2).mean().item())
    return out | {"error_floor": distance[-1], "error_curve": distance, "error_bound": error / strength}


def sampling(generator: torch.Generator, *, n: int = 20, chains: int = 2000) -> dict[str, list[float]]:
    """Fact 6: diversity 1 - sum q^2, over its start, when every generation is n samples of the last target."""
    p = points(generator, 1)
    out = {}
    for strength in STRENGTHS:
        q, mixed = p.exp().expand(chains, -1), []
        for _ in range(STEPS):
            m = meta_target(q.clamp_min(1e-300).log(), base=p.expand(chains, -1), strength=strength).exp()
            draws = torch.multinomial(m, n, replacement=True, generator=generator)
            q = torch.nn.functional.one_hot(draws, OUTCOMES).double().mean(1)
            mixed.append(((1 - q.square().sum(-1)).mean() / (1 - p.exp().square().sum())).item())
        out[str(strength)] = mixed
    return out


def small_student(generator: torch.Generator, *, strength: float = 0.3) -> dict[str, float]:
    """Fact 7: a log-linear student of two parameters: its irreducible error, and how the excess contracts."""
    worst, floors = 0.0, []
    for _ in range(40):
        features = torch.randn(OUTCOMES, 2, generator=generator, dtype=torch.float64)
        p, begin = points(generator, 2)
        best, q = project(p.exp(), features), project(begin.exp(), features)
        for _ in range(5):
            before = kl(p, q) - kl(p, best)
            q = project(meta_target(q, base=p, strength=strength).exp(), features)
            if before > 1e-6:
                worst = max(worst, ((kl(p, q) - kl(p, best)) / ((1 - strength) * before)).item())
        floors.append(kl(p, best).item())
    return {"irreducible": float(np.mean(floors)), "excess_ratio_worst": worst}


def project(target: Tensor, features: Tensor) -> Tensor:
    """Log-probabilities of the member of the log-linear family nearest to ``target`` in KL(target || .)."""
    theta = torch.zeros(features.shape[1], dtype=torch.float64)
    for _ in range(100):
        q = (features @ theta).softmax(-1)
        centred = features - q @ features
        fisher = (centred * q[:, None]).T @ centred + 1e-12 * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(fisher, (target - q) @ features)
        theta = theta + step / max(1.0, step.norm().item())
    return (features @ theta).log_softmax(-1)


def simplex(seed: int) -> dict[str, Any]:
    """All of part 1 for one seed."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "ratios": ratios(generator),
        "recursion": recursion(generator),
        "sampling": sampling(generator),
        "small_student": small_student(generator),
    }
