"""The bilingual dictionary: entries as a dictionary prints them.

Cells are separated by two or more spaces.

*   Nouns: `der Garten, -s, ¨-` is the nominative with its article, the
    genitive singular and the plural; `-` repeats the headword and `¨`
    umlauts it. A masculine noun with a genitive in -n is weak (`der Student,
    -en, -en`) and takes its -n in every case but the nominative.
*   Adjectives: positive, comparative and superlative where they are
    irregular (`good/better/best`, `gut/besser/best`). `/more` compares with
    *more*, `/-` does not compare. They are listed in the order in which they
    precede a noun.
*   Verbs: principal parts where they are irregular, in English past and
    participle (`see/saw/seen`), in German third person singular and
    participle (`sehen, sieht, gesehen`, `gehen, geht, ist gegangen`).
    `auf|räumen` is separable, `sich` is reflexive.

The last column is what the word selects, as kinds of noun: of a verb,
`subject > object`, where nothing for the subject means a person. A noun's
English headword is a kind of its own.

Every English word has one sense and therefore one German entry. Words whose
forms coincide (*read*, *put*, *sheep*) are left out on purpose: they would
leave the German open.
"""

import dataclasses
import re
from collections.abc import Iterator

from examples.translation.synthetic import inflection


def _rows(table: str) -> Iterator[list[str]]:
    """Yields the cells of each line of a dictionary table."""
    for line in table.strip().splitlines():
        yield re.split(r"\s{2,}", line.strip())


_KIND_GROUPS = {
    "animate": "person animal",
    "place": "building room outdoor",
    "goods": "portable text clothing",
    "wares": "portable clothing book furniture",
    "fitting": "furniture opening",
    "meal": "food drink",
    "concrete": "person animal vehicle building portable clothing furniture",
}


def _kinds(selection: str) -> frozenset[str]:
    """The basic kinds in a column such as `animate text`."""
    return frozenset(
        kind
        for word in selection.split()
        for kind in _KIND_GROUPS.get(word, word).split()
    )


# --- Nouns -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Noun:
    """A noun with its forms.

    Attributes:
        singular, plural: the English forms.
        gender: `m`, `f` or `n`.
        forms: German forms by (case, plural).
        kinds: what the noun is, for selection.
        mass: whether it is uncountable.
        locatives: (English, German) prepositions that say where, with the
            dative.
        directional: (English, German) prepositions that say where to, or
            None.
    """

    singular: str
    plural: str
    gender: str
    forms: dict[tuple[str, bool], str]
    kinds: frozenset[str]
    mass: bool
    locatives: tuple[tuple[str, str], ...]
    directional: tuple[str, str] | None

    def is_a(self, kinds: frozenset[str]) -> bool:
        return not kinds.isdisjoint(self.kinds)

    @property
    def is_countable(self) -> bool:
        """Whether it is used in the plural; a parent is one of a kind."""
        return not self.mass and "parent" not in self.kinds


_GENDER_OF_ARTICLE = {"der": "m", "die": "f", "das": "n"}

# English       German                        kind      prepositions of place
_NOUNS = """
man/men         der Mann, -es, ¨-er           person
woman/women     die Frau, -, -en              person
child/children  das Kind, -es, -er            person kin
girl            das Mädchen, -s, -            person
boy             der Junge, -n, -n             person
mother          die Mutter, -, ¨-             person kin parent
father          der Vater, -s, ¨-             person kin parent
sister          die Schwester, -, -n          person kin
brother         der Bruder, -s, ¨-            person kin
friend          der Freund, -es, -e           person kin
teacher         der Lehrer, -s, -             person kin
student         der Student, -en, -en         person kin
doctor          der Arzt, -es, ¨-e            person kin
queen           die Königin, -, -nen          person
dog             der Hund, -es, -e             animal
cat             die Katze, -, -n              animal
horse           das Pferd, -es, -e            animal
bird            der Vogel, -s, ¨-             animal
bear            der Bär, -en, -en             animal
mouse/mice      die Maus, -, ¨-e              animal
book            das Buch, -es, ¨-er           text
letter          der Brief, -es, -e            text
story           die Geschichte, -, -n         text
key             der Schlüssel, -s, -          portable
bag             die Tasche, -, -n             portable  in=in
box             die Kiste, -, -n              portable  in=in
picture         das Bild, -es, -er            portable
flower          die Blume, -, -n              portable
hat             der Hut, -es, ¨-e             clothing
coat            der Mantel, -s, ¨-            clothing
dress           das Kleid, -es, -er           clothing
lamp            die Lampe, -, -n              device
computer        der Computer, -s, -           device
car             das Auto, -s, -s              vehicle
train           der Zug, -es, ¨-e             vehicle
bus             der Bus, -ses, -se            vehicle
table           der Tisch, -es, -e            furniture  on=auf under=unter
chair           der Stuhl, -s, ¨-e            furniture  on=auf under=unter
door            die Tür, -, -en               opening
window          das Fenster, -s, -            opening
name            der Name, -ns, -n             name
apple           der Apfel, -s, ¨-             food
cake            der Kuchen, -s, -             food
soup            die Suppe, -, -n              food
bread           das Brot, -es, -e             mass food
milk            die Milch, -, -               mass drink
coffee          der Kaffee, -s, -s            mass drink
water           das Wasser, -s, -             mass drink
house           das Haus, -es, ¨-er           building  in=in to=in
school          die Schule, -, -n             building  at=in to=in
church          die Kirche, -, -n             building  in=in to=in
station         der Bahnhof, -s, ¨-e          building  at=an to=zu
castle          das Schloss, -es, ¨-er        building  in=in to=zu
bridge          die Brücke, -, -n             building  on=auf to=zu
kitchen         die Küche, -, -n              room      in=in to=in
room            das Zimmer, -s, -             room      in=in to=in
garden          der Garten, -s, ¨-            outdoor   in=in to=in
forest          der Wald, -es, ¨-er           outdoor   in=in to=in
city            die Stadt, -, ¨-e             outdoor   in=in to=in
village         das Dorf, -es, ¨-er           outdoor   in=in to=in
beach           der Strand, -es, ¨-e          outdoor   on=an to=an
market          der Markt, -es, ¨-e           outdoor   at=auf to=auf
lake            der See, -s, -n               outdoor   at=an to=zu
"""


def _declension(headword: str, gender: str, genitive: str, plural: str):
    """German forms by (case, plural)."""
    plurals = inflection.expand(headword, plural)
    weak = re.fullmatch("-(e?n)s?", genitive) if gender == "m" else None
    oblique = headword + weak[1] if weak else headword
    return {
        ("nom", False): headword,
        ("acc", False): oblique,
        ("dat", False): oblique,
        ("gen", False): inflection.expand(headword, genitive),
        ("nom", True): plurals,
        ("acc", True): plurals,
        ("dat", True): inflection.dative_plural(plurals),
        ("gen", True): plurals,
    }


def _noun(
    english: str, german: str, kinds: str, prepositions: str = ""
) -> Noun:
    singular, _, plural = english.partition("/")
    entry, genitive, plural_notation = german.split(", ")
    article, headword = entry.split()
    gender = _GENDER_OF_ARTICLE[article]
    pairs = [tuple(pair.split("=")) for pair in prepositions.split()]
    whereto = [pair for pair in pairs if pair[0] == "to"]
    return Noun(
        singular=singular,
        plural=plural or inflection.add_s(singular),
        gender=gender,
        forms=_declension(headword, gender, genitive, plural_notation),
        kinds=_kinds(kinds) | {singular},
        mass="mass" in kinds,
        locatives=tuple(pair for pair in pairs if pair not in whereto),
        directional=whereto[0] if whereto else None,
    )


NOUNS = tuple(_noun(*row) for row in _rows(_NOUNS))
NOUN = {noun.singular: noun for noun in NOUNS}


_ALL_KINDS = frozenset(kind for noun in NOUNS for kind in noun.kinds)


def nouns(selection: str) -> tuple[Noun, ...]:
    """The nouns of the kinds in `selection`.

    Raises:
        ValueError: if no noun is of one of the kinds.
    """
    kinds = _kinds(selection)
    if not kinds <= _ALL_KINDS:
        unknown = sorted(kinds - _ALL_KINDS)
        raise ValueError(f"No noun is of the kinds {unknown} in {selection!r}")
    return tuple(noun for noun in NOUNS if noun.is_a(kinds))


# Inalienable things and what they are part of: `the door of the house`.
_PARTS = """
door     house school church castle room kitchen car
window   house school church castle room kitchen car bus
name     person village city lake station
story    queen bear village castle
"""

WHOLES = {NOUN[part]: nouns(wholes) for part, wholes in _rows(_PARTS)}

# --- Adjectives -------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Adjective:
    """An adjective with its degrees.

    Attributes:
        english: (positive, comparative, superlative).
        german: stems of the same degrees, to which endings are added.
        predicative: the German positive without an ending.
        rank: place in the order of adjectives before a noun.
        gradable: whether it has a comparative.
        nouns: what it can describe.
    """

    english: tuple[str, str, str]
    german: tuple[str, str, str]
    predicative: str
    rank: int
    gradable: bool
    nouns: tuple[Noun, ...]


_ADJECTIVES = """
good/better/best  gut/besser/best           animal meal text doctor teacher
beautiful/more    schön                     animal goods place name
famous/more       berühmt                   person castle picture text
friendly          freundlich                person
happy             glücklich                 person
hungry            hungrig                   animate
tired/more        müde                      animate
strong            stark/stärker/stärkst     animal coffee man
expensive/more    teuer                     wares vehicle device
cheap             billig                    wares vehicle device
heavy             schwer                    portable furniture
big               groß/größer/größt         animal vehicle fitting place
small             klein                     animal wares vehicle place
long              lang/länger/längst        text train dress coat bridge
old               alt/älter/ältest          animate goods fitting place
young             jung/jünger/jüngst        kin man woman girl queen animal
new               neu/neuer/neuest          goods vehicle device school
dark              dunkel                    room forest coat dress house
cold              kalt/kälter/kältest       drink soup room lake
hot               heiß                      soup coffee water
fresh             frisch                    apple cake bread milk
red/-             rot                       clothing vehicle flower apple door
blue/-            blau                      clothing vehicle flower bird box
black/-           schwarz                   clothing animal car bag
white/-           weiß                      clothing animal house flower
"""


def _adjective(rank: int, english: str, german: str, kinds: str) -> Adjective:
    positive, *degrees = english.split("/")
    if degrees in (["more"], ["-"]):
        compared = (f"more {positive}", f"most {positive}")
    else:
        compared = tuple(degrees) or (
            inflection.add_suffix(positive, "er"),
            inflection.add_suffix(positive, "est"),
        )
    predicative, *stems = german.split("/")
    stem = inflection.attributive_stem(predicative)
    return Adjective(
        english=(positive, *compared),
        german=(
            stem,
            *(stems or (stem + "er", inflection.superlative_stem(predicative))),
        ),
        predicative=predicative,
        rank=rank,
        gradable=degrees != ["-"],
        nouns=nouns(kinds),
    )


ADJECTIVES = tuple(
    _adjective(rank, *row) for rank, row in enumerate(_rows(_ADJECTIVES))
)
ADJECTIVE = {adjective.english[0]: adjective for adjective in ADJECTIVES}

# Of one dimension a thing has one value: nothing is old and new.
_DIMENSIONS = """
price     expensive cheap
size      big small long
age       old young new fresh
heat      cold hot
colour    red blue black white dark
state     hungry tired strong happy
"""

DIMENSION = {adjective: adjective.english[0] for adjective in ADJECTIVES} | {
    ADJECTIVE[adjective]: dimension
    for dimension, adjectives in _rows(_DIMENSIONS)
    for adjective in adjectives.split()
}
"""The dimension of each adjective, its own if no other shares it."""

ADJECTIVES_FOR = {
    noun: tuple(a for a in reversed(ADJECTIVES) if noun in a.nouns)
    for noun in NOUNS
}
"""The adjectives that can describe each noun, the plainest first."""

# --- Verbs ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Verb:
    """A verb with its forms and its frame.

    Attributes:
        english: (base, third person singular, past, past participle).
        particle: what follows the English verb (`up` in `tidy up`), or "".
        infinitive: the German infinitive without a separable prefix.
        prefix: the separable prefix, or "".
        third: third person singular present without the prefix.
        participle: the past participle.
        auxiliary: `haben` or `sein`, of the perfect.
        reflexive: whether it takes `sich`.
        frame: the cases of the German objects, of `acc` and `dat`.
        prepositions: (English, German) before the last object, each may be
            "".
        subjects, objects: the nouns it selects.
        stative: whether it is a state, here used in the present tense only.
        manners: (English, German) adverbs that go with it.
    """

    english: tuple[str, str, str, str]
    particle: str
    infinitive: str
    prefix: str
    third: str
    participle: str
    auxiliary: str
    reflexive: bool
    frame: tuple[str, ...]
    prepositions: tuple[str, str]
    subjects: tuple[Noun, ...]
    objects: tuple[Noun, ...]
    stative: bool
    manners: tuple[tuple[str, str], ...]


# English             German                            subject > object
_TRANSITIVE = """
find/found/found      finden, findet, gefunden          > goods dog cat
buy/bought/bought     kaufen                            > goods meal car
sell/sold/sold        verkaufen                         > goods meal car
repair                reparieren                        > vehicle device
write/wrote/written   schreiben, schreibt, geschrieben  > text
open                  auf|machen                        > door window box
visit                 besuchen                          > person outdoor castle
build/built/built     bauen                             > building
paint                 streichen, streicht, gestrichen   > house room door chair
carry                 tragen, trägt, getragen           > portable chair table
eat/ate/eaten         essen, isst, gegessen             > food
drink/drank/drunk     trinken, trinkt, getrunken        > drink
tidy up               auf|räumen                        > room
pick up               ab|holen                          > person flower
turn on               ein|schalten                      > device
invite                ein|laden, lädt, geladen          > person
bring/brought/brought back  zurück|bringen, bringt, gebracht  > goods
lose/lost/lost        verlieren, verliert, verloren     > portable hat
forget/forgot/forgotten  vergessen, vergisst, vergessen  > portable name
feed/fed/fed          füttern                           > animal
catch/caught/caught   fangen, fängt, gefangen           cat dog > mouse bird
"""

_PERCEPTION = """
see/saw/seen          sehen, sieht, gesehen             animate > concrete
hear/heard/heard      hören                             animate > animate train
"""

_TRANSITIVE_STATES = """
love                  lieben                            > animate
know/knew/known       kennen, kennt, gekannt            > person text
like                  mögen, mag, gemocht               > animal meal
"""

_DATIVE = """
help                  helfen, hilft, geholfen           > person
thank                 danken                            > person
follow                folgen, folgt, ist gefolgt        animate > animate bus
answer                antworten                         > person
"""

_DITRANSITIVE = """
give/gave/given       geben, gibt, gegeben              > goods animal
show/showed/shown     zeigen                            > goods car place
send/sent/sent        schicken                          > text flower
bring/brought/brought  bringen, bringt, gebracht        > meal portable
offer                 an|bieten, bietet, geboten        > meal chair
"""

# `auf+acc` is the preposition before the object and the case it governs;
# either language may need one where the other has none.
_PREPOSITIONAL = """
wait for              warten auf+acc                    > person bus train
talk about            sprechen über+acc, spricht, gesprochen  > animate city
think/thought/thought of  denken an+acc, denkt, gedacht  > person
play with             spielen mit+dat                   child girl > animal
remember              sich erinnern an+acc              > person story
look for              suchen +acc                       > goods animal
listen to             zu|hören +dat                     > person
"""

_PREPOSITIONAL_STATES = """
belong to             gehören +dat                      goods vehicle > person
"""

_INTRANSITIVE = """
sleep/slept/slept     schlafen, schläft, geschlafen     animate
work                  arbeiten
sing/sang/sung        singen, singt, gesungen           person bird
laugh                 lachen
rest                  sich aus|ruhen                    animate
wake/woke/woken up    auf|wachen, wacht, ist gewacht    animate
fall/fell/fallen asleep  ein|schlafen, schläft, ist geschlafen  animate
arrive                an|kommen, kommt, ist gekommen    person bus train
leave/left/left       ab|fahren, fährt, ist gefahren    bus train
"""

# Where to, rather than an object.
_MOTION = """
go/went/gone          gehen, geht, ist gegangen         > place
run/ran/run           laufen, läuft, ist gelaufen       animate > place
come/came/come        kommen, kommt, ist gekommen       > place
return                zurück|kehren, kehrt, ist gekehrt  > place
"""

_WEATHER = """
rain                  regnen
snow                  schneien
"""

# Take a clause with `that` and `dass`.
_REPORTING = """
say/said/said         sagen
hope                  hoffen
believe               glauben
"""

# Take a clause with `whether` and `ob`.
_WONDERING = """
ask                   fragen
"""

# Take an infinitive whose subject is their own.
_CONTROL = """
try                   versuchen                         animate
promise               versprechen, verspricht, versprochen
forget/forgot/forgotten  vergessen, vergisst, vergessen
"""

_MANNERS = """
carefully    sorgfältig   write repair build paint
quickly      schnell      write eat run go open work repair
slowly       langsam      run go eat drink open work
quietly      leise        sing talk open laugh
loudly       laut         sing laugh
patiently    geduldig     wait listen help answer show
"""


def _manners(verb: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (english, german)
        for english, german, verbs in _rows(_MANNERS)
        if verb in verbs.split()
    )


def _verb(
    english: str,
    german: str,
    selection: str = "",
    frame: tuple[str, ...] = (),
    prepositions: tuple[str, str] = ("", ""),
    stative: bool = False,
) -> Verb:
    parts, _, particle = english.partition(" ")
    base, *irregular = parts.split("/")
    past, past_participle = irregular or [inflection.add_suffix(base, "ed")] * 2
    third = "has" if base == "have" else inflection.add_s(base)

    citation, *principal = german.split(", ")
    reflexive = citation.startswith("sich ")
    prefix, _, infinitive = citation.removeprefix("sich ").rpartition("|")
    stem = inflection.verb_stem(infinitive)
    german_third, participle = principal or (
        inflection.weak_third(stem),
        inflection.weak_participle(stem),
    )
    moves = participle.startswith("ist ")

    subject, _, object_ = selection.partition(">")
    return Verb(
        english=(base, third, past, past_participle),
        particle=particle,
        infinitive=infinitive,
        prefix=prefix,
        third=german_third,
        participle=prefix + participle.removeprefix("ist "),
        auxiliary="sein" if moves else "haben",
        reflexive=reflexive,
        frame=frame,
        prepositions=prepositions,
        subjects=nouns(subject.strip() or "person"),
        objects=nouns(object_),
        stative=stative,
        manners=_manners(base),
    )


def _verbs(table: str, *frame: str, stative: bool = False) -> tuple[Verb, ...]:
    return tuple(
        _verb(*row, frame=frame, stative=stative) for row in _rows(table)
    )


def _prepositional_verbs(table: str, stative: bool = False) -> tuple[Verb, ...]:
    def verb(english: str, german: str, selection: str) -> Verb:
        parts, _, preposition = english.partition(" ")
        citation, german_preposition, case, principal = re.split(
            r" (\w*)\+(acc|dat)", german
        )
        return _verb(
            parts,
            citation + principal,
            selection,
            frame=(case,),
            prepositions=(preposition, german_preposition),
            stative=stative,
        )

    return tuple(verb(*row) for row in _rows(table))


TRANSITIVE = _verbs(_TRANSITIVE, "acc")
PERCEPTION = _verbs(_PERCEPTION, "acc")
TRANSITIVE_STATES = _verbs(_TRANSITIVE_STATES, "acc", stative=True)
DATIVE = _verbs(_DATIVE, "dat")
DITRANSITIVE = _verbs(_DITRANSITIVE, "dat", "acc")
PREPOSITIONAL = _prepositional_verbs(_PREPOSITIONAL)
PREPOSITIONAL_STATES = _prepositional_verbs(_PREPOSITIONAL_STATES, True)
INTRANSITIVE = _verbs(_INTRANSITIVE)
MOTION = _verbs(_MOTION)
WEATHER = _verbs(_WEATHER)
REPORTING = _verbs(_REPORTING)
WONDERING = _verbs(_WONDERING)
CONTROL = _verbs(_CONTROL)

(BE,) = _verbs("be/was/been  sein, ist, ist gewesen")
(HAVE,) = _verbs(
    "have/had/had  haben, hat, gehabt  person > wares animal", "acc"
)
(DO,) = _verbs("do/did/done  tun, tut, getan")
(WANT,) = _verbs("want  wollen, will, gewollt")
(COST,) = _verbs(
    "cost/cost/cost  kosten  wares vehicle device", "acc", stative=True
)

# --- Modal verbs ------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Modal:
    """A modal verb.

    Attributes:
        english: (present, past); the past is "" if the grammar has none.
        german: (singular, plural) of the present.
        preterite: (singular, plural) of the past.
        negated: (singular, plural) of what German negates in the present.
    """

    english: tuple[str, str]
    german: tuple[str, str]
    preterite: tuple[str, str]
    negated: tuple[str, str]


# `must not` forbids: `darf nicht`.
_MODALS = """
want to/want to       will/wollen       wollte    will/wollen
can/could             kann/können       konnte    kann/können
must/have to          muss/müssen       musste    darf/dürfen
should/               soll/sollen       sollte    soll/sollen
may/                  darf/dürfen       durfte    darf/dürfen
"""

MODALS = tuple(
    Modal(
        english=tuple(english.split("/")),
        german=tuple(german.split("/")),
        preterite=(preterite, preterite + "n"),
        negated=tuple(negated.split("/")),
    )
    for english, german, preterite, negated in _rows(_MODALS)
)
MODAL = {modal.english[0]: modal for modal in MODALS}

# --- Determiners ------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Determiner:
    """A determiner.

    Attributes:
        english: (singular, plural), "" where it is silent.
        stem: German stem, to which endings are added.
        declension: of the adjectives after it: `weak`, `mixed`, `strong`.
        definite: whether it makes the noun phrase count as known.
    """

    english: tuple[str, str]
    stem: str
    declension: str
    definite: bool


# `article` stands for the irregular d-; `a` is inserted by the English side
# as `a` or `an`.
_DETERMINERS = """
the/the        article  weak    definite
this/these     dies     weak    definite
every/         jed      weak    definite
/all           all      weak    definite
a/             ein      mixed   indefinite
no/no          kein     mixed   indefinite
my/my          mein     mixed   definite
our/our        unser    mixed   definite
his/his        sein     mixed   definite
her/her        ihr      mixed   definite
their/their    ihr      mixed   definite
/many          viel     strong  indefinite
/some          einig    strong  indefinite
"""

DETERMINER = {
    (english.split("/")[0] or english.split("/")[1]): Determiner(
        english=tuple(english.split("/")),
        stem=stem,
        declension=declension,
        definite=definiteness == "definite",
    )
    for english, stem, declension, definiteness in _rows(_DETERMINERS)
}
BARE = Determiner(("", ""), "", "strong", False)
"""No determiner: `fresh bread`, `dogs`, and after a number."""

# --- Adverbials -------------------------------------------------------------

FREQUENCIES = tuple(
    tuple(row)
    for row in _rows(
        """
always        immer
usually       meistens
often         oft
sometimes     manchmal
never         nie
"""
    )
)

# English             German              tenses
_TIMES = """
today                 heute               present past future
in the morning        am Morgen           present past future
in the evening        am Abend            present past future
at night              in der Nacht        present past
on Monday             am Montag           present past future
on Wednesday          am Mittwoch         present past future
on Saturday           am Samstag          present past future
in summer             im Sommer           present past future
in winter             im Winter           present past future
every day             jeden Tag           present
every week            jede Woche          present
now                   jetzt               present
yesterday             gestern             past
last week             letzte Woche        past
last year             letztes Jahr        past
tomorrow              morgen              future
next week             nächste Woche       future
next month            nächsten Monat      future
"""

TIMES = {
    tense: tuple(
        (english, german)
        for english, german, tenses in _rows(_TIMES)
        if tense in tenses.split()
    )
    for tense in ("present", "past", "future")
}

# Units of time with their German dative plural.
PERIODS = (
    ("days", "Tagen"),
    ("weeks", "Wochen"),
    ("months", "Monaten"),
    ("years", "Jahren"),
)

# Prepositions of place for anything large enough.
SURROUNDINGS = (
    ("near", "bei"),
    ("behind", "hinter"),
    ("in front of", "vor"),
    ("next to", "neben"),
)

# --- Clause linkers ---------------------------------------------------------

# English    German     tenses of the main clause
_CONJUNCTIONS = """
because      weil       present past future
although     obwohl     present past
while        während    present past
before       bevor      present past
when         wenn       present
when         als        past
if           wenn       future
so that      damit      present past
"""

CONJUNCTIONS = {
    tense: tuple(
        (english, german)
        for english, german, tenses in _rows(_CONJUNCTIONS)
        if tense in tenses.split()
    )
    for tense in ("present", "past", "future")
}
