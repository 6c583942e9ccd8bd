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
