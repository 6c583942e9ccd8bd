import pytest
import torch

from imgrl.analysis.rotation import head_rotations, permute_heads, rotate_values
from imgrl.errors import ConfigError

HEADS, KV_HEADS, SIZE = 4, 2, 8


@pytest.fixture
def attention():
    """Qwen2's attention (grouped heads, biases) as a function of its weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 64}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads)).eval()
    part = model.model.layers[0].self_attn
    for layer in (part.q_proj, part.k_proj, part.v_proj):
        torch.nn.init.normal_(layer.bias)
    ids = torch.randint(0, 64, (2, 9))
    return part, lambda: model(ids).logits.detach()


@pytest.mark.parametrize("kind", ["haar", "hadamard"])
def test_rotations_are_orthogonal_and_differ_between_heads(kind):
    found = head_rotations(3, SIZE, kind=kind, seed=1)
    eye = torch.eye(SIZE, dtype=torch.float64).expand(3, -1, -1)
    torch.testing.assert_close(found @ found.mT, eye)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found, head_rotations(3, SIZE, kind=kind, seed=1))
    if kind == "hadamard":
        torch.testing.assert_close(found.abs(), torch.full_like(found, SIZE**-0.5))


@pytest.mark.parametrize("kind", ["haar", "hadamard"])
def test_rotated_values_leave_the_model_as_it_is(attention, kind):
    part, output = attention
    before, old = output(), part.v_proj.weight.detach().clone()
    rotations = head_rotations(KV_HEADS, SIZE, kind=kind)
    value, projection, bias = rotate_values(
        part.v_proj.weight, part.o_proj.weight, rotations, heads=HEADS, bias=part.v_proj.bias
    )
    with torch.no_grad():
        part.v_proj.weight.copy_(value)
        part.o_proj.weight.copy_(projection)
        part.v_proj.bias.copy_(bias)
    assert (value - old).abs().max() > 0.1 * old.abs().max()
    torch.testing.assert_close(output(), before, rtol=0, atol=1e-5)


def test_permuted_heads_leave_the_model_as_it_is(attention):
    part, output = attention
    before, order = output(), torch.tensor([1, 0])
    layers = (part.q_proj, part.k_proj, part.v_proj)
    weights = permute_heads(*(p.weight for p in layers), part.o_proj.weight, order, heads=HEADS)
    biases = permute_heads(*(p.bias[:, None] for p in layers), part.o_proj.weight, order, heads=HEADS)
    with torch.no_grad():
        for layer, new, bias in zip(layers, weights, biases, strict=False):
            assert not torch.equal(layer.weight, new)
            layer.weight.copy_(new)
            layer.bias.copy_(bias[:, 0])
        part.o_proj.weight.copy_(weights[3])
    torch.testing.assert_close(output(), before, rtol=0, atol=1e-5)


def test_sizes_that_do_not_fit_are_refused():
    rotations = head_rotations(2, 8)
    with pytest.raises(ConfigError, match="need a value weight of 16 rows"):
        rotate_values(torch.ones(24, 32), torch.ones(32, 32), rotations, heads=4)
    with pytest.raises(ConfigError, match="power of two"):
        head_rotations(2, 12, kind="hadamard")
    with pytest.raises(ConfigError, match="cannot be permuted"):
        permute_heads(*[torch.ones(32, 32)] * 4, torch.tensor([0, 1, 2]), heads=4)
