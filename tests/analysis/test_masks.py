import pytest
import torch
from torch import nn

from imgrl.analysis.masks import MaskedUpdate, low, principal, training_mask, training_masks
from imgrl.errors import ConfigError


def weight(rows=48, columns=32, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_the_principal_mask_is_the_top_of_numpys_reconstruction():
    w = weight()
    u, s, vt = torch.linalg.svd(w.double(), full_matrices=False)
    rebuilt = ((u[:, :8] * s[:8]) @ vt[:8]).abs()
    limit = rebuilt.flatten().sort(descending=True).values[round(0.3 * w.numel()) - 1]
    assert torch.equal(principal(w, 8, 0.3), rebuilt >= limit)


def test_the_low_mask_is_the_bottom_of_stored_magnitudes():
    w = weight()
    mask, stored = low(w, 0.3), w.bfloat16().float().abs()
    assert stored[mask].max() < stored[~mask].min()
    assert float(mask.float().mean()) == pytest.approx(0.3, abs=0.01)


def test_safe_is_low_or_outside_the_principal_and_random_is_as_large():
    w = weight()
    masks = {kind: training_mask(w, kind, k=8) for kind in ("low", "not_principal", "safe", "random")}
    assert torch.equal(masks["safe"], masks["low"] | masks["not_principal"])
    assert torch.equal(masks["not_principal"], ~principal(w, 8, 0.5))
    assert masks["random"].sum() == masks["safe"].sum() and not torch.equal(masks["random"], masks["safe"])
    assert torch.equal(masks["random"], training_mask(w, "random", k=8))
    assert not torch.equal(masks["random"], training_mask(w, "random", k=8, seed=1))
    with pytest.raises(ConfigError, match="'high' was given"):
        training_mask(w, "high")


def test_masks_of_a_model_cover_its_matrices():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 1))
    masks = training_masks(model.parameters(), "safe", k=4)
    assert list(masks) == [model[0].weight, model[2].weight]
    assert all(masks[part.weight].shape == part.weight.shape for part in (model[0], model[2]))


def train(model, optimizer, steps=5):
    data = torch.randn(16, 12, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        model(data).square().mean().backward()
        optimizer.step()


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.5),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_entries_keep_their_bits_under_weight_decay_and_momentum(kind, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10)).to(dtype)
    before = model[0].weight.detach().clone()
    optimizer = OPTIMIZERS[kind](model.parameters())
    masks = training_masks(model.parameters(), "random", k=4)
    MaskedUpdate(optimizer, masks)
    data = torch.randn(16, 12, dtype=dtype)
    for _ in range(3):
        optimizer.zero_grad()
        model(data).square().mean().backward()
        optimizer.step()
    mask = masks[model[0].weight]
    assert torch.equal(model[0].weight[~mask], before[~mask])
    assert (model[0].weight[mask] != before[mask]).all()


def test_trained_entries_move_as_adamw_moves_them_alone():
    """Frozen entries as a buffer, trained ones as the only parameter: the same problem without a mask."""
    torch.manual_seed(0)
    model = nn.Linear(12, 10, bias=False)
    start, mask = model.weight.detach().clone(), torch.rand(10, 12) < 0.4
    masked = OPTIMIZERS["adamw"]([model.weight])
    MaskedUpdate(masked, {model.weight: mask})
    train(model, masked)

    free = nn.Parameter(start[mask].clone())
    other = OPTIMIZERS["adamw"]([free])
    train(lambda x: x @ start.masked_scatter(mask, free).T, other)
    torch.testing.assert_close(model.weight[mask], free)
    torch.testing.assert_close(model.weight, start.masked_scatter(mask, free))


def test_gradients_are_masked_before_they_are_clipped():
    model = nn.Linear(12, 10, bias=False)
    mask = torch.zeros(10, 12, dtype=torch.bool)
    mask[0, 0] = True
    MaskedUpdate(torch.optim.AdamW(model.parameters()), {model.weight: mask})
    model(torch.ones(1, 12)).sum().backward()
    assert float(nn.utils.clip_grad_norm_(model.parameters(), 100.0)) == 1.0


def test_a_gradient_set_by_hand_is_masked_too_even_if_it_is_not_a_number():
    parameter = nn.Parameter(torch.ones(2, 2))
    mask = torch.tensor([[True, False], [False, False]])
    MaskedUpdate(optimizer := torch.optim.SGD([parameter], lr=1.0), {parameter: mask})
    parameter.grad = torch.tensor([[1.0, torch.nan], [2.0, 3.0]])
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.tensor([[0.0, 1.0], [1.0, 1.0]]))


def test_removed_hooks_let_everything_train():
    model = nn.Linear(12, 10, bias=False)
    before, optimizer = model.weight.detach().clone(), OPTIMIZERS["adamw"](model.parameters())
    MaskedUpdate(optimizer, {model.weight: torch.zeros(10, 12, dtype=torch.bool)}).remove()
    train(model, optimizer, steps=1)
    assert (model.weight != before).all()


def test_masks_that_do_not_fit_are_refused():
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    for mask in (torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 2)):
        with pytest.raises(ConfigError, match="a mask must be boolean and of its parameter's shape"):
            MaskedUpdate(optimizer, {parameter: mask})


def started(init, dtype=torch.float32):
    """A linear layer under peft at the start of training: W0 and the layer."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": nn.Linear(48, 32)}).to(dtype)
    before = model["layer"].weight.detach().clone()
    config = LoraConfig(r=8, lora_alpha=8, target_modules=["layer"], init_lora_weights=init)
    return before, get_peft_model(model, config, autocast_adapter_dtype=False).base_model.model["layer"]


def effective(layer):
    return layer.base_layer.weight.detach() + layer.get_delta_weight("default").detach()


@pytest.mark.parametrize("init", [True, "pissa"])
def test_lora_and_pissa_start_from_the_same_weights(init):
    before, layer = started(init)
    torch.testing.assert_close(effective(layer), before, rtol=0, atol=1e-6)
    assert (layer.get_delta_weight("default").abs().max() > 0.01) == (init == "pissa")


def test_pissa_in_bfloat16_flips_weights_at_its_start_so_it_is_compared_with_what_it_rebuilt():
    from imgrl.analysis.figures import Settings
    from imgrl.analysis.measure import measure
    from imgrl.analysis.weights import as_matrix

    def changed(before, after):
        return measure(as_matrix(before), [as_matrix(after)], Settings(k=(8,))).changes[0].changed

    (before, plain), (same, layer) = started(True, torch.bfloat16), started("pissa", torch.bfloat16)
    assert torch.equal(before, same)
    rebuilt = effective(layer)
    assert changed(before, effective(plain)) == 0
    assert changed(before, rebuilt) > 0.05 * before.numel()  # nothing was trained
    assert changed(rebuilt, effective(layer)) == 0
