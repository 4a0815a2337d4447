import json

import numpy as np
import pytest

from benchmarks import brought_vectors
from llm_rerank.config import RerankerConfig
from llm_rerank.data.datasets import load_dataset
from llm_rerank.data.rendering import Renderer
from llm_rerank.data.schema import validate_items
from llm_rerank.evaluation.protocols import hold_out
from llm_rerank.models.semantic.encoder import SentenceEncoder


@pytest.mark.slow
def test_the_three_fits_and_their_differences(tmp_path):
    out = tmp_path / "sample.json"
    report = brought_vectors.main(["--dataset", "sample", "--cache", str(tmp_path / "cache"), "--out", str(out)])
    assert list(report["fits"]) == ["words alone", "vectors brought", "encoder"]
    assert "text_vector" not in report["fits"]["words alone"]["components"]
    parts = {name: [verdict["part"] for verdict in fit["parts"]] for name, fit in report["fits"].items()}
    assert parts == {"words alone": [], "vectors brought": ["vectors"], "encoder": ["semantic"]}
    ndcg = {name: fit["ndcg@10"] for name, fit in report["fits"].items()}
    found = report["differences"]["vectors brought over words alone"]
    assert found["mean"] == pytest.approx(ndcg["vectors brought"] - ndcg["words alone"])
    assert json.loads(out.read_text())["fits"] == report["fits"]


def test_every_item_brings_the_vector_of_its_own_text():
    trial = hold_out(load_dataset("sample", None), None, "validation")
    frame = brought_vectors.with_text_vectors(trial, RerankerConfig())
    texts = Renderer().render_items(validate_items(trial.item_frame)).texts
    rows = np.arange(0, len(texts), 40)
    again = SentenceEncoder().encode([str(texts[row]) for row in rows])
    likeness = np.stack(frame["text_vector"])[rows] @ again.T
    # the same text in another batch and number format, against other texts
    assert (np.diag(likeness) > 0.999).all()
    assert (likeness.argmax(axis=1) == np.arange(len(rows))).all()
