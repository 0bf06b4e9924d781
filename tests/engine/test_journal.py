"""The journal: what was appended is read back, and a cut or a flipped bit anywhere loses only what follows it."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.engine.journal import Journal, Record
from surgeon.errors import RunError

RECORDS = [Record(f"layer.{i}.weight", f"{i:064x}", {f"base/layer.{i}.weight": f"{i + 7:064x}"}) for i in range(3)]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def written(path: Path, records: list[Record]) -> bytes:
    journal = Journal.create(path, "key")
    for record in records:
        journal.append([record])
    journal.close()
    return path.read_bytes()


def reopened(path: Path) -> Journal:
    journal = Journal.open(path)
    assert journal is not None
    return journal


def read(path: Path) -> list[Record]:
    journal = reopened(path)
    journal.close()
    assert journal.key == "key"
    return list(journal.read().values())


@given(st.lists(st.builds(Record, NAMES, NAMES, st.dictionaries(NAMES, NAMES)), unique_by=lambda r: r.tensor), NAMES)
def test_what_is_appended_is_read_back(tmp_path_factory: pytest.TempPathFactory, records: list[Record], key: str):
    path = tmp_path_factory.mktemp("journal") / "journal"
    journal = Journal.create(path, key)
    journal.append(records)
    assert list(journal.read().values()) == records
    journal.close()
    again = reopened(path)
    assert (again.key, list(again.read().values())) == (key, records)
    again.close()


def test_a_tail_torn_at_any_byte_is_dropped_and_written_again(tmp_path: Path):
    path = tmp_path / "journal"
    whole = written(path, RECORDS)
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        journal = reopened(path)
        assert list(journal.read().values()) == RECORDS[:2], end
        assert path.read_bytes() == whole[:start]
        journal.append(RECORDS[2:])
        journal.close()
        assert path.read_bytes() == whole


def test_a_changed_byte_drops_its_line_and_what_follows(tmp_path: Path):
    path = tmp_path / "journal"
    whole = written(path, RECORDS)
    lines = whole.splitlines(keepends=True)
    start = len(lines[0]) + len(lines[1])
    for at in range(start, start + len(lines[2])):
        broken = bytearray(whole)
        broken[at] ^= 1
        path.write_bytes(broken)
        assert read(path) == RECORDS[:1], at


def test_without_a_whole_first_line_there_is_no_journal(tmp_path: Path):
    path = tmp_path / "journal"
    assert Journal.open(path) is None
    whole = written(path, [])
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert Journal.open(path) is None
    path.write_bytes(written(path, RECORDS).split(b"\n", 1)[1])
    assert Journal.open(path) is None


def test_the_latest_record_of_a_tensor_counts(tmp_path: Path):
    path = tmp_path / "journal"
    written(path, [*RECORDS, Record(RECORDS[0].tensor, "new", {})])
    assert {record.tensor: record.digest for record in read(path)}[RECORDS[0].tensor] == "new"


def test_create_replaces_an_older_journal(tmp_path: Path):
    path = tmp_path / "journal"
    written(path, RECORDS)
    written(path, RECORDS[:1])
    assert read(path) == RECORDS[:1]


def test_append_returns_after_the_bytes_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    journal = Journal.create(tmp_path / "journal", "key")
    sizes = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (sizes.append(os.fstat(fd).st_size), fsync(fd))[1])
    journal.append(RECORDS)
    assert sizes == [(tmp_path / "journal").stat().st_size]
    journal.close()


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "journal"
    journal = Journal.create(path, "key")
    journal.append(RECORDS[:1])
    before, pwrite = path.read_bytes(), os.pwrite

    def fills_up(fd: int, data: memoryview, at: int) -> int:
        if at > len(before):
            raise OSError(28, "No space left on device")
        return pwrite(fd, data[:10], at)

    monkeypatch.setattr(os, "pwrite", fills_up)
    with pytest.raises(RunError, match=r"journal is full(.|\n)*again to resume"):
        journal.append(RECORDS[1:])
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(journal.read().values()) == RECORDS[:1]
    journal.append(RECORDS[1:])
    journal.close()
    assert read(path) == RECORDS
