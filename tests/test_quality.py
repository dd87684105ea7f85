"""FID and KID against formulas written out here, and the extractors under them."""

import functools
import hashlib
import http.server
import json
import sys
import threading

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch import Tensor, nn

from lorica.errors import LoricaError
from lorica.quality import EXTRACTORS, Extractor, fid, inception, kid, measure
from lorica.quality.builtin import dead_leaves, uniform


class Corners(Extractor):
    """The pixels of a 2 x 2 picture: features whose distribution the test decides."""

    name = "corners"
    num_features = 12
    comparable = False
    note = ""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.flatten(1).float() / 64


def corners(count: int, seed: int, shift: float = 0.0) -> Tensor:
    levels = np.random.default_rng(seed).normal(128 + shift, 20, size=(count, 3, 2, 2))
    return torch.from_numpy(levels.clip(0, 255).round().astype(np.uint8))


@functools.cache
def scenes(count: int, seed: int) -> Tensor:
    """Pictures of discs, 64 x 64, lit from above."""
    light = np.linspace(1, 0.2, 64)[:, None]
    return torch.from_numpy(((dead_leaves(uniform(seed))[:count] + 1) * 127.5 * light).round().astype(np.uint8))


@pytest.fixture(scope="module")
def builtin() -> Extractor:
    return EXTRACTORS["builtin"]()


# ----- FID and KID ------------------------------------------------------------------------------------------------
def reference_fid(x: np.ndarray, y: np.ndarray) -> float:
    """Heusel et al. 2017, with the matrix square root taken literally."""
    root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root))


def reference_kid(x: np.ndarray, y: np.ndarray) -> float:
    """Bińkowski et al. 2018: the unbiased MMD^2, summed pair by pair."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    within = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(len(s)) for j in range(len(s)) if i != j)
    between = sum(kernel(a, b) for a in x for b in y)
    return within / (len(x) * (len(x) - 1)) - 2 * between / (len(x) * len(y))


def test_fid_agrees_with_the_formula_written_in_numpy():
    real, generated = corners(60, 0), corners(50, 1, shift=15)
    expected = reference_fid(Corners()(real).double().numpy(), Corners()(generated).double().numpy())
    assert fid(real, generated, Corners()) == pytest.approx(expected, rel=1e-9)


def test_fid_of_a_set_with_itself_is_zero():
    assert fid(corners(40, 0), corners(40, 0), Corners()) == pytest.approx(0, abs=1e-6)


def test_fid_of_a_shifted_copy_is_the_squared_length_of_the_shift():
    real = corners(40, 0)
    assert fid(real, real + 16, Corners()) == pytest.approx(12 * (16 / 64) ** 2, abs=1e-6)


def test_kid_over_whole_sets_agrees_with_the_sum_over_pairs():
    real, generated = corners(20, 0), corners(20, 1, shift=15)
    expected = reference_kid(Corners()(real).double().numpy(), Corners()(generated).double().numpy())
    found = kid(real, generated, Corners(), subset_size=20, subsets=3)
    assert found["value"] == pytest.approx(expected, rel=1e-9)
    assert found["std"] == pytest.approx(0, abs=1e-12)


def test_kid_is_unbiased_at_any_subset_size():
    real, generated = corners(200, 0), corners(200, 1, shift=15)
    whole = kid(real, generated, Corners(), subset_size=200, subsets=1)
    small = kid(real, generated, Corners(), subset_size=20, subsets=400)
    standard_error = small["std"] / 400**0.5
    assert abs(small["value"] - whole["value"]) < 4 * standard_error < 0.2 * whole["value"]


def test_kid_of_two_draws_from_one_distribution_is_near_zero_and_far_below_that_of_a_shift():
    same = kid(corners(200, 0), corners(200, 1), Corners())
    shifted = kid(corners(200, 0), corners(200, 1, shift=15), Corners())
    assert abs(same["value"]) < 0.02 * shifted["value"]


def test_kid_is_seeded_and_leaves_the_global_generator_alone():
    real, generated = corners(40, 0), corners(40, 1)
    torch.manual_seed(5)
    first = kid(real, generated, Corners(), seed=1)
    drawn = torch.rand(1)
    second = kid(real, generated, Corners(), seed=1)
    torch.manual_seed(5)
    assert first == second != kid(real, generated, Corners(), seed=2)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize(("count", "subset_size"), [(30, 15), (999, 499), (1000, 1000), (1500, 1000)])
def test_the_kid_subset_is_1000_where_there_are_as_many_pictures_and_half_of_the_set_otherwise(count, subset_size):
    assert kid(corners(count, 0), corners(1500, 1), Corners(), subsets=2)["subset_size"] == subset_size


def test_a_kid_subset_larger_than_the_smaller_set_is_refused():
    with pytest.raises(LoricaError, match="smaller set has 20"):
        kid(corners(40, 0), corners(20, 1), Corners(), subset_size=30)


def test_the_result_is_json_and_states_extractor_counts_and_subsets():
    result = measure(corners(40, 0), corners(30, 1), Corners(), subsets=7, seed=3)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["counts"] == {"real": 40, "generated": 30}
    assert (result["extractor"], result["dimension"], result["comparable"]) == ("corners", 12, False)
    assert (result["kid"]["subsets"], result["kid"]["subset_size"], result["kid"]["seed"]) == (7, 15, 3)
    assert result["fid"] == fid(corners(40, 0), corners(30, 1), Corners())


def test_fid_below_the_rank_limit_is_warned_of_and_above_it_is_not():
    """n pictures give a covariance of rank n - 1 at most."""
    below = measure(corners(12, 0), corners(50, 1), Corners())["warnings"]
    above = measure(corners(13, 0), corners(50, 1), Corners())["warnings"]
    assert any("FID is unreliable" in text and "12 pictures" in text for text in below)
    assert not any("FID" in text for text in above)


def test_kid_subsets_that_take_in_the_whole_set_are_warned_of():
    whole = measure(corners(30, 0), corners(30, 1), Corners(), subset_size=30)["warnings"]
    half = measure(corners(30, 0), corners(30, 1), Corners(), subset_size=15)["warnings"]
    assert any("whole of the smaller set" in text for text in whole)
    assert not any("whole of the smaller set" in text for text in half)


def test_pil_pictures_and_tensors_give_the_same_numbers():
    real, generated = corners(70, 0), corners(70, 1)
    as_pil = [[Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures] for pictures in (real, generated)]
    assert measure(*as_pil, Corners()) == measure(real, generated, Corners())


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pictures_are_refused(count):
    with pytest.raises(LoricaError, match="at least two"):
        measure(corners(40, 0), corners(40, 1)[:count], Corners())


def test_pictures_of_several_sizes_are_refused():
    mixed = [Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))]
    with pytest.raises(LoricaError, match="several sizes"):
        fid(mixed, mixed, Corners())


def test_float_pictures_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        fid(corners(4, 0).float(), corners(4, 0), Corners())


def test_features_that_are_not_finite_are_refused():
    class Broken(Corners):
        def forward(self, pictures: Tensor) -> Tensor:
            return super().forward(pictures) / 0

    with pytest.raises(ValueError, match="not finite"):
        fid(corners(4, 0), corners(4, 1), Broken())


# ----- extractors -------------------------------------------------------------------------------------------------
def test_an_unknown_extractor_is_answered_with_the_known_ones():
    with pytest.raises(LoricaError, match="inception-2048"):
        measure(corners(4, 0), corners(4, 1), "inception")


def test_only_the_usual_inception_layer_claims_to_be_comparable():
    assert [name for name in EXTRACTORS if EXTRACTORS[name].comparable] == ["inception-2048"]


@pytest.mark.parametrize("size", [(64, 64), (48, 100), (200, 200)])
def test_the_builtin_extractor_takes_any_size(builtin, size):
    pictures = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8)
    features = builtin(pictures)
    assert features.shape == (3, builtin.num_features) == (3, 128)
    assert features.abs().max() <= 1


def test_the_builtin_extractor_gives_these_very_numbers_in_every_version(builtin):
    """Otherwise results of two versions could not be set side by side. Computed once, on x86-64 with torch 2.15."""
    features = builtin(scenes(1, seed=9))[0, [0, 47, 48, 60, 90, 127]]
    assert features.tolist() == pytest.approx([0.352, -0.82195, -0.67611, -0.5613, 0.29097, -0.39639], abs=2e-4)


def test_building_the_builtin_extractor_depends_on_no_global_seed(builtin):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    again = EXTRACTORS["builtin"]()
    assert all(torch.equal(a, b) for a, b in zip(builtin.buffers(), again.buffers(), strict=True))


def test_no_builtin_feature_is_dead(builtin):
    assert builtin(scenes(100, seed=3)).std(dim=0).min() > 0.05


def worse(pictures: Tensor, how: str, strength: int) -> Tensor:
    x = pictures.float()
    if how == "noise":
        x = x + strength * 20 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    elif how == "blur":
        kernel = 2 * strength + 1
        x = nn.functional.avg_pool2d(x, kernel, stride=1, padding=strength, count_include_pad=False)
    elif how == "colour":
        x = x * torch.tensor([1.0, 1.0 - 0.15 * strength, 1.0]).view(1, 3, 1, 1)
    elif how == "shuffled patches":
        side = 64 // 2**strength
        patches = nn.functional.unfold(x, side, stride=side)
        order = torch.randperm(patches.shape[2], generator=torch.Generator().manual_seed(0))
        x = nn.functional.fold(patches[:, :, order], 64, side, stride=side)
    elif how == "few different pictures":
        x = x[torch.arange(len(x)) % (24 // strength**2)]
    return x.round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("how", ["noise", "blur", "colour", "shuffled patches", "few different pictures"])
def test_fid_over_the_builtin_extractor_grows_with_the_damage(builtin, how):
    pictures = scenes(128, seed=3)
    left, right = pictures[::2], pictures[1::2]
    scores = [fid(left, right, builtin), *(fid(left, worse(right, how, strength), builtin) for strength in (1, 2))]
    assert scores == sorted(scores)
    assert scores[-1] > 1.2 * scores[0]


# ----- Inception, without a network -------------------------------------------------------------------------------
@pytest.fixture
def no_weights(tmp_path, monkeypatch):
    """An empty torch.hub cache, and a place to fetch from where nobody listens."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/inception.pth")
    monkeypatch.setattr(inception, "TIMEOUT", 2)
    return tmp_path / "hub" / "checkpoints" / "inception.pth"


@pytest.fixture
def torch_fidelity():
    return pytest.importorskip("torch_fidelity")


@pytest.mark.parametrize("name", ["inception-2048", "inception-768"])
def test_without_network_inception_says_so_and_offers_the_builtin_extractor(name, torch_fidelity, no_weights):
    with pytest.raises(LoricaError, match="cannot be fetched") as caught:
        measure(corners(4, 0), corners(4, 1), name)
    assert str(no_weights) in caught.value.remedy
    assert "--extractor builtin" in caught.value.remedy
    assert not list(no_weights.parent.iterdir())


@pytest.mark.parametrize("name", ["inception-2048", "inception-768"])
def test_without_torch_fidelity_inception_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(LoricaError, match="not installed") as caught:
        EXTRACTORS[name]()
    assert "lorica[inception]" in caught.value.remedy


def test_a_wrong_file_in_the_cache_is_refused_before_it_is_unpickled(torch_fidelity, no_weights, monkeypatch):
    no_weights.parent.mkdir(parents=True)
    no_weights.write_bytes(b"not the network")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(LoricaError, match="is not the Inception network"):
        EXTRACTORS["inception-2048"]()


@pytest.fixture
def server(tmp_path_factory):
    """A web server that answers every request with the same bytes, as a captive portal does."""
    content = b"<html>please log in</html>"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # the name is http.server's
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/inception.pth", content
        running.shutdown()


def test_a_wrong_answer_from_the_network_is_refused_and_not_kept(no_weights, server, monkeypatch):
    monkeypatch.setattr(inception, "URL", server[0])
    with pytest.raises(LoricaError, match="is not the Inception network"):
        inception.weights()
    assert not list(no_weights.parent.iterdir())


def test_the_right_file_is_fetched_once(no_weights, server, monkeypatch):
    url, content = server
    monkeypatch.setattr(inception, "URL", url)
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(content).hexdigest())
    assert inception.weights() == no_weights
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/inception.pth")
    assert inception.weights().read_bytes() == content


@pytest.mark.parametrize(("name", "dimension"), [("inception-2048", 2048), ("inception-768", 768)])
def test_inception_gives_features_of_the_layer_in_its_name(name, dimension, torch_fidelity, no_weights, monkeypatch):
    """With random weights: only the shape is at stake."""
    monkeypatch.setattr(inception, "weights", lambda: no_weights)
    monkeypatch.setattr(torch, "load", lambda *_, **__: {})
    monkeypatch.setattr(inception.NoTrainInceptionV3, "load_state_dict", lambda *_: None)
    extractor = EXTRACTORS[name]()
    with torch.inference_mode():
        assert extractor(corners(1, 0)).shape == (1, dimension) == (1, extractor.num_features)
