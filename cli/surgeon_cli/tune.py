"""`surgeon tune`: coefficients learned from a few prompts a skill, or open numbers searched."""

from pathlib import Path
from typing import Annotated, Any

import typer

import surgeon
from surgeon_cli import options, output, progress


def _option(meaning: str, metavar: str, default: str, **limits: Any) -> Any:
    """An option that a recipe's `tune:` may hold as well."""
    return typer.Option(metavar=metavar, help=meaning, show_default=default, **limits)


def command(
    recipe: options.Recipe,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="TUNED", help="The folder to write the result to.")],
    prompts: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Prompts of one expert, a JSON line each. Once for every expert."),
    ] = None,
    neutral: Annotated[Path | None, _option("Neutral chats and text.", "FILE", "those of surgeon")] = None,
    per: Annotated[str | None, _option("model, layer, tensor or row (of outputs).", "WHAT", "row")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Learn every kind, and tell what each buys.")] = False,
    steps: Annotated[int | None, _option("Steps of learning.", "N", "60", min=0)] = None,
    rate: Annotated[float | None, _option("First rate of learning.", "X", "0.03", min=0)] = None,
    guard: Annotated[float | None, _option("Weight of KL to the base on neutral examples.", "X", "4", min=0)] = None,
    batch: Annotated[int | None, _option("Prompts of each skill in a step.", "N", "4", min=1)] = None,
    trials: Annotated[int | None, _option("Choices of {search: …} numbers to try.", "N", "40", min=1)] = None,
    budget: Annotated[float | None, _option("Chat KL, nats a token, to stay within.", "KL", "0.04", min=0)] = None,
    score: Annotated[str | None, _option("Search for the mean or the worst agreement.", "WHAT", "mean")] = None,
    tokens: Annotated[int | None, _option("Longest answer that is looked at.", "N", "48", min=1)] = None,
    seed: Annotated[int | None, _option("Of batches and search.", "N", "0", min=0)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the trials in TUNED.")] = False,
    device: options.Device = "auto",
    dtype: options.RunDtype = "float32",
    set_: options.Set = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over what tune wrote there before.")] = False,
    as_json: options.Json = False,
) -> None:
    """Learn a merge's coefficients from a few prompts a skill.

    Distils each expert on its own prompts into base + Σ c·(expert − base), with the base as guard on neutral ones.
    Where the recipe has numbers written {search: [LOW, HIGH]}, those are searched instead. TUNED gets recipe.yaml
    (plain, ready for `surgeon apply`), coefficients.safetensors and report.json. The options may also stand in the
    recipe, under tune:.

    Examples:

      surgeon tune merge.yaml --prompts json=json.jsonl --prompts sql=sql.jsonl -o tuned

      surgeon tune merge.yaml … --compare --guard 8

      surgeon apply tuned/recipe.yaml -o out/
    """
    asked: dict[str, Any] = {
        "neutral": neutral, "per": per, "steps": steps, "rate": rate, "guard": guard, "batch": batch, "trials": trials,
        "budget": budget, "score": score, "tokens": tokens, "seed": seed,
    }  # fmt: skip
    with progress.drawn(quiet=as_json) as on_event:
        tuned = surgeon.tune(
            recipe, out, prompts=options.named_files(prompts), compare=compare, resume=resume,
            overrides=options.overrides(set_), device=device, dtype=dtype, overwrite=overwrite, on_event=on_event,
            **asked,
        )  # fmt: skip
    output.summarise(tuned, as_json=as_json)
