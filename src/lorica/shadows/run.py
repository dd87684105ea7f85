"""`lorica shadows`: the shadows that are missing are trained, here or over a Ray cluster."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from lorica import adapt
from lorica.adapt import AdaptConfig
from lorica.adapt.folder import finished
from lorica.errors import LoricaError
from lorica.progress import bar, console
from lorica.shadows.config import ShadowsConfig
from lorica.shadows.plan import plan

Train = Callable[[Sequence[AdaptConfig]], None]


def run(config: ShadowsConfig) -> dict[str, Any]:
    """Train the shadows of a run that are not there yet; the same as `lorica shadows`.

    Each is an adapt run of its own: an interrupted one goes on where it stopped.

    Returns:
        {"shadows": folders of all of them, "trained": how many were trained now, "base": their base model}.

    Raises:
        LoricaError: as `plan`, a training that diverges, or no Ray where it was asked for.
    """
    train: Train = _one_after_the_other if config.engine == "local" else partial(_over_a_cluster, _ray())
    shadows = plan(config)
    missing = [shadow for shadow in shadows if finished(shadow) is None]
    train(missing)
    folders = [str(shadow.output) for shadow in shadows]
    return {"shadows": folders, "trained": len(missing), "base": shadows[0].base}


def _one_after_the_other(shadows: Sequence[AdaptConfig]) -> None:
    for done, shadow in enumerate(shadows):
        console.rule(escape(f"{shadow.output.name} ({done + 1} of {len(shadows)} shadows to train)"))
        adapt.run(shadow)


# ----- Ray ----------------------------------------------------------------------------------------------------------
def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise LoricaError("--engine ray needs Ray, which is not installed", "pip install 'lorica[ray]'") from error
    return ray


def _over_a_cluster(ray: Any, shadows: Sequence[AdaptConfig]) -> None:
    """One task per shadow, on the cluster of RAY_ADDRESS or, without one, on this machine's cores.

    Every machine must see the folders of run, pictures and base model under the same paths.
    """
    if not shadows:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a privacy tool tells nobody that it was used
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    cuda = torch.device(shadows[0].device or ("cuda" if torch.cuda.is_available() else "cpu")).type == "cuda"
    task = ray.remote(num_cpus=1, num_gpus=1 if cuda else 0)(_train_far_away)
    waiting = [task.remote(_portable(shadow, cuda)) for shadow in shadows]
    try:
        with bar() as progress:
            shown = progress.add_task("training shadows", total=len(waiting))
            while waiting:
                done, waiting = ray.wait(waiting)
                for problem in filter(None, ray.get(done)):
                    raise LoricaError(*problem)
                progress.advance(shown, len(done))
    finally:
        for left in waiting:
            ray.cancel(left)


def _portable(shadow: AdaptConfig, cuda: bool) -> dict[str, Any]:
    """A configuration that means the same in another process: whole paths, and the one GPU that Ray shows it."""
    device = "cuda" if cuda else shadow.device
    values = shadow.model_copy(update={"device": device}).model_dump()
    values |= {name: path.absolute() for name, path in values.items() if isinstance(path, Path)}
    if shadow.split.nonmembers is not None:
        values["split"] = values["split"] | {"nonmembers": shadow.split.nonmembers.absolute()}
    for name in ("base", "base_config"):  # a hub id, or a path
        if values[name] is not None and Path(values[name]).exists():
            values[name] = str(Path(values[name]).absolute())
    return values


def _train_far_away(values: dict[str, Any]) -> tuple[str, str] | None:
    """Train one shadow; gives what went wrong, as Ray would wrap an exception in one of its own."""
    try:
        adapt.run(AdaptConfig.model_validate(values))
    except LoricaError as error:
        return error.problem, error.remedy
    return None
