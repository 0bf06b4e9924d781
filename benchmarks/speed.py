"""Measure surgeon beside a copy loop and mergekit, in one run, and write the table.

    python benchmarks/speed.py --work DIR [--pairs 3] [--mergekit-runs 1] [--out benchmarks/RESULTS.md]

Every ratio is taken between runs that follow each other, and the median over the pairs is reported. Each run is a
process of its own, timed from start to exit, on inputs that were read before; outputs are deleted in between.
README.md beside this file says what is compared with what.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from make_models import ADAPTERS, DIRECTION, MODELS, make_models
from memory import Measured, measure
from merge_workloads import MERGES
from safetensors import safe_open
from table import HELP_FLOOR, PLAN_FLOOR, Runs, Small, report
from workloads import ALONE, Config, Workload

HERE = Path(__file__).resolve().parent
WORKLOADS = (*ALONE, *MERGES)
MERGEKIT, TORCH = "0.1.5", "2.13.0"
MERGEKIT_FLAGS = [
    "--lazy-unpickle",
    "--no-copy-tokenizer",
    "--quiet",
    "--async-write",
    "--write-threads",
    "2",
    "-j",
    "2",
]
BUDGET = 400_000_000
PLAN_RUNS, HELP_RUNS = 3, 5
PEER_SIZE, PEER_APART = 0.1, 0.25
REFUSED = 2


class Bench:
    """The folders and programs of one run."""

    def __init__(self, work: Path, surgeon: Path | None, mergekit: bool) -> None:
        """Make what is missing in `work`: the models, and mergekit's environment where it is wanted."""
        self.work = work
        self.surgeon = surgeon
        self.models = make_models(work)
        self.out = work / "out"
        self.log = work / "log.txt"
        self.mergekit = mergekit_environment(work) if mergekit else None
        self.peers: dict[Workload, torch.Tensor] = {}
        self.clean()

    def clean(self) -> None:
        """Delete the last output, a broken run's too, and wait until the disk is idle."""
        for folder in (self.out, *self.work.glob(f".{self.out.name}*")):
            shutil.rmtree(folder, ignore_errors=True)
        os.sync()

    def warm(self, workload: Workload) -> None:
        """Read the inputs, so that they lie in the page cache."""
        for name in workload.inputs:
            for file in (self.models / f"{workload.family}{name}").glob("*.safetensors"):
                with open(file, "rb", buffering=0) as stream:
                    while stream.read(1 << 24):
                        pass

    def run(self, label: str, command: list[str], allowed: tuple[int, ...] = (0,)) -> Measured:
        """Measure one command, print the figure, and stop where the command fails."""
        result = measure(command, self.log)
        print(f"{label:44s} {result.seconds:8.2f} s  {result.peak / 1e6:6.0f} MB", flush=True)
        if result.code not in allowed:
            sys.exit(f"exit code {result.code} from: {' '.join(command)}\nits output is at the end of {self.log}")
        return result

    def write(self, name: str, config: Config) -> Path:
        """Write a recipe; JSON is YAML too."""
        path = self.work / f"{name}.yaml"
        path.write_text(json.dumps(config, indent=2) + "\n")
        return path

    def recipe(self, workload: Workload, prefix: str = "") -> Path:
        """Write the workload as surgeon's recipe, over the models whose folders start with `prefix`."""
        if not workload.steps:
            return self.peer_recipe(workload)
        prefix = prefix or workload.family
        models = {name: str(self.models / f"{prefix}{name}") for name in workload.inputs}
        config: Config = {"surgeon": 1, "models": models, "steps": workload.steps}
        if workload.edits:
            config["directions"] = {"removed": str(self.work / DIRECTION)}
        if workload.output:
            config["output"] = workload.output
        return self.write(f"surgeon-{prefix}{workload.slug}", config)

    def peer_recipe(self, workload: Workload) -> Path:
        """Write the workload in mergekit's YAML."""
        assert workload.peer is not None
        return self.write(f"mergekit-{workload.slug}", workload.peer(self.models))

    def copy(self, workload: Workload) -> Measured:
        """Run the copy loop over the workload's checkpoints; an adapter, a hundredth of one, is not among them."""
        inputs = [str(self.models / f"{workload.family}{name}") for name in workload.inputs if name in MODELS]
        command = [sys.executable, str(HERE / "copy_loop.py"), str(self.out), *inputs, "--threads", "2"]
        result = self.run(f"copy loop, {len(inputs)} read, 1 written", command)
        self.clean()
        return result

    def apply(self, workload: Workload, *flags: str, allowed: tuple[int, ...] = (0,)) -> Measured:
        """Run surgeon; the output stays, to be looked at."""
        recipe = str(self.recipe(workload))
        command = [str(self.surgeon), "apply", recipe, "-o", str(self.out), "--threads", "2", *flags]
        return self.run(f"surgeon apply, {workload.name} {' '.join(flags)}", command, allowed)

    def merge(self, workload: Workload) -> Measured:
        """Run mergekit on the same files; what it makes of the sample is kept."""
        assert self.mergekit is not None
        command = [str(self.mergekit), str(self.peer_recipe(workload)), str(self.out), *MERGEKIT_FLAGS]
        result = self.run(f"mergekit, {workload.name}", command)
        self.peers[workload] = read_tensor(self.out, f"{workload.sample}.weight")
        self.clean()
        return result

    def run_beside(self, workload: Workload) -> Measured:
        """Run what a workload is compared with besides: surgeon on another, or bare decompositions."""
        other = next((each for each in WORKLOADS if each.name == workload.beside), None)
        if other:
            return self.apply(other)
        assert workload.beside is not None
        inputs = [str(self.models / f"{workload.family}{name}") for name in workload.inputs]
        command = [sys.executable, str(HERE / "bare_svds.py"), *inputs, *workload.beside.split()[1:], "--threads", "2"]
        return self.run(workload.beside, command)


def mergekit_environment(work: Path) -> Path:
    """Return mergekit's command, making the environment it lives in where it is not there yet."""
    home = work / "mergekit-env"
    ready = home / ".ready"
    if not ready.exists():
        print("making mergekit's environment", flush=True)
        constraints = work / "mergekit-constraints.txt"
        constraints.write_text(f"torch=={TORCH}\n")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        install = ["-m", "pip", "install", "--quiet", "-c", str(constraints), f"mergekit=={MERGEKIT}"]
        subprocess.run([str(home / "bin/python"), *install], check=True)
        ready.touch()
    return home / "bin/mergekit-yaml"


def read_tensor(folder: Path, name: str) -> torch.Tensor:
    """Read one tensor of a checkpoint or adapter."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stream:
            if name in set(stream.keys()):
                return stream.get_tensor(name)
    sys.exit(f"{folder} has no tensor {name}")


def check(bench: Bench, workload: Workload) -> None:
    """Stop unless one tensor of the output is right within its roundings: a wrong result may not be timed."""
    name = f"{workload.sample}.weight"
    if workload.expected is None:
        check_peer(bench, workload, name)
        return
    tensors = {model: read_tensor(bench.models / f"{workload.family}{model}", name) for model in MODELS}
    for factor in ("lora_A", "lora_B"):
        stored = f"base_model.model.{workload.sample}.{factor}.weight"
        for adapter in ADAPTERS:
            tensors[f"{adapter} {factor}"] = read_tensor(bench.models / adapter, stored)
    wanted, got = workload.expected(tensors), read_tensor(bench.out, name).double()
    allowed = wanted.abs() * 2**-8 * 1.001 * workload.roundings + 1e-8
    wrong = int(((got - wanted).abs() > allowed).sum())
    if wrong or got.isnan().any():
        sys.exit(f"{workload.name}: {wrong} of {wanted.numel()} values of {name} are wrong in {bench.out}")


def check_peer(bench: Bench, workload: Workload, name: str) -> None:
    """Hold the output against mergekit's, whose arithmetic rounds to bfloat16 at every step.

    Nothing is looked at where mergekit was not run.
    Both are taken as changes of the base: they must be of one size, and unless entries are drawn also nearly the same.
    """
    if workload not in bench.peers:
        return
    base = read_tensor(bench.models / f"{workload.family}base", name).double()
    ours, theirs = (found.double() - base for found in (read_tensor(bench.out, name), bench.peers[workload]))
    size, apart = ours.norm() / theirs.norm(), (ours - theirs).norm() / theirs.norm()
    print(f"{workload.name}: change {size:.3f} of mergekit's, {apart:.3f} apart", flush=True)
    if abs(size - 1) > PEER_SIZE or (apart > PEER_APART and not workload.random):
        sys.exit(f"{workload.name}: {name} in {bench.out} is not what mergekit makes of it")


def under_budget(bench: Bench, workload: Workload) -> str:
    """Say whether a memory budget was kept, refused before work, or broken."""
    result = bench.apply(workload, "--memory", f"{BUDGET // 10**6}MB", allowed=(0, REFUSED))
    left = bench.out.exists()
    bench.clean()
    if result.code == REFUSED:
        return "**refused, but an output is there**" if left else "refused beforehand"
    verdict = "kept" if result.peak < BUDGET else "**not kept**"
    return f"{verdict}: {result.peak / 1e6:.0f} in {result.seconds:.1f} s"


def measure_workload(bench: Bench, workload: Workload, pairs: int, merges: int) -> Runs:
    """Run the programs in turn, so that each pair meets the machine in the same state."""
    runs = Runs()
    bench.warm(workload)
    merges = merges if bench.mergekit and workload.peer else 0
    for turn in range(max(pairs, merges)):
        if turn < merges:
            runs.mergekit.append(bench.merge(workload))
            bench.warm(workload)
        runs.copy.append(bench.copy(workload))
        if bench.surgeon and workload.beside:
            runs.beside.append(bench.run_beside(workload))
            bench.clean()
        if bench.surgeon:
            runs.surgeon.append(bench.apply(workload))
            if turn == 0:
                check(bench, workload)
            bench.clean()
    if bench.surgeon:
        runs.budget = under_budget(bench, workload)
    return runs


def measure_small(bench: Bench) -> list[Small]:
    """Time the plan of recipes on headers of 20 000 tensors, and the help."""
    if not bench.surgeon:
        return []
    small = []
    for workload in WORKLOADS:
        if workload in ALONE and set(workload.inputs) <= set(MODELS) and not workload.edits:
            command = [str(bench.surgeon), "plan", str(bench.recipe(workload, "headers-"))]
            runs = [bench.run(f"surgeon plan, {workload.name}, headers", command) for _ in range(PLAN_RUNS)]
            name = f"`surgeon plan`, {workload.name} of 3 checkpoints of 20 000 tensors"
            small.append(Small(name, runs, PLAN_FLOOR))
    runs = [bench.run("surgeon --help", [str(bench.surgeon), "--help"]) for _ in range(HELP_RUNS)]
    return [*small, Small("`surgeon --help`", runs, HELP_FLOOR)]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument(
        "--work", type=Path, default=cache / "model-surgeon-benchmark", help="models and outputs, 11 GB"
    )
    parser.add_argument("--pairs", type=int, default=3, help="runs of the copy loop and of surgeon, in turn")
    parser.add_argument("--mergekit-runs", type=int, default=1, help="it is slow")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md", help="the table")
    parser.add_argument("--surgeon", type=Path, default=Path(sys.executable).parent / "surgeon", help="the command")
    parser.add_argument("--skip", nargs="*", default=[], choices=["surgeon", "mergekit"], help="programs left out")
    parser.add_argument(
        "--only", nargs="*", choices=[each.slug for each in WORKLOADS], help="workloads, all by default"
    )
    return parser.parse_args()


def main() -> None:
    """Measure everything and write the table."""
    arguments = parse()
    surgeon = None if "surgeon" in arguments.skip else arguments.surgeon
    if surgeon and not surgeon.exists():
        sys.exit(f"there is no {surgeon}; install the project here, or name the command by --surgeon")
    load = os.getloadavg()[0]
    bench = Bench(arguments.work.resolve(), surgeon, "mergekit" not in arguments.skip)
    chosen = [each for each in WORKLOADS if not arguments.only or each.slug in arguments.only]
    small = measure_small(bench)
    results = {each: measure_workload(bench, each, arguments.pairs, arguments.mergekit_runs) for each in chosen}
    python = bench.mergekit.with_name("python") if bench.mergekit else None
    page = report(results, small, BUDGET, python, load)
    arguments.out.write_text(page)
    print(f"\n{page}\nwritten to {arguments.out}")


if __name__ == "__main__":
    main()
