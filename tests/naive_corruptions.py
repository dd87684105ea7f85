"""The corruptions once more, slowly: one picture at a time, from the formulas, with numpy, scipy and Pillow.

Each takes 8-bit levels (H, W, 3) and the `Draws` of that one picture, and asks for the same random numbers in the same
order as the batched version. It returns values in [0, 1], not yet rounded.
"""

import colorsys
import io
import math

import numpy as np
from PIL import Image
from scipy import ndimage, stats


def gaussian_noise(levels, draws, std):
    return levels / 255 + std * picture_of(draws.normal(3, *levels.shape[:2]))


def shot_noise(levels, draws, photons):
    chance = picture_of(draws.uniform(3, *levels.shape[:2]))
    return stats.poisson.ppf(chance, levels / 255 * photons) / photons


def impulse_noise(levels, draws, amount):
    found = levels / 255
    chance = picture_of(draws.uniform(3, *levels.shape[:2]))
    for place in np.ndindex(found.shape):
        if chance[place] < amount:
            found[place] = 1.0 if chance[place] < amount / 2 else 0.0
    return found


def defocus_blur(levels, draws, radius, soften):
    extent, reach = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    disk = np.zeros((2 * extent + 1,) * 2)
    for y, x in np.ndindex(disk.shape):
        disk[y, x] = math.hypot(y - extent, x - extent) <= radius
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / soften) ** 2)
    kernel = disk / disk.sum()
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, line / line.sum(), axis, mode="mirror")
    return per_channel(levels / 255, lambda x: ndimage.correlate(x, kernel, mode="mirror"))


def glass_blur(levels, draws, sigma, delta, rounds):
    height, width, _ = levels.shape
    delta = round(delta)

    def blur(x):
        return ndimage.gaussian_filter(x, sigma, mode="nearest", truncate=4)

    found = np.floor(per_channel(levels / 255, blur) * 255 + 1e-6)
    for _ in range(round(rounds)):
        down, across = draws.integers(-delta, delta, 2, height, width)[0].numpy()
        for y in range(height - delta, delta, -1):
            for x in range(width - delta, delta, -1):
                found[y, x] = found[y + down[y, x], x + across[y, x]]
    return per_channel(found / 255, blur)


def motion_blur(levels, draws, radius, sigma):
    degrees = 90 * draws.uniform().item() - 45
    return per_channel(levels / 255, lambda x: along_line(x, radius, sigma, degrees))


def zoom_blur(levels, draws, stop, step):
    found = [levels / 255]
    for factor in np.arange(1, stop, step):
        found.append(per_channel(levels / 255, lambda x, factor=factor: enlarged(x, factor)))
    return np.mean(found, axis=0)


def snow(levels, draws, mean, std, zoom, threshold, radius, sigma, keep):
    x = levels / 255
    flakes = enlarged(mean + std * draws.normal(1, *x.shape[:2])[0, 0].numpy().astype(float), zoom)
    flakes[flakes < threshold] = 0
    flakes = np.floor(np.clip(flakes, 0, 1) * 255) / 255
    flakes = np.round(along_line(flakes, radius, sigma, -45 - 90 * draws.uniform().item()) * 255) / 255
    found = np.empty_like(x)
    for y, column in np.ndindex(x.shape[:2]):
        red, green, blue = x[y, column]
        grey = 0.299 * red + 0.587 * green + 0.114 * blue
        white = np.maximum(x[y, column], 1.5 * grey + 0.5)
        found[y, column] = keep * x[y, column] + (1 - keep) * white + flakes[y, column] + flakes[-1 - y, -1 - column]
    return found


def fog(levels, draws, thickness, decay):
    x = levels / 255
    height, width, _ = x.shape
    size = 2 ** math.ceil(math.log2(max(height, width)))
    cloud = np.zeros((size, size))
    draws.uniform(1, 1, 1)
    step, noise = size, 1.0
    while step > 1:
        cells, half = size // step, step // 2
        shake = noise * (2 * draws.uniform(3, cells, cells)[0].numpy().astype(float) - 1)
        for row, column in np.ndindex(cells, cells):
            y, z = row * step, column * step
            corners = [cloud[(y + a) % size, (z + b) % size] for a in (0, step) for b in (0, step)]
            cloud[y + half, z + half] = sum(corners) / 4 + shake[0, row, column]
        for row, column in np.ndindex(cells, cells):
            for part, y, z in ((1, row * step, column * step + half), (2, row * step + half, column * step)):
                around = [
                    cloud[y - half, z],
                    cloud[(y + half) % size, z],
                    cloud[y, z - half],
                    cloud[y, (z + half) % size],
                ]
                cloud[y, z] = np.mean(around) + shake[part, row, column]
        step, noise = half, noise / decay**2
    cloud = (cloud - cloud.min()) / (cloud.max() - cloud.min())
    return (x + thickness * cloud[:height, :width, None]) * x.max() / (x.max() + thickness)


def brightness(levels, draws, amount):
    found = levels / 255
    for place in np.ndindex(found.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*found[place])
        found[place] = colorsys.hsv_to_rgb(hue, saturation, min(value + amount, 1))
    return found


def contrast(levels, draws, factor):
    x = levels / 255
    mean = np.array([[[x[..., channel].mean() for channel in range(3)]]])
    return (x - mean) * factor + mean


def elastic_transform(levels, draws, strength, smooth, jitter):
    x = levels / 255
    height, width, _ = x.shape
    side = min(height, width)
    corners = np.array([[1, 1], [1, -1], [-1, -1]]) * (side // 3) + [width // 2, height // 2]
    moved = corners + jitter * side * (2 * draws.uniform(3, 2)[0].numpy().astype(float) - 1)
    # Six unknowns: how (across, down) of the result is found in the picture.
    equations = np.array([[*place, 1, 0, 0, 0] for place in moved] + [[0, 0, 0, *place, 1] for place in moved])
    affine = np.linalg.solve(equations, np.concatenate([corners[:, 0], corners[:, 1]])).reshape(2, 3)
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    source = affine @ np.stack([across.ravel(), down.ravel(), np.ones(across.size)])
    places = source[::-1].reshape(2, height, width)
    warped = per_channel(x, lambda c: ndimage.map_coordinates(c, places, order=1, mode="mirror"))

    noise = 2 * draws.uniform(2, height, width)[0].numpy().astype(float) - 1
    if smooth:
        noise = np.stack([ndimage.gaussian_filter(n, smooth * side, mode="reflect", truncate=3) for n in noise])
    places = np.stack([down, across]) + strength * side * noise[::-1]
    return per_channel(warped, lambda c: ndimage.map_coordinates(c, places, order=1, mode="reflect"))


def pixelate(levels, draws, factor):
    height, width, _ = levels.shape
    image = Image.fromarray(levels).resize((int(width * factor), int(height * factor)), Image.Resampling.BOX)
    return np.asarray(image.resize((width, height), Image.Resampling.BOX)) / 255


def jpeg_compression(levels, draws, quality):
    file = io.BytesIO()
    Image.fromarray(levels).save(file, format="JPEG", quality=round(quality))
    return np.asarray(Image.open(file)) / 255


def picture_of(drawn):
    """One picture's numbers (1, 3, H, W) as (H, W, 3)."""
    return drawn[0].numpy().astype(float).transpose(1, 2, 0)


def per_channel(x, change):
    return np.stack([change(x[..., channel]) for channel in range(3)], axis=-1)


def along_line(x, radius, sigma, degrees):
    """Half a Gaussian along a line, at the pixels nearest to it, halves towards zero index."""
    taps = range(2 * math.ceil(radius) + 1)
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in taps]
    found = np.zeros_like(x)
    for i, weight in zip(taps, weights, strict=True):
        down = math.ceil(i * math.sin(math.radians(degrees)) - 0.5)
        across = math.ceil(i * math.cos(math.radians(degrees)) - 0.5)
        rows = [min(max(y + down, 0), x.shape[0] - 1) for y in range(x.shape[0])]
        columns = [min(max(z + across, 0), x.shape[1] - 1) for z in range(x.shape[1])]
        found += weight / sum(weights) * x[np.ix_(rows, columns)]
    return found


def enlarged(x, factor):
    inside = [math.ceil(n / factor) for n in x.shape]
    cut = x[tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(x.shape, inside, strict=True))]
    large = ndimage.zoom(cut, factor, order=1, mode="nearest")
    return large[tuple(slice((m - n) // 2, (m - n) // 2 + n) for n, m in zip(x.shape, large.shape, strict=True))]
