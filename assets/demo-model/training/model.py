"""The network: sizes, parameters under their checkpoint names, and a training forward pass.

The equations are those of transformers' LlavaForConditionalGeneration with a CLIP vision tower and
a LLaMA decoder (`evaluate.py` loads the result there and compares). They are written out here as
two block functions over plain tensors, because a packed row with its own attention mask, stochastic
depth and fake quantisation do not fit the library's forward, and because two small compiled
functions start in seconds.
"""

import math

import torch
import torch.nn.functional as F

from model_sizes import *  # noqa: F403 (every size and name)


def plain_attention(q, k, v, attn_mask=None):
    """For torch before 2.0."""
    s = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return (s if attn_mask is None else s + attn_mask).softmax(-1) @ v


if not hasattr(F, "scaled_dot_product_attention"):
    F.scaled_dot_product_attention = plain_attention


def init(seed, device):
    """Fresh parameters."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in shapes().items():
        if name.endswith("bias"):
            t = torch.zeros(shape)
        elif "norm" in name or "layrnorm" in name:
            t = torch.ones(shape)
        elif "embed" in name and "patch" not in name:
            t = torch.randn(shape, generator=g) * .02
        else:
            fan = math.prod(shape[1:])
            deep = any(k in name for k in ("out_proj", "fc2", "o_proj", "down_proj"))
            layers = VISION_LAYERS if name.startswith(V) else TEXT_LAYERS
            t = torch.randn(shape, generator=g) * fan ** -.5 * (.7 / math.sqrt(layers) if deep else .7)
        out[name] = t.to(device).requires_grad_(True)
    return out


def fake_quant(w, amount):
    """w moved by `amount` (0..1) to what 4-bit groups of 128 inputs can hold; gradients pass through."""
    n, k = w.shape
    g = w.detach().view(n, k // GROUP, GROUP)
    low, high = g.amin(2, keepdim=True).clamp(max=0), g.amax(2, keepdim=True).clamp(min=0)
    scale = ((high - low) / 15).clamp(min=1e-6).half().float()
    zero = (-low / scale).round().clamp(0, 15)
    q = ((g / scale).round() + zero).clamp(0, 15)
    step = ((q - zero) * scale - g).view(n, k)
    return w + amount * step


def vision_block(x, keep, *p):
    """Pre-norm CLIP layer. x [b, t, d]; keep [b, 1, 1] scales the branches (stochastic depth)."""
    n1w, n1b, qw, qb, kw, kb, vw, vb, ow, ob, n2w, n2b, f1w, f1b, f2w, f2b = [t.to(x.dtype) for t in p]
    b, t, d = x.shape
    h = F.layer_norm(x, (d,), n1w, n1b, EPS_VISION)
    qkv = F.linear(h, torch.cat([qw, kw, vw]), torch.cat([qb, kb, vb]))
    q, k, v = qkv.view(b, t, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
    a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
    x = x + keep * F.linear(a, ow, ob)
    h = F.linear(F.layer_norm(x, (d,), n2w, n2b, EPS_VISION), f1w, f1b)
    h = h * torch.sigmoid(1.702 * h)
    return x + keep * F.linear(h, f2w, f2b)


def rms_norm(x, w):
    h = x.float()
    return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + EPS_TEXT)).to(x.dtype) * w


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def text_block(x, mask, cos, sin, amount, *p):
    """LLaMA layer with fake-quantised weights. x [b, t, d]; mask [b, 1, t, t] additive."""
    n1, n2 = p[0].to(x.dtype), p[5].to(x.dtype)
    qw, kw, vw, ow, gw, uw, dw = [fake_quant(p[i], amount).to(x.dtype) for i in (1, 2, 3, 4, 6, 7, 8)]
    b, t, d = x.shape
    qkv = F.linear(rms_norm(x, n1), torch.cat([qw, kw, vw]))
    q, k, v = qkv.view(b, t, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.expand(b, HEADS, t, t))
    x = x + F.linear(a.transpose(1, 2).reshape(b, t, d), ow)
    h = rms_norm(x, n2)
    return x + F.linear(F.silu(F.linear(h, gw)) * F.linear(h, uw), dw)


def head_loss(h, norm, emb, labels, weights):
    """Weighted cross entropy and the hits [b, t] of the text positions."""
    logits = F.linear(rms_norm(h, norm.to(h.dtype)), emb.to(h.dtype)).float()
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
    w = weights.flatten()
    hit = logits.argmax(-1) == labels
    return (loss * w).sum() / w.sum().clamp(min=1), hit


def row_mask(seg, dtype):
    """Additive mask [b, 1, t, t]: causal; a segment sees the prefix, the image and itself."""
    b, t = seg.shape
    q, k = seg[:, :, None], seg[:, None, :]
    see = (k == q) | ((k == 0) & (q > 0))
    see &= torch.ones(t, t, dtype=torch.bool, device=seg.device).tril()
    mask = torch.zeros(b, t, t, dtype=dtype, device=seg.device)
    return mask.masked_fill_(~see, float("-inf"))[:, None]


class Net:
    """The forward pass over a dict of parameters."""

    def __init__(self, compiled=True, dtype=torch.bfloat16):
        self.dtype = dtype
        wrap = torch.compile if compiled else (lambda f: f)
        self.vision_block, self.text_block, self.head_loss = map(wrap, (vision_block, text_block, head_loss))

    def see(self, p, pixels, drop=0.0, gen=None):
        """pixels [b, 3, s, s] -> patch features [b, n, d]; CLS is first and dropped at the end."""
        b = len(pixels)
        cols = pixels.to(self.dtype).unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
        cols = cols.permute(0, 2, 3, 1, 4, 5).reshape(b, N_IMAGE, -1)
        x = F.linear(cols, p[V + "embeddings.patch_embedding.weight"].flatten(1).to(self.dtype))
        x = torch.cat([p[V + "embeddings.class_embedding"].to(self.dtype).expand(b, 1, WIDTH), x], 1)
        x = x + p[V + "embeddings.position_embedding.weight"].to(self.dtype)
        x = F.layer_norm(x, (WIDTH,), p[V + "pre_layrnorm.weight"].to(self.dtype),
                         p[V + "pre_layrnorm.bias"].to(self.dtype), EPS_VISION)
        for i in range(VISION_LAYERS):
            rate = drop * i / max(1, VISION_LAYERS - 1)
            keep = torch.ones(b, 1, 1, device=x.device, dtype=self.dtype)
            if rate:
                keep = ((torch.rand(b, 1, 1, device=x.device, generator=gen) >= rate) / (1 - rate)).to(self.dtype)
            x = self.vision_block(x, keep, *[p[f"{V}encoder.layers.{i}.{n}"] for n in V_BLOCK])
        return x[:, 1:]

    def project(self, p, feats):
        m = "multi_modal_projector.linear_"
        d = self.dtype
        h = F.gelu(F.linear(feats, p[m + "1.weight"].to(d), p[m + "1.bias"].to(d)))
        return F.linear(h, p[m + "2.weight"].to(d), p[m + "2.bias"].to(d))

    def read(self, p, b, image, amount, n_prefix, taps=None):
        """Text loss and hits of a batch of rows; image [b, n, d] stands after the prefix. The list `taps` gets
        the text positions' state after each layer."""
        ids = b["ids"].long()
        emb = p[L + "embed_tokens.weight"]
        x = F.embedding(ids, emb).to(self.dtype)
        end = n_prefix + N_IMAGE
        x = torch.cat([x[:, :n_prefix], image, x[:, end:]], 1)
        inv = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2, device=x.device).float() / HEAD_DIM)
        angle = b["pos"].float()[:, None, :, None] * torch.cat([inv, inv])
        cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
        mask = row_mask(b["seg"], self.dtype)
        for i in range(TEXT_LAYERS):
            x = self.text_block(x, mask, cos, sin, amount, *[p[f"{L}layers.{i}.{n}"] for n in L_BLOCK])
            if taps is not None:
                taps.append(x[:, end:])
        return self.head_loss(x[:, end:], p[L + "norm.weight"], emb, b["labels"][:, end:].long(), b["weights"][:, end:])
