"""Which texts are about the same thing: one question under two instructions is one topic."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

#: Scripts written without spaces count by the character.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")

#: Two texts are of one topic when this share of what is particular to the shorter one is in the other.
_SHARED = 0.75

#: Words of more texts than this do not make two texts worth comparing.
_COMMON = 32


def topics(texts: Sequence[str]) -> list[list[int]]:
    """Groups of texts, by number, that share nearly all words that are not common to the whole.

    Rare words weigh by the cube of their information, so that a template of many words does not outweigh the one word
    that is put into it.
    """
    words = [frozenset(_WORD.findall(text.casefold())) for text in texts]
    count = Counter(word for text in words for word in text)
    weight = {word: math.log((len(texts) + 1) / number) ** 3 for word, number in count.items()}
    total = [sum(weight[word] for word in sorted(text)) for text in words]
    parent = list(range(len(texts)))

    def root(text: int) -> int:
        while parent[text] != text:
            parent[text] = text = parent[parent[text]]
        return text

    for left, right in _candidates(words, count):
        shared = sum(weight[word] for word in sorted(words[left] & words[right]))
        if shared >= _SHARED * min(total[left], total[right]):
            parent[root(left)] = root(right)
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for text in range(len(texts)):
        groups[root(text)].append(text)
    return list(groups.values())


def _candidates(words: Sequence[frozenset[str]], count: Counter[str]) -> Iterator[tuple[int, int]]:
    """Pairs that share a word few texts have, and texts with the very same words."""
    having: defaultdict[object, list[int]] = defaultdict(list)
    for text, held in enumerate(words):
        having[held].append(text)
        for word in held:
            if count[word] <= _COMMON:
                having[word].append(text)
    for key, texts in having.items():
        yield from combinations(texts, 2) if isinstance(key, str) else pairwise(texts)
