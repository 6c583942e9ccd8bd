import pytest
import torch
import torch.nn.functional as F

from imgrl.objectives.text import Target, adpo_loss, kde_scores, target_loss
from imgrl.objectives.text.adpo_targets import zscore


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slope(loss, x):
    return torch.autograd.grad(loss.sum(), x, retain_graph=True)[0]


def fit(target, anchor=None):
    """Where a free policy over the candidates ends."""
    logits = torch.zeros(target.q.shape, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss = target_loss(logits, target, anchor).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return logits.softmax(-1).detach()


def distribution(weights):
    return weights / weights.sum(-1, keepdim=True)


def test_sft_is_the_cross_entropy_of_the_gold_candidate():
    logits, gold = draw(3, 7).requires_grad_(), torch.tensor([2, 6, 0])
    expected = F.cross_entropy(logits, gold, reduction="none")
    double = Target(q=F.one_hot(gold, 7).double(), temperature=1.0, anchored=False)
    torch.testing.assert_close(target_loss(logits, double), expected)
    single = target_loss(logits, Target.sft(gold, candidates=7))
    torch.testing.assert_close(slope(single, logits), slope(expected, logits))


def test_distillation_has_the_gradient_of_the_kl_of_softened_distributions():
    logits, teacher = draw(3, 7).requires_grad_(), draw(3, 7, seed=1)
    target = Target.kd(teacher, temperature=2.0)
    expected = F.kl_div((logits / 2).log_softmax(-1), (teacher / 2).softmax(-1), reduction="none").sum(-1)
    torch.testing.assert_close(slope(target_loss(logits, target), logits), slope(expected, logits))


def test_maximum_entropy_rl_ends_where_value_plus_entropy_is_greatest():
    value, alpha = draw(2, 4), 0.6
    p = fit(Target.max_ent(value, alpha=alpha))

    def objective(p):
        return (p * value).sum(-1) - alpha * (p * p.log()).sum(-1)

    torch.testing.assert_close(
        objective(p), alpha * (value / alpha).logsumexp(-1)
    )  # the soft value, its maximum
    assert (objective(distribution(p * (0.01 * draw(2, 4, seed=3)).exp())) < objective(p)).all()


def test_dpos_gradient_is_its_papers():
    scores, anchor, beta = draw(3, 2).requires_grad_(), draw(3, 2, seed=1), 0.3
    implicit = beta * (scores - anchor).detach()
    weight = beta * (implicit[:, 1] - implicit[:, 0]).sigmoid()  # eq. 7 of arXiv 2305.18290
    expected = torch.stack([-weight, weight], -1)
    torch.testing.assert_close(slope(target_loss(scores, Target.dpo(3, beta=beta), anchor), scores), expected)


def test_smoothed_labels_are_the_constant_soft_ones():
    smooth, soft = Target.dpo(2, label_smoothing=0.2), Target.soft_dpo(torch.full((2,), 0.8))
    assert torch.equal(smooth.q, soft.q) and smooth.temperature == soft.temperature == 10


def test_online_targets_are_the_softmax_of_standardised_rewards_and_equal_ones_pull_nowhere():
    reward = draw(3, 8)
    r = reward.numpy()
    z = torch.as_tensor((r - r.mean(1, keepdims=True)) / r.std(1, keepdims=True))
    torch.testing.assert_close(Target.online(reward).q, (z / 0.5).softmax(-1), atol=1e-5, rtol=1e-5)
    # 0.1 is no binary fraction: the mean of eight of them may round away from it.
    alike = Target.online(torch.full((2, 8), 0.1))
    scores = draw(2, 8).float().requires_grad_()
    assert not zscore(torch.full((2, 8), 0.1)).any()
    assert not slope(target_loss(scores, alike, scores.detach()), scores).any()


@pytest.mark.parametrize("reward_temperature", [0.3, 1.0])
def test_the_kl_regularised_optimum_is_reached_whatever_the_reward_temperature(reward_temperature):
    reward, reference, beta = draw(2, 4), draw(2, 4, seed=1).log_softmax(-1), 0.8
    p = fit(Target.rl_optimum(reward, beta=beta, reward_temperature=reward_temperature), reference)
    torch.testing.assert_close(p, distribution(reference.exp() * (reward / beta).exp()), atol=1e-7, rtol=0)


def test_the_projection_without_anchor_ends_at_the_same_optimum():
    reward, reference, beta = draw(2, 4), draw(2, 4, seed=1).log_softmax(-1), 0.8
    p = fit(Target.m_projection(reward, reference, beta=beta))
    torch.testing.assert_close(p, distribution(reference.exp() * (reward / beta).exp()), atol=1e-7, rtol=0)


def test_a_reference_in_the_target_and_in_the_anchor_counts_too_often():
    reward, reference, beta, temperature = draw(2, 4), draw(2, 4, seed=1).log_softmax(-1), 0.8, 0.5
    q = Target.m_projection(reward, reference, beta=beta).q
    doubled = Target(q=q, temperature=temperature, anchored=True)
    expected = distribution(((1 + temperature) * reference + temperature * reward / beta).exp())
    torch.testing.assert_close(fit(doubled, reference), expected, atol=1e-7, rtol=0)
    once = distribution(reference.exp() * (reward / beta).exp())
    assert (expected - once).abs().max() > 0.05
    with pytest.raises(ValueError, match="uniform anchor"):  # the named constructor does not let it happen
        target_loss(reward, Target.m_projection(reward, reference, beta=beta), reference)


def test_robust_targets_are_the_softmax_of_smoothed_log_odds():
    reward = draw(2, 6)
    expected = (kde_scores(reward) / 0.5).softmax(-1)
    torch.testing.assert_close(Target.kde(reward).q, expected)
    assert Target.kde(reward).anchored


def test_targets_are_constants():
    reward = draw(2, 4).requires_grad_()
    reference = draw(2, 4).requires_grad_()
    for target in (
        Target.kd(reward),
        Target.max_ent(reward),
        Target.online(reward),
        Target.rl_optimum(reward, beta=1.0),
        Target.m_projection(reward, reference, beta=1.0),
        Target.kde(reward),
        Target.soft_dpo(reward[:, 0].sigmoid()),
    ):
        assert not target.q.requires_grad
        torch.testing.assert_close(target.q.sum(-1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Target.kd(torch.zeros(1, 2), temperature=0.0), "temperature > 0"),
        (lambda: Target.dpo(1, beta=0.0), "beta > 0"),
        (lambda: Target.rl_optimum(torch.zeros(1, 2), beta=-1.0), "beta > 0"),
        (lambda: Target.soft_dpo(torch.tensor([1.2])), "sum to 1"),
        (lambda: Target.online(torch.tensor([[float("nan"), 1.0]])), "NaN"),
        (lambda: Target(q=torch.ones(1, 2) / 2, temperature=float("inf"), anchored=False), "temperature"),
    ],
)
def test_what_is_no_target_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_table_and_the_plain_loss_are_one():
    reward, anchor, scores = draw(2, 4), draw(2, 4, seed=1), draw(2, 4, seed=2)
    target = Target.online(reward, temperature=0.7)
    plain = adpo_loss(scores, anchor, target.q, temperature=0.7)
    torch.testing.assert_close(target_loss(scores, target, anchor), plain)
