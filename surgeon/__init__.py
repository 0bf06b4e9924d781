"""Model surgery in the vector space of checkpoints: merge, combine and edit models, and prove what changed.

Names are loaded when first used, so that `import surgeon` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from surgeon.errors import (
    BudgetError,
    CheckpointError,
    Fault,
    MismatchError,
    Origin,
    OutputError,
    RecipeError,
    RefusedError,
    RunError,
    SurgeonError,
    VerificationError,
)
from surgeon.version import VERSION as __version__

if TYPE_CHECKING:
    from surgeon.artifacts.direction import Direction
    from surgeon.engine.events import Progress
    from surgeon.recipe import dump_recipe, load_recipe
    from surgeon.space.api import merge, open
    from surgeon.space.editing_api import edit, reshape
    from surgeon.space.expr import DataFit, Expr, Fit
    from surgeon.verbs.apply import apply
    from surgeon.verbs.apply_to import apply_to
    from surgeon.verbs.check import check
    from surgeon.verbs.convert import convert
    from surgeon.verbs.diff import diff
    from surgeon.verbs.doctor import doctor
    from surgeon.verbs.export import export_adapter
    from surgeon.verbs.export_gguf import export_control_vector, export_gguf, export_gguf_adapter
    from surgeon.verbs.export_patch import export_patch
    from surgeon.verbs.find import find
    from surgeon.verbs.greedy_soup import greedy_soup
    from surgeon.verbs.import_gguf import import_gguf
    from surgeon.verbs.load import load
    from surgeon.verbs.measure import measure_residual
    from surgeon.verbs.measure_data import measure_fisher, measure_gram
    from surgeon.verbs.measure_merge import measure_merge
    from surgeon.verbs.methods import list_methods
    from surgeon.verbs.patch import apply_patch, revert_patch
    from surgeon.verbs.plan import plan
    from surgeon.verbs.publish import publish
    from surgeon.verbs.push_weights import push_weights
    from surgeon.verbs.recipes import copy_recipe, list_recipes
    from surgeon.verbs.reproduce import reproduce
    from surgeon.verbs.schema import schema
    from surgeon.verbs.show import show
    from surgeon.verbs.sign import sign
    from surgeon.verbs.tune import tune
    from surgeon.verbs.verify import verify

#: Public name → the module that defines it.
_HOMES = {
    "DataFit": "surgeon.space.expr",
    "Direction": "surgeon.artifacts.direction",
    "Expr": "surgeon.space.expr",
    "Fit": "surgeon.space.expr",
    "Progress": "surgeon.engine.events",
    "apply_patch": "surgeon.verbs.patch",
    "copy_recipe": "surgeon.verbs.recipes",
    "dump_recipe": "surgeon.recipe",
    "edit": "surgeon.space.editing_api",
    "export_adapter": "surgeon.verbs.export",
    "export_control_vector": "surgeon.verbs.export_gguf",
    "export_gguf": "surgeon.verbs.export_gguf",
    "export_gguf_adapter": "surgeon.verbs.export_gguf",
    "export_patch": "surgeon.verbs.export_patch",
    "list_methods": "surgeon.verbs.methods",
    "list_recipes": "surgeon.verbs.recipes",
    "load_recipe": "surgeon.recipe",
    "measure_fisher": "surgeon.verbs.measure_data",
    "measure_gram": "surgeon.verbs.measure_data",
    "measure_merge": "surgeon.verbs.measure_merge",
    "measure_residual": "surgeon.verbs.measure",
    "merge": "surgeon.space.api",
    "open": "surgeon.space.api",
    "reshape": "surgeon.space.editing_api",
    "revert_patch": "surgeon.verbs.patch",
} | {
    verb: f"surgeon.verbs.{verb}"
    for verb in (
        *(
            "apply",
            "apply_to",
            "check",
            "convert",
            "diff",
            "doctor",
            "find",
            "greedy_soup",
            "import_gguf",
            "load",
            "plan",
        ),
        *("publish", "push_weights", "reproduce", "schema", "show", "sign", "tune", "verify"),
    )
}

__all__ = [
    "BudgetError", "CheckpointError", "DataFit", "Direction", "Expr", "Fault", "Fit", "MismatchError", "Origin",
    "OutputError", "Progress", "RecipeError", "RefusedError", "RunError", "SurgeonError", "VerificationError",
    "__version__", "apply", "apply_patch", "apply_to", "check", "convert", "copy_recipe", "diff", "doctor",
    "dump_recipe", "edit", "export_adapter", "export_control_vector", "export_gguf", "export_gguf_adapter",
    "export_patch", "find", "greedy_soup", "import_gguf", "list_methods", "list_recipes", "load", "load_recipe",
    "measure_fisher", "measure_gram", "measure_merge", "measure_residual", "merge", "open", "plan", "publish",
    "push_weights", "reproduce", "reshape", "revert_patch", "schema", "show", "sign", "tune", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'surgeon' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
