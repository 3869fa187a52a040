"""Captions for the embedded portraits, in English and in Vietnamese, made from the attributes they were drawn with."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

LANGUAGES = ("English", "Vietnamese")
Phrase = tuple[str, str]  # in both languages
Facts = Mapping[str, Any]  # the attributes of a drawing, by the names and values of its style
VisibleAttributes = dict[str, str]  # in English: {"glasses": "sunglasses"}

MAX_TRIES = 3000
"""Random combinations that are tried in search of an unseen one."""

BACKGROUNDS: dict[str, Phrase] = {
    "#ffd5dc": ("pink", "hồng"), "#b6e3f4": ("light blue", "xanh da trời"), "#d1d4f9": ("lavender", "tím nhạt"),
    "#a8d5a2": ("light green", "xanh lá nhạt"), "#ffdfbf": ("peach", "màu đào"), "#f4e285": ("yellow", "vàng"),
    "#c0aede": ("purple", "tím"),
}  # fmt: skip
CLOTHES: dict[str, dict[str, Phrase]] = {
    "micah": {
        "#d2eff3": ("pale blue", "xanh nhạt"), "#000000": ("black", "đen"), "#ffffff": ("white", "trắng"),
        "#ffeba4": ("cream", "kem"), "#9287ff": ("violet", "tím"), "#fc909f": ("pink", "hồng"),
        "#6bd9e9": ("turquoise", "ngọc lam"), "#ac6651": ("brown", "nâu"), "#e0ddff": ("lavender", "tím nhạt"),
        "#ffedef": ("pale pink", "hồng nhạt"), "#77311d": ("dark brown", "nâu đậm"), "#f4d150": ("yellow", "vàng"),
        "#f9c9b6": ("peach", "màu đào"),
    },
    "open-peeps": {
        "#9ddadb": ("turquoise", "ngọc lam"), "#ffcf77": ("orange", "cam"), "#e279c7": ("magenta", "hồng tím"),
        "#fdea6b": ("yellow", "vàng"), "#e78276": ("red", "đỏ"), "#78e185": ("green", "xanh lá"),
        "#8fa7df": ("blue", "xanh dương"),
    },
    "personas": {
        "#f3b63a": ("yellow", "vàng"), "#e24553": ("red", "đỏ"), "#f55d81": ("pink", "hồng"),
        "#6dbb58": ("green", "xanh lá"), "#7555ca": ("purple", "tím"), "#54d7c7": ("turquoise", "ngọc lam"),
        "#456dff": ("blue", "xanh dương"),
    },
}  # fmt: skip
CLOTHING_KEYS = {"micah": "shirtColor", "open-peeps": "clothingColor", "personas": "clothingColor"}
FAIR, TAN, BROWN, DARK = ("fair", "trắng"), ("tan", "ngăm"), ("brown", "nâu"), ("dark brown", "nâu đậm")
SKINS: dict[str, Phrase] = {
    "#f2d3b1": FAIR, "#ecad80": TAN, "#9e5622": BROWN, "#763900": DARK,
    "#f9c9b6": FAIR, "#ac6651": BROWN, "#77311d": DARK,
    "#ffdbb4": FAIR, "#edb98a": TAN, "#d08b5b": TAN, "#ae5d29": BROWN, "#694d3d": DARK,
    "#eeb4a4": FAIR, "#e7a391": TAN, "#e5a07e": TAN, "#d78774": TAN, "#b16a5b": BROWN, "#92594b": BROWN,
    "#623d36": DARK,
}  # fmt: skip
HAIRS: dict[str, Phrase] = {
    "#3eac2c": ("green", "xanh lá"), "#85c2c6": ("teal", "xanh cổ vịt"), "#592454": ("purple", "tím"),
    "#dba3be": ("pink", "hồng"), "#ab2a18": ("red", "đỏ"), "#cb6820": ("orange", "cam"), "#0e0e0e": ("black", "đen"),
    "#afafaf": ("grey", "xám"), "#e5d7a3": ("blond", "vàng nhạt"), "#b9a05f": ("blond", "vàng nhạt"),
    "#ac6511": ("brown", "nâu"), "#796a45": ("brown", "nâu"), "#6a4e35": ("brown", "nâu"),
    "#562306": ("dark brown", "nâu đậm"), "#000000": ("black", "đen"), "#ffffff": ("white", "trắng"),
    "#fc909f": ("pink", "hồng"), "#9287ff": ("violet", "tím"), "#6bd9e9": ("turquoise", "ngọc lam"),
    "#f4d150": ("yellow", "vàng"), "#e0ddff": ("lavender", "tím nhạt"), "#ffedef": ("pale pink", "hồng nhạt"),
    "#d2eff3": ("pale blue", "xanh nhạt"), "#ffeba4": ("cream", "kem"), "#f9c9b6": ("peach", "màu đào"),
    "#ac6651": ("brown", "nâu"), "#77311d": ("dark brown", "nâu đậm"), "#f29c65": ("orange", "cam"),
    "#6c4545": ("brown", "nâu"), "#e15c66": ("red", "đỏ"), "#f27d65": ("orange", "cam"),
    "#362c47": ("black", "đen"), "#e16381": ("pink", "hồng"), "#dee1f5": ("grey", "xám"),
}  # fmt: skip
HEADS: dict[str, Phrase] = {
    "hat": ("a hat", "đội mũ"), "cap": ("a cap", "đội mũ lưỡi trai"), "beanie": ("a beanie", "đội mũ len"),
    "hijab": ("a hijab", "đội khăn hijab"), "turban": ("a turban", "quấn khăn"), "bear": ("a bear hood", "mũ hình gấu"),
    "bald": ("bald", "hói"), "nohair": ("bald", "hói"), "mrclean": ("bald", "hói"),
    "afro": ("an afro", "tóc xù"), "mohawk": ("a mohawk", "tóc mào"), "mrt": ("a mohawk", "tóc mào"),
    "bun": ("a bun", "tóc búi"), "dreads": ("dreadlocks", "tóc tết dây"), "cornrows": ("cornrows", "tóc tết sát"),
    "pigtails": ("pigtails", "tóc hai bím"), "curly": ("curly hair", "tóc xoăn"),
    "bangs": ("bangs", "tóc mái"), "long": ("long hair", "tóc dài"), "medium": ("medium hair", "tóc ngang vai"),
    "short": ("short hair", "tóc ngắn"), "shaved": ("shaved hair", "tóc cạo"), "buzzcut": ("shaved hair", "tóc cạo"),
}  # fmt: skip
"""The first key that is part of the name of a head or of hair counts."""
HATS = ("hat", "cap", "beanie", "hijab", "turban", "bear", "bald", "nohair", "mrclean")
"""They hide the colour of the hair."""
MOUTHS: dict[str, Phrase] = {
    "happy": ("smiling", "đang cười"), "smile": ("smiling", "đang cười"), "laugh": ("laughing", "cười to"),
    "cute": ("smiling", "đang cười"), "grin": ("smiling", "đang cười"), "cheeky": ("smiling", "đang cười"),
    "sad": ("sad", "buồn"), "frown": ("sad", "buồn"), "surprise": ("surprised", "ngạc nhiên"),
    "awe": ("surprised", "ngạc nhiên"), "angry": ("angry", "giận dữ"), "rage": ("angry", "giận dữ"),
    "fear": ("afraid", "sợ hãi"), "nervous": ("nervous", "lo lắng"), "pacifier": ("a pacifier", "ngậm núm vú giả"),
    "smirk": ("smirking", "cười mỉm"), "pucker": ("pouting", "chu môi"), "serious": ("serious", "nghiêm nghị"),
    "solemn": ("serious", "nghiêm nghị"), "calm": ("calm", "bình thản"), "tired": ("tired", "mệt mỏi"),
}  # fmt: skip
BEARDS: dict[str, Phrase] = {
    "moustache": ("moustache", "có ria mép"), "mustache": ("moustache", "có ria mép"),
    "walrus": ("moustache", "có ria mép"), "pyramid": ("moustache", "có ria mép"),
    "goatee": ("goatee", "râu dê"), "scruff": ("stubble", "râu lún phún"), "shadow": ("stubble", "râu lún phún"),
    "": ("beard", "có râu"),
}  # fmt: skip
WORN: dict[str, Phrase] = {
    "sunglasses": ("sunglasses", "đeo kính râm"), "glasses": ("glasses", "đeo kính"),
    "eyepatch": ("eyepatch", "bịt mắt"), "medicalmask": ("face mask", "đeo khẩu trang"),
    "respirator": ("face mask", "đeo khẩu trang"), "freckles": ("freckles", "tàn nhang"),
}  # fmt: skip


def describe(facts: Facts) -> Phrase:
    """The caption in both languages: the style, the visible attributes, the background."""
    background, name = BACKGROUNDS[facts["primaryBackgroundColor"]], facts["style"].replace("-", " ")
    article = "an" if name[0] in "aeiou" else "a"
    style = (f"{article} {name} portrait", f"chân dung kiểu {name}")
    ground = (f"on a {background[0]} background", f"trên nền {background[1]}")
    phrases = (phrase for _, phrase in _visible(facts))
    english, vietnamese = (", ".join(parts) for parts in zip(style, *phrases, ground, strict=True))
    return english, vietnamese


def visible_attributes(facts: Facts) -> VisibleAttributes:
    """The English caption as a table, by attribute."""
    phrases = {attribute: phrase[0] for attribute, phrase in _visible(facts)}
    return {"background": BACKGROUNDS[facts["primaryBackgroundColor"]][0], "style": facts["style"], **phrases}


def unseen_combinations(drawn: Sequence[Facts], count: int) -> list[Facts]:
    """`count` combinations of attributes, of each style in turn, that no caption of `drawn` has.

    Each attribute is that of a random portrait of the style, so its frequencies stay. There are fewer combinations, or
    none, where the search finds no more. Equal arguments give equal combinations.
    """
    known, generator = {phrase for facts in drawn for phrase in describe(facts)}, random.Random(0)
    of_style = {style: [facts for facts in drawn if facts["style"] == style] for style in styles_of(drawn)}
    combinations: list[Facts] = []
    keys = {style: sorted(set().union(*portraits)) for style, portraits in of_style.items()}
    while of_style and len(combinations) < count:
        for style, portraits in list(of_style.items()):
            tried = (_combination(portraits, keys[style], generator) for _ in range(MAX_TRIES))
            if new := next((facts for facts in tried if known.isdisjoint(describe(facts))), None):
                combinations.append(new)
            else:
                del of_style[style]
    return combinations[:count]


def styles_of(drawn: Iterable[Facts]) -> list[str]:
    return sorted({facts["style"] for facts in drawn})


def _combination(portraits: Sequence[Facts], keys: Sequence[str], generator: random.Random) -> Facts:
    """Each attribute, or its absence, from another portrait of one style."""
    chosen = {key: generator.choice(portraits).get(key) for key in keys}
    return {key: value for key, value in chosen.items() if value is not None}


def _visible(facts: Facts) -> Iterator[tuple[str, Phrase]]:
    style = facts["style"]
    if skin := SKINS.get(facts.get("skinColor") or facts.get("baseColor") or ""):
        yield "skin", (f"{skin[0]} skin", f"da {skin[1]}")
    hair = (facts.get("head") or facts.get("hair") or "").lower()
    if cut := _first_match(HEADS, hair):
        yield "hair or hat", cut
    colour = HAIRS.get(facts.get("hairColor") or "")
    if colour and style != "lorelei" and not any(hat in hair for hat in HATS):
        yield "hair colour", (f"{colour[0]} hair", f"tóc {colour[1]}")
    if style in CLOTHES:
        colour = CLOTHES[style][facts[CLOTHING_KEYS[style]]]
        yield "clothes", (f"{colour[0]} clothes", f"quần áo {colour[1]}")
    if mouth := _first_match(MOUTHS, facts.get("mouth") or facts.get("face") or ""):
        yield "face", mouth
    if "beard" in facts or "facialHair" in facts:
        yield "beard", _first_match(BEARDS, facts.get("facialHair") or "") or BEARDS[""]
    if facts.get("features") == "mustache":
        yield "beard", BEARDS["mustache"]
    yield from _worn(facts)


def _worn(facts: Facts) -> Iterator[tuple[str, Phrase]]:
    things = [facts.get(key, "") for key in ("accessories", "mask", "features")]
    things += [facts["eyes"]] if facts["style"] == "personas" else []
    things += [key for key in ("glasses", "freckles") if key in facts]
    for thing in things:
        if phrase := _first_match(WORN, thing):
            yield (phrase[0] if phrase[0] in ("face mask", "freckles") else "glasses"), phrase
    if "earrings" in facts:
        yield "earrings", ("earrings", "đeo bông tai")


def _first_match(phrases: Mapping[str, Phrase], name: str) -> Phrase | None:
    """The phrase of the first key that is part of the name."""
    return next((phrase for key, phrase in phrases.items() if key and key in name.lower()), None)
