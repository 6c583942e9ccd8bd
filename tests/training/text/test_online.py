"""The online trainer's own part: what it knows of a whole batch before the first micro-batch, and what it skips."""

import pytest
import torch
from small_lm import built

trl = pytest.importorskip("trl")

from imgrl.anchor import Constant, Piecewise  # noqa: E402
from imgrl.objectives.text import SPINE, ReMix  # noqa: E402
from imgrl.training.text.online import OnlineTrainer  # noqa: E402


def trainer_of(objective, lm, folder, **more):
    args = trl.GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        bf16=False,
        num_generations=4,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,
        max_completion_length=8,
        temperature=0.9,
        **more,
    )

    def digits(completions, **_):
        return [float(sum(c.isdigit() for c in text)) for text in completions]

    return built(
        OnlineTrainer,
        args,
        lm,
        [{"prompt": "add 12+34:"}, {"prompt": "mod 7 3+5*4:"}],
        objective=objective,
        scale=Constant(value=1.0),
        reward_funcs=[digits],
    )


def moved(trainer):
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.sin(torch.arange(parameter.numel())).view_as(parameter))


def rollout(trainer):
    torch.manual_seed(3)
    trainer.model.train()
    return trainer._generate_and_score_completions([row for row in trainer.train_dataset for _ in range(4)])


def learnt(trainer, output, micro):
    """Loss and gradient of a batch, added up over its micro-batches."""
    from trl.trainer.utils import split_tensor_dict

    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = count = 8 // micro
    total = 0.0
    for part in split_tensor_dict(output, count):
        loss = trainer._compute_loss(trainer.model, part)
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in trainer.model.named_parameters()}


def test_spine_learns_the_same_from_every_cut_of_the_batch(lm, tmp_path):
    trainer = trainer_of(SPINE(kl_weight=3.0), lm, tmp_path)
    moved(trainer)  # away from the anchor
    output = rollout(trainer)
    whole = learnt(trainer, output, 8)
    assert float(output["tokens_per_chosen"]) > 1
    for micro in (4, 2, 1):
        loss, gradients = learnt(trainer, output, micro)
        assert loss == pytest.approx(whole[0], rel=1e-5)
        torch.testing.assert_close(gradients, whole[1], rtol=1e-4, atol=1e-6)
    found = trainer._metrics["train"]
    assert found["objective/anchor_kl"][0] > 1e-3 and 0 < found["objective/chosen"][0] < 1


def test_remix_runs_the_previous_policy_only_where_it_has_weight_and_remembers_it_all_the_same(lm, tmp_path):
    lam = Piecewise(points=((0, 1.0), (1, 0.5)))
    trainer = trainer_of(ReMix(lam=lam, passes=1, replay=0.0), lm, tmp_path)
    passes, weights = [], []
    trainer.model.register_forward_hook(lambda *_: passes.append(1))
    for step in range(2):
        weights.append(trainer.model.lm_head.weight.detach().clone())
        trainer.state.global_step = step
        output = rollout(trainer)
        passes.clear()
        learnt(trainer, output, 8)
        assert len(passes) == (2, 3)[step]  # live, base; and the previous policy
        moved(trainer)
    assert torch.equal(trainer.anchors["previous"].tensors["lm_head.weight"], weights[0])
    log = trainer._metrics["train"]
    assert len(log["objective/anchor_kl"]) == 2 and log["objective/previous_kl"][0] > 1e-3
