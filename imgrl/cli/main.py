"""The entry point: registers the commands and turns foreseeable errors into one sentence.

Nothing heavy is imported here or at the top of a command's file, so that ``imgrl --help`` answers at once.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from imgrl.cli import (
    check,
    diagnose,
    doctor,
    evaluate,
    export,
    failures,
    lm,
    rewards,
    rotate,
    sample,
    score,
    serve_rewards,
    style,
    train,
    verify_resume,
)
from imgrl.errors import ImgrlError

__all__ = ["app"]

_BAD_INPUT = 2
_INTERRUPTED = 130


class _Group(TyperGroup):
    """Runs a command; a foreseeable error becomes a sentence on stderr and exit code 2, Ctrl-C exit code 130.

    Foreseeable are an ImgrlError and whatever the system says of a file: a full disk, no permission.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("imgrl: interrupted", err=True)
            raise typer.Exit(_INTERRUPTED) from None
        except Exception as error:
            known = isinstance(error, ImgrlError)
            if ctx.params.get("debug") or not (known or failures.is_file_failure(error)):
                raise
            typer.echo(f"imgrl: {error if known else failures.sentence(error)}", err=True)
            raise typer.Exit(_BAD_INPUT) from None


app = typer.Typer(
    cls=_Group,
    help="Reinforcement-learning fine-tuning of text-to-image models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        from imgrl import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and other libraries' messages.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Fine-tune text-to-image models with rewards."""
    del version
    if not debug:
        _hush()


def _hush() -> None:
    """Keep the loading bars and warnings of other libraries out of the output; their errors stay."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


app.command("train")(train.train)
app.command("style")(style.style)
app.command("sample")(sample.sample)
app.add_typer(evaluate.app, name="eval")
app.command("export")(export.export)
app.command("check")(check.check)
app.add_typer(lm.app, name="lm")
app.command("rewards")(rewards.rewards)
app.command("serve-rewards")(serve_rewards.serve_rewards)
app.command("score")(score.score)
app.command("diagnose")(diagnose.diagnose)
app.command("rotate")(rotate.rotate)
app.command("doctor")(doctor.doctor)
app.command("verify-resume")(verify_resume.verify_resume)


if __name__ == "__main__":  # for torchrun -m
    app()
