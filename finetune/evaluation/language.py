"""Which language a text is in, by its script and its most frequent words: no model, no dependency.

Good for whole answers of a few sentences in the languages of LANGUAGES. What it cannot do: tell apart languages of one
script in a few words (then every one of them passes), languages that are not listed, and texts of several languages
(the script with most letters counts).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache

_SCRIPTS = {
    "LATIN": (
        "en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "no", "fi", "sw", "vi", "pl", "tr", "id", "ro", "cs",
        "hu",
    ),
    "CYRILLIC": ("ru", "bg", "uk"),
    "DEVANAGARI": ("hi", "mr", "ne"),
    "ARABIC": ("ar", "fa", "ur"),
    "BENGALI": ("bn",),
    "GUJARATI": ("gu",),
    "GURMUKHI": ("pa",),
    "KANNADA": ("kn",),
    "MALAYALAM": ("ml",),
    "TAMIL": ("ta",),
    "TELUGU": ("te",),
    "THAI": ("th",),
    "HANGUL": ("ko",),
    "GREEK": ("el",),
    "HEBREW": ("he",),
    "HIRAGANA": ("ja",),
    "KATAKANA": ("ja",),
    "CJK": ("zh",),
}  # fmt: skip
"""The languages of a script, by the first word of its letters' Unicode names."""
LANGUAGES = frozenset(language for languages in _SCRIPTS.values() for language in languages)

_WORDS = {
    "en": "the of and to in is that it for was with as on are this be at by you not have from or but they we i a your",
    "de": "der die und das ist nicht ein eine zu den mit sich auf für von dem im es ich sie wir auch als sind wie oder",
    "fr": "le la les des et est une un que qui dans pour pas sur avec ce il au du nous vous je ne en plus l d c",
    "es": "el la los las de que y en un una es por con para no se del al lo como más su pero está son",
    "it": "il lo la gli di che è e un una per con non sono del della in si anche come più ma nel le l dell",
    "pt": "o os as de que e em um uma é para com não do da dos das se por mais como na no seu sua são",
    "nl": "de het een en van is dat niet op te zijn voor met die aan er ook als maar om ik je",
    "sv": "och att det som en är på av för med den till inte har de ett om jag var",
    "da": "og i at det er en til på som for af med den ikke de har et jeg hvad",
    "no": "og i det er som på til av for med en ikke har de et jeg å hva",
    "fi": "ja on ei se että oli hän mutta joka kun niin myös tai ovat ole hänen voi kuin sen minä olen",
    "sw": "na ya wa kwa ni katika la za kuwa hii huo hiyo pia lakini kama yake watu cha vya sana mimi",
    "vi": "và của là có trong được cho không một người các với này những đã khi để tôi bạn cũng",
    "pl": "i w nie na się jest z do to że jak o po co ale od dla są przez",
    "tr": "ve bir bu için ile de da çok olarak daha ne gibi var en ama değil olan kadar",
    "id": "dan yang di ini itu untuk dengan dari tidak pada adalah dalam akan ke saya bisa",
    "ro": "și de la în cu un o pe nu este care pentru din mai sunt să că",
    "cs": "a se je na že v to s do i pro jsem jako ale by",
    "hu": "a az és hogy nem is egy ez van meg de mint",
    "ru": "и в не на что как это по он но из за для то все от так я мы вы она",
    "bg": "и на да не от за по като че това съм ще си ми аз който има",
    "uk": "в не на що з як це та до є він але за для й я ми",
    "hi": "है हैं का की के में और को से यह नहीं पर एक था थे हो भी ने कि",
    "mr": "आहे आहेत आणि चा ची चे मध्ये हे या नाही ते होते तर मी व आपण हा ही",
    "ne": "छ छन् र मा लागि हो गर्न यो पनि भएको छैन हुन्छ गर्ने म तपाईं थियो हुन्",
    "ar": "في من على إلى أن هذا التي و ما لا هذه كان مع عن الذي هو هي كل أو",
    "fa": "و در به از که را این است با برای می یک آن تا شما من هم بود های",
    "ur": "ہے ہیں کے کی کا میں اور سے کو نے یہ نہیں پر ایک بھی تھا کہ ہو",
    "zh": "",
    "ja": "",
}
_LETTERS = {"ru": "ыэё", "bg": "ъ", "uk": "іїєґ", "ar": "ةكىي", "fa": "پچژگکی", "ur": "ٹڈڑںےہھ", "vi": "ơưđạảấầậếềệ"}
"""Letters that a language uses and its neighbours do not, or less. Each counts as a quarter of a word."""
_CLEAR = 1.25
"""How much more the words of another language have to be there before the asked one is ruled out."""
_BETWEEN = re.compile(r"[^\w\u0300-\u036f\u0900-\u0dff\u200c]+")


def is_in(text: str, language: str) -> bool:
    """Whether a text can be taken for one in `language`, an ISO 639-1 code of LANGUAGES: most of its letters are of the
    language's script, and no other language of the script is clearly more likely. False for a text without letters.
    """
    text = unicodedata.normalize("NFC", text).lower()
    scripts = Counter(script for letter in text if letter.isalpha() and (script := _script(letter)) is not None)
    if not scripts:
        return False
    if language == "ja" and any(scripts[kana] for kana in ("HIRAGANA", "KATAKANA")):
        return 10 * (scripts["HIRAGANA"] + scripts["KATAKANA"]) >= sum(scripts.values())
    if language == "zh" and 10 * (scripts["HIRAGANA"] + scripts["KATAKANA"]) >= sum(scripts.values()):
        return False
    neighbours = _SCRIPTS[scripts.most_common(1)[0][0]]
    if language not in neighbours:
        return False
    words, letters = Counter(_BETWEEN.split(text)), Counter(text)
    found = {name: _evidence(name, words, letters) for name in neighbours}
    return max(found.values()) <= _CLEAR * found[language] or max(found.values()) == 0


def _evidence(language: str, words: Counter[str], letters: Counter[str]) -> float:
    known = sum(words[word] for word in _WORDS.get(language, "").split())
    return known + sum(letters[letter] for letter in _LETTERS.get(language, "")) / 4


@cache
def _script(letter: str) -> str | None:
    """None for letters of scripts that are not listed."""
    name = unicodedata.name(letter, "").split(" ")[0]
    return name if name in _SCRIPTS else None
