"""A checkpoint against its trained versions: which tensors belong together, and every matrix measured in turn."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from imgrl.analysis.figures import Layer, Settings
from imgrl.analysis.measure import measure
from imgrl.analysis.rotated import beside_rotated
from imgrl.analysis.weights import Matrix, Weights, open_weights, tensors
from imgrl.errors import ConfigError, ModelError

__all__ = ["Pairing", "compare", "pair"]

_SHOWN = 3
_BUFFERS = ("I64", "BOOL")  # indices such as position_ids, and masks


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Tensors of a base and of its trained versions, matched by name."""

    base: Weights
    tuned: tuple[Weights, ...]
    names: tuple[str, ...]
    """Tensors to be measured, in natural order: floating-point, in all checkpoints, and not the base's very own."""
    untouched: int
    """Parameters that every version shares with the base because its LoRA leaves them alone."""
    notes: tuple[str, ...]
    """What was left out or converted, a sentence each."""
    rotated: tuple[Weights, Weights] | None = None
    """A rotated base and the run from it, which have the same tensors."""

    @property
    def parameters(self) -> int:
        """Entries to be measured."""
        return sum(self.base[name].parameters for name in self.names)


def pair(
    base: Path,
    tuned: Sequence[Path],
    pattern: str | None = None,
    *,
    rotated: tuple[Path, Path] | None = None,
) -> Pairing:
    """Open a base and its trained versions and match their tensors, before any is read.

    Args:
        base: see :func:`imgrl.analysis.weights.open_weights`.
        tuned: the same, or LoRAs trained on the base.
        pattern: only tensors whose name fits, ``*`` standing for anything; without a ``*``, those that contain it.
        rotated: what ``imgrl rotate`` made of the base, and a run from that.

    Raises:
        ModelError: if one cannot be opened or they do not belong together.
        ConfigError: if no tensor fits the pattern.
    """
    before = open_weights(base)
    after = tuple(open_weights(path, before) for path in tuned)
    notes: list[str] = []
    common = [name for name in before if all(name in weights for weights in after)]
    for path, weights in zip(tuned, after, strict=True):
        _check_shapes(before, weights, base, path)
        notes += _missing(before, weights, base, path)
    names = [name for name in common if _is_float(before[name])]
    if not any(before[name].side > 1 for name in names):
        raise ModelError(f"{base} and {', '.join(map(str, tuned))} {_no_matrix(before, after[0], common)}")
    names, common = ([name for name in some if _fits(name, pattern)] for some in (names, common))
    unread = _unread(before, common)
    if not names:
        nothing = f"no common tensor: names are such as {_some(before)}"
        raise ConfigError(
            f"--layers {pattern!r} fits {f'only tensors {_stored(unread)}' if unread else nothing}"
        )
    turned = None if rotated is None else _open_rotated(rotated, before, base, names)
    versions = [(before, weights) for weights in after] + ([] if turned is None else [turned])
    touched = [name for name in names if any(own[name] is not start[name] for start, own in versions)]
    return Pairing(
        base=before,
        tuned=after,
        names=tuple(sorted(touched, key=_natural)),
        untouched=sum(before[name].parameters for name in names) - sum(before[n].parameters for n in touched),
        notes=(*notes, *_left_out(unread), *_precisions(before, after, touched, tuned)),
        rotated=turned,
    )


def compare(
    pairing: Pairing, settings: Settings, progress: Callable[[str, int], None] | None = None
) -> Iterator[Layer]:
    """Measure one tensor after the other.

    Args:
        pairing: from :func:`pair`.
        settings: what is measured.
        progress: told the name and the number of entries of each tensor that is done.
    """
    for name in pairing.names:
        base, tuned = pairing.base[name], [weights[name] for weights in pairing.tuned]
        layer = measure(base, tuned, settings)
        if pairing.rotated is not None and base.side > 1:
            turned, run = (weights[name] for weights in pairing.rotated)
            layer.rotated = beside_rotated(base, tuned, turned, run, bins=settings.bins)
        if progress is not None:
            progress(name, layer.parameters)
        yield layer


def _open_rotated(
    rotated: tuple[Path, Path], before: Weights, base: Path, names: Sequence[str]
) -> tuple[Weights, Weights]:
    """The rotated base and the run from it, which must have every tensor that is compared."""
    turned = open_weights(rotated[0])
    run = open_weights(rotated[1], turned)
    for path, weights in zip(rotated, (turned, run), strict=True):
        _check_shapes(before, weights, base, path)
        lost = [name for name in names if name not in weights]
        if lost:
            raise ModelError(
                f"{path} lacks {len(lost)} of the tensors compared, such as {lost[0]}: --rotated takes what "
                f"`imgrl rotate` made of {base}, and a run from that"
            )
    return turned, run


def _check_shapes(before: Weights, after: Weights, base: Path, path: Path) -> None:
    wrong = [name for name in before if name in after and before[name].original != after[name].original]
    if wrong:
        listed = "; ".join(
            f"{name} is {list(before[name].original)} and {list(after[name].original)}"
            for name in wrong[:_SHOWN]
        )
        more = "; …" if wrong[_SHOWN:] else ""
        raise ModelError(
            f"{base} and {path} differ in the shape of {tensors(len(wrong))} ({listed}{more}): "
            "give two versions of one model"
        )
    mixed = [name for name in before if name in after and _is_float(before[name]) != _is_float(after[name])]
    if mixed:
        raise ModelError(
            f"{base} and {path} store {tensors(len(mixed))} in kinds of numbers that cannot be compared, such as "
            f"{mixed[0]} (one is quantised or whole numbers): save both in bfloat16 or float32"
        )


def _missing(before: Weights, after: Weights, base: Path, path: Path) -> list[str]:
    notes = []
    for one, other, name in ((before, after, base), (after, before, path)):
        alone = [key for key in one if key not in other]
        if alone:
            notes.append(f"{_are(alone)} in {name} only and left out, such as {alone[0]}")
    return notes


def _unread(before: Weights, names: Sequence[str]) -> dict[str, list[str]]:
    """Names of weights that cannot be compared, by what they are stored as."""
    found: dict[str, list[str]] = {}
    for name in names:
        if (kind := before[name].unread) and kind not in _BUFFERS and len(before[name].original) > 1:
            found.setdefault(kind, []).append(name)
    return found


def _left_out(unread: Mapping[str, Sequence[str]]) -> list[str]:
    return [
        f"{_are(names)} stored as {kind}, which cannot be compared, and left out, such as {names[0]}"
        for kind, names in unread.items()
    ]


def _stored(unread: Mapping[str, Sequence[str]]) -> str:
    first = next(iter(unread.values()))[0]
    kinds = " and ".join(unread)
    return f"stored as {kinds}, which cannot be compared, such as {first}: save both in bfloat16 or float32"


def _no_matrix(before: Weights, after: Weights, common: Sequence[str]) -> str:
    if unread := _unread(before, common):
        return f"have only matrices in common that are {_stored(unread)}"
    return (
        f"have no matrix in common (the first has {_some(before)}; the second {_some(after)}): "
        "give two versions of one model"
    )


def _precisions(
    before: Weights, after: Sequence[Weights], names: Sequence[str], tuned: Sequence[Path]
) -> list[str]:
    notes = []
    for path, weights in zip(tuned, after, strict=True):
        differ = [
            name
            for name in names
            if weights[name].dtype != before[name].dtype and weights[name].merged_onto is None
        ]
        if differ:
            one, other = (_name(w[differ[0]].dtype) for w in (before, weights))
            notes.append(
                f"{path} stores {tensors(len(differ))} in {other} where BASE has {one}; both are rounded to bfloat16"
            )
    return notes


def _are(names: Sequence[str]) -> str:
    return f"{tensors(len(names))} {'is' if len(names) == 1 else 'are'}"


def _is_float(matrix: Matrix) -> bool:
    return matrix.dtype != torch.int8


def _fits(name: str, pattern: str | None) -> bool:
    if pattern is None:
        return True
    return fnmatchcase(name, pattern) if "*" in pattern else pattern in name


def _some(weights: Weights) -> str:
    return ", ".join(list(weights)[:2]) or "no tensors"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
