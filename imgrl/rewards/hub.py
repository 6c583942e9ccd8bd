"""Weights on the Hugging Face hub: whether this machine has them, and the way to one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgrl.errors import RewardError

__all__ = ["check_source", "in_brief", "in_cache", "load_whole", "not_loaded", "read_weights", "weight_file"]


def in_cache(place: str) -> bool:
    """Whether a hub file is in the local cache; looks at the disk alone.

    Args:
        place: ``repository/file``, or ``repository/file|other`` where either will do.
    """
    from huggingface_hub import try_to_load_from_cache

    repository, _, files = place.rpartition("/")
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files.split("|"))


def check_source(model: str) -> str:
    """Return ``model`` if it is a folder or can be the name of a hub repository.

    Raises:
        RewardError: if it is a path to nothing; a library would look for that on the hub.
    """
    if Path(model).is_dir() or (model.count("/") <= 1 and not model.startswith((".", "/", "~"))):
        return model
    raise RewardError(
        f"There is no folder {model}; give a model's folder or its name on the hub, owner/name."
    )


def weight_file(given: str | None, *, repository: str, file: str) -> Path:
    """Return the file that was given, or the hub's, downloaded once.

    Raises:
        RewardError: if it does not exist or cannot be downloaded.
    """
    if given is not None:
        path = Path(given).expanduser()
        if path.is_file():
            return path
        raise RewardError(
            f"There is no weight file {path}; download {file} from https://huggingface.co/{repository} and give "
            "its path as args.weights, or leave args.weights out."
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the libraries below it raise their own kinds
        raise RewardError(
            f"{file} of https://huggingface.co/{repository} could not be downloaded ({in_brief(error)}); "
            "download it elsewhere and give its path as args.weights."
        ) from error


def read_weights(file: Path) -> Mapping[str, Any]:
    """The table in a file of torch's; tensors and plain values only, no code.

    Raises:
        RewardError: if it is something else.
    """
    import torch

    try:
        given = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RewardError(f"{file} cannot be read as weights ({in_brief(error)}).") from error
    if not isinstance(given, Mapping):
        raise RewardError(f"{file} should hold a table of tensors, but holds a {type(given).__name__}.")
    return given


def load_whole(module: Any, given: Mapping[str, Any], *, file: Path, what: str) -> None:
    """Load a module's tensors, every one of them and no other.

    Raises:
        RewardError: naming the first that is missing, unknown or of another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    shapes = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in given.items()}
    faults = [f"it lacks {name}" for name in wanted if name not in shapes]
    faults += [f"{name} is no tensor of theirs" for name in shapes if name not in wanted]
    faults += [
        f"{name} has the shape {shapes[name]} instead of {shape}"
        for name, shape in wanted.items()
        if shapes.get(name, shape) != shape
    ]
    if faults:
        rest = f", and {len(faults) - 1} more such faults" if len(faults) > 1 else ""
        raise RewardError(f"{file} does not hold {what}: {faults[0]}{rest}; download it again.")
    module.load_state_dict(given)


def not_loaded(what: str, error: Exception, *, argument: str, wanted: str) -> RewardError:
    """The refusal of a model or tokenizer that ``from_pretrained`` could not give."""
    return RewardError(
        f"{what} could not be loaded ({in_brief(error)}); give args.{argument} a folder or {wanted}, and download it "
        "first if this machine has no network."
    )


def in_brief(error: Exception) -> str:
    """Kind of an error and its text on one line, at most 300 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
