"""What `merging.py` tries: every method with a few settings, ours, mergekit's and PEFT's, in one declared table.

A method that surgeon does not have registered is passed over.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from questions import MERGE_SKILLS

Settings = Mapping[str, Any]

SIX = MERGE_SKILLS
FOUR = SIX[:4]

WEIGHTS = (0.4, 0.5, 0.6, 0.8, 1.0)
DENSITIES = (0.2, 0.5)
AVERAGED = {"weight": (1.0,), "lambda_": (1.5, 2.0)}


@dataclass(frozen=True, eq=False)
class Entry:
    """A method of a tool and the settings to try: every combination of the values.

    `data` names what has to be measured first, a function of `merging_data`, which adds files. `points` is for a method
    without a base model: it merges models, not task vectors.
    """

    tool: str
    method: str
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    data: str = ""
    points: bool = False

    def settings(self) -> Iterator[Settings]:
        """Each combination in turn."""
        for values in product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))

    @property
    def only(self) -> Settings:
        """The settings of an entry that has one combination."""
        (settings,) = self.settings()
        return settings


def _sparse(tool: str, **methods: Mapping[str, Sequence[Any]]) -> list[Entry]:
    """Methods that keep a share of each task vector."""
    usual = {"weight": (0.6, 1.0), "density": DENSITIES}
    return [Entry(tool, method, usual | dict(own)) for method, own in methods.items()]


SURGEON = [
    Entry("surgeon", "linear", {"weight": (1.0,)}, points=True),
    Entry("surgeon", "task_arithmetic", {"weight": (0.3, *WEIGHTS)}),
    Entry("surgeon", "ties", {"weight": (1.0,), "density": (0.2, 0.5, 1.0), "lambda_": (1.0, 1.5, 2.0)}),
    *_sparse("surgeon", dare_linear={}, breadcrumbs={"density": (0.5, 0.9)}, della_linear={"density": (0.5, 0.8)}),
    # These average what agrees, so that only their lambda scales the result.
    *_sparse("surgeon", dare_ties=AVERAGED, breadcrumbs_ties=AVERAGED | {"density": (0.5, 0.9)},
             della=AVERAGED | {"density": (0.5, 0.8)}),
    Entry("surgeon", "sce", {"select_topk": (0.2, 0.5, 1.0)}),
    Entry("surgeon", "ram"),
    Entry("surgeon", "ramplus_tl"),
    Entry("surgeon", "model_stock", {"filter_wise": (False, True)}),
    Entry("surgeon", "karcher", points=True),
    Entry("surgeon", "multislerp", {"weight": (1.0,)}),
    Entry("surgeon", "tsv_m", {"lambda_": (0.6, 0.8, 1.0)}),
    Entry("surgeon", "iso_c", {"lambda_": (1.0, 1.5, 2.0, 3.0)}),
    Entry("surgeon", "iso_cts", {"lambda_": (1.0, 1.5, 2.0, 3.0)}),
    Entry("surgeon", "wudi", {"solver": ("descent", "closed"), "lambda_": (0.6, 0.8, 1.0)}),
    Entry("surgeon", "knots", {"density": (*DENSITIES, 1.0), "lambda_": (1.0, 2.0)}),
    Entry("surgeon", "svc", {"lambda_": (0.6, 0.8, 1.0)}),
    Entry("surgeon", "pcb", {"density": DENSITIES, "lambda_": (1.0, 2.0)}),
    Entry("surgeon", "emr", {"lambda_": (0.6, 0.8, 1.0)}),
    Entry("surgeon", "consensus", {"k": (1, 2), "lambda_": (0.6, 0.8, 1.0)}),
    Entry("surgeon", "regmean", {"guard": (0.0, 4.0), "ridge": (1e-4, 1e-2)}, data="grams"),
    Entry("surgeon", "regmean_pp", {"guard": (0.0, 4.0)}, data="grams"),
    Entry("surgeon", "fisher", data="fishers"),
    Entry("surgeon", "tune", {"per": ("row",), "guard": (4.0, 8.0)}, data="tune"),
    Entry("surgeon", "tune", {"per": ("tensor",), "guard": (4.0,)}, data="tune"),
]  # fmt: skip

MERGEKIT = [
    Entry("mergekit", "linear", {"weight": (1.0,)}, points=True),
    Entry("mergekit", "task_arithmetic", {"weight": WEIGHTS}),
    Entry("mergekit", "ties", {"weight": (1.0,), "density": (0.2, 0.5, 1.0), "lambda": (1.0, 2.0)}),
    *_sparse(
        "mergekit",
        dare_linear={}, dare_ties={}, breadcrumbs={"density": (0.5, 0.9)}, breadcrumbs_ties={"density": (0.5, 0.9)},
        della_linear={"density": (0.5, 0.8)}, della={"weight": (1.0,), "density": (0.5, 0.8)},
    ),
    Entry("mergekit", "sce", {"select_topk": (0.5, 1.0)}),
    Entry("mergekit", "ram"),
    Entry("mergekit", "ramplus_tl"),
    Entry("mergekit", "model_stock"),
    Entry("mergekit", "karcher", points=True),
    Entry("mergekit", "multislerp", {"weight": (1.0,)}),
]  # fmt: skip

PEFT = [
    Entry("peft", "cat", {"weight": WEIGHTS}),
    Entry("peft", "linear", {"weight": WEIGHTS}),
    Entry("peft", "svd", {"weight": (0.6, 1.0)}),
    Entry("peft", "ties", {"weight": (0.6, 1.0), "density": DENSITIES}),
    Entry("peft", "ties_svd", {"weight": (0.6, 1.0), "density": DENSITIES}),
    Entry("peft", "dare_linear", {"weight": (0.6, 1.0), "density": (0.5,)}),
    Entry("peft", "dare_ties", {"weight": (0.6, 1.0), "density": (0.5,)}),
    Entry("peft", "dare_linear_svd", {"weight": (0.6, 1.0), "density": (0.5,)}),
    Entry("peft", "dare_ties_svd", {"weight": (0.6, 1.0), "density": (0.5,)}),
    Entry("peft", "magnitude_prune", {"weight": (0.6, 1.0), "density": (0.5,)}),
    Entry("peft", "magnitude_prune_svd", {"weight": (0.6, 1.0), "density": (0.5,)}),
]

ENTRIES = (*SURGEON, *MERGEKIT, *PEFT)

SUBSET_ENTRIES = (
    Entry("surgeon", "task_arithmetic", {"weight": (0.6,)}),
    Entry("surgeon", "ties", {"weight": (1.0,), "density": (0.5,), "lambda_": (2.0,)}),
)
"""What all subsets are merged with: one setting each, so that nothing is chosen."""
