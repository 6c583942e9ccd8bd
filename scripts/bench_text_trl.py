"""What the rows of ``bench_text.py`` are compared with: TRL's losses, by TRL's own code, and torch's cross-entropy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from bench_text_rows import Inputs


def cross_entropy(inputs: Inputs) -> Tensor:
    """Torch's cross-entropy on all logits: what TRL's SFT was before it fused the output layer."""
    return F.cross_entropy(inputs.logits.flatten(0, 1), inputs.ids.flatten())


def cross_entropy_of_product(inputs: Inputs) -> Tensor:
    """The same behind a plain output layer."""
    return F.cross_entropy((inputs.hidden @ inputs.weight.T).flatten(0, 1), inputs.ids.flatten())


def trl_from_logits(weight: Literal["none", "probability"]) -> Callable[[Inputs], Tensor]:
    """TRL's ``selective_log_softmax`` under its SFT or DFT loss."""

    def loss(inputs: Inputs) -> Tensor:
        from trl.trainer.utils import selective_log_softmax

        log_prob = selective_log_softmax(inputs.logits, inputs.ids)
        return weighted(log_prob, weight)

    return loss


def trl_fused(
    weight: Literal["none", "probability"], extras: tuple[str, ...] = ("entropy", "is_top1")
) -> Callable[[Inputs], Tensor]:
    """TRL's fused output layer; ``extras`` are what its SFT trainer has it compute for the log.

    Without Triton, as on a CPU, TRL runs it in plain torch operations on tiles of 4096 tokens by 32768 logits.
    """

    def loss(inputs: Inputs) -> Tensor:
        from trl.kernels import ChunkedLogProbFunction

        hidden = inputs.hidden.flatten(0, 1)
        log_prob, *_ = ChunkedLogProbFunction.apply(
            hidden, inputs.weight, None, inputs.ids.flatten(), 1.0, 32768, None, 1.0, extras
        )
        return weighted(log_prob, weight)

    return loss


def trl_grpo(source: Literal["logits", "hidden"], extras: tuple[str, ...] = ()) -> Callable[[Inputs], Tensor]:
    """TRL's GRPO loss, by the code of its trainer; from hidden states it has its fused layer give ``extras``."""

    def loss(inputs: Inputs) -> Tensor:
        from trl.trainer.grpo_trainer import GRPOTrainer

        empty = inputs.ids[:, :0]
        given = {
            "prompt_ids": empty,
            "prompt_mask": empty,
            "completion_ids": inputs.ids,
            "completion_mask": inputs.mask,
            "advantages": inputs.advantage,
            "old_per_token_logps": inputs.old,
        }
        return GRPOTrainer._compute_loss(trl_trainer(inputs, source, extras), None, given)  # type: ignore[arg-type]

    return loss


def trl_trainer(inputs: Inputs, source: str, extras: tuple[str, ...]) -> Any:
    """What TRL's GRPO loss reads of its trainer, with a model that is nothing but its last layer."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import selective_log_softmax

    def log_probs(*_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        if source == "logits":
            return selective_log_softmax(inputs.logits, inputs.ids), inputs.mask, None
        log_prob, entropy = ChunkedLogProbFunction.apply(
            inputs.hidden.flatten(0, 1),
            inputs.weight,
            None,
            inputs.ids.flatten(),
            1.0,
            32768,
            None,
            1.0,
            extras,
        )[:2]
        entropy = inputs.mask if entropy is None else entropy.view_as(inputs.mask)
        return log_prob.view_as(inputs.mask), entropy, None

    return SimpleNamespace(
        _get_per_token_logps_and_entropies=log_probs,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=0.0,
        loss_type="grpo",
        epsilon_low=0.2,
        epsilon_high=0.2,
        args=SimpleNamespace(delta=None),
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(reduce=lambda x, reduction: x, gather=lambda x: x),
        _metrics={"train": defaultdict(list)},
    )


def trl_divergence(inputs: Inputs) -> Tensor:
    """TRL's distillation trainer: forward KL from hidden states of both."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    anchor = inputs.anchor_hidden
    assert anchor is not None
    return _chunked_divergence_loss(
        inputs.hidden, anchor, inputs.weight, inputs.weight.detach(), inputs.mask, 0.0
    )[0]


def weighted(log_prob: Tensor, weight: str) -> Tensor:
    """TRL's two SFT losses."""
    loss = -log_prob if weight == "none" else -log_prob * log_prob.exp().detach()
    return loss.sum() / loss.numel()
