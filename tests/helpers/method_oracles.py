"""Merge methods once more, in plain NumPy straight from their formulas: what the real ones are compared with.

Each takes deltas (specialists, *shape) and weights (specialists,), and returns the scaled merged delta (*shape). Those
of the elementwise family also take arrays of fractions, and then round nothing.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
from kernel_oracles import fractions, like

Array = np.ndarray


def linear(d: Array, w: Array, base: Array, normalize: bool = True, scale: float = 1.0) -> Array:
    models = d + base
    total = sum(w[i] * models[i] for i in range(len(w)))
    return like(scale, d) * ((total / w.sum() if normalize else total) - base)


def task_arithmetic(d: Array, w: Array, normalize: bool = False, scale: float = 1.0) -> Array:
    return like(scale, d) * np.einsum("i,i...->...", w / w.sum() if normalize else w, d)


def trimmed(delta: Array, density: float, skip: float = 0.0) -> Array:
    """One entry at a time: how many are strictly larger decides."""
    sizes = np.abs(delta).astype(np.float32).ravel()
    n = sizes.size
    if density == 0:
        return np.zeros(delta.shape, delta.dtype)
    wanted = min(max(1, math.floor(density * n)), n)
    first = min(math.floor(skip * n), n - wanted)
    last = first + wanted
    kept = np.zeros(n, delta.dtype)
    for j in range(n):
        larger, as_large = int((sizes > sizes[j]).sum()), int((sizes == sizes[j]).sum())
        # Its ranks are larger+1 .. larger+as_large; kept when any of them lies in first+1 .. last.
        if larger < last and larger + as_large > first:
            kept[j] = delta.ravel()[j]
    return kept.reshape(delta.shape)


def elected(d: Array, w: Array, elect: str, average: str) -> Array:
    out = np.zeros(d.shape[1:], d.dtype)
    for place in np.ndindex(*d.shape[1:]):
        entry = d[(slice(None), *place)]
        seen = entry.astype(float)  # signs are elected on float64 deltas, by definition
        votes = {"weighted_mass": w.astype(float) * seen, "mass": seen, "count": np.sign(seen)}[elect]
        sign = 1 if sum(votes) >= 0 else -1
        turned = [-1 if elect == "weighted_mass" and w[i] < 0 else 1 for i in range(len(w))]
        chosen = [i for i in range(len(w)) if entry[i] != 0 and turned[i] * np.sign(entry[i]) == sign]
        total = sum((w[i] * entry[i] for i in chosen), like(0, d))
        below = {"weight": sum(w[i] for i in chosen), "count": len(chosen), "none": 1}[average]
        out[place] = total / below if below else 0
    return out


Each = float | tuple[float, ...]


def every(value: Each, count: int) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,) * count


def all_trimmed(d: Array, density: Each, outliers: Each = 0.0) -> Array:
    shares = zip(every(density, len(d)), every(outliers, len(d)), strict=True)
    return np.stack([trimmed(delta, *share) for delta, share in zip(d, shares, strict=True)])


def ties(
    d: Array,
    w: Array,
    density: Each = 0.2,
    trim: str = "tensor",
    elect: str = "weighted_mass",
    average: str = "weight",
    scale: float = 1.0,
) -> Array:
    return like(scale, d) * elected(all_trimmed(d, density), w, elect, average)


def breadcrumbs(
    d: Array, w: Array, density: Each = 0.9, outliers: Each = 0.01, normalize: bool = False, scale: float = 1.0
) -> Array:
    return task_arithmetic(all_trimmed(d, density, outliers), w, normalize, scale)


def breadcrumbs_ties(
    d: Array,
    w: Array,
    density: Each = 0.9,
    outliers: Each = 0.01,
    elect: str = "weighted_mass",
    average: str = "weight",
    scale: float = 1.0,
) -> Array:
    return like(scale, d) * elected(all_trimmed(d, density, outliers), w, elect, average)


def restored(kept: Array, d: Array) -> Array:
    out = kept.copy()
    for i in range(len(d)):
        left = np.abs(kept[i]).sum()
        if left > 0:
            out[i] = kept[i] * (np.abs(d[i]).sum() / left)
    return out


def dropped(d: Array, bits: Array, density: Each, rescale: str) -> Array:
    kept = np.stack([np.where(bits[i] < math.floor(p * 2**32), d[i], 0) for i, p in enumerate(every(density, len(d)))])
    if rescale == "inverse_density":
        return np.stack([kept[i] / like(p, d) for i, p in enumerate(every(density, len(d)))])
    return restored(kept, d) if rescale == "l1" else kept


def dare_linear(
    d: Array,
    w: Array,
    bits: Array,
    density: Each = 0.5,
    rescale: str = "inverse_density",
    normalize: bool = False,
    scale: float = 1.0,
) -> Array:
    return task_arithmetic(dropped(d, bits, density, rescale), w, normalize, scale)


def dare_ties(
    d: Array,
    w: Array,
    bits: Array,
    density: Each = 0.5,
    rescale: str = "inverse_density",
    elect: str = "weighted_mass",
    average: str = "weight",
    scale: float = 1.0,
) -> Array:
    return like(scale, d) * elected(dropped(d, bits, density, rescale), w, elect, average)


def chances(delta: Array, density: float, epsilon: float) -> Array:
    if delta.size == 0:
        return delta
    rows = np.abs(delta).astype(np.float32).reshape(-1, delta.shape[-1] if delta.ndim else 1)
    out = np.empty(rows.shape)
    for r, row in enumerate(rows):
        for j, size in enumerate(row):
            if len(row) == 1:
                out[r, j] = density
            else:
                rank = (row < size).sum() + ((row == size).sum() - 1) / 2
                out[r, j] = density - epsilon + 2 * epsilon * rank / (len(row) - 1)
    return out.clip(0.0, 1.0).reshape(delta.shape)


def dropped_by_rank(d: Array, bits: Array, density: Each, epsilon: Each, rescale: str) -> Array:
    shares = zip(every(density, len(d)), every(epsilon, len(d)), strict=True)
    p = np.stack([chances(delta, *share) for delta, share in zip(d, shares, strict=True)])
    kept = np.where(bits < np.floor(p * 2**32), d, 0)
    if rescale == "own_probability":  # the probability is a float64 by definition
        return np.divide(kept, fractions(p) if d.dtype == object else p, out=np.zeros_like(kept), where=p > 0)
    return restored(kept, d) if rescale == "l1" else kept


def della_linear(
    d: Array,
    w: Array,
    bits: Array,
    density: Each = 0.5,
    epsilon: Each = 0.1,
    rescale: str = "own_probability",
    normalize: bool = False,
    scale: float = 1.0,
) -> Array:
    return task_arithmetic(dropped_by_rank(d, bits, density, epsilon, rescale), w, normalize, scale)


def della(
    d: Array,
    w: Array,
    bits: Array,
    density: Each = 0.5,
    epsilon: Each = 0.1,
    rescale: str = "own_probability",
    elect: str = "weighted_mass",
    average: str = "weight",
    scale: float = 1.0,
) -> Array:
    return like(scale, d) * elected(dropped_by_rank(d, bits, density, epsilon, rescale), w, elect, average)


def magmax(d: Array, w: Array, scale: float = 1.0) -> Array:
    scaled = np.einsum("i,i...->i...", w, d)
    winner = np.asarray(np.abs(scaled).argmax(axis=0))
    return like(scale, d) * np.take_along_axis(scaled, winner[None], axis=0)[0]


def consensus(d: Array, w: Array, theta: float = 0.4, minimum: int = 2, scale: float = 1.0) -> Array:
    total = d.sum(axis=0)
    masks = [np.abs(delta) > like(theta, d) * np.abs(total - delta) for delta in d]
    return like(scale, d) * np.where(
        sum(m.astype(int) for m in masks) >= min(minimum, len(w)), np.einsum("i,i...->...", w, d), 0
    )


def sce(d: Array, w: Array, select: float = 1.0, scale: float = 1.0) -> Array:
    variance = d.var(axis=0)
    n = variance.size
    bar = np.sort(variance.ravel())[::-1][max(1, math.floor(select * n)) - 1] if n else 0.0
    chosen = np.where(variance >= bar, d, 0.0)
    energy = np.array([np.mean(delta**2) if n else 0.0 for delta in chosen])
    if energy.sum() > 0:
        energy = energy / energy.sum()
    return like(scale, d) * elected(chosen, w * energy, "mass", "weight")


def pcb(d: Array, w: Array, ratio: float = 0.1, scale: float = 1.0) -> Array:
    scaled = np.stack([w[i] * d[i] for i in range(len(w))])
    total, kept = scaled.sum(axis=0), []
    for delta in scaled:
        size = np.abs(delta)
        if size.size == 0:
            return scale * total
        span = size.max() - size.min()
        own = np.exp(len(w) * ((size - size.min()) / span) ** 2) if span > 0 else np.ones(size.shape)
        beta = own * np.tanh(delta * total)
        bar = np.sort(beta.ravel())[::-1][max(1, math.floor(ratio * size.size)) - 1]
        kept.append(np.where((beta >= bar) & (beta > 0), beta, 0.0))
    below = sum(kept)
    above = sum(beta * delta for beta, delta in zip(kept, scaled, strict=True))
    return scale * np.divide(above, below, out=np.zeros(np.shape(above)), where=np.asarray(below) > 0)


def emr(d: Array, w: Array, scale: float = 1.0) -> Array:
    scaled = np.stack([w[i] * d[i] for i in range(len(w))])
    sign = np.where(scaled.sum(axis=0) >= 0, 1.0, -1.0)
    return scale * sign * np.where(np.sign(scaled) == sign, np.abs(scaled), 0.0).max(axis=0)


def cosine(a: Array, b: Array) -> float:
    lengths = np.linalg.norm(a.ravel()) * np.linalg.norm(b.ravel())
    return float(a.ravel() @ b.ravel() / lengths) if lengths else 0.0


def model_stock(d: Array, w: Array, scale: float = 1.0) -> Array:
    n = len(w)
    mean = np.einsum("i,i...->...", w / w.sum(), d)
    if n == 1:
        return scale * mean
    c = float(np.mean([cosine(d[i], d[j]) for i, j in combinations(range(n), 2)]))
    return scale * (n * c / (1 + (n - 1) * c)) * mean


def interpolated(a: Array, b: Array, fraction: float, lerp_above: float) -> Array:
    c = cosine(a, b)
    if abs(c) > lerp_above or not np.any(a) or not np.any(b):
        return (1 - fraction) * a + fraction * b
    angle = math.acos(c)
    return (math.sin((1 - fraction) * angle) * a + math.sin(fraction * angle) * b) / math.sin(angle)


def slerp(
    d: Array,
    w: Array,
    base: Array,
    fraction: float = 0.5,
    space: str = "delta",
    lerp_above: float = 0.9995,
    scale: float = 1.0,
) -> Array:
    if space == "model":
        return scale * (interpolated(d[0] + base, d[1] + base, fraction, lerp_above) - base)
    w = np.where(w == 0, 1e-30, w)  # weight 0 is the limit of small weights: the angle stays
    return scale * interpolated(w[0] * d[0], w[1] * d[1], fraction, lerp_above)


def nuslerp(
    d: Array, w: Array, base: Array, space: str = "delta", lerp_above: float = 0.9995, scale: float = 1.0
) -> Array:
    fraction = w[1] / w.sum()
    if space == "model":
        return scale * (interpolated(d[0] + base, d[1] + base, fraction, lerp_above) - base)
    return scale * interpolated(d[0], d[1], fraction, lerp_above)


def karcher(
    d: Array,
    w: Array,
    base: Array,
    space: str = "delta",
    iterations: int = 100,
    tolerance: float = 1e-10,
    scale: float = 1.0,
) -> Array:
    """On the vectors themselves: follow the mean of the logarithms until it vanishes."""
    v = d + base if space == "model" else d
    share = w / w.sum()
    norms = np.array([np.linalg.norm(x.ravel()) for x in v])
    units = [x / n for x, n in zip(v, norms, strict=True) if n > 0]
    pull = share[norms > 0] / share[norms > 0].sum() if units else share
    if not units:
        return np.zeros(d.shape[1:])
    mean = sum(p * u for p, u in zip(pull, units, strict=True))
    mean = mean / np.linalg.norm(mean.ravel())
    for _ in range(1000):
        step = np.zeros_like(mean)
        for p, u in zip(pull, units, strict=True):
            c = float(np.clip((u * mean).sum(), -1, 1))
            across = u - c * mean
            length = np.linalg.norm(across.ravel())
            if length > 0:
                step = step + p * math.acos(c) * across / length
        size = np.linalg.norm(step.ravel())
        if size < 1e-13:
            break
        mean = math.cos(size) * mean + math.sin(size) * step / size
    return scale * (share @ norms * mean - (base if space == "model" else 0.0))


def metagpt(d: Array) -> Array:
    squares = np.array([float((delta**2).sum()) for delta in d])
    return squares / squares.sum() if squares.sum() else squares


def tact(d: Array, w: Array, ridge: float = 0.1, scale: float = 1.0) -> Array:
    return actmat(d, w, density=0.5, ridge=ridge, scale=scale)


def actmat(d: Array, w: Array, density: float = 1.0, ridge: float = 0.1, scale: float = 1.0) -> Array:
    if d.ndim != 3:
        return like(scale, d) * np.einsum("i,i...->...", w, d) / len(w)
    kept = [delta if density == 1.0 else trimmed(delta, density) for delta in d]
    grams = [delta.T @ delta + ridge * np.sum(delta**2) / max(d.shape[2], 1) * np.eye(d.shape[2]) for delta in kept]
    moved = sum(w[i] * d[i] @ grams[i] for i in range(len(w)))
    return scale * moved @ np.linalg.pinv(sum(w[i] * grams[i] for i in range(len(w))), rcond=1e-8)


def nearswap(d: Array, w: Array, base: Array, limit: float = 1e-4, scale: float = 1.0) -> Array:
    """As an interpolation between two models, one specialist after the other."""
    out = np.zeros(d.shape[1:])
    for delta, weight in zip(d, w, strict=True):
        model = base + weight * delta
        gap = np.abs(model - base)
        share = np.where(gap > limit, limit / np.where(gap > 0, gap, 1.0), 1.0)
        out = out + share * model + (1 - share) * base - base
    return scale * out


def arcee_fusion(d: Array, w: Array, base: Array, scale: float = 1.0) -> Array:
    def softmax(rows: Array) -> Array:
        powers = np.exp(rows - rows.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    out = np.zeros(d.shape[1:])
    if not out.size:
        return out
    for delta, weight in zip(d, w, strict=True):
        before, after = np.atleast_1d(base), np.atleast_1d(base + delta)
        divergence = (softmax(after) * np.log(softmax(after) / softmax(before))).sum(axis=-1, keepdims=True)
        importance = (np.abs(np.atleast_1d(delta)) * divergence).reshape(delta.shape)
        low, middle, high = (np.quantile(importance, share, method="lower") for share in (0.25, 0.5, 0.75))
        out = out + weight * np.where(importance >= middle + 1.5 * (high - low), delta, 0.0)
    return scale * out


def ram(d: Array, w: Array, above: float = 1e-5, scale: float = 1.0) -> Array:
    return ramplus_tl(d, w, 0.0, 0.0, above, scale)


def ramplus_tl(
    d: Array, w: Array, boost: float = 0.1, most: float = 0.2, above: float = 1e-5, scale: float = 1.0
) -> Array:
    changed = [{place for place in np.ndindex(delta.shape) if abs(delta[place]) > above} for delta in d]
    factors = []
    for i, own in enumerate(changed):
        others: set[tuple[int, ...]] = set().union(*(c for j, c in enumerate(changed) if j != i))
        sole = len(own - others)
        factors.append(1 + boost * min(len(own & others) / sole, most) if sole else 1.0)
    out = np.zeros(d.shape[1:])
    for place in np.ndindex(*d.shape[1:]):
        who = [i for i, own in enumerate(changed) if place in own]
        if len(who) == 1:
            out[place] = factors[who[0]] * w[who[0]] * d[(who[0], *place)]
        elif who:
            out[place] = sum(w[i] * d[(i, *place)] for i in who) / len(who)
    return scale * out


def multislerp(
    d: Array, w: Array, base: Array, space: str = "delta", normalize: bool = True, scale: float = 1.0
) -> Array:
    vectors = (d + base if space == "model" else d).reshape(len(d), -1)
    parts = w / w.sum() if normalize and w.sum() else w
    lengths = np.linalg.norm(vectors, axis=1)
    units = np.stack([v / n if n > 0 else 0 * v for v, n in zip(vectors, lengths, strict=True)])
    middle = parts @ units
    if np.linalg.norm(middle) < 1e-12:
        middle = next((unit for unit in units if unit.any()), middle)
    middle = middle / (np.linalg.norm(middle) or 1.0)
    step = sum((p * (u - (u @ middle) * middle) for p, u in zip(parts, units, strict=True)), 0 * middle)
    size = np.linalg.norm(step)
    there = np.cos(size) * middle + (np.sin(size) * step / size if size > 0 else 0.0)
    merged = (float(parts @ lengths) * there).reshape(d.shape[1:])
    return scale * (merged - base if space == "model" else merged)
