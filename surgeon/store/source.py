"""Opening what a reference names: a path as it is, a Hub id through huggingface_hub's cache."""

from __future__ import annotations

import glob
from collections.abc import Collection
from pathlib import Path

from surgeon.errors import CheckpointError
from surgeon.store.adapter import CONFIG, WEIGHTS, Adapter, open_adapter
from surgeon.store.checkpoint import SINGLES, Checkpoint, open_checkpoint, read_index, weights_file
from surgeon.store.containment import contained
from surgeon.store.formats import refuse_adapter
from surgeon.store.side_files import is_side_file

#: What makes a reference a path; anything else is a Hub id.
PATH_STARTS = ("./", "../", "/", "~")

#: The receipt of what surgeon made, which names the receipts of its inputs.
RECEIPT = "surgeon.json"

Source = Checkpoint | Adapter


def open_source(ref: str, *, hub: bool | None = None, probe: bool = False) -> Source:
    """The checkpoint or adapter of `ref`; what `hub` and `probe` mean, `locate` says."""
    root, revision = locate(ref, hub=hub, probe=probe)
    if root.name == WEIGHTS and (root.parent / CONFIG).exists():
        root = root.parent
    if (root / CONFIG).exists():
        return open_adapter(root, ref, revision)
    return open_checkpoint(root, ref, revision)


def locate(ref: str, *, hub: bool | None = None, probe: bool = False) -> tuple[Path, str | None]:
    """The file or folder of `ref`, and the commit when it came from the Hub.

    A path starts with ./ ../ / or ~; anything else is a Hub id. `probe`: what exists as a path is one, whatever it
    looks like. `hub` decides outright.
    """
    if hub is None:
        looks_like_path = ref.startswith(PATH_STARTS) or ref in (".", "..")
        hub = not (looks_like_path or (probe and _existing(ref)))
    if not hub:
        path = _existing(ref)
        if path is None:
            hint = "check the path; a Hub id reads org/name[@revision]"
            raise CheckpointError(f"{ref}: no such file or folder", hint=hint)
        return path, None
    name, at, revision = ref.partition("@")
    if not name or (at and not revision) or ".." in revision or revision.startswith("/"):
        raise CheckpointError(f"{ref!r} is neither a path nor a Hub id", hint="write ./folder or org/name[@revision]")
    folder = _snapshot(name, revision or None)
    return folder, folder.name


def _existing(ref: str) -> Path | None:
    """The path, if something lies there; None also for what the system cannot even look up."""
    try:
        path = Path(ref).expanduser()
        return path if ref and path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _snapshot(repo: str, revision: str | None) -> Path:
    """Fetch what is needed of a Hub repository into the cache; without a connection, what the cache holds."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(repo, revision=revision)
    except Exception as error:
        # Any failure to reach the Hub: the cache may still hold the model, and if not, this is the error to tell.
        try:
            # No patterns: opening the folder tells what it lacks.
            return Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[]))
        except Exception:
            raise _translated(repo, revision, error) from error
    return _download(repo, revision, _needed(repo, revision, {file.rfilename for file in info.siblings or ()}))


def _needed(repo: str, revision: str | None, names: set[str]) -> list[str]:
    """The files of the repository that a merge reads or copies."""
    first = _first(names, repo)
    if first == WEIGHTS:
        return [CONFIG, WEIGHTS]
    needed = [first, *filter(is_side_file, names), *names & {RECEIPT}]
    if first not in SINGLES:
        index = contained(_download(repo, revision, [first]), first, repo)
        needed += set(read_index(index, names).values())
    return needed


def _first(names: Collection[str], repo: str) -> str:
    """The file to begin with: an adapter's weights, a model's index or its single file."""
    try:
        if CONFIG not in names:
            return weights_file(names, repo)
        if WEIGHTS not in names:
            raise refuse_adapter(names, repo)
        return WEIGHTS
    except CheckpointError as error:
        hint = f"`hf download {repo} --local-dir DIR`, then with DIR: {error.hint}"
        raise CheckpointError(error.message, hint=hint) from None


def _download(repo: str, revision: str | None, names: list[str]) -> Path:
    """The snapshot folder holding these files; the cache remembers which commit the revision was."""
    from huggingface_hub import snapshot_download

    try:
        patterns = [glob.escape(name) for name in names]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise _translated(repo, revision, error) from error


def _translated(repo: str, revision: str | None, error: Exception) -> CheckpointError:
    """A failure of huggingface_hub as an error with a next step."""
    from huggingface_hub import errors

    at = f"{repo}@{revision}" if revision else repo
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    known = {
        errors.HFValidationError: (f"{repo!r} is neither a path nor a Hub id", f"a path starts with ./: ./{repo}"),
        errors.GatedRepoError: (f"{at}: gated on the Hub", "accept its terms on its page, then run `hf auth login`"),
        errors.RevisionNotFoundError: (
            f"{repo}: no revision {revision!r} on the Hub", "check the branch, tag or commit",
        ),
        errors.RepositoryNotFoundError: (
            f"{repo}: not found on the Hub",
            f"check the name; if private, run `hf auth login`; if it is a folder, write ./{repo}",
        ),
        errors.OfflineModeIsEnabled: (
            f"{at}: offline mode is on and it is not in the cache",
            f"unset HF_HUB_OFFLINE once, or run `hf download {repo}` where there is a network",
        ),
    }  # fmt: skip
    for kind, (message, hint) in known.items():
        if isinstance(error, kind) or isinstance(error.__cause__, kind):
            return CheckpointError(message, hint=hint)
    hint = "check the network and HF_ENDPOINT, then try again; what is already downloaded is kept"
    return CheckpointError(f"{at}: the Hub cannot be reached: {first}", hint=hint)
