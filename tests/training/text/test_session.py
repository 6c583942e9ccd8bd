import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_lm import save
from two_processes import command, two
from typer.testing import CliRunner

from imgrl.cli.main import app
from imgrl.config.text import resolve_text
from imgrl.objectives.text import SFT, TEXT_OBJECTIVES
from imgrl.recipe_text import AnyTextObjective
from imgrl.training.run_folder import holds_results, write_json
from imgrl.training.text import anchored

SMALL = [
    "run.steps=2",
    "data.count=32",
    "generation.max_tokens=12",
    "evaluation.limit=4",
    "evaluation.samples=2",
    "evaluation.every=0",
    "checkpoint.every=2",
]
SUPERVISED = {"dpo", "sft", "dft", "asft", "sft_kl", "f_sft"}


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["lm", "train", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def letters(tmp_path, monkeypatch):
    """A user's own reward: the share of digits among a completion's characters."""
    (tmp_path / "spread.py").write_text(
        "def letters(completions, prompts, **columns):\n"
        "    return [sum(c.isdigit() for c in text) / (len(text) + 1) for text in completions]\n"
    )
    return f"rewards={{letters: '{tmp_path}/spread.py:letters'}}"


def arguments(name, lm, folder, reward=None, **other):
    sizes = (
        ["batch.groups=4", "batch.group_size=1"]
        if name in SUPERVISED
        else ["batch.groups=2", "batch.group_size=4"]
    )
    rewards = [] if name in SUPERVISED or reward is None else [reward]
    return [
        f"tiny-lm/{name.replace('_', '-')}",
        f"model.path={lm}",
        f"run.dir={folder}",
        *(text for text in SMALL if text.split("=")[0] not in other),
        *(f"{key}={value}" for key, value in other.items()),
        *sizes,
        *rewards,
    ]


@pytest.mark.parametrize("name", [kind.name for kind in AnyTextObjective.__args__])
def test_every_objective_trains_and_leaves_a_run_folder(name, lm, teacher, tmp_path, letters):
    folder = tmp_path / "run"
    more = [f"model.teacher={teacher}"] if name in ("trrd", "kdrl", "meta_distill") else []
    run(*arguments(name, lm, folder, letters), *more)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["round"] == 0 and "heldout/pass@1" in rows[0]
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows if "loss" in row)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 2 and {"pass@1", "pass@2"} <= set(summary["before"]) & set(summary["after"])
    trained, base = load_file(folder / "model" / "model.safetensors"), load_file(lm / "model.safetensors")
    assert any(not torch.equal(trained[key], base[key]) for key in base)
    assert resolve_text(folder / "config.yaml").objective.name == name


def test_a_batch_of_completions_can_be_used_twice(lm, tmp_path, letters):
    """Rows with a mean length are those of steps that generated; only a second update leaves the ratio 1."""
    run(*arguments("grpo", lm, tmp_path / "run", letters), "objective.passes=2", "optimizer.lr=1e-2")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, second = [row for row in rows if "loss" in row]
    assert "completions/mean_length" in first and "completions/mean_length" not in second
    assert first["objective/ratio_gap"] < 1e-6 < 1e-3 < second["objective/ratio_gap"]


@pytest.mark.parametrize("name", ["ttrl", "spine"])
@pytest.mark.parametrize("cut", [[], ["batch.micro=4", "objective.passes=2"]], ids=["whole", "cut"])
def test_more_completions_may_vote_than_are_trained_on(name, cut, lm, tmp_path):
    folder = tmp_path / "run"
    given = arguments(name, lm, folder, "rewards={vote: {use: vote, args: {pattern: '([0-9])'}}}")
    run(*given, "batch.votes=12", *cut)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    unread = [row["rewards/vote/none"] for row in rows if "rewards/vote/none" in row]
    assert len(unread) == (1 if cut else 2) and all(0 <= share < 1 for share in unread)
    assert json.loads((folder / "summary.json").read_text())["steps"] == 2


def test_recipes_offer_every_objective():
    assert {kind.name for kind in AnyTextObjective.__args__} == set(TEXT_OBJECTIVES)


@pytest.mark.parametrize("name", ["asft", "sft_kl", "remix", "meta_distill"])
def test_a_resumed_run_ends_in_the_same_weights(name, lm, teacher, tmp_path, letters):
    """ReMix replays groups and renews its base on the way; ASFT keeps its base; SFT's here follows the policy."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = {
        "sft_kl": ["anchor={name: ema, schedule: 0.5}", "optimizer.lr=1e-2"],
        "remix": ["objective.reincarnate_at=2", "objective.replay=0.7"],
        "meta_distill": ["objective.length=2", "objective.operator=history", f"model.teacher={teacher}"],
    }.get(name, [])
    settings = [a for a in arguments(name, lm, whole, letters) if not a.startswith("run.steps")] + more
    run(*settings, "run.steps=6")
    shutil.copytree(whole, cut)
    for step in (4, 6):
        shutil.rmtree(cut / "checkpoints" / f"checkpoint-{step}", ignore_errors=True)
    if not (cut / "checkpoints" / "checkpoint-2").exists():  # only the newest two are kept
        shutil.rmtree(cut)
        first = [a.replace(str(whole), str(cut)) for a in settings]
        run(*first, "run.steps=2")
    for name_ in ("summary.json",):
        (cut / name_).unlink(missing_ok=True)
    run("--resume", cut, "run.steps=6")
    ours, theirs = (load_file(f / "model" / "model.safetensors") for f in (cut, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    losses = [
        [
            (r["round"], r["loss"])
            for line in (f / "metrics.jsonl").read_text().splitlines()
            if "loss" in (r := json.loads(line))
        ]
        for f in (cut, whole)
    ]
    assert losses[0] == losses[1]


def test_generations_move_on_and_the_student_comes_closer_to_its_target(lm, teacher, tmp_path, letters):
    """With one rollout a generation, the last generation of a step is the model after the step before it."""
    sizes = {"run.steps": 4, "checkpoint.every": 1}
    run(
        *arguments("meta_distill", lm, tmp_path / "run", letters, **sizes),
        *("objective.length=1", "objective.operator=history", "objective.strength=0.8"),
        *(f"model.teacher={teacher}", "checkpoint.keep=4", "optimizer.lr=3e-3"),
    )
    folders = [tmp_path / "run" / "checkpoints" / f"checkpoint-{step}" for step in range(1, 5)]
    models = [load_file(folder / "model.safetensors") for folder in folders]
    anchors = load_file(folders[3] / "anchors.safetensors")
    for generation, model in ((0, models[2]), (1, models[1])):
        own = {k.split("/", 1)[1]: t for k, t in anchors.items() if k.startswith(f"generation-{generation}/")}
        assert own and all(torch.equal(tensor, model[name]) for name, tensor in own.items())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    gaps = [row["objective/target_kl"] for row in rows if "loss" in row]
    assert gaps[0] > gaps[-1] > 0


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (
            "{name: ema, schedule: 0.75}",
            lambda base, one, two: 0.75 * (0.75 * base + 0.25 * one) + 0.25 * two,
        ),
        ("{name: snapshot, every: 2}", lambda base, one, two: two),
        ("frozen", lambda base, one, two: base),
    ],
)
@pytest.mark.parametrize("name", ["asft", "dpo", "spine"])
def test_an_anchor_moves_as_its_rule_says(name, rule, expected, lm, tmp_path, letters):
    """After two steps, by hand from the models that the two checkpoints hold."""
    more = {"checkpoint.every": 1, "optimizer.lr": 1e-2}
    run(*arguments(name, lm, tmp_path / "run", letters, **more), f"anchor={rule}", "checkpoint.keep=2")
    folders = [tmp_path / "run" / "checkpoints" / f"checkpoint-{step}" for step in (1, 2)]
    base, one, two = (load_file(f / "model.safetensors") for f in (lm, *folders))
    kept = load_file(folders[1] / "anchors.safetensors")
    for key in one.keys() & base.keys():
        torch.testing.assert_close(kept[f"base/{key}"], expected(base[key], one[key], two[key]))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert ("heldout/kl_to_base" in rows[0]) == (rule == "frozen")  # else no copy of the base is at hand


def test_lora_trains_and_its_base_is_the_model_without_it(lm, tmp_path):
    folder = tmp_path / "run"
    run(*arguments("asft", lm, folder), "model.train=lora", "model.lora.rank=2")
    adapter = load_file(folder / "model" / "adapter_model.safetensors")
    assert any(tensor.abs().sum() > 0 for key, tensor in adapter.items() if "lora_B" in key)


@pytest.mark.parametrize(
    ("name", "lora", "measured", "given"),
    [
        ("grpo", "gaussian", True, []),
        ("sft", "pissa", True, []),
        ("asft", None, True, []),
        ("sft", None, False, []),
        ("sft", None, True, ["evaluation.kl=true"]),
        ("asft", None, True, ["evaluation.kl=true", "anchor={name: ema, schedule: 0.5}"]),
    ],
)
def test_drift_in_weights_is_logged_always_and_the_kl_where_a_base_is_at_hand(
    name, lora, measured, given, lm, tmp_path, letters
):
    folder = tmp_path / "run"
    more = {"evaluation.every": 1, "optimizer.lr": 1e-2}
    adapter = ["model.train=lora", "model.lora.rank=2", f"model.lora.init={lora}"] if lora else []
    run(*arguments(name, lm, folder, letters, **more), *adapter, *given)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    moved = [row["weights/relative_update"] for row in rows if "weights/relative_update" in row]
    assert len(moved) == 2 and 0 < moved[0] < moved[1]
    kl = [row["heldout/kl_to_base"] for row in rows if "heldout/kl_to_base" in row]
    assert len(kl) == (3 if measured else 0)
    if measured:
        assert kl[0] == pytest.approx(0, abs=1e-6) and kl[2] > kl[0]


def test_a_masked_run_leaves_the_other_entries_as_they_were(lm, tmp_path, letters):
    from imgrl.analysis.masks import training_mask

    folder = tmp_path / "run"
    settings = [
        a.replace("evaluation.every=0", "evaluation.every=2") for a in arguments("grpo", lm, folder, letters)
    ]
    run(*settings, "model.mask=low", "optimizer.weight_decay=0.1")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert 0.5 < next(row["weights/sparsity"] for row in rows if "weights/sparsity" in row) < 1
    trained, base = load_file(folder / "model" / "model.safetensors"), load_file(lm / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    may = training_mask(base[name], "low")
    assert torch.equal(trained[name][~may], base[name][~may])
    assert not torch.equal(trained[name][may], base[name][may])


BAD = [
    (["tiny-lm/grpo", "batch.group_size=1"], "at least 2 for grpo"),
    (["tiny-lm/sft", "batch.group_size=2"], "must be 1 for sft"),
    (["tiny-lm/grpo", "batch.micro=7"], "batch.micro must divide"),
    (["tiny-lm/adpo", "batch.micro=8"], "left out for adpo"),
    (["tiny-lm/trrd", "model.teacher=null"], "set model.teacher"),
    (["tiny-lm/meta-distill", "model.teacher=null"], "set model.teacher"),
    (["tiny-lm/remix", "run.steps=3"], "multiple of objective.passes"),
    (["tiny-lm/sft", "anchor={name: ema}"], "has nothing to move for sft"),
    (["tiny-lm/remix", "objective.reincarnate_at=4", "anchor={name: ema}"], "leave one of them out"),
    (["tiny-lm/asft", "anchor={name: snapshot, every: 0}"], "Frozen for no renewal"),
    (["tiny-lm/asft", "anchor={name: ema, schedule: 1.5}"], "but is 1.5 at step 1"),
    (["tiny-lm/asft", "anchor={name: ema, schedule: {first: 0, last: 2, steps: 100}}"], "1.02 at step 51"),
    (
        ["tiny-lm/ttrl", "anchor={name: snapshot, every: 3}", "objective.passes=2"],
        "multiple of objective.passes",
    ),
    (["tiny-lm/sft", "generation.vllm={}"], "for objectives that generate"),
    (["tiny-lm/grpo", "generation.vllm={tensor_parallel: 2}"], "must divide the 1 processes"),
    (["tiny-lm/grpo", "generation.vllm={}"], "vLLM, which is not installed"),
    (["tiny-lm/ttrl", "batch.votes=8"], "at least batch.group_size (16)"),
    (["tiny-lm/sft", "batch.votes=8"], "not for sft"),
    (["tiny-lm/meta-distill", "model.teacher=x", "batch.votes=64"], "not for meta_distill"),
    (["tiny-lm/grpo", "batch.votes=64"], "batch.votes has no effect"),
    (["tiny-lm/remix", "batch.votes=64"], "not for remix"),
    (["tiny-lm/ttrl", "batch.votes=32", "batch.micro=8"], "multiple of batch.group_size (16)"),
    (["tiny-lm/grpo", "objective.clip=0.1"], "unknown key 'objective.clip'"),
    (["tiny-lm/grpo", "data.prompts=nowhere.jsonl"], "no file nowhere.jsonl"),
    (["tiny-lm/grpo", "data.prompts=arithmetic:test"], "splits train and heldout"),
    (["tiny-lm/grpo", "rewards={exactt: 1}"], "did you mean 'exact'"),
    (
        ["tiny-lm/grpo", "rewards={exact: {weight: 0, heldout_only: true}}"],
        "which language recipes do not know",
    ),
    (["tiny-lm/grpo", "evaluation.temperature=0"], "evaluation.samples=1"),
    (["tiny-lm/grpo", "model.teacher=tiny-lm"], "model.teacher has no effect: grpo asks no teacher"),
    (["tiny-lm/grpo", "rewards={ocr: 1.0}"], "'ocr' judges images"),
    (["tiny-lm/grpo", "generation.max_tokens=400"], "was made for no more than 128 in all"),
    (
        ["tiny-lm/grpo", "model.train=lora", "model.lora.targets=[nose]"],
        "names 'nose', but the model has no such layer",
    ),
]


@pytest.mark.parametrize(("given", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_is_one_sentence(given, sentence, lm, tmp_path):
    result = CliRunner().invoke(
        app, ["lm", "train", *given, f"model.path={lm}", f"run.dir={tmp_path / 'run'}"]
    )
    assert result.exit_code == 2 and sentence in result.stderr and result.stderr.count("\n") == 1


def test_rows_without_prompt_or_completion_are_named(lm, tmp_path):
    rows = tmp_path / "rows.jsonl"
    for text, sentence in (
        (
            '{"prompt": "a", "completion": "b"}\n{"prompt": " ", "completion": "b"}\n',
            "empty 'prompt' in row 2",
        ),
        ('{"prompt": "a", "completion": ""}\n', "empty 'completion' in row 1"),
        (
            '{"prompt": [], "completion": [{"role": "assistant", "content": "b"}]}\n',
            "empty 'prompt' in row 1",
        ),
        (
            '{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}\n'
            '{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": " "}]}\n',
            "empty 'completion' in row 2",
        ),
        ('{"question": "a"}\n', "no column 'prompt'"),
        ('{"prompt": \n', "cannot be read"),
        ("", "cannot be read|no rows"),
    ):
        rows.write_text(text)
        folder = tmp_path / f"run{len(text)}"
        result = CliRunner().invoke(
            app,
            ["lm", "train", "tiny-lm/sft", f"model.path={lm}", f"run.dir={folder}", f"data.prompts={rows}"],
        )
        assert result.exit_code == 2
        assert any(part in result.stderr for part in sentence.split("|")), result.stderr


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_a_pair_that_lacks_a_side_is_named(column, lm, tmp_path):
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    rows = tmp_path / "pairs.jsonl"
    for spoilt, sentence in (
        (pair | {column: "  "}, f"empty {column!r} in row 2"),
        (pair | {column: None}, f"empty {column!r} in row 2"),
        ({key: text for key, text in pair.items() if key != column}, f"{column!r} in row"),
    ):
        rows.write_text("\n".join(map(json.dumps, (pair, spoilt))))
        given = [*arguments("dpo", lm, tmp_path / "run"), f"data.prompts={rows}"]
        result = CliRunner().invoke(app, ["lm", "train", *given])
        assert result.exit_code == 2 and sentence in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_rows_whose_prompt_fills_the_longest_sequence_are_counted(name, lm, tmp_path):
    """One token a letter: of prompts with 4, 20 and 30 letters one leaves room for its completion in 10 tokens."""
    rows = tmp_path / "rows.jsonl"
    sides = {"completion": "b"} if name == "sft" else {"chosen": "bb", "rejected": "cc"}
    rows.write_text("\n".join(json.dumps({"prompt": n * "a", **sides}) for n in (4, 20, 30)))

    def output(most, code):
        given = arguments(name, lm, tmp_path / f"run{most}")
        return run(*given, f"data.prompts={rows}", f"data.max_tokens={most}", code=code)

    assert output(10, 0).count("2 training rows are left out: the prompt alone fills data.max_tokens=10") == 1
    assert "left out" not in output(40, 0)
    refused = output(4, 2)
    assert "data.max_tokens=4 is filled by the prompt alone in all 3 rows" in refused
    assert refused.count("\n") == 1


def test_an_empty_prompt_is_named_before_anything_is_generated(lm, tmp_path, letters):
    rows = tmp_path / "prompts.jsonl"
    rows.write_text('{"prompt": "add 1+2:"}\n{"prompt": ""}\n')
    given = [*arguments("grpo", lm, tmp_path / "run", letters), f"data.prompts={rows}"]
    result = CliRunner().invoke(app, ["lm", "train", *given])
    assert result.exit_code == 2 and "empty 'prompt' in row 2" in result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "run" / "before.json").exists()


def test_a_teacher_with_more_outputs_is_refused_where_distributions_are_mixed(lm, tmp_path, letters):
    other = save(tmp_path / "other", padding=3)
    given = [*arguments("meta_distill", lm, tmp_path / "run", letters), f"model.teacher={other}"]
    result = CliRunner().invoke(app, ["lm", "train", *given])
    assert result.exit_code == 2 and "give a teacher with as many" in result.stderr


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda loss, live: loss * float("nan"), "loss of step 2 is nan"),
        (lambda loss, live: loss + (0 * live).abs().sqrt(), "gradient of step 2 is nan"),  # slope 0 / 0
    ],
    ids=["loss", "gradient"],
)
def test_a_step_that_is_not_finite_is_refused_before_it_is_taken_or_saved(
    spoil, told, lm, tmp_path, monkeypatch
):
    real = SFT.loss

    def loss(self, batch, **more):
        out = real(self, batch, **more)
        return out if batch.step == 0 else out._replace(loss=spoil(out.loss, batch.log_prob))

    monkeypatch.setattr(SFT, "loss", loss)
    folder = tmp_path / "run"
    result = CliRunner().invoke(
        app, ["lm", "train", *arguments("sft", lm, folder, **{"checkpoint.every": 1})]
    )
    assert result.exit_code == 2 and told in result.stderr and result.stderr.count("\n") == 1, result.output
    assert [path.name for path in (folder / "checkpoints").glob("checkpoint-*")] == ["checkpoint-1"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows if "loss" in row] == [1]


@pytest.mark.parametrize("name", ["trrd", "kdrl", "meta_distill"])
def test_a_teacher_that_says_nan_is_one_sentence(name, lm, teacher, tmp_path, letters):
    broken = shutil.copytree(teacher, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["lm_head.weight"][3] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    given = [*arguments(name, lm, tmp_path / "run", letters), f"model.teacher={broken}"]
    result = CliRunner().invoke(app, ["lm", "train", *given])
    assert result.exit_code == 2 and "got NaN or infinity in rows" in result.stderr, result.output
    assert result.stderr.count("\n") == 1


def test_a_teacher_of_another_tokenizer_is_refused(lm, tmp_path):
    other = save(tmp_path / "other", extra="!?")
    folder = tmp_path / "run"
    output = CliRunner().invoke(
        app, ["lm", "train", *arguments("trrd", lm, folder), f"model.teacher={other}"]
    )
    assert output.exit_code == 2 and "must share one" in output.stderr


def test_a_reward_that_fails_stops_the_run_and_is_never_zero(lm, tmp_path):
    (tmp_path / "bad.py").write_text("def bad(completions, prompts):\n    raise OSError('gone')\n")
    reward = f"rewards={{bad: {{use: '{tmp_path}/bad.py:bad', retries: 0}}}}"
    result = CliRunner().invoke(app, ["lm", "train", *arguments("grpo", lm, tmp_path / "run", reward)])
    assert (
        result.exit_code == 2 and "failed on all 8 completions" in result.stderr and "gone" in result.stderr
    )


def test_a_masked_failure_is_told_once_in_the_fault_log(lm, tmp_path):
    (tmp_path / "bad.py").write_text(
        "calls = []\n"
        "def bad(completions, prompts):\n"
        "    calls.append(len(completions))\n"
        "    if len(calls) == 2:\n"
        "        raise OSError('gone')\n"
        "    return [float(len(text)) for text in completions]\n"
        "bad.groupwise = True\n"
    )
    reward = f"rewards={{bad: {{use: '{tmp_path}/bad.py:bad', retries: 0}}}}"
    output = run(*arguments("grpo", lm, tmp_path / "run", reward), "failure_budget=0.5")
    assert output.count("failed on 4 of 8 completions, which are masked") == 1
    (fault,) = map(json.loads, (tmp_path / "run" / "faults.jsonl").read_text().splitlines())
    assert "gone" in fault.pop("last")
    assert fault == {"round": 1, "reward": "bad", "failed": 4, "completions": 8}


def test_a_resume_with_other_settings_is_refused_and_spoils_nothing(lm, tmp_path):
    folder = tmp_path / "run"
    run(*arguments("sft", lm, folder))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for changed, sentence in (
        (
            "model.train=lora",
            r"other settings than the recipe given now: model.train ('full' then, 'lora' now)",
        ),
        ("optimizer.lr=1e-3", "optimizer.lr (0.0001 then, 0.001 now)"),
        ("objective={name: dft}", "objective.name ('sft' then, 'dft' now)"),
        ("run.dir=elsewhere", "leave run.dir out"),
    ):
        assert sentence in run("--resume", folder, changed, "run.steps=4", code=2)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("file", "damage", "sentence"),
    [
        ("optimizer.pt", None, "lacks optimizer.pt"),
        ("optimizer.pt", lambda data: data[: len(data) // 2], "checkpoint-2 cannot be read"),
        ("model.safetensors", lambda data: data[: len(data) // 2], "checkpoint-2 cannot be read"),
        ("anchors.json", lambda data: data[:5], "checkpoint-2 cannot be read"),
        ("anchors.safetensors", lambda data: data[:5], "checkpoint-2 cannot be read"),
        ("trainer_state.json", lambda data: data[:5], "checkpoint-2 cannot be read"),
        ("rng_state.pth", lambda data: data[:500], "checkpoint-2 cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named(file, damage, sentence, lm, tmp_path):
    folder = tmp_path / "run"
    run(*arguments("sft", lm, folder))
    broken = folder / "checkpoints" / "checkpoint-2" / file
    whole = broken.read_bytes()
    broken.unlink() if damage is None else broken.write_bytes(damage(whole))
    output = run("--resume", folder, "run.steps=4", code=2)
    assert sentence in output and "delete that folder to resume from an earlier checkpoint" in output


def test_conversations_need_a_chat_template(lm, tmp_path):
    rows = tmp_path / "rows.jsonl"
    ask = '[{"role": "user", "content": "a"}]'
    say = '[{"role": "assistant", "content": "b"}]'
    rows.write_text(
        f'{{"prompt": {ask}, "completion": {say}, "chosen": {say}, "rejected": {say[:-3]}c"}}]}}\n' * 8
    )
    for name in ("grpo", "sft", "dpo"):
        given = arguments(name, lm, tmp_path / name, None, **{"data.prompts": rows})
        assert f"{rows} holds conversations, but the model's tokenizer has no chat template" in run(
            *given, code=2
        )


def test_rows_beyond_the_models_positions_are_refused_unless_they_are_cut(lm, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"prompt": "1+1=", "completion": "2"}\n{"prompt": "a", "completion": "' + 200 * "b" + '"}\n'
    )
    given = arguments("sft", lm, tmp_path / "run", None, **{"data.prompts": rows})
    assert "Row 2 of " in (output := run(*given, "data.max_tokens=512", code=2))
    assert "has 201 tokens, but the model was made for no more than 128: set data.max_tokens to 128" in output
    run(*given, "data.max_tokens=128")


def test_a_run_that_no_reward_applies_to_ends_with_a_sentence(lm, tmp_path):
    quiet = tmp_path / "quiet.py"
    quiet.write_text("def nothing(texts, prompts):\n    return [None] * len(texts)\n")
    given = arguments(
        "grpo", lm, tmp_path / "run", f"rewards={{nothing: '{quiet}:nothing'}}", **{"run.steps": 5}
    )
    output = run(*given, code=2)
    assert output.count("no reward applied to any completion") == 2
    assert "No reward (nothing) applied to any completion of the first 3 rollouts" in output


def test_a_teacher_teaches_without_rewards_and_a_run_that_had_some_may_fall_silent(lm, teacher, tmp_path):
    moody = tmp_path / "moody.py"
    moody.write_text(
        "import pathlib\n"
        "def moody(texts, prompts):\n"
        f"    loud = pathlib.Path('{tmp_path}/loud').exists()\n"
        "    return [float(len(text)) if loud else None for text in texts]\n"
    )
    reward = f"rewards={{moody: '{moody}:moody'}}"
    given = arguments("meta_distill", lm, tmp_path / "taught", reward, **{"run.steps": 4})
    run(*given, f"model.teacher={teacher}")
    (tmp_path / "loud").touch()
    run(*arguments("grpo", lm, tmp_path / "run", reward))
    (tmp_path / "loud").unlink()
    run("--resume", tmp_path / "run", "run.steps=6")


def test_no_resume_without_a_checkpoint_and_no_second_run_in_a_folder(lm, tmp_path):
    folder = tmp_path / "run"
    run(*arguments("sft", lm, folder))
    result = CliRunner().invoke(app, ["lm", "train", *arguments("sft", lm, folder)])
    assert result.exit_code == 2 and "already holds a run" in result.stderr
    killed = tmp_path / "killed"  # its checkpoint is all it left
    (killed / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    assert not holds_results(killed)  # anchors.json is written last: this checkpoint is not whole
    (killed / "checkpoints" / "checkpoint-2" / "anchors.json").touch()
    result = CliRunner().invoke(app, ["lm", "train", *arguments("sft", lm, killed)])
    assert result.exit_code == 2 and "already holds a run" in result.stderr
    shutil.rmtree(folder / "checkpoints")
    result = CliRunner().invoke(app, ["lm", "train", "--resume", str(folder)])
    assert result.exit_code == 2 and "no whole checkpoint" in result.stderr


def test_a_resumed_run_whose_minutes_are_used_up_stops_at_once(lm, tmp_path):
    folder = tmp_path / "run"
    run(*arguments("sft", lm, folder, **{"run.steps": 9}), "run.minutes=1e-4")
    (checkpoint,) = (folder / "checkpoints").glob("checkpoint-*")
    seconds = json.loads((checkpoint / "anchors.json").read_text())["seconds"]
    first = json.loads((folder / "summary.json").read_text())
    assert seconds >= 6e-3 and first["steps"] < 9  # 1e-4 minutes
    trained = load_file(folder / "model" / "model.safetensors")
    (checkpoint / "anchors.json").write_text('{"anchors": [], "seconds": 300.0}')
    output = run("--resume", folder, "run.minutes=5")
    again = json.loads((folder / "summary.json").read_text())
    assert again["steps"] == first["steps"] and again["minutes"] == 5.0 and "reward" not in output
    assert again["after"] == first["after"] and not again["interrupted"]
    for key, tensor in load_file(folder / "model" / "model.safetensors").items():
        assert torch.equal(tensor, trained[key])
    (checkpoint / "anchors.json").write_text(
        '{"anchors": []}'
    )  # as earlier versions wrote it: counted from 0
    run("--resume", folder, "run.minutes=5", f"run.steps={first['steps'] + 1}")
    assert json.loads((folder / "summary.json").read_text())["steps"] == first["steps"] + 1


def test_a_run_that_is_done_takes_no_further_step_when_resumed(lm, tmp_path):
    folder = tmp_path / "run"
    run(*arguments("asft", lm, folder), "model.train=lora", "model.lora.rank=2", "optimizer.lr=0.1")
    adapter = load_file(folder / "model" / "adapter_model.safetensors")
    run("--resume", folder)
    assert json.loads((folder / "summary.json").read_text())["steps"] == 2
    for key, tensor in load_file(folder / "model" / "adapter_model.safetensors").items():
        assert torch.equal(tensor, adapter[key])


def test_without_intermediate_checkpoints_the_last_one_is_saved(lm, tmp_path):
    run(*arguments("sft", lm, tmp_path / "run", **{"checkpoint.every": 0}))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*-*")] == ["checkpoint-2"]


def test_the_last_whole_checkpoint_outlives_a_crash_while_the_next_is_written(lm, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    given = [*arguments("asft", lm, folder, **{"checkpoint.every": 1, "run.steps": 3}), "checkpoint.keep=1"]

    def left():
        return sorted(path.name for path in (folder / "checkpoints").glob("checkpoint-*"))

    def crash(file, value):
        if file.parent.name == "checkpoint-2":
            raise OSError(28, "no space left")
        write_json(file, value)

    with monkeypatch.context() as patch:
        patch.setattr(anchored, "write_json", crash)  # after all that TRL writes, before the file of facts
        run(*given, code=2)
    assert left() == ["checkpoint-1", "checkpoint-2"]
    run("--resume", folder)
    assert json.loads((folder / "summary.json").read_text())["steps"] == 3 and left() == ["checkpoint-3"]


def test_a_line_cut_short_by_a_crash_does_not_stop_a_resume(lm, tmp_path):
    folder = tmp_path / "run"
    run(*arguments("sft", lm, folder))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "lo')
    run("--resume", folder, "run.steps=3", "checkpoint.every=3")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows if "loss" in row] == [1, 2, 3]


def test_completions_without_a_vote_are_counted_and_not_zero(lm, tmp_path, caplog):
    folder = tmp_path / "run"
    output = run(*arguments("ttrl", lm, folder))  # random letters hold no answer
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["rewards/vote/none"] for row in rows if "loss" in row] == [1.0, 1.0]
    assert not any("reward" in row for row in rows)  # a mean of nothing is no number
    assert "returned None" not in output + caplog.text


def test_adapters_start_as_the_recipe_says(lm, tmp_path):
    lora = ["model.train=lora", "optimizer.lr=1e-12", "model.lora.rank=8"]
    spread = {}
    for init in ("gaussian", "kaiming"):
        run(*arguments("sft", lm, tmp_path / init), *lora, f"model.lora.init={init}")
        state = load_file(tmp_path / init / "model" / "adapter_model.safetensors")
        spread[init] = torch.cat([t.flatten() for name, t in state.items() if "lora_A" in name])
    assert abs(float(spread["gaussian"].std()) * 8 - 1) < 0.1  # normal, deviation 1 / rank
    assert float(spread["kaiming"].abs().max()) <= 16**-0.5  # uniform; 16 inputs or more


@pytest.mark.parametrize("name", ["sft", "remix"])
def test_two_processes_learn_what_one_learns(name, lm, tmp_path, letters):
    """Supervised: the same global batch, so the same weights. Online: other samples, but one run."""
    longer = {} if name == "sft" else {"checkpoint.every": 6, "run.steps": 6}
    given = arguments(name, lm, tmp_path / "two", letters, **longer)
    if name == "remix":  # four groups on each process, some of them old
        given[given.index("batch.groups=2")] = "batch.groups=8"
    two(command, ["lm", "train", *given])
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    steps = [row["round"] for row in rows if "loss" in row]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] == (2 if name == "sft" else 6)
    if name == "remix":
        assert max(row.get("objective/replayed", 0) for row in rows) > 0
        return
    run(*arguments(name, lm, tmp_path / "one"))
    one, both = (load_file(tmp_path / f / "model" / "model.safetensors") for f in ("one", "two"))
    for key, tensor in one.items():
        torch.testing.assert_close(both[key], tensor, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "dies"),
    [("grpo", "reward"), ("remix", "reward"), ("meta_distill", "reward"), ("remix", "verifier")],
)
def test_what_was_trained_before_a_reward_died_is_kept(name, dies, lm, teacher, tmp_path):
    """It ends, says where it saved, and goes on from there to the weights of a run in which nothing died."""
    calls, ill, good = tmp_path / "calls", tmp_path / "gone", 4 if dies == "reward" else 2
    (tmp_path / "own.py").write_text(
        "from pathlib import Path\n"
        f"CALLS, ILL = Path({str(calls)!r}), Path({str(ill)!r})\n"
        "def digits(completions, prompts, **columns):\n"
        "    with CALLS.open('a') as file:\n"
        "        file.write('x')\n"
        f"    if ILL.exists() and len(CALLS.read_text()) > {good}:\n"
        "        raise ConnectionError('the judge is gone')\n"
        "    return [sum(c.isdigit() for c in text) / (len(text) + 1) for text in completions]\n"
        "def other(completions, prompts, **columns):\n"
        "    return [sum(c.isdigit() for c in text) / (len(text) + 1) for text in completions]\n"
    )
    spec = {"use": f"{tmp_path}/own.py:digits", "retries": 0}
    rewards = {"reward": spec if dies == "reward" else {**spec, "use": f"{tmp_path}/own.py:other"}}
    more = {
        "remix": ["objective.replay=0.7", "objective.reincarnate_at=2"],
        "meta_distill": [f"model.teacher={teacher}", "objective.length=1"],
    }.get(name, [])
    every = {"evaluation.every": 4} if dies == "verifier" else {}
    if dies == "verifier":
        more += [f"evaluation.verifier={tmp_path}/own.py:digits"]

    def given(folder):
        sizes = {"run.steps": 12, "checkpoint.every": 0, **every}
        return [*arguments(name, lm, tmp_path / folder, f"rewards={json.dumps(rewards)}", **sizes), *more]

    run(*given("whole"))
    calls.unlink()
    ill.touch()
    output = run(*given("ill"), code=2)
    (saved,) = (tmp_path / "ill" / "checkpoints").glob("checkpoint-*")
    assert f"what was trained is kept in {saved}" in output and 0 < int(saved.name.split("-")[1]) < 12
    ill.unlink()
    run("--resume", tmp_path / "ill")
    whole, healed = (load_file(tmp_path / f / "model" / "model.safetensors") for f in ("whole", "ill"))
    assert all(torch.equal(tensor, healed[key]) for key, tensor in whole.items())
    assert numbers_of(tmp_path / "ill") == numbers_of(tmp_path / "whole")


def numbers_of(folder):
    """What each step said, but for the clock."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    clocks = ("step_time", "runtime", "per_second")
    return [
        {key: value for key, value in row.items() if not key.endswith(clocks) and "heldout" not in key}
        for row in rows
        if "loss" in row
    ]


def test_without_a_recipe_the_bundled_model_trains_and_says_how_it_stood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = [
        "run.steps=2",
        "batch.groups=2",
        "evaluation.limit=4",
        "evaluation.samples=2",
        "evaluation.every=0",
    ]
    output = run(*short, "checkpoint.every=2")
    (folder,) = (tmp_path / "runs").iterdir()  # named by the recipe and the time
    saved, summary = resolve_text(folder / "config.yaml"), json.loads((folder / "summary.json").read_text())
    assert (saved.model.path, saved.objective.name) == ("tiny-lm", "grpo")
    before, after = summary["before"]["pass@1"], summary["after"]["pass@1"]
    assert f"held-out pass@1 before training: {before:.3f}\n" in output
    assert f"held-out pass@1 after 2 steps: {after:.3f} (before: {before:.3f})\n" in output
    assert 0.2 < before < 0.7  # of 8 answers: it is the model that can be improved, no random one


def test_a_full_disk_does_not_hide_what_ended_the_run(lm, tmp_path, monkeypatch):
    from imgrl.training.text import session

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(session, "save_last_step", full)
    (tmp_path / "own.py").write_text(
        "def gone(completions, prompts, **columns):\n    raise ConnectionError('the judge is gone')\n"
    )
    rewards = f"rewards={{gone: {{use: '{tmp_path}/own.py:gone', retries: 0}}}}"
    output = run(*arguments("grpo", lm, tmp_path / "run", rewards), code=2)
    assert "could not be saved ([Errno 28] No space left on device)" in output
    assert output.rstrip().endswith("ConnectionError: the judge is gone.")
