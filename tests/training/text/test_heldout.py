"""Held-out scores with a verifier whose answers are known, and the KL to the model before training token by token."""

import json

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from transformers import PreTrainedModel
from typer.testing import CliRunner

from imgrl.cli.main import app
from imgrl.errors import ConfigError
from imgrl.recipe_text import TextEvaluation, TextModel
from imgrl.training.text.copies import WeightCopy
from imgrl.training.text.heldout import HeldOut
from imgrl.training.text.models import load_model

JUDGES = '''
def second(completions, prompts):
    """Every second completion is right."""
    return [float(i % 2) for i in range(len(completions))]


def first_of_group(completions, prompts):
    """Called group by group: the first three of four are right."""
    assert len(set(prompts)) == 1 and len(completions) == 4
    return [1.0, 1.0, 1.0, 0.0]


first_of_group.groupwise = True
'''


@pytest.fixture
def judges(tmp_path):
    (tmp_path / "judges.py").write_text(JUDGES)
    return tmp_path / "judges.py"


def evaluated(lm, *overrides, code=0):
    given = ["evaluation.limit=5", "generation.max_tokens=6", *overrides]
    result = CliRunner().invoke(app, ["lm", "eval", "--model", str(lm), "--json", *map(str, given)])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code == 0 else result.stderr


def test_imgrl_lm_eval_counts_what_the_verifier_calls_right(lm, judges):
    scores = evaluated(lm, f"evaluation.verifier={judges}:second", "evaluation.samples=2")
    assert scores["pass@1"] == 0.5 and scores["pass@2"] == 1.0 and 0 < scores["tokens"] <= 6
    assert "kl_to_base" not in scores  # nothing was trained
    by_group = evaluated(lm, f"evaluation.verifier={judges}:first_of_group", "evaluation.samples=4")
    assert by_group["pass@1"] == 0.75 and by_group["pass@4"] == 1.0


def test_a_verifier_may_have_arguments(lm, tmp_path):
    """The first character of a completion against answers of which one is right: greedy, as the model has it."""
    model, tokenizer = load_model(TextModel(path=str(lm)))
    prompts = ["add 12+34:", "mod 7 3+5*4:"]
    firsts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        made = model.generate(input_ids=ids, max_new_tokens=1, do_sample=False)[0, -1:]
        firsts.append(tokenizer.decode(made))
    rows = tmp_path / "rows.jsonl"
    answers = [firsts[0], firsts[1] + "?"]
    rows.write_text(
        "\n".join(json.dumps({"prompt": p, "answer": a}) for p, a in zip(prompts, answers, strict=True))
    )
    pattern = r"{use: regex, args: {pattern: '\A(\S)'}}"
    greedy = ["evaluation.temperature=0", "evaluation.samples=1", f"evaluation.prompts={rows}"]
    assert evaluated(lm, f"evaluation.verifier={pattern}", *greedy)["pass@1"] == 0.5


CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}bot:{% endif %}"
)


def test_conversations_are_read_through_the_tokenizers_chat_template(lm, tmp_path):
    """As if they had been written down as the template writes them, here by hand; no special token is added."""
    questions = ["add 12+34:", "mod 7 3+5*4:"]
    chats = [[{"role": "user", "content": question}] for question in questions]
    by_hand = [f"user: {question};bot:" for question in questions]
    said = []
    for name, prompts in (("chats", chats), ("texts", by_hand)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("\n".join(json.dumps({"prompt": p, "answer": "1"}) for p in prompts))
        model, tokenizer = load_model(TextModel(path=str(lm)))
        tokenizer.chat_template = CHAT
        spec = TextEvaluation(prompts=str(file), samples=1, temperature=0.0, verifier="exact")
        heldout = HeldOut(spec, tokenizer, max_tokens=6)
        assert heldout.texts == by_hand and heldout.templated == (name == "chats")
        said.append(heldout._generate(model)[0])
        heldout(model)
    assert said[0] == said[1] and said[0][0]
    error = evaluated(lm, f"evaluation.prompts={tmp_path}/chats.jsonl", code=2)  # without a template
    assert "has no chat template" in error and error.count("\n") == 1


def test_a_prompt_that_the_chat_template_cannot_read_is_refused(lm, tmp_path):
    file = tmp_path / "odd.jsonl"
    file.write_text(json.dumps({"prompt": [{"role": "narrator", "content": "hello"}], "answer": "1"}))
    _, tokenizer = load_model(TextModel(path=str(lm)))
    tokenizer.chat_template = "{{ raise_exception('no such role') if messages[0].role != 'user' else '' }}"
    with pytest.raises(ConfigError, match="chat template cannot read .no such role.*list of messages"):
        HeldOut(TextEvaluation(prompts=str(file), verifier="exact"), tokenizer, max_tokens=6)


def test_imgrl_lm_eval_says_the_same_again_and_as_a_line(lm):
    once, again = (evaluated(lm, "evaluation.samples=2") for _ in range(2))
    assert once == again and {"pass@1", "pass@2", "tokens"} <= set(once)
    result = CliRunner().invoke(
        app,
        [
            "lm",
            "eval",
            "--model",
            str(lm),
            "evaluation.limit=5",
            "evaluation.samples=2",
            "generation.max_tokens=6",
        ],
    )
    assert result.exit_code == 0 and f"pass@1 {once['pass@1']:.3f}" in result.stdout


@pytest.mark.parametrize("present", [True, False])
def test_imgrl_lm_eval_computes_on_the_gpu_where_there_is_one(present, lm, monkeypatch):
    places = []

    def move(self, place):
        places.append(place)
        return self

    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    monkeypatch.setattr(PreTrainedModel, "to", move)
    evaluated(lm, "evaluation.samples=1")
    assert places[-1] == ("cuda" if present else "cpu")


def test_imgrl_lm_eval_refuses_what_it_cannot_do_in_one_sentence(lm, judges):
    for given, sentence in (
        (["evaluation.temperature=0"], "evaluation.samples=1"),
        (["evaluation.verifier=exactt"], "did you mean 'exact'"),
        (["evaluation.kl=true"], "which imgrl lm eval has not"),
        (["evaluation.verifier={use: exactt}"], "did you mean 'exact'"),
        (["evaluation.verifier={use: regex}"], "pattern"),
        (["evaluation.verifier={use: regex, args: {pattern: 'a'}}"], "exactly one group"),
        (["evaluation.verifier={use: exact, weight: 2}"], "leave weight, heldout_only and batch out"),
        (["evaluation.verifier={use: exact, retries: -1}"], "must not be negative"),
        (["evaluation.verifier=vote", "evaluation.samples=1"], "cannot judge the held-out problems"),
    ):
        error = evaluated(lm, *given, code=2)
        assert sentence in error and error.count("\n") == 1


def test_the_kl_is_the_mean_over_the_tokens_up_to_the_end_which_counts(lm):
    """Greedy completions one by one, without padding, and the KL of whole distributions by torch.distributions."""
    model, tokenizer = load_model(TextModel(path=str(lm)))
    spec = TextEvaluation(limit=6, samples=1, temperature=0.0, batch=4)
    heldout = HeldOut(spec, tokenizer, max_tokens=10)
    heldout.base = WeightCopy(model)
    assert heldout(model)["kl_to_base"] == pytest.approx(0, abs=1e-6)
    base, _ = load_model(TextModel(path=str(lm)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel())).view_as(parameter))
            if name == "lm_head.weight":
                parameter[tokenizer.eos_token_id] += 0.5  # some completions end early
        found = heldout(model)["kl_to_base"]
        by_token, lengths = [], []
        for row in heldout.rows:
            ids = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
            made = model.generate(input_ids=ids, max_new_tokens=10, do_sample=False)
            live, before = (m(input_ids=made).logits[0, ids.shape[1] - 1 : -1] for m in (model, base))
            by_token.append(kl_divergence(Categorical(logits=live), Categorical(logits=before)))
            lengths.append(len(by_token[-1]))
    assert min(lengths) < 10 and found > 0.01
    assert found == pytest.approx(float(torch.cat(by_token).mean()), rel=1e-4)
