"""What stands in the figures of language features."""

import numpy as np
import pandas as pd

from lingact.config.data import LanguagesConfig
from lingact.figures.features import feature_counts, feature_rates

LANGUAGES = LanguagesConfig(reference="en", high=("zh",), low=("ml", "hi"))
FEATURES = pd.DataFrame(
    [
        {"language": "hi", "layer": 3, "latent": 1, "passed": True, "confirmed": True},
        {"language": "hi", "layer": 3, "latent": 2, "passed": True, "confirmed": True},
        {"language": "hi", "layer": 3, "latent": 3, "passed": True, "confirmed": False},
        {"language": "hi", "layer": 3, "latent": 4, "passed": False, "confirmed": False},
        {"language": "en", "layer": 0, "latent": 9, "passed": True, "confirmed": False},
    ]
)


def test_counts_stand_at_their_layer_and_language() -> None:
    axes = feature_counts(FEATURES, LANGUAGES, (0, 3, 5)).axes[0]
    texts = {(text.get_position()[0], text.get_position()[1]): text.get_text() for text in axes.texts}
    assert len(texts) == 12
    assert texts.pop((3, 1)) == "2/3"
    assert texts.pop((0, 0)) == "0/1"
    assert set(texts.values()) == {"\N{MIDDLE DOT}"}
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0, 0, 0, 0], [0, 0, 0, 2], [0, 0, 0, 0]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "3", "5"]


def test_counts_of_nothing() -> None:
    figure = feature_counts(FEATURES[:0], LanguagesConfig(reference="en", high=(), low=("ml",)), (0, 1))
    assert {text.get_text() for text in figure.axes[0].texts} == {"\N{MIDDLE DOT}"}
    assert figure.axes[0].get_xlabel() == "reference | medium-to-low-resource"


def rates() -> pd.DataFrame:
    values = {("hi", 3, 1): {"en": 0.001, "zh": 0.0, "ml": 0.02, "hi": 0.3}, ("en", 0, 9): {"en": 0.1, "zh": 0.01, "ml": 0.002, "hi": 0.005}}
    return pd.DataFrame(
        {"language": code, "layer": layer, "latent": latent, "measured": measured, "rate": rate}
        for (code, layer, latent), row in values.items()
        for measured, rate in row.items()
    )


def test_dots_stand_at_the_rates_and_own_languages_are_ringed() -> None:
    axes = feature_rates(rates(), LANGUAGES).axes[0]
    dots = {artist.get_label(): np.array(artist.get_offsets()) for artist in axes.collections}
    np.testing.assert_allclose(dots["hi"], [[0.3, 1], [0.005, 0]])
    np.testing.assert_allclose(dots["own language"], [[0.3, 1], [0.1, 0]])
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["hi  layer 3, latent 1", "en  layer 0, latent 9"]


def test_a_rate_of_zero_is_shown_as_never() -> None:
    axes = feature_rates(rates(), LANGUAGES).axes[0]
    dots = {artist.get_label(): np.array(artist.get_offsets()) for artist in axes.collections}
    assert dots["zh"][0][0] < 0.001
    assert [text.get_text() for text in axes.texts] == ["never"]
    always = feature_rates(rates().assign(rate=0.5), LANGUAGES).axes[0]
    assert not always.texts


def test_languages_look_different() -> None:
    figure = feature_rates(rates(), LANGUAGES)
    looks = {
        (tuple(artist.get_edgecolor()[0]), tuple(artist.get_facecolor().ravel()), artist.get_paths()[0].vertices.tobytes())
        for artist in figure.axes[0].collections
    }
    assert len(looks) == len(LANGUAGES.all) + 1
