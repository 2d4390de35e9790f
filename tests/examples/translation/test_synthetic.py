"""The synthetic corpus: correct German, fixed splits, one tfds dataset."""

import functools

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from examples.translation.synthetic import builder
from examples.translation.synthetic import composer
from examples.translation.synthetic import english
from examples.translation.synthetic import german
from examples.translation.synthetic import grammar
from examples.translation.synthetic import inflection
from examples.translation.synthetic import lexicon
from examples.translation.synthetic import numerals
from examples.translation.synthetic import selection
from examples.translation.synthetic import syntax

# --- Trees by hand ------------------------------------------------------------

IT = functools.partial(syntax.Pronoun, "it")
NAME = syntax.Name("Belmira")
TODAY = ("today", "heute")
YESTERDAY = ("yesterday", "gestern")


DETERMINER = {
    english: determiner
    for determiner in lexicon.DETERMINER.values()
    for english in determiner.english
    if english
} | {"a": lexicon.DETERMINER["a"], "an": lexicon.DETERMINER["a"]}


def phrase(text, **modifiers):
    """`the old dogs` as a tree."""
    *words, headword = text.split()
    noun = next(n for n in lexicon.NOUNS if headword in (n.singular, n.plural))
    determiner = lexicon.BARE
    if words and words[0] in DETERMINER:
        determiner = DETERMINER[words.pop(0)]
    return syntax.NounPhrase(
        noun,
        determiner,
        plural=headword != noun.singular,
        adjectives=tuple(lexicon.ADJECTIVE[word] for word in words),
        **modifiers,
    )


VERBS = [
    verb
    for table in vars(lexicon).values()
    for verb in (table if isinstance(table, tuple) else (table,))
    if isinstance(verb, lexicon.Verb)
]


def nominal(text):
    if text in selection.PRONOUN:
        return selection.PRONOUN[text]
    return phrase(text) if isinstance(text, str) else text


def verb(text, table=None):
    """The verb of `wait for` or `tidy up`."""
    for entry in table or VERBS:
        words = entry.english[0], entry.particle, entry.prepositions[0]
        if " ".join(word for word in words if word) == text:
            return entry
    raise KeyError(text)


def c(subject, predicate, *objects, table=None, **parts):
    """A clause; its nominals may be given as text."""
    subject, *objects = (nominal(n) for n in (subject, *objects))
    if isinstance(predicate, str):
        predicate = verb(predicate, table)
    return syntax.Clause(subject, predicate, objects=tuple(objects), **parts)


def is_(subject, adjective, standard=None, degree=0, **parts):
    standard = phrase(standard) if standard else None
    quality = syntax.Quality(lexicon.ADJECTIVE[adjective], degree, standard)
    return c(subject, lexicon.BE, quality=quality, **parts)


def place(english_word, german_word, text, case="dat", **modifiers):
    nominal = phrase(text, **modifiers)
    return syntax.Place((english_word, german_word), nominal, case)


def trace(text):
    filler = phrase(text)
    return syntax.Trace(filler.noun, filler.plural)


def that(clause):
    return syntax.Subordinate(("that", "dass"), clause)


def to(clause):
    return syntax.Infinitive(("", ""), clause)


def in_order_to(clause):
    return syntax.Infinitive(("in order", "um"), clause)


def s(main, **parts):
    return syntax.Sentence(main, **parts)


def because(clause):
    return syntax.Subordinate(("because", "weil"), clause)


PAST = {"tense": "past"}
FUTURE = {"tense": "future"}
MODAL = lexicon.MODAL
GARDEN = place("in", "in", "the garden")

# Phenomenon, tree, English, German.
GOLDEN = [
    (
        "verb second",
        s(c("the man", "see", "the dog")),
        "The man sees the dog.",
        "Der Mann sieht den Hund.",
    ),
    (
        "inversion after a fronted adverbial",
        s(c("the man", "see", "the dog", time=TODAY, fronted=True)),
        "Today the man sees the dog.",
        "Heute sieht der Mann den Hund.",
    ),
    (
        "perfect bracket with haben",
        s(c("the woman", "write", "a letter", **PAST)),
        "The woman wrote a letter.",
        "Die Frau hat einen Brief geschrieben.",
    ),
    (
        "perfect bracket with sein",
        s(
            c(
                "the children",
                "go",
                goal=place("to", "in", "the city", "acc"),
                **PAST,
            )
        ),
        "The children went to the city.",
        "Die Kinder sind in die Stadt gegangen.",
    ),
    (
        "future bracket",
        s(c("she", "buy", "fresh bread", **FUTURE)),
        "She will buy fresh bread.",
        "Sie wird frisches Brot kaufen.",
    ),
    (
        "modal bracket",
        s(c("I", "help", "the old woman", modal=MODAL["must"])),
        "I must help the old woman.",
        "Ich muss der alten Frau helfen.",
    ),
    (
        "must not is nicht dürfen",
        s(c("we", "open", "the door", modal=MODAL["must"], negated=True)),
        "We must not open the door.",
        "Wir dürfen die Tür nicht aufmachen.",
    ),
    (
        "did not have to is nicht müssen",
        s(
            c(
                "he",
                "work",
                modal=MODAL["must"],
                negated=True,
                time=YESTERDAY,
                **PAST,
            )
        ),
        "He did not have to work yesterday.",
        "Er musste gestern nicht arbeiten.",
    ),
    (
        "wanted to",
        s(c("they", "sing", modal=MODAL["want to"], **PAST)),
        "They wanted to sing.",
        "Sie wollten singen.",
    ),
    (
        "cannot is one word",
        s(c(NAME, "sing", modal=MODAL["can"], negated=True)),
        "Belmira cannot sing.",
        "Belmira kann nicht singen.",
    ),
    (
        "separable prefix stranded",
        s(c("my mother", "tidy up", "the room")),
        "My mother tidies up the room.",
        "Meine Mutter räumt das Zimmer auf.",
    ),
    (
        "separable prefix rejoined in a participle",
        s(c("my mother", "tidy up", "the room", **PAST)),
        "My mother tidied up the room.",
        "Meine Mutter hat das Zimmer aufgeräumt.",
    ),
    (
        "separable prefix rejoined verb-finally",
        s(
            c("he", "laugh"),
            adverbial=because(c("the boy", "tidy up", "the room")),
        ),
        "He laughs because the boy tidies up the room.",
        "Er lacht, weil der Junge das Zimmer aufräumt.",
    ),
    (
        "English particle after a pronoun",
        s(c("the father", "pick up", "she")),
        "The father picks her up.",
        "Der Vater holt sie ab.",
    ),
    (
        "time before manner before place",
        s(
            c(
                "the girl",
                "sing",
                manner=("quietly", "leise"),
                place=GARDEN,
                time=TODAY,
            )
        ),
        "The girl sings quietly in the garden today.",
        "Das Mädchen singt heute leise im Garten.",
    ),
    (
        "a known object comes before place, a new one after",
        s(
            c("the boy", "find", "the key", place=GARDEN, **PAST),
            coordinator=("and", "und"),
            second=c("the girl", "find", "an apple", place=GARDEN, **PAST),
        ),
        "The boy found the key in the garden, and the girl found an apple in "
        "the garden.",
        "Der Junge hat den Schlüssel im Garten gefunden, und das Mädchen hat "
        "im Garten einen Apfel gefunden.",
    ),
    (
        "frequency in mid-position",
        s(c("the bird", "sing", frequency=("often", "oft"), **PAST)),
        "The bird often sang.",
        "Der Vogel hat oft gesungen.",
    ),
    (
        "dative before accusative",
        s(c("the teacher", "give", "the student", "the book", **PAST)),
        "The teacher gave the student the book.",
        "Der Lehrer hat dem Studenten das Buch gegeben.",
    ),
    (
        "the recipient last in English only",
        s(c("I", "show", "my brother", "the car", recipient_last=True)),
        "I show the car to my brother.",
        "Ich zeige meinem Bruder das Auto.",
    ),
    (
        "dative pronoun before accusative noun",
        s(c("she", "show", "I", "the picture", time=TODAY)),
        "She shows me the picture today.",
        "Sie zeigt mir heute das Bild.",
    ),
    (
        "accusative pronoun before dative pronoun",
        s(c("she", "bring", "he", IT("n"), recipient_last=True, **PAST)),
        "She brought it to him.",
        "Sie hat es ihm gebracht.",
    ),
    (
        "separable ditransitive",
        s(c("the queen", "offer", "we", "cold water")),
        "The queen offers us cold water.",
        "Die Königin bietet uns kaltes Wasser an.",
    ),
    (
        "dative verb",
        s(c("the dog", "follow", "these hungry birds", **PAST)),
        "The dog followed these hungry birds.",
        "Der Hund ist diesen hungrigen Vögeln gefolgt.",
    ),
    (
        "English preposition for a German dative",
        s(c("they", "listen to", "the young doctor")),
        "They listen to the young doctor.",
        "Sie hören dem jungen Arzt zu.",
    ),
    (
        "prepositional objects",
        s(c("the student", "wait for", "the bus", time=TODAY)),
        "The student waits for the bus today.",
        "Der Student wartet heute auf den Bus.",
    ),
    (
        "English preposition for a German accusative",
        s(c("we", "look for", "our white cat", **PAST)),
        "We looked for our white cat.",
        "Wir haben unsere weiße Katze gesucht.",
    ),
    (
        "reflexive pronoun agrees",
        s(
            c("I", "remember", NAME),
            coordinator=("but", "aber"),
            second=c("the doctors", "rest", **PAST),
        ),
        "I remember Belmira, but the doctors rested.",
        "Ich erinnere mich an Belmira, aber die Ärzte haben sich ausgeruht.",
    ),
    (
        "nicht after a definite object",
        s(c("the cat", "catch", "the mouse", negated=True, **PAST)),
        "The cat did not catch the mouse.",
        "Die Katze hat die Maus nicht gefangen.",
    ),
    (
        "nicht before place and prepositional object",
        s(c("she", "sleep", negated=True, place=GARDEN)),
        "She does not sleep in the garden.",
        "Sie schläft nicht im Garten.",
    ),
    (
        "nicht and an indefinite article are kein",
        s(c("the man", "buy", "a new car", negated=True)),
        "The man does not buy a new car.",
        "Der Mann kauft kein neues Auto.",
    ),
    (
        "any is kein",
        s(c("we", "eat", "apples", negated=True, **PAST)),
        "We did not eat any apples.",
        "Wir haben keine Äpfel gegessen.",
    ),
    (
        "no is kein",
        s(c("no dog", "sleep")),
        "No dog sleeps.",
        "Kein Hund schläft.",
    ),
    (
        "predicate adjective negated",
        s(is_("the soup", "hot", negated=True, **PAST)),
        "The soup was not hot.",
        "Die Suppe war nicht heiß.",
    ),
    (
        "comparative",
        s(is_("the house", "old", "the bridges", 1)),
        "The house is older than the bridges.",
        "Das Haus ist älter als die Brücken.",
    ),
    (
        "periphrastic comparative",
        s(is_("the car", "expensive", "the bus", 1)),
        "The car is more expensive than the bus.",
        "Das Auto ist teurer als der Bus.",
    ),
    (
        "equative",
        s(is_("my bears", "big", "our horse")),
        "My bears are as big as our horse.",
        "Meine Bären sind so groß wie unser Pferd.",
    ),
    (
        "superlative",
        s(c("I", "know", phrase("the good teacher", degree=2))),
        "I know the best teacher.",
        "Ich kenne den besten Lehrer.",
    ),
    (
        "passive with an agent",
        s(
            c(
                "the window",
                "open",
                passive=True,
                agent=phrase("the boy"),
                **PAST,
            )
        ),
        "The window was opened by the boy.",
        "Das Fenster wurde vom Jungen aufgemacht.",
    ),
    (
        "passive under a modal and in the future",
        s(
            c("the letters", "write", passive=True, modal=MODAL["must"]),
            coordinator=("and", "und"),
            second=c("the door", "open", passive=True, **FUTURE),
        ),
        "The letters must be written, and the door will be opened.",
        "Die Briefe müssen geschrieben werden, und die Tür wird aufgemacht "
        "werden.",
    ),
    (
        "genitive of a person",
        s(is_(phrase("the dog", possessor=phrase("the old man")), "hungry")),
        "The old man's dog is hungry.",
        "Der Hund des alten Mannes ist hungrig.",
    ),
    (
        "genitive plural and weak masculine",
        s(
            is_(
                phrase(
                    "the book",
                    possessor=phrase(
                        "the friend", possessor=phrase("the students")
                    ),
                ),
                "new",
            )
        ),
        "The students' friend's book is new.",
        "Das Buch des Freundes der Studenten ist neu.",
    ),
    (
        "genitive of a thing",
        s(is_(phrase("the door", possessor=phrase("this small house")), "red")),
        "The door of this small house is red.",
        "Die Tür dieses kleinen Hauses ist rot.",
    ),
    (
        "genitive of a name, with a strong adjective",
        s(c("I", "see", phrase("the black coat", possessor=NAME))),
        "I see Belmira's black coat.",
        "Ich sehe Belmiras schwarzen Mantel.",
    ),
    (
        "dative plural in -n, but not after -s",
        s(
            c("the queen", "play with", "the birds"),
            coordinator=("and", "und"),
            second=c(
                "a mouse",
                "sleep",
                place=place("in", "in", "the cars"),
            ),
        ),
        "The queen plays with the birds, and a mouse sleeps in the cars.",
        "Die Königin spielt mit den Vögeln, und eine Maus schläft in den "
        "Autos.",
    ),
    (
        "attribute with mit and the dative plural",
        s(is_(phrase("the women", attire=phrase("red hats")), "tired")),
        "The women with red hats are tired.",
        "Die Frauen mit roten Hüten sind müde.",
    ),
    (
        "contractions",
        s(
            c(
                "the train",
                "arrive",
                place=place("at", "an", "the station"),
                **PAST,
            ),
            coordinator=("and", "und"),
            second=c("we", "go", goal=place("to", "zu", "the lake"), **PAST),
        ),
        "The train arrived at the station, and we went to the lake.",
        "Der Zug ist am Bahnhof angekommen, und wir sind zum See gegangen.",
    ),
    (
        "no contraction before a restrictive relative clause",
        s(
            c(
                "he",
                "work",
                place=place(
                    "in",
                    "in",
                    "the house",
                    relative=c("she", "paint", trace("house"), **PAST),
                ),
            )
        ),
        "He works in the house that she painted.",
        "Er arbeitet in dem Haus, das sie gestrichen hat.",
    ),
    (
        "numbers are reversed",
        s(
            c(
                "the father",
                "buy",
                phrase("flowers", numeral=numerals.cardinal(25)),
                **PAST,
            )
        ),
        "The father bought twenty-five flowers.",
        "Der Vater hat fünfundzwanzig Blumen gekauft.",
    ),
    (
        "adjectives after a number",
        s(
            c(
                phrase("the old men", numeral=numerals.cardinal(3)),
                "play with",
                phrase("big dogs", numeral=numerals.cardinal(2)),
            )
        ),
        "The three old men play with two big dogs.",
        "Die drei alten Männer spielen mit zwei großen Hunden.",
    ),
    (
        "a known object with a number stays known",
        s(
            c(
                "the girl",
                "find",
                phrase("the keys", numeral=numerals.cardinal(2)),
                place=GARDEN,
                **PAST,
            )
        ),
        "The girl found the two keys in the garden.",
        "Das Mädchen hat die zwei Schlüssel im Garten gefunden.",
    ),
    (
        "price",
        s(
            c(
                "the lamp",
                "cost",
                syntax.Measure(numerals.price(12, 50)),
            )
        ),
        "The lamp costs 12.50 euros.",
        "Die Lampe kostet 12,50 Euro.",
    ),
    (
        "clock time",
        s(
            c(
                "the bus",
                "leave",
                time=numerals.clock_time(7, 30),
                fronted=True,
            )
        ),
        "At half past seven the bus leaves.",
        "Um halb acht fährt der Bus ab.",
    ),
    (
        "date",
        s(
            c(
                "she",
                "come",
                goal=("home", "nach Hause"),
                time=numerals.date(3, "May"),
                **PAST,
            )
        ),
        "She came home on the third of May.",
        "Sie ist am dritten Mai nach Hause gekommen.",
    ),
    (
        "yes-no question",
        s(c("the child", "love", "the horse"), question=True),
        "Does the child love the horse?",
        "Liebt das Kind das Pferd?",
    ),
    (
        "adverbial question in the past",
        s(
            c("they", "work", **PAST),
            question=True,
            interrogative=("where", "wo"),
        ),
        "Where did they work?",
        "Wo haben sie gearbeitet?",
    ),
    (
        "subject question",
        s(c(selection.WHO, "repair", "the computer", **FUTURE)),
        "Who will repair the computer?",
        "Wer wird den Computer reparieren?",
    ),
    (
        "subordinate clause first, then inversion",
        s(
            c("the woman", "sleep", **FUTURE),
            adverbial=syntax.Subordinate(
                ("if", "wenn"), c(syntax.Pronoun("it", "n"), "rain")
            ),
            adverbial_first=True,
        ),
        "If it rains, the woman will sleep.",
        "Wenn es regnet, wird die Frau schlafen.",
    ),
    (
        "when in the past is als",
        s(
            c("the girl", "laugh", **PAST),
            adverbial=syntax.Subordinate(
                ("when", "als"), c(IT("n"), "snow", **PAST)
            ),
        ),
        "The girl laughed when it snowed.",
        "Das Mädchen hat gelacht, als es geschneit hat.",
    ),
    (
        "dass, verb-final with a modal",
        s(
            c(
                "the father",
                "believe",
                complement=that(
                    c(
                        "the children",
                        "help",
                        "the queen",
                        modal=MODAL["can"],
                    )
                ),
            )
        ),
        "The father believes that the children can help the queen.",
        "Der Vater glaubt, dass die Kinder der Königin helfen können.",
    ),
    (
        "whether",
        s(
            c(
                "she",
                "ask",
                complement=syntax.Subordinate(
                    ("whether", "ob"),
                    c("the soup", "eat", passive=True, **PAST),
                ),
                **PAST,
            )
        ),
        "She asked whether the soup was eaten.",
        "Sie hat gefragt, ob die Suppe gegessen wurde.",
    ),
    (
        "infinitive clause with a separable verb",
        s(
            c(
                "the boy",
                "forget",
                table=lexicon.CONTROL,
                complement=to(c("he", "turn on", "the lamp")),
                **PAST,
            )
        ),
        "The boy forgot to turn on the lamp.",
        "Der Junge hat vergessen, die Lampe einzuschalten.",
    ),
    (
        "English strands the preposition",
        s(
            is_(
                phrase(
                    "the train",
                    relative=c("we", "wait for", trace("train")),
                ),
                "long",
            )
        ),
        "The train that we wait for is long.",
        "Der Zug, auf den wir warten, ist lang.",
    ),
    (
        "a reflexive infinitive is extended and takes a comma",
        s(
            c(
                "the child",
                "try",
                table=lexicon.CONTROL,
                complement=to(c("he", "rest")),
                **PAST,
            )
        ),
        "The child tried to rest.",
        "Das Kind hat versucht, sich auszuruhen.",
    ),
    (
        "um always takes a comma",
        s(
            c(
                "the man",
                "run",
                goal=("home", "nach Hause"),
                purpose=in_order_to(c("he", "sleep")),
            )
        ),
        "The man runs home in order to sleep.",
        "Der Mann läuft nach Hause, um zu schlafen.",
    ),
    (
        "a bare infinitive takes no comma",
        s(
            c(
                "the cat",
                "try",
                table=lexicon.CONTROL,
                complement=to(c("he", "sleep")),
            )
        ),
        "The cat tries to sleep.",
        "Die Katze versucht zu schlafen.",
    ),
    (
        "purpose",
        s(
            c(
                "we",
                "go",
                goal=("to Tarvin", "nach Tarvin"),
                purpose=in_order_to(c("we", "rest")),
                **PAST,
            )
        ),
        "We went to Tarvin in order to rest.",
        "Wir sind nach Tarvin gegangen, um uns auszuruhen.",
    ),
    (
        "subject relative clause",
        s(
            c(
                phrase(
                    "the man", relative=c(trace("man"), "feed", "the horse")
                ),
                "sing",
            )
        ),
        "The man who feeds the horse sings.",
        "Der Mann, der das Pferd füttert, singt.",
    ),
    (
        "object relative clause, extraposed",
        s(
            c(
                "the girl",
                "find",
                phrase(
                    "the key", relative=c("I", "lose", trace("key"), **PAST)
                ),
                **PAST,
            )
        ),
        "The girl found the key that I lost.",
        "Das Mädchen hat den Schlüssel gefunden, den ich verloren habe.",
    ),
    (
        "dative plural relative pronoun",
        s(
            c(
                phrase(
                    "the boys",
                    relative=c("the teacher", "help", trace("boys")),
                ),
                "sing",
            )
        ),
        "The boys whom the teacher helps sing.",
        "Die Jungen, denen der Lehrer hilft, singen.",
    ),
    (
        "German preposition pied-piped, reflexive leaning left",
        s(
            is_(
                phrase(
                    "the child",
                    relative=c("my sister", "remember", trace("child")),
                ),
                "happy",
            )
        ),
        "The child whom my sister remembers is happy.",
        "Das Kind, an das sich meine Schwester erinnert, ist glücklich.",
    ),
    (
        "relative clause of place",
        s(
            is_(
                phrase(
                    "the villages",
                    relative=c(
                        "we",
                        "rest",
                        place=syntax.Place(
                            ("in", "in"), trace("villages"), "dat"
                        ),
                    ),
                ),
                "beautiful",
            )
        ),
        "The villages in which we rest are beautiful.",
        "Die Dörfer, in denen wir uns ausruhen, sind schön.",
    ),
    (
        "whose, with a strong adjective",
        s(
            c(
                "he",
                "thank",
                phrase(
                    "a woman",
                    relative=c(
                        phrase("the old dog", possessor=trace("woman")),
                        "sleep",
                        **PAST,
                    ),
                ),
                **PAST,
            )
        ),
        "He thanked a woman whose old dog slept.",
        "Er hat einer Frau gedankt, deren alter Hund geschlafen hat.",
    ),
    (
        "it has the antecedent's gender",
        s(
            c("the woman", "sell", "the table", **PAST),
            adverbial=because(is_(IT("m"), "old", **PAST)),
        ),
        "The woman sold the table because it was old.",
        "Die Frau hat den Tisch verkauft, weil er alt war.",
    ),
    (
        "it as an object",
        s(
            c("the milk", "buy", passive=True, **PAST),
            coordinator=("and", "und"),
            second=c("the cat", "drink", IT("f"), **PAST),
        ),
        "The milk was bought, and the cat drank it.",
        "Die Milch wurde gekauft, und die Katze hat sie getrunken.",
    ),
    (
        "unambiguous pronouns lean on the left bracket",
        s(
            c(
                "the doctor",
                "invite",
                "he",
                time=YESTERDAY,
                fronted=True,
                **PAST,
            )
        ),
        "Yesterday the doctor invited him.",
        "Gestern hat ihn der Arzt eingeladen.",
    ),
    (
        "ambiguous pronouns do not",
        s(
            c(
                "the doctor",
                "invite",
                "she",
                time=YESTERDAY,
                fronted=True,
                **PAST,
            )
        ),
        "Yesterday the doctor invited her.",
        "Gestern hat der Arzt sie eingeladen.",
    ),
    (
        "coordinated subject agrees in the plural",
        s(
            c(
                syntax.Conjunction(phrase("my brother"), phrase("his friend")),
                "wake up",
                **PAST,
            )
        ),
        "My brother and his friend woke up.",
        "Mein Bruder und sein Freund sind aufgewacht.",
    ),
    (
        "weak masculine",
        s(c("a bear", "see", "the boy", **PAST)),
        "A bear saw the boy.",
        "Ein Bär hat den Jungen gesehen.",
    ),
]


@pytest.mark.parametrize(
    ("tree", "expected_english", "expected_german"),
    [row[1:] for row in GOLDEN],
    ids=[row[0].replace(" ", "_") for row in GOLDEN],
)
def test_linearises(tree, expected_english, expected_german):
    assert english.sentence(tree) == expected_english
    assert german.sentence(tree) == expected_german


# --- Morphology ---------------------------------------------------------------

# As school grammars print it: m, f, n, plural for nom, acc, dat, gen.
ADJECTIVE_ENDINGS = {
    "strong": """
        er e  es e
        en e  es e
        em er em en
        en er en er
    """,
    "weak": """
        e  e  e  en
        en e  e  en
        en en en en
        en en en en
    """,
    "mixed": """
        er e  es en
        en e  es en
        en en en en
        en en en en
    """,
}


@pytest.mark.parametrize("declension", ADJECTIVE_ENDINGS)
def test_adjective_endings_are_the_school_table(declension):
    rows = ADJECTIVE_ENDINGS[declension].strip().splitlines()
    table = {
        (case, gender): ending
        for case, row in zip(inflection.CASES, rows, strict=True)
        for gender, ending in zip(inflection.GENDERS, row.split(), strict=True)
    }
    assert inflection.ADJECTIVE_ENDING[declension] == table


@pytest.mark.parametrize(
    ("text", "paradigm"),
    [
        (
            "the old man",
            "der alte Mann, den alten Mann, dem alten Mann, des alten Mannes",
        ),
        (
            "a small child",
            "ein kleines Kind, ein kleines Kind, einem kleinen Kind, "
            "eines kleinen Kindes",
        ),
        (
            "our tired sister",
            "unsere müde Schwester, unsere müde Schwester, "
            "unserer müden Schwester, unserer müden Schwester",
        ),
        (
            "no bear",
            "kein Bär, keinen Bären, keinem Bären, keines Bären",
        ),
        (
            "this name",
            "dieser Name, diesen Namen, diesem Namen, dieses Namens",
        ),
        (
            "cold water",
            "kaltes Wasser, kaltes Wasser, kaltem Wasser, kalten Wassers",
        ),
        (
            "many dark houses",
            "viele dunkle Häuser, viele dunkle Häuser, "
            "vielen dunklen Häusern, vieler dunkler Häuser",
        ),
        (
            "all expensive cars",
            "alle teuren Autos, alle teuren Autos, allen teuren Autos, "
            "aller teuren Autos",
        ),
        (
            "the young mice",
            "die jungen Mäuse, die jungen Mäuse, den jungen Mäusen, "
            "der jungen Mäuse",
        ),
    ],
)
def test_noun_phrase_declines(text, paradigm):
    declined = [
        " ".join(german.decline(phrase(text), case))
        for case in inflection.CASES
    ]
    assert ", ".join(declined) == paradigm


@pytest.mark.parametrize(
    ("headword", "notation", "form"),
    [
        ("Haus", "¨-er", "Häuser"),
        ("Garten", "¨-", "Gärten"),
        ("Apfel", "¨-", "Äpfel"),
        ("Fahrrad", "¨-er", "Fahrräder"),
        ("Zimmer", "-", "Zimmer"),
        ("Königin", "-nen", "Königinnen"),
    ],
)
def test_dictionary_notation_expands(headword, notation, form):
    assert inflection.expand(headword, notation) == form


@pytest.mark.parametrize(
    ("infinitive", "third", "participle"),
    [
        ("kaufen", "kauft", "gekauft"),
        ("verkaufen", "verkauft", "verkauft"),
        ("reparieren", "repariert", "repariert"),
        ("arbeiten", "arbeitet", "gearbeitet"),
        ("regnen", "regnet", "geregnet"),
        ("träumen", "träumt", "geträumt"),
        ("füttern", "füttert", "gefüttert"),
        ("gehören", "gehört", "gehört"),
    ],
)
def test_weak_verbs_conjugate(infinitive, third, participle):
    stem = inflection.verb_stem(infinitive)
    assert inflection.weak_third(stem) == third
    assert inflection.weak_participle(stem) == participle


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (2, ("two", "zwei")),
        (16, ("sixteen", "sechzehn")),
        (17, ("seventeen", "siebzehn")),
        (21, ("twenty-one", "einundzwanzig")),
        (30, ("thirty", "dreißig")),
        (76, ("seventy-six", "sechsundsiebzig")),
        (100, ("one hundred", "einhundert")),
        (325, ("three hundred and twenty-five", "dreihundertfünfundzwanzig")),
    ],
)
def test_cardinals(n, expected):
    assert numerals.cardinal(n) == expected


@pytest.mark.parametrize(
    ("hour", "minute", "expected"),
    [
        (1, 0, ("at one o'clock", "um ein Uhr")),
        (3, 10, ("at ten past three", "um zehn nach drei")),
        (3, 15, ("at a quarter past three", "um Viertel nach drei")),
        (7, 25, ("at twenty-five past seven", "um fünf vor halb acht")),
        (12, 30, ("at half past twelve", "um halb eins")),
        (7, 35, ("at twenty-five to eight", "um fünf nach halb acht")),
        (11, 45, ("at a quarter to twelve", "um Viertel vor zwölf")),
        (12, 55, ("at five to one", "um fünf vor eins")),
    ],
)
def test_clock_times(hour, minute, expected):
    assert numerals.clock_time(hour, minute) == expected


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        (1, ("on the first of May", "am ersten Mai")),
        (3, ("on the third of May", "am dritten Mai")),
        (7, ("on the seventh of May", "am siebten Mai")),
        (12, ("on the twelfth of May", "am zwölften Mai")),
        (20, ("on the twentieth of May", "am zwanzigsten Mai")),
        (28, ("on the twenty-eighth of May", "am achtundzwanzigsten Mai")),
    ],
)
def test_dates(day, expected):
    assert numerals.date(day, "May") == expected


def test_prices():
    assert numerals.price(31) == ("thirty-one euros", "einunddreißig Euro")
    assert numerals.price(5, 5) == ("5.05 euros", "5,05 Euro")
    assert numerals.price(1250) == ("1,250 euros", "1.250 Euro")


def test_every_noun_can_be_spoken_of():
    for noun in lexicon.NOUNS:
        for tense in ("present", "past", "future"):
            kinds = selection.kinds(tense, embedding=False)
            assert selection.repertoire(noun, kinds), noun.singular


def test_every_verb_selects_what_it_needs():
    for verb_ in VERBS:
        assert verb_.subjects
        if verb_.frame and verb_ is not lexicon.COST:
            assert verb_.objects, verb_.english


# --- The corpus ---------------------------------------------------------------


def test_german_is_a_function_of_english():
    translations = {}
    shallow = composer.Composer(seed=1, depth=2, embedding=0.12)
    deep = composer.Composer(seed=2, depth=4, embedding=0.4)
    while len(translations) < 100_000:
        for sentences in (shallow, shallow, deep):
            tree = sentences.sentence()
            target = german.sentence(tree)
            source = english.sentence(tree)
            assert translations.setdefault(source, target) == target


@functools.cache
def corpus(split):
    sizes = {"train": 3000, "test_long": 300}
    return tuple(grammar.generate(split, sizes.get(split, 500)))


def test_no_english_sentence_is_in_two_splits_or_twice_in_one():
    sources = [source for s in grammar.SPLITS for source, _ in corpus(s)]
    assert len(sources) == len(set(sources))


def test_splits_are_the_same_every_time():
    for split in grammar.SPLITS:
        pairs = tuple(grammar.generate(split, 100))
        assert pairs == corpus(split)[:100]


def test_a_smaller_training_split_is_a_prefix():
    assert tuple(grammar.generate("train", 10)) == corpus("train")[:10]


def test_default_sizes():
    assert grammar.SIZES == {
        "train": 50_000,
        "validation": 1_000,
        "test": 1_000,
        "test_compositional": 1_000,
        "test_long": 1_000,
    }
    assert len(list(grammar.generate("validation"))) == 1_000


def held_out(tree):
    return [c for c in grammar.combinations(tree) if grammar.is_held_out(*c)]


def trees(split, size):
    """The first trees of a split, found by the split's own sentences."""
    wanted = {source for source, _ in grammar.generate(split, size)}
    sentences = grammar.composer_of(split)
    while wanted:
        tree = sentences.sentence()
        source = english.sentence(tree)
        if source in wanted:
            wanted.remove(source)
            yield tree


@pytest.mark.parametrize(
    "split", [s for s in grammar.SPLITS if s != "test_compositional"]
)
def test_held_out_combinations_are_in_no_other_split(split):
    for tree in trees(split, 300):
        assert not held_out(tree)


def test_every_compositional_sentence_has_a_held_out_combination():
    for tree in trees("test_compositional", 300):
        assert held_out(tree)


def test_combinations_name_noun_adjective_and_german_case():
    tree = s(
        c(
            "the old man",
            "play with",
            "a black cat",
            place=place("in", "in", "the dark forest"),
        ),
        coordinator=("and", "und"),
        second=is_(
            phrase("the door", possessor=phrase("the big house")), "red"
        ),
    )
    assert set(grammar.combinations(tree)) == {
        ("man", "old", "nom"),
        ("cat", "black", "dat"),
        ("forest", "dark", "dat"),
        ("house", "big", "gen"),
        ("door", "red", "nom"),
    }


def test_held_out_words_are_all_in_the_training_split():
    words = {
        w.strip(",.?") for source, _ in corpus("train") for w in source.split()
    }
    held = {
        w
        for tree in trees("test_compositional", 300)
        for c_ in held_out(tree)
        for w in c_[:2]
    }
    assert held <= words


def test_long_sentences_are_longer_and_deeper_than_any_other():
    def words(split):
        return [len(source.split()) for source, _ in corpus(split)]

    def depth(tree):
        return max(depth for _, depth in syntax.clauses(tree))

    others = [split for split in grammar.SPLITS if split != "test_long"]
    longest = max(max(words(split)) for split in others)
    assert longest <= grammar.MAX_WORDS < min(words("test_long"))
    assert 50 < max(words("test_long")) <= grammar.MAX_WORDS_LONG
    assert max(depth(t) for t in trees("train", 300)) == grammar.MAX_DEPTH
    assert min(depth(t) for t in trees("test_long", 50)) > grammar.MAX_DEPTH


def test_fingerprint_is_golden():
    # The corpus changed if this fails: raise grammar.VERSION with it.
    assert (grammar.VERSION, grammar.fingerprint()) == ("1.0.0", "a71ce1b05aff")


def test_unknown_split_is_an_error():
    with pytest.raises(ValueError, match="`split` must be one of"):
        grammar.generate("dev")


def test_negative_size_is_an_error():
    with pytest.raises(ValueError, match="`size` must be 0 or more"):
        grammar.generate("train", -1)


def test_sentences_are_orthographic():
    for split in grammar.SPLITS:
        for pair in corpus(split):
            for sentence in pair:
                assert sentence[0].isupper()
                assert sentence[-1] in ".?"
                assert "  " not in sentence
                assert " ," not in sentence
                assert ",," not in sentence
                assert ",." not in sentence


def test_corpus_has_the_size_of_task_it_promises():
    pairs = corpus("train")
    words = [len(source.split()) for source, _ in pairs]
    assert 10 < sum(words) / len(words) < 13
    brackets = sum(
        target.rstrip(".?").split()[-1].startswith("ge") for _, target in pairs
    )
    assert brackets > len(pairs) / 10


# --- The tfds builder ---------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        small = dict.fromkeys(grammar.SPLITS, 20)
        patch.setattr(grammar, "SIZES", small)
        dataset = builder.SyntheticTranslate(data_dir=directory, train_size=40)
        dataset.download_and_prepare()
    return dataset


def test_builder_is_read_back_by_name_without_a_download(prepared):
    data, info = tfds.load(
        "synthetic_translate/de-en",
        data_dir=prepared.data_dir.split("/synthetic_translate")[0],
        download=False,
        with_info=True,
    )
    sizes = {name: split.num_examples for name, split in info.splits.items()}
    assert sizes == dict.fromkeys(grammar.SPLITS, 20) | {"train": 40}
    read = {
        (pair["en"].decode(), pair["de"].decode())
        for pair in tfds.as_numpy(data["train"])
    }
    assert read == set(grammar.generate("train", 40))


def test_builder_has_the_element_spec_of_wmt14(prepared):
    text = tf.TensorSpec((), tf.string)
    dataset = tfds.builder_from_directory(prepared.data_dir)
    assert dataset.as_dataset(split="test").element_spec == {
        "de": text,
        "en": text,
    }
    supervised = dataset.as_dataset(split="test_long", as_supervised=True)
    assert supervised.element_spec == (text, text)
    assert dataset.info.supervised_keys == ("de", "en")


def test_builder_calls_its_sentences_synthetic(prepared):
    assert "synthetic" in prepared.info.description
    assert grammar.fingerprint() in prepared.info.description
