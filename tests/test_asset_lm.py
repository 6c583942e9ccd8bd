import json
import string

import pytest
import torch

from imgrl.resources import asset
from imgrl.world.arithmetic import problems, verify

FOLDER = asset("tiny-lm")


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER)


def test_it_is_small_and_does_not_say_where_it_was_made():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 12e6
    for file in FOLDER.rglob("*.json"):
        assert "_name_or_path" not in json.loads(file.read_text())


def test_the_stock_classes_load_it(model, tokenizer):
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    assert isinstance(model, LlamaForCausalLM) and isinstance(tokenizer, PreTrainedTokenizerFast)
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 3e6
    assert model.config.vocab_size == len(tokenizer)
    ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert ids == [model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id]
    assert len(set(ids)) == 3


def test_the_tokenizer_is_by_character_with_one_mark_in_front_and_gives_back_what_it_was_given(tokenizer):
    text = "".join(sign for sign in string.printable if sign.isprintable()) + "\n  x"
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text) + 1 and ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer("é").input_ids == [tokenizer.bos_token_id, tokenizer.unk_token_id]


def test_a_prompt_and_its_solution_are_the_tokens_of_both_together(tokenizer):
    for row in problems(30):
        prompt, answer = (
            tokenizer(row.prompt).input_ids,
            tokenizer(row.solution, add_special_tokens=False).input_ids,
        )
        assert tokenizer(row.prompt + row.solution).input_ids == prompt + answer
        assert len(prompt + answer) + 1 <= tokenizer.model_max_length


def test_padding_on_the_left_changes_no_probability(model, tokenizer):
    short, long = "mod 5 1+1*2:", "sort 38 17 91 22 56:"
    both = tokenizer([short, long], return_tensors="pt", padding=True)
    assert both.input_ids[0, 0] == tokenizer.pad_token_id
    positions = (both.attention_mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        padded = model(**both, position_ids=positions).logits[0, -1]
        alone = model(**tokenizer(short, return_tensors="pt")).logits[0, -1]
    torch.testing.assert_close(padded, alone, atol=1e-4, rtol=1e-4)


def test_it_is_middling_on_held_out_problems_and_one_of_eight_samples_is_usually_right(model, tokenizer):
    rows = problems(36, split="heldout", seed=11)
    inputs = tokenizer([row.prompt for row in rows], return_tensors="pt", padding=True)
    torch.manual_seed(0)
    out = model.generate(
        **inputs, max_new_tokens=64, do_sample=True, temperature=1.0, top_k=0, num_return_sequences=8
    )
    texts = tokenizer.batch_decode(out[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    right = torch.tensor([verify(rows[i // 8].prompt, text) for i, text in enumerate(texts)]).view(-1, 8)
    assert 0.25 <= right.float().mean() <= 0.6
    assert right.any(1).float().mean() >= 0.8
