"""Publishing to a Hub on loopback: what is sent, copied, resumed, tried again, and never told."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

import surgeon
from surgeon.artifacts.direction import direction
from surgeon.testing.toys import toy_llama
from tests.support.fake_hub import Hub, serving

ROOT = Path(__file__).parents[2]
COMMIT, TOKEN = "c0ffee" + "0" * 34, "hf_neverTellThisOne"
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "vocab_size": 512}
CARD = {"license": "apache-2.0", "language": ["en"]}


def run(*arguments, home, hub=None, **more):
    """The command line in a process of its own, which knows of this Hub alone."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}", "HF_HOME": str(home / "hf")}
    env |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*", "HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    env |= {"HF_ENDPOINT": hub.url} if hub is not None else {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "surgeon_cli", *map(str, arguments)]
    done = subprocess.run(command, env=env | more, capture_output=True, text=True, check=False, cwd=home)
    assert TOKEN not in done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base of ten shards in the Hub's cache, and what is made of it: three shards changed."""
    home = tmp_path_factory.mktemp("home")
    entry = home / "hf/hub/models--org--base"
    snapshot = toy_llama(entry / "snapshots" / COMMIT, 0, shards=10, **WIDE)
    (entry / "refs").mkdir()
    (entry / "refs/main").write_text(COMMIT)
    direction(torch.randn(1, 128, generator=torch.Generator().manual_seed(3)), at="block.0").save(
        home / "d.safetensors"
    )
    (home / "recipe.yaml").write_text(
        f"surgeon: 1\nmodels: {{base: org/base@{COMMIT}}}\ndirections: {{d: ./d.safetensors}}\n"
        "steps:\n  edited: {edit: ablate, of: base, directions: [d], writers: attention}\n"
    )
    done = run("apply", home / "recipe.yaml", "-o", home / "out", home=home)
    assert done.returncode == 0, done.stderr
    return home, snapshot


@pytest.fixture
def hub(made):
    _, snapshot = made
    found = Hub()
    found.add("org/base", COMMIT, {path.name: path.read_bytes() for path in snapshot.iterdir()}, CARD)
    with serving(found):
        yield found


def published(hub, home, *more, out="out", code=0):
    done = run("publish", home / out, "me/result", "--json", *more, home=home, hub=hub)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def test_three_of_ten_shards_are_sent_and_told_before(made, hub):
    home, snapshot = made
    before = {path: path.read_bytes() for path in (home / "out").rglob("*") if path.is_file()}
    told = published(hub, home, "--dry-run")
    assert not [line for line in hub.requests if line.startswith(("PUT", "POST"))]
    shards = sorted(path.name for path in snapshot.glob("*.safetensors"))
    changed = [name for name in shards if (home / "out" / name).read_bytes() != (snapshot / name).read_bytes()]
    assert len(changed) == 3
    assert [name for name in told["sent"] if name in shards] == changed
    assert sorted(told["copied"]) == sorted(set(shards) - set(changed))
    found = published(hub, home)
    assert found["upload_bytes"] == told["upload_bytes"]
    assert hub.received == pytest.approx(told["upload_bytes"], rel=0.01)
    assert sorted(hub.puts) == sorted([(home / "out" / name).stat().st_size for name in changed]
                                      + [(home / "out/surgeon/d.safetensors").stat().st_size])  # fmt: skip
    assert sorted(hub.copied) == sorted(told["copied"])
    there = hub.repos["me/result"]
    assert there.keys() == {path.relative_to(home / "out").as_posix() for path in before}
    assert all(
        there[path.relative_to(home / "out").as_posix()] == data
        for path, data in before.items()
        if path.name != "README.md"
    )
    assert {path: path.read_bytes() for path in (home / "out").rglob("*") if path.is_file()} == before
    assert hub.tokens >= {f"Bearer {TOKEN}"}
    assert not [name for name, data in there.items() if TOKEN.encode() in data]


def test_the_card_says_what_it_is_and_what_was_proven(made, hub):
    home, _ = made
    published(hub, home)
    card = ModelCard(hub.repos["me/result"]["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert card.data.base_model in ("org/base", ["org/base"])
    assert card.data.base_model_relation == "finetune"
    assert "| Verdict | proven |" in card.text
    assert "| Tensors with a direction removed | 3 |" in card.text
    assert "edit: ablate" in card.text


def test_an_interrupted_publication_goes_on(made, hub):
    home, _ = made
    hub.fails = [("PUT /store/", 403, "no more room")]
    hub.answer, first = _after(hub, 2), hub.answer
    said = published(hub, home, code=1)
    assert "run the same command again" in said
    sent = list(hub.puts)
    assert len(sent) == 2
    assert "me/result" in hub.repos and not hub.repos["me/result"]
    hub.answer, hub.fails = first, []
    published(hub, home)
    assert len(hub.puts) == 4
    assert len([name for name in hub.repos["me/result"] if name.startswith("model-")]) == 10
    requests = len(hub.puts)
    published(hub, home)
    assert len(hub.puts) == requests


def _after(hub, count):
    """Answers as the hub does, but that its failures begin after so many uploads."""
    plain, held, hub.fails = hub.answer, hub.fails, []

    def answer(method, path, raw):
        if len(hub.puts) >= count and method == "PUT":
            hub.fails = list(held)
        return plain(method, path, raw)

    return answer


def test_a_server_that_fails_for_a_moment_is_asked_again(made, hub):
    home, _ = made
    hub.fails = [
        ("POST /api/repos/create", 500, "oops"),
        ("/commit/", 503, "busy"),
        ("GET /api/models/me", 502, "oops"),
    ]
    published(hub, home)
    assert not hub.fails
    assert len([line for line in hub.requests if "/commit/" in line]) == 2


def test_a_refusal_is_told_without_the_token(made, hub):
    home, _ = made
    hub.fails = [("/commit/", 401, f"the token {TOKEN} may not write here")]
    said = published(hub, home, code=2)
    assert "the token ••• may not write here" in said
    assert "hf auth login" in said


def test_weights_that_were_there_before_are_removed(made, hub):
    home, _ = made
    hub.add("me/result", "1" * 40, {"model.safetensors": b"old", "notes.txt": b"kept"}, {})
    published(hub, home)
    assert "model.safetensors" not in hub.repos["me/result"]
    assert hub.repos["me/result"]["notes.txt"] == b"kept"


def test_without_copies_everything_is_sent(made, hub):
    home, _ = made
    told = published(hub, home, "--no-copies")
    assert told["copied"] == {}
    assert len(hub.puts) == 11
    assert hub.received == pytest.approx(told["upload_bytes"], rel=0.01)


def test_what_is_not_proven_is_not_published(made, hub, tmp_path):
    home, _ = made
    out = shutil.copytree(home / "out", home / f"broken{tmp_path.name}")
    (out / "config.json").write_text("{}")
    assert "is not published" in published(hub, home, out=out.name, code=3)
    assert "me/result" not in hub.repos


def test_licences_that_leave_it_open_are_told(made, hub, tmp_path):
    """A local fine-tune without a card: refused by name, and published once it is said under what."""
    home, snapshot = made
    tuned = tmp_path / "tuned"
    toy_llama(tuned, 1, base=snapshot, **WIDE)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"surgeon: 1\nmodels: {{base: org/base@{COMMIT}, tuned: {tuned}}}\n"
        "steps:\n  mean: {combine: 0.5*base + 0.5*tuned}\n"
    )
    assert run("apply", recipe, "-o", home / tmp_path.name, home=home).returncode == 0
    assert "tuned names no licence" in published(hub, home, "--dry-run", out=tmp_path.name, code=2)
    (tuned / "README.md").write_text("---\nlicense: gpl-3.0\n---\n")
    told = published(hub, home, "--dry-run", out=tmp_path.name)
    assert told["licence"] == "gpl-3.0"
    assert any("binds the whole result" in note for note in told["notes"])
    assert any(str(tuned) in note for note in told["notes"])
    assert published(hub, home, "--dry-run", "--licence", "mit", out=tmp_path.name)["licence"] == "mit"


def test_a_name_that_is_none_is_refused(made):
    with pytest.raises(surgeon.RefusedError, match="names no model on the Hub"):
        surgeon.publish(made[0] / "out", "a/b/c")
