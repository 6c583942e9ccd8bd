"""ShapeEval: six tasks of the embedded shape world under GenEval's rules.

The official figure is the unweighted mean over tasks of the share of correct images. The judge's own limits
(its ceiling on rendered truth, its floor on noise) are measured in ``tests/world/test_detector.py``; the
independent check is :mod:`imgrl.evaluation.probe`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from imgrl.errors import DataError
from imgrl.evaluation.geneval.judge import Verdict
from imgrl.evaluation.probe import probe_score
from imgrl.evaluation.protocol import Protocol, generate
from imgrl.rewards.pixels import to_uint8
from imgrl.types import Prompt
from imgrl.world.score import judge_image
from imgrl.world.vocabulary import SHAPES, TASKS

if TYPE_CHECKING:
    from imgrl.policies import Policy

__all__ = ["evaluate_shapes", "judgeable", "score_images", "summarise"]

Progress = Callable[[int, int], None]
"""Called with the images done and the images in all."""


def evaluate_shapes(
    policy: Policy,
    prompts: Sequence[Prompt],
    protocol: Protocol,
    *,
    probe: bool = False,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Generate images for ``prompts`` and score them; see :func:`summarise` for the figures.

    ``probe`` has the same images judged by the independent, template-free check too: its figures are named
    ``probe/...``.

    Raises:
        DataError: if a prompt lacks GenEval metadata, or no prompt asks for a shape.
    """
    _check(prompts)
    per, total = protocol.images_per_prompt, len(prompts) * protocol.images_per_prompt
    step = protocol.batch or max(total, 1)
    judges = {"": score_images} | ({"probe/": probe_score} if probe else {})
    verdicts: dict[str, list[Verdict | None]] = {prefix: [] for prefix in judges}
    for start in range(0, total, step):
        rows = range(start, min(start + step, total))
        images = generate(policy, prompts, protocol, rows=rows)
        for prefix, judge in judges.items():
            verdicts[prefix] += judge(images, [prompts[row // per] for row in rows])
        if progress is not None:
            progress(rows.stop, total)
    return {prefix + name: value for prefix in judges for name, value in summarise(verdicts[prefix]).items()}


def score_images(images: Tensor, prompts: Sequence[Prompt]) -> list[Verdict | None]:
    """Judge images [n, 3, H, W] in [0, 1], one verdict each; None where a prompt has no clauses (signs).

    Raises:
        ValueError: if there is not one prompt an image, or a prompt's metadata is not GenEval's.
    """
    if len(images) != len(prompts):
        raise ValueError(
            f"ShapeEval needs one prompt an image, got {len(images)} images, {len(prompts)} prompts."
        )
    return [
        judge_image(pixels, prompt.columns) if prompt.columns.get("include") else None
        for pixels, prompt in zip(to_uint8(images), prompts, strict=True)
    ]


def judgeable(prompts: Sequence[Prompt]) -> bool:
    """Whether ShapeEval has something to say of these prompts: some ask for objects, and all objects are shapes.

    False for signs, which ask for no object, and for GenEval's own prompts, which ask for things of the real world.
    """
    asking = [prompt.columns for prompt in prompts if prompt.columns.get("include")]
    return bool(asking) and all(
        columns.get("tag") in TASKS and all(clause.get("class") in SHAPES for clause in columns["include"])
        for columns in asking
    )


def _check(prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that cannot be judged before minutes of sampling."""
    for prompt in prompts:
        if "include" not in prompt.columns or "tag" not in prompt.columns:
            raise DataError(
                f"ShapeEval needs the columns 'include' and 'tag' (GenEval metadata), but the prompt "
                f"{prompt.text!r} lacks them; use a prompt set such as world:heldout."
            )
    if not any(prompt.columns["include"] for prompt in prompts):
        raise DataError(
            "ShapeEval needs prompts that ask for shapes; use a prompt set such as world:heldout."
        )


def summarise(verdicts: Sequence[Verdict | None]) -> dict[str, float]:
    """Figures of many verdicts.

    ``shapes`` is the unweighted mean over tasks of the official verdict, ``shapes_strict`` and
    ``shapes_partial`` the same of the strict verdict and the partial score. ``shapes/<task>`` gives each
    task's official share, for the tasks that occur; ``shapes_tasks`` counts them, so that a mean over fewer
    than six cannot pass for the whole.

    Raises:
        ValueError: if nothing was judged, or a task is not one of the six.
    """
    by_task: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict is not None:
            by_task.setdefault(verdict.tag, []).append(verdict)
    if not by_task or not set(by_task) <= set(TASKS):
        raise ValueError(
            f"ShapeEval needs prompts of the tasks {', '.join(TASKS)}, got {', '.join(by_task) or 'none'}; "
            "use a prompt set such as world:heldout."
        )
    present = [task for task in TASKS if task in by_task]

    def mean(read: Callable[[Verdict], Any]) -> float:
        return sum(_mean([float(read(v)) for v in by_task[task]]) for task in present) / len(present)

    return {
        "shapes": mean(lambda verdict: verdict.correct),
        "shapes_strict": mean(lambda verdict: verdict.strict),
        "shapes_partial": mean(lambda verdict: verdict.score),
        "shapes_tasks": float(len(present)),
    } | {f"shapes/{task}": _mean([float(v.correct) for v in by_task[task]]) for task in present}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
