"""What the operating system or a tensor file refused, as one sentence: which file, what happened, what to do."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import traceback
from types import FrameType

__all__ = ["is_file_failure", "sentence"]

_ADVICE = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some of your quota or choose another folder",
    errno.EFBIG: "raise the limit on the size of files or choose another folder",
    errno.EACCES: "change its permissions or choose another place",
    errno.EPERM: "change its permissions or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.ENOENT: "check the path",
    errno.EISDIR: "a file is expected there, so move the folder away or choose another place",
    errno.ENOTDIR: "a folder is expected there, so move the file away or choose another place",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
}
_OTHERWISE = "check that file and its disk; `imgrl --debug` shows where this happened"


def is_file_failure(error: Exception) -> bool:
    """Whether :func:`sentence` can speak of this error; a closed pipe is none, since nobody is left to read it."""
    if isinstance(error, BrokenPipeError):
        return False
    # Not imported for this: a library that is not loaded cannot have raised its error.
    tensors = sys.modules.get("safetensors")
    return isinstance(error, OSError) or (tensors is not None and isinstance(error, tensors.SafetensorError))


def sentence(error: Exception) -> str:
    """Return one line that names the file, the system's reason and what to do."""
    number = _number(error)
    message = " ".join(str(error).split()) or type(error).__name__
    reason = os.strerror(number) if number else message
    file, advice = _file(error), _ADVICE.get(number, _OTHERWISE)
    if file is None and not number:
        return f"{message.rstrip('.')}; {_OTHERWISE}"
    return f"{file or 'a file'} could not be read or written ({reason}): {advice}"


def _number(error: Exception) -> int:
    """The system's error number, 0 if there is none; safetensors has it in its text only."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"(?:os error |code: )(\d+)", str(error))
    return int(found[1]) if found else 0


def _file(error: Exception) -> str | None:
    """The file concerned: as the error says, else the innermost one open where it happened.

    A failed write does not say where it wrote to, so a full disk would be reported without the name of a file.
    """
    name = getattr(error, "filename", None)
    if isinstance(name, str | bytes):
        return os.fsdecode(name)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((name for frame in reversed(frames) if (name := _open_in(frame))), None)


def _open_in(frame: FrameType) -> str | None:
    if frame.f_globals.get("__name__", "").startswith("safetensors") and "filename" in frame.f_locals:
        return str(frame.f_locals["filename"])
    for value in frame.f_locals.values():
        name = getattr(value, "name", None) if isinstance(value, io.IOBase) else None
        if isinstance(name, str):  # a number where a file was opened by its descriptor
            return name
    return None
