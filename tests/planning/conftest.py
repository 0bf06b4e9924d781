"""A process whose size does not depend on the tests before."""

import pytest


@pytest.fixture(autouse=True)
def a_process_of_usual_size(monkeypatch: pytest.MonkeyPatch):
    """Whatever other tests have loaded into this one."""
    monkeypatch.setattr("surgeon.planning.memory.resident_now", lambda: 150_000_000)
