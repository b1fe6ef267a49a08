"""Draws planned pictures in big batches with torch: backgrounds, sprites, photos, and their disguises.

Everything that changes the look but not the words is drawn at random here, so that the model cannot
lean on one artist's hand: hues, greys, posterising, outlines, sketches, shading, warps, blur, noise.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

import plan as P
from names import SHAPES

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
ORGANIC = ("food", "plant", "sky", "animal")     # groups whose hue says what they are


class Renderer:
    """Turns the arrays of a batch (see batches.py) into normalised pictures [b, 3, size, size]."""

    def __init__(self, bank, photos, loose, size, device, patch=16, seed=0):
        self.size, self.patch, self.dev = size, patch, device
        self.bank = torch.from_numpy(np.ascontiguousarray(bank.transpose(0, 3, 1, 2))).to(device)
        self.photos = torch.from_numpy(np.ascontiguousarray(photos.transpose(0, 3, 1, 2))).to(device)
        self.loose = torch.from_numpy(loose).to(device)       # [n] 1: any hue is fine
        self.gen = torch.Generator(device=device)
        self.gen.manual_seed(seed)
        c = (torch.arange(size, device=device, dtype=torch.float32) + .5) / size
        self.yy, self.xx = torch.meshgrid(c, c, indexing="ij")
        self.mean, self.std = MEAN.to(device).view(1, 3, 1, 1), STD.to(device).view(1, 3, 1, 1)
        self.pad = torch.tensor(P.MEAN_COLOR, device=device).float().view(1, 3, 1, 1) / 255

    # ---- random numbers on the device

    def rand(self, *shape, lo=0.0, hi=1.0):
        return torch.rand(*shape, generator=self.gen, device=self.dev) * (hi - lo) + lo

    def some(self, n, p):
        """Indices of a random share p of n."""
        return (self.rand(n) < p).nonzero()[:, 0]

    # ---- sprites

    def color_matrix(self, hue, sat, val):
        """[m, 3, 3]: turn hue by an angle, scale saturation and value."""
        m = hue.shape[0]
        k = 1 / math.sqrt(3)
        cross = torch.tensor([[0, -k, k], [k, 0, -k], [-k, k, 0]], device=self.dev)
        eye, third = torch.eye(3, device=self.dev), torch.full((3, 3), 1 / 3, device=self.dev)
        cos, sin = hue.cos().view(m, 1, 1), hue.sin().view(m, 1, 1)
        turn = cos * eye + sin * cross + (1 - cos) * third
        luma = torch.tensor([.299, .587, .114], device=self.dev).expand(3, 3)
        s = sat.view(m, 1, 1)
        return val.view(m, 1, 1) * (s * eye + (1 - s) * luma) @ turn

    def disguise(self, rgb, alpha, sprite, keep, shape):
        """Changes the artist's hand. rgb [m, 3, 96, 96], alpha [m, 1, 96, 96]."""
        m = rgb.shape[0]
        free, loose = (~keep & ~shape).float(), self.loose[sprite].float()
        small = self.rand(m, lo=-.35, hi=.35)
        large = self.rand(m, lo=-math.pi, hi=math.pi)
        hue = torch.where((self.rand(m) < .5) & (loose > 0), large, small) * (self.rand(m) < .5) * free
        sat = torch.where(self.rand(m) < .08 * loose, torch.zeros(m, device=self.dev), self.rand(m, lo=.55, hi=1.4))
        sat = 1 + (sat - 1) * free
        val = 1 + (self.rand(m, lo=.75, hi=1.2) - 1) * free
        mat = self.color_matrix(hue, sat, val)
        rgb = torch.einsum("mij,mjhw->mihw", mat, rgb).clamp(0, 1)
        gamma = torch.exp(self.rand(m, lo=-.35, hi=.35) * free).view(m, 1, 1, 1)
        rgb = (rgb + 1e-4) ** gamma
        yy = torch.linspace(-1, 1, rgb.shape[2], device=self.dev).view(1, 1, -1, 1)
        xx = yy.transpose(2, 3)
        i = self.some(m, .3)                                      # shading from one side
        if len(i):
            g = self.rand(2, len(i), 1, 1, 1, lo=-.3, hi=.3)
            rgb[i] = rgb[i] * (1 + g[0] * xx + g[1] * yy)
        i = self.some(m, .08)                                     # few tones
        if len(i):
            k = self.rand(len(i), 1, 1, 1, lo=2, hi=5).round()
            rgb[i] = (rgb[i] * k).round() / k
        i = self.some(m, .06)                                     # flat patches
        if len(i):
            rgb[i] = F.interpolate(F.avg_pool2d(rgb[i], 4), scale_factor=4, mode="nearest")
        i = (~shape & (self.rand(m) < .05)).nonzero()[:, 0]       # a pen drawing
        if len(i):
            grey = rgb[i].mean(1, keepdim=True) * alpha[i] + (1 - alpha[i])
            edge = F.max_pool2d(grey, 3, 1, 1) + F.max_pool2d(-grey, 3, 1, 1)
            paper = self.rand(len(i), 1, 1, 1, lo=.75, hi=1)
            rgb[i] = (paper * (1 - 2.5 * edge).clamp(0, 1)).expand(-1, 3, -1, -1) * .85 + .15 * rgb[i]
        i = self.some(m, .22)                                     # an outline, dark or light
        if len(i):
            wide = F.max_pool2d(alpha[i], 5, 1, 2)
            ink = torch.where(self.rand(len(i)) < .7, self.rand(len(i), hi=.25), self.rand(len(i), lo=.9)).view(-1, 1, 1, 1)
            rgb[i] = rgb[i] * alpha[i] + ink * (1 - alpha[i])
            alpha = alpha.clone()
            alpha[i] = torch.maximum(alpha[i], wide)
        return rgb.clamp(0, 1), alpha

    def sprites_on(self, canvas, b, augment):
        """Pastes the things on the canvas; returns the class of each patch [n, g, g]."""
        n, slots = b["obj"].shape
        g = self.size // self.patch
        target = torch.zeros(n, g, g, dtype=torch.long, device=self.dev)
        best = torch.full((n, g, g), .30, device=self.dev)
        who, slot = (b["obj"] >= 0).nonzero(as_tuple=True)
        if len(who) == 0:
            return canvas, target
        sprite, geo, rgb = b["obj"][who, slot].long(), b["geo"][who, slot], b["rgb"][who, slot]
        m = len(who)
        tile = self.bank[sprite].float() / 255
        color, alpha = tile[:, :3] * rgb.view(m, 3, 1, 1), tile[:, 3:]
        if augment:
            shape = sprite >= len(self.loose) - len(SHAPES)
            color, alpha = self.disguise(color, alpha, sprite, geo[:, 6] > 0, shape)
        tile = torch.cat([color * alpha, alpha], 1)
        px = geo[:, 2] * self.size
        i = ((px < 62) | (self.rand(m) < (.12 if augment else 0))).nonzero()[:, 0]
        if len(i):                                                # small ones: average, do not alias
            tile[i] = F.interpolate(F.avg_pool2d(tile[i], 2), scale_factor=2, mode="bilinear")
        x, y, size, angle, flip, stretch = geo.view(m, 7, 1, 1).unbind(1)[:6]
        dx, dy = (self.xx - x) / size, (self.yy - y) / size
        u = (dx * angle.cos() + dy * angle.sin()) / stretch * flip
        v = (-dx * angle.sin() + dy * angle.cos()) * stretch
        if augment:                                               # a gentle warp
            amount = ((self.rand(m) < .35) & (geo[:, 6] >= 0)).float().view(m, 1, 1)
            amount = amount * (sprite < len(self.loose) - len(SHAPES)).view(m, 1, 1)
            a, f, p = self.rand(2, m, 1, 1, hi=.045), self.rand(2, m, 1, 1, lo=3, hi=8), self.rand(2, m, 1, 1, hi=6.28)
            u, v = u + amount * a[0] * (f[0] * v + p[0]).sin(), v + amount * a[1] * (f[1] * u + p[1]).sin()
        out = F.grid_sample(tile, torch.stack([2 * u, 2 * v], -1), mode="bilinear", padding_mode="zeros",
                            align_corners=False)
        cover = F.avg_pool2d(out[:, 3:], self.patch)[:, 0]
        classes = b["cls"][who, slot].long()
        for s in range(slots):
            j = (slot == s).nonzero()[:, 0]
            if len(j) == 0:
                continue
            w = who[j]
            canvas[w] = canvas[w] * (1 - out[j, 3:]) + out[j, :3]
            won = cover[j] > best[w]
            target[w] = torch.where(won, classes[j].view(-1, 1, 1), target[w])
            best[w] = torch.where(won, cover[j], best[w])
        return canvas, target

    # ---- backgrounds

    def background(self, b):
        """[n, 3, s, s] by layout; u, v run over the picture's own rectangle."""
        n, col, par = len(b["layout"]), b["colors"], b["shape"]
        w, h = b["wh"][:, 0].view(n, 1, 1), b["wh"][:, 1].view(n, 1, 1)
        u, v = (self.xx - .5) / w + .5, (self.yy - .5) / h + .5
        p = [par[:, i].view(n, 1, 1) for i in range(8)]
        layout = b["layout"].view(n, 1, 1)
        along = (u - .5) * p[0].cos() + (v - .5) * p[0].sin()
        across = (v - .5) * p[0].cos() - (u - .5) * p[0].sin()
        sin_a, sin_b = (along * p[1] * 6.28).sin(), (across * p[1] * 6.28).sin()
        t = torch.zeros_like(along)
        t = torch.where(layout == 1, (along * .8 + .5).clamp(0, 1), t)
        t = torch.where(layout == 2, (sin_a > 0).float(), t)
        t = torch.where(layout == 3, (sin_a * sin_b > 0).float(), t)
        t = torch.where(layout == 4, (sin_a * sin_b > p[2]).float(), t)
        c = [col[:, i].view(n, 3, 1, 1) for i in range(5)]
        flat = c[0] + (c[1] - c[0]) * t[:, None]
        top = c[0] + (c[1] - c[0]) * (v / p[0]).clamp(0, 1)[:, None]
        line = p[1] + p[2] * (u * p[3] * 6.28 + p[4]).sin()
        ground = c[3] + (c[4] - c[3]) * ((v - p[1]) / (1 - p[1])).clamp(0, 1)[:, None]
        scene = torch.where((v > p[0])[:, None], c[2], top)
        stars = (self.rand(n, self.size, self.size) < p[5])[:, None]
        scene = torch.where(stars, torch.ones_like(scene), scene)
        scene = torch.where((v > line)[:, None], ground, scene)
        middle = (1 + p[1]) / 2
        dash = ((v - middle).abs() < p[6]) & ((u * p[3] * 12).sin() > 0)
        scene = torch.where(dash[:, None], torch.full_like(scene, .92), scene)
        return torch.where((layout == 5)[:, None], scene, flat)

    def photo_pixels(self, index, wh, augment, calm=False):
        """Photos cropped at random into the picture's rectangle: [m, 3, s, s]."""
        m = len(index)
        src = self.photos[index].float() / 255
        u = (self.xx - .5) / wh[:, 0].view(m, 1, 1)
        v = (self.yy - .5) / wh[:, 1].view(m, 1, 1)
        if augment:
            area, ratio = self.rand(m, lo=.30, hi=1.0), torch.exp(self.rand(m, lo=-.3, hi=.3))
            # the rectangle's own aspect is a crop, not a squeeze, nine times in ten
            aspect = (wh[:, 0] / wh[:, 1]) ** (self.rand(m) < .9).float()
            sx, sy = (area * ratio * aspect).sqrt(), (area / ratio / aspect).sqrt()
            over = torch.maximum(sx, sy).clamp(min=1)
            sx, sy = sx / over, sy / over
            ox, oy = (1 - sx) * self.rand(m, lo=-.5, hi=.5), (1 - sy) * self.rand(m, lo=-.5, hi=.5)
            angle = self.rand(m, lo=-.3, hi=.3) * (self.rand(m) < .3)
            flip = (self.rand(m) < .5).float() * 2 - 1
        else:
            zero = torch.zeros(m, device=self.dev)
            sx = sy = zero + 1
            ox = oy = angle = zero
            flip = zero + 1
        f = lambda t: t.view(m, 1, 1)
        x = (u * f(angle.cos()) + v * f(angle.sin())) * f(sx * flip) + f(ox)
        y = (-u * f(angle.sin()) + v * f(angle.cos())) * f(sy) + f(oy)
        out = F.grid_sample(src, torch.stack([2 * x, 2 * y], -1), mode="bicubic", padding_mode="reflection",
                            align_corners=False).clamp(0, 1)
        if augment:
            some = (self.rand(m) < .8).float()
            mat = self.color_matrix(self.rand(m, lo=-.18, hi=.18) * some,
                                    torch.where(self.rand(m) < .06, torch.zeros(m, device=self.dev),
                                                1 + self.rand(m, lo=-.45, hi=.45) * some),
                                    1 + self.rand(m, lo=-.35, hi=.35) * some)
            out = torch.einsum("mij,mjhw->mihw", mat, out)
            mid = out.mean((2, 3), keepdim=True)
            out = ((out - mid) * (1 + self.rand(m, 1, 1, 1, lo=-.35, hi=.35)) + mid).clamp(0, 1)
        return out

    # ---- the finished picture

    def weather(self, img):
        """Blur, sharpening, noise, JPEG-like loss, small resolution: as pictures are in the wild."""
        n, s = len(img), self.size
        i = self.some(n, .15)
        if len(i):
            k = self.rand(1, lo=.4, hi=1.3).item()
            d = torch.arange(-3, 4, device=self.dev).float()
            line = torch.exp(-d * d / (2 * k * k))
            line = (line / line.sum()).view(1, 1, 7, 1).repeat(3, 1, 1, 1)
            soft = F.conv2d(F.pad(img[i], (3, 3, 3, 3), mode="replicate"), line, groups=3)
            img[i] = F.conv2d(soft, line.transpose(2, 3), groups=3)
        i = self.some(n, .15)
        if len(i):
            soft = F.avg_pool2d(img[i], 3, 1, 1, count_include_pad=False)
            img[i] = img[i] + self.rand(len(i), 1, 1, 1, lo=.3, hi=1.2) * (img[i] - soft)
        i = self.some(n, .10)
        if len(i):
            small = F.interpolate(img[i], size=int(self.rand(1, lo=72, hi=160).item()), mode="bilinear", antialias=True)
            img[i] = F.interpolate(small, size=s, mode="bilinear")
        i = self.some(n, .12)
        if len(i):
            img[i] = self.jpeg(img[i], self.rand(len(i), 1, 1, 1, 1, 1, lo=.02, hi=.12))
        i = self.some(n, .15)
        if len(i):
            noise = torch.randn(img[i].shape, generator=self.gen, device=self.dev)
            img[i] = img[i] + noise * self.rand(len(i), 1, 1, 1, hi=.05)
        gain = 1 + self.rand(n, 1, 1, 1, lo=-.06, hi=.06)
        return img * gain

    def jpeg(self, img, step):
        """Rounds the coefficients of 8x8 cosine blocks."""
        k = torch.arange(8, device=self.dev).float()
        basis = torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / 16) / 2
        basis[0] /= math.sqrt(2)
        n, s = len(img), self.size
        blocks = img.reshape(n, 3, s // 8, 8, s // 8, 8)
        coef = torch.einsum("ai,bj,ncxiyj->ncxayb", basis, basis, blocks)
        ramp = step * (1 + .5 * (k[:, None, None] + k))
        coef = (coef / ramp).round() * ramp
        return torch.einsum("ai,bj,ncxayb->ncxiyj", basis, basis, coef).reshape(n, 3, s, s)

    def patch_photo(self, target, b, index):
        """Photos teach every patch inside their rectangle their label."""
        g = target.shape[1]
        c = (torch.arange(g, device=self.dev).float() + .5) / g
        inside = ((c - .5).abs()[None, None, :] < b["wh"][index, 0].view(-1, 1, 1) / 2) & \
                 ((c - .5).abs()[None, :, None] < b["wh"][index, 1].view(-1, 1, 1) / 2)
        target[index] = torch.where(inside, b["label"][index].long().view(-1, 1, 1), 0)

    def cutmix(self, img, target, index):
        """Swaps a rectangle between photos, and the labels of its patches with it."""
        if len(index) < 2:
            return
        g, p = target.shape[1], self.patch
        other = index.roll(1)
        cell = torch.arange(g, device=self.dev).float()
        size, at = self.rand(2, len(index), 1, lo=.3, hi=.8) * g, self.rand(2, len(index), 1)
        start = (at * (g - size)).round()
        row = (cell >= start[0]) & (cell < start[0] + size[0])
        colm = (cell >= start[1]) & (cell < start[1] + size[1])
        box = row[:, :, None] & colm[:, None, :]
        fine = box.repeat_interleave(p, 1).repeat_interleave(p, 2)[:, None]
        img[index] = torch.where(fine, img[other], img[index])
        target[index] = torch.where(box, target[other], target[index])

    @torch.no_grad()
    def __call__(self, b, augment=True):
        """(pixels [n, 3, s, s] normalised, class of each patch [n, g, g])."""
        img = self.background(b)
        back = (b["layout"] == P.BACKGROUNDS.index("photo")).nonzero()[:, 0]
        if len(back):
            img[back] = self.photo_pixels(b["photo"][back].long(), b["wh"][back], augment)
            scene = back[b["kind"][back] == 0]
            if len(scene):                                        # duller than the things before it
                fade = self.rand(len(scene), 1, 1, 1, lo=.4, hi=.9)
                img[scene] = img[scene] * fade + self.rand(len(scene), 1, 1, 1) * (1 - fade)
        img, target = self.sprites_on(img, b, augment)
        photos = (b["kind"] > 0).nonzero()[:, 0]
        if len(photos):
            self.patch_photo(target, b, photos)
        if augment:
            img = self.weather(img)
        w, h = b["wh"][:, 0].view(-1, 1, 1), b["wh"][:, 1].view(-1, 1, 1)
        inside = ((self.xx - .5).abs() < w / 2) & ((self.yy - .5).abs() < h / 2)
        img = torch.where(inside[:, None], img, self.pad)
        self.cutmix(img, target, (b["kind"] == 2).nonzero()[:, 0])
        img = (img.clamp(0, 1) * 255).round() / 255
        return (img - self.mean) / self.std, target
