"""Load: an artifact, or the one of a bundle, as a Session."""

from __future__ import annotations

from pathlib import Path

from deploykit import paths
from deploykit.artifact import RunConfig
from deploykit.errors import Hint, UsageError
from deploykit.runtime.backends.base import Session, backend_for, get_backend
from deploykit.workflow.opened import check_artifact, check_seal, read_bundle


def load(
    path: str | Path, artifact: str | None = None, run: RunConfig | None = None, *, seal: str | None = None
) -> Session:
    """Open an artifact.

    Args:
        path: An artifact's main file, or a bundle's folder.
        artifact: Name of the artifact where a bundle holds several.
        run: How to run it; the default is what the bundle recommends, for a bare file the runtime's own choice.
        seal: That the manifest must have, as its maker told it; see `deploykit inspect`.

    Returns:
        A session: `infer({name: array}) -> {name: array}` with the dtypes and shapes of `inputs` and `outputs`;
        a context manager.

    Raises:
        UsageError: No such path or artifact, or several to choose from.
        BadInputError: The seal is another, or the file is damaged, or not the one that the manifest describes.
        MissingComponentError: The runtime is not installed.
    """
    path = Path(path)
    if seal is not None:
        check_seal(path, seal)
    if not path.is_dir():
        paths.check_file(path)
        backend = backend_for(path.name)
        return backend.open(str(path), run or backend.default_run())
    bundle = read_bundle(path)
    names = [candidate.name for candidate in bundle.manifest.artifacts]
    wanted = artifact or (names[0] if len(names) == 1 else None)
    if wanted not in names:
        raise UsageError(
            f"{path} holds {', '.join(names)}" + (f", not {artifact!r}" if artifact else ""),
            Hint(f"load(path, artifact={names[0]!r})"),
        )
    chosen = bundle.manifest.artifacts[names.index(wanted)]
    check_artifact(path, chosen)
    if run is None and not chosen.runs:
        raise UsageError(f"{wanted} is run as it is by nothing", Hint("deploykit build", "makes of it what is run"))
    config = run or chosen.runs[0]
    return get_backend(config.backend).open(str(path / chosen.main.path), config)
