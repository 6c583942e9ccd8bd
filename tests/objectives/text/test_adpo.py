import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from imgrl.objectives.text import ADPO, DPO, TEXT_OBJECTIVES, TextBatch, TextObjective, plackett_luce_loss

GROUP = torch.tensor([4, 1, 4, 1, 1, 4])  # two prompts of three, interleaved


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(seed=0, n=6, t=5, **changes):
    lengths = torch.randint(1, t + 1, (n, 1), generator=torch.Generator().manual_seed(seed))
    fields = {
        "log_prob": (-draw(n, t, seed=seed).abs()).requires_grad_(),
        "mask": (torch.arange(t)[None] < lengths).double(),
        "old": -draw(n, t, seed=seed + 1000).abs(),
        "anchor": -draw(n, t, seed=seed + 2000).abs(),
        "reward": draw(n, seed=seed + 3000),
        "group": GROUP,
    }
    return TextBatch(**(fields | changes))


def scores(x, batch, norm):
    total = (x * batch.mask).sum(-1)
    return total if norm == "sum" else total / batch.mask.sum(-1)


@pytest.mark.parametrize("norm", ["sum", "mean"])
@pytest.mark.parametrize("anchor", ["old", "anchor", "uniform"])
def test_each_row_carries_its_prompts_cross_entropy_and_the_gradient_is_that_of_the_mean_over_prompts(
    anchor, norm
):
    batch = problem()
    objective = ADPO(target="reward", anchor=anchor, score_norm=norm, temperature=0.7, reward_temperature=0.4)
    loss, _ = objective.loss(batch)
    base = 0 if anchor == "uniform" else scores(getattr(batch, anchor), batch, norm)
    u = (scores(batch.log_prob, batch, norm) - base) / 0.7
    by_prompt = {}
    for prompt in (1, 4):
        rows = GROUP == prompt
        q = torch.as_tensor(softmax(batch.reward[rows].numpy() / 0.4))
        by_prompt[prompt] = -(q * u[rows].log_softmax(-1)).sum()
    torch.testing.assert_close(loss, torch.stack([by_prompt[int(g)] for g in GROUP]))
    (mine,) = torch.autograd.grad(loss.mean(), batch.log_prob, retain_graph=True)
    (theirs,) = torch.autograd.grad((by_prompt[1] + by_prompt[4]) / 2, batch.log_prob)
    torch.testing.assert_close(mine, theirs)


@given(seed=st.integers(0, 999), target=st.sampled_from(["zscore", "reward", "kde", "order"]))
@settings(deadline=None, max_examples=40)
def test_shifts_of_a_prompts_scores_and_the_order_of_rows_have_no_influence(seed, target):
    batch = problem(seed, mask=torch.ones(6, 5, dtype=torch.float64))
    objective = ADPO(target=target)
    loss = objective.loss(batch).loss
    shift = draw(9, seed=seed)[GROUP][:, None]
    shifted = objective.loss(problem(seed, mask=batch.mask, log_prob=batch.log_prob + shift)).loss
    torch.testing.assert_close(shifted, loss)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    fields = ("log_prob", "mask", "old", "reward", "group")
    moved = objective.loss(TextBatch(**{name: getattr(batch, name)[order] for name in fields})).loss
    torch.testing.assert_close(moved, loss[order])


def test_standardised_rewards_are_indifferent_to_units_and_ranks_to_an_outlier():
    batch = problem()
    scaled = problem(reward=7 * batch.reward - 3)
    torch.testing.assert_close(ADPO().loss(scaled).loss, ADPO().loss(batch).loss, atol=1e-5, rtol=1e-5)
    wild = batch.reward.clone()
    wild[wild.argmax()] = 1e6
    kde = ADPO(target="kde", reward_temperature=1.0)
    assert kde.loss(problem(reward=wild)).loss.isfinite().all()


@pytest.mark.parametrize("target", ["zscore", "reward", "kde", "order"])
def test_equal_rewards_pull_nowhere_at_the_sampling_policy(target):
    batch = problem(reward=torch.full((6,), 0.1, dtype=torch.float64))
    same = problem(reward=batch.reward, old=batch.log_prob.detach())
    loss = ADPO(target=target).loss(same).loss
    (slope,) = torch.autograd.grad(loss.sum(), same.log_prob)
    assert slope.abs().max() < 1e-15
    assert loss.isfinite().all()


def test_at_the_sampling_policy_the_step_is_reinforce_with_centred_targets():
    batch = problem()
    same = problem(old=batch.log_prob.detach())
    (slope,) = torch.autograd.grad(ADPO(target="reward").loss(same).loss.mean(), same.log_prob)
    q = torch.zeros(6, dtype=torch.float64)
    for prompt in (1, 4):
        q[GROUP == prompt] = torch.as_tensor(softmax(batch.reward[GROUP == prompt].numpy() / 0.5))
    expected = -(q - 1 / 3)[:, None] / 0.8 * batch.mask / 2  # two prompts
    torch.testing.assert_close(slope, expected)


def test_order_is_plackett_luce_with_the_options_of_the_later_code():
    batch = problem()
    options = {"top_k": 1, "label_smoothing": 0.1, "poly": 1.0}
    loss = ADPO(target="order", **options).loss(batch).loss
    u = (scores(batch.log_prob, batch, "sum") - scores(batch.old, batch, "sum")) / 0.8
    for prompt in (1, 4):
        rows = GROUP == prompt
        expected = plackett_luce_loss(u[rows][None], batch.reward[rows][None], **options)
        torch.testing.assert_close(loss[rows], expected.expand(3))


def test_two_samples_and_a_sharp_target_are_dpo():
    group = torch.tensor([0, 1, 0, 1, 2, 2])
    batch = problem(group=group)
    hard = ADPO(target="reward", anchor="anchor", temperature=10.0, reward_temperature=1e-6).loss(batch)
    dpo = DPO(beta=0.1).loss(batch)
    torch.testing.assert_close(hard.loss, dpo.loss)
    torch.testing.assert_close(hard.metrics["win_probability"], dpo.metrics["win_probability"])


@pytest.mark.parametrize("target", ["zscore", "reward", "kde", "order"])
def test_a_sample_without_a_reward_is_no_candidate(target):
    reward = draw(6, seed=5)
    reward[5] = float("nan")  # prompt 4 has the rows 0, 2 and 5
    batch = problem(reward=reward)
    objective = ADPO(target=target)
    loss, metrics = objective.loss(batch)
    fields = ("log_prob", "mask", "old", "reward", "group")
    for rows in ([0, 2], [1, 3, 4]):
        alone = TextBatch(**{name: getattr(batch, name)[rows] for name in fields})
        expected = objective.loss(alone)
        torch.testing.assert_close(loss[rows], expected.loss)
        torch.testing.assert_close(metrics["win_probability"][rows], expected.metrics["win_probability"])
    assert loss[5] == loss[0]  # so that the mean over rows is the mean over prompts
    (slope,) = torch.autograd.grad(loss.sum(), batch.log_prob)
    assert not slope[5].any() and slope[[0, 2]].any()


def test_a_prompt_with_fewer_than_two_rewards_teaches_nothing():
    reward = torch.full((6,), float("nan"), dtype=torch.float64)
    reward[[0, 1, 3]] = draw(3)
    batch = problem(reward=reward)
    loss, metrics = ADPO().loss(batch)
    assert not loss[GROUP == 4].any() and loss[GROUP == 1].all()
    assert metrics["win_probability"].shape == metrics["temperature"].shape == (3,)
    reward[3] = float("nan")
    nobody = problem(reward=reward)
    loss, metrics = ADPO().loss(nobody)
    (slope,) = torch.autograd.grad(loss.mean(), nobody.log_prob)
    assert not loss.any() and not slope.any() and not metrics["win_probability"].numel()


def test_damping_reads_raw_rewards_of_the_samples_that_have_one():
    """By hand: 0.8 (1 + H / 2 + (1 - H)(1 - R)), R the mean reward inside [0, 1]."""
    nan = float("nan")
    reward = torch.tensor([1.0, 0.5, 1.0, 0.25, nan, 0.0], dtype=torch.float64)
    batch = problem(reward=reward)
    temperature = ADPO(damping="late", vocabulary=100).loss(batch).metrics["temperature"]
    surprise = (-scores(batch.log_prob.detach(), batch, "mean") / torch.tensor(100.0).log()).clamp(0, 1)
    for rows, success in (([0, 2, 5], 2 / 3), ([1, 3], 0.375)):
        h = surprise[rows].mean()
        expected = 0.8 * (1 + 0.5 * h + (1 - h) * (1 - success))
        torch.testing.assert_close(temperature[rows], expected.expand(len(rows)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rule", ["late", "early"])
def test_damping_divides_the_step_and_is_a_constant_to_the_gradient(rule):
    batch = problem(reward=torch.tensor([0.0, 1, 1, 0, 1, 0], dtype=torch.float64))
    loss, metrics = ADPO(damping=rule, vocabulary=100).loss(batch)
    assert set(metrics["temperature"][GROUP == 1].tolist()) != set(
        metrics["temperature"][GROUP == 4].tolist()
    )
    for prompt in (1, 4):
        rows = GROUP == prompt
        tau = metrics["temperature"][rows][0].item()
        fields = ("log_prob", "mask", "old", "reward", "group")
        alone = TextBatch(**{name: getattr(batch, name)[rows] for name in fields})
        expected = ADPO(temperature=tau).loss(alone).loss
        torch.testing.assert_close(loss[rows], expected, atol=1e-6, rtol=1e-6)
        (mine,) = torch.autograd.grad(loss[rows].sum(), batch.log_prob, retain_graph=True)
        (theirs,) = torch.autograd.grad(expected.sum(), batch.log_prob, retain_graph=True)
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_metrics_by_hand():
    batch = problem()
    _, metrics = ADPO().loss(batch)
    total, mean = (
        scores(batch.log_prob, batch, "sum").detach(),
        scores(batch.log_prob, batch, "mean").detach(),
    )
    torch.testing.assert_close(metrics["score_sum"], total)
    torch.testing.assert_close(metrics["score_mean"], mean)
    ratio = total - scores(batch.old, batch, "sum")
    torch.testing.assert_close(metrics["log_ratio"], ratio)
    for prompt in (1, 4):
        rows = GROUP == prompt
        win = (ratio[rows] / 0.8).softmax(-1)[batch.reward[rows].argmax()]
        torch.testing.assert_close(metrics["win_probability"][rows], win.expand(3))
    assert not any(x.requires_grad or x.shape != (6,) for x in metrics.values())


def test_nan_outside_the_mask_has_no_influence():
    batch = problem()
    hidden = batch.mask == 0
    assert hidden.any()
    broken = {
        name: getattr(batch, name).detach().masked_fill(hidden, float("nan")) for name in ("log_prob", "old")
    }
    again = problem(old=broken["old"], log_prob=broken["log_prob"].requires_grad_())
    loss, metrics = ADPO().loss(again)
    torch.testing.assert_close(loss, ADPO().loss(batch).loss)
    (slope,) = torch.autograd.grad(loss.sum(), again.log_prob)
    assert not slope[hidden].any() and slope.isfinite().all()
    assert all(x.isfinite().all() for x in metrics.values())


def test_only_live_log_probabilities_get_a_gradient():
    batch = problem(old=(-draw(6, 5).abs()).requires_grad_(), reward=draw(6).requires_grad_())
    ADPO().loss(batch).loss.sum().backward()
    assert batch.log_prob.grad is not None and batch.old.grad is None and batch.reward.grad is None


def test_naming_it_is_enough_and_it_says_what_it_is():
    assert isinstance(ADPO(), TextObjective)
    assert TEXT_OBJECTIVES["adpo"] is ADPO
    assert ADPO().needs == {"old"} and ADPO(anchor="anchor").needs == {"anchor"}
    assert ADPO(anchor="uniform").needs == frozenset()
    assert all(isinstance(part, str) and part for part in ADPO.anchored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "best"}, "best"),
        ({"anchor": "teacher"}, "teacher"),
        ({"score_norm": "max"}, "max"),
        ({"damping": "often"}, "often"),
        ({"temperature": 0.0}, "temperature"),
        ({"reward_temperature": float("nan")}, "reward_temperature"),
        ({"damping": "late"}, "vocabulary"),
        ({"group_size": 1}, "group_size"),
        ({"passes": 0}, "passes"),
        ({"top_k": 0}, "top_k"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ADPO(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": torch.tensor([0, 0, 0, 1, 1, 2])}, "groups of 1 to 3"),
        ({"group": torch.arange(6)}, "at least two"),
        ({"group": None}, "TextBatch.group"),
        ({"reward": None}, "rewards"),
        ({"reward": torch.full((6,), float("inf"), dtype=torch.float64)}, "finite rewards"),
        ({"old": None}, "TextBatch.old"),
        (
            {"old": torch.full((6, 5), -float("inf"), dtype=torch.float64)},
            "TextBatch.old, got NaN or infinity",
        ),
    ],
)
def test_batches_it_cannot_learn_from_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ADPO().loss(problem(**change))
