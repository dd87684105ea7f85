"""LoRA files: read back exactly by diffusers and by us, in every dialect, without a word about who made them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conftest import tiny_pipeline
from lorica.diffusion import LatentDiffusion, LoraConfig, add_lora, save_lora
from lorica.diffusion.lora import KOHYA_FILE, METADATA_KEYS, PEFT_FILE, lora_state, text_targets, unet_targets
from lorica.diffusion.lora_reading import load_lora
from lorica.errors import LoricaError

FINGERPRINT = "0123456789abcdef" * 4
PLACES = {
    "attention": LoraConfig(rank=4, alpha=4, targets="attention"),
    "attention, text encoder, alpha != rank": LoraConfig(rank=3, alpha=7, targets="attention", text_encoder=True),
    "transformer blocks, text encoder": LoraConfig(rank=2, alpha=2, targets="transformer-blocks", text_encoder=True),
    "transformer blocks, alpha != rank": LoraConfig(rank=4, alpha=0.7, targets="transformer-blocks"),
}
EVERYWHERE = LoraConfig(rank=2, alpha=0.7, targets="transformer-blocks", text_encoder=True)


def randomised(parameters: list[nn.Parameter], seed: int = 1) -> None:
    """Stand in for training."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=random))


def trained(config: LoraConfig, pipeline: StableDiffusionPipeline | None = None) -> StableDiffusionPipeline:
    pipeline = pipeline or tiny_pipeline()
    for part in (pipeline.unet, pipeline.text_encoder):
        part.requires_grad_(False)
    randomised(add_lora(pipeline, config))
    return pipeline


@torch.inference_mode()
def outputs(pipeline: StableDiffusionPipeline) -> tuple[Tensor, Tensor]:
    """What the UNet makes of a fixed input, and what the text encoder makes of a caption."""
    tokens = pipeline.tokenizer(["a cat"], padding="max_length", return_tensors="pt").input_ids
    context = pipeline.text_encoder(tokens)[0]
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    fixed = torch.randn(context.shape, generator=torch.Generator().manual_seed(1))
    return pipeline.unet(latents, 500, fixed).sample, context


def assert_same(first: StableDiffusionPipeline, second: StableDiffusionPipeline) -> None:
    for one, other in zip(outputs(first), outputs(second), strict=True):
        assert torch.equal(one, other)


def assert_adapted(pipeline: StableDiffusionPipeline, *, text_encoder: bool = False) -> None:
    (image, text), (base_image, base_text) = outputs(pipeline), outputs(tiny_pipeline())
    assert not torch.allclose(image, base_image, atol=1e-3)
    assert torch.allclose(text, base_text, atol=1e-3) is not text_encoder


def linear_pipeline() -> StableDiffusionPipeline:
    """As Stable Diffusion 2: proj_in and proj_out are Linear, not 1x1 convolutions."""
    pipeline = tiny_pipeline()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        pipeline.unet = UNet2DConditionModel.from_config(pipeline.unet.config, use_linear_projection=True).eval()
    return pipeline


# ----- injection ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("place", PLACES)
def test_a_fresh_lora_leaves_the_model_s_outputs_unchanged(place: str) -> None:
    pipeline = tiny_pipeline()
    parameters = add_lora(pipeline, PLACES[place])
    assert_same(pipeline, tiny_pipeline())
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in parameters)


def test_attention_targets_are_the_projections_of_every_attention_of_the_unet() -> None:
    unet = tiny_pipeline().unet
    blocks = [name for name, _ in unet.named_modules() if re.search(r"attn[12]$", name)]
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    assert sorted(unet_targets(unet, "attention")) == sorted(f"{block}.{end}" for block in blocks for end in ends)


def test_transformer_block_targets_are_every_linear_and_1x1_convolution_there_and_nothing_else() -> None:
    for pipeline, projection in ((tiny_pipeline(), nn.Conv2d), (linear_pipeline(), nn.Linear)):
        unet = pipeline.unet
        targets = unet_targets(unet, "transformer-blocks")
        modules = dict(unet.named_modules())
        inside = {name for name, module in modules.items() if ".attentions." in name and hasattr(module, "weight")}
        norms = {name for name in inside if isinstance(modules[name], nn.LayerNorm | nn.GroupNorm)}
        assert set(targets) == inside - norms and len(targets) == len(set(targets))
        assert {type(modules[name]) for name in targets if name.endswith(("proj_in", "proj_out"))} == {projection}


def test_text_encoder_targets_are_the_attention_and_for_transformer_blocks_the_mlp_too() -> None:
    encoder = tiny_pipeline().text_encoder
    ends = {name.rpartition(".")[2] for name in text_targets(encoder, "attention")}
    assert ends == {"q_proj", "k_proj", "v_proj", "out_proj"}
    every = {name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    assert set(text_targets(encoder, "transformer-blocks")) == every


# ----- written by us, read by diffusers -----------------------------------------------------------------------------
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("file", [PEFT_FILE, KOHYA_FILE])
def test_diffusers_reads_our_files_back_exactly(place: str, file: str, tmp_path: Path) -> None:
    pipeline = trained(PLACES[place])
    assert_adapted(pipeline, text_encoder=PLACES[place].text_encoder)
    save_lora(pipeline, tmp_path, base_fingerprint=FINGERPRINT)
    fresh = tiny_pipeline()
    fresh.load_lora_weights(tmp_path, weight_name=file)
    assert_same(fresh, pipeline)


@pytest.mark.parametrize("file", [PEFT_FILE, KOHYA_FILE])
def test_diffusers_reads_our_files_back_exactly_where_projections_are_linear(file: str, tmp_path: Path) -> None:
    pipeline = trained(LoraConfig(rank=3, alpha=5, targets="transformer-blocks"), linear_pipeline())
    save_lora(pipeline, tmp_path, base_fingerprint=FINGERPRINT)
    for reader in (lambda p: p.load_lora_weights(tmp_path, weight_name=file), lambda p: load_lora(p, tmp_path / file)):
        fresh = linear_pipeline()
        reader(fresh)
        assert_same(fresh, pipeline)


def test_kohya_names_are_those_that_other_programs_look_for(tmp_path: Path) -> None:
    save_lora(trained(EVERYWHERE), tmp_path, base_fingerprint=FINGERPRINT)
    tensors = load_file(tmp_path / KOHYA_FILE)
    block = "lora_unet_down_blocks_1_attentions_0"
    attention = f"{block}_transformer_blocks_0_attn1_to_q"
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    for stem in (attention, f"{block}_proj_in", f"{block}_transformer_blocks_0_ff_net_0_proj", text):
        assert {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"} <= set(tensors)
        assert tensors[f"{stem}.alpha"].item() == pytest.approx(0.7)
    assert tensors[f"{attention}.lora_down.weight"].shape == (2, 32)
    assert tensors[f"{block}_proj_in.lora_down.weight"].shape == (2, 32, 1, 1)
    pattern = re.compile(r"lora_(unet|te_text_model)_\w+\.(lora_down\.weight|lora_up\.weight|alpha)")
    assert all(pattern.fullmatch(name) for name in tensors)


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    for name in ("once", "again"):
        pipeline = trained(PLACES["attention, text encoder, alpha != rank"])
        files = save_lora(pipeline, tmp_path / name, base_fingerprint=FINGERPRINT)
    for file in files.values():
        assert file.read_bytes() == (tmp_path / "once" / file.name).read_bytes()


def test_an_adapter_that_the_header_could_not_describe_is_not_saved(tmp_path: Path) -> None:
    original = _with_ranks_and_alphas_per_module(tmp_path)
    pipeline = tiny_pipeline()
    load_lora(pipeline, original)
    with pytest.raises(ValueError, match="differ between layers"):
        save_lora(pipeline, tmp_path / "saved", base_fingerprint=FINGERPRINT)


# ----- read by us ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("file", [PEFT_FILE, KOHYA_FILE])
def test_we_read_our_files_back_exactly(place: str, file: str, tmp_path: Path) -> None:
    config = PLACES[place]
    pipeline = trained(config)
    save_lora(pipeline, tmp_path, base_fingerprint=FINGERPRINT)
    fresh = tiny_pipeline()
    known = load_lora(fresh, tmp_path / file)
    assert_same(fresh, pipeline)
    assert (known["rank"], known["file"], known["base"]) == (config.rank, file, FINGERPRINT)
    assert known["alpha"] == pytest.approx(config.alpha)
    assert known["tensors"] == len(load_file(tmp_path / file))
    for part in (fresh.unet, fresh.text_encoder):
        assert not any(module.training for module in part.modules())
    expected = lora_state(pipeline)
    assert lora_state(fresh).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in lora_state(fresh).items())


def test_a_loaded_lora_carries_no_gradient(tmp_path: Path) -> None:
    save_lora(trained(PLACES["attention, text encoder, alpha != rank"]), tmp_path, base_fingerprint=FINGERPRINT)
    model = LatentDiffusion(tiny_pipeline(), name="tiny")
    model.load_lora(tmp_path)
    with model.base_only():
        pass
    assert not any(p.requires_grad for part in (model.unet, model.text_encoder) for p in part.parameters())


def test_a_folder_means_the_file_of_that_name_in_it(tmp_path: Path) -> None:
    save_lora(trained(PLACES["attention"]), tmp_path, base_fingerprint=FINGERPRINT)
    assert load_lora(tiny_pipeline(), tmp_path)["file"] == PEFT_FILE


def test_another_lora_is_worn_for_a_while_with_nothing_of_the_first_and_nothing_stays_of_it(tmp_path: Path) -> None:
    """Between them, the two sit on other layers, with other ranks, and one on the text encoder."""
    first, second = EVERYWHERE, LoraConfig(rank=3, alpha=1.0)
    for name, config in (("first", first), ("second", second)):
        save_lora(trained(config), tmp_path / name, base_fingerprint=FINGERPRINT)
    model = LatentDiffusion(tiny_pipeline(), name="tiny")
    model.load_lora(tmp_path / "first")
    for _ in range(2):
        with model.wearing(tmp_path / "second") as known:
            assert known["rank"] == 3
            assert_same(model.pipeline, trained(second))
            with model.base_only():
                assert_same(model.pipeline, tiny_pipeline())
        assert_same(model.pipeline, trained(first))
    with pytest.raises(KeyboardInterrupt), model.wearing(tmp_path / "second"):
        raise KeyboardInterrupt
    assert_same(model.pipeline, trained(first))
    with pytest.raises(LoricaError), model.wearing(tmp_path / "nothing"):
        pass
    assert_same(model.pipeline, trained(first))
    assert not any(p.requires_grad for part in (model.unet, model.text_encoder) for p in part.parameters())
    assert not any(m.training for part in (model.unet, model.text_encoder) for m in part.modules())


def test_a_bare_model_is_bare_again_after_it_wore_a_lora(tmp_path: Path) -> None:
    save_lora(trained(EVERYWHERE), tmp_path, base_fingerprint=FINGERPRINT)
    model = LatentDiffusion(tiny_pipeline(), name="tiny")
    with model.wearing(tmp_path):
        assert_adapted(model.pipeline, text_encoder=True)
    assert_same(model.pipeline, tiny_pipeline())


def test_a_lora_is_kept_in_single_precision_on_a_half_precision_model(tmp_path: Path) -> None:
    pipeline = trained(PLACES["attention"])
    save_lora(pipeline, tmp_path, base_fingerprint=FINGERPRINT)
    half = tiny_pipeline().to(torch.bfloat16)
    load_lora(half, tmp_path)
    expected = lora_state(pipeline)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in lora_state(half).items())
    assert {p.dtype for n, p in half.unet.named_parameters() if "lora_" in n} == {torch.float32}


def _rewritten(folder: Path, rename: Callable[[str], str], header: dict[str, str] | None = None) -> Path:
    """A copy of our PEFT file in another program's names."""
    file = folder / "other.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(folder / PEFT_FILE).items()}, file, header)
    return file


def _middle_aged(name: str) -> str:
    """diffusers 0.2x: `.lora.down.weight` on the UNet, `.lora_linear_layer.down.weight` on the text encoder."""
    kind = "lora" if name.startswith("unet") else "lora_linear_layer"
    return name.replace("lora_A", f"{kind}.down").replace("lora_B", f"{kind}.up")


def _oldest(name: str) -> str:
    """diffusers 0.1x: weights of attention processors."""
    name = re.sub(r"\.(attn[12])\.to_(q|k|v)\.lora_", r".\1.processor.to_\2_lora.", name)
    name = name.replace("to_out.0.lora_", "processor.to_out_lora.")
    name = re.sub(r"self_attn\.(q|k|v|out)_proj\.lora_", r"self_attn.to_\1_lora.", name)
    return name.replace("_lora.A", "_lora.down").replace("_lora.B", "_lora.up")


def _unprefixed_text(name: str) -> str:
    return name.replace("text_encoder.text_model.", "text_encoder.")


@pytest.mark.parametrize("rename", [_middle_aged, _oldest, _unprefixed_text])
def test_the_names_that_diffusers_gave_lora_weights_over_the_years_are_all_read(
    rename: Callable[[str], str], tmp_path: Path
) -> None:
    pipeline = trained(LoraConfig(rank=4, alpha=4, text_encoder=True))
    save_lora(pipeline, tmp_path, base_fingerprint=FINGERPRINT)
    fresh, by_diffusers = tiny_pipeline(), tiny_pipeline()
    file = _rewritten(tmp_path, rename)
    assert load_lora(fresh, file)["alpha"] == 4  # not stated in these files: the rank
    assert_same(fresh, pipeline)
    by_diffusers.load_lora_weights(file)
    assert_same(fresh, by_diffusers)


def _with_ranks_and_alphas_per_module(folder: Path) -> Path:
    """A kohya file whose modules have ranks 1 to 4 and alphas of their own, as pruned or block-wise LoRAs have."""
    save_lora(trained(PLACES["attention, text encoder, alpha != rank"]), folder, base_fingerprint=FINGERPRINT)
    tensors = load_file(folder / KOHYA_FILE)
    random = torch.Generator().manual_seed(2)
    for index, stem in enumerate(sorted({name.split(".")[0] for name in tensors})):
        rank = 1 + index % 4
        down, up = tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"]
        tensors[f"{stem}.lora_down.weight"] = torch.randn(rank, *down.shape[1:], generator=random)
        tensors[f"{stem}.lora_up.weight"] = 0.1 * torch.randn(up.shape[0], rank, *up.shape[2:], generator=random)
        tensors[f"{stem}.alpha"] = torch.tensor(0.5 + index % 3)
        if index % 5 == 0:
            del tensors[f"{stem}.alpha"]  # then it is the rank
    save_file(tensors, folder / "other.safetensors")
    return folder / "other.safetensors"


def _merged(pipeline: StableDiffusionPipeline, tensors: dict[str, Tensor]) -> StableDiffusionPipeline:
    """The reference: W + alpha / rank * up @ down, added to the weights by hand."""
    parts = {"lora_unet_": (pipeline.unet, ""), "lora_te_": (pipeline.text_encoder, "text_model_")}
    for prefix, (part, extra) in parts.items():
        for name, module in part.named_modules():
            stem = f"{prefix}{extra}{name.removeprefix('text_model.').replace('.', '_')}"
            if f"{stem}.lora_up.weight" in tensors:
                up, down = (tensors[f"{stem}.lora_{side}.weight"].flatten(1) for side in ("up", "down"))
                alpha = tensors.get(f"{stem}.alpha", torch.tensor(float(len(down))))
                module.weight.data += (alpha / len(down) * up @ down).view_as(module.weight)
    return pipeline


def test_ranks_and_alphas_that_differ_between_modules_are_honoured(tmp_path: Path) -> None:
    file = _with_ranks_and_alphas_per_module(tmp_path)
    pipeline = tiny_pipeline()
    known = load_lora(pipeline, file)
    assert (known["rank"], known["alpha"], known["base"]) == (4, 4.0, None)
    assert_adapted(pipeline, text_encoder=True)
    for one, other in zip(outputs(pipeline), outputs(_merged(tiny_pipeline(), load_file(file))), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_alphas_in_a_diffusers_header_are_honoured_module_by_module(tmp_path: Path) -> None:
    pipeline = trained(LoraConfig(rank=4, alpha=4))
    save_lora(pipeline, tmp_path, base_fingerprint=FINGERPRINT)
    special = unet_targets(tiny_pipeline().unet, "attention")[3]
    adapters = {
        "unet.r": 4, "unet.lora_alpha": 2, "unet.target_modules": ["to_q"],
        "unet.alpha_pattern": {f"^{re.escape(special)}": 12.0, "attn1.to_k": 1.0},
    }  # fmt: skip
    file = _rewritten(tmp_path, lambda name: name, {"lora_adapter_metadata": json.dumps(adapters)})
    fresh = tiny_pipeline()
    load_lora(fresh, file)
    scalings = {
        name: module.scaling["lorica"] for name, module in fresh.unet.named_modules() if hasattr(module, "scaling")
    }
    assert scalings.pop(special) == 3.0
    assert {name: scaling for name, scaling in scalings.items() if scaling != 0.5} == dict.fromkeys(
        [name for name in scalings if name.endswith("attn1.to_k")], 0.25
    )


def test_a_1x1_convolution_may_be_written_as_a_matrix(tmp_path: Path) -> None:
    pipeline = trained(PLACES["transformer blocks, alpha != rank"])
    save_lora(pipeline, tmp_path, base_fingerprint=FINGERPRINT)
    tensors = {
        name: tensor.flatten(1) if tensor.dim() == 4 else tensor
        for name, tensor in load_file(tmp_path / KOHYA_FILE).items()
    }
    save_file(tensors, tmp_path / "flat.safetensors")
    fresh = tiny_pipeline()
    load_lora(fresh, tmp_path / "flat.safetensors")
    assert_same(fresh, pipeline)


# ----- refused ------------------------------------------------------------------------------------------------------
def refused(file: Path, pipeline: StableDiffusionPipeline | None = None) -> str:
    """The refusal; the model must then be as it was."""
    pipeline = pipeline or tiny_pipeline()
    before = outputs(pipeline)
    with pytest.raises(LoricaError) as caught:
        load_lora(pipeline, file)
    assert all(torch.equal(one, other) for one, other in zip(outputs(pipeline), before, strict=True))
    assert not any("lora_" in n for part in (pipeline.unet, pipeline.text_encoder) for n, _ in part.named_parameters())
    return str(caught.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a LoRA of the tiny pipeline in both dialects. Read only."""
    folder = tmp_path_factory.mktemp("lora")
    save_lora(trained(EVERYWHERE), folder, base_fingerprint=FINGERPRINT)
    return folder


def _wider() -> StableDiffusionPipeline:
    pipeline = tiny_pipeline()
    pipeline.unet = UNet2DConditionModel.from_config(pipeline.unet.config, block_out_channels=(16, 64)).eval()
    return pipeline


def _other_blocks() -> StableDiffusionPipeline:
    pipeline = tiny_pipeline()
    pipeline.unet = UNet2DConditionModel.from_config(
        pipeline.unet.config,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    return pipeline


@pytest.mark.parametrize("file", [PEFT_FILE, KOHYA_FILE])
@pytest.mark.parametrize("other", [_wider, _other_blocks])
def test_a_lora_of_another_model_is_refused_by_its_name(
    saved: Path, file: str, other: Callable[[], StableDiffusionPipeline]
) -> None:
    message = refused(saved / file, other())
    assert file in message and "does not fit this base model" in message and "--base" in message


@pytest.mark.parametrize("file", [PEFT_FILE, KOHYA_FILE])
def test_a_lora_with_one_module_too_many_is_refused(saved: Path, tmp_path: Path, file: str) -> None:
    tensors = load_file(saved / file)
    name = next(name for name in tensors if "attn1" in name)
    save_file(tensors | {name.replace("0", "7"): tensors[name].clone()}, tmp_path / "more.safetensors")
    assert "there is no layer for" in refused(tmp_path / "more.safetensors")


def test_half_an_update_is_refused(saved: Path, tmp_path: Path) -> None:
    tensors = load_file(saved / PEFT_FILE)
    tensors.pop(next(name for name in tensors if name.endswith("lora_B.weight")))
    save_file(tensors, tmp_path / "half.safetensors")
    assert "half of the update" in refused(tmp_path / "half.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_mid_block_attentions_0_proj_in.hada_w1_a",  # LoHa
        "lora_unet_mid_block_attentions_0_proj_in.dora_scale",  # DoRA
        "lora_unet_mid_block_attentions_0_proj_in.lora_mid.weight",  # LoCon with a core
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",  # SDXL
        "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",  # Flux, SD 3
        "unet.mid_block.attentions.0.proj_in.lora_magnitude_vector",
        "unet.conv_in.weight",
    ],
)
def test_what_is_not_a_plain_lora_is_refused_not_read_in_part(saved: Path, tmp_path: Path, name: str) -> None:
    dialect = KOHYA_FILE if name.startswith("lora_") else PEFT_FILE
    save_file(load_file(saved / dialect) | {name: torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    assert name in refused(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "metadata",
    ["{", "[]", "3", '{"unet.use_dora": true}', '{"unet.use_rslora": true}', '{"unet.lora_alpha": "many"}',
     '{"unet.lora_alpha": NaN}', '{"unet.alpha_pattern": {"(a|b)*c": 3}}', '{"unet.alpha_pattern": 3}'],
)  # fmt: skip
def test_a_header_that_is_damaged_or_asks_for_another_method_is_refused(
    saved: Path, tmp_path: Path, metadata: str
) -> None:
    save_file(load_file(saved / PEFT_FILE), tmp_path / "other.safetensors", {"lora_adapter_metadata": metadata})
    assert "other.safetensors" in refused(tmp_path / "other.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(saved: Path, tmp_path: Path, value: float) -> None:
    tensors = load_file(saved / KOHYA_FILE)
    for name in list(tensors)[:3]:  # alpha, down, up
        save_file(tensors | {name: torch.full_like(tensors[name], value)}, tmp_path / "bad.safetensors")
        assert "not finite" in refused(tmp_path / "bad.safetensors")


def test_files_that_are_no_lora_are_refused(saved: Path, tmp_path: Path) -> None:
    assert "not found" in refused(tmp_path / "absent.safetensors")
    (tmp_path / "empty").mkdir()
    assert PEFT_FILE in refused(tmp_path / "empty")
    whole = (saved / PEFT_FILE).read_bytes()
    for size in (0, 5, 100, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        assert "cut.safetensors cannot be read" in refused(tmp_path / "cut.safetensors")
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert "'conv.weight'" in refused(tmp_path / "model.safetensors")
    save_file({}, tmp_path / "nothing.safetensors")
    assert "it is empty" in refused(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("name", ["lora.bin", "lora.pt", "lora.ckpt", "lora.safetensors"])
def test_a_pickle_is_refused_unread(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    torch.save({"unet.x.lora_A.weight": Bomb()}, tmp_path / name)
    assert name in refused(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_a_second_lora_is_a_mistake_of_the_caller(saved: Path) -> None:
    pipeline = tiny_pipeline()
    load_lora(pipeline, saved)
    with pytest.raises(ValueError, match="holds a LoRA already"):
        load_lora(pipeline, saved)


# ----- privacy ------------------------------------------------------------------------------------------------------
def test_no_path_user_caption_or_file_name_is_in_either_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "Zanzibar7"
    for name in ("USER", "LOGNAME", "HOME", "HOSTNAME"):
        monkeypatch.setenv(name, f"/home/{canary}")
    folder = tmp_path / canary
    tiny_pipeline().save_pretrained(folder / "base")
    model = LatentDiffusion.load(str(folder / "base"), device="cpu")
    randomised(add_lora(model.pipeline, LoraConfig(rank=2, text_encoder=True, targets="transformer-blocks")))
    model.encode_captions([f"a portrait of {canary}"])
    files = save_lora(model.pipeline, folder / f"run of {canary}", base_fingerprint=model.fingerprint)
    assert sorted(file.name for file in files.values()) == sorted([PEFT_FILE, KOHYA_FILE])
    for file in files.values():
        content = file.read_bytes()
        assert canary.lower().encode() not in content.lower()
        assert str(tmp_path).encode() not in content
        with safe_open(file, "pt") as reader:
            header = reader.metadata()
        assert set(header) <= set(METADATA_KEYS)
        assert header["lorica_base"] == model.fingerprint


def test_a_header_holds_numbers_and_names_of_layers_only(tmp_path: Path) -> None:
    pipeline = trained(PLACES["attention, text encoder, alpha != rank"])
    save_lora(pipeline, tmp_path, base_fingerprint=FINGERPRINT)
    with safe_open(tmp_path / PEFT_FILE, "pt") as reader:
        adapters = json.loads(reader.metadata()["lora_adapter_metadata"])
    layers = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    assert {key.split(".")[1] for key in adapters} == {"r", "lora_alpha", "target_modules"}
    for part, module in layers.items():
        names = {name for name, _ in module.named_modules()}
        assert set(adapters[f"{part}.target_modules"]) <= names
        assert (adapters[f"{part}.r"], adapters[f"{part}.lora_alpha"]) == (3, 7)
