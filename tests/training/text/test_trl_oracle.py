"""Our losses through TRL's trainers against TRL's own, on the same batches."""

import inspect
from typing import get_args

import pytest
import torch
from small_lm import built

trl = pytest.importorskip("trl")

from imgrl.anchor import Constant, Frozen  # noqa: E402
from imgrl.objectives.text import DFT, DPO, GRPO, SFT  # noqa: E402
from imgrl.training.text.anchored import AnchorFiles  # noqa: E402
from imgrl.training.text.online import OnlineTrainer  # noqa: E402
from imgrl.training.text.preference import PreferenceTrainer  # noqa: E402
from imgrl.training.text.supervised import SupervisedTrainer  # noqa: E402

OURS = {
    trl.GRPOTrainer: OnlineTrainer,
    trl.DPOTrainer: PreferenceTrainer,
    trl.SFTTrainer: SupervisedTrainer,
}
ROWS = [
    {"prompt": "add 12+34:", "completion": "2+4+0=6; 1+3+0=4; answer 46"},
    {"prompt": "mod 7 3+5*4:", "completion": "3+5=1; answer 4"},
]


@pytest.mark.parametrize(("objective", "loss_type"), [(SFT(), "nll"), (DFT(), "dft")], ids=["sft", "dft"])
@pytest.mark.parametrize("total", [None, 50], ids=["own tokens", "global tokens"])
def test_supervised_losses_are_trls(objective, loss_type, total, lm, tmp_path):
    def args(**more):
        return trl.SFTConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            completion_only_loss=True,
            report_to=[],
            bf16=False,
            **more,
        )

    theirs = built(trl.SFTTrainer, args(loss_type=loss_type), lm, ROWS)
    ours = built(
        SupervisedTrainer, args(), lm, ROWS, objective=objective, scale=Constant(value=1.0), rule=Frozen()
    )
    losses, gradients = [], []
    for trainer in (theirs, ours):
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer.compute_loss(
            trainer.model, dict(batch), num_items_in_batch=total and torch.tensor(total)
        )
        loss.backward()
        losses.append(loss.detach())
        gradients.append({n: p.grad for n, p in trainer.model.named_parameters()})
    torch.testing.assert_close(losses[1], losses[0])
    for name in gradients[0]:
        torch.testing.assert_close(gradients[1][name], gradients[0][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("lengths", [(6, 3, 1, 4), (6, 3, 0, 4)], ids=["all speak", "one is masked"])
@pytest.mark.parametrize(("reduction", "loss_type"), [("sequence_mean", "grpo"), ("token", "dapo")])
def test_the_online_loss_is_trls(reduction, loss_type, lengths, lm, tmp_path):
    args = trl.GRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        bf16=False,
        loss_type=loss_type,
        beta=0.0,
        epsilon=0.2,
        num_generations=2,
        per_device_train_batch_size=4,
        max_completion_length=6,
    )
    data = [{"prompt": row["prompt"]} for row in ROWS]
    reward = {"reward_funcs": [lambda completions, **_: [float(len(text)) for text in completions]]}
    theirs = built(trl.GRPOTrainer, args, lm, data, **reward)
    ours = built(
        OnlineTrainer,
        args,
        lm,
        data,
        objective=GRPO(reduction=reduction),
        scale=Constant(value=1.0),
        rule=Frozen(),
        **reward,
    )
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "prompt_ids": torch.randint(3, 40, (4, 5), generator=generator),
        "prompt_mask": torch.ones(4, 5, dtype=torch.long),
        "completion_ids": torch.randint(3, 40, (4, 6), generator=generator),
        "completion_mask": (torch.arange(6) < torch.tensor(lengths)[:, None]).long(),
        "advantages": torch.tensor([1.0, -1.0, 0.5, -0.5]),
        "num_items_in_batch": torch.tensor(sum(lengths)),
    }
    old = torch.randn(4, 6, generator=generator) * 0.3 - 3.5
    losses, gradients = [], []
    for trainer, key in ((theirs, "old_per_token_logps"), (ours, "old")):
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer._compute_loss(trainer.model, {**inputs, key: old})
        loss.backward()
        losses.append(loss.detach())
        gradients.append({n: p.grad for n, p in trainer.model.named_parameters()})
    torch.testing.assert_close(losses[1], losses[0])
    for name in gradients[0]:
        torch.testing.assert_close(gradients[1][name], gradients[0][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("count", "objective", "settings"),
    [
        (2, DPO(beta=0.3), {"loss_type": "sigmoid"}),
        # With one pair in the batch aot_unpaired sorts nothing and is cDPO, which TRL has under no name of its own.
        (1, DPO(beta=0.3, label_smoothing=0.1), {"loss_type": "aot_unpaired", "label_smoothing": 0.1}),
    ],
    ids=["dpo", "cdpo"],
)
def test_the_preference_loss_is_trls(count, objective, settings, lm, tmp_path):
    args = trl.DPOConfig(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], bf16=False, beta=0.3, **settings
    )
    data = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "answer 9"} for r in ROWS]
    theirs = built(trl.DPOTrainer, args, lm, data)
    ours = built(
        PreferenceTrainer, args, lm, data, objective=objective, scale=Constant(value=1.0), rule=Frozen()
    )
    losses = []
    for trainer in (theirs, ours):
        trainer.model.train()
        with torch.no_grad():  # away from the reference, where every pair would give log 2
            for parameter in trainer.model.parameters():
                parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel())).view_as(parameter))
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(count)])
        losses.append(trainer.compute_loss(trainer.model, dict(batch)).detach())
    assert abs(losses[0] - 0.693) > 0.01
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-6)


def test_what_we_override_in_trl_still_exists_with_the_arguments_we_know():
    """An upgrade of TRL that moves one of these must fail here, not in a run."""
    every = {
        "_save_checkpoint": ["self", "model", "trial"],
        "_load_optimizer_and_scheduler": ["self", "checkpoint"],
        "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
        "_get_output_dir": ["self", "trial"],
        "create_optimizer": ["self", "model"],
        "create_scheduler": ["self", "num_training_steps", "optimizer"],
        "save_model": ["self", "output_dir", "_internal_call"],
        "_get_grad_norm": ["self", "model", "grad_norm"],
    }
    loss = ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]
    known = {(kind, name): arguments for kind in OURS for name, arguments in every.items()} | {
        (trl.GRPOTrainer, "_calculate_rewards"): [
            "self",
            "inputs",
            "prompts",
            "completions",
            "completion_ids_list",
        ],
        (trl.GRPOTrainer, "_generate_and_score_completions"): ["self", "inputs"],
        (trl.GRPOTrainer, "_prepare_inputs"): ["self", "generation_batch"],
        (trl.GRPOTrainer, "_compute_loss"): ["self", "model", "inputs"],
        (trl.SFTTrainer, "compute_loss"): loss,
        (trl.DPOTrainer, "compute_loss"): loss,
    }
    for (kind, name), arguments in known.items():
        assert list(inspect.signature(getattr(kind, name)).parameters) == arguments, f"{kind.__name__}.{name}"
    for kind in OURS.values():
        assert kind.__mro__[1] is AnchorFiles  # ours before TRL's, or anchors would not be saved


def test_what_we_read_and_replace_inside_trls_rollouts_is_still_there(lm, tmp_path):
    """The counters that SPINE's second pass reads, and the scores of TRL's own that nothing here needs: a triple."""
    args = trl.GRPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], bf16=False, num_generations=2)
    reward = {"reward_funcs": [lambda completions, **_: [0.0] * len(completions)]}
    theirs = built(trl.GRPOTrainer, args, lm, [{"prompt": row["prompt"]} for row in ROWS], **reward)
    assert (theirs._step, theirs._buffered_inputs) == (0, None)
    scores = inspect.signature(trl.GRPOTrainer._get_per_token_logps_and_entropies)
    known = ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]
    assert list(scores.parameters)[:5] == known and len(get_args(scores.return_annotation)) == 3
    body = inspect.getsource(trl.GRPOTrainer._prepare_inputs)
    assert "self._step" in body and "self._buffered_inputs" in body
