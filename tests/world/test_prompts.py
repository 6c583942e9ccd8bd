"""The grammar against GenEval's templates, and the split against its promise."""

import re
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrl.evaluation.geneval.judge import check_metadata
from imgrl.world.prompts import (
    ALL_TASKS,
    all_prompts,
    held_out_combinations,
    is_held_out,
    prompts,
    random_signs,
    sign,
)
from imgrl.world.vocabulary import COLORS, COUNT_WORDS, RELATIONS, SHAPES, TASKS, WORDS

# Prompts of each task, counted by hand: n names, ordered pairs, names x 3 counts, colours x names,
# pairs x 4 relations, pairs x ordered pairs of colours.
SIZES = dict(zip(TASKS, (6, 30, 18, 48, 120, 1680), strict=True))
COLOR, SHAPE = "|".join(COLORS), "|".join(SHAPES)
# GenEval's templates (create_prompts.py), written out again as patterns.
TEMPLATES = {
    "single_object": f"a photo of an? ({SHAPE})",
    "two_object": f"a photo of an? ({SHAPE}) and an? ({SHAPE})",
    "counting": r"a photo of (two|three|four) \w+s",
    "colors": f"a photo of an? ({COLOR}) ({SHAPE})",
    "position": f"a photo of an? ({SHAPE}) ({'|'.join(RELATIONS)}) an? ({SHAPE})",
    "color_attr": f"a photo of an? ({COLOR}) ({SHAPE}) and an? ({COLOR}) ({SHAPE})",
    "text": r'a sign that says "[A-Z0-9]{3,5}"',
}


def combinations(text):
    """What a prompt contains, read off its text: bare shape, colour-shape, ordered pair, count, word."""
    if text.startswith("a sign"):
        return {("word", text.split('"')[1])}
    found = {("color_shape", pair) for pair in re.findall(f"({COLOR}) ({SHAPE})", text)}
    names = re.findall(f"\\b({SHAPE})\\b", text)
    count = re.search(r"(two|three|four) (\w+)s$", text)
    if count:
        number, name = {"two": 2, "three": 3, "four": 4}[count[1]], count[2]
        found.add(("shape_count", (name if name in SHAPES else name[:-1], number)))
    elif len(names) == 2:
        found.add(("shape_pair", tuple(names)))
    elif not found:
        found.add(("shape", names[0]))
    return found


HELD = {(kind, item) for kind, items in held_out_combinations().items() for item in items}


def test_the_six_tasks_have_1902_prompts():
    assert {task: len(list(all_prompts(task))) for task in TASKS} == SIZES
    assert sum(SIZES.values()) == 1902
    texts = [text for task in ALL_TASKS for text, _ in all_prompts(task)]
    assert len(set(texts)) == len(texts) == 1902 + len(WORDS)


@pytest.mark.parametrize("task", ALL_TASKS)
def test_prompts_follow_genevals_templates(task):
    for text, metadata in all_prompts(task):
        assert re.fullmatch(TEMPLATES[task], text), text
        assert metadata["tag"] == task and metadata["prompt"] == text
        assert " a orange" not in text and " an blue" not in text
        if task != "text":
            check_metadata(metadata)


def test_metadata_is_genevals():
    """Rows of GenEval's own evaluation_metadata.jsonl with the nouns exchanged."""
    rows = {text: metadata for task in TASKS for text, metadata in all_prompts(task)}
    assert rows["a photo of three stars"] == {
        "tag": "counting",
        "include": [{"class": "star", "count": 3}],
        "exclude": [{"class": "star", "count": 4}],
        "prompt": "a photo of three stars",
    }
    assert rows["a photo of two crosses"]["include"] == [{"class": "cross", "count": 2}]
    assert rows["a photo of a ring left of a star"]["include"] == [
        {"class": "star", "count": 1},  # the target first
        {"class": "ring", "count": 1, "position": ["left of", 0]},
    ]
    assert rows["a photo of an orange star and a red ring"]["include"] == [
        {"class": "star", "count": 1, "color": "orange"},
        {"class": "ring", "count": 1, "color": "red"},
    ]


def test_the_split_parts_texts_and_combinations():
    train, held = prompts("train", ALL_TASKS), prompts("heldout", ALL_TASKS)
    assert {p.text for p in train} | {p.text for p in held} == {
        t for k in ALL_TASKS for t, _ in all_prompts(k)
    }
    assert not {p.text for p in train} & {p.text for p in held}
    for prompt in train:
        assert not combinations(prompt.text) & HELD, prompt.text
    for prompt in held:
        assert combinations(prompt.text) & HELD, prompt.text


def test_held_out_shares():
    held = held_out_combinations()
    assert {kind: len(items) for kind, items in held.items()} == {
        "color_shape": 10,  # of 48
        "shape_pair": 6,  # of 30
        "shape_count": 4,  # of 18
        "shape": 2,  # of 6
        "word": round(0.2 * len(WORDS)),
    }
    for task in ALL_TASKS:  # every task can be trained and tested
        names = {split: {p.columns["tag"] for p in prompts(split, [task])} for split in ("train", "heldout")}
        assert names == {"train": {task}, "heldout": {task}}


def test_pretraining_meets_every_name_and_count_but_no_other_held_out_combination():
    held = held_out_combinations()
    names = {p.columns["include"][0]["class"] for p in prompts("pretraining", ["single_object"])}
    assert names == set(SHAPES)
    assert len(prompts("pretraining", ["counting"])) == len(SHAPES) * len(COUNT_WORDS)
    rest = [task for task in ALL_TASKS if task not in ("single_object", "counting")]
    seen = prompts("pretraining", rest)
    assert [p.text for p in seen] == [p.text for p in prompts("train", rest)]
    pairs = {(c.get("color"), c["class"]) for p in seen for c in p.columns["include"]}
    assert not pairs & held["color_shape"]


def test_every_name_stays_in_training():
    for values in (SHAPES, COLORS):
        text = " ".join(p.text for p in prompts("train"))
        assert all(value in text for value in values)
    pairs = held_out_combinations()["color_shape"]
    assert all(sum(c == color for c, _ in pairs) <= 2 for color in COLORS)
    assert all(sum(s == shape for _, s in pairs) <= 2 for shape in SHAPES)


@given(
    pair=st.sampled_from(list(permutations(SHAPES, 2))),
    colors=st.sampled_from(list(permutations(COLORS, 2))),
    relation=st.sampled_from(RELATIONS),
)
def test_what_holds_a_prompt_out(pair, colors, relation):
    """is_held_out reads metadata; the text says the same."""
    (a, b), (first, second) = pair, colors
    include = [{"class": a, "count": 1, "color": first}, {"class": b, "count": 1, "color": second}]
    text = f"a photo of a {first} {a} and a {second} {b}"
    assert is_held_out({"tag": "color_attr", "include": include}) == bool(combinations(text) & HELD)
    moved = [{"class": b, "count": 1}, {"class": a, "count": 1, "position": [relation, 0]}]
    text = f"a photo of a {a} {relation} a {b}"
    assert is_held_out({"tag": "position", "include": moved}) == bool(combinations(text) & HELD)


@settings(max_examples=12, deadline=None)
@given(limit=st.integers(1, 12), seed=st.integers(0, 99), repeat=st.booleans())
def test_limits(limit, seed, repeat):
    chosen = prompts("heldout", limit_per_task=limit, repeat_to_limit=repeat, seed=seed)
    again = prompts("heldout", limit_per_task=limit, repeat_to_limit=repeat, seed=seed)
    assert chosen == again
    assert [p.id for p in chosen] == list(range(len(chosen)))
    for task in TASKS:
        mine = [p.text for p in chosen if p.columns["tag"] == task]
        available = len(prompts("heldout", [task]))
        assert len(mine) == (limit if repeat else min(limit, available))
        assert len(set(mine)) == min(limit, available)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="split 'train', 'heldout' or 'pretraining', got 'test'"):
        prompts("test")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="got 'poetry'"):
        prompts("train", ["poetry"])


def test_random_signs_are_new_strings_of_three_to_five_letters_or_digits():
    train, heldout = random_signs("train"), random_signs("heldout")
    words = [sign.columns["text"] for sign in (*train, *heldout)]
    assert len(train) == 452 and len(heldout) == 48
    assert len(set(words)) == 500 and not set(words) & set(WORDS)
    assert all(re.fullmatch(r"[A-Z]{3,5}|[0-9]{3,5}", word) for word in words)
    assert {len(word) for word in words} == {3, 4, 5}
    assert [(sign.id, sign.text) for sign in train] == [
        (i, f'a sign that says "{word}"') for i, word in enumerate(words[:452])
    ]
    assert 0.05 < sum(word.isdigit() for word in words) / len(words) < 0.2


def test_one_sign_is_the_grammars():
    assert sign("CAT").text == 'a sign that says "CAT"' and sign("CAT").columns["text"] == "CAT"
    assert (
        sign("CAT").columns
        == next(p for p in prompts("train", ["text"]) if p.text == sign("CAT").text).columns
    )
