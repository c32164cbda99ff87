"""Notices that may have the form of a sentence: cookies, sharing, subscriptions, rights.

Only a help: what a page repeats, and what has no sentence end, is found in any language. A phrase
is in `INSIDE` where running text of a page hardly has it, else in `WHOLE`. All are casefolded.
"""

from __future__ import annotations

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
