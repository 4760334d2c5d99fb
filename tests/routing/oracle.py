"""The routing in float64 with loops, after docs/method.md sections 5 and 6, for tests to compare with."""

import math

import numpy as np


def length(x):
    return math.sqrt(sum(float(entry) ** 2 for entry in x))


def normalised(x):
    size = length(x)
    return [0.0 for _ in x] if size == 0 else [float(entry) / size for entry in x]


def cosine(x, y):
    if length(x) == 0 or length(y) == 0:
        return 0.0
    return sum(float(a) * float(b) for a, b in zip(x, y, strict=True)) / (length(x) * length(y))


def direction(hack, clean, unit_sides, without=None):
    """[M][R]; `without` is the pair left out."""
    pairs = [p for p in range(len(hack)) if p != without]
    rows = []
    for k in range(hack.shape[1]):
        total, size = np.zeros(hack.shape[2]), 0.0
        for p in pairs:
            sides = [
                np.asarray(normalised(side[p, k]) if unit_sides else side[p, k], np.float64) for side in (hack, clean)
            ]
            total += sides[0] - sides[1]
            size += length(sides[0]) + length(sides[1])
        rows.append([0.0] * len(total) if length(total) <= 1e-6 * size else normalised(total))
    return np.array(rows)


def percentile(values):
    """The 75th, by linear interpolation between the two neighbours in order."""
    ordered = sorted(values)
    position = 0.75 * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def pair_tables(hack, clean, directions):
    """cosines[p][k] of the hack and of the clean sides; directions[p] is the one pair p is held against."""
    pairs, modules = range(hack.shape[0]), range(hack.shape[1])
    return [[[cosine(side[p, k], directions[p][k]) for k in modules] for p in pairs] for side in (hack, clean)]


def scores(g, v, hack_cosines, clean_cosines, pool, band_floor):
    """z of every row of g, or None where no module is usable, and the number of usable modules."""
    live = [k for k in range(len(v)) if length(v[k]) > 0]
    if pool == "mean_then_band":
        if not live:
            return None, 0
        means = [[sum(row[k] for k in live) / len(live) for row in table] for table in (hack_cosines, clean_cosines)]
        low = percentile(means[1])
        width = max(percentile(means[0]) - low, band_floor)
        return [(sum(cosine(row[k], v[k]) for k in live) / len(live) - low) / width for row in g], len(live)
    edges = {}
    for k in live:
        low = percentile([row[k] for row in clean_cosines])
        high = percentile([row[k] for row in hack_cosines])
        if high - low >= band_floor:
            edges[k] = (low, high - low)
    if not edges:
        return None, 0
    z = [sum((cosine(row[k], v[k]) - low) / width for k, (low, width) in edges.items()) / len(edges) for row in g]
    return z, len(edges)


def real_scores(g, hack, clean, unit_sides, leave_one_out, pool, band_floor):
    v = direction(hack, clean, unit_sides)
    against = [direction(hack, clean, unit_sides, p) if leave_one_out else v for p in range(len(hack))]
    return scores(g, v, *pair_tables(hack, clean, against), pool, band_floor)


def random_scores(g, hack, clean, random_v, pool, band_floor):
    return scores(g, random_v, *pair_tables(hack, clean, [random_v] * len(hack)), pool, band_floor)


def labels(z, scored, low, high):
    """0 clean, 1 mid, 2 hack."""
    return [0 if not on or score <= low else 2 if score >= high else 1 for score, on in zip(z, scored, strict=True)]


def example(seed, rollouts=24, pairs=7, modules=5, rank=6):
    """Gradients g [N, M, R], hack and clean [P, M, R]: a common direction under noise, sides of any length.

    Row 3 of g is zero, and so are module 1 of row 4, one side of one module of a pair, and both of another.
    """
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(modules, rank))
    hack = 3.0 * (rng.normal(size=(pairs, modules, rank)) + 0.8 * common) * rng.gamma(1.0, size=(pairs, modules, 1))
    clean = rng.normal(size=(pairs, modules, rank)) - 0.2 * common
    g = rng.normal(size=(rollouts, modules, rank)) + 2.0 * rng.normal(size=(rollouts, 1, 1)) * common
    g[3], g[4, 1] = 0.0, 0.0
    clean[0, 2] = 0.0
    hack[pairs - 1, 0], clean[pairs - 1, 0] = 0.0, 0.0
    return [np.asarray(array, np.float32) for array in (g, hack, clean)]
