"""What a list of candidates should look like: the targets with which ADPO becomes other methods (arXiv 2510.18913).

ADPO fits ``softmax((log p - log p_anchor) / temperature)`` over the candidates of a prompt to a target ``q``. A free
policy ends at ``p ~ p_anchor q^temperature``. A ``Target`` holds the three things that must go together: ``q``, the
temperature, and whether the anchor is a model or uniform. A reference belongs in ``q`` or in the anchor, never in
both: that would end at ``p_ref^(1 + temperature)`` times the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imgrl.flow.conventions import full_precision, require_same_shape
from imgrl.objectives.text.kde import kde_scores

__all__ = ["Target", "boltzmann", "zscore"]


def boltzmann(scores: Float[Tensor, " b k"], *, temperature: float) -> Float[Tensor, " b k"]:
    """``softmax(scores / temperature)`` of each list in float32 or better, without gradient."""
    if not temperature > 0:
        raise ValueError(f"Expected a target temperature > 0, got {temperature}; 0.5 is the published one.")
    return (full_precision(scores).detach() / temperature).softmax(-1)


def zscore(reward: Float[Tensor, " b k"], *, floor: float = 1e-6) -> Float[Tensor, " b k"]:
    """Rewards less their list's mean, over its population standard deviation plus ``floor``; equal rewards give 0."""
    reward = full_precision(reward).detach()
    score = (reward - reward.mean(-1, keepdim=True)) / (reward.std(-1, keepdim=True, correction=0) + floor)
    # Rounding of the mean alone could else favour one of equals.
    return torch.where((reward != reward[:, :1]).any(-1, keepdim=True), score, 0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """A target distribution over candidates, and the anchor and temperature it is meant for (the paper's table)."""

    q: Float[Tensor, " b k"]
    """Probabilities by list, without gradient."""
    temperature: float
    """Of the anchored softmax. The larger, the further from the anchor the fit may end."""
    anchored: bool
    """Whether log-probabilities are taken relative to a model, or to the uniform distribution."""

    @classmethod
    def sft(cls, gold: Int[Tensor, " b"], *, candidates: int) -> Target:
        """Cross-entropy on the gold candidate; with the vocabulary as candidates, supervised fine-tuning."""
        return cls(q=torch.eye(candidates, device=gold.device)[gold], temperature=1.0, anchored=False)

    @classmethod
    def kd(cls, teacher_logits: Float[Tensor, " b k"], *, temperature: float = 1.0) -> Target:
        """Distillation at a temperature (Hinton et al. 2015), without the customary factor ``temperature^2``."""
        return cls(
            q=boltzmann(teacher_logits, temperature=temperature), temperature=temperature, anchored=False
        )

    @classmethod
    def max_ent(cls, value: Float[Tensor, " b k"], *, alpha: float = 1.0) -> Target:
        """The optimum of ``E[value] + alpha entropy``."""
        return cls(q=boltzmann(value, temperature=alpha), temperature=1.0, anchored=False)

    @classmethod
    def dpo(cls, pairs: int, *, beta: float = 0.1, label_smoothing: float = 0.0) -> Target:
        """DPO on lists of two, the preferred one first; cDPO if ``label_smoothing`` of the labels are thought wrong."""
        return cls.soft_dpo(torch.full((pairs,), 1.0 - label_smoothing), beta=beta)

    @classmethod
    def soft_dpo(cls, preference: Float[Tensor, " b"], *, beta: float = 0.1) -> Target:
        """DPO with the probability that the first of two is the better."""
        if not beta > 0:
            raise ValueError(f"Expected beta > 0, got {beta}; 0.1 is usual.")
        preference = full_precision(preference).detach()
        return cls(q=torch.stack([preference, 1 - preference], -1), temperature=1 / beta, anchored=True)

    @classmethod
    def online(
        cls, reward: Float[Tensor, " b k"], *, reward_temperature: float = 0.5, temperature: float = 0.8
    ) -> Target:
        """ADPO on own samples: the softmax of rewards standardised in their list, anchored to the sampling policy."""
        q = boltzmann(zscore(reward), temperature=reward_temperature)
        return cls(q=q, temperature=temperature, anchored=True)

    @classmethod
    def rl_optimum(
        cls, reward: Float[Tensor, " b k"], *, beta: float, reward_temperature: float = 0.5
    ) -> Target:
        """The optimum of ``E[reward] - beta KL(p || p_ref)``, which is ``p_ref exp(reward / beta)``.

        The reference is the anchor and is not in ``q``; ``reward_temperature`` decides how far apart the targets are,
        not where the fit ends.
        """
        if not beta > 0:
            raise ValueError(f"Expected beta > 0, got {beta}; it is the price of a nat of KL in reward.")
        q = boltzmann(reward, temperature=reward_temperature)
        return cls(q=q, temperature=reward_temperature / beta, anchored=True)

    @classmethod
    def m_projection(
        cls, reward: Float[Tensor, " b k"], reference: Float[Tensor, " b k"], *, beta: float
    ) -> Target:
        """MPO's projection of ``p_ref exp(reward / beta)``: the same optimum, with the reference in ``q`` only.

        ``reference`` are log-probabilities of the candidates.
        """
        require_same_shape(reward=reward, reference=reference)
        q = boltzmann(full_precision(reference) + full_precision(reward) / beta, temperature=1.0)
        return cls(q=q, temperature=1.0, anchored=False)

    @classmethod
    def kde(
        cls,
        reward: Float[Tensor, " b k"],
        *,
        reward_temperature: float = 0.5,
        temperature: float = 0.8,
        bandwidth: float | None = None,
    ) -> Target:
        """Rewards by smoothed rank, for heavy-tailed noise. A reconstruction; see ``kde_scores``."""
        q = boltzmann(kde_scores(reward, bandwidth=bandwidth), temperature=reward_temperature)
        return cls(q=q, temperature=temperature, anchored=True)

    def __post_init__(self) -> None:
        """Refuse what is no distribution and a temperature that is not positive."""
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"Expected a finite temperature > 0, got {self.temperature}; 1 / beta in terms of DPO."
            )
        if not bool((self.q >= 0).all()) or not torch.allclose(
            self.q.sum(-1), self.q.new_ones(()), atol=1e-4
        ):
            raise ValueError(
                "Expected target probabilities >= 0 that sum to 1 in each list, got others; "
                "check the rewards for NaN and preferences for lying in [0, 1]."
            )
