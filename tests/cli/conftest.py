"""The command line run in-process, on a tiny stock SD3 with random weights."""

import pytest
from tiny_models import build_sd3
from typer.testing import CliRunner

from imgrl.cli.main import app


@pytest.fixture
def imgrl(tmp_path, monkeypatch):
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sd3"
    build_sd3().save_pretrained(folder)
    return folder


@pytest.fixture
def refused(imgrl):
    """Run a command that must be refused: one sentence on stderr, exit code 2, no traceback."""

    def run(*arguments):
        result = imgrl(*arguments)
        assert result.exit_code == 2, (result.output, result.exception)
        assert result.stderr.startswith("imgrl: ") and result.stderr.count("\n") == 1
        assert "Traceback" not in result.output
        return result.stderr

    return run


@pytest.fixture(scope="session")
def small(sd3_folder):
    """Overrides for the shortest run there is: random weights, two prompts."""
    return [
        f"model={{path: {sd3_folder}, lora: {{rank: 2}}}}",
        "batch={groups: 2, group_size: 2, micro_groups: 2}",
        "rollout={steps: 2}",
        "objective.anchor={adaptive: none}",
        "data={prompts: [a cat, a dog]}",
        "rewards={jpeg_compressibility: 1}",
        "evaluation={prompts: [a cow], steps: [1], images_per_prompt: 2}",
    ]
