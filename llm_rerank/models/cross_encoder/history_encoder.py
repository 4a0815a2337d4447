"""The network of the history cross-encoder: BERT layers over packed texts, the reader, the attention over the history.

Which texts, where their states are kept, and how lists come in is said in ``item_states.py`` and ``scorer.py``.

    alone    every text is read by itself, in all layers: its states depend on the text only
    reader   a candidate's [CLS] once more through the upper layers; beside its own text it reads the tokens of the
             history's items, through a gate a head that starts closed (``cross_attention``; off: the [CLS] as it is)
    history  learned attention of the candidate over the items of the history
    score    temperature × similarity + head(candidate, reader, history), and the head starts at zero

Nothing of the history reads a candidate and no candidate another one, so a user's history is read once and a pair's
score does not depend on its list.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from llm_rerank.models.cross_encoder.packing import Packing


@dataclass(frozen=True)
class NetworkShape:
    """Sizes of the network.

    hidden_size, n_heads, intermediate_size, norm_epsilon: of the pretrained layers. n_lower: layers that are frozen and
    whose states are cached. n_upper: layers above them, copied and trained. cross_attention: whether the reader reads
    the history's tokens. n_ages: visits told apart, older ones count as the oldest. attention_size, value_size: of the
    attention over the history's items. head_size: hidden units of the head.
    """

    hidden_size: int
    n_heads: int
    intermediate_size: int
    norm_epsilon: float
    n_lower: int
    n_upper: int
    cross_attention: bool = False
    n_ages: int = 20
    attention_size: int = 64
    value_size: int = 128
    head_size: int = 256

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


class TransformerLayer(nn.Module):
    """One BERT layer (Devlin et al., 2019; norm after the residual), over packed texts or over one query a text."""

    def __init__(self, shape: NetworkShape, dropout: float = 0.1) -> None:
        super().__init__()
        size = shape.hidden_size
        self.n_heads = shape.n_heads
        self.query, self.key, self.value = nn.Linear(size, size), nn.Linear(size, size), nn.Linear(size, size)
        self.attended = nn.Linear(size, size)
        self.attention_norm = nn.LayerNorm(size, eps=shape.norm_epsilon)
        self.expand, self.contract = nn.Linear(size, shape.intermediate_size), nn.Linear(shape.intermediate_size, size)
        self.output_norm = nn.LayerNorm(size, eps=shape.norm_epsilon)
        self.dropout = nn.Dropout(dropout)

    def load_bert(self, layer: nn.Module) -> None:
        """Copy the weights of a layer of ``transformers``' BertModel or (XLM-)RobertaModel."""
        own = self.state_dict()
        given = layer.state_dict()
        names = {
            "attention.self.query": "query",
            "attention.self.key": "key",
            "attention.self.value": "value",
            "attention.output.dense": "attended",
            "attention.output.LayerNorm": "attention_norm",
            "intermediate.dense": "expand",
            "output.dense": "contract",
            "output.LayerNorm": "output_norm",
        }
        for theirs, ours in names.items():
            for part in ("weight", "bias"):
                own[f"{ours}.{part}"].copy_(given[f"{theirs}.{part}"])

    def read_alone(self, states: Tensor, packing: Packing) -> Tensor:
        """Each text attends to itself. states: (n_tokens, hidden_size) in the order of the packing; the same out."""
        query, key, value = self.query(states), self.key(states), self.value(states)
        parts = []
        for start, count, length in packing.spans:
            stop = start + count * length
            block = [self._heads(part[start:stop].view(count, length, -1)) for part in (query, key, value)]
            attended = functional.scaled_dot_product_attention(block[0], block[1], block[2])
            parts.append(attended.transpose(1, 2).reshape(count * length, -1))
        return self.finish(states, torch.cat(parts) if parts else states)

    def read_own(self, readers: Tensor, own_states: Tensor, padding: Tensor | None) -> Tensor:
        """Return what one reader a text takes from the text's tokens, before the output projection.

        readers: (n, hidden_size). own_states: (n, length, hidden_size), what the layer's keys and values come from.
        padding: bool, (n, length), True where there is no token; None: nowhere.
        Keys and values are never formed: qᵀ(W h + b) = (Wᵀq)ᵀh + const, and the softmax does not see the constant; so
        the query is taken to the states and the weighted mean of states through the value's weights after. With one
        query a text that is 2 projections a text instead of 2 a token. Returns (n, hidden_size).
        """
        n, size = readers.shape
        head_size = size // self.n_heads
        query = self.query(readers).view(n, self.n_heads, head_size)
        to_states = torch.einsum("nhd,hde->nhe", query, self.key.weight.view(self.n_heads, head_size, size))
        logits = to_states @ own_states.transpose(1, 2) / head_size**0.5
        if padding is not None:
            logits = logits.masked_fill(padding.unsqueeze(1), float("-inf"))
        mean = torch.softmax(logits, dim=-1) @ own_states
        values = torch.einsum("nhe,hde->nhd", mean, self.value.weight.view(self.n_heads, head_size, size))
        return values.reshape(n, size) + self.value.bias

    def read_history(self, readers: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """Return what readers take from their users' history tokens, by head, before gate and output projection.

        readers: (n_users, width, hidden_size). keys, values: (n_users, n_heads, n_tokens, head_size). bias: (n_users,
        n_heads, n_tokens), −inf where there is no token. Returns (n_users, width, n_heads, head_size).
        """
        query = self._heads(self.query(readers))
        bias = bias.unsqueeze(2).expand(-1, -1, query.shape[2], -1)
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=bias).transpose(1, 2)

    def keys_and_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values by head: (n, n_tokens, hidden_size) → two of (n, n_heads, n_tokens, head_size)."""
        return self._heads(self.key(states)), self._heads(self.value(states))

    def finish(self, states: Tensor, attended: Tensor) -> Tensor:
        """Output projection, residual, feed-forward: (…, hidden_size) each."""
        states = self.attention_norm(states + self.dropout(self.attended(attended)))
        expanded = functional.gelu(self.expand(states))
        return self.output_norm(states + self.dropout(self.contract(expanded)))

    def _heads(self, states: Tensor) -> Tensor:
        """(n, length, hidden_size) → (n, n_heads, length, head_size)."""
        return states.view(*states.shape[:2], self.n_heads, -1).transpose(1, 2)


class ItemFeatures(NamedTuple):
    """What the head needs of each item; a function of its text alone.

    mean: (n_items, hidden_size), mean over the tokens of the last layer's states. first: the state of [CLS].
    inputs: states that each upper layer reads, (n_tokens, hidden_size) each; empty without cross attention.
    """

    mean: Tensor
    first: Tensor
    inputs: tuple[Tensor, ...]


class TextGroup(NamedTuple):
    """Candidates whose texts are read as one rectangle.

    cells: (n,), places among the block's pairs. positions: (n, length) into the packed states. padding: bool, (n,
    length), True where a text has ended; None: all are of this length.
    """

    cells: Tensor
    positions: Tensor
    padding: Tensor | None


class HistoryTokens(NamedTuple):
    """The tokens of a block's histories, once a user.

    positions: (n_users, n_tokens) into the packed states, 0 where ``ages`` is −1, which is no token.
    ages: (n_users, n_tokens), visits back from the newest. log_weights: (n_users, n_tokens).
    """

    positions: Tensor
    ages: Tensor
    log_weights: Tensor


class HistoryNetwork(nn.Module):
    """The trained part: upper layers, reader, attention over the history, head. Lower layers are kept elsewhere."""

    def __init__(self, shape: NetworkShape, dropout: float = 0.1) -> None:
        super().__init__()
        self.shape = shape
        size, hidden = shape.hidden_size, shape.head_size
        self.layers = nn.ModuleList(TransformerLayer(shape, dropout) for _ in range(shape.n_upper))
        if shape.cross_attention:
            self.gates = nn.Parameter(torch.zeros(shape.n_upper, shape.n_heads))  # tanh(0) = 0: closed
            self.token_ages = nn.Parameter(torch.zeros(shape.n_upper, shape.n_heads, shape.n_ages))
        self.query = nn.Linear(size, shape.attention_size)
        self.key = nn.Linear(size, shape.attention_size)
        self.value = nn.Linear(size, shape.value_size)
        self.item_ages = nn.Parameter(torch.zeros(shape.n_ages))
        self.head_mean = nn.Linear(size, hidden)
        self.head_first = nn.Linear(size, hidden, bias=False)
        self.head_history = nn.Linear(shape.value_size, hidden, bias=False)
        self.head_match = nn.Linear(shape.value_size, hidden, bias=False)
        self.output = nn.Linear(hidden, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.greatest = nn.Parameter(torch.tensor(0.0))
        self.decay = nn.Parameter(torch.tensor(0.3))
        self.dropout = nn.Dropout(dropout)

    @property
    def upper_layers(self) -> list[TransformerLayer]:
        """The trained layers, lowest first."""
        return cast("list[TransformerLayer]", list(self.layers))

    def read_items(self, lower_states: Tensor, packing: Packing) -> ItemFeatures:
        """Read each text alone through the upper layers; features in the order of the packing's places."""
        states, inputs = lower_states, []
        for layer in self.upper_layers:
            inputs.append(states)
            states = layer.read_alone(states, packing)
        means, firsts = [states[:0]], [states[:0]]
        for start, count, length in packing.spans:
            block = states[start : start + count * length].view(count, length, -1)
            means.append(block.mean(dim=1))
            firsts.append(block[:, 0])
        kept = tuple(inputs) if self.shape.cross_attention else ()
        return ItemFeatures(torch.cat(means), torch.cat(firsts), kept)

    def columns(self, features: ItemFeatures) -> dict[str, Tensor]:
        """Compute what ``combine`` needs of each item, one row an item.

        ``item_part`` lacks [CLS] where the reader brings it.
        """
        item_part = self.head_mean(self.dropout(features.mean))
        if not self.shape.cross_attention:
            item_part = item_part + self.head_first(self.dropout(features.first))
        return {
            "item_part": item_part,
            "query": self.query(features.mean),
            "key": self.key(features.mean),
            "value": self.value(features.mean),
        }

    def read_candidates(
        self,
        inputs: Sequence[Tensor],
        first_tokens: Tensor,
        groups: Sequence[TextGroup],
        history: HistoryTokens,
        shape: tuple[int, int],
    ) -> Tensor:
        """Take each candidate's [CLS] once more through the upper layers, with the history's tokens in sight.

        inputs: what each upper layer reads, (n_tokens, hidden_size) each, of packed texts.
        first_tokens: (n_users × width,), position of each candidate's [CLS] in the packed states. groups: the pairs
        that are read, by the length of their texts. shape: (n_users, width).
        Works in the number format of the gates. Returns float32, (n_users, width, hidden_size).
        """
        n_users, width = shape
        dtype = self.gates.dtype  # the states may be kept in another format
        readers = inputs[0][first_tokens].to(dtype)
        masked = history.ages < 0
        ages = history.ages.clamp(0, self.shape.n_ages - 1)
        has_history = (~masked).any(dim=1)
        for number, layer in enumerate(self.upper_layers):
            states = inputs[number]
            own = torch.zeros_like(readers)  # where padding is, too: its gradient is 0, and 0 × NaN would be NaN
            for cells, positions, padding in groups:
                own[cells] = layer.read_own(readers[cells], states[positions].to(dtype), padding)
            keys, values = layer.keys_and_values(states[history.positions].to(dtype))
            bias = self.token_ages[number][:, ages].transpose(0, 1) + history.log_weights.unsqueeze(1)
            # a user without history reads nothing; softmax over nothing but −inf would be NaN
            bias = bias.masked_fill((masked & has_history[:, None])[:, None], float("-inf")).to(keys.dtype)
            seen = layer.read_history(readers.view(n_users, width, -1), keys, values, bias)
            gate = torch.tanh(self.gates[number]) * has_history[:, None]
            seen = (seen * gate[:, None, :, None].to(seen.dtype)).reshape(n_users * width, -1)
            readers = layer.finish(readers, own + seen)
        return readers.view(n_users, width, -1).float()

    def combine(
        self,
        item_part: Tensor,
        query: Tensor,
        value: Tensor,
        key: Tensor,
        history_value: Tensor,
        ages: Tensor,
        weights: Tensor,
        similarity: Tensor,
    ) -> Tensor:
        """Score a block of lists: attention over the history's items, head, similarity; float32, (n_users, width).

        item_part: (n_users, width, head_size), the head's first layer as far as the candidate alone decides it.
        query, value: of the candidates, (n_users, width, …). key, history_value: of the history's items, (n_users,
        n_history, …). ages: (n_users, n_history), −1 is padding. weights: the same shape, above 0. similarity:
        cosines of frozen vectors, (n_users, width, n_history).
        """
        padding = ages < 0
        bias = self.item_ages[ages.clamp(0, self.shape.n_ages - 1)] + weights.clamp_min(1e-6).log()
        logits = query @ key.transpose(1, 2) / self.shape.attention_size**0.5 + bias.unsqueeze(1)
        logits = logits.masked_fill(padding.unsqueeze(1), float("-inf"))
        # one more place with logit 0 and value 0: a candidate that nothing in the history speaks to may say so
        sink = logits.new_zeros(*logits.shape[:2], 1)
        attention = torch.softmax(torch.cat([logits, sink], dim=-1).float(), dim=-1)[..., :-1].to(history_value.dtype)
        seen = attention @ history_value
        hidden = item_part + self.head_history(seen) + self.head_match(seen * value)
        head = self.output(self.dropout(functional.gelu(hidden))).squeeze(-1)
        return head.float() + self.similarity(similarity.float(), ages, weights.float())

    def similarity(self, cosines: Tensor, ages: Tensor, weights: Tensor) -> Tensor:
        """Temperature × recency-weighted mean cosine + greatest × greatest cosine; 0 without a history."""
        real = (ages >= 0).float()
        # as a softmax, whose quotient is the same: the exponential of a history long ago would be 0
        logits = weights.log() - self.decay * ages.clamp_min(0)
        share = torch.softmax(logits.masked_fill(real == 0, torch.finfo(logits.dtype).min), dim=1) * real
        mean = (cosines * share.unsqueeze(1)).sum(dim=-1)
        if cosines.shape[-1] == 0:  # both named, for a parameter left out of one step ends a shared training
            return self.temperature * mean + self.greatest * mean
        greatest = cosines.masked_fill(real.unsqueeze(1) == 0, -1.0).amax(dim=-1)
        greatest = greatest * (real.sum(dim=1, keepdim=True) > 0)
        return self.temperature * mean + self.greatest * greatest


def scoring_copy(network: HistoryNetwork, dtype: torch.dtype) -> HistoryNetwork:
    """Copy a network with its reader in a number format; attention over items, head and similarity stay in float32.

    The reader takes nearly all of the time, and the first places of a list are told apart by differences of some
    thousandths, which is what bfloat16 rounds a sum to.
    """
    copied = deepcopy(network).eval().requires_grad_(False)
    copied.layers.to(dtype)
    if network.shape.cross_attention:
        copied.gates.data, copied.token_ages.data = copied.gates.data.to(dtype), copied.token_ages.data.to(dtype)
    return copied
