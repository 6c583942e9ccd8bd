"""Exit codes and the shape of errors."""

import re

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


def test_help_keeps_what_looks_like_markup(monkeypatch):
    """Every piece of code in a command's description, `pip install 'imgrl[lm]'` among them, is printed as written."""
    monkeypatch.setenv("COLUMNS", "400")
    for command in (*COMMANDS, "lm train", "lm eval", "style", "rotate"):
        found = typer.main.get_command(app)
        for name in command.split():
            found = found.commands[name]
        shown = " ".join(CliRunner().invoke(app, [*command.split(), "--help"]).stdout.split())
        written = " ".join((found.callback.__doc__ or "").replace("\\[", "[").split())
        for code in re.findall("`[^`]+`", written):
            assert code in shown, (command, code)
    assert "`pip install 'imgrl[lm]'`" in CliRunner().invoke(app, ["lm", "train", "--help"]).stdout


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
