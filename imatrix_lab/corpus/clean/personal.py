"""Replace personal data by stand-ins: addresses, telephone and identity numbers, accounts.

The sentence stays, since it is as good text as before: an e-mail address becomes name@example.com
(RFC 2606), a public IP address one of the blocks for documentation (RFC 5737, RFC 3849), and in
numbers every digit becomes 0, so that the length and separators that a tokenizer sees stay.

A number is recognised by a form of its own or by its check digit. Years, prices, ISBN, and long
numbers without either survive; so does a telephone number written like any other number.
"""

import calendar
import ipaddress
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imatrix_lab.corpus.clean.report import CHANGES, Report
from imatrix_lab.corpus.clean.rules import Draft, Rules

_VERHOEFF_P = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)
_FINNISH = "0123456789ABCDEFHJKLMNPRSTUVWXY"


def luhn(digits: str) -> bool:
    """Return whether the last digit is right by Luhn (ISO/IEC 7812-1) and not all are 0."""
    total = 0
    for i, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + i % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0 and digits.strip("0") != ""


def verhoeff(digits: str) -> bool:
    """Return whether the last digit is right by Verhoeff (1969), as in Aadhaar numbers."""
    check = 0
    for i, digit in enumerate(reversed(digits)):
        value = int(digit)
        for _ in range(i % 8):
            value = _VERHOEFF_P[value]
        turned = check + value if check < 5 else check - value  # in the dihedral group of order 10
        check = turned % 5 + 5 * ((check < 5) != (value < 5))
    return check == 0


def _is_date(day: str, month: str, offset: int = 100) -> bool:
    """Return whether a leap year has this day, to which `offset` may have been added."""
    n = int(day) % offset if int(day) > offset else int(day)
    return 1 <= int(month) <= 12 and 1 <= n <= calendar.monthrange(2000, int(month))[1]


def norwegian(digits: str) -> bool:
    """Return whether 11 digits are a fødselsnummer or D-number (day + 40): two digits modulo 11."""
    return (
        _is_date(digits[:2], digits[2:4], offset=40)
        and _weighted(digits, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)) % 11 == 0
        and _weighted(digits, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0
    )


def swedish(digits: str) -> bool:
    """Return whether YYMMDDNNNC or YYYYMMDDNNNC is a personnummer (day + 60: samordningsnummer)."""
    digits = digits[-10:]
    return _is_date(digits[4:6], digits[2:4], offset=60) and luhn(digits)


def danish(digits: str) -> bool:
    """Return whether DDMMYYNNNN can be a CPR number; since 2007 it needs no valid check digit."""
    return _is_date(digits[:2], digits[2:4])


def finnish(code: str) -> bool:
    """Return whether DDMMYY, a century sign, NNN and a letter or digit is a henkilötunnus."""
    number = int(code[:6] + code[7:10])
    return _is_date(code[:2], code[2:4]) and _FINNISH[number % 31] == code[10]


def german_tax(digits: str) -> bool:
    """Return whether 11 digits are a Steuer-Identifikationsnummer (ISO/IEC 7064, MOD 11,10)."""
    product = 10
    for digit in digits[:10]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return digits[0] != "0" and (11 - product) % 10 == int(digits[10])


def iban(code: str) -> bool:
    """Return whether the check digits of an account number are right (ISO 13616, modulo 97)."""
    turned = code[4:] + code[:4]
    return 15 <= len(code) <= 34 and int("".join(str(int(c, 36)) for c in turned)) % 97 == 1


def _weighted(digits: str, weights: Sequence[int]) -> int:
    return sum(int(d) * w for d, w in zip(digits, weights, strict=False))


EMAIL = "name@example.com"
IPV4, IPV6 = "192.0.2.1", "2001:db8::1"
_RESERVED = re.compile(r"@(?:[\w-]+\.)*(?:example(?:\.\w+)?|localhost|test|invalid)$", re.I)


def _bare(text: str) -> str:
    """Return letters in capitals and digits, those of any script as 0–9."""
    return "".join(
        str(unicodedata.decimal(c)) if c.isdecimal() else c.upper() for c in text if c.isalnum()
    )


_W = r"\d_A-Za-zÀ-ɏ"
"""Characters that may not touch a number; letters of scripts without spaces may."""


def _zeros(text: str) -> str:
    return re.sub(r"\d", "0", text)


@dataclass(frozen=True)
class Kind:
    """One kind of data: its pattern, a test of the whole match, and what replaces a match.

    `part`: what every match has in it. It is found faster, and seldom: what looks back at what is
    before it makes a pattern slow.
    """

    reason: str
    part: re.Pattern[str]
    pattern: re.Pattern[str]
    test: Callable[[str], bool]
    stand_in: Callable[[str], str] = _zeros


def _kind(reason: str, pattern: str, test: Callable[[str], bool], part: str = "") -> Kind:
    bounded = rf"(?<![{_W}.,:/-])(?:{pattern})(?![{_W}/-]|[.,:]\d)"
    return Kind(reason, re.compile(part or pattern), re.compile(bounded), test)


def _public(text: str) -> bool:
    """Return whether an IP address can be someone's; version and section numbers are small."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and sum(part >= 32 for part in address.packed) >= 2
    return address.is_global and text.count(":") >= 3


def _is_phone(text: str) -> bool:
    digits = _bare(text)
    return 8 <= len(digits) <= 15 and len(set(digits.lstrip("0")[2:])) > 1


def _is_card(text: str) -> bool:
    issuers = r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|6011|65|35(?:2[89]|[3-8])"
    return luhn(digits := _bare(text)) and re.match(issuers, digits) is not None


def _checked(test: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda text: test(_bare(text))


_CUE = (
    r"tel(?:ephone|efon|\xe9fono?|\xe9phone|efono)?|tlf|tfn|phone|mob(?:ile?|il)?|(?:tele)?fax|"
    r"whatsapp|handy|gsm|puh(?:elin)?|simu|тел(?:ефон)?|電話(?:番号)?|电话|ফোন|फोन|फ़ोन|मोबाइल|"
    r"ഫോൺ|മൊബൈൽ|தொலைபேசி|هاتف|تلفن|전화"
)
_GAP = r"[ \xa0.\-\u2011\u2013/]"

KINDS = (
    Kind(
        "e-mail",
        re.compile("@"),
        re.compile(
            r"(?<![A-Za-z0-9_.+-])[A-Za-z0-9_.+-]{1,64}@(?:[A-Za-z0-9À-ɏ-]{1,63}\.){1,6}[A-Za-z]{2,24}"
            rf"(?![{_W}-])"
        ),
        lambda text: _RESERVED.search(text) is None,
        lambda text: EMAIL,
    ),
    Kind(
        "IP address",
        re.compile(r"\d\.\d{1,3}\.\d"),
        re.compile(r"(?<![\w.:§/-])(?<!version )\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)", re.I),
        _public,
        lambda text: IPV4,
    ),
    Kind(
        "IP address",
        re.compile(r":[0-9a-f]{1,4}:", re.I),
        re.compile(r"(?<![\w:.])[0-9a-f]{1,4}(?::{1,2}[0-9a-f]{1,4}){2,7}(?:::)?(?![\w:])", re.I),
        _public,
        lambda text: IPV6,
    ),
    _kind("account", r"[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?", _checked(iban)),
    _kind(
        "card",
        r"\d{4}([ -]?)\d{4}\1\d{4}\1\d{4}|3[47]\d{2}([ -]?)\d{6}\2\d{5}",
        _is_card,
        r"\d{4}[ -]?\d{4}",
    ),
    _kind("identity number", r"\d{6} ?\d{5}", _checked(norwegian)),
    _kind("identity number", r"(?:\d{2})?\d{6}[-+]\d{4}", _checked(swedish), r"\d{6}[-+]\d{4}"),
    _kind("identity number", r"\d{6}-\d{4}", _checked(danish)),
    _kind("identity number", r"\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]", finnish),
    _kind("identity number", r"[2-9]\d{3}([ -])\d{4}\1\d{4}", _checked(verhoeff)),
    _kind(  # US
        "identity number",
        r"(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}",
        bool,
        r"\d{3}-\d{2}-\d{4}",
    ),
    _kind(
        "identity number",
        r"(?:(?<=nummer )|(?<=IdNr\. )|(?<=ID ))\d{2} ?\d{3} ?\d{3} ?\d{3}",
        _checked(german_tax),
        r"\d{2} ?\d{3} ?\d{3} ?\d{3}",
    ),
    Kind(  # by its plus sign
        "telephone",
        re.compile(r"\+ ?\d"),
        re.compile(
            rf"(?<![\w+.,=^])\+ ?[1-9]\d{{0,2}}(?:{_GAP}{{0,2}}\(?\d{{1,5}}\)?){{2,7}}"
            rf"(?![{_W}]|[.,]\d)"
        ),
        _is_phone,
    ),
    Kind(  # by the word before it
        "telephone",
        re.compile(r"\d"),
        re.compile(
            rf"(?<![^\W\d_])(?:{_CUE})[ .:：\xa0]{{1,3}}\(?\d{{1,5}}\)?"
            rf"(?:{_GAP}{{0,2}}\d{{1,5}}){{1,6}}(?![{_W}])",
            re.I,
        ),
        _is_phone,
    ),
    _kind(  # national, with the trunk prefix and hyphens: Japan, India, Germany
        "telephone",
        r"0\d{1,4}[-\u2011]\d{1,4}[-\u2011]\d{4}",
        lambda text: 10 <= len(_bare(text)) <= 11,
    ),
    _kind(
        "telephone",
        r"\(\d{3}\) ?\d{3}-\d{4}|[2-9]\d{2}([-.])[2-9]\d{2}\1\d{4}",
        _is_phone,
        r"\d{3}[-.]\d{4}",
    ),
    _kind("telephone", r"0[1-9](?:([ .])\d{2})(?:\1\d{2}){3}", _is_phone),  # France
)

_NATIVE = "\u0660-\u0669\u06f0-\u06f9\u0966-\u096f\u09e6-\u09ef"  # Arabic, Persian, Hindi, Bengali
_DIGITS = re.compile(rf"[0-9{_NATIVE}](?:[^\w\n]{{0,3}}\d){{5}}")
"""Every kind of number has six digits that are not far apart."""


def replace(drafts: Sequence[Draft], rules: Rules, report: Report) -> None:
    """Replace personal data by stand-ins."""
    for draft in drafts:
        for i, text in enumerate(draft.paragraphs):
            if "@" in text or _DIGITS.search(text) or text.count(":") >= 3:
                draft.paragraphs[i] = _replaced(text, draft.document.id, report)


def _replaced(text: str, where: str, report: Report) -> str:
    for kind in KINDS:
        if not kind.part.search(text):
            continue
        matches = [m for m in kind.pattern.finditer(text) if kind.test(m.group())]
        for match in reversed(matches):
            start, end = match.span()
            stand_in = kind.stand_in(match.group())
            if stand_in != match.group():
                report.count(kind.reason, CHANGES, where, text[max(0, start - 40) : end + 10])
                text = text[:start] + stand_in + text[end:]
    return text
