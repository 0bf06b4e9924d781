"""Options that several verbs share, each written once."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to write; it must not exist.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and no progress.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="K=V", help="Replace a value of the recipe: --set output.dtype=float16. May be repeated."
    ),
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N, mps or xpu.")]
Memory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory to stay within, kept or refused beforehand: 400MB, 4GiB."),
]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="Worker threads.", show_default="one a core")]
Dtype = Annotated[
    str | None, typer.Option(metavar="DTYPE", help="Write floating tensors as float16, bfloat16, float32 or float64.")
]
Dequantize = Annotated[bool, typer.Option("--dequantize", help="Write quantised weights in full; config.json says so.")]
ShardSize = Annotated[str | None, typer.Option(metavar="SIZE", help="Largest size of one shard: 5GB.")]
AnyModel = Annotated[
    bool, typer.Option("--any-model", help="Use a direction on another model than it was measured on.")
]
RunDtype = Annotated[str, typer.Option(metavar="DTYPE", help="Run the model in float32, bfloat16 or float16.")]
FitterSet = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="A setting of the fitter: --set components=8. May be repeated."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT once the new folder is complete.")]


def overrides(pairs: Iterable[str] | None) -> dict[str, str]:
    """`["output.dtype=float16"]` → `{"output.dtype": "float16"}`."""
    parted = [pair.partition("=") for pair in pairs or ()]
    for key, equals, value in parted:
        if not key or not equals:
            raise typer.BadParameter(f"{key + equals + value!r} is not KEY=VALUE", param_hint="--set")
    return {key: value for key, _, value in parted}


def layers(text: str | None) -> tuple[int, int] | None:
    """`"8..24"` → `(8, 24)`, the end left out."""
    if text is None:
        return None
    first, dots, end = text.partition("..")
    if not dots or not first.isdecimal() or not end.isdecimal() or int(first) >= int(end):
        raise typer.BadParameter(f"{text!r} is no range of layers: write 8..24", param_hint="--layers")
    return int(first), int(end)


def named_files(pairs: Iterable[str] | None) -> dict[str, Path] | None:
    """`["sql=./sql.jsonl"]` → `{"sql": Path("sql.jsonl")}`; None where there are none."""
    parted = [pair.partition("=") for pair in pairs or ()]
    for name, equals, file in parted:
        if not name or not equals or not file:
            raise typer.BadParameter(f"{name + equals + file!r} is not NAME=FILE", param_hint="--prompts")
    if doubled := {name for name, _, _ in parted if sum(name == other for other, _, _ in parted) > 1}:
        raise typer.BadParameter(f"{', '.join(sorted(doubled))} given twice", param_hint="--prompts")
    return {name: Path(file) for name, _, file in parted} or None


def settings(pairs: Iterable[str] | None, taken: Collection[str]) -> dict[str, Any]:
    """`["components=8", "guard=false"]` → `{"components": 8, "guard": False}`; `taken` are options of their own."""
    given = overrides(pairs)
    if own := given.keys() & set(taken):
        raise typer.BadParameter(f"{', '.join(sorted(own))}: an option of the command itself", param_hint="--set")
    return {key: _value(text) for key, text in given.items()}


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text
