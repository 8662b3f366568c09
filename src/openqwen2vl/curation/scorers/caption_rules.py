"""Rules for captions that say nothing of what the picture shows: each a name and a pattern.

The patterns are ours. They look at a caption as ``normalized`` gives it, so in small letters, and
each has near misses in the tests: a rule that meets a fair caption costs a picture.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping

_IMAGE_ENDING = r"(?:jpe?g|jfif|png|gif|webp|bmp|tiff?|svg|heic|avif|psd|raw|cr2|nef)"
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sep(?:t(?:ember)?)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"(?:(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?\.?,? )?"
# Possessive: a point may end an amount or stand between two, and there is no second look at it.
_AMOUNT = (
    r"(?:(?:us ?|ca ?|au ?)?[$€£¥₹] ?\d[\d.,]*+"
    r"|\d[\d.,]*+ ?(?:[€£¥₹]|usd|eur|gbp|dollars|euros))"
)
_TAG = r"(?:a|b|body|br|center|div|em|font|h[1-6]|html|i|iframe|img|li|p|script|span|strong|style|table|td|tr|u|ul)"

# A whole caption of the kind. The first rule that meets a caption names it, so the order counts.
_WHOLE = {
    "dimensions": r"(?:\w+ )?\d{2,5} ?(?:px)? ?(?:x|\u00d7|by) ?\d{2,5} ?(?:px|pixels|dpi)?",
    "price": (
        r"(?:(?:price|from|only|just|sale|now|was|for|buy|save|msrp|rrp|each|per|off|or)\b[:. ]*"
        rf"|{_AMOUNT}[-/. ]*)*{_AMOUNT}[ .!]*(?:only|each|off|sale|now)?"
    ),
    "no_letters": r"[\W\d_]*",
    "file_name": rf"[^\n]{{0,120}}[\w)\]]\.{_IMAGE_ENDING}",
    "camera_number": (
        r"(?:img|image|dscn?|dscf|_dsc|dsc_|dji|gopr|imgp|mvi|pano|pict|pic|p|pxl|sam|cimg|photo"
        r"|picture|scan|screen ?shot|screenshot|wp|vid|whatsapp image|fb_img|slide|figure|fig|page)"
        r"[-_ .#]*(?:at )?\d{2}[-_ .:\d]*(?:at [-_ .:\d]+)?(?:[ap]m|copy|edit(?:ed)?|[a-z])?(?: ?\(\d+\))?"
    ),
    "camera_maker": (
        r"(?:olympus|kodak|minolta|konica minolta|samsung|polaroid|vivitar|nikon|canon|sony|fuji)? ?"
        r"(?:digital (?:still )?camera|dsc|csc|techwin|exif[ _]jpeg[ _]picture)"
        r"|processed with [\w ]{1,30}(?: preset)?|created with gimp|default"
    ),
    "placeholder": (
        r"(?:sorry,? |oops[,!]? )?(?:(?:the |this |no |product |item )?(?:image|photo|picture|thumbnail"
        r"|preview|cover)s?(?: (?:is|are))?(?: (?:currently|not|un|no longer|coming))*"
        r" ?(?:available|availabe|found|soon|yet|missing|removed|deleted)"
        r"|no (?:image|photo|picture|thumbnail|preview|description|caption|title|alt text)s?"
        r"|(?:image|photo|picture|product|default|blank|user|profile|main|featured|header|hero|cover"
        r"|primary|related)? ?(?:image|photo|picture|pic|thumbnail|thumb|icon|avatar|banner"
        r"|placeholder|logo|alt text))"
        r"[ .!]*\d{0,3}"
    ),
    "no_value": r"(?:null|none|nan|n/?a|undefined|unknown|untitled|unnamed|test|\[object object\]|tbd|lorem ipsum.*)[ .\d]*",
    "hash": r"(?=[a-z\d_-]*\d)(?:[a-f\d]{12,}|[a-f\d]{8}(?:-[a-f\d]{4}){3}-[a-f\d]{12})(?:[_-]\w{1,4})?",
    "code": r"(?=[^ ]*\d[^ ]*\d[^ ]*\d)(?=[^ ]*[a-z_-])[a-z\d]+(?:[-_/.][a-z\d]+)*",
    "date": (
        rf"{_DAY}(?:\d{{1,2}}(?:st|nd|rd|th)? (?:of )?{_MONTH}(?:,? \d{{4}})?"
        rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?|{_MONTH},? \d{{4}})"
        r"(?:,? (?:at )?\d{1,2}[:.]\d{2}.*)?"
    ),
    "copyright": r"(?:©|\(c\)|copyright\b).*",
    "interface": (
        r"(?:click|tap|share|tweet|pin it|read more|see more|learn more|view (?:all|more|full.*|larger.*)"
        r"|zoom(?: in| out)?|next|prev(?:ious)?|back|close|menu|home|search|play(?: video)?|download"
        r"|follow us.*|facebook|twitter|instagram|pinterest|youtube|email|print|loading)[ .!>»]*"
    ),
}

# Anywhere in a caption.
_ANYWHERE = {
    "url": r"https?:/|www\.[a-z\d-]+\.|\.(?:com|net|org)/",
    "email": r"@(?<=\w@)[a-z\d-]+\.[a-z]{2,}",
    "html": rf"</?{_TAG}(?: [^<>]*)?/?>|&(?:nbsp|amp|quot|apos|lt|gt|#x?[\da-f]{{2,6}});",
    "template": r"\{\{[^{}]*\}\}|\$\{\w+\}|<%|%>|\[/?(?:caption|gallery|img|url)\b",
    "percent_code": r"%[\da-f]{2}[^ ]*%[\da-f]{2}",
    "mojibake": r"\ufffd|ã[\u0080-\u00bf]|â€",
    "placeholder_phrase": r"\b(?:image|photo|picture|thumbnail)s? (?:is |are )?(?:currently )?(?:not available|unavailable|coming soon)\b",
    "stock": (
        r"\broyalty[ -]free\b|\bstock[ -](?:photo(?:graph(?:y)?)?|image|picture|vector|footage"
        r"|illustration)s?\b|\b(?:shutterstock|istock(?:photo)?|gettyimages|getty images|alamy"
        r"|depositphotos|dreamstime|fotolia|123rf)\b"
    ),
    "rights": r"all rights reserved\b",
    "shop": (
        r"\b(?:buy (?:now|online)|add to (?:cart|basket|wishlist)|free (?:shipping|delivery)|out of stock"
        r"|in stock now|best price|for sale online)\b"
    ),
    "product_code": (
        r"\b(?:sku|mpn|asin|isbn(?:-1[03])?|upc|ean|item (?:no|number|code)|part (?:no|number)"
        r"|model (?:no|number)|product (?:code|id)|art(?:icle)? (?:no|nr))\b[ .:#]*(?=[a-z-]*\d)[a-z\d-]{3,}"
    ),
    "interface_phrase": (
        r"\bclick (?:here|on (?:the )?(?:image|photo|picture)|(?:for|to) (?:enlarge|view|zoom|see|a larger|larger|full|more))\b"
        r"|\bview (?:larger|full[ -]size)\b|\bhover to zoom\b|\bsubscribe to our\b"
    ),
    "repeated_character": r"(\D)\1\1\1\1",
    "repeated_word": r"\b(\w++)(?:\W+\1\b){3}",
    "endless_word": r"[!-~]{50}",
}

_RULES = [
    *((name, re.compile(pattern).fullmatch) for name, pattern in _WHOLE.items()),
    *((name, re.compile(pattern).search) for name, pattern in _ANYWHERE.items()),
]

RULES: Mapping[str, str] = {**_WHOLE, **_ANYWHERE}
"""The pattern of each rule, in the order in which they are tried."""


def rules_hash() -> str:
    """Give 16 hexadecimal digits that differ when any rule does."""
    text = repr((list(_WHOLE.items()), list(_ANYWHERE.items())))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def normalized(caption: str) -> str:
    """Give a caption as it is compared: NFKC, case folded, white space made single spaces."""
    if not caption.isascii():
        caption = unicodedata.normalize("NFKC", caption)
    return " ".join(caption.casefold().split())


def bad_pattern(caption: str) -> str | None:
    """Give the name of the first rule that a caption meets, or None.

    Args:
        caption: ``normalized``.
    """
    return next((name for name, meets in _RULES if meets(caption)), None)
