"""Each step by itself: what it mends, what it drops, and what it must leave alone."""

import pytest

from imatrix_lab.corpus.clean import boilerplate, language, markup, mojibake, normalise, personal
from imatrix_lab.corpus.clean.report import Report
from imatrix_lab.corpus.clean.rules import Draft, Rules
from imatrix_lab.errors import UsageError
from imatrix_lab.types import Document

LATIN = Rules("Latn", ("no",))
PROSE = "Dette er en hel setning med nok ord til at den ikke er et bruddstykke av en meny."


def after(step, text: str, rules: Rules = LATIN) -> tuple[str, Report]:
    report = Report(step="it")
    draft = Draft.of(Document("d", text, "test", "none"))
    step([draft], rules, report)
    return draft.text, report


def reasons(report: Report) -> set[str]:
    return {reason for _, reason, _ in report.counts}


@pytest.mark.parametrize(
    ("script", "before", "wanted"),
    [
        ("Latn", "Cafe\u0301 a\u030a", "Café å"),
        ("Latn", "so\xadme\u200b thing\ufeff\u2060", "some thing"),
        ("Latn", "a\u200db and \u200e(c)\u202c", "ab and (c)"),
        ("Latn", "family 👨\u200d👩\u200d👧 here", "family 👨\u200d👩\u200d👧 here"),
        ("Latn", "eﬃcient ﬂow, x² and ½", "efficient flow, x² and ½"),
        ("Latn", "1\xa0000  kroner \n og", "1 000 kroner\nog"),
        ("Latn", "bell\x07 icon\ue001 half\ud800", "bell icon half"),
        ("Jpan", "ＡＢＣ１２３、（全角）\u3000です", "ＡＢＣ１２３、（全角）\u3000です"),
        ("Arab", "كـــتاب ١٤٤٢ هـ", "كتاب ١٤٤٢ هـ"),
        ("Arab", "می\u200cروم \u200cو\u200c\u200cن", "می\u200cروم و\u200cن"),
        ("Deva", "क्\u200dष और क्\u200cष", "क्\u200dष और क्\u200cष"),
        ("Deva", "क\u200dख", "कख"),
        ("Thai", "ภาษา\u200bไทย", "ภาษา\u200bไทย"),
        ("Beng", "র\u200d্যাম", "র\u200d্যাম"),
    ],
)
def test_unicode_by_script(script: str, before: str, wanted: str) -> None:
    text, report = after(normalise.normalise, before, Rules(script, ("xx",)))
    assert text == wanted
    assert bool(report.counts) == (before != wanted or before.count("  ") > 0)


def test_malayalam_chillus_become_atomic_and_nta_stays_as_written() -> None:
    rules = Rules("Mlym", ("ml",))
    old = "".join(f"{c}\u0d4d\u200d " for c in normalise.CHILLU)
    text, report = after(normalise.normalise, old, rules)
    assert text == "ൺ ൻ ർ ൽ ൾ ൿ"
    assert report.counts["it", "chillu", "changes"] == 6
    for word in ("എന്റെ", "എൻ്റെ", "എൻറെ"):
        assert after(normalise.normalise, word, rules)[0] == word
    assert after(normalise.normalise, "എന്\u200dറെ", rules)[0] == "എൻറെ"
    # ZWNJ parts a conjunct inside a word, and means nothing after a vowel or at the end
    assert (
        after(normalise.normalise, "ടെസ്റ്റ്\u200cഡി\u200cയ ന്\u200c.", rules)[0] == "ടെസ്റ്റ്\u200cഡിയ ന്."
    )


def test_lost_characters_cost_the_paragraph() -> None:
    text, report = after(normalise.normalise, f"bl\ufffdb\n\n{PROSE}")
    assert text == PROSE
    assert report.counts["it", "replacement character", "paragraphs_dropped"] == 1


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("Latn", "Blåbærsyltetøy på brød – «godt», sa han."),
        ("Latn", "Der Spaß kostet 5 €"),
        ("Mlym", "മലയാളം ഒരു ദ്രാവിഡ ഭാഷയാണ്."),
        ("Cyrl", "Привет, мир — как дела?"),
        ("Jpan", "これは日本語の文章です。"),
        ("Deva", "यह हिन्दी का वाक्य है।"),
    ],
)
@pytest.mark.parametrize("wrong", ["latin-1", "cp1252"])
def test_mojibake_is_repaired_where_it_is_certain(script: str, text: str, wrong: str) -> None:
    broken = text.encode().decode(wrong, "replace" if wrong == "cp1252" else "strict")
    if "\ufffd" in broken:
        pytest.skip("this reader loses bytes")
    fixed, report = after(mojibake.repair, f"{broken}\n\n{PROSE}", Rules(script, ("xx",)))
    assert fixed == f"{text}\n\n{PROSE}"
    assert reasons(report) == {"repaired"}


def test_mojibake_twice_over_and_beyond_repair() -> None:
    twice = "blåbær".encode().decode("latin-1").encode().decode("latin-1")
    assert after(mojibake.repair, twice)[0] == "blåbær"
    text, report = after(mojibake.repair, f"blÃ¥bÃ¦r og жук\n\n{PROSE}")
    assert text == PROSE
    assert reasons(report) == {"not repairable"}


@pytest.mark.parametrize(
    "text",
    [
        "Er det GROẞ“ eller «CAFÉ»?", "„Spaß“ – „Gruß“ — „ß“", "à… la carte, é” et è", "Ä°C",
        "naïve façade",
        "São Paulo, Ângela, ÃO", "Å… ja! Æ—nei", "Ð er islandsk, ð også", "«Ö»", "ČŘŽ š ž",
        "Ünlü İstanbul",
    ],
)  # fmt: skip
def test_good_text_is_not_taken_for_mojibake(text: str) -> None:
    kept, report = after(mojibake.repair, text)
    assert (kept, reasons(report)) == (text, set())


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        ("<p>One <b>bold</b> word.</p><!-- x\n\ny --><p>Two.</p>", "One bold word.\n\nTwo."),
        ("a<script>var a = 1;\n\nb();</script>b", "ab"),
        ("Fish &amp; chips &lt;b&gt;now&lt;/b&gt; &#233;", "Fish & chips now é"),
        ("if a < b and c > d, x<y", "if a < b and c > d, x<y"),
        ("In [[Oslo|the city]], [[Bergen]].{{cite|x}}[[File:A.jpg|thumb]]", "In the city, Bergen."),
        ("== History ==\n\n'''Oslo''' is ''big''.", "History\n\nOslo is big."),
        ("## Heading\n\nA **bold** and *slanted* [link](https://a.b/c) word.",
         "Heading\n\nA bold and slanted link word."),
        ("2 * 3 * 4 = 24, snake_case_name, /dev/snd/*, hyphen-* and $HOME_X (or $B)",) * 2,
        ("\\section{Intro}\n\nAs \\emph{said}~\\cite{me}.", "Intro\n\nAs said."),
        ("[b]Hi[/b] [url=http://x.y]there[/url] [1]", "Hi there [1]"),
        ("Text.\n\nhttps://example.org/a?b=c\n\nMail: a@b.no\n\nSee https://example.org today.",
         "Text.\n\nSee https://example.org today."),
        ("Mengden {{}, {{}}} er ikke tom.", "Mengden {{}, {{}}} er ikke tom."),
    ],
)  # fmt: skip
def test_marks_go_and_text_stays(before: str, wanted: str) -> None:
    assert after(markup.strip, before)[0] == wanted


@pytest.mark.parametrize(
    "text",
    ["| a | b |\n| 1 | 2 |", "{{Infobox unclosed", "$x_1^2 + \\alpha$", "<custom-tag attr>",
     "\\begin{x}", "int main() {\nreturn 0;\n}"],
)  # fmt: skip
def test_what_stays_marked_is_dropped(text: str) -> None:
    kept, report = after(markup.strip, f"{PROSE}\n\n{text}")
    assert kept == PROSE
    assert "marks remain" in reasons(report)


def test_hostile_marks_take_linear_time() -> None:
    """Each would take hours if a pattern looked to the end of the text from every sign."""
    for sign in ("<!--", "<script>", "{{", "[[", "''", "**", "`", "[b", "\\emph{", "<a ", "{|"):
        after(markup.strip, sign * 20_000)
    after(mojibake.repair, "Ã" * 50_000)
    after(personal.replace, "1-" * 50_000 + "@" * 50_000 + "1:" * 20_000)
    after(boilerplate.drop, "a | " * 20_000)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Vi bruker informasjonskapsler for å gi deg en bedre opplevelse.", "notice"),
        ("Les mer »", "notice"),
        ("Hjem | Nyheter | Sport | Kontakt", "menu"),
        ("Kunne ikke åpne filen %s: %d feil.", "placeholder"),
        ("Velkommen, {username}!", "placeholder"),
        ("Siste nytt", "fragment"),
        ("- Hjemmesiden vår\n- Om oss som arbeider her\n- Kontakt\n- Logg inn på siden", "list"),
    ],
)
def test_boilerplate(text: str, reason: str) -> None:
    kept, report = after(boilerplate.drop, f"{PROSE}\n\n{text}")
    assert kept == PROSE
    assert reasons(report) == {reason}


@pytest.mark.parametrize(
    "text",
    [
        "Overskrift uten punktum\n\n" + PROSE,
        "– Nei.\n\n– Jo!\n\n– Hva mener du?\n\n" + PROSE,
        "Prisen steg 5 % i fjor, til $2 milliarder, og 100 % av dem tapte.",
        "Jeg spiste en hel pakke cookies, sa han, " + PROSE * 3,
        "1. Bløtlegg steinen i ti minutter.\n2. Hold kniven i femten grader.\n3. Prøv den.",
        "Vinteren kommer,\nog snøen laver ned\npå taket, på trærne,\npå alt som er.",
        "「そうだね」\n\n彼は笑った。",
    ],
)
def test_running_text_is_not_boilerplate(text: str) -> None:
    rules = Rules("Jpan", ("ja",)) if "「" in text else LATIN
    kept, report = after(boilerplate.drop, text, rules)
    assert (kept, reasons(report)) == (text, set())


NB = (
    "Regjeringen la i går fram et forslag som skal gjøre det lettere for unge å kjøpe sin første"
    " bolig, men opposisjonen mener at det ikke kommer til å hjelpe dem som trenger det mest."
)
EN = (
    "The government yesterday put forward a proposal that should make it easier for young people to"
    " buy their first home, but the opposition says it will not help those who need it most."
)


def both(drafts, rules, report) -> None:
    language.by_script(drafts, rules, report)
    language.by_words([d for d in drafts if d.paragraphs], rules, report)


def test_foreign_paragraphs_and_what_is_among_them_go() -> None:
    text = f"{NB}\n\n{EN}\n\nSee also: home.\n\n{EN}\n\nJa.\n\n{NB}\n\n{NB}"
    kept, report = after(both, text)
    assert kept == f"{NB}\n\nJa.\n\n{NB}\n\n{NB}"
    assert report.counts["it", "paragraph in en", "paragraphs_dropped"] == 2
    assert report.counts["it", "among foreign ones", "paragraphs_dropped"] == 1
    report.labels = ("no",)
    assert report.as_dict()["language_share"] == 1.0
    assert 0.5 < report.as_dict()["language_share_in"] < 0.7


def test_a_foreign_document_goes_whole() -> None:
    kept, report = after(both, f"{EN}\n\n{EN}\n\n{NB}")
    assert kept == ""
    assert reasons(report) == {"document in en"}
    kept, report = after(both, EN, Rules("Mlym", ("ml",)))
    assert (kept, reasons(report)) == ("", {"script of the document"})


def test_a_label_that_the_model_lacks_is_an_error() -> None:
    with pytest.raises(UsageError, match="'nob'") as caught:
        after(both, NB, Rules("Latn", ("nob",)))
    assert "no" in caught.value.fix.split()
