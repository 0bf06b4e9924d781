"""Two checkpoints compared, block by block: never a whole model in memory."""

from __future__ import annotations

from contextlib import closing

from surgeon.engine.events import Listener
from surgeon.engine.reading import Files
from surgeon.measuring.configs import differences
from surgeon.measuring.diff_report import DiffReport
from surgeon.measuring.difference import Difference, difference
from surgeon.measuring.reading import Ticker, each
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.side_files import side_files


def compare(a: Checkpoint, b: Checkpoint, listener: Listener | None = None) -> DiffReport:
    """The differences of b from a: tensors, their set, shapes and dtypes, config and the other files."""
    both = [name for name in a.tensors if name in b.tensors]
    specs = {name: (a.tensors[name].spec, b.tensors[name].spec) for name in both}
    comparable = [name for name, (one, other) in specs.items() if one.shape == other.shape]
    tick = Ticker("diff", sum(specs[name][0].nbytes for name in comparable), listener)
    with closing(Files()) as files:

        def one(name: str) -> Difference | None:
            found = difference(name, a.tensors[name], b.tensors[name], files)
            tick(specs[name][0].nbytes)
            return found

        found = each(one, comparable)
    return DiffReport(
        a=a.ref,
        b=b.ref,
        tensors=tuple(both),
        differing=tuple(item for item in found if item is not None),
        only_a=tuple(name for name in a.tensors if name not in b.tensors),
        only_b=tuple(name for name in b.tensors if name not in a.tensors),
        shapes={n: (str(one), str(other)) for n, (one, other) in specs.items() if one.shape != other.shape},
        config=tuple((path, *values) for path, values in differences(a.config, b.config)),
        files=_files(a, b),
    )


def _files(a: Checkpoint, b: Checkpoint) -> tuple[str, ...]:
    """Names of the other files that differ or that one side lacks; none where a side is a single file."""
    if a.single_file or b.single_file:
        return ()
    one, other = ({path.relative_to(c.root).as_posix(): path.read_bytes() for path in side_files(c)} for c in (a, b))
    return tuple(name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name))
