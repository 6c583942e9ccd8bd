"""Which weights a run from a base and one from its rotation both change, on matrices where that is known."""

import pytest
import torch
from safetensors.torch import save_file

from imgrl.analysis import Settings, compare, document, pair
from imgrl.errors import ModelError

NOISE = 3e-5  # changes .32 of Gaussian weights of deviation .02 in bfloat16


def noisy(weights, seed, step=NOISE):
    noise = torch.randn(weights.shape, generator=torch.Generator().manual_seed(seed))
    return (weights.float() + step * noise).bfloat16()


def small_at(*places):
    """4 x 4 weights, 1 at these places and 2 elsewhere."""
    weights = torch.full((4, 4), 2.0)
    weights[tuple(zip(*places, strict=True))] = 1.0
    return weights


def raised(weights, *places):
    after = weights.clone()
    after[tuple(zip(*places, strict=True))] *= 1.5
    return after


@pytest.fixture
def report(tmp_path):
    """The report on four checkpoints, each a dict of tensors."""

    def run(base, tuned, rotated, rotated_tuned, **settings):
        files = [tmp_path / f"{name}.safetensors" for name in ("base", "tuned", "rotated", "rotated_tuned")]
        for file, state in zip(files, (base, tuned, rotated, rotated_tuned), strict=True):
            save_file(state, file)
        options = Settings(k=(2,), control=False, **settings)
        pairing = pair(files[0], [files[1]], rotated=(files[2], files[3]))
        names = {"base": "base", "tuned": ["tuned"], "rotated": ("rotated", "rotated_tuned")}
        return document(pairing, list(compare(pairing, options)), options, **names)

    return run


def figures(report, matrices):
    (row,) = [each for each in report["rotated"]["agreement"] if each["matrices"] == matrices]
    return row


def test_matrices_by_hand(report):
    """In both: 4 of 16 weights changed by either run, 2 of them by both.

    All are of the 8 small ones. Of those 6 are small in both bases of the edited matrix, 8 in those of the other: the
    null expects 6 / 4 and 8 / 4 of them changed by both, and Bernoulli's 16 / 16.
    """
    top = [(i, j) for i in (0, 1) for j in range(4)]
    mostly = [*top[:6], (2, 0), (2, 1)]
    before = {"edited": small_at(*top), "same": small_at(*top), "norm": torch.ones(4)}
    after = {name: raised(before[name], *top[:4]) for name in ("edited", "same")}
    turned = before | {"edited": small_at(*mostly)}
    run = {
        "edited": raised(turned["edited"], (0, 0), (0, 1), (1, 0), (2, 0)),
        "same": raised(turned["same"], (0, 0), (0, 1), (1, 0), (1, 1)),
    }
    found = report(before, before | after, turned, turned | run)
    own = {"changed_share": 1 / 4, "rotated_changed_share": 1 / 4, "jaccard": 2 / 6, "bernoulli_null": 1 / 7}
    expected = {"edited": own | {"matched_null": 1.5 / 6.5}, "same": own | {"matched_null": 2 / 6}}
    layers = {layer["name"]: layer["rotated"] for layer in found["layers"]}
    assert layers.pop("norm") is None
    for name, values in expected.items():
        assert layers[name]["edited"] is (name == "edited") and layers[name]["changed"] == 4
        assert layers[name]["runs"] == [pytest.approx(values)]
        row = figures(found, name)
        assert row["count"] == 1 and {key: row[key] for key in values} == pytest.approx(values)
    total = figures(found, "all")
    assert total["count"] == 2 and total["jaccard"] == pytest.approx(4 / 12)
    assert total["bernoulli_null"] == pytest.approx(2 / 14)
    assert total["matched_null"] == pytest.approx(3.5 / 12.5)


def test_noise_agrees_by_size_where_bases_are_the_same_and_by_chance_where_one_is_rotated(report):
    """Nothing is learnt. The digits are those of Gaussian 1024 x 1024 weights: .450, and .191 by chance."""
    generator = torch.Generator().manual_seed(0)
    plain = (0.02 * torch.randn(1024, 1024, generator=generator)).bfloat16()
    turn = torch.linalg.qr(torch.randn(1024, 1024, generator=generator))[0]
    before = {"edited": plain, "same": plain.clone()}
    turned = before | {"edited": (turn @ plain.float()).bfloat16()}
    after, run = ({n: noisy(w, seed) for n, w in state.items()} for seed, state in ((1, before), (2, turned)))
    found = report(before, after, turned, run, exact=False)
    for name, index in (("edited", 0.191), ("same", 0.450)):
        row = figures(found, name)
        assert row["changed_share"] == pytest.approx(0.32, abs=0.006)
        assert row["jaccard"] == pytest.approx(index, abs=0.003)
        assert row["bernoulli_null"] == pytest.approx(0.191, abs=0.003)
        assert row["matched_null"] == pytest.approx(index, abs=0.005)


def test_weights_that_both_runs_choose_lie_above_the_null(report):
    """Of 64 x 64 Gaussian weights both raise the same tenth, whatever their sizes."""
    plain = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    chosen = torch.rand(64, 64, generator=torch.Generator().manual_seed(1)) < 0.1
    after = torch.where(chosen, plain * 1.5, plain)
    row = figures(report({"w": plain}, {"w": after}, {"w": plain}, {"w": after}), "same")
    assert row["jaccard"] == 1 and row["matched_null"] < 0.1


def test_precisions_are_rounded_before_bases_are_compared(report):
    """A rotated copy saved in float32 has the same weights where it was not edited."""
    plain = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = report({"w": plain}, {"w": plain * 2}, {"w": plain.float()}, {"w": 2 * plain.float()})
    assert figures(found, "same")["jaccard"] == 1
    none = figures(found, "edited")
    assert none["count"] == 0 and none["jaccard"] is none["matched_null"] is None


def test_a_lora_on_either_base_is_measured_where_either_changes_something(tmp_path):
    state = {f"layers.{i}.weight": torch.randn(12, 10) for i in range(3)}
    save_file(state, tmp_path / "base.safetensors")
    for i in range(2):
        factors = {
            f"layers.{i}.lora_A.weight": torch.randn(2, 10),
            f"layers.{i}.lora_B.weight": torch.randn(12, 2),
        }
        save_file(factors, tmp_path / f"lora{i}.safetensors")
    base, one, other = (tmp_path / f"{name}.safetensors" for name in ("base", "lora0", "lora1"))
    pairing = pair(base, [one], rotated=(base, other))
    assert pairing.names == ("layers.0.weight", "layers.1.weight")
    found = [layer.rotated for layer in compare(pairing, Settings(k=(2,)))]
    assert found[0].changed == 0 < found[1].changed and [f.shared for f in found] == [(0,), (0,)]


def test_pairs_that_do_not_belong_are_refused(report):
    plain = {"w": torch.ones(4, 4), "u": torch.ones(4, 4)}
    for other in ("rotated", "rotated_tuned"):
        whole = dict.fromkeys(("base", "tuned", "rotated", "rotated_tuned"), plain)
        with pytest.raises(ModelError, match="differ in the shape of 1 tensor .w is .4, 4. and .4, 3."):
            report(**whole | {other: plain | {"w": torch.ones(4, 3)}})
        with pytest.raises(
            ModelError, match=f"{other}.safetensors lacks 1 of the tensors compared, such as u"
        ):
            report(**whole | {other: {"w": torch.ones(4, 4)}})
        with pytest.raises(ModelError, match="w of --rotated holds weights that are not finite"):
            report(**whole | {other: plain | {"w": torch.full((4, 4), torch.nan)}})
