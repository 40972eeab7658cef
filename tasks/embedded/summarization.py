"""A generated summarization set: the embedded default of the summarization task.

Each text is a weather report of several sentences in random order. Its summary says in other words what temperature,
sky and wind were, where, and what tomorrow will bring:

    Flags stood out straight from their poles. Our news came from a pier. Swallows flew low. The market was full. A
    thermometer showed 8 degrees. One saw sledges everywhere.

    Cold snow and a gale on the coast. Rain tomorrow.

Every word of a summary follows from one of its report, so a model without any pretraining learns it in a minute.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

DEFAULT_SIZES = {"train": 4000, "validation": 400}

SIGHTS = {
    "rain": ("umbrellas", "puddles", "raincoats"),
    "snow": ("sledges", "shovels", "snowballs"),
    "sun": ("parasols", "sunglasses", "lizards"),
    "fog": ("foghorns", "lanterns", "headlights"),
    "hail": ("dents", "helmets", "shards"),
}
"""What the sky brings, and what one sees then."""

SEEN = ("One saw {} everywhere.", "There were {} in every street.", "People talked about {}.")
OMENS = {
    "rain": ("Swallows flew low.", "Frogs croaked.", "A ring surrounded the moon."),
    "snow": ("Geese left the lake.", "Bears looked for caves.", "Squirrels hid nuts."),
    "sun": ("The evening was red.", "Crickets sang.", "Spiders spun webs."),
    "fog": ("Dew covered the grass.", "Owls hooted.", "The sea steamed."),
    "hail": ("Dark towers rose in the west.", "Bees stayed in their hives.", "Cattle huddled."),
}
"""What it will bring tomorrow, and the signs of that."""

WINDS = {
    "calm air": ("Flags hung down.", "No leaf moved.", "Smoke went straight up."),
    "a breeze": ("Leaves rustled.", "Kites danced over the roofs.", "Washing dried quickly."),
    "a gale": ("Flags stood out straight from their poles.", "Hats rolled away.", "Branches broke off."),
    "a storm": ("Roofs lost their tiles.", "Trees fell over.", "Ferries waited in port."),
}
PLACES = {
    "on the coast": ("pier", "beach", "cliff"),
    "in the mountains": ("summit", "glacier", "ridge"),
    "in the city": ("skyscraper", "boulevard", "museum"),
    "in the valley": ("mill", "orchard", "vineyard"),
    "in the forest": ("clearing", "lodge", "trail"),
}
REPORTERS = ("The reporter wrote this at a {}.", "This is what one heard at the {}.", "Our news came from a {}.")
TEMPERATURES = {"Icy": range(1, 5), "Cold": range(5, 12), "Mild": range(12, 20), "Warm": range(20, 28)}
"""Word to degrees."""

THERMOMETERS = ("A thermometer showed {} degrees.", "It was {} degrees at noon.", "Noon brought {} degrees.")
FILLERS = ("Shops opened at nine.", "The market was full.", "Children went to school.", "Nobody was hurt.")


def generate(split: str, size: int | None = None) -> list[dict[str, str]]:
    """The examples of a split, the same in every process.

    Args:
        split: ``train`` or ``validation``; no report is in both.
        size: Number of examples; by default that of the embedded data set.

    Returns:
        Records with ``text`` and ``summary``.
    """
    rng = random.Random(split)
    found: dict[str, str] = {}
    while len(found) < (DEFAULT_SIZES[split] if size is None else size):
        text, summary = _report(rng)
        if _is_of(split, text):
            found[text] = summary
    return [{"text": text, "summary": summary} for text, summary in found.items()]


def words() -> list[str]:
    """Every word and sign that the examples are written in, in lower case and sorted: a vocabulary."""
    degrees = [str(degree) for degrees in TEMPERATURES.values() for degree in degrees]
    texts = [*FILLERS, *SEEN, *REPORTERS, *THERMOMETERS, *degrees, "and", "tomorrow"]
    for kinds in (SIGHTS, OMENS, WINDS, PLACES):
        texts += [*kinds, *(each for group in kinds.values() for each in group)]
    texts += TEMPERATURES
    return sorted({word for text in texts for word in text.lower().replace(".", " .").split() if word != "{}"})


def _report(rng: random.Random) -> tuple[str, str]:
    """A text and its summary."""

    def choose(kinds: Mapping[str, Sequence[object]], templates: Sequence[str] = ("{}",)) -> Iterator[str]:
        kind = rng.choice(list(kinds))
        yield kind
        yield rng.choice(templates).format(rng.choice(kinds[kind]))

    chosen = [
        choose(TEMPERATURES, THERMOMETERS),
        choose(SIGHTS, SEEN),
        choose(WINDS),
        choose(PLACES, REPORTERS),
        choose(OMENS),
    ]
    (temperature, sky, wind, place, tomorrow), sentences = (list(part) for part in zip(*chosen, strict=True))
    sentences.append(rng.choice(FILLERS))
    rng.shuffle(sentences)
    return " ".join(sentences), f"{temperature} {sky} and {wind} {place}. {tomorrow.capitalize()} tomorrow."


def _is_of(split: str, text: str) -> bool:
    """A fifth of all reports is for validation, told by their letters, which are the same in every process."""
    return (sum(map(ord, text)) % 5 == 0) == (split == "validation")
