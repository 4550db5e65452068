"""EDM's networks in float64 by NumPy, written from the papers' formulas."""

import math
import re

import numpy as np

WIDE, BOX = (1.0, 3.0, 3.0, 1.0), (1.0, 1.0)  # filters of NCSN++, and of DDPM++ and ADM
LABELS = [2, -1, 0]  # of three samples; -1 is none


def windows(x, n, padding):
    """(B, C, H, W) -> (B, C, H', W', n, n)."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    return np.lib.stride_tricks.sliding_window_view(x, (n, n), (2, 3))


def conv(x, weight, bias, padding=0):
    out = np.einsum("bihwnm,oinm->bohw", windows(x, weight.shape[-1], padding), weight)
    return out + bias[:, None, None]


def halve(x, taps, padding):
    f, every = np.array(taps) / sum(taps), windows(x, len(taps), padding)
    return np.einsum("bchwnm,n,m->bchw", every[:, :, ::2, ::2], f, f)


def double(x, taps):
    """Twice the filter, each way, over the image with zeros put in between."""
    f, n, (b, c, h, w) = 2 * np.array(taps) / sum(taps), len(taps), x.shape
    sparse = np.zeros((b, c, 2 * h - 1, 2 * w - 1))
    sparse[:, :, ::2, ::2] = x
    return np.einsum("bchwnm,n,m->bchw", windows(sparse, n, n - 1 - (n - 1) // 2), f, f)


def resampled(x, taps, way):
    if way == "up":
        return double(x, taps)
    return halve(x, taps, (len(taps) - 1) // 2) if way == "down" else x


def fused_down(x, weight, bias, taps):
    x = conv(x, weight, np.zeros(len(weight)), weight.shape[-1] // 2 + (len(taps) - 1) // 2)
    return halve(x, taps, 0) + bias[:, None, None]


def linear(x, weight, bias):
    return x @ weight.T + bias


def silu(x):
    return x / (1 + np.exp(-x))


def group_norm(x, weight, bias, eps):
    groups = x.reshape(len(x), max(1, min(32, x.shape[1] // 4)), -1)
    centred = groups - groups.mean(2, keepdims=True)
    out = centred / np.sqrt((centred**2).mean(2, keepdims=True) + eps)
    return out.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def attention(qkv, heads):
    b, c3, h, w = qkv.shape
    qkv, d, out = qkv.reshape(b, c3, h * w), c3 // 3 // heads, np.empty((b, c3 // 3, h * w))
    for i, head in np.ndindex(b, heads):
        first = 3 * head * d
        q, k, v = (qkv[i, first + part : first + 3 * d : 3] for part in range(3))
        score = np.exp(q.T @ k / math.sqrt(d))  # (queries, keys)
        out[i, head * d : (head + 1) * d] = v @ (score / score.sum(1, keepdims=True)).T
    return out.reshape(b, c3 // 3, h, w)


class Reference:
    """A network's state by name and the constants of its family."""

    def __init__(self, state, is_adm, taps):
        self.state, self.is_adm, self.taps = state, is_adm, taps
        self.eps, self.scale = (1e-5, 1.0) if is_adm else (1e-6, math.sqrt(0.5))

    def at(self, name):
        return self.state[f"{name}.weight"], self.state.get(f"{name}.bias", 0)

    def norm(self, x, name):
        return group_norm(x, *self.at(name), self.eps)

    def block(self, x, emb, name, way=None):
        h = resampled(silu(self.norm(x, f"{name}.norm0")), self.taps, way)
        h = conv(h, *self.at(f"{name}.conv0"), 1)
        e = linear(emb, *self.at(f"{name}.affine"))[:, :, None, None]
        if self.is_adm:
            scale, shift = e[:, : h.shape[1]], e[:, h.shape[1] :]
            h = silu(self.norm(h, f"{name}.norm1") * (1 + scale) + shift)
        else:
            h = silu(self.norm(h + e, f"{name}.norm1"))
        x = resampled(x, self.taps, way)
        if f"{name}.skip.weight" in self.state:
            x = conv(x, *self.at(f"{name}.skip"))
        x = (x + conv(h, *self.at(f"{name}.conv1"), 1)) * self.scale
        if f"{name}.qkv.weight" not in self.state:
            return x
        qkv = conv(self.norm(x, f"{name}.norm2"), *self.at(f"{name}.qkv"))
        h = attention(qkv, max(1, x.shape[1] // 64) if self.is_adm else 1)
        return (x + conv(h, *self.at(f"{name}.proj"))) * self.scale

    def body(self, x, emb):
        states, image = [], x
        names = dict.fromkeys(".".join(key.split(".")[:2]) for key in self.state)
        for name in (name for name in names if name.startswith("enc.")):
            if name.endswith("_conv"):
                states.append(conv(x, *self.at(name), 1))
            elif name.endswith("_aux_residual"):
                image = states[-1] + fused_down(image, *self.at(name), self.taps)
                image = states[-1] = image / math.sqrt(2)
            else:
                way = "down" if name.endswith("_down") else None
                states.append(self.block(states[-1], emb, name, way))
        x = states[-1]
        for name in (name for name in names if re.match(r"dec\..*_(in|up|block)", name)):
            if "_block" in name:
                x = np.concatenate((x, states.pop()), axis=1)
            x = self.block(x, emb, name, "up" if name.endswith("_up") else None)
        return x


def angles(c, n, endpoint):
    return np.outer(c, [10000 ** (-k / (n // 2 - endpoint)) for k in range(n // 2)])


def labels(scale):
    return np.array([[scale * (k == y) for k in range(3)] for y in LABELS])


def reference_song(state, x, c):
    fourier, n = "map_noise.freqs" in state, state["map_layer0.weight"].shape[1]
    net = Reference(state, False, WIDE if fourier else BOX)
    a = 2 * math.pi * np.outer(c, state["map_noise.freqs"]) if fourier else angles(c, n, 1)
    emb = np.concatenate((np.sin(a), np.cos(a)), axis=1)
    emb = emb + linear(labels(math.sqrt(3)), *net.at("map_label"))
    emb = silu(linear(silu(linear(emb, *net.at("map_layer0"))), *net.at("map_layer1")))
    x = silu(net.norm(net.body(x, emb), "dec.8x8_aux_norm"))
    return conv(x, *net.at("dec.8x8_aux_conv"), 1)


def reference_adm(state, x, c):
    net, a = Reference(state, True, BOX), angles(c, state["map_layer0.weight"].shape[1], 0)
    emb = np.concatenate((np.cos(a), np.sin(a)), axis=1)
    emb = linear(silu(linear(emb, *net.at("map_layer0"))), *net.at("map_layer1"))
    x = net.body(x, silu(emb + linear(labels(1), *net.at("map_label"))))
    return conv(silu(net.norm(x, "out_norm")), *net.at("out_conv"), 1)
