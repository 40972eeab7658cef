"""Relations of persons, companies, towns, goods and books, which the generated passages state."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """One relation: how a passage states it and how a question asks for it.

    Attributes:
        name: The relation's name, also its label in a listing.
        answer: The kind of the answer, a key of the name kinds or of `VALUES`.
        statements: Sentences with ``{s}`` (subject) and ``{a}`` (answer).
        questions: Questions with ``{s}``; some share no content word with the statements.
    """

    name: str
    answer: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


# fmt: off
RELATIONS: dict[str, tuple[Relation, ...]] = {
    "person": (
        Relation("birthplace", "town",
                 ("{s} was born in {a}.", "The birthplace of {s} is {a}.", "{s} is a native of {a}."),
                 ("Where was {s} born?", "What is the birthplace of {s}?", "Where does {s} come from?")),
        Relation("home", "town",
                 ("{s} lives in {a}.", "{s} has a home in {a}.", "{s} resides in {a}."),
                 ("Where does {s} live?", "In which town is the home of {s}?", "Where would one visit {s} today?")),
        Relation("employer", "company",
                 ("{s} works for {a}.", "{s} is employed by {a}.", "{s} has a job at {a}."),
                 ("Who does {s} work for?", "Which company employs {s}?", "Who pays the salary of {s}?")),
        Relation("birth year", "year",
                 ("{s} was born in the year {a}.", "The birth year of {s} is {a}.", "The life of {s} began in {a}."),
                 ("When was {s} born?", "What is the birth year of {s}?", "Since when has {s} been alive?")),
        Relation("instrument", "instrument",
                 ("{s} plays the {a}.", "The instrument of {s} is the {a}.", "{s} practises the {a} every day."),
                 ("What does {s} play?", "Which instrument does {s} practise?", "On what does {s} make music?")),
    ),
    "company": (
        Relation("founder", "person",
                 ("{s} was founded by {a}.", "The founder of {s} is {a}.", "{s} was set up by {a}."),
                 ("Who founded {s}?", "Who is the founder of {s}?", "Who got {s} started?")),
        Relation("director", "person",
                 ("The director of {s} is {a}.", "{s} is led by {a}.", "{s} is managed by {a}."),
                 ("Who leads {s}?", "Who is the director of {s}?", "Who is the boss at {s}?")),
        Relation("seat", "town",
                 ("{s} is based in {a}.", "The seat of {s} is in {a}.", "{s} has offices in {a}."),
                 ("Where is {s} based?", "In which town is the seat of {s}?", "Where can one find {s}?")),
        Relation("founding year", "year",
                 ("{s} was founded in {a}.", "{s} opened in the year {a}.", "The founding year of {s} is {a}."),
                 ("When was {s} founded?", "In what year did {s} open?", "Since when does {s} exist?")),
        Relation("trade", "trade",
                 ("{s} makes {a}.", "{s} is a producer of {a}.", "The workshops of {s} turn out {a}."),
                 ("What does {s} make?", "What is {s} a producer of?", "What would one buy from {s}?")),
    ),
    "town": (
        Relation("river", "river",
                 ("{s} lies on the {a}.", "Through {s} flows the {a}.", "{s} stands beside the river {a}."),
                 ("Which river flows through {s}?", "On which river does {s} lie?", "What water runs past {s}?")),
        Relation("country", "country",
                 ("{s} is a town in {a}.", "{s} belongs to {a}.", "{s} is the pride of {a}."),
                 ("In which country is {s}?", "What country does {s} belong to?", "Which nation governs {s}?")),
        Relation("mayor", "person",
                 ("The mayor of {s} is {a}.", "{s} elected {a} as mayor.", "{s} chose {a} as mayor."),
                 ("Who is the mayor of {s}?", "Who was elected in {s}?", "Who heads the town hall of {s}?")),
        Relation("dish", "dish",
                 ("{s} is famous for {a}.", "The inns of {s} serve {a}.", "The dish of {s} is {a}."),
                 ("What is {s} famous for?", "What do the inns of {s} serve?", "What should a guest eat in {s}?")),
        Relation("first record", "year",
                 ("{s} was first recorded in {a}.", "The first record of {s} is from {a}.", "{s} dates from {a}."),
                 ("When was {s} first recorded?", "From when does {s} date?", "How old is {s}?")),
    ),
    "goods": (
        Relation("colour", "colour",
                 ("The {s} is {a}.", "The {s} comes in {a}.", "The colour of the {s} is {a}."),
                 ("What colour is the {s}?", "In what colour does the {s} come?", "What does the {s} look like?")),
        Relation("price", "price",
                 ("The {s} costs {a}.", "The price of the {s} is {a}.", "The {s} sells for {a}."),
                 ("What does the {s} cost?", "What is the price of the {s}?", "How much money is the {s}?")),
        Relation("maker", "company",
                 ("The {s} is made by {a}.", "The maker of the {s} is {a}.", "The {s} is built by {a}."),
                 ("Who makes the {s}?", "Who is the maker of the {s}?", "Which company is behind the {s}?")),
        Relation("weight", "weight",
                 ("The {s} weighs {a}.", "The weight of the {s} is {a}.", "On a scale the {s} shows {a}."),
                 ("What does the {s} weigh?", "What is the weight of the {s}?", "How heavy is the {s}?")),
    ),
    "book": (
        Relation("author", "person",
                 ("{s} was written by {a}.", "The author of {s} is {a}.", "{s} is the work of {a}."),
                 ("Who wrote {s}?", "Who is the author of {s}?", "From whose pen is {s}?")),
        Relation("year", "year",
                 ("{s} appeared in {a}.", "{s} was published in the year {a}.", "{s} is a book of {a}."),
                 ("When did {s} appear?", "In what year was {s} published?", "When could one first read {s}?")),
        Relation("setting", "town",
                 ("{s} is set in {a}.", "The story of {s} takes place in {a}.", "The scene of {s} is {a}."),
                 ("Where is {s} set?", "Where does the story of {s} take place?", "Where do the events in {s} occur?")),
        Relation("publisher", "company",
                 ("{s} was published by {a}.", "The publisher of {s} is {a}.", "{s} was printed by {a}."),
                 ("Who published {s}?", "Which company printed {s}?", "Who brought {s} to the shops?")),
        Relation("language", "language",
                 ("{s} is written in {a}.", "The language of {s} is {a}.", "{s} was told in {a}."),
                 ("What language is {s} in?", "What is the language of {s}?", "What must readers of {s} know?")),
    ),
}
# fmt: on
OPENING_LINES = {
    "person": ("Some short lives.", "News of the neighbours.", "From the parish book."),
    "company": ("Notice to all traders.", "The business page reports.", "From the trade register."),
    "town": ("Notes from a journey.", "A guide for travellers.", "Postcards from abroad."),
    "goods": ("New in the shop.", "The autumn catalogue.", "Today on the market."),
    "book": ("From the library shelves.", "Books of the month.", "A reader reports."),
}
