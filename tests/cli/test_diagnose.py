import base64
import importlib.util
import json
import re

import pytest
import torch
from safetensors.torch import save_file

SIZE = 96


def weights(seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    state = {
        "layers.0.attn.to_q.weight": torch.randn(SIZE, SIZE, generator=generator) * 0.02,
        "layers.0.attn.to_v.weight": torch.randn(SIZE, SIZE // 2, generator=generator) * 0.02,
        "layers.10.ff.weight": torch.randn(SIZE, SIZE, generator=generator) * 0.02,
        "layers.2.ff.weight": torch.randn(SIZE, SIZE, generator=generator) * 0.02,
        "norm.weight": torch.ones(SIZE),
    }
    return {name: tensor.bfloat16() for name, tensor in (state | changes).items()}


def noisy(state, seed, step=1e-4):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (t.float() + step * torch.randn(t.shape, generator=generator)).bfloat16()
        for name, t in state.items()
    }


@pytest.fixture
def saved(tmp_path):
    save_file(weights(), tmp_path / "base.safetensors")
    for seed in (1, 2):
        save_file(noisy(weights(), seed), tmp_path / f"run{seed}.safetensors")


def test_a_pair(imgrl, saved, tmp_path):
    result = imgrl("diagnose", "base.safetensors", "run1.safetensors", "--json", "out.json", "--k", 16)
    assert result.exit_code == 0, result.output
    assert "layers.0.attn.to_q.weight" in result.stdout and "principal mask, stored weights" in result.stdout
    report = json.loads((tmp_path / "out.json").read_text())
    names = [layer["name"] for layer in report["layers"]]
    assert names[-3:] == ["layers.2.ff.weight", "layers.10.ff.weight", "norm.weight"]  # in natural order
    total, (run,) = report["totals"][0], report["layers"][0]["runs"]
    before, after = weights(), noisy(weights(), 1)
    changed = sum(int((before[name] != after[name]).sum()) for name in before)
    parameters = sum(t.numel() for t in before.values())
    assert (total["changed"], total["parameters"]) == (changed, parameters)
    assert total["sparsity"] == pytest.approx(1 - changed / parameters)
    assert len(run["angles"]["16"]["left"]) == 16 and run["drift_is_exact"]
    for found in total["overlaps"]:
        assert {"observed", "density_null", "matched_null", "over_density", "over_matched"} <= found.keys()


def test_several_runs_agree_beside_both_nulls(imgrl, saved, tmp_path):
    result = imgrl("diagnose", "base.safetensors", "run1.safetensors", "run2.safetensors", "--json", "o.json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "o.json").read_text())["agreement"]
    assert row["runs"] == [0, 1] and row["bernoulli_null"] < row["jaccard"]
    assert row["jaccard"] == pytest.approx(row["matched_null"], abs=0.02)  # noise: nothing was learnt
    assert "runs 1 and 2: Jaccard" in result.stdout


def test_the_same_file_twice_is_all_unchanged(imgrl, saved, tmp_path):
    result = imgrl("diagnose", "base.safetensors", "base.safetensors", "--json", "o.json", "--html", "o.html")
    assert result.exit_code == 0, result.output
    total = json.loads((tmp_path / "o.json").read_text())["totals"][0]
    assert total["sparsity"] == 1 and total["drift"] == total["largest_angle"] == 0


def test_the_page_opens_offline_and_names_everything(imgrl, saved, tmp_path):
    pytest.importorskip("matplotlib")
    save_file(noisy(weights(), 3), tmp_path / "<b>&.safetensors")
    assert (
        imgrl(
            "diagnose", "base.safetensors", "run1.safetensors", "<b>&.safetensors", "--html", "o.html"
        ).exit_code
        == 0
    )
    text = (tmp_path / "o.html").read_text()
    assert "&lt;b&gt;&amp;.safetensors" in text and "<b>&" not in text
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "<script" not in text
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", text)
    assert len(pictures) == 7
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert "layers.10.ff.weight" in text and "magnitude" in text


def test_without_matplotlib_a_page_is_refused_before_work(refused, saved, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "matplotlib" else real(n, *a))
    assert "pip install 'imgrl[plots]'" in refused(
        "diagnose", "base.safetensors", "run1.safetensors", "--html", "o.html"
    )


def test_a_matrix_of_which_k_takes_in_all_directions_has_no_angle(imgrl, tmp_path):
    """Shown as a dash, and no part of the mean over the matrices."""
    pytest.importorskip("matplotlib")
    small, large = torch.randn(32, 32), torch.randn(96, 96)
    found = []
    for name, before in (
        ("both", {"a": small, "b": large}),
        ("large", {"b": large}),
        ("small", {"a": small}),
    ):
        save_file(before, tmp_path / "x.safetensors")
        save_file({key: t + 0.1 * t.roll(1) for key, t in before.items()}, tmp_path / "y.safetensors")
        options = ("--json", f"{name}.json", "--html", f"{name}.html")
        result = imgrl("diagnose", "x.safetensors", "y.safetensors", *options)
        assert result.exit_code == 0, result.output
        found.append(json.loads((tmp_path / f"{name}.json").read_text()))
    both, large, small = (report["totals"][0] for report in found)
    assert both["largest_angle"] == large["largest_angle"] > 1 and both["noise_angle"] == large["noise_angle"]
    assert small["largest_angle"] is small["noise_angle"] is None
    assert "of 1 measured matrix)" in result.stdout and "largest angle – (–)" in result.stdout


@pytest.mark.parametrize(("pattern", "count"), [("attn", 2), ("*.ff.weight", 2), ("layers.2.*", 1)])
def test_layers_are_chosen_by_name(imgrl, saved, tmp_path, pattern, count):
    files = ("base.safetensors", "run1.safetensors")
    assert imgrl("diagnose", *files, "--layers", pattern, "--json", "o.json").exit_code == 0
    assert len(json.loads((tmp_path / "o.json").read_text())["layers"]) == count


def test_exact_and_randomised_figures_agree_on_what_both_measure(imgrl, tmp_path):
    """A side above the limit for exact spectra, with singular values that fall."""
    generator = torch.Generator().manual_seed(0)
    rank = 0.7 ** torch.arange(40)
    u, v = (torch.linalg.qr(torch.randn(800, 40, generator=generator))[0] for _ in range(2))
    before = (u * rank) @ v.T
    step = 1e-5 * torch.randn(800, 800, generator=generator)
    save_file({"w": before}, tmp_path / "a.safetensors")
    save_file({"w": before + step}, tmp_path / "b.safetensors")
    found = []
    for option in ((), ("--exact",)):
        options = ("--k", 8, "--seed", 1, "--no-control", "--json", "o.json", *option)
        result = imgrl("diagnose", "a.safetensors", "b.safetensors", *options)
        assert result.exit_code == 0, result.output
        found.append(json.loads((tmp_path / "o.json").read_text())["layers"][0]["runs"][0])
    quick, exact = found
    assert exact["drift_is_exact"] and not quick["drift_is_exact"] and quick["drift"] <= exact["drift"]
    for side in ("left", "right"):
        assert quick["angles"]["8"][side] == pytest.approx(exact["angles"]["8"][side], rel=0.02, abs=2e-3)
    share = [run["overlaps"][0]["observed"] for run in found]
    assert share[0] == pytest.approx(share[1], abs=1e-3)


def test_a_lora_of_a_bundled_model(imgrl, sd3_folder, tmp_path):
    from imgrl.policies import LoraSpec, load_policy

    policy = load_policy(sd3_folder, lora=LoraSpec(rank=2))
    with torch.no_grad():
        for tensor in policy.weights.tensors("current").values():
            tensor.normal_(std=0.01, generator=torch.Generator().manual_seed(1))
    policy.export(tmp_path / "run" / "lora")
    result = imgrl("diagnose", sd3_folder, "run", "--json", "o.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "o.json").read_text())
    total = report["totals"][0]
    assert all("attn" in layer["name"] for layer in report["layers"])  # only what the LoRA changes is read
    assert total["untouched"] > 0 and total["parameters"] == sum(
        p.numel() for p in policy.transformer.state_dict().values()
    ) - sum(t.numel() for t in policy.weights.tensors("current").values())
    assert {each["weights"] for each in total["overlaps"]} == {"stored", "master"}


def test_precisions_that_differ_are_reported_and_rounded(imgrl, saved, tmp_path):
    save_file({name: t.float() for name, t in weights().items()}, tmp_path / "wide.safetensors")
    result = imgrl("diagnose", "wide.safetensors", "base.safetensors", "--json", "o.json")
    assert result.exit_code == 0, result.output
    assert "stores 5 tensors in bfloat16 where BASE has float32; both are rounded" in result.stderr
    assert json.loads((tmp_path / "o.json").read_text())["totals"][0]["sparsity"] == 1


def test_tensors_that_only_one_has_are_reported(imgrl, saved, tmp_path):
    save_file(weights(extra=torch.ones(4, 4)), tmp_path / "more.safetensors")
    result = imgrl("diagnose", "base.safetensors", "more.safetensors")
    assert result.exit_code == 0, result.output
    assert "1 tensor is in more.safetensors only and left out, such as extra" in result.stderr


def test_bad_checkpoints_are_refused(refused, saved, tmp_path):
    def against(tensors):
        save_file(tensors, tmp_path / "bad.safetensors")
        return refused("diagnose", "base.safetensors", "bad.safetensors")

    shaped = {"layers.2.ff.weight": torch.ones(SIZE, 2), "layers.10.ff.weight": torch.ones(3, SIZE)}
    said = against(weights(**shaped))
    assert "differ in the shape of 2 tensors" in said and "layers.2.ff.weight is [96, 96] and [96, 2]" in said
    one = weights(**{"layers.2.ff.weight": torch.ones(SIZE, 2)})
    assert "differ in the shape of 1 tensor (layers.2.ff.weight is" in against(one)
    assert "have no matrix in common" in against({"other": torch.ones(4, 4)})
    assert "have no matrix in common" in against({"norm.weight": torch.ones(SIZE)})
    whole = {"layers.2.ff.weight": torch.ones(SIZE, SIZE, dtype=torch.int8)}
    assert "kinds of numbers that cannot be compared, such as layers.2.ff.weight" in against(
        weights() | whole
    )
    broken = torch.full((SIZE, SIZE), torch.nan)
    assert "not finite" in against(weights(**{"layers.2.ff.weight": broken}))
    file = tmp_path / "run1.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "run1.safetensors is truncated" in refused("diagnose", "base.safetensors", file)
    assert "nowhere does not exist" in refused("diagnose", "base.safetensors", "nowhere")


def test_a_lora_needs_its_base(refused, saved, tmp_path):
    (tmp_path / "lora").mkdir()
    factors = {
        "transformer.x.lora_A.weight": torch.ones(2, 4),
        "transformer.x.lora_B.weight": torch.ones(4, 2),
    }
    save_file(factors, tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    assert "is a LoRA, which says nothing without its base" in refused("diagnose", "lora", "base.safetensors")
    assert "changes transformer.x, which BASE does not have" in refused(
        "diagnose", "base.safetensors", "lora"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--k", "many"), "--k must be whole numbers"),
        (("--k", "0"), "k must be at least one positive number"),
        (("--alpha", "0.3;0.5"), "--alpha must be fractions"),
        (("--alpha", "1.5"), "alpha must be fractions between 0 and 1"),
        (("--layers", "nothing"), "--layers 'nothing' fits no common tensor"),
        (("--json", "base.safetensors/o.json"), "--json"),
    ],
)
def test_bad_options_are_refused(refused, saved, options, words):
    assert words in refused("diagnose", "base.safetensors", "run1.safetensors", *options)


def test_a_rotated_pair_that_does_not_fit_is_refused(refused, saved, tmp_path):
    def beside(state, *, run="bad.safetensors"):
        save_file(state, tmp_path / "bad.safetensors")
        return refused(
            "diagnose", "base.safetensors", "run1.safetensors", "--rotated", "bad.safetensors", run
        )

    assert "differ in the shape of 1 tensor (layers.2.ff.weight is [96, 96] and [3, 96])" in beside(
        weights(**{"layers.2.ff.weight": torch.ones(3, SIZE)})
    )
    rest = {name: t for name, t in weights().items() if "ff" not in name}
    said = beside(rest)
    assert "bad.safetensors lacks 2 of the tensors compared, such as layers.10.ff.weight" in said
    assert "what `imgrl rotate` made of base.safetensors" in said
    assert "nowhere does not exist" in beside(weights(), run="nowhere")


def test_too_many_runs_are_refused(refused, saved):
    assert "at most 8" in refused("diagnose", "base.safetensors", *["run1.safetensors"] * 9)
