"""Whether a run may start in its output folder, and whether a resumed run is still the run that began."""

from collections.abc import Collection
from pathlib import Path

from lorica.artefacts import CONFIG_FILE, prepare_output, sole_writer
from lorica.config import C, Config, differences, load
from lorica.errors import LoricaError


def require_startable(config: Config, output: Path, *, resume: bool, overwrite: bool, free: Collection[str]) -> None:
    """Prove that a run may start in its output folder; changes nothing there.

    Args:
        config: of the run.
        output: its folder.
        resume: go on with the run there.
        overwrite: replace the run there.
        free: keys of the configuration that a resumed run may change: how it is watched, and where its inputs lie.

    Raises:
        LoricaError: the folder holds a run and neither `resume` nor `overwrite` is given, or both are; it cannot be
            written, holds a run of another configuration than the one to resume, or another process is at work in it.
    """
    if resume and overwrite:
        raise LoricaError("--resume and --overwrite contradict each other", "Give one of them.")
    prepare_output(output, marker=CONFIG_FILE, resume=resume, overwrite=overwrite)
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


def settled(config: C) -> C:
    """The configuration as kept: --config with it must neither resume nor overwrite by itself."""
    return config.model_copy(update={"resume": False, "overwrite": False})
