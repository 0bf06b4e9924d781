"""`surgeon import`: a GGUF file as an ordinary checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

import surgeon
from surgeon_cli import options, progress


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="The GGUF file.", show_default=False)],
    out: options.Out,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="Dtype of the tensors written.")] = "bfloat16",
    overwrite: options.Overwrite = False,
) -> None:
    """Turn FILE.gguf into an ordinary checkpoint.

    Config, tokenizer and chat template come along; quantised tensors are dequantised.
    Needs the extra: pip install 'model-surgeon[gguf]'

    Examples:

      surgeon import model.Q4_K_M.gguf -o model/

      surgeon import model.gguf -o model/ --dtype float32
    """
    with progress.drawn(quiet=False) as on_event:
        folder = surgeon.import_gguf(file, out, dtype=dtype, overwrite=overwrite, on_event=on_event)
    print(folder)
