"""Writes the page of merge methods from what each declares, and from what `merging.py` measured.

    python benchmarks/methods_page.py --measured docs/merging.md --out docs/methods.md

A method's docstring gives its sentences, its formula (a paragraph that begins with "Formula:") and when to use it ("Use
it"); its signature the settings; the registry the laws. Methods of other packages that are installed are left out.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import surgeon
from surgeon.space.registry import merge_methods
from surgeon.testing.laws import LAWS, applies

INTRO = """# Merge methods

Written by `benchmarks/methods_page.py` from the methods themselves; `surgeon methods NAME` prints the same. θ₀ is the
base model, θᵢ the models, τᵢ = θᵢ − θ₀ their task vectors, wᵢ their weights. *Measured* is the row of
[merging.md](merging.md): the share of the worst and of the mean specialist's skill that a merge keeps, and what it
costs in chat (KL to the base, nats a token), settings chosen on other questions.
"""


def measured_rows(page: Path | None) -> dict[str, list[str]]:
    """Method → what was measured, a line a table of the page."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in page.read_text(encoding="utf-8").splitlines() if page and page.exists() else ():
        if line.startswith("## "):
            title = line[3:].partition(":")[0]
        row = re.match(r"\| surgeon (\w+) \| (.*) \|$", line)
        if row:
            _, settings, worst, mean, kl, *_ = row[2].split(" | ")
            found.setdefault(row[1], []).append(f"{title}: worst {worst}, mean {mean}, chat KL {kl} ({settings})")
    return found


def section(name: str, one: Mapping[str, Any], measured: list[str]) -> list[str]:
    """One method."""
    method = merge_methods()[name]
    least, most = one["models"]
    count = f"{least} or more" if most is None else str(least) if least == most else f"{least} to {most}"
    paragraphs = [" ".join(part.split("\n")) for part in one["documentation"].split("\n\n")]
    kept = [law for law in LAWS if applies(law, method) and law not in one["breaks"]]
    lines = [f"## {name}", ""]
    for paragraph in paragraphs:
        lines += [re.sub(r"^(Formula|Paper):", r"**\1.**", paragraph).replace("Use it", "**When.** Use it", 1), ""]
    lines += [f"- Models: {count}; base model: {one['base_model']}; computed in {one['blocks']}."]
    lines += [f"- `{setting}`: {told(about)}" for setting, about in one["settings"].items()]
    lines += [f"- Keeps: {', '.join(kept)}."]
    lines += [f"- Does not keep {law}: {reason}." for law, reason in one["breaks"].items()]
    lines += [f"- From a mergekit recipe: {differs}." for _, differs in method.mergekit.values() if differs]
    lines += [f"- Measured, {line}." for line in measured]
    return [*lines, ""]


def told(setting: Mapping[str, Any]) -> str:
    """A setting's type, range and default."""
    kind = " or ".join(f"`{choice}`" for choice in setting["choices"]) or setting["type"]
    bounds = f" in {setting['range']}" if setting["range"] else ""
    each = ", one a model" if setting["per_model"] else ""
    default = "required" if setting["required"] else f"default {str(setting['default']).lower() or 'none'}"
    return f"{kind}{bounds}{each}; {default}"


def page(measured: Path | None) -> str:
    """The whole page."""
    methods = surgeon.list_methods().to_dict()["methods"]
    rows = measured_rows(measured)
    lines = [INTRO, "| law | in words |", "|---|---|"]
    lines += [f"| {name} | {' '.join((law.__doc__ or '').split())} |" for name, law in LAWS.items()]
    lines += [""]
    for name, one in methods.items():
        if "/" not in name:
            lines += section(name, one, rows.get(name, []))
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, help="the page that merging.py writes")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.write_text(page(options.measured), encoding="utf-8")


if __name__ == "__main__":
    main()
