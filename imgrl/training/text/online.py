"""TRL's GRPO trainer with a loss of ours. Imports TRL at the top: import this module inside functions only."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from trl import GRPOTrainer

from imgrl.anchor import Anchor, Switch
from imgrl.objectives.text import SPINE, MetaDistill, ReMix
from imgrl.objectives.text.base import Need, TextObjective, needs_at, passes_of, reduce
from imgrl.objectives.text.remix import draw_ages
from imgrl.objectives.text.tokens import Want
from imgrl.training.text.anchored import AnchorFiles
from imgrl.training.text.copies import WeightCopy
from imgrl.training.text.heads import Rows, rows_of
from imgrl.training.text.models import require_same_outputs
from imgrl.training.text.replay import Group, History, pad_alike
from imgrl.training.text.rewarding import Silence, TextReward, population_advantages, total_of
from imgrl.training.text.scoring import distilled_fields, live_fields, statistics
from imgrl.training.text.steps import no_loss
from imgrl.training.text.votes import trained, without_mere_votes

__all__ = ["OnlineTrainer"]

_KEPT = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "old", "teacher")


class OnlineTrainer(AnchorFiles, GRPOTrainer):
    """GRPO, ADPO, TRRD, KDRL, ReMix, TTRL, SPINE and meta-distillation on TRL's rollouts, rewards and advantages."""

    _totals: Tensor
    """Raw rewards of the completions just scored."""

    def __init__(
        self,
        *args: Any,
        objective: TextObjective,
        rule: Anchor,
        teacher: nn.Module | None = None,
        group_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(objective, ReMix) and objective.reincarnate_at is not None:
            at = objective.reincarnate_at * objective.passes  # a rule counts updates
            rule = Switch(phases=((0, rule), (at, rule)))
        super().__init__(*args, objective=objective, rule=rule, **kwargs)
        self.teacher = teacher
        self._block_began = -1
        # A teacher teaches without rewards, too.
        self._silence = None if {"teacher", "target_kl"} & objective.needs else Silence()
        tokenizer: Any = self.processing_class
        settings: Any = self.args
        self.padding, self.sampled = float(tokenizer.pad_token_id), int(settings.num_generations)
        self.group_size = self.sampled if group_size is None else group_size
        if not 1 <= self.group_size <= self.sampled:
            raise ValueError(f"Expected group_size in 1..{self.sampled} completions, got {self.group_size}.")
        policy: Any = self.model
        if "previous_kl" in objective.needs:
            self.anchors["previous"], self.anchors["start"] = WeightCopy(policy), WeightCopy(policy)
        self.history = History(objective.history) if isinstance(objective, ReMix) else None
        self.generations: list[WeightCopy] = []
        if isinstance(objective, MetaDistill):
            require_same_outputs(policy, teacher)
            self.generations = [WeightCopy(policy) for _ in range(objective.generations)]
            self.anchors |= {f"generation-{i}": own for i, own in enumerate(self.generations)}
        if teacher is not None:
            teacher.requires_grad_(False).eval().to(self.accelerator.device)

    # ------------------------------------------------------------- rollouts

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        """TRL's scores of all processes' completions; those that cannot be judged as their group is have none at all.

        TRL would count a reward that says nothing as 0 where another one speaks.
        """
        scores = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        nowhere = [False] * len(prompts)
        failed = torch.tensor(
            [getattr(own, "failed", nowhere) for own in self.reward_funcs], device=scores.device
        )
        everywhere: Any = self.accelerator.gather(failed.T.contiguous())
        for own, flags in zip(self.reward_funcs, everywhere.T, strict=True):
            if isinstance(own, TextReward):
                own.require_few(flags)
        if self._silence is not None:
            weighed = self.reward_weights.to(scores.device) != 0
            self._silence.listen((~scores.isnan() | everywhere) & weighed, self.reward_func_names)
        total = total_of(scores, everywhere, self.reward_weights.to(scores.device), size=self.sampled)
        compared = trained(len(total), sampled=self.sampled, kept=self.group_size).to(total.device)
        total = total.masked_fill(~compared, math.nan)  # those that only voted are not
        self._totals = total.view(-1, len(prompts))[self.accelerator.process_index]
        return scores.masked_fill(total.isnan()[:, None], math.nan)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's rollout, then what the objective wants to know of it before the first update."""
        settings: Any = self.args
        size = self.group_size
        ages = self._ages(len(inputs) // self.sampled)
        fresh = [row for i, row in enumerate(inputs) if ages[i // self.sampled] == 0]
        output: dict[str, Any] = super()._generate_and_score_completions(fresh)
        if self.sampled > size:
            keep = trained(len(fresh), sampled=self.sampled, kept=size)
            output = without_mere_votes(output, keep)
            self._totals = self._totals[keep.to(self._totals.device)]
            tokens: Any = self.accelerator.gather(rows_of(output).mask.sum())
            output["num_items_in_batch"] = tokens.sum()
        if getattr(self.objective, "population", False) and settings.scale_rewards == "group":
            output["advantages"] = population_advantages(self._totals, size=size).to(output["advantages"])
        rows = rows_of(output)
        chooses = isinstance(self.objective, SPINE)
        seen = self._statistics(self.model, rows, ["log_prob", "entropy"] if chooses else ["log_prob"])
        output["old"] = seen["log_prob"]
        if chooses:
            count = self._chosen(rows, seen["entropy"])
            output["tokens_per_chosen"] = self._per_token(count, output["num_items_in_batch"])
        if "teacher" in self.objective.needs:
            assert self.teacher is not None
            output["teacher"] = self._statistics(self.teacher, rows, ["log_prob"])["log_prob"]
        if self.history is None:
            output["reward"] = self._totals
        else:  # groups are replayed with their advantages
            output = self._mixed(output, ages)
        count = len(output["advantages"])  # TRL shuffles rows, so each must know its group
        output["group"] = torch.arange(count, device=output["advantages"].device) // size
        if "current" in self.objective.needs:
            output["current"] = self._statistics(self.model, rows_of(output), ["log_prob"])["log_prob"]
        self._begin_block()
        return output

    def _get_per_token_logps_and_entropies(self, *_: Any, **__: Any) -> tuple[None, None, None]:
        """TRL's own scores before a second pass, which nothing here reads: ``old`` below is of the rows trained on."""
        return None, None, None

    @property
    def rollouts(self) -> int:
        """Rollouts finished so far: the step that papers with several updates a rollout count in."""
        return self.state.global_step // passes_of(self.objective)

    def _statistics(self, model: Any, rows: Rows, want: list[Want]) -> dict[str, Tensor]:
        settings: Any = self.args
        micro = settings.per_device_train_batch_size * self.group_size // self.sampled
        needs = needs_at(self.objective, self.rollouts)
        return statistics(model, rows, want, temperature=self.temperature, batch=max(micro, 1), needs=needs)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's; before a further update on the same completions, the tokens that SPINE then chooses are counted."""
        inputs: Any = super()._prepare_inputs(generation_batch)
        settings: Any = self.args
        per = int(settings.steps_per_generation)
        starts, fresh = self._step % per == 0, self._step % (per * self.num_iterations) == 0
        if isinstance(self.objective, SPINE) and starts and not fresh:
            buffered: Any = self._buffered_inputs
            parts = [rows_of(part) for part in buffered]
            counts = [self._chosen(p, self._statistics(self.model, p, ["entropy"])["entropy"]) for p in parts]
            ratio = self._per_token(sum(counts), inputs["num_items_in_batch"])
            for part in buffered:
                part["tokens_per_chosen"] = ratio
        return inputs

    def _chosen(self, rows: Rows, entropy: Tensor) -> Tensor:
        """How many tokens of this process the objective chooses."""
        assert isinstance(self.objective, SPINE)
        kept = rows.mask.any(-1)
        return self.objective.chosen(entropy[kept], rows.mask[kept].to(torch.float32)).sum()

    def _per_token(self, chosen: Any, tokens: Tensor) -> Tensor:
        """Loss tokens for each chosen one, over all processes.

        The policy of the coming micro-batches is the one that chose, so they need not wait for each other.
        """
        everywhere: Any = self.accelerator.gather(chosen)
        return tokens / everywhere.sum().clamp(min=1)

    def _begin_block(self) -> None:
        """Move the anchors on: a new batch of rollouts starts an update block.

        Last of all that a rollout does, so that one whose rewards fail has changed nothing. Only losses read anchors.
        """
        self._block_began = self.state.global_step
        policy: Any = self.accelerator.unwrap_model(self.model)
        if "start" in self.anchors:
            self.anchors["previous"].renew(self.anchors["start"])
            self.anchors["start"].renew(policy)
        if (
            isinstance(self.objective, MetaDistill)
            and self.rollouts
            and self.rollouts % self.objective.length == 0
        ):
            for older, newer in zip(self.generations[::-1], [*self.generations[-2::-1], policy], strict=True):
                older.renew(newer)

    def _ages(self, groups: int) -> list[int]:
        """How old each group of this batch is, the same on every process; at least one is fresh."""
        objective, history = self.objective, self.history
        if not isinstance(objective, ReMix) or history is None or not objective.replays(self.rollouts):
            return [0] * groups
        generator = self._replay_generator(0, process=0)  # TRL gathers rewards: as many fresh rows everywhere
        ages = draw_ages(groups, replay=objective.replay, available=history.ages, generator=generator)
        return ages if 0 in ages else [0, *ages[1:]]

    def _replay_generator(self, salt: int, *, process: int) -> torch.Generator:
        """Its numbers depend on the seed, the step and the process alone, so a resumed run draws the same."""
        key = (self.args.seed * 1_000_003 + self.state.global_step) * 4096 + process
        return torch.Generator().manual_seed(2 * key + salt)

    def _mixed(self, output: dict[str, Any], ages: list[int]) -> dict[str, Any]:
        """The fresh groups, which are kept for later steps, and older ones in place of those not generated."""
        assert self.history is not None
        size = self.group_size
        kept = {key: output[key] for key in _KEPT if key in output}
        count = len(output["advantages"]) // size
        fresh: list[Group] = [
            {k: t[i * size : (i + 1) * size] for k, t in kept.items()} for i in range(count)
        ]
        generator = self._replay_generator(1, process=self.accelerator.process_index)
        replayed = [self.history.draw(age, generator) for age in ages if age]
        self._metrics["train"]["objective/replayed"].append(len(replayed) / len(ages))
        self._block_began = self.state.global_step  # from here on it has moved
        self.history.add(fresh)
        if not replayed:
            return output
        pad = self.padding
        both = pad_alike(
            [*fresh, *({k: t.to(self.accelerator.device) for k, t in g.items()} for g in replayed)],
            {"prompt_ids": pad, "completion_ids": pad},
        )
        tokens = both["completion_mask"].sum()
        everywhere: Any = self.accelerator.gather(tokens)
        return both | {"num_items_in_batch": everywhere.sum()}

    # ----------------------------------------------------------------- loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The objective's loss on one micro-batch."""
        rows = rows_of(inputs)
        needs = needs_at(self.objective, self.rollouts)
        kept = rows.mask.any(-1)
        if not bool(kept.any()):  # every completion of the micro-batch was masked as cut off
            return no_loss(model, rows, lambda own: self._fields(model, own, needs))
        rows = rows.select(kept)
        fields = self._fields(model, rows, needs)
        stored = {key: inputs[key][kept] for key in ("old", "current", "teacher") if key in needs}
        batch, out = self.objective_loss(
            mask=rows.mask.to(torch.float32),
            advantage=inputs["advantages"][kept],
            reward=inputs["reward"][kept] if "reward" in inputs else None,
            group=inputs["group"][kept] if "group" in inputs else None,
            tokens_per_chosen=inputs.get("tokens_per_chosen"),
            step=self.rollouts,
            **fields,
            **stored,
        )
        if out.loss.ndim == 1:
            return out.loss.mean() / self.current_gradient_accumulation_steps
        if self.objective.reduction == "token":
            total = inputs["num_items_in_batch"] / self.accelerator.num_processes
            return reduce(out.loss, batch.mask, how="token", denominator=total)
        share = len(rows.mask) / len(kept) / self.current_gradient_accumulation_steps
        return share * reduce(out.loss, batch.mask, how=self.objective.reduction)

    def _fields(self, model: Any, rows: Rows, needs: Collection[Need]) -> dict[str, Tensor]:
        """What the loss reads of the live policy and its anchors."""
        objective = self.objective
        if isinstance(objective, MetaDistill):
            assert self.teacher is not None
            return distilled_fields(
                model,
                rows,
                objective=objective,
                teacher=self.teacher,
                generations=self.generations,
                temperature=self.temperature,
            )
        return live_fields(
            model,
            rows,
            needs=needs,
            temperature=self.temperature,
            base=self.anchors.get("base"),
            previous=self.anchors.get("previous"),
        )

    # --------------------------------------------------------------- saving

    def stored(self) -> dict[str, Tensor]:
        """The groups to replay: those of this process."""
        return self.history.state_dict() if self.history is not None else {}

    def has_moved_on(self) -> bool:
        """Whether its anchors or its history are those of a rollout that no step has followed."""
        moving = self.history is not None or bool(self.generations) or "previous" in self.anchors
        return moving and self._block_began == self.state.global_step

    def take_back(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on as the saved run would have."""
        self._silence = None  # it had its first word
        if self.history is not None:
            self.history.load_state_dict(tensors)
