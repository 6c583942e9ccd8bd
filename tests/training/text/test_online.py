"""The online trainer's own part: what it knows of a whole batch before the first micro-batch, and what it skips."""

import pytest
import torch
from small_lm import built

trl = pytest.importorskip("trl")

from transformers import TrainerCallback  # noqa: E402

from imgrl.anchor import Constant, Frozen, Piecewise  # noqa: E402
from imgrl.errors import RewardError  # noqa: E402
from imgrl.objectives.text import ADPO, GRPO, SPINE, TRRD, TTRL, ReMix  # noqa: E402
from imgrl.rewards.base import Reward  # noqa: E402
from imgrl.rewards.calling import Patience  # noqa: E402
from imgrl.training.text.copies import WeightCopy  # noqa: E402
from imgrl.training.text.online import OnlineTrainer  # noqa: E402
from imgrl.training.text.rewarding import TextReward  # noqa: E402


def digits(completions, **_):
    return [float(sum(c.isdigit() for c in text)) for text in completions]


def trainer_of(objective, lm, folder, *, rewards=(digits,), micro=8, group_size=None, **more):
    args = trl.GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        bf16=False,
        num_generations=4,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=8 // micro,
        max_completion_length=8,
        temperature=0.9,
        **more,
    )
    return built(
        OnlineTrainer,
        args,
        lm,
        [{"prompt": "add 12+34:"}, {"prompt": "mod 7 3+5*4:"}],
        objective=objective,
        scale=Constant(value=1.0),
        rule=Frozen(),
        reward_funcs=list(rewards),
        group_size=group_size,
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


def renewing(lm, folder):
    """A trainer of eight updates, two on each rollout, that renews the base before the third; and its policies."""
    trainer = trainer_of(
        ReMix(reincarnate_at=2, passes=2, replay=1.0, lam=Constant(value=1.0)),
        lm,
        folder,
        num_iterations=2,
        max_steps=8,
        learning_rate=3e-2,
        logging_steps=1,
        save_steps=4,
    )
    policies = [WeightCopy(trainer.model).tensors]

    class Keep(TrainerCallback):
        def on_step_end(self, *_, **__):
            policies.append(WeightCopy(trainer.model).tensors)

    trainer.add_callback(Keep())
    return trainer, policies


def same(tensors, others):
    return tensors.keys() == others.keys() and all(
        torch.equal(tensors[name], others[name]) for name in tensors
    )


@pytest.mark.parametrize("objective", [GRPO(), ReMix()], ids=["grpo", "remix"])
def test_a_rollout_moves_on_what_a_checkpoint_keeps_until_its_step_is_taken(objective, lm, tmp_path):
    """Then no checkpoint of the step before can be written; GRPO keeps nothing but weights."""
    trainer = trainer_of(objective, lm, tmp_path)
    assert not trainer.has_moved_on()
    rollout(trainer)
    assert trainer.has_moved_on() == isinstance(objective, ReMix)
    trainer.state.global_step += 1
    assert not trainer.has_moved_on()

    def gone(completions, **_):
        raise RewardError("the judge is gone")

    trainer.reward_funcs[0] = gone
    with pytest.raises(RewardError):
        rollout(trainer)
    assert not trainer.has_moved_on()


def test_reincarnation_makes_the_policy_of_its_rollout_the_base_and_ends_the_replay(lm, tmp_path):
    """Once, and the base pulls nowhere just then."""
    trainer, policies = renewing(lm, tmp_path)
    trainer.train()
    assert same(trainer.anchors["base"].tensors, policies[4]) and not same(policies[4], policies[0])
    pulls = [row["objective/anchor_kl"] for row in trainer.state.log_history if "objective/anchor_kl" in row]
    assert [kl < 1e-6 for kl in pulls] == [step in (0, 4) for step in range(8)]
    assert max(pulls[1:4]) > 1e-2
    # Nothing is in store at first; one of two groups is then the most that may be old.
    replayed = [r["objective/replayed"] for r in trainer.state.log_history if "objective/replayed" in r]
    assert replayed == [0.0, 0.5, 0.0, 0.0]


def test_a_run_resumed_where_the_base_is_renewed_has_the_new_base(lm, tmp_path):
    trainer, policies = renewing(lm, tmp_path)
    trainer.train()
    again, _ = renewing(lm, tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(again.anchors["base"].tensors, policies[4])


def test_completions_that_only_vote_are_judged_and_not_trained_on(lm, tmp_path):
    """Two of each four are compared: advantages are from their own mean, by hand."""
    scores = [1.0, 0.0, 0.0, 1.0, 0.25, 0.75, 9.0, -9.0]
    trainer = trainer_of(GRPO(kl_weight=0.1), lm, tmp_path, rewards=[given(*scores)], group_size=2)
    output = rollout(trainer)
    assert output["group"].tolist() == [0, 0, 1, 1] and output["completion_mask"][:, -1].any()
    assert output["reward"].tolist() == [1.0, 0.0, 0.25, 0.75]
    expected = [
        x / (std + 1e-4)
        for x, std in ((0.5, 0.5**0.5), (-0.5, 0.5**0.5), (-0.25, 0.125**0.5), (0.25, 0.125**0.5))
    ]
    assert output["advantages"].tolist() == pytest.approx(expected)
    rows = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "old")
    assert all(len(output[name]) == 4 for name in rows)
    assert int(output["num_items_in_batch"]) == int(output["completion_mask"].sum())
    every = rollout(trainer_of(GRPO(kl_weight=0.1), lm, tmp_path, rewards=[given(*scores)]))
    width = output["completion_ids"].shape[1]
    assert torch.equal(output["completion_ids"], every["completion_ids"][[0, 1, 4, 5], :width])
    trainer.current_gradient_accumulation_steps = 1
    assert torch.isfinite(trainer._compute_loss(trainer.model, output))


def given(*scores):
    """A reward that says these, whatever it is asked."""
    return lambda completions, **_: list(scores)


def test_adpo_learns_from_raw_rewards_and_leaves_out_what_was_not_scored(lm, tmp_path):
    """The loss by hand from the rollout's tokens: means over prompts of cross-entropies to softmax(reward / 0.5)."""
    raw = [3.0, 1.0, None, 1.5, 0.2, 0.1, 0.4, None]
    objective = ADPO(target="reward", passes=2)
    trainer = trainer_of(objective, lm, tmp_path, rewards=[given(*raw)])
    output = rollout(trainer)
    assert [None if x != x else x for x in output["reward"].tolist()] == [x and pytest.approx(x) for x in raw]
    moved(trainer)
    loss, gradients = learnt(trainer, output, 8)
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    seen = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    logits = trainer.model(input_ids=ids, attention_mask=seen).logits[
        :, output["prompt_ids"].shape[1] - 1 : -1
    ]
    live = (logits / 0.9).log_softmax(-1).gather(-1, output["completion_ids"][..., None])[..., 0]
    ratio = ((live - output["old"]) * output["completion_mask"]).sum(-1) / 0.8
    by_hand = 0.0
    for rows in ([0, 1, 3], [4, 5, 6]):
        q = (torch.tensor([raw[i] for i in rows]) / 0.5).softmax(-1)
        by_hand = by_hand - (q * ratio[rows].log_softmax(-1)).sum() / 2
    assert loss == pytest.approx(float(by_hand.detach()), rel=1e-4)
    slopes = torch.autograd.grad(by_hand, list(trainer.model.parameters()))
    for mine, theirs in zip(gradients.values(), slopes, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("objective", "scale", "correction", "eps"),
    [
        (TRRD(alpha=1.0), "group", 0, 1e-6),
        (TTRL(kl_weight=0.0), "group", 0, 1e-6),
        (SPINE(kl_weight=0.0), "group", 0, 1e-6),
        (GRPO(), "group", 1, 1e-4),
        (TTRL(kl_weight=0.0), "none", None, None),
    ],
    ids=["trrd", "ttrl", "spine", "grpo", "unscaled"],
)
def test_advantages_are_divided_by_the_deviation_that_the_objective_asks_for(
    objective, scale, correction, eps, lm, tmp_path
):
    """By hand; one completion has no reward, and so no part in its group's mean."""
    scores = [1.0, 0.0, 0.5, None, 2.0, 0.0, 0.0, 1.0]
    trainer = trainer_of(objective, lm, tmp_path, rewards=[given(*scores)], scale_rewards=scale)
    expected = []
    for own in ([1.0, 0.0, 0.5], [2.0, 0.0, 0.0, 1.0]):
        own = torch.tensor(own)
        divisor = 1.0 if correction is None else own.std(correction=correction) + eps
        expected += ((own - own.mean()) / divisor).tolist()
    expected.insert(3, 0.0)
    torch.testing.assert_close(rollout(trainer)["advantages"], torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_of_two_rewards_none_is_never_zero(lm, tmp_path):
    """Weights 1 and 2. The second says nothing of one completion of the first prompt, and nothing of the second's."""
    first = [1.0, 2.0, 3.0, 5.0, 4.0, 3.0, 2.0, 0.0]
    second = [10.0, None, 20.0, 20.0, None, None, None, None]
    trainer = trainer_of(
        GRPO(), lm, tmp_path, rewards=[given(*first), given(*second)], reward_weights=[1.0, 2.0]
    )
    output = rollout(trainer)
    totals = [[21.0, 43.0, 45.0], [4.0, 3.0, 2.0, 0.0]]
    expected = []
    for own in map(torch.tensor, totals):
        expected += ((own - own.mean()) / (own.std() + 1e-4)).tolist()
    expected.insert(1, 0.0)  # masked: TRL's sum would have made it 2, far below its group
    torch.testing.assert_close(output["advantages"], torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert output["reward"].isnan().tolist() == [False, True] + [False] * 6
    log = trainer._metrics["train"]
    assert log["reward"] == [pytest.approx(sum(map(sum, totals)) / 7)]


def test_a_completion_on_which_one_of_two_rewards_failed_is_masked(lm, tmp_path):
    class Sour:
        groupwise = True
        calls = 0

        def __call__(self, completions, prompts):
            Sour.calls += 1
            if Sour.calls == 2:
                raise OSError("sour")
            return [1.0] * len(completions)

    own = Reward("sour", Sour(), patience=Patience(retries=0))
    sour = TextReward(own, budget=0.5, columns=(), group_size=4)
    trainer = trainer_of(GRPO(), lm, tmp_path, rewards=[given(*range(8)), sour])
    output = rollout(trainer)
    assert output["advantages"][:4].all() and not output["advantages"][4:].any()
    assert output["reward"].isnan().tolist() == [False] * 4 + [True] * 4


def test_the_failure_budget_counts_what_all_processes_gather(lm, tmp_path, monkeypatch):
    """Half of this process's completions fail, above 0.3; with those of another one, where all is well, a quarter."""

    def sour(completions, prompts):
        if prompts[0] == "add 12+34:":
            raise OSError("sour")
        return [1.0] * len(completions)

    sour.groupwise = True
    own = Reward("sour", sour, patience=Patience(retries=0))
    reward = TextReward(own, budget=0.3, columns=(), group_size=4)
    trainer = trainer_of(GRPO(), lm, tmp_path, rewards=[reward])
    with pytest.raises(RewardError, match="failed on 4 of 8 completions of a step"):
        rollout(trainer)
    scores = torch.tensor([[float("nan")]] * 4 + [[1.0]] * 4)
    monkeypatch.setattr(
        trl.GRPOTrainer, "_calculate_rewards", lambda *_: torch.cat([scores, torch.ones(8, 1)])
    )
    monkeypatch.setattr(
        trainer.accelerator, "gather", lambda flags: torch.cat([flags, torch.zeros_like(flags)])
    )
    prompts = [row["prompt"] for row in trainer.train_dataset for _ in range(4)]
    reward(prompts, ["x"] * 8)
    trainer._calculate_rewards([], prompts, [], [])
    assert trainer._totals.isnan().tolist() == [True] * 4 + [False] * 4


@pytest.mark.parametrize("objective", [GRPO(), TTRL(kl_weight=0.0), ADPO()], ids=lambda o: o.name)
def test_equal_rewards_teach_nothing(objective, lm, tmp_path):
    trainer = trainer_of(objective, lm, tmp_path, rewards=[given(*[0.1] * 4, 1.0, 0.0, 0.0, 0.0)])
    output = rollout(trainer)
    assert not output["advantages"][:4].any() and output["advantages"][4:].all()
    equal = {key: t if t.ndim == 0 else t[:4] for key, t in output.items()}
    for part, silent in ((equal, True), (output, False)):
        trainer.model.zero_grad()
        trainer.current_gradient_accumulation_steps = 1
        trainer._compute_loss(trainer.model, part).backward()
        largest = max(float(p.grad.abs().max()) for p in trainer.model.parameters())
        assert (largest < 1e-6) is silent


@pytest.mark.parametrize("objective", [GRPO(), ADPO(), TTRL(), SPINE()], ids=lambda o: o.name)
def test_a_micro_batch_without_a_loss_token_gives_zero_and_a_gradient(objective, lm, tmp_path):
    """DistributedDataParallel waits for every parameter on every process."""
    trainer = trainer_of(objective, lm, tmp_path)
    output = rollout(trainer)
    trainer.current_gradient_accumulation_steps = 1
    masked = output | {"completion_mask": torch.zeros_like(output["completion_mask"])}
    loss = trainer._compute_loss(trainer.model, masked)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in trainer.model.parameters())


@pytest.mark.parametrize(("kind", "micro"), [(ADPO, 8), (TTRL, 8), (SPINE, 8), (SPINE, 4)])
def test_on_the_second_pass_the_policy_has_left_the_one_that_sampled(kind, micro, lm, tmp_path, monkeypatch):
    """And SPINE's mean over chosen tokens counts those that the policy chooses then."""
    seen, real = [], kind.loss

    def spy(self, batch, **more):
        out = real(self, batch, **more)
        gap = (batch.log_prob.detach() - batch.old).abs() * batch.mask
        chosen = out.metrics.get("chosen", batch.mask)
        seen.append((float(gap.max()), batch.mask.sum(), chosen.sum(), batch.tokens_per_chosen))
        return out

    monkeypatch.setattr(kind, "loss", spy)
    trainer = trainer_of(
        kind(passes=2),
        lm,
        tmp_path,
        micro=micro,
        num_iterations=2,
        max_steps=4,
        learning_rate=3e-2,
        save_strategy="no",
    )
    trainer.train()
    per = 8 // micro
    updates = [seen[i : i + per] for i in range(0, len(seen), per)]
    assert len(updates) == 4
    for number, update in enumerate(updates):
        far = max(gap for gap, *_ in update)
        assert far > 1e-2 if number % 2 else far < 1e-5
        if kind is SPINE:
            masks, choices = (sum(part[i] for part in update) for i in (1, 2))
            for *_, ratio in update:
                torch.testing.assert_close(ratio, masks / choices)
