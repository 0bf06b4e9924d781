"""Learning from two experts that conflict in some rows: rows of their own keep both, one number a model cannot."""

from pathlib import Path

import pytest
import torch

from surgeon.runtime.names import parameter_views
from surgeon.tuning.grain import free
from surgeon.tuning.learn import Pace, learn
from surgeon.tuning.lessons import Answer, Lesson, answer_logits, loss, score
from surgeon.tuning.mixture import Changes, Mixture
from tests.support.family_toys import loaded, toy

HEAD = "lm_head.weight"


@pytest.fixture
def class_(tmp_path: Path):
    """A toy, two experts' changes of its head, and their lessons.

    What the first teaches stands in the rows up to 32, the second's in those from 32 on; each has noise in the other's.
    """
    model = loaded(toy(tmp_path / "toy", "llama"))
    view, draw = parameter_views(model)[HEAD], torch.Generator().manual_seed(4)
    changes = [0.3 * torch.randn(view.shape, generator=draw) for _ in range(2)]
    base, lessons = view.clone(), []
    for number, change in enumerate(changes):
        rows = slice(0, 32) if number == 0 else slice(32, 64)
        told = torch.zeros_like(change)
        told[rows] = change[rows]
        view.copy_(base + told)
        lessons.append(Lesson(f"{number}", 0.5, *(tuple(spoken(model, 10 * number + part)) for part in (1, 2))))
    view.copy_(base)
    return model, Changes({}, {HEAD: changes}), lessons


@torch.no_grad()
def spoken(model, seed):
    for ids in torch.randint(3, 64, (32, 8), generator=torch.Generator().manual_seed(seed)).tolist():
        best = answer_logits(model, [(ids, 3)]).log_softmax(-1).topk(64)
        yield Answer(tuple(ids), best.indices, best.values)


def fresh(grain, model):
    return free(grain, {HEAD: (64, 32)}, model.anatomy, [1.0, 1.0], torch.device("cpu"))


def scores(class_, held):
    model, changes, lessons = class_
    with Mixture(model, changes, held):
        return [score(model, lesson.held) for lesson in lessons]


def learned(class_, grain, **pace):
    model, changes, lessons = class_
    held = fresh(grain, model)
    losses = learn(
        model, changes, held, lessons, Pace(**{"steps": 40, "rate": 0.1, "batch": 16, **pace}), lambda *told: None
    )
    return held, losses


def test_rows_of_their_own_keep_what_a_number_a_model_cannot(class_):
    worst = {"start": max(one.kl for one in scores(class_, fresh("row", class_[0])))}
    for grain in ("model", "row"):
        held, losses = learned(class_, grain)
        assert losses[-1] < losses[0]
        worst[grain] = max(one.kl for one in scores(class_, held))
    assert worst["row"] < 0.75 * worst["model"] < 0.6 * worst["start"]
    own = held.of(HEAD).detach().squeeze(-1)
    assert own[0, :32].mean() > own[0, 32:].mean() + 0.3
    assert own[1, 32:].mean() > own[1, :32].mean() + 0.3


def test_no_steps_give_the_start(class_):
    held, losses = learned(class_, "row", steps=0)
    assert losses == []
    assert torch.equal(held.of(HEAD), torch.ones(2, 64, 1))


def test_the_seed_decides(class_):
    one, again, other = (learned(class_, "row", steps=5, seed=seed)[0].of(HEAD) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_guard_holds_the_result_at_the_base(class_):
    model, changes, lessons = class_
    kl = {}
    guarded = tuple(spoken(model, 99))
    for weight in (0.0, 40.0):
        held = fresh("row", model)
        learn(
            model,
            changes,
            held,
            [*lessons, Lesson("base", weight, guarded, guarded)],
            Pace(30, 0.1, 16),
            lambda *told: None,
        )
        with Mixture(model, changes, held):
            kl[weight] = score(model, guarded).kl
    assert kl[40.0] < 0.3 * kl[0.0]


def test_the_expert_itself_agrees_with_itself_whatever_it_is_padded_with(class_):
    model, _, _ = class_
    answers = list(spoken(model, 3)) + [
        Answer(answer.ids[3:], answer.tokens, answer.logs) for answer in spoken(model, 3)
    ]
    assert score(model, answers[:16]).agreement == 1
    assert float(loss(model, answers[:16])) == pytest.approx(0, abs=1e-5)
    rows = [answer.row for answer in answers]
    together = answer_logits(model, rows).split([count for _, count in rows])
    for row, found in zip(rows, together, strict=True):
        torch.testing.assert_close(found, answer_logits(model, [row]), rtol=1e-4, atol=1e-4)
