"""ImageReward on small random weights under their published names, against a network written out here.

The oracle follows the papers: a pre-norm vision transformer (BLIP, arXiv 2201.12086); a post-norm BERT whose layers
look at the image between self-attention and feed-forward; the first token through a linear stack.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from imgrl.errors import RewardError
from imgrl.rewards.imagereward import ImageReward
from imgrl.rewards.pixels import to_uint8
from imgrl.rewards.resolve import make

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "dog", "photo"]
SEEN, READ, PATCH, SIDE, LAYERS = 192, 128, 8, 32, 2  # three and two heads of 64


def shapes():
    """Name -> shape of every tensor that the published file has, at a small size."""
    found = {"cls_token": (1, 1, SEEN), "pos_embed": (1, 1 + (SIDE // PATCH) ** 2, SEEN)}
    found |= linear("patch_embed.proj", SEEN, 3, PATCH, PATCH) | norm("norm", SEEN)
    for n in range(LAYERS):
        block = f"blocks.{n}"
        found |= norm(f"{block}.norm1", SEEN) | norm(f"{block}.norm2", SEEN)
        found |= linear(f"{block}.attn.qkv", 3 * SEEN, SEEN) | linear(f"{block}.attn.proj", SEEN, SEEN)
        found |= linear(f"{block}.mlp.fc1", 2 * SEEN, SEEN) | linear(f"{block}.mlp.fc2", SEEN, 2 * SEEN)
    found = {f"blip.visual_encoder.{name}": shape for name, shape in found.items()}
    text = {"embeddings.word_embeddings.weight": (len(WORDS), READ)}
    text |= {"embeddings.position_embeddings.weight": (40, READ)} | norm("embeddings.LayerNorm", READ)
    for n in range(LAYERS):
        layer = f"encoder.layer.{n}"
        for kind, source in (("attention", READ), ("crossattention", SEEN)):
            text |= linear(f"{layer}.{kind}.self.query", READ, READ)
            text |= linear(f"{layer}.{kind}.self.key", READ, source)
            text |= linear(f"{layer}.{kind}.self.value", READ, source)
            text |= linear(f"{layer}.{kind}.output.dense", READ, READ)
            text |= norm(f"{layer}.{kind}.output.LayerNorm", READ)
        text |= linear(f"{layer}.intermediate.dense", 2 * READ, READ)
        text |= linear(f"{layer}.output.dense", READ, 2 * READ) | norm(f"{layer}.output.LayerNorm", READ)
    found |= {f"blip.text_encoder.{name}": shape for name, shape in text.items()}
    found |= linear("blip.vision_proj", 16, SEEN) | linear("blip.text_proj", 16, READ)
    widths = (READ, 1024, 128, 64, 16, 1)
    for number, inner, outer in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        found |= linear(f"mlp.layers.{number}", outer, inner)
    return found


def linear(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


@pytest.fixture(scope="module")
def weights():
    generator, found = torch.Generator().manual_seed(0), {}
    for name, shape in shapes().items():
        draw = torch.randn(shape, generator=generator)
        spread = 1.5 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.3
        found[name] = draw * spread + float("norm" in name.lower() and name.endswith("weight"))
    found["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp("imagereward")
    torch.save(weights, folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text(
        '{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}'
    )
    return folder


def attend(query, key, value, width, hidden=None):
    heads = [x.unflatten(-1, (width // 64, 64)).transpose(1, 2) for x in (query, key, value)]
    logits = heads[0] @ heads[1].transpose(-1, -2) / 8  # the root of 64
    if hidden is not None:
        logits = logits.masked_fill(hidden[:, None, None, :], -1e9)
    return (logits.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)


def look(w, pixels):
    def layer(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def normed(x, name):
        return F.layer_norm(x, (SEEN,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    top = "blip.visual_encoder"
    x = F.conv2d(pixels, w[f"{top}.patch_embed.proj.weight"], w[f"{top}.patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([w[f"{top}.cls_token"].expand(len(x), 1, SEEN), x.flatten(2).transpose(1, 2)], 1)
    x = x + w[f"{top}.pos_embed"]
    for n in range(LAYERS):
        block = f"{top}.blocks.{n}"
        query, key, value = layer(normed(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, -1)
        x = x + layer(attend(query, key, value, SEEN), f"{block}.attn.proj")
        x = x + layer(F.gelu(layer(normed(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return normed(x, f"{top}.norm")


def read(w, tokens, seen):
    def layer(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def normed(x, name):
        return F.layer_norm(x, (READ,), w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-12)

    top = "blip.text_encoder"
    x = w[f"{top}.embeddings.word_embeddings.weight"][tokens]
    x = x + w[f"{top}.embeddings.position_embeddings.weight"][: tokens.shape[1]]
    x = normed(x, f"{top}.embeddings.LayerNorm")
    for n in range(LAYERS):
        for kind, source, hidden in (("attention", None, tokens == 0), ("crossattention", seen, None)):
            part = f"{top}.encoder.layer.{n}.{kind}"
            source = x if source is None else source
            found = [
                layer(y, f"{part}.self.{z}") for y, z in ((x, "query"), (source, "key"), (source, "value"))
            ]
            found = layer(attend(*found, READ, hidden), f"{part}.output.dense")
            x = normed(x + found, f"{part}.output.LayerNorm")
        part = f"{top}.encoder.layer.{n}"
        found = layer(F.gelu(layer(x, f"{part}.intermediate.dense")), f"{part}.output.dense")
        x = normed(x + found, f"{part}.output.LayerNorm")
    return x[:, 0]


def oracle(w, pixels, tokens):
    x = read(w, tokens, look(w, pixels))
    for number in (0, 2, 4, 6, 7):
        x = F.linear(x, w[f"mlp.layers.{number}.weight"], w[f"mlp.layers.{number}.bias"])
    return (x[:, 0] - 0.16717362830052426) / 1.0333394966054072


PROMPTS = ["a red cat", "A photo", "dog " * 50, "a zebra"]
TOKENS = [[2, 5, 6, 7, 3], [2, 5, 9, 3], [2, *[8] * 33, 3], [2, 5, 1, 3]]  # cut at 35; an unknown word is 1


def preprocessed(images):
    """Shorter side to 32 by Pillow's bicubic kernel, the middle, OpenAI's statistics."""
    found = []
    for levels in to_uint8(images):
        picture = Image.fromarray(levels)
        scale = 32 / min(picture.size)
        picture = picture.resize(
            (int(picture.width * scale), int(picture.height * scale)), Image.Resampling.BICUBIC
        )
        left, top = round((picture.width - 32) / 2), round((picture.height - 32) / 2)
        cut = np.asarray(picture.crop((left, top, left + 32, top + 32))) / 255
        found.append(torch.tensor((cut - MEAN) / STD, dtype=torch.float32).permute(2, 0, 1))
    return torch.stack(found)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96)])
def test_scores_are_the_oracles(folder, weights, noise, height, width):
    images = noise(4, height, width)
    tokens = torch.tensor([row + [0] * (35 - len(row)) for row in TOKENS])
    with torch.no_grad():
        expected = oracle(weights, preprocessed(images), tokens)
    assert expected.std() > 0.05  # so that the comparison says something
    reward = ImageReward(weights=str(folder / "ImageReward.pt"), tokenizer=str(folder), device="cpu", batch=3)
    scores = reward(images.requires_grad_(), PROMPTS)
    assert not scores.requires_grad
    torch.testing.assert_close(scores, expected, atol=2e-4, rtol=2e-4)
    alone = torch.cat([reward(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(scores, alone, atol=1e-4, rtol=1e-4)


def test_the_image_and_the_prompt_both_count(folder, noise):
    reward = ImageReward(weights=str(folder / "ImageReward.pt"), tokenizer=str(folder), device="cpu")
    images = noise(2)
    one, two = reward(images, ["a red cat"] * 2), reward(images, ["dog"] * 2)
    assert (one - two).abs().min() > 1e-3 and abs(one[0] - one[1]) > 1e-3


@pytest.mark.parametrize(
    ("drop", "add", "sentence"),
    [
        (
            "blip.visual_encoder.blocks.1.norm1.bias",
            None,
            "it lacks vision.encoder.layers.1.layer_norm1.bias;",
        ),
        ("blip.visual_encoder.pos_embed", None, "KeyError: 'vision.embeddings.position_embedding'"),
        (
            None,
            "blip.visual_encoder.head.weight",
            "blip.visual_encoder.head.weight is no tensor of ImageReward",
        ),
        (None, "blip.text_encoder.pooler.weight", "text.pooler.weight is no tensor of theirs"),
        (None, "logit_scale", "logit_scale is no tensor of ImageReward"),
        ("mlp.layers.7.weight", "mlp.layers.8.weight", "it lacks mlp.7.weight, and 1 more such faults"),
    ],
)
def test_every_tensor_is_used_and_none_is_missing(folder, weights, tmp_path, drop, add, sentence):
    changed = {name: tensor for name, tensor in weights.items() if name != drop}
    torch.save(changed | ({add: torch.zeros(1)} if add else {}), tmp_path / "changed.pt")
    with pytest.raises(RewardError, match=sentence):
        make("imagereward", {"weights": str(tmp_path / "changed.pt"), "tokenizer": str(folder)})


def test_tokenizers_that_do_not_fit(folder, tmp_path):
    weights = str(folder / "ImageReward.pt")
    with pytest.raises(RewardError, match="There is no folder /no/such/folder"):
        make("imagereward", {"weights": weights, "tokenizer": "/no/such/folder"})
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, "bird"]) + "\n")
    with pytest.raises(RewardError, match="has 11 words, but the weights only know 10"):
        make("imagereward", {"weights": weights, "tokenizer": str(tmp_path)})
