"""Ce que le kit apprend, et à quelle vitesse : deux tables (ce qu'affiche train_VAE.py va dans stderr).

    python tests/benchmark.py --ancien D      le kit, et la version que contient le dossier D
    python tests/benchmark.py --help          une table, un jeu d'images...

`git worktree add D COMMIT` range en D une version d'avant. Un cinquième des images n'est jamais montré :
l'erreur y est la somme des carrés des écarts entre l'image (3×64×64 valeurs) et celle décodée de mu.
"""
import argparse
import contextlib
import itertools
import runpy
import sys
import tempfile
import time
from pathlib import Path

import draw_exemple
import kit
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.optim.optimizer import register_optimizer_step_post_hook

KITS = {"kit": kit.ROOT}        # et, avec --ancien, un autre
options = argparse.Namespace()


# Les jeux : chaque fonction donne, l'une après l'autre, des images de 64×64×3 octets
def clouds(rng, size):
    """Une image de taches colorées."""
    spots = rng.integers(0, 256, (12, 12, 3), np.uint8)
    return Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC)


def with_noise(pixels, rng, noise):
    """Ajoute le grain du capteur ; une image grise (64×64) devient trois fois la même."""
    pixels = pixels + rng.normal(0, noise, pixels.shape)
    return np.dstack([pixels.clip(0, 255).astype(np.uint8)] * 3)[:, :, :3]


def webcam(light=1):
    """Un film de webcam : une tête qui bouge devant une pièce, la lumière, le grain."""
    rng = np.random.default_rng(1)
    room = clouds(rng, (192, 192)).point(lambda value: 40 + value // 2)
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).ellipse((8, 6, 56, 57), fill=255)
    for t in itertools.count():
        head = draw_exemple.draw_face(-0.8, np.sin(t / 19), np.sin(t / 11 + 1), np.sin(t / 13))
        side = int(64 * (1.6 + 0.35 * np.sin(t / 31)))
        x, y = 96 + 40 * np.sin(t / 17) + 9 * np.sin(t / 5), 110 + 20 * np.sin(t / 23 + 1)
        frame = room.copy()
        frame.paste(head.resize((side, side)), (int(x - side / 2), int(y - side / 2)),
                    mask.resize((side, side)))
        flicker = light * (1 + 0.06 * np.sin(t / 40))
        yield with_noise(20 * (light < 1) + np.asarray(frame.reduce(3)) * flicker, rng, 3 * light)


def panning():
    """Un film panoramique : la caméra glisse et zoome sur un grand décor."""
    rng = np.random.default_rng(2)
    scene = clouds(rng, (640, 640))
    for _ in range(120):
        circle = (*rng.uniform(0, 640, 2), rng.uniform(8, 45))
        ImageDraw.Draw(scene).regular_polygon(circle, int(rng.choice([3, 4, 6, 40])), rng.uniform(0, 360),
                                              tuple(rng.integers(0, 256, 3)))
    for t in itertools.count(0, 0.042):
        x, y = 320 + 190 * np.sin(t) + 20 * np.sin(7 * t), 320 + 120 * np.sin(1.37 * t)
        r = 90 + 30 * np.sin(0.7 * t)
        yield np.asarray(scene.resize((64, 64), Image.Resampling.BOX, (x - r, y - r, x + r, y + r)))


def mri():
    """Des coupes de tête comme à l'IRM : crâne, cerveau, taches, ventricules ; grain variable."""
    rng = np.random.default_rng(3)
    while True:
        image, (x0, y0) = Image.new("L", (256, 256)), rng.normal(128, 4, 2)
        height, spots = rng.uniform(-1, 1), rng.uniform(-0.4, 0.4, (6, 2))
        r, hole = 128 * (1 - 0.8 * height ** 2) ** 0.5, max(0, 1 - (height / 0.6) ** 2) ** 0.5
        for x, y, width, tall, grey in [
                (0, 0, 0.72 * r, 0.92 * r, 220), (0, 0, 0.66 * r, 0.85 * r, rng.uniform(70, 110)),
                *[(*spot * r, 8, 8, rng.uniform(60, 150)) for spot in spots],
                (-25, 0, 16 * hole, 46 * hole, 20), (25, 0, 16 * hole, 46 * hole, 20)]:
            box = x0 + x - width, y0 + y - tall, x0 + x + width, y0 + y + tall
            ImageDraw.Draw(image).ellipse(box, int(grey))
        yield with_noise(np.asarray(image.reduce(4)), rng, rng.uniform(2, 12))


def icons():
    """De petits dessins de couleurs très différentes, sur fond blanc, comme des émojis."""
    rng = np.random.default_rng(5)
    while True:
        image, (x, y) = Image.new("RGB", (128, 128), "white"), rng.uniform(58, 70, 2)
        for r in (rng.uniform(38, 60), rng.uniform(15, 35)):
            ImageDraw.Draw(image).regular_polygon((x, y, r), int(rng.choice([3, 4, 5, 6, 40])),
                                                  rng.uniform(0, 360), tuple(rng.integers(0, 256, 3)))
        yield np.asarray(image.reduce(2))


FACES = sorted(draw_exemple.FOLDER.iterdir())
SETS = {"visages": (lambda: (np.asarray(Image.open(file)) for file in FACES), 600),
        "webcam": (webcam, 250), "pénombre": (lambda: webcam(light=0.25), 250),
        "panoramique": (panning, 300), "irm": (mri, 1000),
        "dessins 120": (icons, 120), "dessins": (icons, 5000)}


def train(root, images, **zone):
    """Entraîne le kit rangé dans `root` sur ces images ; rend le modèle, et la durée médiane d'un pas."""
    times = []
    if options.rapide:
        zone["epochs"] = 2
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        folder = kit.copy_kit(folder, exemple=False, root=root)
        for k, image in enumerate(images):
            Image.fromarray(image).save(folder / "images" / f"image_{k:05}.png", compress_level=1)
        kit.edit_zone(folder / "train_VAE.py", **zone)
        hook = register_optimizer_step_post_hook(lambda *_: times.append(time.perf_counter()))
        sys.modules.pop("model_VAE_64", None)       # chaque kit importe le sien
        runpy.run_path(str(folder / "train_VAE.py"))
        hook.remove()
        vae = sys.modules["model_VAE_64"].load_model(folder / "model_VAE_64.pt")
    return vae, np.median(np.diff(times))


# Les tables : chaque fonction donne ses lignes, l'une après l'autre, d'abord l'en-tête
def quality():
    """L'erreur, et la KL du slider le moins utile."""
    yield ["jeu", *[f"erreur {name}" for name in KITS], *[f"KL {name}" for name in KITS], "kit/ancien"]
    ratios = []
    for name in options.jeu or (["visages"] if options.rapide else SETS):
        draw, count = SETS[name]
        images = list(itertools.islice(draw(), 40 if options.rapide else count))
        images = np.random.default_rng(0).permutation(images)
        unseen, seen = np.split(images, [len(images) // 5])
        x = torch.from_numpy(unseen).permute(0, 3, 1, 2).float() / 255
        errors, kls = [], []
        for root in KITS.values():
            vae, _ = train(root, seen, test_proportion=0.001)      # toutes pour l'entraînement, sauf une
            mu, logvar = vae.encode(x)
            errors.append((vae.decode(mu) - x).square().sum(dim=(1, 2, 3)).mean().item())
            kls.append((mu.square() + logvar.exp() - 1 - logvar).mean(dim=0).min().item() / 2)
        ratios.append(errors[0] / errors[-1])
        yield [name, *errors, *kls, ratios[-1]]
    yield ["moyenne géométrique", *[""] * 2 * len(KITS), np.exp(np.log(ratios).mean())]


def speed():
    """Les images par seconde pendant l'apprentissage, 2 000 dessins, médiane de 5 à tour de rôle."""
    images = list(itertools.islice(icons(), 40 if options.rapide else 2000))
    runs = list(itertools.product((16, 64), KITS))
    seconds = [[train(KITS[name], images, epochs=2, batch_size=size)[1] for size, name in runs]
               for _ in range(1 if options.rapide else 5)]
    yield ["", "images par seconde"]
    for (size, name), second in zip(runs, np.median(seconds, axis=0)):
        yield [f"{name}, batch_size = {size}", size / second]


TABLES = {"qualite": quality, "vitesse": speed}


def main(arguments=None):
    """Calcule et affiche les tables demandées."""
    parser = argparse.ArgumentParser(description="Mesure le kit : toutes les tables, ou celles-là.")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--rapide", action="store_true", help="en minuscule : est-ce que tout marche ?")
    parser.add_argument("--ancien", type=Path, help="aussi la version du kit de ce dossier")
    parser.add_argument("--jeu", action="append", help="seulement : " + ", ".join(SETS))
    parser.parse_args(arguments, namespace=options)
    KITS.update({"ancien": options.ancien} if options.ancien else {})
    for name in options.tables or TABLES:
        print(f"\n{TABLES[name].__doc__}")
        for first, *others in TABLES[name]():
            cells = [f"{x:.3g}" if isinstance(x, float) else x for x in others]
            print(f"{first:38}", *[f"{cell:>18}" for cell in cells], flush=True)


if __name__ == "__main__":
    main()
