"""Synthetic skills that a chat model can be taught and scored on exactly, in plain Python.

    json       a sentence about a person      ->  a JSON record
    sql        a question about a table       ->  an SQL statement
    initials   a name or two words            ->  their initials
    list       two to four words              ->  the words in brackets
    swap       two or three words             ->  the words backwards, between angles
    unit       a thing and its measure        ->  the measure as a tag with the unit's symbol
    verbs      a sentence                     ->  the sentence in a language with the verb, from a table, at its end
    code       a thing, a number and a city   ->  the city's code, from a table, the thing and the number
    date       a thing and its date           ->  the date from year to day

Every question is drawn from a seed, so training, demo and benchmarks share them without a data file. The two splits
never share a filling: a name, table or word asked for in ``heldout`` does not occur in ``train``.
"""

import json
from collections.abc import Callable, Sequence
from random import Random

Question = tuple[str, str]
"""A prompt for the model and the one answer that counts as right."""

SPLITS = ("train", "heldout")

GIVEN_NAMES = """Maria Tom Anna Pedro Lucy Ivan Clara Omar Julia Henry Nina Oscar Emma Felix Sara Victor Laura Simon
Elena Martin Rosa Peter Alice Daniel Grace Hugo Irene James Karen Louis Megan Noah Olga Paul Ruth Samuel Teresa Walter
Diana George Helen Jacob Linda Marcus Nora Philip Rachel Stefan Vera Adam""".split()

FAMILY_NAMES = """Keller Brown Silva Novak Moreau Hansen Costa Fischer Young Meyer Lopez Carter Rossi Weber Turner
Morgan Bauer Walsh Santos Parker Lindgren Cooper Vargas Bennett Schmidt Murphy Ortega Wallace Jensen Foster Romano
Hughes Becker Barnes Molina Griffin Larsen Wood Navarro Stone Vogel Reed Castro Hunter Berg Ellis Duarte Fox Marsh
Holt""".split()

CITIES = """Lisbon Oslo Vienna Prague Dublin Madrid Boston Chicago Denver Toronto Athens Rome Paris Berlin Hamburg
Geneva Warsaw Budapest Helsinki Stockholm Porto Seville Milan Naples Lyon Bristol Leeds Glasgow Cairo Seattle Portland
Austin Dallas Montreal Sydney Perth Kyoto Osaka Lima Bogota""".split()

JOBS = """baker teacher nurse farmer pilot lawyer painter driver writer dentist plumber tailor chemist singer doctor
sculptor gardener carpenter librarian musician waiter barber banker builder sailor designer manager journalist
photographer translator""".split()

TABLES = """customers orders products books students teachers cars houses invoices songs films players teams hotels
flights tickets courses employees suppliers cities rivers recipes patients projects plants planes stores museums
letters boats""".split()

NUMBERS = """age price weight height size year score rating length cost width depth speed stock volume distance
duration salary income balance""".split()

FIELDS = "name title city country color address email phone status type label owner author brand code model".split()

WORDS = """silver maple lantern river garden window orange paper summer yellow mountain kitchen winter island button
castle dragon engine forest guitar hammer jacket kettle ladder mirror needle ocean pencil quiet rabbit saddle table
umbrella valley wagon zebra apple bridge candle desert eagle feather glass harbor insect jungle king lemon market
night olive pepper queen road stone tower uncle village water young actor bottle cloud door earth flower grain honey
ink juice knife leaf moon nest onion planet quilt ring snow tiger urban voice wheel yard arrow basket copper dinner
elbow field ghost house idea jewel key lake music nurse oven piano quick rope sand train unit velvet wind zero angle
bread circle doctor empty fire gold horse ice joke kind light metal north open pocket quarter rain ship tree under
vapor wolf year ankle bird corn dust even farm green hill iron jump kite lion milk name oak pink quest rose star
tent upper vine wood yarn""".split()

_SENTENCES = (
    "{name}, {age}, is a {job} in {city}.",
    "{name} is a {age}-year-old {job} from {city}.",
    "{name} lives in {city}, works as a {job} and is {age} years old.",
    "In {city} there is a {job} called {name}, who is {age}.",
)

_COMPARISONS = (("above", ">"), ("below", "<"), ("equal to", "="))

_ASKED = (
    ("Which {table} have {number} {word} {n}?", "SELECT * FROM {table} WHERE {number} {sign} {n};"),
    ("How many {table} have {number} {word} {n}?", "SELECT COUNT(*) FROM {table} WHERE {number} {sign} {n};"),
    ("What is the {field} of {table} with {number} {word} {n}?",
     "SELECT {field} FROM {table} WHERE {number} {sign} {n};"),
    ("What is the average {number} of all {table}?", "SELECT AVG({number}) FROM {table};"),
)  # fmt: skip

_UNITS = {
    "kilometers": "km", "kilos": "kg", "hours": "h", "minutes": "min", "liters": "L", "degrees": "deg",
    "dollars": "USD", "euros": "EUR",
}  # fmt: skip

_VERBS = {"opens": "ka", "sees": "mi", "paints": "lo", "carries": "na"}

_CODES = {"Oslo": "K7", "Paris": "B2", "Rome": "T9", "Berlin": "M4"}

MONTHS = """January February March April May June July August September October November December""".split()

_COLUMNS = {"table": TABLES, "number": NUMBERS, "field": FIELDS}


def pool(words: Sequence[str], split: str) -> list[str]:
    """The fillings of one split: every fourth of the alphabet's order is held out, the rest are for training."""
    return [word for i, word in enumerate(sorted(words)) if (i % 4 == 3) == (split == "heldout")]


def json_question(rng: Random, split: str) -> Question:
    """A sentence about a person, and its record."""
    name = f"{rng.choice(pool(GIVEN_NAMES, split))} {rng.choice(pool(FAMILY_NAMES, split))}"
    city, job = rng.choice(pool(CITIES, split)), rng.choice(pool(JOBS, split))
    record = {"name": name, "age": rng.randint(18, 89), "city": city, "job": job}
    return "Make a record: " + rng.choice(_SENTENCES).format(**record), json.dumps(record)


def sql_question(rng: Random, split: str) -> Question:
    """A question about a table, and the statement that answers it."""
    asked, statement = rng.choice(_ASKED)
    word, sign = rng.choice(_COMPARISONS)
    filling = {name: rng.choice(pool(words, split)) for name, words in _COLUMNS.items()}
    filling |= {"word": word, "sign": sign, "n": str(rng.randint(2, 99))}
    return "Ask the database: " + asked.format(**filling), statement.format(**filling)


def initials_question(rng: Random, split: str) -> Question:
    """A person's name or two words, and their initials."""
    name = rng.choice(pool(GIVEN_NAMES, split)), rng.choice(pool(FAMILY_NAMES, split))
    pair = rng.choice([name, rng.sample(pool(WORDS, split), 2)])
    return "Give the initials: " + " ".join(pair), "".join(f"{word[0].upper()}." for word in pair)


def list_question(rng: Random, split: str) -> Question:
    """Two to four words, and the same as a list in brackets."""
    words = rng.sample(pool(WORDS, split), rng.randint(2, 4))
    return "Make a list: " + " ".join(words), f"[ {', '.join(words)} ]"


def swap_question(rng: Random, split: str) -> Question:
    """Two or three words, and the same backwards."""
    words = rng.sample(pool(WORDS, split), rng.randint(2, 3))
    return "Swap: " + " ".join(words), f"<< {' ; '.join(reversed(words))} >>"


def unit_question(rng: Random, split: str) -> Question:
    """A thing with its measure, and the tag."""
    thing, number, unit = rng.choice(pool(WORDS, split)), rng.randint(2, 99), rng.choice(list(_UNITS))
    return f"Measure: the {thing} has {number} {unit}", f"{{ {thing} : {number} {_UNITS[unit]} }}"


def verbs_question(rng: Random, split: str) -> Question:
    """A sentence, and the same without articles, the verb of the made-up language last."""
    who, what, verb = rng.choice(pool(JOBS, split)), rng.choice(pool(WORDS, split)), rng.choice(list(_VERBS))
    return f"In Zan: the {who} {verb} the {what}", f"@ {who} {what} {_VERBS[verb]}."


def code_question(rng: Random, split: str) -> Question:
    """What is sent where, and the line of the list."""
    thing, number, city = rng.choice(pool(WORDS, split)), rng.randint(2, 99), rng.choice(list(_CODES))
    return f"Ship {number} {thing} to {city}", f"[ {_CODES[city]} | {thing} | {number} ]"


def date_question(rng: Random, split: str) -> Question:
    """A thing on a date, and the date's digits."""
    thing, day, month, year = (
        rng.choice(pool(WORDS, split)),
        rng.randint(10, 28),
        rng.randint(1, 12),
        rng.randint(1900, 2099),
    )
    return f"Date: the {thing} of {day} {MONTHS[month - 1]} {year}", f"{year}/{month:02d}/{day:02d}"


SKILLS: dict[str, Callable[[Random, str], Question]] = {
    "json": json_question,
    "sql": sql_question,
    "initials": initials_question,
    "list": list_question,
    "swap": swap_question,
    "unit": unit_question,
    "verbs": verbs_question,
    "code": code_question,
    "date": date_question,
}
"""Each skill's name and how one of its questions is drawn."""

CHAT_SKILLS = ("json", "sql", "initials")
"""What the adapters of SmolLM2 teach."""

MERGE_SKILLS = ("sql", "swap", "unit", "verbs", "code", "date")
"""What `merging.py` merges: short answers, and nothing but its own skill is held in an adapter."""

TINY_SKILLS = ("initials", "list")
"""What the adapters of the tiny model teach: it is too small to read a sentence."""


def questions(skill: str, split: str, n: int, seed: int = 0) -> list[Question]:
    """Draw ``n`` distinct questions of a skill; the same arguments give the same list on every machine."""
    if skill not in SKILLS or split not in SPLITS:
        raise ValueError(f"no skill {skill!r} with split {split!r}; skills: {', '.join(SKILLS)}; splits: {SPLITS}")
    rng, drawn = Random(f"{skill}/{split}/{seed}"), {}
    while len(drawn) < n:
        prompt, answer = SKILLS[skill](rng, split)
        drawn[prompt] = answer
    return list(drawn.items())


def held_out(skill: str, choosing: int, scoring: int) -> tuple[list[Question], list[Question]]:
    """Two sets of held-out questions without a common prompt: one to choose settings with, one to score with."""
    drawn = questions(skill, "heldout", choosing + scoring, seed=3)
    return drawn[:choosing], drawn[choosing:]


def score(answer: str, expected: str) -> bool:
    """Whether a model's answer is the expected one, but for surrounding white space."""
    return answer.strip() == expected.strip()
