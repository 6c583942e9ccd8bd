"""`imgrl score`: a folder of pictures, a table, and JSON."""

import json
from pathlib import Path

import pytest
from PIL import Image

SOURCE = """
def red(images, prompts, *, factor=1.0):
    return images[:, 0].mean((1, 2)) * factor

def some(images, prompts, tag=None):
    tag = tag or [None] * len(prompts)
    return [None if "skip" in prompt else float(len(word or "")) for prompt, word in zip(prompts, tag)]

def fails(images, prompts):
    if "skip bad" in prompts:
        raise RuntimeError("no idea")
    return [1.0] * len(prompts)

class Judge:
    identity = "judge of May"

    def __call__(self, images, prompts):
        with open("asked", "a") as file:
            file.writelines(prompt + "\\n" for prompt in prompts)
        if "broken" in prompts:
            raise OSError("nobody there")
        return images[:, 0].mean((1, 2))

def together(images, prompts):
    return [0.0] * len(prompts)
together.groupwise = True
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "images").mkdir()
    for name, level, size in (("0.png", 0, (16, 16)), ("1.png", 255, (24, 16)), ("2.png", 51, (16, 16))):
        Image.new("RGB", size, (level, 0, 0)).save(tmp_path / "images" / name)
    (tmp_path / "p.txt").write_text("a cat\nskip bad\na cat\n")
    return tmp_path / "images"


def test_a_table_and_every_score(imgrl, folder):
    """Pictures of two sizes; red levels 0, 1 and 0.2, mean 0.4, spread sqrt(0.56 / 3)."""
    given = [
        "--reward",
        "mine.py:red",
        "--reward",
        "mine.py:some",
        "--prompts",
        "p.txt",
        "--json",
        "out/s.json",
    ]
    result = imgrl("score", folder, *given)
    assert result.exit_code == 0, result.output
    lines = {line.split()[1]: line.split() for line in result.stdout.splitlines() if line.startswith("│")}
    assert [cell for cell in lines["red"] if cell != "│"] == ["red", "0.4", "0.432", "0", "1", "3", "0"]
    found = json.loads(Path("out/s.json").read_text())
    assert found["rewards"]["red"] == {
        "mean": pytest.approx(0.4),
        "std": pytest.approx((0.56 / 3) ** 0.5),
        "min": 0.0,
        "max": 1.0,
        "applied": 3,
        "failed": 0,
        "last_failure": None,
    }
    assert found["rewards"]["some"]["applied"] == 2
    assert [row["file"] for row in found["images"]] == [str(folder / f"{i}.png") for i in range(3)]
    assert found["images"][1]["scores"] == {"red": 1.0, "some": None}
    assert found["images"][1]["failed"] == [] and found["images"][1]["prompt"] == "skip bad"


def test_settings_and_names(imgrl, folder):
    text = "{use: 'mine.py:red', args: {factor: 2.0}}"
    result = imgrl(
        "score", folder, "--reward", "mine.py:red", "--reward", text, "--prompts", "p.txt", "--json", "s.json"
    )
    assert result.exit_code == 0, result.output
    rewards = json.loads(Path("s.json").read_text())["rewards"]
    assert rewards["red"]["mean"] == pytest.approx(0.4) and rewards["red-2"]["mean"] == pytest.approx(0.8)


def test_built_in_rewards_and_columns(imgrl, folder):
    rows = [{"file": "1.png", "prompt": "x", "tag": "four"}, {"file": "0.png", "prompt": "y"}]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = imgrl(
        "score", folder, "--reward", "jpeg_incompressibility", "--reward", "mine.py:some", "--prompts", "p.jsonl",
        "--json", "s.json", "--batch", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(Path("s.json").read_text())
    assert [row["scores"]["some"] for row in found["images"]] == [4.0, 0.0]
    assert found["rewards"]["jpeg_incompressibility"]["applied"] == 2


def test_a_failure_is_counted_and_no_zero(imgrl, folder):
    text = "{use: 'mine.py:fails', retries: 0, batch: 1}"
    result = imgrl("score", folder, "--reward", text, "--prompts", "p.txt", "--json", "s.json")
    assert result.exit_code == 0, result.output
    found = json.loads(Path("s.json").read_text())
    assert found["rewards"]["fails"] == {
        "mean": 1.0, "std": 0.0, "min": 1.0, "max": 1.0, "applied": 2, "failed": 1,
        "last_failure": "RuntimeError: no idea",
    }  # fmt: skip
    assert found["images"][1] == {
        "file": str(folder / "1.png"), "prompt": "skip bad", "scores": {"fails": None}, "failed": ["fails"],
    }  # fmt: skip
    assert "fails failed on 1 images, last: RuntimeError: no idea" in result.stderr


def asked():
    """What the judge was asked since the last time."""
    file = Path("asked")
    prompts = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return sorted(prompts)


def judged(imgrl, folder, *options):
    text = "{use: 'mine.py:Judge', retries: 0, batch: 1}"
    result = imgrl("score", folder, "--reward", text, "--prompts", "p.txt", "--json", "s.json", *options)
    assert result.exit_code == 0, result.output
    return json.loads(Path("s.json").read_text()), result


def test_a_cache_spares_every_question_that_was_answered(imgrl, folder):
    """The probe of two flat pictures with the first prompt is a question as well."""
    plain, _ = judged(imgrl, folder)
    assert asked() == ["a cat"] * 4 + ["skip bad"]
    for expected in (["a cat"] * 4 + ["skip bad"], []):
        found, _ = judged(imgrl, folder, "--cache", "kept/scores.db")
        assert asked() == expected and found == plain
    assert [row["scores"]["Judge"] for row in plain["images"]] == pytest.approx([0.0, 1.0, 0.2])
    Image.new("RGB", (16, 16), (102, 0, 0)).save(folder / "2.png")
    found, _ = judged(imgrl, folder, "--cache", "kept/scores.db")
    assert asked() == ["a cat"] and found["images"][2]["scores"]["Judge"] == pytest.approx(0.4)
    judged(imgrl, folder)
    assert len(asked()) == 5


def test_failures_are_not_kept_and_say_the_same_each_time(imgrl, folder):
    Path("p.txt").write_text("a cat\nbroken\na cat\n")
    for expected in (["a cat"] * 4 + ["broken"], ["broken"]):
        found, result = judged(imgrl, folder, "--cache", "scores.db")
        assert asked() == expected
        assert found["rewards"]["Judge"]["failed"] == 1 and found["rewards"]["Judge"]["applied"] == 2
        assert found["rewards"]["Judge"]["last_failure"] == "OSError: nobody there"
        assert [row["failed"] for row in found["images"]] == [[], ["Judge"], []]
        assert found["images"][1]["scores"] == {"Judge": None}
        assert "Judge failed on 1 images, last: OSError: nobody there" in result.stderr


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--reward", "colour"], "is no built-in reward"),
        (["--reward", "mine.py:blue"], "has no 'blue'"),
        (["--reward", "{use: ["], "is not valid YAML"),
        (["--reward", "{args: {}}"], "must say which reward it uses"),
        (["--reward", "{use: shapes, weigth: 1}"], "has no setting 'weigth' (did you mean 'weight'?)"),
        (["--reward", "shapes"], "requires the column 'include'"),
        (["--reward", "mine.py:together"], "imgrl score knows no groups"),
        (["--reward", "mine.py:red", "--prompts", "two.txt"], "has 3 pictures and two.txt has 2 prompts"),
        (["--reward", "mine.py:red", "--prompts", "absent.txt"], "There is no prompt file"),
        (["--reward", "mine.py:red", "--json", "p.txt/s.json"], "--json p.txt/s.json cannot be written"),
        (["--reward", "mine.py:red", "--cache", "p.txt/s.db"], "The reward cache p.txt/s.db cannot be used"),
    ],
)
def test_refused(refused, folder, options, part):
    folder.parent.joinpath("two.txt").write_text("a\nb\n")
    prompts = [] if "--prompts" in options else ["--prompts", "p.txt"]
    assert part in refused("score", folder, *prompts, *options)


def test_unreadable_pictures_are_listed(refused, folder):
    (folder / "1.png").write_text("no picture")
    told = refused("score", folder, "--reward", "mine.py:red", "--prompts", "p.txt")
    assert "1 pictures cannot be scored; mend or remove them: " in told and "1.png cannot be read" in told
