"""A real causal language model, small enough to be trained in a test: it learns which themes the planted shop has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.planted import planted_shop

LINES_AT_ONCE = 6


def written_model(folder: Path, *, kind: str = "llama", steps: int = 0, seed: int = 0) -> Path:
    """Write a model of random weights, trained for so many steps on lists of items of one theme, and its tokenizer."""
    shop = planted_shop()
    texts = np.array([str(text) for text in shop.items.texts], dtype=object)
    tokenizer = _tokenizer(texts.tolist())
    torch.manual_seed(seed)
    if kind == "llama":
        network = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                eos_token_id=0,
                bos_token_id=0,
            )
        )
    else:
        network = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_embd=64,
                n_layer=2,
                n_head=4,
                n_positions=512,
                eos_token_id=0,
                bos_token_id=0,
            )
        )
    _train(network, tokenizer, texts, shop.item_themes, steps, seed)
    network.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([f"- {text}\n" for text in texts], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|end|>", pad_token="<|end|>"
    )


def _train(network, tokenizer, texts, themes, steps, seed):
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = []
        for theme in rng.choice(np.unique(themes[themes >= 0]), 8):
            items = rng.choice(np.flatnonzero(themes == theme), LINES_AT_ONCE, replace=False)
            rows.append("".join(f"- {text}\n" for text in texts[items]))
        batch = tokenizer(rows, return_tensors="pt", padding=True, padding_side="right", return_token_type_ids=False)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = network(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
