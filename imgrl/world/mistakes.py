"""Imperfect solutions of arithmetic problems, as real corpora hold them: slips that carry on, and answers alone."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from imgrl.world.arithmetic import Problem, read, verify

__all__ = ["Kind", "imperfect", "mistaken", "slipped", "terse"]

Kind = Literal["right", "slipped", "terse"]


def slipped(problem: Problem, rng: np.random.Generator) -> str:
    """A completion with one wrong step, on which the rest builds consistently.

    A sum is one off, a residue another one, two neighbours of a sorted list are swapped. The answer is usually wrong
    (a later factor may bring a chain back).
    """
    at = int(rng.integers(len(problem.steps)))

    def twist(step: int, result: Any) -> Any:
        if step != at:
            return result
        if problem.task == "add":
            return result + 1 if result == 0 or rng.random() < 0.5 else result - 1
        if problem.task == "mod":
            modulus = int(problem.prompt.split()[1])
            return int(result + rng.integers(1, modulus)) % modulus
        i = int(rng.integers(len(result) - 1))
        return [*result[:i], result[i + 1], result[i], *result[i + 2 :]]

    return read(problem.prompt, twist).solution


def mistaken(problem: Problem, rng: np.random.Generator) -> str:
    """A completion with a wrong step and a wrong answer."""
    while verify(problem.prompt, text := slipped(problem, rng)):
        pass  # a later factor brought the chain back
    return text


def terse(problem: Problem) -> str:
    """The right answer without a step: correct, and hard to learn from."""
    return f"answer {problem.answer}"


def imperfect(
    problem: Problem, rng: np.random.Generator, *, slips: float = 0.4, terse_share: float = 0.15
) -> tuple[str, Kind]:
    """A completion as a corpus with these shares of slips and of answers alone would show it, and its kind."""
    if not (slips >= 0 and terse_share >= 0 and slips + terse_share <= 1):
        raise ValueError(
            f"Expected shares of slips and of terse answers that sum to at most 1, got {slips} and {terse_share}."
        )
    chance = rng.random()
    if chance < slips:
        return slipped(problem, rng), "slipped"
    if chance < slips + terse_share:
        return terse(problem), "terse"
    return problem.solution, "right"
