"""One finished run: how good its pictures are, whether it copies, and the card that goes with its model."""

from calotype.appraisal.card import write_card
from calotype.appraisal.gather import Setup, appraise
from calotype.appraisal.summary import summary

__all__ = ["Setup", "appraise", "summary", "write_card"]
