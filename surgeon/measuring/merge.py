"""Task vectors read side by side, tensor by tensor, before they are merged: one tensor of each model in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

import torch

from surgeon.anatomy.stacks import Position, positions
from surgeon.engine.values import Values
from surgeon.errors import RunError
from surgeon.measuring.configs import differences
from surgeon.measuring.interference import Interference, interference, together
from surgeon.planning.plan import Plan
from surgeon.store.checkpoint import Checkpoint
from surgeon.store.files import Files


def by_layer(
    base: Checkpoint, named: Mapping[str, Plan], note: Callable[[int, int, str], None]
) -> Mapping[str, Interference]:
    """How the models (plans in float32) lie to each other, around `base`; tensors that none changes are left out.

    RunError where a task vector is not finite.
    """
    plans = list(named.values())
    places = positions(base.tensors)
    found: dict[str, list[Interference]] = {}
    targets = [{target.name: target for target in plan.targets} for plan in plans]
    with closing(Files()) as files, torch.inference_mode():
        values = [Values.of(plan, files) for plan in plans]
        for done, (name, stored) in enumerate(base.tensors.items()):
            note(done, len(base.tensors), name)
            keys = [own[name].key for own in targets if name in own]
            moved = any(plan.steps[key].stored != stored for plan, key in zip(plans, keys, strict=True))
            if stored.spec.is_float and moved:
                start = values[0].whole_of(stored)
                vectors = torch.stack([value.whole(key) - start for value, key in zip(values, keys, strict=True)])
                for model, vector in zip(named, vectors, strict=True):
                    if not vector.isfinite().all():
                        raise RunError(f"{name} of {model} holds NaN or infinity", hint="repair that file")
                if vectors.any():
                    layer = _layer(places.get(name))
                    found.setdefault(layer, []).append(interference(vectors))
    return {layer: together(parts) for layer, parts in found.items()}


def _layer(position: Position | None) -> str:
    if position is None:
        return "elsewhere"
    return str(position.index) if position.place == "layer" else position.place


def side_differences(base: Checkpoint, models: Mapping[str, Checkpoint]) -> tuple[str, ...]:
    """What differs between the config and tokenizer files of the base and of the models, a line each."""
    found = []
    for name, model in models.items():
        found += [
            f"{name}: config {path}: {one!r} → {other!r}"
            for path, (one, other) in differences(base.config, model.config)
        ]
        for file in ("tokenizer.json", "chat_template.jinja"):
            one, other = (side.root / file for side in (base, model))
            if one.is_file() and other.is_file() and one.read_bytes() != other.read_bytes():
                found.append(f"{name}: another {file} than the base")
    return tuple(found)
