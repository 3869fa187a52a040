"""Captions for the embedded portraits, in English and in Vietnamese, made from the attributes they were drawn with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

LANGUAGES = ("English", "Vietnamese")
Saying = tuple[str, str]  # in these
Facts = Mapping[str, Any]
Shown = dict[str, str]  # what is to be seen, in English, by what it is about: {"glasses": "sunglasses"}

TRIES = 3000
"""Combinations that are tried in search of one that is new."""

BACKGROUNDS: dict[str, Saying] = {
    "#ffd5dc": ("pink", "hồng"),
    "#b6e3f4": ("light blue", "xanh da trời"),
    "#d1d4f9": ("lavender", "tím nhạt"),
    "#a8d5a2": ("light green", "xanh lá nhạt"),
    "#ffdfbf": ("peach", "màu đào"),
    "#f4e285": ("yellow", "vàng"),
    "#c0aede": ("purple", "tím"),
}
CLOTHES: dict[str, dict[str, Saying]] = {
    "micah": {
        "#d2eff3": ("pale blue", "xanh nhạt"),
        "#000000": ("black", "đen"),
        "#ffffff": ("white", "trắng"),
        "#ffeba4": ("cream", "kem"),
        "#9287ff": ("violet", "tím"),
        "#fc909f": ("pink", "hồng"),
        "#6bd9e9": ("turquoise", "ngọc lam"),
        "#ac6651": ("brown", "nâu"),
        "#e0ddff": ("lavender", "tím nhạt"),
        "#ffedef": ("pale pink", "hồng nhạt"),
        "#77311d": ("dark brown", "nâu đậm"),
        "#f4d150": ("yellow", "vàng"),
        "#f9c9b6": ("peach", "màu đào"),
    },
    "open-peeps": {
        "#9ddadb": ("turquoise", "ngọc lam"),
        "#ffcf77": ("orange", "cam"),
        "#e279c7": ("magenta", "hồng tím"),
        "#fdea6b": ("yellow", "vàng"),
        "#e78276": ("red", "đỏ"),
        "#78e185": ("green", "xanh lá"),
        "#8fa7df": ("blue", "xanh dương"),
    },
    "personas": {
        "#f3b63a": ("yellow", "vàng"),
        "#e24553": ("red", "đỏ"),
        "#f55d81": ("pink", "hồng"),
        "#6dbb58": ("green", "xanh lá"),
        "#7555ca": ("purple", "tím"),
        "#54d7c7": ("turquoise", "ngọc lam"),
        "#456dff": ("blue", "xanh dương"),
    },
}
CLOTHING_KEYS = {"micah": "shirtColor", "open-peeps": "clothingColor", "personas": "clothingColor"}
FAIR, TAN, BROWN, DARK = ("fair", "trắng"), ("tan", "ngăm"), ("brown", "nâu"), ("dark brown", "nâu đậm")
SKINS: dict[str, Saying] = {
    "#f2d3b1": FAIR, "#ecad80": TAN, "#9e5622": BROWN, "#763900": DARK,
    "#f9c9b6": FAIR, "#ac6651": BROWN, "#77311d": DARK,
    "#ffdbb4": FAIR, "#edb98a": TAN, "#d08b5b": TAN, "#ae5d29": BROWN, "#694d3d": DARK,
    "#eeb4a4": FAIR, "#e7a391": TAN, "#e5a07e": TAN, "#d78774": TAN, "#b16a5b": BROWN, "#92594b": BROWN,
    "#623d36": DARK,
}  # fmt: skip
HAIRS: dict[str, Saying] = {
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
HEADS: dict[str, Saying] = {
    "hat": ("a hat", "đội mũ"), "cap": ("a cap", "đội mũ lưỡi trai"), "beanie": ("a beanie", "đội mũ len"),
    "hijab": ("a hijab", "đội khăn hijab"), "turban": ("a turban", "quấn khăn"), "bear": ("a bear hood", "mũ hình gấu"),
    "bald": ("bald", "hói"), "nohair": ("bald", "hói"), "mrclean": ("bald", "hói"),
    "afro": ("an afro", "tóc xù"), "mohawk": ("a mohawk", "tóc mào"), "mrt": ("a mohawk", "tóc mào"),
    "bun": ("a bun", "tóc búi"), "dreads": ("dreadlocks", "tóc tết dây"), "cornrows": ("cornrows", "tóc tết sát"),
    "pigtails": ("pigtails", "tóc hai bím"), "curly": ("curly hair", "tóc xoăn"),
    "bangs": ("bangs", "tóc mái"), "long": ("long hair", "tóc dài"), "medium": ("medium hair", "tóc ngang vai"),
    "short": ("short hair", "tóc ngắn"), "shaved": ("shaved hair", "tóc cạo"), "buzzcut": ("shaved hair", "tóc cạo"),
}  # fmt: skip
"""The first of these that is in the name of a head or of hair says what it is."""
HATS = ("hat", "cap", "beanie", "hijab", "turban", "bear", "bald", "nohair", "mrclean")
"""Of which no colour of the hair is to be seen."""
MOUTHS: dict[str, Saying] = {
    "happy": ("smiling", "đang cười"), "smile": ("smiling", "đang cười"), "laugh": ("laughing", "cười to"),
    "cute": ("smiling", "đang cười"), "grin": ("smiling", "đang cười"), "cheeky": ("smiling", "đang cười"),
    "sad": ("sad", "buồn"), "frown": ("sad", "buồn"), "surprise": ("surprised", "ngạc nhiên"),
    "awe": ("surprised", "ngạc nhiên"), "angry": ("angry", "giận dữ"), "rage": ("angry", "giận dữ"),
    "fear": ("afraid", "sợ hãi"), "nervous": ("nervous", "lo lắng"), "pacifier": ("a pacifier", "ngậm núm vú giả"),
    "smirk": ("smirking", "cười mỉm"), "pucker": ("pouting", "chu môi"), "serious": ("serious", "nghiêm nghị"),
    "solemn": ("serious", "nghiêm nghị"), "calm": ("calm", "bình thản"), "tired": ("tired", "mệt mỏi"),
}  # fmt: skip
BEARDS: dict[str, Saying] = {
    "moustache": ("moustache", "có ria mép"), "mustache": ("moustache", "có ria mép"),
    "walrus": ("moustache", "có ria mép"), "pyramid": ("moustache", "có ria mép"),
    "goatee": ("goatee", "râu dê"), "scruff": ("stubble", "râu lún phún"), "shadow": ("stubble", "râu lún phún"),
    "": ("beard", "có râu"),
}  # fmt: skip
WORN: dict[str, Saying] = {
    "sunglasses": ("sunglasses", "đeo kính râm"), "glasses": ("glasses", "đeo kính"),
    "eyepatch": ("eyepatch", "bịt mắt"), "medicalmask": ("face mask", "đeo khẩu trang"),
    "respirator": ("face mask", "đeo khẩu trang"), "freckles": ("freckles", "tàn nhang"),
}  # fmt: skip


def describe(facts: Facts) -> Saying:
    """What is drawn, in both languages: the style, what can be seen, the background."""
    style, background = facts["style"], BACKGROUNDS[facts["primaryBackgroundColor"]]
    name = style.replace("-", " ")
    article = "an" if name[0] in "aeiou" else "a"
    whole = (f"{article} {name} portrait", f"chân dung kiểu {name}")
    around = (f"on a {background[0]} background", f"trên nền {background[1]}")
    phrases = (saying for _, saying in seen(facts))
    english, vietnamese = (", ".join(parts) for parts in zip(whole, *phrases, around, strict=True))
    return english, vietnamese


def attributes_of(facts: Facts) -> Shown:
    """The same, one by one."""
    phrases = {about: saying[0] for about, saying in seen(facts)}
    return {"background": BACKGROUNDS[facts["primaryBackgroundColor"]][0], "style": facts["style"], **phrases}


def unseen(drawn: Sequence[Facts], count: int) -> list[Facts]:
    """`count` combinations of what is drawn, within each style in turn, that no caption of `drawn` says.

    Fewer, or none, where all that can be found are there. Equal arguments give equal combinations.
    """
    known, dice = {phrase for one in drawn for phrase in describe(one)}, random.Random(0)
    makers = {style: mixing([one for one in drawn if one["style"] == style], dice) for style in styles_of(drawn)}
    made: list[Facts] = []
    while makers and len(made) < count:
        for style, make in list(makers.items()):
            tried = (make() for _ in range(TRIES))
            if new := next((one for one in tried if known.isdisjoint(describe(one))), None):
                made.append(new)
            else:
                del makers[style]
    return made[:count]


def styles_of(drawn: Iterable[Facts]) -> list[str]:
    return sorted({one["style"] for one in drawn})


def mixing(alike: Sequence[Facts], dice: random.Random) -> Callable[[], Facts]:
    """Makes portraits of one style, each attribute from another one; so as few of them wear glasses as of these."""
    keys = sorted({key for one in alike for key in one})

    def make() -> Facts:
        drawn = {key: dice.choice(alike).get(key) for key in keys}
        return {key: value for key, value in drawn.items() if value is not None}

    return make


def seen(facts: Facts) -> Iterator[tuple[str, Saying]]:
    """What can be seen, each with what it is about."""
    skin = SKINS.get(facts.get("skinColor") or facts.get("baseColor") or "")
    if skin:
        yield "skin", (f"{skin[0]} skin", f"da {skin[1]}")
    yield from hair(facts)
    style = facts["style"]
    if style in CLOTHES:
        colour = CLOTHES[style][facts[CLOTHING_KEYS[style]]]
        yield "clothes", (f"{colour[0]} clothes", f"quần áo {colour[1]}")
    if mouth := first(MOUTHS, facts.get("mouth") or facts.get("face") or ""):
        yield "face", mouth
    if "beard" in facts or "facialHair" in facts:
        yield "beard", first(BEARDS, facts.get("facialHair") or "") or BEARDS[""]
    if facts.get("features") == "mustache":
        yield "beard", BEARDS["mustache"]
    yield from worn(facts)


def hair(facts: Facts) -> Iterator[tuple[str, Saying]]:
    """How it is cut where the name says so, and its colour where that can be seen."""
    name = (facts.get("head") or facts.get("hair") or "").lower()
    cut = first(HEADS, name)
    if cut:
        yield "hair or hat", cut
    colour = HAIRS.get(facts.get("hairColor") or "")
    if colour and facts["style"] != "lorelei" and not any(hat in name for hat in HATS):
        yield "hair colour", (f"{colour[0]} hair", f"tóc {colour[1]}")


def worn(facts: Facts) -> Iterator[tuple[str, Saying]]:
    things = [facts.get(key, "") for key in ("accessories", "mask", "features")]
    things += [facts["eyes"]] if facts["style"] == "personas" else []
    things += [key for key in ("glasses", "freckles") if key in facts]
    for thing in things:
        if phrase := first(WORN, thing):
            yield (phrase[0] if phrase[0] in ("face mask", "freckles") else "glasses"), phrase
    if "earrings" in facts:
        yield "earrings", ("earrings", "đeo bông tai")


def first(sayings: Mapping[str, Saying], name: str) -> Saying | None:
    return next((phrase for key, phrase in sayings.items() if key and key in name.lower()), None)
