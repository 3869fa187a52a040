"""`inspection.html`: the verdict on an autoencoder, then its measures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from calotype.evaluation.autoencoder import SHARE, AutoencoderMeasures, CriticHealth, ReceptiveField
from calotype.evaluation.diagnosis import InspectionResult
from calotype.files import write_whole
from calotype.report.format import UNKNOWN, date, digits, percent
from calotype.report.html import Html, aside, definitions, figure, masthead, page, section, square, strip, table, tag
from calotype.report.plot import Series, plot

INSPECTION_BYTES = 1_200_000
CAPTIONS = {
    "reconstructions": "From top to bottom: pictures, their reconstructions, and the absolute errors.",
    "channels": "The channels of a few latents, side by side; black to white spans six standard deviations.",
}


def write_inspection(folder: Path, result: InspectionResult, pictures: Mapping[str, Image.Image]) -> Path:
    """Writes `inspection.html` to a folder, and returns its path."""
    path, measures = folder / "inspection.html", result.measures
    shown = {
        name: figure(pictures[name], caption, longest=1600, limit=INSPECTION_BYTES)
        for name, caption in CAPTIONS.items()
    }
    parts = [
        inspection_head(result), finding_table(result), section("Pictures", shown["reconstructions"]),
        reconstruction_table(measures), section("Channels of a few latents", shown["channels"]),
        latent_table(measures), spectrum_plots(measures), channel_table(measures),
    ]  # fmt: skip
    write_whole(path, page(f"{result.name}, inspected", parts))
    return path


def inspection_head(result: InspectionResult) -> Html:
    measures = result.measures
    facts = {
        "Pictures": f"{result.data}: {measures.pictures:,}, {measures.held_out:,} of them held out",
        "Autoencoder": result.state,
        "Score": f"{digits(result.score)} of 1: the perceptual similarity that is left after noise on the latents, a "
        "linear denoiser and the decoder",
        "Inspected": f"{date(result.created)}, on {result.device}",
    }
    return masthead(("an inspection", square(measures.size)), result.name, result.verdict, definitions(facts))


def finding_table(result: InspectionResult) -> Html | None:
    rows = [
        (each.name, f"{each.what} ({digits(each.value)}; the limit is {digits(each.threshold)})", each.advice)
        for each in sorted(result.findings, key=lambda finding: not finding.grave)
    ]
    return section("Findings", table(("Finding", "Measured", "What to do"), rows, "words") or tag("p", "None."))


def reconstruction_table(measures: AutoencoderMeasures) -> Html | None:
    quality, colour = measures.reconstruction, (digits(127.5 * shift) for shift in measures.colour)
    rows = [
        ("PSNR", f"{digits(quality.psnr)} dB", f"the mean colours of patches have {digits(quality.blocks)} dB"),
        ("SSIM", digits(quality.ssim), "1 for equal pictures"),
        ("Perceptual distance", digits(quality.perceptual), "of EfficientNet-Lite0 features; 0 for equal pictures"),
        ("FD-Lite0", digits(quality.frechet), "of reconstructions from originals; comparable at equal n only"),
        ("Colour shift", ", ".join(colour), "of uniform areas in red, green and blue, in levels of 255"),
        ("Receptive field", field_text(measures.receptive_field), "of the decoder, around one latent"),
        ("Critic", critic_text(measures.critic), "from the log"),
    ]
    n = f"n = {measures.pictures:,} pictures."
    return section("Reconstruction", table(("Measure", "Value", ""), rows, "words"), aside(n))


def field_text(field: ReceptiveField | None) -> str:
    if field is None:
        return UNKNOWN
    reach = "the whole picture" if field.whole else f"{field.reach} px"
    return f"90% of the change within {field.radius} px, all of it within {reach}"


def critic_text(health: CriticHealth | None) -> str:
    if health is None:
        return "none"
    undone = f", weights restored {health.taken_back} times" if health.taken_back else ""
    psnr = f"held-out PSNR {digits(health.best)} dB at best, {digits(health.last)} dB at the end"
    return f"accuracy {percent(health.right)}, logit gap {digits(health.gap)}; {psnr}{undone}"


def latent_table(measures: AutoencoderMeasures) -> Html | None:
    equivariance = "squared difference from the transformed latents by their variance: 0 is equal, 2 unrelated"
    rows = [(f"equivariance, {name}", digits(value), equivariance) for name, value in measures.equivariance.items()]
    robustness = "PSNR between the pictures before and after an error of 0.1 standard deviations"
    rows.append(("robustness of the decoder", f"{digits(measures.mistaken)} dB", robustness))
    count = measures.pictures
    n = f"n = {count:,} pictures; {max(2, count // SHARE):,} for robustness, and for the noise below."
    return section("Latents", table(("Measure", "Value", ""), rows, "words"), aside(n))


def spectrum_plots(measures: AutoencoderMeasures) -> Html | None:
    if not measures.finite:
        return None
    power = measures.spectrum
    spectra = [
        Series(name, list(zip(power.frequencies, values, strict=True)), marked=True)
        for name, values in (("latents", power.latents), ("pictures", power.pictures))
    ]
    left = [(float(sigma), 1 - distance) for sigma, distance in measures.developed.items()]
    white = "Of the latents, and of the pictures shrunk to their size; white noise has 1 everywhere."
    similarity = [Series("left", left, marked=True)]
    plots = [
        plot("Power spectrum", "power", spectra, "cycles per latent", white),
        plot("Similarity after noise", "share", similarity, "sigma", "After a linear denoiser and the decoder."),
    ]
    return section("Spectrum and noise", strip(plots, "plots"))


def channel_table(measures: AutoencoderMeasures) -> Html | None:
    heads = ("Channel", "Mean", "Std", "Raw mean", "Raw std", "KL in nats", "Signal", "Constant")
    rows = [
        (str(index), *map(digits, (each.mean, each.std, each.raw_mean, each.raw_std, each.kl)),
         percent(each.signal), percent(each.stuck))
        for index, each in enumerate(measures.channels)
    ]  # fmt: skip
    explanation = (
        "Mean and standard deviation as the denoiser sees them (0 and 1 are right), and raw from the encoder. Signal: "
        "the share of variance that comes from the pictures. Constant: the share of values that do not depend on them."
    )
    return section("Channels", tag("p", explanation), table(heads, rows))
