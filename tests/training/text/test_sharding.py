"""Models sharded over two processes on a CPU, by torch's fully_shard: beside models that were never sharded."""

import sharded
from two_processes import two


def test_a_copy_of_a_sharded_model_speaks_as_it_did_and_gives_its_weights_back(lm):
    two(sharded.copies_speak_as_the_model_did, str(lm))


def test_copies_of_sharded_models_follow_and_are_kept(lm):
    two(sharded.copies_follow_and_are_kept, str(lm))
