"""A sentence encoder of four small BERT (or RoBERTa) layers with random weights; the default encoder's tokenizer."""

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoTokenizer, BertConfig, BertModel, RobertaConfig, RobertaModel

from llm_rerank.models.semantic.weights import default_folder


def save_tiny_encoder(folder: Path, *, seed: int = 0, kind: str = "bert") -> str:
    """Write the encoder and return its folder's name."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(str(default_folder()))
    of_kind, network = (BertConfig, BertModel) if kind == "bert" else (RobertaConfig, RobertaModel)
    config = of_kind(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    bert = network(config)
    with torch.no_grad():  # so that words outweigh their positions, and texts differ
        bert.embeddings.word_embeddings.weight.mul_(10)
    bert.save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=64)
    SentenceTransformer(modules=[transformer, Pooling(32, "mean"), Normalize()], device="cpu").save(str(folder / "st"))
    return str(folder / "st")
