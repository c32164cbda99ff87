"""What stands on a page and is no running text: menus, buttons, notices, lists, placeholders.

Structure decides, in every language alike; `phrases` helps with what has the form of a sentence.
"""

import re
from collections.abc import Sequence

from imatrix_lab.corpus.clean.report import LINES, PARAGRAPHS, Report
from imatrix_lab.corpus.clean.rules import Draft, Rules

_LATIN = (
    # of the Web, in any language
    "all rights reserved", "© 19", "© 20", "©20", "copyright ©", "copyright (c)", "lorem ipsum",
    "powered by wordpress", "enable javascript", "aktiver javascript", "javascript aktivieren",
    # en
    "accept cookies", "use cookies", "uses cookies", "cookie policy", "cookie settings",
    "click here to", "share this article", "share this post",
    "share on facebook", "share on twitter",
    "share via ", "sign up for our", "sign up to our", "subscribe to our", "log in to your account",
    "leave a comment", "leave a reply", "skip to content", "skip to main content", "terms of use",
    "terms and conditions", "terms of service", "privacy policy", "back to top", "follow us on",
    "your email address will not", "add to cart", "page not found",
    # nb nn da sv fi et
    "informasjonskapsler", "informasjonskapslar", "informationskapsler", "bruker cookies",
    "brukar cookies", "bruger cookies", "använder cookies", "använder kakor", "klikk her",
    "klik her for", "klicka här", "del på facebook", "dela på facebook", "personvernerklæring",
    "personvernerklering", "integritetspolicy", "meld deg på nyhetsbrev",
    "meld deg på vårt nyhetsbrev",
    "tilmeld dig vores nyhedsbrev", "alle rettigheter", "alle rettar", "alla rättigheter",
    "e-postadressen din vil ikke", "hopp til hovedinnhold", "hopp til innhold", "hopp til innhald",
    "käyttää evästeitä", "evästekäytäntö", "kaikki oikeudet pidätetään",
    # de nl
    "hier klicken", "klicken sie hier", "alle rechte vorbehalten", "datenschutzerklärung",
    "verwendet cookies", "verwenden cookies", "newsletter anmelden", "newsletter abonnieren",
    "zum inhalt springen", "alle rechten voorbehouden", "gebruikt cookies", "gebruiken cookies",
    # fr es pt it ro
    "cliquez ici", "tous droits réservés", "politique de confidentialité", "utilise des cookies",
    "partager sur facebook", "haga clic aquí", "haz clic aquí", "todos los derechos reservados",
    "política de privacidad", "utiliza cookies", "utilizamos cookies", "compartir en facebook",
    "clique aqui", "todos os direitos reservados", "política de privacidade", "clicca qui",
    "tutti i diritti riservati", "utilizza i cookie", "toate drepturile rezervate",
    # pl cs tr sw id vi
    "wszelkie prawa zastrzeżone", "pliki cookie", "všechna práva vyhrazena", "soubory cookie",
    "tüm hakları saklıdır", "buraya tıklayın", "haki zote zimehifadhiwa", "bofya hapa",
    "hak cipta dilindungi", "klik di sini", "bấm vào đây", "bảo lưu mọi quyền",
)  # fmt: skip

_OTHERS = (
    # ru uk bg el he
    "все права защищены", "файлы cookie", "нажмите здесь", "усі права захищено", "файли cookie",
    "всички права запазени", "με επιφύλαξη παντός δικαιώματος", "כל הזכויות שמורות",
    # ar fa
    "جميع الحقوق محفوظة", "ملفات تعريف الارتباط", "اضغط هنا", "انقر هنا", "کلیه حقوق", "تمامی حقوق",
    # hi bn ta ml
    "सर्वाधिकार सुरक्षित", "यहाँ क्लिक करें", "यहां क्लिक करें", "কপিরাইট ©", "எங்கே கிளிக்",
    "ഇവിടെ ക്ലിക്ക്", "എല്ലാ അവകാശങ്ങളും",
    # zh ja ko
    "版权所有", "版權所有", "保留所有权利", "点击这里",
    "點擊這裡", "点击查看", "詳しくはこちら", "無断転載",
    "プライバシーポリシー", "무단전재", "무단 전재", "개인정보처리방침",
)  # fmt: skip

INSIDE = {"Latn": _LATIN}
"""By script; every other script has `REST`, and the signs that no script owns."""
REST = (
    *_OTHERS,
    "all rights reserved",
    "©20",
    "© 20",
    "lorem ipsum",
    "使用cookie",
    "使用 cookie",
    "cookieを使用",
    "クッキーを使用",
    "쿠키를 사용",
)

WHOLE = frozenset((
    "read more", "learn more", "see more", "show more", "more", "share", "share this", "sign up",
    "log in", "sign in", "subscribe", "menu", "search", "home", "next", "previous", "advertisement",
    "les mer", "les meir", "læs mere", "läs mer", "les også", "les òg", "annonse", "meny", "søk",
    "del", "dela", "neste", "forrige", "førre", "logg inn", "abonner", "lue lisää", "jaa", "mainos",
    "loe edasi", "weiterlesen", "mehr erfahren", "mehr lesen", "anzeige",
    "teilen", "suche", "lees meer",
    "lees verder", "lire la suite", "en savoir plus", "partager",
    "leer más", "compartir", "leia mais",
    "compartilhar", "leggi tutto", "leggi di più", "condividi", "citește mai mult", "czytaj więcej",
    "czytaj dalej", "číst dál", "читать далее", "читать дальше", "поделиться", "читати далі",
    "devamını oku", "paylaş", "soma zaidi", "baca juga",
    "baca selengkapnya", "xem thêm", "đọc thêm",
    "اقرأ المزيد", "بیشتر بخوانید", "और पढ़ें", "ये भी पढ़ें",
    "കൂടുതൽ വായിക്കുക", "മേലും വായിക്കുക",
    "மேலும் படிக்க", "আরও পড়ুন", "阅读全文", "閱讀全文",
    "阅读更多", "続きを読む", "もっと見る", "더보기", "더 보기",
))  # fmt: skip


SENTENCE_END = re.compile(
    r"[.!?:…。！？：．؟۔।॥։።၊။៖។૏๚᠃⸮][ \d\"“”„»«›‹’'」』）〉》】\])*]*$|[\"“”»«」』）]$"
)
"""How a sentence ends, in any script; a note's number may follow. Speech ends with its mark."""
WITHOUT_ENDS = {"Thai", "Laoo", "Tibt"}
"""Scripts that do without such marks."""

FRAGMENT_MAX = 60
"""Latin characters; a longer paragraph without a sentence end is a headline or a verse."""
NOTICE_MAX = 200
"""Latin characters of a notice; in a longer paragraph the words are its subject."""
LIST_LINES_MIN = 3
LINE_MAX = 60

_BULLET = re.compile(r"[ \t]*(?:[•·▪▸►◦‣※○●■□◆★☆✓✔➤→»|]|[-*+–—][ \t]|\(?\d{1,3}[.)][ \t])")
_PLACEHOLDER = re.compile(
    r"(?<![\w%])%(?:\d{1,2}\$)?[-+0]?\d{0,2}(?:\.\d)?(?:l{0,2}[dux]|[sdiufxg@])(?![^\W\d_])"
    r"|%\([A-Za-z_]\w{0,30}\)[sd]|\$\{[\w.]{1,40}\}"
    r"|(?<!\w)\{(?:\d{1,2}|[A-Za-z_]\w{0,30})\}(?!\})"
    r"|(?<![\w%])%[1-9](?!\d|[.,]\d|[ \xa0]?%)(?!\w)"
)
_SEPARATED = re.compile(r"[^|·•›»\n]{1,30}(?:[ \t][|·•›»][ \t][^|·•›»\n]{1,30}){2,}")
_SEPARATORS = "|·•›»"


def drop(drafts: Sequence[Draft], rules: Rules, report: Report) -> None:
    """Drop paragraphs and lines that are no running text."""
    for draft in drafts:
        where = draft.document.id
        paragraphs = [_lines(p, where, rules, report) for p in draft.paragraphs]
        reasons = [_reason(p, rules) if p else "" for p in paragraphs]
        _forgive_headings(reasons)
        kept = []
        for paragraph, reason in zip(paragraphs, reasons, strict=True):
            if reason:
                report.count(reason, PARAGRAPHS, where, paragraph)
            elif paragraph:
                kept.append(paragraph)
        draft.paragraphs = kept


def _reason(paragraph: str, rules: Rules) -> str:
    """Return why a paragraph is no running text, or nothing."""
    if ("%" in paragraph or "{" in paragraph or "$" in paragraph) and _PLACEHOLDER.search(
        paragraph
    ):
        return "placeholder"
    if len(paragraph) <= rules.chars(NOTICE_MAX):
        if _is_notice(paragraph, rules):
            return "notice"
        if _is_menu(paragraph):
            return "menu"
        if _is_fragment(paragraph, rules):
            return "fragment"
    if "\n" in paragraph and _is_list(paragraph.split("\n"), rules):
        return "list"
    return ""


def _is_notice(text: str, rules: Rules) -> bool:
    folded = text.casefold()
    if folded.strip(" .!:»›>→…▸") in WHOLE:
        return True
    return any(map(folded.__contains__, INSIDE.get(rules.script, REST)))


def _is_menu(text: str) -> bool:
    return any(map(text.__contains__, _SEPARATORS)) and _SEPARATED.fullmatch(text) is not None


def _is_fragment(text: str, rules: Rules) -> bool:
    """Return whether a paragraph is a few words that do not end as a sentence."""
    if len(text) > rules.chars(FRAGMENT_MAX) or rules.script in WITHOUT_ENDS:
        return False
    return not SENTENCE_END.search(text[-10:])


def _forgive_headings(reasons: list[str]) -> None:
    """Keep a fragment that stands alone before running text: it is a heading."""
    for i, reason in enumerate(reasons[:-1]):
        alone = i == 0 or reasons[i - 1] != "fragment"
        if reason == "fragment" and alone and not reasons[i + 1]:
            reasons[i] = ""


def _is_list(lines: Sequence[str], rules: Rules) -> bool:
    """Return whether most lines are a few words without a sentence end, or bullets of such.

    Lines wrapped at a fixed width are longer; those of dialogue and verse end with a mark.
    """
    if len(lines) < LIST_LINES_MIN:
        return False
    longest = rules.chars(LINE_MAX)
    poor = sum(
        len(line) < longest and not SENTENCE_END.search(line[-10:]) and line[-1:] not in ",،、;—-"
        for line in lines
    )
    if rules.script in WITHOUT_ENDS:
        poor = 0
    bullets = sum(_BULLET.match(line) is not None for line in lines)
    return 10 * poor >= 8 * len(lines) or 2 * min(bullets, poor) > len(lines)


def _lines(paragraph: str, where: str, rules: Rules, report: Report) -> str:
    """Return a paragraph of several lines without those that are notices or menus."""
    if "\n" not in paragraph:
        return paragraph
    kept = []
    for line in paragraph.split("\n"):
        short = len(line) <= rules.chars(NOTICE_MAX)
        if short and (_is_notice(line, rules) or _is_menu(line)):
            report.count("notice or menu", LINES, where, line)
        else:
            kept.append(line)
    return "\n".join(kept)
