"""From what a user calls a base model to a Stable Diffusion pipeline that is known to be usable, or a clear error."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel
from transformers import logging as transformers_logging

from lorica.errors import LoricaError

BUILTIN = "builtin"
BUILTIN_FOLDER = Path(__file__).parent.parent / "assets" / "base"
INDEX = "model_index.json"

# No safety checker: it would blacken training samples, and checkpoints without one are normal here.
_LEFT_OUT = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
_UNET_KEYS = "model.diffusion_model."  # what the UNet's weights begin with in a single-file checkpoint
_SUPPORTED = "Lorica works with Stable Diffusion 1.x and 2.x text-to-image models (a UNet and one text encoder)."
_TEXT_ENCODER = ["transformers", "CLIPTextModel"]
_COMPLETE = "Is the download complete?"


def model_name(base: str) -> str:
    """How reports call a base model: never by its full path."""
    path = Path(base)
    if base == BUILTIN or not path.exists():
        return base
    return path.stem if path.is_file() else path.resolve().name


def stored_files(base: str, config: str | None = None) -> str | None:
    """How the files of a base model look: names, sizes, times. Changes whenever one of them does.

    Args:
        base: as `load_pipeline`; of a hub id, what was downloaded.
        config: likewise.

    Returns:
        A text for comparison; None where not all is stored here, so that nothing can be said without loading.
    """
    path = BUILTIN_FOLDER if base == BUILTIN else Path(base)
    if path.is_file():
        described = config or (str(path.parent) if (path.parent / INDEX).is_file() else None)
        folder = stored_files(described) if described is not None else None
        return None if folder is None else repr([_look(path, path.parent), folder])
    if not path.is_dir():
        try:
            path = Path(snapshot_download(base, local_files_only=True))
        except (OSError, ValueError):  # never downloaded, or not a name: loading says it better
            return None
    return repr(sorted(_look(file, path) for file in path.rglob("*") if file.is_file()))


def _look(file: Path, folder: Path) -> tuple[str, int, int]:
    stat = file.stat()
    return str(file.relative_to(folder)), stat.st_size, stat.st_mtime_ns


def load_pipeline(base: str, config: str | None = None) -> Any:
    """Load a `StableDiffusionPipeline` on the CPU, its weights in the precision that the checkpoint has.

    Args:
        base: "builtin", a folder in the diffusers layout, a single-file `.safetensors` checkpoint, or a hub id.
        config: for a single file: folder or hub id in the diffusers layout that describes it. By default the file's
            own folder if it has a model_index.json; otherwise diffusers guesses, and asks the hub.

    Raises:
        LoricaError: nothing there, pickled weights, or a model that is not an epsilon- or v-predicting UNet.
    """
    path = BUILTIN_FOLDER if base == BUILTIN else Path(base)
    try:
        with quiet_libraries():
            if path.is_file():
                pipeline = _from_single_file(path, config)
            elif path.is_dir():
                pipeline = _from_folder(path)
            else:
                pipeline = _from_hub(base)
    except LoricaError:
        raise
    except Exception as error:  # for a bad model the libraries raise anything from OSError to KeyError
        raise LoricaError(
            f"base model {base} cannot be loaded: {type(error).__name__}: {_first_line(error)}",
            f"{_SUPPORTED} Their weights must be safetensors."
            + ("" if path.exists() else " For a hub id, check the name, the network and your access token."),
        ) from error
    _check(pipeline, base)
    return pipeline


def _from_hub(base: str) -> Any:
    if Path(base).is_absolute() or base.startswith((".", "~")) or base.count("/") != 1:
        raise LoricaError(
            f"base model not found: {base}",
            "Give 'builtin', a folder, a .safetensors file or a hub id like owner/name.",
        )
    return _pretrained(base)


def _from_folder(folder: Path) -> Any:
    index = _index(folder)
    kind = index.get("_class_name")
    text_encoder = index.get("text_encoder")
    if not (isinstance(kind, str) and kind.startswith("StableDiffusion")) or text_encoder != _TEXT_ENCODER:
        raise LoricaError(f"base model {folder} is a {kind} with text encoder {text_encoder}", _SUPPORTED)
    return _pretrained(str(folder), local_files_only=True)


def _pretrained(source: str, **options: Any) -> Any:
    options["use_safetensors"] = True
    # transformers would fill gaps in the weights with random numbers, and only warn.
    loaded: Any = CLIPTextModel.from_pretrained(source, subfolder="text_encoder", output_loading_info=True, **options)
    text_encoder, report = loaded
    if report["missing_keys"]:
        raise LoricaError(f"base model {source} lacks weights of its text encoder", _COMPLETE)
    return StableDiffusionPipeline.from_pretrained(source, text_encoder=text_encoder, **options, **_LEFT_OUT)


def _from_single_file(file: Path, config: str | None) -> Any:
    if file.suffix != ".safetensors":
        raise LoricaError(f"{file} is not a .safetensors file", "Pickled checkpoints can run code: convert it first.")
    try:
        with safe_open(file, "pt") as reader:
            names = list(reader.keys())
    except SafetensorError as error:
        raise LoricaError(f"base model {file} cannot be read: {error}", "The file is damaged.") from error
    if not any(name.startswith(_UNET_KEYS) for name in names):
        raise LoricaError(
            f"{file} is not a Stable Diffusion checkpoint: no weight in it is called {_UNET_KEYS}...",
            "A LoRA goes into --lora; of a diffusers model, give the folder.",
        )
    if config is None and (file.parent / INDEX).is_file():
        config = str(file.parent)
    options: dict[str, Any] = dict(_LEFT_OUT)
    if config is not None:
        options["config"] = config
        if Path(config).is_dir():
            _index(Path(config))
            options["local_files_only"] = True
    try:
        return StableDiffusionPipeline.from_single_file(str(file), **options)
    except Exception as error:
        described = f"as {config} describes it" if config else "with a configuration from the Hugging Face hub"
        raise LoricaError(
            f"base model {file} cannot be loaded {described}: {_first_line(error)}",
            "A single file holds weights only. Give --base-config the folder (or hub id) of a model of the same kind "
            "in the diffusers layout: its model_index.json, configurations, noise schedule and tokenizer are used.",
        ) from error


def _index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LoricaError(
            f"{folder} holds no {INDEX}", "Give a folder in the diffusers layout, as written by save_pretrained."
        ) from error
    except (OSError, ValueError) as error:
        raise LoricaError(f"{folder / INDEX} cannot be read: {error}", "Is it the right folder?") from error
    if not isinstance(index, dict):
        raise LoricaError(f"{folder / INDEX} is not a model index", "Is it the right folder?")
    return index


def _check(pipeline: Any, base: str) -> None:
    """Refuse what would load and then fail, or be measured wrongly."""
    unet, vae, text = pipeline.unet, pipeline.vae, pipeline.text_encoder
    kinds = [type(part).__name__ for part in (unet, vae, text)]
    if kinds != ["UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel"]:
        raise LoricaError(f"base model {base} is made of {', '.join(kinds)}", _SUPPORTED)
    for name, part in (("UNet", unet), ("VAE", vae), ("text encoder", text)):
        if any(tensor.is_meta for tensor in part.state_dict().values()):
            raise LoricaError(f"base model {base} lacks weights of its {name}", _COMPLETE)
    if unet.config.in_channels != vae.config.latent_channels:
        raise LoricaError(f"base model {base} is an in-painting or editing model", "Give a text-to-image model.")
    extra = [
        key for key in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type") if unet.config.get(key)
    ]
    if extra or unet.config.out_channels != unet.config.in_channels:
        raise LoricaError(f"base model {base} has another kind of UNet ({', '.join(extra) or 'output'})", _SUPPORTED)
    if unet.config.cross_attention_dim != text.config.hidden_size:
        raise LoricaError(
            f"base model {base}: its UNet takes captions of width {unet.config.cross_attention_dim}, its text encoder "
            f"makes {text.config.hidden_size}",
            _SUPPORTED,
        )
    if not isinstance(unet.config.sample_size, int):
        raise LoricaError(f"base model {base} draws pictures that are not square", _SUPPORTED)
    prediction = pipeline.scheduler.config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction") or not hasattr(pipeline.scheduler, "alphas_cumprod"):
        raise LoricaError(
            f"base model {base} predicts {prediction!r} on the schedule of {type(pipeline.scheduler).__name__}",
            "Supported: epsilon and v_prediction, on a schedule of betas.",
        )


def _first_line(error: Exception) -> str:
    if "meta tensor" in str(error):
        return "weights are missing"
    return next(iter(str(error).strip().splitlines()), "")[:300]


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """While loading, the libraries print bars and reminders that mean nothing here; what fails, raises."""
    levels = [(logging, logging.get_verbosity()) for logging in (diffusers_logging, transformers_logging)]
    bars = [(logging, logging.is_progress_bar_enabled()) for logging in (diffusers_logging, transformers_logging)]
    try:
        for logging, _ in levels:
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        yield
    finally:
        for logging, level in levels:
            logging.set_verbosity(level)
        for logging, enabled in bars:
            if enabled:
                logging.enable_progress_bar()
