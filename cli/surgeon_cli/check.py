"""`surgeon check`: whether inference servers load a folder as it is meant."""

from pathlib import Path
from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output


def command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to be served.", show_default=False)],
    serve: Annotated[
        str | None, typer.Option(metavar="SERVER", help="Start it and ask it: transformers, vllm, llamacpp or mlx.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="What OUT was made from.", show_default="what its receipt names"),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The interpreter that has the server.", show_default="this one"),
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="OUT as GGUF, for llamacpp.", show_default="written for the while"),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Serve this adapter on --base (or --gguf): it must equal OUT.")
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="Have it compute in float32, bfloat16 or float16.")] = (
        "float32"
    ),
    tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens to ask for, a prompt.")] = 16,
    tolerance: Annotated[
        float | None,
        typer.Option(metavar="X", min=0.0, help="Largest |Δ log p|.", show_default="0.02 in float32, 0.05 in 16 bit"),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Tell what every inference server would load of OUT.

    By the rules of transformers, vLLM, SGLang, TGI, TensorRT-LLM, LMDeploy, llama.cpp and MLX, from headers and side
    files. With --serve a real server is started on this machine, its tokens and log-probabilities are compared with
    transformers' in float32, and it is stopped. Ends with 0 when all is as meant, 3 when something is wrong, 4 when
    something cannot be told.

    Examples:

      surgeon check out/

      surgeon check out/ --serve vllm --python vllm-env/bin/python
    """
    report = surgeon.check(
        out, base=base, serve=serve, python=python, dtype=dtype, gguf=gguf, adapter=adapter, tokens=tokens,
        tolerance=tolerance,
    )  # fmt: skip
    output.show(report, as_json=as_json)
    raise typer.Exit(report.exit_code)
