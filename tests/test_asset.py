"""The bundled model: a stock pipeline folder, small, and good enough where only rendering and decoding count."""

import json

import numpy as np
import torch

from imgrl.policies import load_policy
from imgrl.resources import asset
from imgrl.world.prompts import ALL_TASKS, all_prompts
from imgrl.world.render import render
from imgrl.world.score import judge_image
from imgrl.world.vocabulary import TASKS

FOLDER = asset("tiny-sd3")


def test_it_is_at_most_40_megabytes():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 40e6


def test_it_does_not_say_where_it_was_made():
    for file in asset("tiny-sd3").rglob("*.json"):
        settings = json.loads(file.read_text())
        assert not str(settings.get("_name_or_path", "")).startswith("/"), file


def test_from_pretrained_and_nothing_else_loads_it_and_our_images_are_its_images():
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(FOLDER)
    pipe.set_progress_bar_config(disable=True)
    prompt = "a photo of a red circle"
    theirs = pipe(
        prompt,
        num_inference_steps=2,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(5)],
        output_type="pt",
    ).images
    for fold, tolerance in ((False, 0.0), (True, 1e-4)):  # folding the zero tokens is equal up to rounding
        policy = load_policy(FOLDER, train="none", fold_zero_tokens=fold)
        latents = policy.sample(policy.encode([prompt]), [5], steps=2, guidance=3.0)
        torch.testing.assert_close(policy.decode(latents), theirs, atol=tolerance, rtol=0)


def test_every_prompt_fits_the_tokenizer_and_shape_words_are_whole():
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
    for task in ALL_TASKS:
        for text, _ in all_prompts(task):
            assert len(tokenizer(text).input_ids) <= tokenizer.model_max_length
    assert tokenizer.tokenize('a sign that says "CAT"')[-4:] == ["c", "a", "t</w>", '"</w>']
    assert tokenizer.tokenize("four triangles") == ["four</w>", "triangles</w>"]


def test_decoding_keeps_95_percent_of_the_judges_ceiling():
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(FOLDER / "vae")
    rng, scores, ceilings = np.random.default_rng(3), [], []
    for task in TASKS:
        pool = list(all_prompts(task))
        rows = [pool[rng.integers(len(pool))][1] for _ in range(40)]
        truth = np.stack([render(row, rng) for row in rows])
        images = torch.from_numpy(truth).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            decoded = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
        pixels = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        scores.append(np.mean([judge_image(p, row).correct for p, row in zip(pixels, rows, strict=True)]))
        ceilings.append(np.mean([judge_image(p, row).correct for p, row in zip(truth, rows, strict=True)]))
    assert np.mean(scores) >= 0.95 * np.mean(ceilings)
