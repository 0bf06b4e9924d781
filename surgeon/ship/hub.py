"""The Hub: licences of inputs, and one commit of a publication. What fails for a moment is tried again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from surgeon.engine.events import Listener, Progress
from surgeon.errors import RefusedError, RunError
from surgeon.ship.publication import Publication

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_Result = TypeVar("_Result")

#: Seconds before each further attempt.
_WAITS = (1, 2, 4, 8, 16)
_BUSY = 429
_KEPT = "run the same command again: what has been uploaded is kept"


class Hub:
    """A connection to the Hub. The token, given or found by huggingface_hub, is in no message and no file."""

    def __init__(self, token: str | None = None) -> None:
        from huggingface_hub import HfApi, get_token

        self._token = token or get_token()
        self._api: HfApi = HfApi(token=self._token)

    def licence(self, repo: str, revision: str) -> str | None:
        """The licence that a model's card names."""
        card = self._call(f"asking for the licence of {repo}", self._api.model_info, repo, revision=revision).card_data
        found = (
            None
            if card is None
            else card.get("license_name")
            if card.get("license") == "other"
            else card.get("license")
        )
        return found if isinstance(found, str) else None

    def publish(self, publication: Publication, *, private: bool, message: str, listener: Listener | None) -> str:
        """Upload, and commit once; the address of the commit. Weights of former commits that are not in it are removed.

        Large files go one by one before the commit, which alone changes what readers see; the Hub keeps what it has
        got, so that another run sends only the rest.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

        repo, doing = publication.repo, f"publishing to {publication.repo}"
        self._call(doing, self._api.create_repo, repo, private=private, exist_ok=True)
        adds = {
            one.name: CommitOperationAdd(one.name, one.content if isinstance(one.content, bytes) else str(one.content))
            for one in publication.sent
        }
        copies = [
            CommitOperationCopy(
                one.source, one.name, src_revision=one.revision, src_repo_id=one.repo, src_repo_type="model"
            )
            for one in publication.copied
        ]
        done = 0
        for one in publication.sent:
            if one.is_large:
                self._call(doing, self._api.preupload_lfs_files, repo, [adds[one.name]], free_memory=False)
            done += one.wire
            if listener is not None:
                listener(Progress("publish", done, publication.wire))
        stale = [CommitOperationDelete(name) for name in self._stale(doing, publication)]
        operations: list[Any] = [*adds.values(), *copies, *stale]
        commit = self._call(doing, self._api.create_commit, repo, operations, commit_message=message)
        return commit.commit_url

    def _stale(self, doing: str, publication: Publication) -> Iterator[str]:
        """Weights and indexes in the repository that would be read beside, or instead of, those that are published."""
        info = self._call(doing, self._api.model_info, publication.repo)
        for file in info.siblings or ():
            name = file.rfilename
            if name.endswith((".safetensors", ".safetensors.index.json")) and name not in publication.names:
                yield name

    def _call(self, doing: str, call: Callable[..., _Result], *given: Any, **named: Any) -> _Result:
        """The result of a call, which is repeated where the Hub or the way to it fails for a moment."""
        for wait in (*_WAITS, None):
            try:
                with _no_bars():
                    return call(*given, **named)
            except Exception as error:
                # Whatever the library and its transport raise: told in one line, without the token.
                if wait is None or not _passing(error):
                    raise self._told(doing, error) from None
            time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _told(self, doing: str, error: Exception) -> RunError | RefusedError:
        said = getattr(error, "server_message", None) or str(error)
        first = (said.strip() or type(error).__name__).splitlines()[0]
        if self._token:
            first = first.replace(self._token, "•••")
        status = _status(error)
        if status in (401, 403, 404):
            hint = "log in with a token that may write there: hf auth login; check the names"
            return RefusedError(f"{doing}: the Hub refuses it: {first}", hint=hint)
        if type(error).__name__ == "FileDuplicationError" or "no xet hash" in first:
            return RunError(f"{doing}: {first}", hint="send every file instead: --no-copies")
        return RunError(f"{doing}: {first}", hint=_KEPT)


@contextmanager
def _no_bars() -> Iterator[None]:
    """None of the library's progress bars; they are as they were afterwards."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _passing(error: BaseException) -> bool:
    """Whether trying again may help: the server's own failure, a busy server, a lost connection."""
    status = _status(error)
    if status is not None:
        return status >= 500 or status == _BUSY
    causes = [error, *(one for one in (error.__cause__, error.__context__) if one is not None)]
    return any((_status(one) or 0) >= 500 for one in causes) or any(
        kind.__name__ == "TransportError" for one in causes for kind in type(one).__mro__
    )


def _status(error: BaseException) -> int | None:
    """The HTTP status an error stands for."""
    return getattr(getattr(error, "response", None), "status_code", None)
