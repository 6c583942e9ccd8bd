import pytest
import torch

from imgrl.analysis.rotation import head_rotations, permute_heads, rotate_attention, rotate_values
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


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()


@torch.no_grad()
def test_a_language_model_is_rotated_as_a_whole():
    model, ids = llama(), torch.arange(18).reshape(2, 9)
    before, state = model(ids).logits, {k: t.clone() for k, t in model.state_dict().items()}
    edited = rotate_attention(model, heads=HEADS, kv_heads=KV_HEADS)
    torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=1e-5)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, state[name])}
    assert changed == set(edited) and len(edited) == 4


@torch.no_grad()
def test_a_diffusion_transformer_is_rotated_as_a_whole():
    """Image and text tokens attend to each other, so both streams share a rotation."""
    from tiny_models import build_sd3, sd3_inputs

    network = build_sd3().transformer
    inputs = sd3_inputs()
    before, state = network(**inputs).sample, {k: t.clone() for k, t in network.state_dict().items()}
    edited = rotate_attention(network, heads=2)
    torch.testing.assert_close(network(**inputs).sample, before, rtol=0, atol=1e-5)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, state[name])}
    weights = {name for name in changed if name.endswith("weight")}
    assert weights == set(edited) and len(edited) == 7  # the last block has no output for text


def test_after_a_rotation_runs_agree_by_chance_in_edited_layers_only():
    """Two runs of noise from a base and from its rotation: nothing is learnt in either."""
    generator = torch.Generator().manual_seed(3)

    def run(model):
        stored = {name: t.detach().bfloat16() for name, t in model.state_dict().items() if t.ndim > 1}
        noise = {name: 3e-5 * torch.randn(t.shape, generator=generator) for name, t in stored.items()}
        return {name: (t.float() + noise[name]).bfloat16() != t for name, t in stored.items()}

    model = llama()
    plain = run(model)
    edited = rotate_attention(model, heads=HEADS, kv_heads=KV_HEADS)
    turned = run(model)
    for name, one in plain.items():
        p, q = float(one.float().mean()), float(turned[name].float().mean())
        jaccard = float((one & turned[name]).sum() / (one | turned[name]).sum())
        chance = p * q / (p + q - p * q)
        assert (jaccard < chance + 0.05) == (name in edited), name


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="no attention with layers"):
        rotate_attention(torch.nn.Linear(4, 4), heads=2)
    rotations = head_rotations(2, 8)
    with pytest.raises(ConfigError, match="need a value weight of 16 rows"):
        rotate_values(torch.ones(24, 32), torch.ones(32, 32), rotations, heads=4)
    with pytest.raises(ConfigError, match="power of two"):
        head_rotations(2, 12, kind="hadamard")
    with pytest.raises(ConfigError, match="cannot be permuted"):
        permute_heads(*[torch.ones(32, 32)] * 4, torch.tensor([0, 1, 2]), heads=4)
