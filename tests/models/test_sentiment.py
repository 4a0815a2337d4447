import json
import os
from pathlib import Path

import numpy as np
import pytest

from llm_rerank.models.semantic.encoder import SentenceEncoder
from llm_rerank.models.semantic.sentiment import DISLIKING, LIKING, review_sentiment


@pytest.fixture(scope="module")
def encoder():
    return SentenceEncoder()


class PlaneEncoder:
    """Liking lies at (1, 0), disliking at (0, 1), other texts where they say."""

    embedding_size = 2
    fingerprint = "plane"

    def encode(self, inputs):
        places = dict.fromkeys(LIKING, (1, 0)) | dict.fromkeys(DISLIKING, (0, 1))
        return np.array([places.get(text) or json.loads(text.strip() or "[0, 0]") for text in inputs], dtype=np.float32)


def test_sentiment_is_the_place_between_the_anchors():
    # v − (p + n) / 2 = (.3, −.3) · (p − n) = (1, −1): .6, times 2 / |p − n|² = 2 / 2
    reviews = ["[1, 0]", "[0, 1]", "[0.6, 0.6]", "[0.8, 0.2]", "", " ", "[3, 0]"]
    expected = [1, -1, 0, 0.6, np.nan, np.nan, 1]
    sentiment = review_sentiment(PlaneEncoder(), reviews)
    assert sentiment.dtype == np.float32
    np.testing.assert_allclose(sentiment, expected, atol=1e-6)
    assert review_sentiment(PlaneEncoder(), []).shape == (0,)


def test_sentiment_of_plain_words(encoder):
    good = ["I love these strings, they sound wonderful", "Sturdy stand and a fair price. Would order again."]
    bad = ["The cable stopped working after a week", "Cheap plastic, sent it back, what a waste of money"]
    sentiment = review_sentiment(encoder, good + bad)
    assert sentiment[:2].min() > sentiment[2:].max()


@pytest.mark.real_data
def test_sentiment_tells_low_from_high_ratings(encoder):
    import gzip

    root = Path(os.environ.get("LLM_RERANK_DATA", Path(__file__).parents[3] / "shared" / "data"))
    path = root / "amazon_musical_instruments" / "reviews_Musical_Instruments_5.json.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    with gzip.open(path, "rt") as file:
        reviews = [json.loads(line) for line in file]
    low = [review["reviewText"] for review in reviews if review["overall"] <= 2]
    high = [review["reviewText"] for review in reviews if review["overall"] >= 4]
    sentiment = review_sentiment(encoder, low[:60] + high[:60])
    auc = (sentiment[None, 60:] > sentiment[:60, None]).mean()
    assert auc > 0.72, auc
