"""The honest floor: what any program must do that reads some checkpoints and writes one, and nothing else.

    python benchmarks/copy_loop.py OUT IN [IN ...] [--threads 2]

Its threads read every byte of every input into reused buffers, write an output with the first input's bytes, hash what
they write with blake3, flush files and folder to the disk, and rename the folder once.
"""

import argparse
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from threading import local

from blake3 import blake3

RANGE = 1 << 24
BLOCK = 1 << 20

Job = tuple[int, int | None, int, int]  # descriptor read, descriptor written, start, end


def files_of(folder: Path) -> list[Path]:
    """The weight files of a checkpoint or adapter, in order."""
    return sorted(folder.glob("*.safetensors"))


def ranges(source: int, target: int | None) -> Iterator[Job]:
    """Cut one file into ranges, the units of work."""
    size = os.fstat(source).st_size
    for start in range(0, size, RANGE):
        yield source, target, start, min(start + RANGE, size)


def run_job(job: Job, buffers: local) -> bytes:
    """Read one range, and where it has a target write and hash it."""
    source, target, position, end = job
    if not hasattr(buffers, "block"):
        buffers.block = memoryview(bytearray(BLOCK))
    digest = blake3()
    while position < end:
        block = buffers.block[: min(BLOCK, end - position)]
        if os.preadv(source, [block], position) != len(block):
            raise OSError(f"a file became shorter while it was read, at byte {position}")
        if target is not None:
            digest.update(block)
            if os.pwrite(target, block, position) != len(block):
                raise OSError(f"a write was cut short at byte {position}")
        position += len(block)
    return digest.digest()


def jobs(inputs: list[Path], part: Path, stack: ExitStack) -> tuple[list[Job], list[int]]:
    """All units of work, the inputs' ranges side by side as a merge reads them, and the descriptors written."""
    queues: list[list[Job]] = []
    targets: list[int] = []
    for number, folder in enumerate(inputs):
        queue: list[Job] = []
        for file in files_of(folder):
            source = os.open(file, os.O_RDONLY)
            stack.callback(os.close, source)
            target = None
            if number == 0:
                target = os.open(part / file.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                stack.callback(os.close, target)
                targets.append(target)
            queue.extend(ranges(source, target))
        queues.append(queue)
    return [job for row in zip_longest(*queues) for job in row if job is not None], targets


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def copy_loop(inputs: list[Path], out: Path, threads: int) -> str:
    """Run the loop and return one digest over the digests of all ranges."""
    part = out.with_name(f".{out.name}.part")
    part.mkdir()
    buffers = local()
    with ExitStack() as stack, ThreadPoolExecutor(threads) as pool:
        work, targets = jobs(inputs, part, stack)
        digests = list(pool.map(lambda job: run_job(job, buffers), work))
        list(pool.map(os.fsync, targets))
    for file in inputs[0].glob("*.json"):
        shutil.copyfile(file, part / file.name)
    sync_folder(part)
    part.rename(out)
    sync_folder(out.parent)
    return blake3(b"".join(digests)).hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("inputs", type=Path, nargs="+", metavar="IN")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print(copy_loop(arguments.inputs, arguments.out, arguments.threads))
