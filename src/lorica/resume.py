"""Whether a run may start in its output folder, and whether a resumed run is still the run that began."""

import shutil
from collections.abc import Collection
from pathlib import Path

from lorica.artefacts import CONFIG_FILE, prepare_output, sole_writer
from lorica.config import C, Config, differences, load
from lorica.errors import LoricaError


def require_startable(
    config: Config, output: Path, *, resume: bool, overwrite: bool, free: Collection[str], makes: Collection[str] = ()
) -> None:
    """Prove that a run may start in its output folder; changes nothing there.

    Args:
        config: of the run.
        output: its folder.
        resume: go on with the run there.
        overwrite: replace the run there.
        free: keys of the configuration that a resumed run may change: how it is watched, and where its inputs lie.
        makes: files and folders there that the run will write, and clears before it begins.

    Raises:
        LoricaError: the folder holds a run and neither `resume` nor `overwrite` is given, or both are; it cannot be
            written, holds a run of another configuration than the one to resume, or something named in `makes` without
            a run; or another process is at work in it.
    """
    if resume and overwrite:
        raise LoricaError("--resume and --overwrite contradict each other", "Give one of them.")
    prepare_output(output, marker=CONFIG_FILE, resume=resume, overwrite=overwrite)
    foreign = sorted(name for name in makes if (output / name).exists())
    if foreign and not overwrite and not (output / CONFIG_FILE).exists():
        raise LoricaError(
            f"{output} holds {', '.join(foreign)}, which a run would replace, but no run",
            "Choose another --output, or give --overwrite.",
        )
    if output.is_dir():
        with sole_writer(output):  # asked again when training begins; here so that nobody waits to hear no
            pass
    file = output / CONFIG_FILE
    if not (resume and file.exists()):
        return
    if changed := differences(load(type(config), file=file), config, ignore=free):
        raise LoricaError(
            f"--resume with another configuration than the run in {output}: {', '.join(changed)}",
            f"Take the values of {file} (--config {file}), or start a new run elsewhere.",
        )


def clear(output: Path, names: Collection[str]) -> None:
    """Remove these files and folders of an earlier run."""
    for name in names:
        place = output / name
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)


def settled(config: C) -> C:
    """The configuration as kept: --config with it must neither resume nor overwrite by itself."""
    return config.model_copy(update={"resume": False, "overwrite": False})
