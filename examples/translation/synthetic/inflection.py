"""Regular inflection of English and German words, and the German endings.

Cases are `nom`, `acc`, `dat`, `gen`. Plural nouns have no gender, so `p` is
used beside `m`, `f` and `n` as the fourth column of every German paradigm.
"""

import re

CASES = ("nom", "acc", "dat", "gen")
GENDERS = ("m", "f", "n", "p")

VOWELS = "aeiou"

# --- English ----------------------------------------------------------------


def add_s(word: str) -> str:
    """Plural of a noun and third person singular of a verb.

    >>> [add_s(w) for w in ("dog", "church", "story", "boy", "go")]
    ['dogs', 'churches', 'stories', 'boys', 'goes']
    """
    if word.endswith(("s", "x", "ch", "sh", "o")):
        return word + "es"
    if word.endswith("y") and word[-2] not in VOWELS:
        return word[:-1] + "ies"
    return word + "s"


def add_suffix(word: str, suffix: str) -> str:
    """Adds `-ed`, `-er` or `-est` with the English spelling changes.

    >>> add_suffix("carry", "ed"), add_suffix("big", "er")
    ('carried', 'bigger')
    """
    if word.endswith("e"):
        return word + suffix[1:]
    if word.endswith("y") and word[-2] not in VOWELS:
        return word[:-1] + "i" + suffix
    if re.fullmatch("[^aeiou]+[aeiou][bdgmnpt]", word):
        return word + word[-1] + suffix
    return word + suffix


def indefinite_article(next_word: str) -> str:
    """`an` before a vowel; no word of the lexicon breaks the rule."""
    return "an" if next_word[0] in VOWELS else "a"


# --- German ----------------------------------------------------------------

_UMLAUT = {"a": "ä", "o": "ö", "u": "ü", "A": "Ä", "O": "Ö", "U": "Ü"}


def umlaut(word: str) -> str:
    """Fronts the last vowel that can be fronted (`Garten` -> `Gärten`)."""
    last = list(re.finditer("au|[aouAOU]", word))[-1]
    vowel = last.group()
    fronted = _UMLAUT[vowel[0]] + vowel[1:]
    return word[: last.start()] + fronted + word[last.end() :]


def expand(headword: str, notation: str) -> str:
    """Reads dictionary notation: `-`, `-es`, `¨-`, `¨-er`."""
    if notation.startswith("¨"):
        headword = umlaut(headword)
    return headword + notation.lstrip("¨").removeprefix("-")


def dative_plural(plural: str) -> str:
    """Every dative plural ends in -n, unless the plural ends in -s.

    >>> [dative_plural(w) for w in ("Hunde", "Frauen", "Autos")]
    ['Hunden', 'Frauen', 'Autos']
    """
    return plural if plural.endswith(("n", "s")) else plural + "n"


def attributive_stem(adjective: str) -> str:
    """What an adjective's endings are added to.

    >>> [attributive_stem(a) for a in ("alt", "müde", "dunkel", "teuer")]
    ['alt', 'müd', 'dunkl', 'teur']
    """
    if adjective.endswith("e"):
        return adjective[:-1]
    if adjective.endswith(("el", "euer", "auer")):
        return adjective[:-2] + adjective[-1]
    return adjective


def superlative_stem(adjective: str) -> str:
    """`klein` -> `kleinst`; with -e- after a dental or a sibilant."""
    if re.search("(d|t|s|ß|z|sch)e?$", adjective):
        return adjective.removesuffix("e") + "est"
    return adjective + "st"


def verb_stem(infinitive: str) -> str:
    """`sehen` -> `seh`, `füttern` -> `fütter`."""
    return infinitive.removesuffix("n").removesuffix("e")


def weak_third(stem: str) -> str:
    """`kauf` -> `kauft`; with -e- where -t could not be heard."""
    return stem + ("et" if re.search("[dt]$|[^aeiouhlr]n$", stem) else "t")


def weak_participle(stem: str) -> str:
    """Perfect participle; ge- only before a stressed first syllable.

    >>> [weak_participle(s) for s in ("kauf", "verkauf", "reparier")]
    ['gekauft', 'verkauft', 'repariert']
    """
    unstressed = re.match("be|er|ge|ver", stem) or stem.endswith("ier")
    return ("" if unstressed else "ge") + weak_third(stem)


# The endings that show gender, number and case: of `dieser`, and of an
# adjective that nothing else declines for.
PRONOMINAL = {
    "nom": {"m": "er", "f": "e", "n": "es", "p": "e"},
    "acc": {"m": "en", "f": "e", "n": "es", "p": "e"},
    "dat": {"m": "em", "f": "er", "n": "em", "p": "en"},
    "gen": {"m": "es", "f": "er", "n": "es", "p": "er"},
}

DEFINITE_ARTICLE = {
    "nom": {"m": "der", "f": "die", "n": "das", "p": "die"},
    "acc": {"m": "den", "f": "die", "n": "das", "p": "die"},
    "dat": {"m": "dem", "f": "der", "n": "dem", "p": "den"},
    "gen": {"m": "des", "f": "der", "n": "des", "p": "der"},
}

# As the article, but for the dative plural (and the genitives, which the
# grammar uses as determiners).
RELATIVE_PRONOUN = {
    **DEFINITE_ARTICLE,
    "dat": {**DEFINITE_ARTICLE["dat"], "p": "denen"},
    "gen": {"m": "dessen", "f": "deren", "n": "dessen", "p": "deren"},
}

PERSONAL_PRONOUN = {
    "I": {"nom": "ich", "acc": "mich", "dat": "mir"},
    "we": {"nom": "wir", "acc": "uns", "dat": "uns"},
    "m": {"nom": "er", "acc": "ihn", "dat": "ihm"},
    "f": {"nom": "sie", "acc": "sie", "dat": "ihr"},
    "n": {"nom": "es", "acc": "es", "dat": "ihm"},
    "p": {"nom": "sie", "acc": "sie", "dat": "ihnen"},
    "who": {"nom": "wer", "acc": "wen", "dat": "wem"},
}


def ein_is_bare(case: str, gender: str) -> bool:
    """Whether `ein`, `kein`, `mein` stand without an ending here."""
    return (case, gender) in {("nom", "m"), ("nom", "n"), ("acc", "n")}


def strong_ending(case: str, gender: str) -> str:
    if case == "gen" and gender in "mn":
        return "en"
    return PRONOMINAL[case][gender]


def weak_ending(case: str, gender: str) -> str:
    if case == "nom" and gender != "p" or case == "acc" and gender in "fn":
        return "e"
    return "en"


def mixed_ending(case: str, gender: str) -> str:
    if ein_is_bare(case, gender):
        return strong_ending(case, gender)
    return weak_ending(case, gender)


ADJECTIVE_ENDING = {
    declension: {
        (case, gender): ending(case, gender)
        for case in CASES
        for gender in GENDERS
    }
    for declension, ending in (
        ("strong", strong_ending),
        ("weak", weak_ending),
        ("mixed", mixed_ending),
    )
}
"""Adjective endings by declension, then by (case, gender)."""
