"""Verifiable problems with visible steps: addition, modular chains and sorting, for a character-level model.

One line a problem; the prompt ends with a colon and the solution follows at once:

    add 347+85:7+5+0=12; 4+8+1=13; 3+0+1=4; answer 432
    mod 7 3+5*4-2:3+5=1; 1*4=4; 4-2=2; answer 2
    sort 38 17 91 22:17 38; 17 38 91; answer 17 22 38 91

Addition goes from the last digit and writes the carry as third summand. A chain applies its operations from left
to right and reduces after each. Sorting inserts one number at a time. A problem's split is a hash of what it
asks, so that swapped summands or another order of the same numbers never cross over.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from imgrl.types import Prompt

__all__ = [
    "HELD_OUT_SHARE",
    "LEVELS",
    "TASKS",
    "Problem",
    "Split",
    "Task",
    "Twist",
    "draw",
    "is_held_out",
    "is_problem",
    "parse_answer",
    "problems",
    "prompts",
    "read",
    "right_steps",
    "verify",
]

Task = Literal["add", "mod", "sort"]
Split = Literal["train", "heldout"]
TASKS: tuple[Task, ...] = get_args(Task)
LEVELS = (1, 2, 3)
"""Addition of 2+2, 3+2 and 3+3 digits; 2, 3 and 4 operations; 3, 4 and 5 numbers."""
MODULI = (5, 7, 9)
HELD_OUT_SHARE = 0.1
_SALT = "arithmetic 1"  # part of the world's definition: changing it changes what "held out" means

Twist = Callable[[int, Any], Any]
"""(index of the step, its result) -> the result to go on with. Mistakes are made with it."""


def _true(_: int, result: Any) -> Any:
    return result


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem: what is asked, how it is solved, and the answer."""

    task: Task
    level: int
    prompt: str
    steps: tuple[str, ...]
    answer: str

    @property
    def solution(self) -> str:
        """The reference completion: every step, then the answer."""
        return "; ".join((*self.steps, f"answer {self.answer}"))


def _add(a: int, b: int, twist: Twist = _true) -> tuple[tuple[str, ...], str]:
    steps, digits, carry = [], "", 0
    for i in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**i % 10, b // 10**i % 10
        total = twist(i, x + y + carry)
        steps.append(f"{x}+{y}+{carry}={total}")
        digits, carry = f"{total % 10}{digits}", total // 10
    return tuple(steps), f"{carry or ''}{digits}"


_APPLY: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}


def _mod(
    modulus: int, start: int, operations: Sequence[tuple[str, int]], twist: Twist = _true
) -> tuple[tuple[str, ...], str]:
    steps, value = [], start
    for i, (sign, operand) in enumerate(operations):
        result = twist(i, _APPLY[sign](value, operand) % modulus)
        steps.append(f"{value}{sign}{operand}={result}")
        value = result
    return tuple(steps), str(value)


def _sort(numbers: Sequence[int], twist: Twist = _true) -> tuple[tuple[str, ...], str]:
    done, lines = [numbers[0]], []
    for i, number in enumerate(numbers[1:]):
        at = sum(other <= number for other in done)
        done = twist(i, [*done[:at], number, *done[at:]])
        lines.append(" ".join(map(str, done)))
    return tuple(lines[:-1]), lines[-1]


_SIGN = re.compile(r"([+*-])(\d)", re.ASCII)
_GRAMMAR: dict[Task, re.Pattern[str]] = {
    "add": re.compile(r"add (\d{2,3})\+(\d{2,3}):", re.ASCII),
    "mod": re.compile(r"mod (\d) (\d)((?:[+*-][1-9]){2,4}):", re.ASCII),
    "sort": re.compile(r"sort (\d\d(?: \d\d){2,4}):", re.ASCII),
}


def read(prompt: str, twist: Twist = _true) -> Problem:
    """Solve a prompt of the grammar.

    Args:
        prompt: its text, up to and with the colon.
        twist: changes results on the way; by default none.

    Raises:
        ValueError: if it is not in the grammar.
    """
    for task, pattern in _GRAMMAR.items():
        if match := pattern.fullmatch(prompt):
            level, work = _WORK[task](*match.groups(), twist)
            return Problem(task=task, level=level, prompt=prompt, steps=work[0], answer=work[1])
    raise ValueError(
        f"Expected a problem such as 'add 12+34:', 'mod 7 3+5*4:' or 'sort 38 17 91:', got {prompt!r}."
    )


def is_problem(text: str) -> bool:
    """Whether a text is a prompt of the grammar."""
    return any(pattern.fullmatch(text) for pattern in _GRAMMAR.values())


def _work_add(a: str, b: str, twist: Twist) -> tuple[int, Any]:
    return len(a) + len(b) - 3, _add(int(a), int(b), twist)


def _work_mod(modulus: str, start: str, chain: str, twist: Twist) -> tuple[int, Any]:
    operations = [(sign, int(operand)) for sign, operand in _SIGN.findall(chain)]
    return len(operations) - 1, _mod(int(modulus), int(start), operations, twist)


def _work_sort(numbers: str, twist: Twist) -> tuple[int, Any]:
    values = [int(number) for number in numbers.split()]
    return len(values) - 2, _sort(values, twist)


_WORK: dict[Task, Callable[..., tuple[int, Any]]] = {"add": _work_add, "mod": _work_mod, "sort": _work_sort}


def is_held_out(prompt: str) -> bool:
    """Whether a problem belongs to the held-out split, which no training data contains in any order."""
    head, _, rest = prompt.rstrip(":").partition(" ")
    if head != "mod":  # the order of summands and of numbers to sort does not matter
        rest = " ".join(sorted(re.split(r"[ +]", rest)))
    digest = hashlib.sha256(f"{_SALT} {head} {rest}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def _random_prompt(rng: np.random.Generator, task: Task, level: int) -> str:
    if task == "add":
        digits = rng.permutation({1: (2, 2), 2: (2, 3), 3: (3, 3)}[level])
        a, b = (int(rng.integers(10 ** (n - 1), 10**n)) for n in digits)
        return f"add {a}+{b}:"
    if task == "mod":
        modulus = int(rng.choice(MODULI))
        chain = "".join(f"{'+-*'[rng.integers(3)]}{rng.integers(1, 10)}" for _ in range(level + 1))
        return f"mod {modulus} {rng.integers(modulus)}{chain}:"
    numbers = rng.choice(np.arange(10, 100), size=level + 2, replace=False)
    return f"sort {' '.join(map(str, numbers))}:"


def _check(split: Split, tasks: Sequence[Task], levels: Sequence[int]) -> None:
    if split not in get_args(Split) or not set(tasks) <= set(TASKS) or not set(levels) <= set(LEVELS):
        raise ValueError(
            f"Expected a split of {get_args(Split)}, tasks of {TASKS} and levels of {LEVELS}, "
            f"got {split!r}, {tuple(tasks)} and {tuple(levels)}."
        )
    if not tasks or not levels:
        raise ValueError("Expected at least one task and one level, got none.")


def draw(
    rng: np.random.Generator,
    *,
    split: Split = "train",
    tasks: Sequence[Task] = TASKS,
    levels: Sequence[int] = LEVELS,
) -> Problem:
    """A random problem of a split: task and level uniform, then its operands.

    Raises:
        ValueError: for a split, task or level that does not exist.
    """
    _check(split, tasks, levels)
    task, level = tasks[int(rng.integers(len(tasks)))], levels[int(rng.integers(len(levels)))]
    while is_held_out(text := _random_prompt(rng, task, level)) != (split == "heldout"):
        pass
    return read(text)


def problems(
    count: int,
    *,
    split: Split = "train",
    seed: int = 0,
    tasks: Sequence[Task] = TASKS,
    levels: Sequence[int] = LEVELS,
) -> list[Problem]:
    """``count`` different problems of a split, the same for the same arguments.

    Tasks and levels take turns, so every prefix is balanced.

    Raises:
        ValueError: if the split has not so many (additions of two digits are the fewest).
    """
    _check(split, tasks, levels)
    rng = np.random.default_rng([seed, split == "heldout"])
    kinds: list[tuple[Task, int]] = [(task, level) for level in levels for task in tasks]
    found: dict[str, Problem] = {}
    repeats = 0
    while len(found) < count:
        task, level = kinds[len(found) % len(kinds)]
        problem = draw(rng, split=split, tasks=(task,), levels=(level,))
        repeats = repeats + 1 if problem.prompt in found else 0
        if repeats > 1000:
            raise ValueError(
                f"Expected at most about {len(found)} different problems of these tasks and levels in the "
                f"{split} split, got a request for {count}; ask for fewer or for more levels."
            )
        found.setdefault(problem.prompt, problem)
    return list(found.values())


def prompts(
    count: int,
    *,
    split: Split = "train",
    seed: int = 0,
    tasks: Sequence[Task] = TASKS,
    levels: Sequence[int] = LEVELS,
) -> list[Prompt]:
    """The same problems as prompts with the columns ``task``, ``level``, ``answer`` and ``solution``."""
    return [
        Prompt(
            id=i,
            text=problem.prompt,
            columns={
                "task": problem.task,
                "level": problem.level,
                "answer": problem.answer,
                "solution": problem.solution,
            },
        )
        for i, problem in enumerate(problems(count, split=split, seed=seed, tasks=tasks, levels=levels))
    ]


_ANSWER = re.compile(r"answer (\d+(?: \d+)*)(?=\s*(?:;|$))", re.ASCII | re.MULTILINE)


def parse_answer(completion: str) -> str | None:
    """The last answer that a completion states, or None if it states none."""
    found = _ANSWER.findall(completion)
    return found[-1] if found else None


def right_steps(prompt: str, completion: str) -> float:
    """Share of the reference steps that a completion has at their places, 0 to 1."""
    reference, given = read(prompt).steps, completion.split("; ")
    return sum(a == b for a, b in zip(reference, given, strict=False)) / len(reference)


def verify(prompt: str, completion: str) -> bool:
    """Whether a completion's last answer is right; its steps play no role.

    Raises:
        ValueError: if the prompt is not in the grammar.
    """
    return parse_answer(completion) == read(prompt).answer
