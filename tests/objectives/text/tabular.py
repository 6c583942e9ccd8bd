"""Online learning with a known answer: a tabular policy that opens each text with one of four answers.

Three prompts; the untrained policy says a prompt's *majority* answer with probability .4, the *true* one and two others
with .19 each, and nothing (an empty text) with .03. What follows the answer is nearly certain: the answer is the fork.
With labels the first token should become the true answer, without labels the majority.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from imgrl.anchor import blend, categorical_kl
from imgrl.objectives.text import TextBatch, reduce, vote_rewards
from imgrl.objectives.text.remix import draw_ages
from imgrl.training.groups import group_advantages

PROMPTS, LENGTH, WORDS, GROUP = 3, 4, 5, 16
END, NEXT = 0, 1
MAJORITY = torch.tensor([1, 2, 3])
TRUTH = torch.tensor([2, 3, 4])


def peaked(first: Tensor, share: float) -> Tensor:
    """Logits [prompts, length, words]: ``share`` for the given first token, the rest even; then almost surely NEXT."""
    p = torch.full((PROMPTS, LENGTH, WORDS), 0.01)
    p[:, 1:, NEXT] = 1 - 0.01 * (WORDS - 1)
    p[:, 0] = (0.97 - share) / (WORDS - 2)
    p[:, 0, END] = 0.03
    p[torch.arange(PROMPTS), 0, first] = share
    return p.log()


def says(logits: Tensor, first: Tensor) -> Tensor:
    """Probability [prompts] of opening with a token."""
    return logits.detach()[:, 0].softmax(-1).gather(-1, first[:, None])[:, 0]


def log_prob(logits: Tensor, prompt: Tensor, tokens: Tensor) -> Tensor:
    return logits.log_softmax(-1)[prompt].gather(-1, tokens[..., None])[..., 0]


@dataclass(frozen=True)
class Texts:
    """Whole groups as they were written, with what never changes about them."""

    prompt: Tensor
    tokens: Tensor
    mask: Tensor
    old: Tensor
    reward: Tensor
    advantage: Tensor
    group: Tensor

    def rows(self, keep: Tensor) -> "Texts":
        return Texts(**{name: value[keep] for name, value in vars(self).items()})

    def __add__(self, other: "Texts") -> "Texts":
        return Texts(**{name: torch.cat([a, getattr(other, name)]) for name, a in vars(self).items()})


def write(
    policy: Tensor, prompts: list[int], generator: torch.Generator, *, labelled: bool, at: int
) -> Texts | None:
    """A group of texts for each prompt, rewarded by the truth or by their own vote; undecided groups drop out."""
    prompt = torch.tensor(prompts).repeat_interleave(GROUP)
    group = torch.arange(at, at + len(prompts)).repeat_interleave(GROUP)
    p = policy.softmax(-1)[prompt]
    tokens = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(-1, LENGTH)
    ended = (tokens == END).long().cumsum(-1)
    mask = (ended - (tokens == END).long() == 0).float()  # END itself is a token to learn
    if labelled:
        reward, decided = (tokens[:, 0] == TRUTH[prompt]).float(), torch.ones(len(prompt), dtype=torch.bool)
    else:
        answers = [None if first == END else str(first) for first in tokens[:, 0].tolist()]
        votes = [
            vote
            for start in range(0, len(answers), GROUP)
            for vote in vote_rewards(answers[start : start + GROUP], ties="none")
        ]
        reward = torch.tensor([vote or 0.0 for vote in votes])
        decided = torch.tensor([vote is not None for vote in votes])
    if not decided.any():
        return None
    advantage = group_advantages(reward, group, std="group", mask=decided).advantage.float()
    old = log_prob(policy, prompt, tokens)
    return Texts(prompt, tokens, mask, old, reward, advantage, group).rows(decided)


@dataclass
class Run:
    """Rollouts, replay and updates as a trainer does them; ``curve`` is the mean reward of what was written."""

    objective: object
    labelled: bool = True
    teacher: Tensor | None = None
    rounds: int = 60
    lr: float = 0.1
    seed: int = 0
    curve: list[float] = field(default_factory=list)

    def __call__(self) -> Tensor:
        objective, generator = self.objective, torch.Generator().manual_seed(self.seed)
        policy = peaked(MAJORITY, 0.4).requires_grad_()
        base, start = policy.detach().clone(), policy.detach().clone()
        optimizer = torch.optim.Adam([policy], lr=self.lr)
        history: list[Texts] = []
        step, renew_at = 0, getattr(objective, "reincarnate_at", None)
        for at in range(self.rounds):
            previous, start = start, policy.detach().clone()
            if renew_at is not None and step >= renew_at:
                blend([base], [start], 0.0)
                renew_at = None
            texts = self.gather(start, history, generator, at, step)
            if texts is None:
                continue
            for _ in range(getattr(objective, "passes", 1)):
                batch = self.batch(policy, start, base, previous, texts, step)
                loss = objective.loss(batch).loss
                total = loss.mean() if loss.ndim == 1 else reduce(loss, batch.mask, how=objective.reduction)
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
                step += 1
        return policy.detach()

    def gather(
        self, policy: Tensor, history: list[Texts], generator: torch.Generator, at: int, step: int
    ) -> Texts | None:
        """Fresh groups and, where the objective replays, older ones in place of some."""
        ages, replays = [0] * PROMPTS, getattr(self.objective, "replays", None)
        if replays is not None and replays(step):
            available = range(1, 1 + len(history))
            ages = draw_ages(PROMPTS, replay=self.objective.replay, available=available, generator=generator)
        fresh = [prompt for prompt, age in enumerate(ages) if age == 0]
        written = None
        if fresh:
            written = write(policy, fresh, generator, labelled=self.labelled, at=at * PROMPTS)
        parts = [] if written is None else [written]
        parts += [history[-age].rows(history[-age].prompt == p) for p, age in enumerate(ages) if age > 0]
        if written is not None:
            self.curve.append(written.reward.mean().item())
            history.append(written)
            del history[: -getattr(self.objective, "history", 1)]
        parts = [part for part in parts if len(part.prompt)]
        return sum(parts[1:], parts[0]) if parts else None

    def batch(
        self, policy: Tensor, start: Tensor, base: Tensor, previous: Tensor, texts: Texts, step: int
    ) -> TextBatch:
        """Every field a batch can have."""
        prompt, tokens = texts.prompt, texts.tokens
        live = policy.log_softmax(-1)[prompt]
        return TextBatch(
            log_prob=log_prob(policy, prompt, tokens),
            mask=texts.mask,
            old=texts.old,
            current=log_prob(start, prompt, tokens),
            anchor=log_prob(base, prompt, tokens),
            teacher=None if self.teacher is None else log_prob(self.teacher, prompt, tokens),
            entropy=-(live.exp() * live).sum(-1),
            forward_kl=categorical_kl(policy, base, direction="forward")[prompt],
            reverse_kl=categorical_kl(policy, base)[prompt],
            previous_kl=categorical_kl(policy, previous)[prompt],
            advantage=texts.advantage,
            reward=texts.reward,
            group=texts.group,
            step=step,
        )
