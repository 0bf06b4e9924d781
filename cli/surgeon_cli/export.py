"""`surgeon export`: a result in another form than a whole checkpoint."""

from pathlib import Path
from typing import Annotated, Literal

import typer

import surgeon
from surgeon_cli import options, output, progress

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def command() -> None:
    """Write a result in another form than a whole checkpoint.

    Example:

      surgeon export adapter out/ --base ./base --rank 16 -o adapter/
    """


@app.command()
def adapter(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="A recipe (.yaml), a checkpoint or an adapter.")],
    out: options.Out,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="What the adapter stands on.", show_default="what the recipe builds on"),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, metavar="R", help="Largest rank of a tensor.")] = None,
    error: Annotated[
        float | None, typer.Option(metavar="E", help="Largest ‖D − BA‖/‖D‖ of a tensor, such as 0.05.")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Leave out changes of these tensors. May be repeated.")
    ] = None,
    experts: Annotated[
        Literal["each", "fused"], typer.Option(help="Of experts in one tensor: a module each (vLLM), or fused (PEFT).")
    ] = "each",
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="Write the factors as this.")] = "float32",
    overrides: options.Set = None,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write the difference between a model and its base as a PEFT LoRA adapter.

    Edits along directions and arithmetic of adapters stay in factors, exactly;
    anything else is cut to a rank or an error, printed for every tensor.

    Examples:

      surgeon export adapter recipe.yaml -o adapter/

      surgeon export adapter ./fine-tune --base ./base --error 0.1 -o adapter/
    """
    with progress.drawn(quiet=as_json) as on_event:
        report = surgeon.export_adapter(
            what, out, base=base, rank=rank, error=error, drop=drop or (), experts=experts, dtype=dtype,
            device=device, overrides=options.overrides(overrides), overwrite=overwrite, on_event=on_event,
        )  # fmt: skip
    output.summarise(report, as_json=as_json)


@app.command()
def patch(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="A recipe (.yaml), a folder that surgeon wrote, or a checkpoint.")
    ],
    out: options.Out,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="What it is applied to.", show_default="what the recipe builds on"),
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Hold changed tensors whole: a folder for vLLM's reload_weights.")
    ] = False,
    undo: Annotated[bool, typer.Option("--undo/--no-undo", help="Hold what is needed to take it back.")] = True,
    overrides: options.Set = None,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write what turns a model into an edited one, and back, bit for bit.

    What edits along directions and adapters change is held by factors, in a few
    megabytes for any model; other tensors whole. `surgeon patch` applies it.

    Examples:

      surgeon export patch recipe.yaml -o patch/

      surgeon export patch out/ -o patch/

      surgeon export patch ./fine-tune --base ./base --dense -o patch/
    """
    with progress.drawn(quiet=as_json) as on_event:
        report = surgeon.export_patch(
            what, out, base=base, dense=dense, undo=undo, device=device, overrides=options.overrides(overrides),
            overwrite=overwrite, on_event=on_event,
        )  # fmt: skip
    output.summarise(report, as_json=as_json)


_File = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.", show_default=False)]


@app.command()
def gguf(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="A checkpoint, or a recipe (.yaml).")],
    out: _File,
    dtype: Annotated[
        Literal["float32", "bfloat16", "q8_0"], typer.Option(help="What matrices are written in.")
    ] = "bfloat16",
    overrides: options.Set = None,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write a model with its tokenizer as one GGUF file, for llama.cpp.

    Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3.
    Needs the extra: pip install 'model-surgeon[gguf]'

    Example:

      surgeon export gguf out/ -o out.gguf --dtype q8_0
    """
    with progress.drawn(quiet=as_json) as on_event:
        report = surgeon.export_gguf(
            what, out, dtype=dtype, device=device, overrides=options.overrides(overrides), overwrite=overwrite,
            on_event=on_event,
        )  # fmt: skip
    output.summarise(report, as_json=as_json)


@app.command("gguf-adapter")
def gguf_adapter(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="A recipe (.yaml), a checkpoint or an adapter.")],
    out: _File,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="What the adapter stands on.", show_default="what the recipe builds on"),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, metavar="R", help="Largest rank of a tensor.")] = None,
    error: Annotated[float | None, typer.Option(metavar="E", help="Largest ‖D − BA‖/‖D‖ of a tensor.")] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Leave out changes of these tensors. May be repeated.")
    ] = None,
    overrides: options.Set = None,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write the difference between a model and its base as a GGUF adapter.

    llama.cpp loads it with --lora FILE.
    Needs the extra: pip install 'model-surgeon[gguf]'

    Example:

      surgeon export gguf-adapter recipe.yaml -o edit.gguf
    """
    with progress.drawn(quiet=as_json) as on_event:
        report = surgeon.export_gguf_adapter(
            what, out, base=base, rank=rank, error=error, drop=drop or (), device=device,
            overrides=options.overrides(overrides), overwrite=overwrite, on_event=on_event,
        )  # fmt: skip
    output.summarise(report, as_json=as_json)


@app.command("control-vector")
def control_vector(
    direction: Annotated[str, typer.Argument(metavar="DIRECTION", help="A direction file, as `find` writes it.")],
    out: _File,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model it is for.", show_default="not checked")
    ] = None,
    at: Annotated[
        str, typer.Option(metavar="POINT", help="block.14, or own: each block its own.", show_default="its own")
    ] = "",
    layers: Annotated[
        str | None, typer.Option(metavar="A..B", help="Add it after these blocks, B left out.", show_default="its own")
    ] = None,
    strength: Annotated[float, typer.Option(metavar="S", help="Add S times the direction.")] = 1.0,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Write a direction as a control vector: llama.cpp adds it with --control-vector FILE.

    Needs the extra: pip install 'model-surgeon[gguf]'

    Example:

      surgeon export control-vector tone.safetensors -o tone.gguf --strength 4
    """
    with progress.drawn(quiet=as_json) as on_event:
        report = surgeon.export_control_vector(
            direction, out, base=base, at=at, layers=options.layers(layers), strength=strength, overwrite=overwrite,
            on_event=on_event,
        )  # fmt: skip
    output.summarise(report, as_json=as_json)
