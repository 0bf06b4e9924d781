"""`surgeon push-weights`: switch a running server to other weights."""

from pathlib import Path
from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, output


def command(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server: http://HOST:PORT.", show_default=False)],
    what: Annotated[
        Path,
        typer.Argument(
            metavar="WHAT", help="A checkpoint, edited tensors or an adapter; of llama.cpp an adapter it holds."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Serve the adapter as this.", show_default="its folder's name")
    ] = None,
    scale: Annotated[float | None, typer.Option(metavar="S", help="llama.cpp: the adapter's scale.")] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Check names against this.", show_default="what the server says it serves"),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(metavar="SERVER", help="vllm, sglang or llamacpp.", show_default="what the server says it is"),
    ] = None,
    remote_path: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where WHAT lies for the server.", show_default="the same path")
    ] = None,
    api_key: Annotated[str, typer.Option(envvar="SURGEON_API_KEY", help="The server's key.", show_default=False)] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the calls, and change nothing.")] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=1, help="Wait so long for one call.")] = 600.0,
    as_json: options.Json = False,
) -> None:
    """Switch a running server to other weights, without a restart.

    vLLM and SGLang reload weights, all or edited tensors alone, or load an adapter; llama.cpp sets an adapter's scale.
    What does not fit the served model is refused before the server is called. Where the server fails, the error says
    what it serves then.

    Examples:

      surgeon push-weights http://127.0.0.1:8000 out/ --dry-run

      surgeon push-weights http://127.0.0.1:8000 adapter/ --name polite

      surgeon push-weights http://127.0.0.1:8080 polite.gguf --scale 0.5
    """
    report = surgeon.push_weights(
        url, what, name=name, scale=scale, base=base, server=server, remote_path=remote_path, api_key=api_key,
        dry_run=dry_run, timeout=timeout,
    )  # fmt: skip
    output.summarise(report, as_json=as_json)
