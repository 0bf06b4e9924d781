"""From what a user writes to a place on disk: a path as it is, a Hub id through huggingface_hub's cache."""

from __future__ import annotations

import glob
from pathlib import Path

from surgeon.errors import CheckpointError
from surgeon.store.checkpoint import INDEXES, SINGLES, read_index, weights_file
from surgeon.store.containment import contained
from surgeon.store.formats import refuse_adapter
from surgeon.store.side_files import is_side_file

#: What makes a reference a path; anything else is a Hub id.
PATH_STARTS = ("./", "../", "/", "~")

_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def locate(ref: str, *, hub: bool | None = None, probe: bool = False) -> tuple[Path, str | None]:
    """The file or folder of `ref`, and the commit when it came from the Hub.

    A path starts with ./ ../ / or ~; anything else is a Hub id. `probe`: what exists as a path is one, whatever it
    looks like. `hub` decides outright.
    """
    if hub is None:
        looks_like_path = ref.startswith(PATH_STARTS) or ref in (".", "..")
        hub = not (looks_like_path or (probe and _existing(ref)))
    if hub:
        return _snapshot(*_parse(ref))
    path = _existing(ref)
    if path is None:
        hint = "check the path; a Hub id reads org/name[@revision]"
        raise CheckpointError(f"{ref}: no such file or folder", hint=hint)
    return path, None


def _existing(ref: str) -> Path | None:
    """The path, if something lies there; None also for what the system cannot even look up."""
    try:
        path = Path(ref).expanduser()
        return path if ref and path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _parse(ref: str) -> tuple[str, str | None]:
    """org/name[@revision] → (id, revision)."""
    name, at, revision = ref.partition("@")
    if not name or (at and not revision) or ".." in revision or revision.startswith("/"):
        raise CheckpointError(f"{ref!r} is neither a path nor a Hub id", hint="write ./folder or org/name[@revision]")
    return name, revision or None


def _snapshot(repo: str, revision: str | None) -> tuple[Path, str | None]:
    """Fetch what is needed of a Hub repository into the cache; without a connection, what the cache holds."""
    try:
        from huggingface_hub import HfApi

        info = HfApi().model_info(repo, revision=revision)
        names = {sibling.rfilename for sibling in info.siblings or ()}
    except Exception as error:
        # Any failure to reach the Hub: the cache may still hold the model, and if not, this is the error to tell.
        return _cached(repo, revision, error)
    folder = _download(repo, revision, _needed(repo, revision, names))
    return folder, folder.name


def _needed(repo: str, revision: str | None, names: set[str]) -> list[str]:
    """The files of the repository that a merge reads or copies."""
    if _ADAPTER[0] in names:
        if _ADAPTER[1] not in names:
            raise _after_download(repo, refuse_adapter(names, repo))
        return list(_ADAPTER)
    side = [name for name in names if is_side_file(name)]
    try:
        first = weights_file(names, repo)
    except CheckpointError as error:
        raise _after_download(repo, error) from None
    if first in SINGLES:
        return [*side, first]
    folder = _download(repo, revision, [first])
    shards = set(read_index(contained(folder, first, repo), names).values())
    missing = sorted(shards - names)
    if missing:
        listed = ", ".join(missing[:8])
        raise CheckpointError(f"{repo}: {first} names missing files: {listed}", hint="choose another revision")
    return [*side, first, *sorted(shards)]


def _after_download(repo: str, error: CheckpointError) -> CheckpointError:
    """The error with its next step for files that are not on this machine yet."""
    hint = f"`hf download {repo} --local-dir DIR`, then with DIR: {error.hint}"
    return CheckpointError(error.message, hint=hint)


def _download(repo: str, revision: str | None, names: list[str]) -> Path:
    """The snapshot folder holding these files; the cache remembers which commit the revision was."""
    try:
        from huggingface_hub import snapshot_download

        patterns = [glob.escape(name) for name in names]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise _translated(repo, revision, error) from error


def _cached(repo: str, revision: str | None, reason: Exception) -> tuple[Path, str | None]:
    """The snapshot in the cache; `reason` tells why the Hub could not be asked."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        for name in (*_ADAPTER, *INDEXES, *SINGLES, "config.json"):
            found = try_to_load_from_cache(repo, name, revision=revision)
            if isinstance(found, str):
                folder = Path(found).parent
                return folder, folder.name
    except HFValidationError as error:
        raise _translated(repo, revision, error) from error
    raise _translated(repo, revision, reason) from reason


def _translated(repo: str, revision: str | None, error: Exception) -> CheckpointError:
    """A failure of huggingface_hub as an error with a next step."""
    from huggingface_hub import errors

    at = f"{repo}@{revision}" if revision else repo
    chain = (error, error.__cause__)
    if any(isinstance(one, errors.HFValidationError) for one in chain):
        return CheckpointError(f"{repo!r} is neither a path nor a Hub id", hint=f"a path starts with ./: ./{repo}")
    if any(isinstance(one, errors.GatedRepoError) for one in chain):
        return CheckpointError(f"{at}: gated on the Hub", hint="accept its terms on its page, then run `hf auth login`")
    if any(isinstance(one, errors.RevisionNotFoundError) for one in chain):
        return CheckpointError(f"{repo}: no revision {revision!r} on the Hub", hint="check the branch, tag or commit")
    if any(isinstance(one, errors.RepositoryNotFoundError) for one in chain):
        hint = f"check the name; if private, run `hf auth login`; if it is a folder, write ./{repo}"
        return CheckpointError(f"{repo}: not found on the Hub", hint=hint)
    if any(isinstance(one, errors.OfflineModeIsEnabled) for one in chain):
        hint = f"unset HF_HUB_OFFLINE once, or run `hf download {repo}` where there is a network"
        return CheckpointError(f"{at}: offline mode is on and it is not in the cache", hint=hint)
    first = str(error).strip().splitlines()
    hint = "check the network and HF_ENDPOINT, then try again; what is already downloaded is kept"
    return CheckpointError(f"{at}: the Hub cannot be reached: {first[0] if first else type(error).__name__}", hint=hint)
