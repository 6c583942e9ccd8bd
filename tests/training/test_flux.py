"""The loop on Flux, whose tokens, schedule and guidance differ from SD3's: a run, its resume, its export."""

import json
from pathlib import Path

import pytest
import torch
from small_runs import CHEAP, HELDOUT, Optimizer, assert_same_bits, last_tensors, rows_of, small_recipe

from imgrl.flow import StochasticSampler
from imgrl.objectives.image import GRPO
from imgrl.policies import load_policy
from imgrl.policies.flux import unpack
from imgrl.policies.stock import open_stock_pipeline
from imgrl.training.checkpoint import latest_checkpoint, load_weights
from imgrl.training.image_loop import Trainer

OBJECTIVES = {"crd": CHEAP, "grpo": GRPO(sampler=StochasticSampler(window=1, reach=0.7))}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_it_trains_resumes_bit_for_bit_and_is_exported(flux, embeddings, tmp_path, objective):
    def made(name, rounds):
        return small_recipe(
            flux,
            tmp_path / name,
            model_embedding_folder=str(embeddings),
            model_max_sequence_length=8,
            run_rounds=rounds,
            objective=OBJECTIVES[objective],
            optimizer=Optimizer(lr=0.05),
        )

    whole = made("whole", 2)
    Trainer(whole).train()
    Trainer(made("cut", 1)).train()
    Trainer(made("cut", 2)).train(resume=True)
    assert_same_bits(last_tensors(tmp_path / "cut"), last_tensors(whole.run.dir))
    rows = [row for row in rows_of(whole.run.dir) if "reward" in row]
    assert [row["optimizer_steps"] for row in rows] == [1, 2] and all(
        row["train/grad_norm"] > 0 for row in rows
    )
    folder = Path(whole.run.dir) / "lora"
    manifest = json.loads((folder / "export.json").read_text())
    assert manifest["family"] == "flux" and manifest["velocity_error"] < 1e-5 < manifest["velocity_change"]

    policy = load_policy(flux, lora=whole.model.lora, names=("frozen",), max_sequence_length=8)
    load_weights(latest_checkpoint(Path(whole.run.dir)), policy)

    def ours(weights):
        cond = policy.encode([HELDOUT[0]])
        return policy.sample(cond, [3], steps=3, weights=weights, height=32, width=16)

    pipe = open_stock_pipeline(flux)
    pipe.load_lora_weights(folder)
    stock = pipe(
        HELDOUT[0],
        generator=[torch.Generator().manual_seed(3)],
        output_type="latent",
        height=32,
        width=16,
        num_inference_steps=3,
        guidance_scale=policy.distilled_guidance,
        max_sequence_length=8,
    ).images
    assert (ours("current") - ours("frozen")).abs().max() > 1e-3
    torch.testing.assert_close(unpack(stock, 4, 2), ours("current"), rtol=0, atol=2e-5)
