"""What our TRL trainers share: anchors that move by a rule, saved and resumed with the rest, and a loss's metrics."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imgrl.analysis.masks import MaskedUpdate, MaskKind, training_masks
from imgrl.anchor import Anchor, Schedule
from imgrl.errors import CheckpointError, ModelError
from imgrl.objectives.text.base import BASE_NEEDS, TextBatch, TextLoss, TextObjective
from imgrl.training.run_folder import write_json
from imgrl.training.text.checkpoints import ANCHORS, FACTS, facts_of, prune, readable
from imgrl.training.text.copies import WeightCopy
from imgrl.training.text.masking import confine_adapter, matrices, save_whole
from imgrl.training.text.pissa import check_directions, is_pissa, make_plain, start_from
from imgrl.training.text.sharding import is_sharded, whole
from imgrl.training.text.steps import note

__all__ = ["AnchorFiles"]

_OWN = "process-{}.safetensors"
"""What each process stores by itself, such as its replay."""


class AnchorFiles:
    """Mixed into a TRL trainer, before it: keeps ``anchors`` and what is ``stored`` beside each checkpoint.

    The anchor ``base`` begins as the model before training, kept where the objective asks for it, and moves by
    ``rule``; ``initial`` are PiSSA's factors as they started. The newest ``keep`` checkpoints stay; TRL's own limit
    must be off, since it counts those that are not whole yet. ``merge`` writes the model with its LoRA in it, not the
    LoRA alone.
    """

    def __init__(
        self,
        *args: Any,
        objective: TextObjective,
        scale: Schedule,
        rule: Anchor,
        mask: MaskKind | None = None,
        merge: bool = False,
        keep: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.anchors: dict[str, WeightCopy] = {}
        self.objective, self.scale, self.merge, self.keep = objective, scale, merge, keep
        self.elapsed: Callable[[], float] = lambda: 0.0
        """Seconds the run has trained, to be kept with its checkpoints."""
        masks_adapter = mask is not None and kwargs.get("peft_config") is not None
        before = matrices(kwargs["model"]) if masks_adapter else {}
        super().__init__(*args, **kwargs)
        trainer: Any = self
        # From the weights before training: a resumed run loads its checkpoint only later.
        self.masks: dict[nn.Parameter, Tensor] = {}
        if mask is not None and masks_adapter:
            confine_adapter(trainer.model, mask, before=before, seed=trainer.args.seed)
        elif mask is not None:
            own = (parameter for parameter in trainer.model.parameters() if parameter.requires_grad)
            self.masks = training_masks(own, mask, seed=trainer.args.seed)
        if BASE_NEEDS & objective.needs:
            from imgrl.training.text.watch import Follow

            self.anchors["base"] = WeightCopy(trainer.model)
            trainer.add_callback(Follow(self.anchors["base"], rule))
        if is_pissa(trainer.model):
            check_directions(trainer.model)
            self.anchors["initial"] = WeightCopy(trainer.model)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's optimiser; entries outside the masks keep their bits."""
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if self.masks:
            MaskedUpdate(optimizer, self.masks)
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's forward and backward pass of a micro-batch.

        Raises:
            ModelError: if its loss is not finite.
        """
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self._require_finite("loss", loss)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """The library's, just before the optimiser steps, so that no broken gradient reaches the weights."""
        norm = super()._get_grad_norm(*args, **kwargs)  # type: ignore[misc]
        if isinstance(norm, Tensor):  # of sharded gradients each process knows a part
            norm = whole(norm)
        self._require_finite("gradient", norm)
        return norm

    def _require_finite(self, what: str, value: Any) -> None:
        if value is None or math.isfinite(value):  # DeepSpeed may have no norm to tell
            return
        trainer: Any = self
        step = trainer.state.global_step + 1
        do = "lower optimizer.lr or set optimizer.clip, and continue from the last checkpoint with --resume"
        if step == 1:  # nothing was trained yet
            do = "look for numbers that are not finite in the weights of model.path, or lower loss weights"
        raise ModelError(f"The {what} of step {step} is {float(value)}, so the step was not taken: {do}.")

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The recipe's factor of the learning rate by step."""
        del num_training_steps
        trainer: Any = self
        if trainer.lr_scheduler is None:
            scale = self.scale  # a plain function, so that its state in a checkpoint is a number
            own = trainer.optimizer if optimizer is None else optimizer
            trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(own, lambda step: float(scale(step)))
        return trainer.lr_scheduler

    def objective_loss(self, **fields: Any) -> tuple[TextBatch, TextLoss]:
        """A batch made of ``fields``, and the objective's loss on it, whose metrics are noted.

        Raises:
            ModelError: if the objective refuses the batch, such as for a teacher that says NaN.
        """
        try:
            batch = TextBatch(**fields)
            out = self.objective.loss(batch)
        except ValueError as error:
            raise ModelError(str(error)) from error
        trainer: Any = self
        note(trainer._metrics["train"], out.metrics, batch.mask)
        return batch, out

    def stored(self) -> dict[str, Tensor]:
        """Further tensors to keep, each process its own; names or nothing, the same on all of them."""
        return {}

    def has_moved_on(self) -> bool:
        """Whether anything that a checkpoint keeps already belongs to the step that comes next."""
        return False

    def take_back(self, tensors: Mapping[str, Tensor]) -> None:
        """Receive what ``stored`` gave when the checkpoint was written."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        trainer: Any = self
        folder = Path(trainer._get_output_dir(trial=trial)) / f"checkpoint-{trainer.state.global_step}"
        own = self.stored()
        if own:
            folder.mkdir(parents=True, exist_ok=True)
            _save(own, folder / _OWN.format(trainer.args.process_index))
        trainer.accelerator.wait_for_everyone()  # the file of facts comes last: with it a checkpoint is whole
        tensors = {
            f"{name}/{key}": tensor
            for name, copy in self.anchors.items()
            for key, tensor in copy.state_dict(here=trainer.args.should_save).items()
        }
        if not trainer.args.should_save:
            return
        _save(tensors, folder / ANCHORS)
        parts = trainer.args.world_size if own else 0
        facts = {"anchors": sorted(self.anchors), "parts": parts, "seconds": self.elapsed()}
        facts["files"] = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        write_json(folder / FACTS, facts | {"sharded": is_sharded(trainer.model), "merge": self.merge})
        if self.keep is not None:
            prune(folder.parent, self.keep)

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        """The library's, which knows no sentence for weights that were written in the other way."""
        trainer: Any = self
        was = facts_of(Path(checkpoint)).get("sharded", False)
        if was != trainer.is_fsdp_enabled:
            raise CheckpointError(
                f"{checkpoint} was written {'with' if was else 'without'} FSDP; resume with the launch the run began "
                "with."
            )
        with readable(checkpoint):
            super()._load_from_checkpoint(checkpoint, model)  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None:
            self._restore(Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with readable(checkpoint):
            super()._load_rng_state(checkpoint)  # type: ignore[misc]

    def _restore(self, folder: Path) -> None:
        if not (folder / ANCHORS).is_file():  # of a checkpoint that does not name its files yet
            raise CheckpointError(
                f"{folder} has no {ANCHORS}: it was not written by imgrl or is incomplete; resume from another."
            )
        facts = facts_of(folder)
        if facts["anchors"] != sorted(self.anchors):
            raise CheckpointError(
                f"{folder} keeps the anchors {facts['anchors']}, but this objective has {sorted(self.anchors)}; resume "
                "with the recipe the run began with."
            )
        with readable(folder):
            tensors = load_file(folder / ANCHORS)
        start = {key: t.clone() for key, t in self.start().items()}
        for name, copy in self.anchors.items():
            prefix = f"{name}/"
            copy.load_state_dict(
                {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
            )
        if start:
            trainer: Any = self
            start_from(trainer.model, start, self.start())
        self.take_back(self._own_part(folder, facts, tensors))

    def stand_at(self, checkpoint: Path) -> None:
        """Be where a checkpoint is, without training: its weights and its step."""
        from transformers import TrainerState

        trainer: Any = self
        if trainer.is_fsdp_enabled:  # weights are sharded where the optimiser is made, and loaded after
            trainer._prepare_for_training(trainer.args.max_steps, None, str(checkpoint))
        else:
            trainer._load_from_checkpoint(str(checkpoint))
            self._restore(checkpoint)
        trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))

    def _own_part(
        self, folder: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """What this process stored."""
        settings: Any = self.args  # type: ignore[attr-defined]
        known = tuple(f"{name}/" for name in self.anchors)
        older = {key: t for key, t in tensors.items() if not key.startswith(known)}  # before each had its own
        parts = facts.get("parts", 1 if older else 0)
        if not parts:
            return {}
        if parts != settings.world_size:
            raise CheckpointError(
                f"{folder} keeps what {parts} process(es) stored, but {settings.world_size} resume it; resume with as "
                "many as before."
            )
        file = folder / _OWN.format(settings.process_index)
        if not older and not file.is_file():
            raise CheckpointError(f"{file} is missing: the checkpoint is incomplete; resume from another.")
        with readable(folder):
            return older or load_file(file)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the library saves it, but a model that is not a checkpoint is whole: sharded, masked, begun as PiSSA."""
        trainer: Any = self
        if is_sharded(trainer.model) and not _internal_call:  # it may write parts, which nothing else loads
            state = trainer.accelerator.get_state_dict(trainer.model)
            tied = getattr(trainer.model, "all_tied_weights_keys", None) or {}
            once = {key: tensor for key, tensor in state.items() if tied.get(key) not in state}
            trainer._save(output_dir, state_dict=once)
            return
        if self.merge and not _internal_call:
            if trainer.args.should_save:
                save_whole(
                    trainer.accelerator.unwrap_model(trainer.model),
                    Path(output_dir or trainer.args.output_dir),
                )
            return
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        if self.start() and not _internal_call and trainer.args.should_save:
            make_plain(Path(output_dir or trainer.args.output_dir), self.start())

    def start(self) -> Mapping[str, Tensor]:
        """PiSSA's factors as they started, by parameter name; nothing for others."""
        return self.anchors["initial"].tensors if "initial" in self.anchors else {}


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    """Write beside and rename, so that nobody finds half a file under its name."""
    partial = file.with_name(f".{file.name}.partial")
    save_file(tensors, partial)
    os.replace(partial, file)
