"""Captioned pictures learned from directly: the term itself, what it is fed, and its place in a run."""

import dataclasses
import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_runs import RewardSpec, assert_same_bits, last_tensors, rows_of, train
from two_processes import two

from imgrl.anchor import Constant, Linear
from imgrl.errors import ConfigError, DataError
from imgrl.policies import LoraSpec, load_policy
from imgrl.recipe import Imitation
from imgrl.rewards.references import References
from imgrl.training.image_loop import Trainer
from imgrl.training.imitation import Imitated, load_captioned
from imgrl.training.update import Updater

SIZE = 16


class OneProcess:
    """The part of a world that the term needs."""

    rank, size = 0, 1

    def share(self, rows):
        part = rows // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


class FirstOfTwo(OneProcess):
    size = 2


class SecondOfTwo(FirstOfTwo):
    rank = 1


def alike(images, prompts):
    """Says nothing: every image is worth the same."""
    return [0.5] * len(prompts)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six pictures, with captions in a table."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    lines = ["file,prompt"]
    for number in range(6):
        pixels = (torch.rand(SIZE, SIZE, 3, generator=generator) * 255).byte()
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
        lines.append(f"{number}.png,thing {number}")
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def policy(sd3, embeddings):
    return load_policy(sd3, lora=LoraSpec(rank=2, alpha=4.0), names=("frozen",), embedding_folder=embeddings)


def made(policy, pictures, world=None, **settings):
    chosen = Imitation(pictures=str(pictures / "captions.csv"), **{"batch": 4, **settings})
    found = load_captioned(chosen, height=SIZE, width=SIZE)
    return Imitated(policy, found, settings=chosen, seed=7, world=world or OneProcess())  # pyright: ignore


class Perfect:
    """A policy that knows its pictures: prompt i is latent i, so its velocity is (x - latent) / sigma."""

    def to_latents(self, images):
        return images.mean((2, 3), keepdim=True)

    def encode(self, prompts):
        return torch.tensor([int(prompt.split()[-1]) for prompt in prompts])

    def velocity(self, x, sigma, cond, *, weights):
        assert weights == "current"
        return (x - self.known[cond]) / sigma.view(-1, 1, 1, 1)


def test_nothing_is_left_of_the_loss_for_who_knows_the_pictures(pictures):
    """Captions, latents, levels and noise belong together: (x_sigma - latent) / sigma is noise - latent."""
    perfect = Perfect()
    imitated = made(perfect, pictures, batch=6)
    perfect.known = imitated.latents
    for step in range(3):
        assert imitated.loss(step).max() < 1e-8
    perfect.known = imitated.latents + 1  # off by 1 everywhere: the error is 1 / sigma squared
    off = [imitated.loss(step) for step in range(40)]
    assert min(float(loss.min()) for loss in off) >= 1.0
    levels = torch.cat(off).rsqrt()
    assert abs(float(levels.median()) - 0.5) < 0.05  # logit-normal levels are symmetric about a half


def test_two_processes_share_the_pictures_of_a_step(policy, pictures):
    whole = made(policy, pictures)
    parts = [made(policy, pictures, world()) for world in (FirstOfTwo, SecondOfTwo)]
    for step in (0, 3):
        joined = torch.cat([part.loss(step) for part in parts])
        torch.testing.assert_close(joined, whole.loss(step), rtol=1e-5, atol=1e-6)


@given(st.integers(1, 9), st.integers(1, 12))
def test_every_picture_comes_equally_often(number, batch):
    found = References(
        images=torch.zeros(number, 3, SIZE, SIZE, dtype=torch.uint8),
        files=("",) * number,
        of_prompt={},
        captions=tuple((f"thing {row}", row) for row in range(number)),
    )
    settings = Imitation(pictures="there", batch=batch)
    imitated = Imitated(Perfect(), found, settings=settings, seed=1, world=OneProcess())  # pyright: ignore
    drawn = [imitated._chosen(step) for step in range(number)]
    assert all(len(rows) == batch for rows in drawn)
    assert Counter(row for rows in drawn for row in rows) == dict.fromkeys(range(number), batch)


def test_the_gradient_teaches_the_pictures(policy, pictures):
    """The same pictures, levels and noise before and after: all of the difference is learned."""
    imitated = made(policy, pictures, batch=6)
    with torch.no_grad():
        before = torch.cat([imitated.loss(step) for step in range(1000, 1006)])
    optimizer = torch.optim.AdamW(policy.weights.parameters(), lr=1e-2)
    for step in range(30):
        optimizer.zero_grad()
        imitated.loss(step).mean().backward()
        optimizer.step()
    with torch.no_grad():
        after = torch.cat([imitated.loss(step) for step in range(1000, 1006)])
    assert after.mean() < 0.95 * before.mean()


def test_a_run_imitates_where_rewards_say_nothing(recipe, pictures):
    """No group has a signal, so the pictures alone move the weights."""
    settings = Imitation(pictures=str(pictures / "captions.csv"), batch=6)
    run = recipe(imitation=settings, rewards={"alike": RewardSpec(use=alike)})
    Trainer(run).train()
    rows = [row for row in rows_of(run.run.dir) if "reward" in row]
    assert [row["groups/zero_variance"] for row in rows] == [1, 1]
    assert [row["optimizer_steps"] for row in rows] == [1, 2]
    assert all(row["train/imitation"] > 0 and row["train/grad_norm"] > 0 for row in rows)


def test_a_weight_of_zero_changes_nothing(recipe, pictures, tmp_path):
    settings = Imitation(pictures=str(pictures / "captions.csv"), batch=2, weight=Constant(value=0.0))
    one, two_ = recipe(run_dir=str(tmp_path / "a")), recipe(imitation=settings, run_dir=str(tmp_path / "b"))
    for run in (one, two_):
        Trainer(run).train()
    assert_same_bits(last_tensors(one.run.dir), last_tensors(two_.run.dir))
    assert "train/imitation" not in rows_of(two_.run.dir)[-2]


def test_resumption_is_exact(recipe, pictures, tmp_path):
    weight = Linear(first=1.0, last=0.5, steps=4)
    settings = Imitation(pictures=str(pictures / "captions.csv"), batch=4, weight=weight)
    whole = recipe(imitation=settings, run_rounds=4, run_dir=str(tmp_path / "whole"))
    parts = recipe(imitation=settings, run_rounds=4)
    Trainer(whole).train()
    Trainer(dataclasses.replace(parts, run=dataclasses.replace(parts.run, rounds=2))).train()
    Trainer(parts).train(resume=True)
    assert_same_bits(last_tensors(whole.run.dir), last_tensors(parts.run.dir))


def test_pictures_come_first_where_steps_say_so(recipe, pictures, tmp_path):
    """Their steps are counted, the copies begin where they end, and a resumed run does not take them again."""
    settings = Imitation(pictures=str(pictures / "captions.csv"), batch=4, steps=3)
    whole = recipe(imitation=settings, run_rounds=3, run_dir=str(tmp_path / "whole"))
    parts = recipe(imitation=settings, run_rounds=3)
    Trainer(whole).train()
    Trainer(dataclasses.replace(parts, run=dataclasses.replace(parts.run, rounds=1))).train()
    Trainer(parts).train(resume=True)
    assert_same_bits(last_tensors(whole.run.dir), last_tensors(parts.run.dir))
    rows = [row for row in rows_of(parts.run.dir) if "optimizer_steps" in row]
    assert [row["optimizer_steps"] for row in rows] == [3, 4, 5, 6]
    assert [row["round"] for row in rows] == [0, 1, 2, 3]


def test_an_interrupt_among_the_first_steps_is_resumed_exactly(recipe, pictures, tmp_path, monkeypatch):
    settings = Imitation(pictures=str(pictures / "captions.csv"), batch=4, steps=4)
    whole = recipe(imitation=settings, run_rounds=2, run_dir=str(tmp_path / "whole"))
    Trainer(whole).train()
    parts = recipe(imitation=settings, run_rounds=2)
    real, taken = Updater.imitate, []

    def twice(self, step):
        taken.append(step)
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, step)

    monkeypatch.setattr(Updater, "imitate", twice)
    summary = Trainer(parts).train()
    assert summary.interrupted and summary.rounds == 0
    Trainer(parts).train(resume=True)
    assert taken == [0, 1, 2, 3]
    assert_same_bits(last_tensors(whole.run.dir), last_tensors(parts.run.dir))
    first, second = (json.loads((Path(run.run.dir) / "before.json").read_text()) for run in (whole, parts))
    assert first == second


def test_two_processes_train_as_one(recipe, pictures, tmp_path):
    settings = Imitation(pictures=str(pictures / "captions.csv"), batch=4, steps=2)
    one = recipe(imitation=settings, run_dir=str(tmp_path / "one"))
    both = recipe(imitation=settings, run_dir=str(tmp_path / "both"))
    Trainer(one).train()
    two(train, both)
    first, second = last_tensors(one.run.dir), last_tensors(both.run.dir)
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], rtol=1e-4, atol=1e-6, msg=key)
    told = [
        [row["train/imitation"] for row in rows_of(run.run.dir) if "reward" in row] for run in (one, both)
    ]
    assert told[0] == pytest.approx(told[1], rel=1e-4)


def test_pictures_without_captions_are_refused_before_a_model_is_loaded(recipe, pictures):
    with pytest.raises(DataError, match="has no captions: the model must be told what each shows"):
        Trainer(
            recipe(imitation=Imitation(pictures=str(pictures), batch=2), model_path="nobody/nothing")
        ).train()


def test_a_batch_that_processes_cannot_share_is_refused(recipe, pictures):
    from imgrl.config import check_batch

    settings = Imitation(pictures=str(pictures / "captions.csv"), batch=3)
    with pytest.raises(
        ConfigError, match="imitation.batch .3 pictures. cannot be shared equally by 2 processes"
    ):
        check_batch(recipe(imitation=settings), processes=2)


def test_rendered_pictures_have_captions(pictures):
    found = load_captioned(Imitation(pictures="world:pastel:8"), height=64, width=64)
    assert len(found.captions) == 8 and not found.of_prompt and "a" in found.captions[0][0]


def test_paired_references_have_captions_too(tmp_path, pictures):
    rows = [{"prompt": f"thing {n}", "refs": [str(pictures / f"{n}.png")]} for n in range(3)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = load_captioned(Imitation(pictures=str(tmp_path / "list.jsonl")), height=SIZE, width=SIZE)
    assert found.captions == (("thing 0", 0), ("thing 1", 1), ("thing 2", 2))
