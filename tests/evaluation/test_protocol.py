"""Evaluation images depend on the protocol's seed, the prompt and the image's number alone."""

import pytest
import torch

from imgrl.evaluation.protocol import Protocol, generate, seed_of


def test_images_do_not_depend_on_batch_or_share(policy, prompts):
    protocol = Protocol(images_per_prompt=2, steps=2, batch=5)
    whole = generate(policy, prompts[:3], protocol)
    assert whole.shape == (6, 3, 64, 64) and whole.min() >= 0 and whole.max() <= 1
    ranks = [generate(policy, prompts[:3], protocol, rows=range(rank, 6, 2)) for rank in (0, 1)]
    for rank, part in enumerate(ranks):
        torch.testing.assert_close(part, whole[rank::2], atol=1e-5, rtol=0)
    alone = generate(policy, prompts[:3], Protocol(images_per_prompt=2, steps=2, batch=None), rows=[4])
    torch.testing.assert_close(alone[0], whole[4], atol=1e-5, rtol=0)


def test_rows_are_prompt_major_at_the_policys_own_samples(policy, prompts):
    protocol = Protocol(images_per_prompt=3, steps=2, guidance=2.0, solver="dpm2", seed=7)
    row = generate(policy, prompts, protocol, rows=[7])
    latents = policy.sample(  # image 1 of prompt 2
        policy.encode([prompts[2].text]),
        [seed_of(protocol, prompts[2].text, 1)],
        steps=2,
        weights="current",
        guidance=2.0,
        solver="dpm2",
    )
    torch.testing.assert_close(row, policy.decode(latents))


def test_images_follow_their_prompt_in_any_order(policy, prompts):
    """Spec adv_grpo D26; a prompt that comes twice gets other images the second time."""
    protocol = Protocol(images_per_prompt=2, steps=2)
    whole = generate(policy, prompts[:3], protocol).unflatten(0, (3, 2))
    order = [2, 0, 2, 1]
    other = generate(policy, [prompts[i] for i in order], protocol).unflatten(0, (4, 2))
    for place, i in ((0, 2), (1, 0), (3, 1)):
        torch.testing.assert_close(other[place], whole[i], atol=1e-5, rtol=0)
    again = generate(policy, [prompts[2]], Protocol(images_per_prompt=4, steps=2))
    torch.testing.assert_close(other[2], again[2:], atol=1e-5, rtol=0)
    assert (again[2:] - again[:2]).abs().max() > 1e-2


def test_seeds_are_distinct_stable_and_fit_a_generator():
    seeds = [
        seed_of(Protocol(seed=s), prompt, i)
        for s in (0, 1, 1234)
        for prompt in ("a red star", "a red star ", "", "ein roter Stern \N{BLACK STAR}")
        for i in range(250)
    ]
    assert len(set(seeds)) == 3000
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))
    # numpy promises that SeedSequence's numbers stay; a change here would change every published score.
    assert seed_of(Protocol(seed=1234), "a photo of a red circle", 0) == 3957134200212977134


def test_an_empty_share_is_empty(policy, prompts):
    assert generate(policy, prompts, Protocol(), rows=[]).shape == (0, 3, 64, 64)


@pytest.mark.parametrize("rows", [[6], [-1], [0, 99]])
def test_rows_out_of_range_are_refused(policy, prompts, rows):
    with pytest.raises(ValueError, match=r"must lie in 0\.\.5"):
        generate(policy, prompts[:3], Protocol(images_per_prompt=2, steps=1), rows=rows)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"images_per_prompt": 0}, "images_per_prompt"),
        ({"steps": 0}, "steps"),
        ({"batch": 0}, "batch"),
        ({"guidance": 0.5}, "guidance"),
        ({"seed": -1}, "seed"),
        ({"solver": "heun"}, "heun"),
    ],
)
def test_bad_protocols_are_refused(options, part):
    with pytest.raises(ValueError, match=part):
        Protocol(**options)
