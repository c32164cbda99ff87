"""Notices that have the form of a sentence: cookies, sharing, subscriptions, rights.

Only a help: what a page repeats, and what has no sentence end, is found in any language. A phrase
is here where it hardly occurs in running text.
"""

from __future__ import annotations

import re

PHRASES = (
    # of the Web, in any language
    r"all rights reserved", r"©\s?\d{4}", r"\bcopyright ?(?:©|\(c\)|\d{4})", r"lorem ipsum",
    r"powered by", r"javascript", r"\bcookies?\b",
    # en
    r"\bread more\b", r"\bclick here\b", r"\bshare (?:this|on|via)\b", r"\bsign up (?:for|to) our\b",
    r"\bsubscribe to (?:our|the)\b", r"\blog ?in to\b", r"\bleave a (?:comment|reply)\b",
    r"\bskip to (?:main )?content\b", r"\bterms (?:of use|and conditions|of service)\b",
    r"\bprivacy policy\b", r"\bback to top\b", r"\bfollow us on\b", r"\byour email address\b",
    r"\badd to cart\b", r"\bpage not found\b",
    # nb nn da sv
    r"\b(?:les|læs|läs) mer[ea]?(?: her| om|\W*$)", r"\bklikk? h[eä]r\b", r"\bdel på facebook\b",
    r"\binformasjonskapsler\b", r"\binformationskapsler\b", r"\bpersonvernerklæring", r"\bintegritetspolicy\b",
    r"\bmeld deg på nyhetsbrev", r"\btilmeld dig\b.{0,30}\bnyhedsbrev", r"\balle rettigheter\b",
    r"\bdin e-?postadresse\b", r"\bhopp til (?:hoved)?innhold", r"\bhopp til innhald",
    # de nl
    r"\bweiterlesen\b", r"\bmehr erfahren\b", r"\bhier klicken\b", r"\bklicken sie hier\b",
    r"\balle rechte vorbehalten\b", r"\bdatenschutzerklärung\b", r"\bnewsletter (?:anmelden|abonnieren)\b",
    r"\bzum inhalt springen\b", r"\blees (?:meer|verder)\W*$", r"\balle rechten voorbehouden\b",
    # fr es pt it ca ro
    r"\blire la suite\b", r"\ben savoir plus\W*$", r"\bcliquez ici\b", r"\btous droits réservés\b",
    r"\bpolitique de confidentialité\b", r"\bpartager sur\b", r"\bleer más\W*$", r"\bhaga? clic aquí\b",
    r"\btodos los derechos reservados\b", r"\bpolítica de privaci(?:dad|dade)\b", r"\bcompartir en\b",
    r"\bleia mais\W*$", r"\bclique aqui\b", r"\btodos os direitos reservados\b", r"\bleggi tutto\b",
    r"\bclicca qui\b", r"\btutti i diritti riservati\b", r"\bcitește mai (?:mult|departe)\b",
    # fi et pl cs ru uk tr
    r"\blue lisää\W*$", r"\bevästei", r"\bkaikki oikeudet pidätetään\b", r"\bloe edasi\W*$",
    r"\bczytaj (?:więcej|dalej)\b", r"\bwszelkie prawa zastrzeżone\b", r"\bčíst dál\b",
    r"\bвсе права защищены\b", r"\bчитать (?:далее|дальше|полностью)\b", r"\bусі права захищено\b",
    r"\bчитати (?:далі|повністю)\b", r"\btüm hakları saklıdır\b", r"\bdevamını oku\b",
    # ar fa hi ml ta bn sw id vi
    "جميع الحقوق محفوظة", "اقرأ المزيد", "ملفات تعريف الارتباط", "کلیه حقوق", "सर्वाधिकार सुरक्षित",
    "और पढ़ें", "यहाँ क्लिक करें", "यहां क्लिक करें", "കൂടുതൽ വായിക്കുക", "ഇവിടെ ക്ലിക്ക്",
    "മേലും വായിക്കുക", "மேலும் படிக்க", "আরও পড়ুন", r"\bsoma zaidi\W*$", r"\bhaki zote zimehifadhiwa\b",
    r"\bbaca (?:juga|selengkapnya)\b", r"\bxem thêm\W*$",
    # zh ja ko
    "版权所有", "版權所有", "点击这里", "點擊這裡", "阅读全文", "閱讀全文", "阅读更多", "続きを読む", "詳しくはこちら",
    "無断転載", "プライバシーポリシー", "더 ?보기$", "무단 ?전재",
)  # fmt: skip

NOTICES = re.compile("|".join(PHRASES), re.I)
