"""`inspection.json` and two pictures -> one page: the verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from calotype.evaluation.autoencoder import SHARE
from calotype.files import write_whole
from calotype.report.markup import Html, embedded, figure, pairs, section, table, tag
from calotype.report.measures import Found, digits, figure_of, figures, percent
from calotype.report.page import sheet
from calotype.report.plot import Series
from calotype.report.words import UNKNOWN, moment

FILE = "inspection.html"
PLATE_BYTES = 1_200_000
CAPTIONS = {
    "reconstructions": "From top to bottom: pictures, what the autoencoder makes of them, and where it is wrong.",
    "channels": "The channels of a few latents, side by side: from black to white over six spreads.",
}


def write_inspection(folder: Path, found: Found, plates: Mapping[str, Image.Image]) -> Path:
    """Makes `inspection.html` in the folder, and returns its path."""
    path = folder / FILE
    write_whole(path, document(found, plates))
    return path


def document(found: Found, plates: Mapping[str, Image.Image]) -> str:
    parts = [
        masthead(found), findings(found), section("Pictures", plate(plates, "reconstructions")), numbers(found),
        section("Channels of a few latents", plate(plates, "channels")), latents(found), plots(found),
        every_channel(found),
    ]  # fmt: skip
    return sheet(f"{found['name']}, inspected", parts)


def masthead(found: Found) -> Html:
    measures = found["measures"]
    size = measures["size"]
    kicker = f"Calotype\u00a0· an inspection\u00a0· {size}\u00a0×\u00a0{size}\u00a0px"
    facts = pairs(
        {
            "Pictures": f"{found['data']}: {measures['pictures']:,}, of them {measures['held_out']:,} never trained on",
            "Autoencoder": found["state"],
            "Score": f"{figures(found['score'])}, of 1: how much of a picture’s looks is left after noise, the "
            "simplest of denoisers and the decoder",
            "Inspected": f"{moment(found['created'])}, on {found['device']}",
        }
    )
    head = (tag("p", kicker, class_="kicker"), tag("h1", found["name"]), tag("p", found["verdict"], class_="lede"))
    return tag("header", *head, facts)


def findings(found: Found) -> Html:
    rows = [
        (one["name"], f"{one['what']} ({number(one['value'])}; the limit is {number(one['threshold'])})", one["advice"])
        for one in sorted(found["findings"], key=lambda one: not one["grave"])
    ]
    if not rows:
        return section("Findings", tag("p", "None."))
    return section("Findings", table(("What", "Measured", "What to do"), rows, "words"))


def number(value: float | None) -> str:
    return UNKNOWN if value is None else digits(value)


def plate(plates: Mapping[str, Image.Image], name: str) -> Html | None:
    caption = CAPTIONS[name]
    return figure(embedded(plates[name], caption, 1600, PLATE_BYTES), caption, "plate")


def numbers(found: Found) -> Html:
    measures = found["measures"]
    one = measures["reconstruction"]
    frechet = UNKNOWN if one["frechet"] is None else digits(one["frechet"])
    rows = [
        ("PSNR", f"{number(one['psnr'])} dB", f"a mean colour for each place would have {number(one['blocks'])} dB"),
        ("SSIM", number(one["ssim"]), "1 is equal"),
        ("Perceptual distance", number(one["perceptual"]), "EfficientNet-Lite0; 0 is equal"),
        ("FD-Lite0", frechet, "of originals and reconstructions, as sets; compare only for equal n"),
        ("Colour", ", ".join(f"{number(v and 127.5 * v)}" for v in measures["colour"]),
         "what even areas gain of red, green and blue, in levels of 255"),
        ("Receptive field", field_of(measures["receptive_field"]), "how far the decoder spreads one place"),
        ("Critic", critic_of(measures["critic"]), "from the log"),
    ]  # fmt: skip
    n = f"n = {measures['pictures']:,} pictures."
    return section("Reconstruction", table(("What", "Measured", ""), rows, "words"), tag("p", n, class_="note"))


def field_of(field: Found | None) -> str:
    if field is None:
        return UNKNOWN
    reach = "as far as the picture" if field["whole"] else f"{field['reach']} px"
    return f"nine tenths within {field['radius']} px, all within {reach}"


def critic_of(critic: Found | None) -> str:
    if critic is None:
        return "none"
    back = f", weights taken back {critic['taken_back']} times" if critic["taken_back"] else ""
    gap = f"logits {number(critic['gap'])} apart"
    held_out = f"held-out PSNR {number(critic['best'])} dB at best, {number(critic['last'])} dB at last"
    return f"right in {percent(critic['right'])}, {gap}; {held_out}{back}"


def latents(found: Found) -> Html:
    measures = found["measures"]
    rows = [
        (f"moved by {name}", number(value), "latents of the changed picture against latents changed so: 0 is equal, 2 "
         "unrelated") for name, value in measures["equivariance"].items()
    ]  # fmt: skip
    rows.append(
        ("a tenth of a spread wrong", f"{number(measures['mistaken'])} dB", "between the pictures that come of it")
    )
    whole = measures["pictures"]
    n = f"n = {whole:,} pictures; {max(2, whole // SHARE):,} where latents are made wrong, or noisy as below."
    return section("Latents", table(("What", "Measured", ""), rows, "words"), tag("p", n, class_="note"))


def plots(found: Found) -> Html:
    spectrum, developed = found["measures"]["spectrum"], found["measures"]["developed"]
    power = [
        Series(name, list(zip(spectrum["frequencies"], spectrum[name], strict=True)), marked=True)
        for name in ("latents", "pictures")
    ]
    left = Series("left", [(float(sigma), 1 - value) for sigma, value in developed.items()], marked=True)
    note = "Of the latents, and of the pictures shrunk to as many places; 1 everywhere is noise."
    how = "Of a picture’s looks, after noise on its latents, the simplest of denoisers and the decoder."
    return section(
        "Spectrum and noise",
        tag(
            "div",
            figure_of("Spectrum", "power", power, "cycles a place", note),
            figure_of("What is left", "share", [left], "sigma", how),
            class_="plots",
        ),
    )


def every_channel(found: Found) -> Html:
    heads = ("Channel", "Mean", "Spread", "raw mean", "raw spread", "KL in nats", "Signal", "Stuck")
    rows = [
        (str(index), *(number(one[name]) for name in ("mean", "std", "raw_mean", "raw_std", "kl")),
         percent(one["signal"]), percent(one["stuck"]))
        for index, one in enumerate(found["measures"]["channels"])
    ]  # fmt: skip
    how = "Mean and spread as the denoiser sees them (0 and 1 are right), and as they leave the encoder."
    return section("Channels", tag("p", how), table(heads, rows, "figures"))
