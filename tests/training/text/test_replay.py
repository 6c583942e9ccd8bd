import torch

from imgrl.training.text.replay import History, pad_alike


def group(value, prompt=2, completion=3):
    return {
        "prompt_ids": torch.full((2, prompt), value),
        "completion_ids": torch.full((2, completion), value),
        "advantages": torch.tensor([1.0, -1.0]) * value,
    }


def test_the_oldest_step_falls_out_and_ages_count_backwards():
    history = History(2)
    assert history.ages == []
    for step in range(1, 4):
        history.add([group(step)])
    assert history.ages == [1, 2]
    generator = torch.Generator().manual_seed(0)
    assert [int(history.draw(age, generator)["prompt_ids"][0, 0]) for age in (1, 2)] == [3, 2]


def test_what_was_saved_comes_back():
    history, other = History(2), History(2)
    history.add([group(1), group(2, prompt=4)])
    history.add([group(3)])
    other.add([group(9)])
    other.load_state_dict(history.state_dict())
    assert [[g["prompt_ids"].tolist() for g in step] for step in other.steps] == [
        [g["prompt_ids"].tolist() for g in step] for step in history.steps
    ]


def test_prompts_grow_to_the_left_and_completions_to_the_right():
    both = pad_alike([group(1), group(2, prompt=3, completion=5)], {"prompt_ids": 7, "completion_ids": 7})
    assert both["prompt_ids"].tolist() == [[7, 1, 1]] * 2 + [[2, 2, 2]] * 2
    assert both["completion_ids"].tolist() == [[1, 1, 1, 7, 7]] * 2 + [[2] * 5] * 2
    assert both["advantages"].tolist() == [1, -1, 2, -2]
