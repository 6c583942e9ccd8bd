"""`imgrl style`: a whole run on random weights, and everything that is refused before it."""

import json

import numpy as np
import pytest
from PIL import Image

from imgrl.cli.style_report import print_report
from imgrl.config import resolve
from imgrl.evaluation.style import caveats
from imgrl.world.styles import style_set


@pytest.fixture
def own(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def tiny(small):
    """The shortest run: small's model and batch, without its reward and prompts."""
    keep = [text for text in small if not text.startswith(("rewards", "data", "evaluation", "objective"))]
    args = "rewards.like.args={references: world:plain, hidden: 8, schedule: {steps: 1, warmup: 0}}"
    imitation = "imitation={pictures: world:plain, batch: 2, steps: 1}"
    return [
        *keep,
        args,
        imitation,
        "run.rounds=1",
        "run.dir=run",
        "evaluation={steps: [1], images_per_prompt: 2}",
    ]


def test_pictures_become_a_lora_a_grid_and_figures(imgrl, own, tiny, tmp_path):
    (tmp_path / "content.txt").write_text("".join(f"a thing number {n}\n" for n in range(10)))
    result = imgrl("style", "--images", own, "--prompts", "content.txt", *tiny, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    report = json.loads(result.stdout)
    run = tmp_path / "run"
    assert report == json.loads((run / "style" / "style.json").read_text())
    assert list(report["strength"]) == ["0", "0.5", "1"]
    assert set(report["strength"]["1"]) == {"probe", "gram", "kid", "copied", "content", "diversity"}
    assert (
        report["features"] == "efficientnet-lite0" and "nearest image of the base model" in report["notes"][1]
    )
    assert "efficientnet-lite0, which the training reward reads too" in report["notes"][0]
    assert report["references"] == {"train": 8, "heldout": 2} and report["images"] == 8
    assert (run / "style" / "before-after.png").is_file() and (run / "lora").is_dir()
    recipe = resolve(run / "config.yaml")
    assert recipe.rewards["like"].args["references"].endswith("references-train.txt")  # pyright: ignore
    assert recipe.imitation.pictures is None and "The pictures have no captions" in result.stderr
    held = [json.loads(line)["prompt"] for line in open(str(recipe.evaluation.prompts))]
    assert held == ["a thing number 4", "a thing number 9"]
    again = imgrl("style", "--resume", "run", "--json")
    assert again.exit_code == 0, (again.output, again.exception)
    assert json.loads(again.stdout) == report


def test_captions_are_the_prompts(imgrl, own, tiny, tmp_path):
    rows = [{"prompt": f"thing {n}", "refs": [f"{2 * n}.png", f"{2 * n + 1}.png"]} for n in range(5)]
    (own / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = imgrl("style", "--images", own / "list.jsonl", *tiny, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    drawn = [json.loads(line)["prompt"] for line in open(tmp_path / "run/style/prompts-train.jsonl")]
    assert drawn == [f"thing {n}" for n in range(4)]
    assert imitated(tmp_path / "run") == [("thing 0", 2), ("thing 1", 2), ("thing 2", 2), ("thing 3", 2)]


def test_rewards_that_do_not_learn_and_another_network_measure_too(imgrl, own, tiny, tmp_path):
    pytest.importorskip("timm")
    import timm
    from timm.models._hub import save_for_hf

    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    network = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, **sizes)
    network.pretrained_cfg = {**network.pretrained_cfg, "input_size": (3, 16, 16)}
    save_for_hf(network, tmp_path / "vit", model_args=sizes, safe_serialization=True)
    (tmp_path / "mine.py").write_text(
        "def length(images, prompts):\n    return [None if p[-1] == '9' else float(p[-1]) for p in prompts]\n"
    )
    (tmp_path / "content.txt").write_text("".join(f"a thing number {n}\n" for n in range(10)))
    asked = ["--features", "vit", "rewards.length={use: 'mine.py:length', weight: 0}"]
    result = imgrl("style", "--images", own, "--prompts", "content.txt", *tiny, *asked, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    report = json.loads(result.stdout)
    assert report["features"] == "vit" and len(report["notes"]) == 1
    # prompts 4 and 9 are kept back, and the reward does not apply to the second
    assert [figures["reward/length"] for figures in report["strength"].values()] == [4.0, 4.0, 4.0]


def test_the_report_tells_what_its_figures_cannot(capsys):
    """On features that the reward read too, in one sentence more than on others."""
    own, other = (caveats("a network", of_reward=name) for name in ("a network", "another"))
    assert len(own) == 2 and other == own[1:]
    assert "a network, which the training reward reads too" in own[0]
    assert "no agreement with the prompt" in own[1]
    figures = {"probe": 0.5, "content": 0.25}
    print_report({"strength": {"1": figures}, "images": 8, "notes": own, "picture": "a.png", "lora": "lora"})
    assert capsys.readouterr().out.endswith("\n".join([*own, "a.png", "lora"]) + "\n")


def imitated(run):
    """Caption and number of pictures of each line that the run learned from directly."""
    source = str(resolve(run / "config.yaml").imitation.pictures)
    rows = [json.loads(line) for line in (run / "style" / source.rsplit("/", 1)[-1]).read_text().splitlines()]
    return [(row["prompt"], len(row["refs"])) for row in rows]


def test_rendered_pictures_are_imitated_by_what_they_show(imgrl, tiny, tmp_path):
    (tmp_path / "content.txt").write_text("".join(f"a thing number {n}\n" for n in range(10)))
    given = ("--images", "world:hatched:10", "--prompts", "content.txt")
    result = imgrl("style", *given, *tiny, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    shown = [(prompt.text, 1) for prompt, _ in style_set("hatched", 10)]
    assert imitated(tmp_path / "run") == [pair for row, pair in enumerate(shown) if row % 5 != 4]
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])
    assert row["optimizer_steps"] == 1 and row["train/imitation"] > 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--images is missing: give a folder of pictures"),
        (("--images", "nowhere"), "References come from a folder of pictures"),
        (
            ("--images", "own", "tiny-sd3/crd"),
            "needs a recipe with one adversarial reward, but this one has 0",
        ),
        (("--images", "own", "model.train=full"), "imgrl style makes a LoRA file"),
        (("--images", "own", "model.mask=low"), "imgrl style makes a LoRA file"),
        (("--images", "own", "--prompts", "no.txt"), "no.txt"),
        (("--resume", "own"), "own is no run of imgrl style"),
        (("--resume", "own", "tiny-sd3/style"), "leave out the recipe 'tiny-sd3/style'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(refused, own, arguments, told):
    assert told in refused("style", *arguments)


def test_every_picture_that_cannot_be_used_is_named(refused, own):
    (own / "3.png").write_bytes(b"no picture")
    Image.open(own / "1.png").save(own / "copy.png")
    told = refused("style", "--images", own)
    assert "2 of 11 reference images cannot be used" in told
    assert "3.png" in told and "copy.png is the same picture as" in told


def test_prompts_without_references_are_refused_where_references_have_prompts(refused, own, tmp_path):
    rows = [{"prompt": f"thing {n}", "refs": [f"{2 * n}.png", f"{2 * n + 1}.png"]} for n in range(5)]
    (own / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "other.txt").write_text("thing 0\nsomething else\n")
    told = refused("style", "--images", own / "list.jsonl", "--prompts", "other.txt")
    assert "1 of 2 prompts have no reference for training, the first 'something else'" in told


def test_a_single_prompt_is_refused_before_training(refused, own, tmp_path):
    (tmp_path / "one.txt").write_text("a thing\n")
    told = refused("style", "--images", own, "--prompts", "one.txt")
    assert "imgrl style needs at least two prompts" in told


def test_a_finished_run_is_not_overwritten(refused, own, tmp_path):
    (tmp_path / "old" / "lora").mkdir(parents=True)
    told = refused("style", "--images", own, "run.dir=old")
    assert "continue it with `imgrl style --resume old`" in told
