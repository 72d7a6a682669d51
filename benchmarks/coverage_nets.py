"""The plain networks of the coverage table: each for one way in which people write models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORDS = 50  # in the vocabulary of the networks that read tokens


class Se(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)
        self.down, self.up = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(F.relu(self.out(x * gate)).mean((2, 3)))


class GroupNormResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(8, 32)
        self.a, self.norm_a = nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(8, 64)
        self.b, self.norm_b = nn.Conv2d(64, 32, 3, padding=1), nn.GroupNorm(8, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = self.norm_b(self.b(F.relu(self.norm_a(self.a(x)))))
        return self.head(F.relu(x + y).mean((2, 3)))


class FlattenView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(32 * 8 * 8, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        return self.fc2(F.relu(self.fc1(x)))


class FilmTwoInputs(nn.Module):
    """The second input gives a scale and a shift for every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.film = nn.Conv2d(3, 32, 3, padding=1), nn.Linear(7, 64)
        self.out, self.head = nn.Conv2d(32, 16, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition).chunk(2, dim=1)
        x = self.conv(x) * scale[:, :, None, None] + shift[:, :, None, None]
        return self.head(F.relu(self.out(F.relu(x))).mean((2, 3)))


class PixelShuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 32, 5, padding=2), nn.Conv2d(32, 64, 3, padding=1)
        self.shuffle, self.out = nn.PixelShuffle(2), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.shuffle(self.conv2(F.relu(self.conv1(x))))))


def half(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 1), nn.BatchNorm2d(after), nn.ReLU())


class ShuffleV2Block(nn.Module):
    """Chunk, one branch, concatenation, shuffle; twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = half(3, 32), nn.Linear(32, 10)
        self.branches = nn.ModuleList(
            nn.Sequential(
                half(16, 16), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16),
                half(16, 16),
            )
            for _ in range(2)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            left, right = x.chunk(2, dim=1)
            x = torch.cat((left, branch(right)), dim=1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x.mean((2, 3)))


class Sliced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3, padding=1)
        self.a, self.b = nn.Conv2d(40, 16, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return self.head((self.a(x[:, :40]) + self.b(x[:, 40:])).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.mid, self.norm = nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.up2, self.dec2 = nn.ConvTranspose2d(64, 32, 2, 2), nn.Conv2d(64, 32, 3, padding=1)
        self.up1, self.dec1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.Conv2d(32, 16, 3, padding=1)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.enc1(x))
        b = F.relu(self.enc2(F.max_pool2d(a, 2)))
        x = F.relu(self.norm(self.mid(F.max_pool2d(b, 2))))
        x = F.relu(self.dec2(torch.cat([self.up2(x), b], 1)))
        return self.out(F.relu(self.dec1(torch.cat([self.up1(x), a], 1))))


class UpsampleCat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.high, self.low = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, 2, 1)
        self.fuse, self.out = nn.Conv2d(48, 24, 3, padding=1), nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = F.relu(self.high(x))
        low = F.relu(self.low(high))
        low = F.interpolate(low, size=high.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(F.relu(self.fuse(torch.cat([high, low], 1))))


class ParamMatmul(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(16, 32)), nn.Parameter(torch.randn(32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(x @ self.weight + self.bias))


class Einsum(nn.Module):
    """Attention by einsum, whose output projection is a bare parameter, heads apart."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Parameter(torch.randn(heads, width // heads, width) / width**0.5)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.heads, width // self.heads)
        q, k, v = qkv.unbind(2)
        scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / q.shape[-1] ** 0.5
        mixed = torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v)
        return self.head(F.relu(torch.einsum("nqhd,hde->nqe", mixed, self.out)).mean(1))


class Mha(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head((x + self.mlp(self.norm(x))).mean(1))


class Encoder(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Recurrent(nn.Module):
    """An embedding, a recurrent layer, and a classifier of its last step."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(WORDS, 16), layer(16, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens))[0][:, -1])


class LstmCellLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(16, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.cell.hidden_size)
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
        return self.head(h)


class TiedEmbed(nn.Module):
    """The output layer's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(WORDS, 32), nn.Linear(32, 64)
        self.back, self.head = nn.Linear(64, 32), nn.Linear(32, WORDS)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.back(torch.tanh(self.inner(self.embedding(tokens)))))


class TiedEmbedF(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 32)
        self.inner, self.back = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.back(torch.tanh(self.inner(self.embedding(tokens))))
        return F.linear(x, self.embedding.weight)


def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 16, 3, padding=1), nn.InstanceNorm1d(16, affine=True), nn.PReLU(16),
        nn.Conv1d(16, 32, 3, padding=1), nn.PReLU(32), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(32, 10),
    )  # fmt: skip


def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 16, 3, padding=1), nn.BatchNorm3d(16), nn.SiLU(), nn.MaxPool3d(2),
        nn.Conv3d(16, 32, 3, padding=1), nn.BatchNorm3d(32), nn.SiLU(), nn.AdaptiveAvgPool3d(1),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def dcgan() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(16, 64, 4, bias=False), nn.BatchNorm2d(64), nn.ReLU(True),
        nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(True),
        nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


def normal(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, *shape)


def tokens() -> Tensor:
    return torch.randint(WORDS, (2, 7))


IMAGE, SEQUENCE = normal(3, 32, 32), normal(6, 32)

NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "conv1d_in_prelu": (conv1d, normal(4, 20)),
    "conv3d_bn": (conv3d, normal(2, 8, 8, 8)),
    "dcgan_g": (dcgan, normal(16, 1, 1)),
    "einsum": (Einsum, SEQUENCE),
    "film_two_inputs": (FilmTwoInputs, lambda: (IMAGE(), torch.randn(2, 7))),
    "flatten_view": (FlattenView, IMAGE),
    "gn_resnet": (GroupNormResNet, IMAGE),
    "gru": (lambda: Recurrent(nn.GRU), tokens),
    "lstm": (lambda: Recurrent(nn.LSTM), tokens),
    "lstmcell_loop": (LstmCellLoop, normal(5, 16)),
    "mha": (Mha, SEQUENCE),
    "param_matmul": (ParamMatmul, normal(16)),
    "pixelshuffle": (PixelShuffled, normal(3, 16, 16)),
    "rnn": (lambda: Recurrent(nn.RNN), tokens),
    "se": (Se, IMAGE),
    "shufflev2_block": (ShuffleV2Block, IMAGE),
    "slice": (Sliced, IMAGE),
    "tied_embed": (TiedEmbed, tokens),
    "tied_embed_F": (TiedEmbedF, tokens),
    "transformer_encoder": (Encoder, SEQUENCE),
    "unet": (UNet, IMAGE),
    "upsample_cat": (UpsampleCat, IMAGE),
}
