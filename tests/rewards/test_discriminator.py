"""Discriminator losses against recorded numbers and against the optima that theory gives them."""

import golden_cases
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from imgrl.rewards.discriminator import Head, accuracy, balanced, preference_loss, side_loss

FAMILY = golden_cases.family("adv_discriminator")
TOLERANCE = {key: FAMILY["tolerance"][key] for key in ("rtol", "atol") if FAMILY["tolerance"]}
CASES = golden_cases.cases("adv_discriminator")
HINGE = [case for case in CASES if case["kind"] == "hinge_global_and_patch"]
PAIRS = [case for case in CASES if case["kind"] == "pairwise_preference"]


def recorded_head(case):
    layers: list[nn.Module] = []
    for recorded in case["head_layers"]:
        weight = golden_cases.tensor(recorded["weight"])
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = weight, golden_cases.tensor(recorded["bias"])
        layers += [layer, nn.Tanh()] if case["hidden_activation"] == "tanh" else [layer]
    return nn.Sequential(*(layers[:-1] if isinstance(layers[-1], nn.Tanh) else layers))


@pytest.mark.parametrize("case", HINGE, ids=golden_cases.case_id)
def test_hinge_on_global_and_patch_features_as_recorded(case):
    head = recorded_head(case)
    sides, losses = {}, []
    for part, weight in (("cls", 1.0), ("patch", case["patch_weight"])):
        logits = []
        for side, name in ((True, "real"), (False, "fake")):
            features = golden_cases.tensor(case[f"{part}_{name}"])
            if part == "patch":
                chosen = torch.tensor(case[f"patch_index_{name}"])
                features = torch.gather(features, 1, chosen[..., None].expand(-1, -1, features.shape[2]))
            logit = head(features).squeeze(-1)
            expected = golden_cases.tensor(case[f"logits_{name}_{part}"]).view_as(logit)
            torch.testing.assert_close(logit, expected, **TOLERANCE)
            logits.append((logit.flatten(), torch.full((logit.numel(),), side)))
        logit, reference = (torch.cat(parts) for parts in zip(*logits, strict=True))
        sides[part] = (logit, reference)
        losses.append(weight * balanced(side_loss(logit, reference), reference))
    loss = torch.stack(losses).sum()
    torch.testing.assert_close(loss, torch.tensor(case["loss"]), **TOLERANCE)
    assert accuracy(*sides["cls"]).item() == pytest.approx(case["accuracy"], abs=1e-6)
    loss.backward()
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    for layer, expected in zip(linear, case["head_grads"], strict=True):
        torch.testing.assert_close(layer.weight.grad, golden_cases.tensor(expected["weight"]), **TOLERANCE)
        torch.testing.assert_close(layer.bias.grad, golden_cases.tensor(expected["bias"]), **TOLERANCE)


@pytest.mark.parametrize("case", PAIRS, ids=golden_cases.case_id)
def test_preference_as_recorded(case):
    text = golden_cases.tensor(case["text_features"])
    reference = golden_cases.tensor(case["reference_features"]).requires_grad_()
    generated = golden_cases.tensor(case["generated_features"]).requires_grad_()
    scores = [case["logit_scale"] * (text * images).sum(-1) for images in (reference, generated)]
    torch.testing.assert_close(scores[0], golden_cases.tensor(case["score_reference"]), **TOLERANCE)
    loss = preference_loss(*scores, label=case["label_reference"]).mean()
    torch.testing.assert_close(loss, torch.tensor(case["loss"]), **TOLERANCE)
    loss.backward()
    torch.testing.assert_close(
        reference.grad, golden_cases.tensor(case["grad_reference_features"]), **TOLERANCE
    )
    torch.testing.assert_close(
        generated.grad, golden_cases.tensor(case["grad_generated_features"]), **TOLERANCE
    )


def two_gaussians(count=40_000):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, count, generator=generator, dtype=torch.float64)
    return noise[0] + 1, noise[1]  # references N(1, 1), generated N(0, 1)


def fit(loss, *, steps=60):
    """The slope and intercept of ``slope x + intercept`` that minimise a loss, by LBFGS."""
    line = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=steps, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(line)
        value.backward()
        return value

    optimizer.step(closure)
    return line.detach().tolist(), float(loss(line).detach())


def test_cross_entropy_finds_the_log_ratio():
    """log N(x; 1, 1) / N(x; 0, 1) = x - 1/2, and twice the loss there is 2 log 2 - 2 JSD = 1.16346."""
    real, fake = two_gaussians()
    x, reference = torch.cat([real, fake]), torch.arange(2 * len(real)) < len(real)
    (slope, intercept), loss = fit(
        lambda w: balanced(side_loss(w[0] * x + w[1], reference, kind="bce"), reference)
    )
    assert slope == pytest.approx(1, abs=0.03) and intercept == pytest.approx(-0.5, abs=0.03)
    assert 2 * loss == pytest.approx(1.16346, abs=0.01)


def test_exchanging_the_sides_turns_the_trained_logit_around():
    """D16; the sides differ in number, so that the balance is exchanged with them."""
    real, fake = two_gaussians()
    real = real[:10_000]

    def trained(references, generated):
        x = torch.cat([references, generated])
        side = torch.arange(len(x)) < len(references)
        return fit(lambda w: balanced(side_loss(w[0] * x + w[1], side, kind="bce"), side))[0]

    (slope, intercept), (turned_slope, turned_intercept) = trained(real, fake), trained(fake, real)
    assert slope > 0.9 and intercept < -0.4  # of the log-ratio, x - 1/2
    assert turned_slope == pytest.approx(-slope, abs=1e-5)
    assert turned_intercept == pytest.approx(-intercept, abs=1e-5)


def test_preference_finds_the_log_ratio_up_to_a_constant():
    real, fake = two_gaussians()
    (slope, _), _ = fit(lambda w: preference_loss(w[0] * real + w[1], w[0] * fake + w[1]).mean())
    assert slope == pytest.approx(1, abs=0.03)
    scores = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        preference_loss(*(scores + 7.0)), preference_loss(*scores), atol=1e-5, rtol=1e-5
    )


def test_the_hinge_optimum_is_the_sign_of_the_difference():
    """On a grid, the best value at each point is +-1, and the loss 1 - TV with halves for the two sides."""
    x = torch.linspace(-6, 7, 400, dtype=torch.float64)
    density = [torch.exp(-((x - mean) ** 2) / 2) for mean in (1.0, 0.0)]
    density = [p / p.sum() for p in density]
    levels = torch.linspace(-3, 3, 121, dtype=torch.float64)
    yes, no = torch.ones_like(levels, dtype=torch.bool), torch.zeros_like(levels, dtype=torch.bool)
    each = density[0][:, None] * side_loss(levels, yes) + density[1][:, None] * side_loss(levels, no)
    best = levels[each.argmin(1)]
    clear = (density[0] - density[1]).abs() > 1e-9
    assert torch.equal(best[clear].sign(), (density[0] - density[1])[clear].sign())
    torch.testing.assert_close(best[clear].abs(), torch.ones_like(best[clear]))
    total = each.amin(1).sum()
    torch.testing.assert_close(total, 2 - (density[0] - density[1]).abs().sum())


@given(st.sampled_from(["hinge", "bce"]), st.integers(0, 10_000))
def test_exchanging_the_sides_mirrors_the_logit(kind, seed):
    logit = torch.randn(12, generator=torch.Generator().manual_seed(seed))
    reference = torch.arange(12) % 3 == 0
    torch.testing.assert_close(
        side_loss(logit, reference, kind=kind), side_loss(-logit, ~reference, kind=kind)
    )
    assert accuracy(logit, reference).item() == pytest.approx(accuracy(-logit, ~reference).item())


def test_a_judge_who_cannot_tell_pays_nothing_for_a_tie_and_log_two_otherwise():
    zero = torch.zeros(3)
    torch.testing.assert_close(preference_loss(zero, zero), torch.full((3,), 0.693147))
    torch.testing.assert_close(preference_loss(zero, zero, label=0.5), zero, atol=1e-6, rtol=0)


def test_the_head_is_one_function_in_float32_from_its_generator():
    heads = [Head(6, hidden=5, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    features = torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(0))
    both = heads[0](features)
    assert both.shape == (4, 7) and both.dtype == torch.float32
    torch.testing.assert_close(both, heads[1](features), atol=0, rtol=0)
    torch.testing.assert_close(heads[0](features[2, 3]), both[2, 3])
    assert heads[0](features.bfloat16()).dtype == torch.float32


def test_an_optimiser_step_that_bfloat16_would_lose():
    """Why the head is float32: Adam's step of 1e-4 is below half a unit in the last place of 1 in bfloat16."""
    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.ones(3, dtype=dtype, requires_grad=True)
        weight.sum().backward()
        torch.optim.Adam([weight], lr=1e-4).step()
        moved.append((1 - weight.detach().float()).tolist())
    assert moved[0] == pytest.approx([1e-4] * 3, rel=1e-3) and moved[1] == [0, 0, 0]
    assert {p.dtype for p in Head(4).parameters()} == {torch.float32}


def test_what_is_refused():
    logit = torch.zeros(3)
    with pytest.raises(ValueError, match="choose 'hinge' or 'bce'"):
        side_loss(logit, logit > 0, kind="wasserstein")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="both references and generated images, got 0 and 3"):
        balanced(logit, logit > 0)
    with pytest.raises(ValueError, match="widths of at least 1"):
        Head(0)
