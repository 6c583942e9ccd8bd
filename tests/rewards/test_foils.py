"""Captions with one word exchanged."""

import torch

from imgrl.rewards.foils import Foils

CAPTIONS = [
    "a red cube",
    "a blue cube",
    "a red ring",
    "two blue rings",
    "a green cube on a mat",
    "a green cube",
]


def drawn(foils, caption, times=60):
    generator = torch.Generator().manual_seed(0)
    return {foils.of(caption, generator) for _ in range(times)}


def test_one_word_is_exchanged_for_another_between_the_same_neighbours():
    # "red" stands between "a" and "cube", as "blue" and "green" do; "cube" ends after "red", as "ring" does
    assert drawn(Foils(CAPTIONS), "a red cube") == {"a blue cube", "a green cube", "a red ring"}


def test_places_where_nothing_else_stands_stay():
    assert drawn(Foils(CAPTIONS), "two blue rings") == {
        "a blue rings",
        "two blue cube",
    }  # "blue" itself stays
    assert drawn(Foils(CAPTIONS), "seven seas") == {None}
    assert drawn(Foils(CAPTIONS), "a purple cube") == {
        "a red cube",
        "a blue cube",
        "a green cube",
    }  # a new caption
    assert drawn(Foils(CAPTIONS), "") == {None} and drawn(Foils([]), "a red cube") == {None}


def test_draws_do_not_depend_on_the_order_of_captions():
    foils = Foils(CAPTIONS), Foils(CAPTIONS[::-1])
    one, other = (
        [own.of("a red cube", torch.Generator().manual_seed(i)) for i in range(20)] for own in foils
    )
    assert one == other
