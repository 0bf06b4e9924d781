"""The report of a direction: whole in one file, safe with any text, plain about what it shows."""

import base64
import io
import math
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from surgeon.errors import RefusedError
from surgeon.measuring import page, plots

BAD = "</td><img src=x onerror='go()'>\"&amp;$name ${lead} <script>go()</script>"
HALF = "\ud83d"
VOID = {"meta", "img", "br", "source"}


def trial(words="attention of blocks 1..3", strength=1.5, **more):
    plain = {"layers": "1..3", "writers": ["attention"], "at": "own", "nats": 5.1, "kl": 0.0042, "rate": 0.02}
    return {"words": words, "strength": strength} | plain | more


def rate(count, n, low, high):
    return {"rate": count / n, "low": low, "high": high, "count": count, "n": n}


def made(blocks=4, text=lambda plain: plain):
    """A report of a model of so many blocks, every text of it passed through `text`."""
    points = ["embed"] + [f"block.{i}{end}" for i in range(blocks) for end in (".mid", "")]
    some = [math.sin(k) / 4 + 0.7 for k in range(len(points))]
    chosen = trial(text("attention of blocks 1..3"))
    return {
        "name": text("answer-language"),
        "model": {"ref": text("./model"), "fingerprint": text("abc")},
        "counts": {"positive": 102, "negative": 101, "held_out_positive": 26, "held_out_negative": 25, "neutral": 48},
        "manner": {"how": text("the model's own answers"), "tells_apart": 0.98},
        "separation": [
            {"point": point, "auroc": value, "shuffled": 0.5, "random": 0.6}
            for point, value in zip(points, some, strict=True)
        ],
        "drift": {
            "points": points,
            "cosine": [[math.cos(a - b) for a in range(len(points))] for b in range(len(points))],
        },
        "guard": {"sink": True, "components": 16, "removed": {text("block.0"): 0.1, text("block.1"): 0.4}},
        "effects": [
            {"block": i, "part": part, "nats": math.sin(i)} for i in range(blocks) for part in ("attention", "mlp")
        ],
        "tried": [trial(text("all writers"), 1.0, layers=None, writers="all", rate=None), chosen],
        "chosen": chosen | {"why": text("It costs least.")},
        "dose": [
            {"strength": s, "nats": -3.0 * s, "kl": 0.004 * s * s, "rate": 1 / (1 + s + 2), "rate_negative": 0.02}
            for s in (2.0, -2.0, 0.0, 1.0)
        ],
        "rates": {
            "before": rate(23, 26, 0.71, 0.96),
            "after": rate(0, 26, 0, 0.13),
            "strengthened": rate(14, 26, 0.35, 0.71) | {"strength": -2.0},
        },
        "kl": {"chats_and_text": 0.0042},
        "warnings": [text("one coordinate is large")],
        "answers": [{"prompt": text(f"p{i}"), "before": text(f"b{i}"), "after": text(f"a{i}")} for i in range(8)],
        "seconds": {text("statistics"): 12.34},
    }


class Read(HTMLParser):
    """The tags with their attributes, and the text outside style."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.pieces = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.pieces.append(data)


def html(report):
    """The page without the cost of drawing."""
    nothing = dict.fromkeys(plots.NAMES, b"png")
    return page.page(report, nothing, nothing)


def words(report):
    return " ".join(" ".join(Read(html(report)).pieces).replace("\u00a0", " ").split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("found") / "new"
    page.write_report(made(30, lambda plain: plain + HALF), folder)
    return folder


def test_the_page_needs_nothing_else(folder):
    source = (folder / "report.html").read_text(encoding="utf-8")
    read = Read(source)
    assert read.open == []
    links = [
        attrs[key] for _, attrs in read.tags for key in ("src", "srcset", "href", "data", "poster") if key in attrs
    ]
    assert len(links) == 2 * len(plots.NAMES)
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in read.tags}
    assert "url(" not in source and "@import" not in source
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in read.tags
    assert "prefers-color-scheme: dark" in source


def test_the_page_holds_the_plots_of_the_folder(folder):
    images = [attrs for tag, attrs in Read((folder / "report.html").read_text(encoding="utf-8")).tags if tag == "img"]
    held = [base64.b64decode(image["src"].partition(",")[2]) for image in images]
    assert held == [(folder / "plots" / f"{name}.png").read_bytes() for name in plots.NAMES]
    assert all(image["alt"] for image in images)


def test_no_text_becomes_markup():
    """The tags do not depend on what prompts, answers, names and rules hold, and each text stands there as it is."""
    plain, bad = Read(html(made())), Read(html(made(text=lambda plain: plain + BAD)))
    assert bad.tags == plain.tags
    text = "".join(bad.pieces)
    assert text.replace(BAD, "") == "".join(plain.pieces)
    for part in (
        "answer-language",
        "./model",
        "abc",
        "own answers",
        "all writers",
        "least.",
        "large",
        "p7",
        "b7",
        "a7",
    ):
        assert part + BAD in text


def test_half_a_character_is_replaced(folder):
    assert "answer-language?" in (folder / "report.html").read_text(encoding="utf-8")


def test_order_and_numbers():
    text = words(made())
    order = [
        "from 102 positive and 101 negative prompts", "26 + 25 held-out", "The recipe edits attention of blocks 1..3",
        "It costs least.", "88 % → 0 %", "23 of 26; 95 % interval 71 % to 96 %", "0 of 26; 95 % interval 0 % to 13 %",
        "0.0042 nats a token", "2 % → 54 %", "one coordinate is large", "Separation", "Drift", "Effect", "Dose",
        "at most 40 %", "What was tried", "← chosen", "What the model says",
        "surgeon apply recipe.yaml -o out/ surgeon verify out/", "What this does not show",
        "linear predictors may still read it", "none but this one was tested", "12.3 s",
    ]  # fmt: skip
    places = [text.find(part) for part in order]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize("listed", [True, False])
def test_the_chosen_scope_is_marked_once(listed):
    report = made()
    if not listed:
        report["tried"] = report["tried"][:1]
    assert words(report).count("attention of blocks 1..3 ← chosen 1.5 5.1 0.0042 2 %") == 1
    assert "all writers 1 5.1 0.0042 –" in words(report)
    assert [attrs for tag, attrs in Read(html(report)).tags if tag == "tr"].count({"class": "chosen"}) == 1


@pytest.mark.parametrize(
    ("strength", "said"),
    [
        (0, "leaves everything"), (-2.0, "3 times as large"), (0.25, "leaves 0.75"), (1.0, "it leaves nothing"),
        (1.5, "round, at 0.5 of"), (2.0, "is a reflection"), (2.0, "removes nothing"), (3.25, "round, at 2.25 of"),
    ],
)  # fmt: skip
def test_what_a_strength_does(strength, said):
    assert said in page.strength_means(strength)


def test_a_reflection_is_called_so():
    report = made()
    report["tried"].append(trial("one writer", 2.0))
    report["chosen"] |= trial("one writer", 2.0)
    text = words(report)
    assert "at strength 2. That is a reflection" in text
    assert "one writer ← chosen 2 (reflection)" in text
    assert "That nothing along the direction is written: strength 2 is a reflection" in text


def test_claims_follow_the_scope():
    """Only an everywhere ablation at strength 1 leaves nothing in the stream."""
    own, everywhere = made(), made()
    everywhere["chosen"] |= trial(layers=None, writers="all", at="block.2", strength=1.0)
    assert "residual stream holds none of it" in words(own)
    assert "residual stream holds none of it" not in words(everywhere)
    assert "nothing along the direction is written" not in words(everywhere)


def test_what_is_missing_is_said():
    report = made() | {"guard": None, "warnings": [], "answers": []}
    report["rates"] |= {"strengthened": None}
    text = words(report)
    assert "No guard" in text and "None were kept" in text
    assert "Warnings" not in text and "strengthened" not in text
    assert "No negative strength that was tried strengthens the manner" in text


def test_strengthening_that_fails_is_said():
    report = made()
    assert "not clearly raise" not in words(report)
    report["rates"]["strengthened"] |= {"low": 0.01}
    assert "not clearly raise" in words(report)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0, "0"),
        (-0.0, "0"),
        (2.0, "2"),
        (-2.5, "−2.5"),
        (0.00421, "0.0042"),
        (3e-7, "under 0.0001"),
    ],
)
def test_numbers(value, text):
    assert page.number(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0, "0 %"), (0.885, "88 %"), (0.004, "0.4 %"), (1, "100 %")])
def test_shares(value, text):
    assert page.percent(value).replace("\u00a0", " ") == text


@pytest.fixture(scope="module")
def drawn():
    return plots.draw(made())


def pixels(png):
    from matplotlib.image import imread

    return imread(io.BytesIO(png))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("blocks", [1, 30, 100])
def test_nothing_is_cut_off(blocks, dark):
    """What is drawn ends before the edge, at twice the pixels of a phone or half a desktop."""
    for png in plots.draw(made(blocks), dark=dark).values():
        image = pixels(png)
        assert image.shape[1] >= 1000
        assert (image[[0, -1]] == image[0, 0]).all() and (image[:, [0, -1]] == image[0, 0]).all()
        assert (image[0, 0][:3].mean() < 0.3) == dark


CHANGES = {
    "separation": ("separation", lambda report: report["separation"][3].update(shuffled=0.8)),
    "drift": ("drift", lambda report: report["drift"]["cosine"][2].__setitem__(5, 0.9)),
    "effect": ("effects", lambda report: report["effects"][1].update(nats=2.0)),
    "scope": ("effects", lambda report: report["chosen"].update(layers="0..2")),
    "kl": ("dose", lambda report: report["dose"][0].update(kl=0.9)),
    "nats": ("dose", lambda report: report["dose"][0].update(nats=-9.0)),
    "rate": ("dose", lambda report: report["dose"][0].update(rate=0.9)),
    "rate_negative": ("dose", lambda report: report["dose"][0].update(rate_negative=0.9)),
    "strength": ("dose", lambda report: report["chosen"].update(strength=0.5)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_plot_shows_its_own_numbers(what, drawn):
    """A number changes the plot that shows it and no other."""
    report = made()
    name, change = CHANGES[what]
    change(report)
    after = plots.draw(report)
    assert [other for other in plots.NAMES if after[other] != drawn[other]] == [name]


def test_what_was_not_measured_is_a_gap(drawn):
    report = made()
    for row in report["dose"]:
        row["rate"] = None
    report["separation"][1]["auroc"] = None
    after = plots.draw(report)
    assert pixels(after["dose"]).shape[0] < pixels(drawn["dose"]).shape[0]
    assert after["separation"] != drawn["separation"]


@pytest.mark.parametrize(
    ("layers", "writers", "part", "block", "edited"),
    [
        ("1..3", ["attention"], "attention", 1, True), ("1..3", ["attention"], "attention", 3, False),
        ("1..3", ["attention"], "mlp", 2, False), ("1..3", "all", "mlp", 2, True), (None, ["mlp"], "mlp", 9, True),
    ],
)  # fmt: skip
def test_which_writers_are_marked(layers, writers, part, block, edited):
    assert plots.edits({"layers": layers, "writers": writers}, part, block) is edited


def test_a_users_settings_of_matplotlib_are_left_alone(drawn):
    """And the same numbers give the same bytes, whatever they are."""
    import matplotlib

    with matplotlib.rc_context({"xtick.labelsize": 31, "lines.marker": "x"}):
        settings = dict(matplotlib.rcParams)
        odd = plots.draw(made())
        assert dict(matplotlib.rcParams) == settings
    assert odd == drawn


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RefusedError, match=r"pip install 'model-surgeon\[report\]'"):
        page.write_report(made(), tmp_path / "found")
    assert not (tmp_path / "found").exists()


def test_importing_the_page_does_not_import_matplotlib():
    code = "import sys, surgeon.measuring.page; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
