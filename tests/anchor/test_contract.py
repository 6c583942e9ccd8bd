"""What anchors and the distances to them must keep, asked once and answered in two spaces.

A softmax policy over short texts and a linear velocity network at noised points wear one face, so that what holds of
log-ratios and KLs is asked of denoising gains and velocity gaps too. Expected values are closed forms,
``torch.distributions`` or arithmetic in place.
"""

import pytest
import torch
from torch.distributions import Categorical, Normal, kl_divergence
from torch.testing import assert_close

from imgrl import anchor as core
from imgrl.flow import add_noise, sde_step, velocity_target
from imgrl.objectives.image import crd_loss
from imgrl.objectives.text import ADPO, TextBatch, adpo_loss, pairwise_loss

GROUP = torch.tensor([5, -2, 5, 5, -2, 5, -2, -2])  # two prompts of four, interleaved; numbers are names
ROWS = GROUP.argsort(stable=True).view(2, 4)
PROMPT = (GROUP == 5).long()  # a prompt's place in ROWS and in the weights
REWARD = torch.linspace(0, 1, 8, dtype=torch.float64)
ADDED = torch.where(GROUP == 5, 40.0, -3.0)


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Softmax:
    """Texts of up to three tokens out of five: a table of logits for each prompt and for none."""

    def __init__(self):
        self.no_anchor = (None, [torch.zeros(3, 3, 5, dtype=torch.float64)])  # by setting; a uniform policy
        self.tokens = torch.randint(5, (8, 3, 1), generator=torch.Generator().manual_seed(0))
        self.mask = (torch.arange(3) < torch.tensor([[3], [2], [1], [3], [2], [3], [1], [2]])).double()

    def parameters(self, seed):
        return [draw(3, 3, 5, seed=seed).requires_grad_()]

    def output(self, weights, prompt=PROMPT):
        return weights[0][prompt]

    def log_prob(self, weights):
        return self.output(weights).log_softmax(-1).gather(-1, self.tokens)[..., 0]

    def log_ratios(self, live, anchor):
        pair, levels = (self.log_prob(live), self.log_prob(anchor)), ("token", "sequence", "mean")
        ratios = (core.log_ratio(*pair, mask=self.mask, level=level) for level in levels)
        return dict(zip(("sampled", "implicit", "mean"), ratios, strict=True))

    def exact(self, live, anchor):
        pair = self.output(live), self.output(anchor)
        return {way: core.categorical_kl(*pair, direction=way) for way in ("reverse", "forward")}

    def loss(self, live, anchor):  # of means over tokens: a uniform policy's sums depend on the length
        rule = ADPO(anchor="anchor" if anchor else "uniform", target="reward", score_norm="mean")
        log_prob = {"log_prob": self.log_prob(live), "anchor": self.log_prob(anchor) if anchor else None}
        return rule.loss(TextBatch(**log_prob, mask=self.mask, reward=REWARD, group=GROUP)).loss

    def unanchored(self, live):  # cross-entropy of softmaxes, of rewards at ADPO's .5 and of scores at .8
        score = (self.log_prob(live) * self.mask).sum(-1) / self.mask.sum(-1)
        q, log_p = (REWARD[ROWS] / 0.5).softmax(-1), (score[ROWS] / 0.8).log_softmax(-1)
        return -(q * log_p).sum(-1)[PROMPT]


class Velocity:
    """``v = A x + sigma b + e[prompt]`` at noised points of three numbers, each with a random step to one sample."""

    def __init__(self):
        self.no_anchor = (None,)  # no velocity is uniform: to have no anchor is to weigh it 0
        clean, noise, self.after = draw(3, 8, 3, seed=100)
        self.sigma = torch.linspace(0.2, 0.9, 8, dtype=torch.float64)
        self.x, self.target = add_noise(clean, noise, self.sigma), velocity_target(clean, noise)

    def parameters(self, seed):
        return [(0.5 * w).requires_grad_() for w in draw(7, 3, seed=seed).split([3, 1, 3])]

    def output(self, weights, prompt=PROMPT):
        return self.x @ weights[0] + self.sigma[:, None] * weights[1] + weights[2][prompt]

    def step(self, weights):
        levels = {"sigma": self.sigma, "sigma_next": self.sigma - 0.1, "sigma_second": 0.9}
        return sde_step(self.x, self.output(weights), **levels, noise_level=0.7, sample=self.after)

    def log_ratios(self, live, anchor):
        velocities = self.output(live), self.output(anchor), self.target
        gain, adaptive = (core.denoising_gain(*velocities, adaptive=way) for way in (False, True))
        steps = [self.step(weights).log_prob[:, None] for weights in (live, anchor)]
        sampled = core.log_ratio(*steps, mask=torch.ones_like(steps[0]), level="token")
        return {"sampled": sampled, "implicit": gain, "adaptive": adaptive}

    def exact(self, live, anchor):
        step, other = self.step(live), self.step(anchor)
        transition = core.transition_gap(step.mean, other.mean, std=step.std)
        return {"velocity": core.velocity_gap(self.output(live), self.output(anchor)), "step": transition}

    def loss(self, live, anchor):  # the leash; the old copy inside CRD is there in any case
        v, v_old = self.output(live), self.output(self.parameters(9))
        leash = core.VelocityAnchor(weight=0.1 if anchor else 0.0)
        pull = leash.term(v, anchor and self.output(anchor), q=REWARD, raw=REWARD)
        return crd_loss(v, v_old, self.target, REWARD, GROUP, adaptive=False) + pull

    def unanchored(self, live):  # CRD's clip of 5; the gain is the old copy's error less ours
        old, new = ((self.output(w) - self.target).square().mean(-1) for w in (self.parameters(9), live))
        apart = old - new - REWARD
        return 5 * (apart - apart[ROWS].mean(-1)[PROMPT]).square()


SOFTMAX, VELOCITY = Softmax(), Velocity()
KEEP, FOLLOW = (core.Ema(schedule=core.Constant(value=decay)) for decay in (1.0, 0.0))
SPACES = pytest.mark.parametrize("space", [SOFTMAX, VELOCITY], ids=["softmax", "velocity"])


def divergences(space, live, anchor):
    ratio = space.log_ratios(live, anchor)["sampled"]
    return space.exact(live, anchor) | {k: core.sampled_kl(ratio, estimator=k) for k in ("k2", "k3")}


def slopes(value, weights):
    return torch.autograd.grad(value.sum(), weights, retain_graph=True, allow_unused=True)


def kl(p, q):
    return kl_divergence(Categorical(logits=p), Categorical(logits=q))


@SPACES
def test_at_the_anchor_nothing_is_apart_and_no_divergence_pulls(space):
    live, anchor = space.parameters(0), space.parameters(0)
    for value in divergences(space, live, anchor).values():
        assert_close(value, torch.zeros_like(value))
        assert_close(slopes(value, live), tuple(map(torch.zeros_like, live)), rtol=0, atol=1e-14)
    ratios = space.log_ratios(live, anchor)
    assert all((ratio.exp() == 1).all() for ratio in ratios.values())
    share = core.anchored_softmax(ratios["implicit"][ROWS], temperature=0.5).exp()
    assert_close(share, torch.full_like(share, 1 / 4))


@SPACES
def test_centring_twice_is_centring_once_and_forgets_what_the_prompt_adds(space):
    x = space.log_ratios(space.parameters(0), space.parameters(1))["implicit"]
    once = x - x[ROWS].mean(-1)[PROMPT]
    for again in (x, core.center(x, GROUP), x + ADDED):
        assert_close(core.center(again, GROUP), once)


@SPACES
def test_what_the_prompt_adds_to_ratio_or_reward_changes_no_loss(space):
    def losses(x, reward):
        kinds = ({}, {"kind": "bce"}, {"temperature": 0.4})
        matches = [core.centered_match(x, reward, GROUP, beta=0.7, **kind) for kind in kinds]
        listwise = adpo_loss(x[ROWS], None, reward[ROWS].softmax(-1), temperature=0.7)
        return [*matches, listwise, pairwise_loss(x[ROWS][:, :2], None, temperature=0.7)]

    live = space.parameters(0)
    x = space.log_ratios(live, space.parameters(1))["implicit"]
    for moved, plain in zip(losses(x + ADDED, REWARD - 2 * ADDED), losses(x, REWARD), strict=True):
        assert_close([moved, *slopes(moved, live)], [plain, *slopes(plain, live)])


@SPACES
def test_a_uniform_anchor_is_none(space):
    live = space.parameters(0)
    expected = space.unanchored(live)
    for anchor in space.no_anchor:
        loss = space.loss(live, anchor)
        assert_close([loss, *slopes(loss, live)], [expected, *slopes(expected, live)])
    assert not torch.allclose(space.loss(live, space.parameters(1)), expected, rtol=1e-3)


@SPACES
@pytest.mark.parametrize(
    ("rule", "renewed"),
    [
        (core.Frozen(), ()),
        (KEEP, ()),
        (FOLLOW, range(1, 8)),
        (core.Snapshot(every=3), (3, 6)),
        (core.Switch(phases=((0, core.Frozen()), (3, KEEP))), (3,)),
        (core.Switch(phases=((0, FOLLOW), (3, core.Snapshot(every=5)))), (1, 2, 3, 5)),
    ],
)
def test_a_copy_becomes_the_policy_when_renewed_and_else_stays_as_it_was(space, rule, renewed):
    live, way = ([w.detach() for w in space.parameters(seed)] for seed in (0, 1))
    copy = [w.clone() for w in live]
    for step in range(1, 8):
        live, before = [w + 0.1 * d for w, d in zip(live, way, strict=True)], [w.clone() for w in copy]
        core.blend(copy, live, rule.decay(step))
        expected = live if step in renewed else before
        assert all(torch.equal(*pair) for pair in zip(copy, expected, strict=True))
        apart = torch.stack([value.mean() for value in divergences(space, live, copy).values()])
        assert (apart == 0).all() if step in renewed else (apart > 0).all()


@pytest.mark.parametrize("kind", ["log", "prob"])
def test_the_mean_divergence_from_two_anchors_is_that_from_their_mixture_and_a_constant(kind):
    # Softmax alone: a mixture is one distribution over a vocabulary.
    live, one, two = (SOFTMAX.output(SOFTMAX.parameters(seed)).log_softmax(-1) for seed in range(3))
    ends = [core.Mixture(weights=weights, space=kind)(one, two) for weights in ((1.0, 0.0), (0.0, 1.0))]
    assert_close(ends, [one, two])
    mixed = core.Mixture(weights=(0.3, 0.7), space=kind)(one, two)
    assert_close(mixed.logsumexp(-1), torch.zeros(8, 3, dtype=torch.float64), rtol=0, atol=1e-14)
    if kind == "log":  # reverse KLs; the constant is what the geometric mean lacks to sum to 1
        constant = -(0.3 * one + 0.7 * two).logsumexp(-1)
        assert_close(0.3 * kl(live, one) + 0.7 * kl(live, two), kl(live, mixed) + constant)
    else:  # forward KLs; the constant is the entropy that mixing adds
        entropy, a, b = (Categorical(logits=z).entropy() for z in (mixed, one, two))
        constant = entropy - 0.3 * a - 0.7 * b
        assert_close(0.3 * kl(one, live) + 0.7 * kl(two, live), kl(mixed, live) + constant)


def test_sampled_estimators_over_every_text():
    # Softmax alone: random steps of velocities have a density, and no list of outcomes to sum over.
    live, anchor = draw(3, 5, seed=0).requires_grad_(), draw(3, 5, seed=1)
    texts = torch.cartesian_prod(*[torch.arange(5)] * 3)
    log_p, log_a = (z.log_softmax(-1)[torch.arange(3), texts] for z in (live, anchor))
    ratio, p = core.log_ratio(log_p, log_a, mask=torch.ones_like(log_p)), log_p.detach().sum(-1).exp()
    k1, k2, k3 = (p * core.sampled_kl(ratio, estimator=kind) for kind in ("k1", "k2", "k3"))
    reverse, forward = kl(live, anchor).sum(), kl(anchor, live).sum()  # positions are independent
    assert_close((k1.sum(), k3.sum()), (reverse, reverse))
    # As losses on fixed samples: no gradient, that of the reverse and that of the forward KL.
    expected = torch.zeros_like(live), *slopes(reverse, live), *slopes(forward, live)
    assert_close([slopes(k, live)[0] for k in (k1, k2, k3)], list(expected), rtol=1e-7, atol=1e-14)


def test_a_velocity_gap_is_the_gaussian_kl_of_a_step_and_symmetric():
    # Velocity alone: a categorical KL has a direction.
    live, anchor = VELOCITY.parameters(0), VELOCITY.parameters(1)
    gaps = VELOCITY.exact(live, anchor)
    assert_close(VELOCITY.exact(anchor, live), gaps)
    steps = [VELOCITY.step(weights) for weights in (live, anchor)]
    expected = kl_divergence(*(Normal(step.mean, step.std[:, None]) for step in steps)).mean(-1)
    assert_close(gaps["step"], expected)
    # Flow-SDE's step moves its mean by the velocity: dt / 2 (s (1 - t) / (2 t) + 1 / s)^2 |v - v_anchor|^2
    t, s = VELOCITY.sigma, 0.7 * (VELOCITY.sigma / (1 - VELOCITY.sigma)).sqrt()
    assert_close(0.1 / 2 * (s * (1 - t) / (2 * t) + 1 / s) ** 2 * gaps["velocity"], expected)


@SPACES
def test_apart_no_divergence_is_negative_and_only_the_live_weights_are_pulled(space):
    live, anchor = space.parameters(0), space.parameters(1)
    gaps, ratios = divergences(space, live, anchor), space.log_ratios(live, anchor)
    assert all((gap >= 0).all() and gap.sum() > 0 for gap in gaps.values())
    for value in (*gaps.values(), *ratios.values(), space.loss(live, anchor)):
        assert all(slope.abs().sum() > 0 for slope in slopes(value, live))
        assert all(slope is None for slope in slopes(value, anchor))
