"""The reward cache: what hits, what must miss, what is never kept, and files that are not what they should be."""

import functools
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrl.errors import RewardError
from imgrl.rewards import RewardSet
from imgrl.rewards.cache import score_keys
from imgrl.types import Prompt

IMAGES = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
PROMPTS = [Prompt(id=i, text=f"prompt {i}", columns={"level": float(i)}) for i in range(4)]

COUNTING = """
calls = []

def bright(images, prompts, *, scale=1.0):
    calls.append(len(prompts))
    return scale * images.mean((1, 2, 3))

def by_level(images, prompts, *, level):
    calls.append(len(prompts))
    return [None if x == 1 else x for x in level]

def everything(images, prompts, **columns):
    calls.append(len(prompts))
    return [0.5] * len(prompts)

class Versioned:
    identity = "weights of May"

    def __call__(self, images, prompts):
        calls.append(len(prompts))
        return [0.5] * len(prompts)
"""


@pytest.fixture
def counted(tmp_path):
    """Score with a reward of a file and a cache; returns the scores and the sizes of the calls it took."""
    (tmp_path / "mine.py").write_text(COUNTING)

    def run(use="bright", *, images=IMAGES, prompts=PROMPTS, name="mine", change=lambda file: None, **spec):
        change(tmp_path / "mine.py")
        file = f"{tmp_path / 'mine.py'}:{use}"
        rewards = RewardSet.from_specs(
            {name: {"use": file, "retries": 0, **spec}}, cache=tmp_path / "scores.db"
        )
        calls = sys.modules[rewards.rewards[name].target.__module__].calls
        calls.clear()
        scores = rewards.score(images, prompts).values[name]
        rewards.cache.close()
        return scores, list(calls)

    return run


def test_scores_are_found_again_after_a_restart(counted):
    first, calls = counted()
    assert calls == [4]
    again, calls = counted()
    assert calls == [] and torch.equal(first, again)


def test_a_score_is_a_function_of_the_image_in_eight_bits(counted):
    """The values are those of the rounded image, computed here; an image half a level away is the same image."""
    rounded = (IMAGES * 255).round() / 255
    scores, _ = counted()
    assert torch.equal(scores, rounded.mean((1, 2, 3)))
    again, calls = counted(images=(rounded + 0.4 / 255).clamp(0, 1))
    assert calls == [] and torch.equal(again, scores)


def test_only_what_is_unknown_is_asked(counted):
    counted(images=IMAGES[:2], prompts=PROMPTS[:2])
    scores, calls = counted(batch=1)
    assert calls == [1, 1]
    assert torch.equal(scores, ((IMAGES * 255).round() / 255).mean((1, 2, 3)))


def test_not_applicable_is_known_too(counted):
    first, calls = counted("by_level")
    assert calls == [4] and first.isnan().tolist() == [False, True, False, False]
    again, calls = counted("by_level")
    assert calls == [] and torch.equal(first.nan_to_num(-1), again.nan_to_num(-1))


def changed(**columns):
    return [Prompt(id=p.id, text=p.text, columns={**p.columns, **columns}) for p in PROMPTS]


@pytest.mark.parametrize(
    ("use", "change"),
    [
        ("bright", {"args": {"scale": 2.0}}),
        ("bright", {"name": "yours"}),
        ("bright", {"images": (IMAGES + 1 / 255).clamp(0, 1)}),
        ("bright", {"images": IMAGES.reshape(4, 3, 4, 9)}),
        ("bright", {"prompts": [Prompt(id=p.id, text=p.text + "!", columns=p.columns) for p in PROMPTS]}),
        ("bright", {"change": lambda file: file.write_text(COUNTING + "\n# another formula\n")}),
        ("by_level", {"prompts": changed(level=7.0)}),
        ("everything", {"prompts": changed(level=7.0)}),
        ("everything", {"prompts": changed(more=1)}),
    ],
)
def test_whatever_a_score_may_depend_on_must_miss(counted, use, change):
    counted(use)
    assert counted(use, **change)[1] == [4]


@pytest.mark.parametrize(
    ("use", "change"),
    [
        ("bright", {"prompts": changed(level=7.0)}),  # a column that it is not given
        ("bright", {"weight": 5.0}),
        ("bright", {"batch": 2, "timeout": 5.0, "retries": 3}),
        ("bright", {"prompts": [Prompt(id=9 - p.id, text=p.text) for p in PROMPTS]}),
    ],
)
def test_whatever_a_score_does_not_depend_on_still_hits(counted, use, change):
    counted(use)
    assert counted(use, **change)[1] == []


def test_a_stated_identity_takes_part(counted, monkeypatch, tmp_path):
    counted("Versioned")
    assert counted("Versioned")[1] == []
    (module,) = (m for m in sys.modules.values() if getattr(m, "__file__", None) == str(tmp_path / "mine.py"))
    monkeypatch.setattr(module.Versioned, "identity", "weights of June")
    assert counted("Versioned")[1] == [4]


def test_failures_are_not_kept_and_do_not_hide_what_is_known(tmp_path):
    class Flaky:
        identity, broken = "flaky", True

        def __call__(self, images, prompts):
            if self.broken and "prompt 1" in prompts:
                raise OSError("once")
            return [0.5] * len(prompts)

    specs = {"r": {"use": Flaky(), "retries": 0, "batch": 1}}
    rewards = RewardSet.from_specs(specs, cache=tmp_path / "scores.db", failure_budget=1.0)
    assert rewards.score(IMAGES, PROMPTS).mask.tolist() == [True, False, True, True]
    assert rewards.score(IMAGES, PROMPTS).failures == {"r": 1}  # asked again, failed again
    specs["r"]["use"].broken = False
    assert rewards.score(IMAGES, PROMPTS).values["r"].tolist() == [0.5] * 4


class Plain:
    identity = "plain"
    asked = 0

    def __call__(self, images, prompts):
        type(self).asked += 1
        return [0.5] * len(prompts)


class Learner(Plain):
    def learn(self, images, prompts):
        return {}


class Groupwise(Plain):
    groupwise = True


class Unwilling(Plain):
    cacheable = False


class Anonymous(Plain):
    identity = None


@pytest.mark.parametrize(
    ("use", "calls"), [(Plain(), 1), (Learner(), 2), (Groupwise(), 2), (Unwilling(), 2), (Anonymous(), 2)]
)
def test_what_is_never_kept(tmp_path, use, calls):
    """A learning, groupwise or unwilling reward, and a Python object that does not say what it is."""
    type(use).asked = 0
    rewards = RewardSet.from_specs({"r": use}, cache=tmp_path / "scores.db")
    for _ in range(2):
        rewards.score(IMAGES, PROMPTS, group=torch.zeros(4, dtype=torch.int64))
    assert type(use).asked == calls


def test_functions_from_python_are_not_kept(tmp_path):
    for use in (lambda i, p: [0.5] * 4, functools.partial(lambda i, p, k: [k] * 4, k=1.0)):
        assert RewardSet.from_specs({"r": use}).identity("r") is None
    assert RewardSet.from_specs({"r": {"use": "jpeg_compressibility"}}).identity("r")


def test_args_that_are_objects_are_not_kept(counted, tmp_path):
    (tmp_path / "any.py").write_text(
        "def reward(images, prompts, what=None):\n    return [0.5] * len(prompts)\n"
    )
    spec = {"use": f"{tmp_path / 'any.py'}:reward", "args": {"what": object()}}
    assert RewardSet.from_specs({"r": spec}).identity("r") is None


def test_a_column_that_cannot_be_told_apart_is_refused(counted):
    with pytest.raises(RewardError, match="'mine' cannot be cached, because a column of prompt 'prompt 0'"):
        counted("everything", prompts=changed(more=torch.zeros(1)))


def test_the_probe_before_a_run_asks_the_reward_itself(tmp_path):
    Plain.asked = 0
    rewards = RewardSet.from_specs({"r": Plain()}, cache=tmp_path / "scores.db")
    rewards.check(PROMPTS)
    rewards.check(PROMPTS)
    assert Plain.asked == 2


@pytest.mark.parametrize(
    ("use", "calls"), [(Plain(), 1), (Learner(), 2), (Groupwise(), 2), (Unwilling(), 2), (Anonymous(), 2)]
)
def test_a_probe_may_be_spared_where_the_cache_knows_its_answer(tmp_path, use, calls):
    type(use).asked = 0
    rewards = RewardSet.from_specs({"r": {"use": use, "weight": 2.0}}, cache=tmp_path / "scores.db")
    assert [rewards.check(PROMPTS, cached=True) for _ in range(2)] == [(1.0, 1.0)] * 2
    assert type(use).asked == calls


def test_a_probe_by_way_of_the_cache_fails_in_the_same_words(tmp_path):
    class Broken:
        identity = "broken"

        def __call__(self, images, prompts):
            raise OSError("nobody there")

    rewards = RewardSet.from_specs({"r": {"use": Broken(), "retries": 0}}, cache=tmp_path / "scores.db")
    for cached in (False, True, True):
        with pytest.raises(
            RewardError, match=r"'r' failed on a probe of two flat images \(OSError: nobody there"
        ):
            rewards.check(PROMPTS, cached=cached)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(max_size=6), min_size=2, max_size=2, unique=True), level=st.integers(0, 255))
def test_keys_differ_where_anything_differs(texts, level):
    image = torch.full((1, 3, 2, 2), level / 255)

    def key(text, columns, shape=(1, 3, 2, 2), name="a"):
        prompt = Prompt(id=0, text=text, columns=columns)
        return score_keys(name, image.reshape(shape), [prompt], sorted(columns), name="r")[0]

    one, two = texts
    keys = [
        key(one, {}),
        key(two, {}),
        key(one, {"c": f"text {two}"}),  # never the "1" below
        key(one, {two: "c"}),
        key(one, {"c": 1}),
        key(one, {"c": 1.0}),
        key(one, {"c": True}),
        key(one, {"c": "1"}),
        key(one, {}, shape=(1, 3, 4, 1)),
        key(one, {}, name="b"),
    ]
    assert len(set(keys)) == len(keys) and {len(k) for k in keys} == {32}


def test_a_recipe_asks_for_it(tmp_path):
    from imgrl.config import resolve

    assert resolve(None).scoring.cache is None
    assert resolve(None, [f"scoring.cache={tmp_path}/scores.db"]).scoring.cache == f"{tmp_path}/scores.db"
