"""Multi-head attention whose inner width is its own.

`nn.MultiheadAttention` takes the size of a head from the width of its input, so that it cannot run
with fewer heads on the same input. This class computes the same function of the same parameters,
with sizes from its attributes. A trace runs it in place of the original, and a module whose heads
were cut becomes one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MultiheadAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with `num_heads` heads of `head_dim`, whatever its `embed_dim`."""

    @property
    def _qkv_same_embed_dim(self) -> bool:
        return False  # what asks this would go on to a kernel that derives the size of a head

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`, which says what the arguments are.

        Raises:
            RuntimeError: `is_causal` without a mask, as there.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        q, k, v = _projected(self, *_batch_first(self, query, key, value))
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(len(v), -1, -1)], 1)
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        mask = _mask(q, k.shape[1], key_padding_mask, attn_mask)
        q, k, v = (
            x.view(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)
            for x in (q, k, v)
        )
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout)
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if not batched:
            return out[0], weights
        return out if self.batch_first else out.transpose(0, 1), weights


def _batch_first(
    module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The operands as (batch, tokens, width); what is one tensor stays one."""
    moved: dict[int, Tensor] = {}
    for x in (query, key, value):
        if id(x) not in moved:
            batch_first = module.batch_first and x.dim() == 3
            moved[id(x)] = (
                x if batch_first else x.transpose(0, 1) if x.dim() == 3 else x.unsqueeze(0)
            )
    return moved[id(query)], moved[id(key)], moved[id(value)]


def _projected(
    module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, ...]:
    """Queries, keys and values, (batch, tokens, num_heads · head_dim) each."""
    packed, bias = module.in_proj_weight, module.in_proj_bias
    if packed is not None and query is key and key is value:
        return F.linear(query, packed, bias).chunk(3, -1)
    each = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    weights = each if packed is None else packed.chunk(3)
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return tuple(map(F.linear, (query, key, value), weights, biases))


def _mask(q: Tensor, tokens: int, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Both masks as one that is added to the scores, (batch or 1, heads or 1, queries, tokens)."""
    added = []
    if mask is not None:
        mask = _additive(mask, q)
        added.append(mask.unflatten(0, (len(q), -1)) if mask.dim() == 3 else mask[None, None])
    if padding is not None:
        padding = padding if padding.dim() == 2 else padding.unsqueeze(0)
        added.append(_additive(padding, q)[:, None, None])
    padded = [F.pad(m, (0, tokens - m.shape[-1])) if m.shape[-1] != tokens else m for m in added]
    return sum(padded[1:], padded[0]) if padded else None


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def standing_in(module: nn.Module) -> Callable[..., Any]:
    """The forward that a trace runs: the module's own, or one whose sizes are attributes."""
    if type(module) is nn.MultiheadAttention and "forward" not in module.__dict__:
        return MethodType(MultiheadAttention.forward, module)
    if _KEPT in module.__dict__:
        return MethodType(_refreshed, module)
    return module.forward


_LENGTHS, _KEPT = "axes_lengths", "_axes_lengths"  # of the layers of einops


def refresh(module: nn.Module) -> None:
    """Have a layer of einops run with the lengths that it states."""
    own = module.__dict__
    if _KEPT in own and isinstance(own.get(_LENGTHS), dict):
        own[_KEPT] = tuple(own[_LENGTHS].items())


def _refreshed(self: nn.Module, x: Tensor) -> Any:
    refresh(self)
    return type(self).forward(self, x)


def adopt(modules: Mapping[str, nn.Module], cut: Iterable[str]) -> None:
    """Make the attention modules that a cut touched run by themselves, where they need it."""
    found = [modules.get(path.removesuffix(".out_proj")) for path in cut]
    for attention in found:
        if (
            type(attention) is nn.MultiheadAttention
            and attention.num_heads * attention.head_dim != attention.embed_dim
        ):
            attention.__class__ = MultiheadAttention
    if any(type(attention) is MultiheadAttention for attention in found):
        for encoder in modules.values():
            if isinstance(encoder, nn.TransformerEncoder):
                encoder.use_nested_tensor = False  # only the fused kernel takes these
