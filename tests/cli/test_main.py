"""Exit codes and the shape of errors."""

import typer
from typer.testing import CliRunner

import imgrl as package
from imgrl.cli.main import _Group, app
from imgrl.errors import ConfigError

COMMANDS = (
    "train",
    "sample",
    "eval shapes",
    "export",
    "check",
    "rewards",
    "score",
    "serve-rewards",
    "diagnose",
    "doctor",
    "verify-resume",
)


def test_help_lists_the_commands(imgrl):
    result = imgrl("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command.split()[0] in result.stdout


def test_version(imgrl):
    assert imgrl("--version").stdout.strip() == package.__version__


def test_every_command_has_help():
    for command in COMMANDS:
        assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0, command


def test_an_unknown_command_is_a_usage_error(imgrl):
    assert imgrl("trian").exit_code == 2


def failing(error):
    app = typer.Typer(cls=_Group, pretty_exceptions_enable=False)

    @app.callback()
    def _options(debug: bool = False):
        del debug

    @app.command("go")
    def _go():
        raise error

    return app


def test_a_foreseeable_error_is_one_sentence():
    result = CliRunner().invoke(failing(ConfigError("too small")), ["go"])
    assert (result.exit_code, result.stderr) == (2, "imgrl: too small\n")


def test_debug_shows_the_traceback():
    result = CliRunner().invoke(failing(ConfigError("too small")), ["--debug", "go"])
    assert isinstance(result.exception, ConfigError)


def test_a_bug_is_not_hidden():
    result = CliRunner().invoke(failing(KeyError("bug")), ["go"])
    assert isinstance(result.exception, KeyError)


def test_ctrl_c_exits_130():
    result = CliRunner().invoke(failing(KeyboardInterrupt()), ["go"])
    assert (result.exit_code, result.stderr) == (130, "imgrl: interrupted\n")
