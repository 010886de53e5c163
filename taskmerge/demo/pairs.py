"""Two small tasks for a text embedder, as pairs that a script makes: numbers in words, and mistyped sentences."""

from __future__ import annotations

import random

Pairs = list[tuple[str, str]]

SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
WHO = "teacher farmer pilot doctor painter sailor baker lawyer student singer miner tailor".split()
DOES = "sells finds repairs hides paints borrows counts forgets carries washes".split()
KIND = "broken golden empty heavy wooden ancient tiny frozen borrowed silver".split()
WHAT = "bicycle violin ladder lantern telescope suitcase kettle compass mirror umbrella hammer bottle".split()
WHERE = "in the harbour|behind the station|near the old mill|under the bridge|at the market|by the river".split("|")


def in_words(number: int) -> str:
    """Return the English words of a number below a million."""
    if number < 20:
        return SMALL[number]
    if number < 100:
        return TENS[number // 10 - 2] + (f" {SMALL[number % 10]}" if number % 10 else "")
    if number < 1000:
        return f"{SMALL[number // 100]} hundred" + (f" {in_words(number % 100)}" if number % 100 else "")
    return f"{in_words(number // 1000)} thousand" + (f" {in_words(number % 1000)}" if number % 1000 else "")


def mistyped(sentence: str, rng: random.Random) -> str:
    """Return the sentence with letters swapped, dropped, doubled or replaced in every word."""
    words = []
    for word in sentence.split():
        letters = list(word)
        for _ in range(1 if len(letters) < 4 else 2):
            place = rng.randrange(max(1, len(letters) - 1))
            way = rng.randrange(4)
            if way == 0 and len(letters) > 2:
                letters[place : place + 2] = letters[place : place + 2][::-1]
            elif way == 1 and len(letters) > 2:
                del letters[place]
            elif way == 2:
                letters.insert(place, letters[place])
            else:
                letters[place] = rng.choice("abcdefghijklmnopqrstuvwxyz")
        words.append("".join(letters))
    return " ".join(words)


def number_pairs(count: int, rng: random.Random) -> Pairs:
    """Return (words, digits), all different."""
    return [(in_words(number), f"{number:,}") for number in rng.sample(range(1000, 1_000_000), count)]


def typo_pairs(count: int, rng: random.Random) -> Pairs:
    """Return (mistyped, correct), all sentences different."""
    sentences: set[str] = set()
    while len(sentences) < count:
        words = (rng.choice(WHO), rng.choice(DOES), rng.choice(KIND), rng.choice(WHAT), rng.choice(WHERE))
        sentences.add("the {} {} the {} {} {}".format(*words))
    return [(mistyped(sentence, rng), sentence) for sentence in sorted(sentences)]


def splits(seed: int = 0) -> dict[str, dict[str, Pairs]]:
    """Return the pairs of both tasks, divided so that no target is in two splits.

    Args:
        seed: of the draw; 0 is what the shipped specialists were trained on.

    Returns:
        Task -> split -> pairs: `test` and `dev` of 200, `train` of 2600.
    """
    rng = random.Random(seed)
    drawn = {"numbers": number_pairs(3000, rng), "typos": typo_pairs(3000, rng)}
    for pairs in drawn.values():
        rng.shuffle(pairs)
    return {task: {"test": each[:200], "dev": each[200:400], "train": each[400:]} for task, each in drawn.items()}
