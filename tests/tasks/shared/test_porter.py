"""Porter's stemmer, in the form that published ROUGE numbers are computed with."""

from __future__ import annotations

import pytest

from bplightning.tasks.shared.porter import stem

STEMS = {
    "plurals": "caresses:caress ponies:poni ties:tie caress:caress cats:cat",
    "past tenses": (
        "feed:feed agreed:agre plastered:plaster bled:bled motoring:motor sing:sing conflated:conflat "
        "troubled:troubl sized:size hopping:hop tanned:tan falling:fall hissing:hiss fizzed:fizz failing:fail "
        "filing:file tied:tie dried:dri"
    ),
    "y": "happy:happi sky:sky enjoy:enjoy fly:fli say:say",
    "derived": (
        "relational:relat conditional:condit rational:ration valency:valenc hesitancy:hesit digitizer:digit "
        "conformably:conform radically:radic differently:differ vilely:vile analogously:analog "
        "vietnamization:vietnam predication:predic operator:oper feudalism:feudal decisiveness:decis "
        "hopefulness:hope callousness:callous formality:formal sensitivity:sensit sensibility:sensibl "
        "computationally:comput faithfully:faith geology:geolog logy:logi"
    ),
    "qualities": (
        "triplicate:triplic formative:form formalize:formal electricity:electr electrical:electr hopeful:hope "
        "goodness:good"
    ),
    "endings": (
        "revival:reviv allowance:allow inference:infer airliner:airlin gyroscopic:gyroscop adjustable:adjust "
        "defensible:defens irritant:irrit replacement:replac adjustment:adjust dependent:depend adoption:adopt "
        "onion:onion companion:companion homologous:homolog communism:commun activate:activ angularity:angular "
        "effective:effect bowdlerize:bowdler homologou:homolog"
    ),
    "last letters": "probate:probat rate:rate cease:ceas use:use controlling:control roll:roll",
    "irregular": "skies:sky dying:die news:news innings:inning succeed:succeed proceeding:proceed",
    "short or odd": "is:is a:a yyyy:yyyi oaten:oaten 1990s:1990",
}
"""What of a word changes, to words and their stems, as the stemmer of that package gives them."""


@pytest.mark.parametrize("pairs", STEMS.values(), ids=STEMS)
def test_stems(pairs: str) -> None:
    expected = dict(pair.split(":") for pair in pairs.split())
    assert {word: stem(word) for word in expected} == expected
