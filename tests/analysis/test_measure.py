import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrl.analysis.figures import Settings
from imgrl.analysis.measure import measure
from imgrl.analysis.weights import as_matrix
from imgrl.anchor import categorical_kl
from imgrl.errors import ConfigError, ModelError


def stored_pair(size, step, seeds=(1,), scale=0.02):
    """bfloat16 weights and versions of them after isotropic noise: nothing was learnt."""
    before = (torch.randn(size, size, generator=torch.Generator().manual_seed(0)) * scale).bfloat16()
    noise = [torch.randn(size, size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return before, [(before.float() + step * draw).bfloat16() for draw in noise]


def measured(before, *after, **settings):
    return measure(as_matrix(before), [as_matrix(weight) for weight in after], Settings(**settings))


def shares(change, weights="stored"):
    return {each.mask: each.value.report() for each in change.overlaps if each.weights == weights}


def test_the_same_weights_are_all_unchanged():
    before, _ = stored_pair(64, 0)
    change = measured(before, before).changes[0]
    assert (change.changed, change.relative) == (0, 0)


def test_the_same_weights_have_no_drift_and_no_angles_whatever_stands_beside_them():
    before, (after,) = stored_pair(64, 1e-3)
    (alone,) = measured(before, before, k=(8, 100)).changes
    same, other = measured(before, before, after, k=(8, 100)).changes
    for change in (alone, same):
        assert (change.changed, change.drift, change.exact) == (0, 0, True)
        assert change.angles == {k: {"left": [0] * n, "right": [0] * n} for k, n in ((8, 8), (100, 0))}
        assert (change.noise_drift, change.noise_angle) == (0, 0)
    (uncontrolled,) = measured(before, before, control=False).changes
    assert (uncontrolled.noise_drift, uncontrolled.noise_angle) == (None, None)
    assert other.changed > 0 and other.drift > 0 and max(other.angles[8]["left"]) > 1e-3


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize(
    ("shape", "k", "left", "right"),
    [
        ((32, 32), 64, 0, 0),
        ((32, 32), 32, 0, 0),
        ((32, 32), 31, 31, 31),
        ((48, 32), 64, 32, 0),
        ((32, 48), 32, 0, 32),
    ],
)
def test_all_directions_of_a_side_have_no_angle(shape, k, left, right, moved):
    before = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    after = before + 0.1 * moved * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    change = measured(before, after, k=(k,)).changes[0]
    assert {side: len(found) for side, found in change.angles[k].items()} == {"left": left, "right": right}
    assert (change.noise_angle is None) == (left + right == 0)
    if moved:
        assert all(max(found) > 0.1 for found in change.angles[k].values() if found)


def test_rounding_alone_avoids_the_principal_mask_and_seeks_small_weights():
    """Figures of isotropic noise on a Gaussian matrix: density .32, overlaps .211, .699, .075 (of .241)."""
    before, (after,) = stored_pair(512, 3e-5)
    layer = measured(before, after, k=(64,), alpha=(0.3,))
    change = layer.changes[0]
    assert change.changed / layer.parameters == pytest.approx(0.32, abs=0.003)
    found = shares(change)
    observed = {mask: value["observed"] for mask, value in found.items()}
    assert observed == pytest.approx(
        {"principal": 0.211, "low": 0.699, "principal_not_low": 0.075}, abs=0.004
    )
    assert found["principal"]["density_null"] == pytest.approx(0.3, abs=1e-4)
    assert found["principal_not_low"]["density_null"] == pytest.approx(0.241, abs=0.002)
    assert found["principal"]["matched_null"] == pytest.approx(0.211, abs=0.004)


def test_the_stricter_nulls_are_not_fooled_by_rounding():
    before, (after,) = stored_pair(512, 3e-5)
    for value in shares(measured(before, after).changes[0]).values():
        spread = value["matched_null_std"]
        assert value["observed"] == pytest.approx(value["matched_null"], abs=4 * spread + 1e-9)
        assert value["over_noise"] == pytest.approx(1, abs=0.03)


def test_an_update_of_the_principal_weights_shows_over_every_null():
    before, _ = stored_pair(256, 0)
    u, s, vt = torch.linalg.svd(before.float())
    large = ((u[:, :32] * s[:32]) @ vt[:32]).abs()
    mask = large >= large.flatten().kthvalue(int(0.9 * large.numel())).values
    after = torch.where(mask, before.float() * 1.05, before.float()).bfloat16()
    found = shares(measured(before, after, k=(32,)).changes[0])["principal"]
    assert found["observed"] == pytest.approx(1) and found["over_density"] == pytest.approx(1 / 0.3, rel=0.01)
    assert found["over_matched"] > 1.5


@pytest.mark.parametrize(
    ("step", "density", "jaccard", "chance"),
    [(3e-5, 0.32, 0.450, 0.191), (1e-4, 0.68, 0.602, 0.511), (2e-4, 0.83, 0.735, 0.703)],
)
def test_unrelated_updates_agree_far_above_chance(step, density, jaccard, chance):
    """Two independent draws of noise; the digits belong to these densities."""
    before, after = stored_pair(1024, step, seeds=(1, 2))
    layer = measured(before, *after, control=False, exact=False)
    p, q = (change.changed / layer.parameters for change in layer.changes)
    assert p == pytest.approx(density, abs=0.006)
    agreement = layer.agreements[0]
    assert agreement.shared / agreement.union == pytest.approx(jaccard, abs=0.003)
    assert p * q / (p + q - p * q) == pytest.approx(chance, abs=0.003)
    matched = agreement.matched_shared / agreement.matched_union
    assert matched == pytest.approx(agreement.shared / agreement.union, abs=0.005)


def test_a_rotation_brings_agreement_down_to_chance_without_any_learning():
    before, (plain,) = stored_pair(256, 3e-5)
    turn = torch.linalg.qr(torch.randn(256, 256, generator=torch.Generator().manual_seed(5)))[0]
    turned = (turn @ before.float()).bfloat16()
    noise = torch.randn(256, 256, generator=torch.Generator().manual_seed(6))
    other = (turned.float() + 3e-5 * noise).bfloat16()
    one, two = before != plain, turned != other
    p, q = float(one.float().mean()), float(two.float().mean())
    observed = float((one & two).sum() / (one | two).sum())
    assert observed == pytest.approx(p * q / (p + q - p * q), abs=0.01)


def test_masters_do_not_see_rounding():
    """The same noise in float32: its largest steps lie anywhere."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(256, 256, generator=generator) * 0.02
    after = before + 3e-5 * torch.randn(256, 256, generator=generator)
    change = measured(before, after).changes[0]
    for mask, value in shares(change, "master").items():
        assert value["over_density"] == pytest.approx(1, abs=0.03), mask
    assert shares(change)["principal"]["over_density"] < 0.8


def test_masters_exist_in_float32_only():
    before, (after,) = stored_pair(64, 1e-3)
    assert {each.weights for each in measured(before, after).changes[0].overlaps} == {"stored"}
    wide = measured(before.float(), after.float()).changes[0].overlaps
    assert {each.weights for each in wide} == {"stored", "master"}


def test_mixed_precisions_are_both_rounded():
    """A bfloat16 copy of a float32 checkpoint has not changed."""
    wide = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    change = measured(wide, wide.bfloat16()).changes[0]
    assert (change.changed, change.relative) == (0, 0)


def test_drift_and_bound_are_numpys_and_noise_of_equal_size_stands_beside():
    before, (after,) = stored_pair(128, 1e-3)
    change = measured(before, after, k=(16,)).changes[0]
    one, other = (torch.linalg.svdvals(weight.double()) for weight in (before, after))
    assert change.drift == pytest.approx(float((other - one).norm() / one.norm()), rel=1e-4)
    step = (after.double() - before.double()).norm() / before.double().norm()
    assert change.relative == pytest.approx(float(step), rel=1e-5)
    assert change.drift <= change.relative
    assert change.noise_drift == pytest.approx(change.drift, rel=0.2)  # the update was itself noise


def leash(before, step, states):
    """``||dW||_F`` as measured, and ``sqrt(2 K / mu)``, of policies softmax(W x) with K the mean KL over states, nats.

    For a step whose columns sum to 0 the Fisher matrix is at least mu: the least probability times the least eigenvalue
    of the mean x x^T. Log-probabilities are concave along the step, so the least of the whole way is that of an end.
    """
    logits, moved = states @ before.T, states @ (before + step).T
    least = min(float(z.softmax(-1).min()) for z in (logits, moved))
    mu = least * float(torch.linalg.eigvalsh(states.T @ states / len(states))[0])
    size = measured(before, before + step).changes[0].relative * float(before.norm())
    kls = (categorical_kl(moved, logits, direction=way).mean() for way in ("reverse", "forward"))
    return size, [float(2 * kl / mu) ** 0.5 for kl in kls]


@given(size=st.floats(0.01, 0.5), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_small_kl_and_a_fisher_matrix_far_from_0_bound_the_update(size, seed):
    """||dW||_F <= sqrt(2 K / mu), why 2511.08567 expects small updates of policies held by a KL."""
    generator = torch.Generator().manual_seed(seed)
    before, step = 0.2 * torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    states = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    moved, bounds = leash(before, size * (step - step.mean(0)), states)
    assert all(moved <= bound * (1 + 1e-6) for bound in bounds)


def test_that_bound_is_reached_by_a_small_step_of_an_even_policy():
    # Rows alike: even probabilities; states along the axes: mu is 1/6 of 1/4 in every direction.
    before = torch.ones(6, 4, dtype=torch.float64)
    step = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved, bounds = leash(before, 1e-3 * (step - step.mean(0)), torch.eye(4, dtype=torch.float64))
    assert bounds == pytest.approx([moved, moved], rel=1e-3)


def test_several_k_and_alpha_and_their_clipping():
    square, (noisy,) = stored_pair(48, 1e-3)
    before, after = square[:, :40], noisy[:, :40]
    change = measured(before, after, k=(32, 256), alpha=(0.1, 0.5)).changes[0]
    assert {(each.k, each.alpha) for each in change.overlaps} == {
        (k, alpha) for k in (32, 256) for alpha in (0.1, 0.5)
    }
    assert [len(change.angles[k]["left"]) for k in (32, 256)] == [32, 40]


def test_rows_columns_and_consensus_by_hand():
    before = torch.ones(4, 4)
    one, two = before.clone(), before.clone()
    one[0] = 2.0
    two[:2, 0] = 2.0
    layer = measured(before, one, two)
    assert layer.changes[0].rows == [0, 0, 0, 0, 0, 1, 1] and layer.changes[0].columns == [0.25] * 7
    assert layer.consensus == [11, 4, 1]
    assert (layer.agreements[0].shared, layer.agreements[0].union) == (1, 5)


def test_vectors_are_only_counted():
    change = measured(torch.ones(8), torch.tensor([2.0] * 2 + [1.0] * 6)).changes[0]
    assert change.changed == 2 and change.drift is None and not change.overlaps


def test_a_matrix_of_zeros_has_no_drift():
    change = measured(torch.zeros(8, 8), torch.eye(8)).changes[0]
    assert change.changed == 8 and change.relative is None and change.drift is None


def test_broken_weights_and_settings_are_refused():
    with pytest.raises(ModelError, match="not finite"):
        measured(torch.ones(4, 4), torch.full((4, 4), torch.nan))
    with pytest.raises(ConfigError, match="alpha must be fractions"):
        Settings(alpha=(1.5,))
    with pytest.raises(ConfigError, match="k must be"):
        Settings(k=(0,))
