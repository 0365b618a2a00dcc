"""Ce que le kit apprend, et à quelle vitesse : deux tables.

    python tests/benchmark.py --ancien D      le kit, et la version que contient le dossier D
    python tests/benchmark.py --help          une table, un jeu d'images...

`git worktree add D COMMIT` range en D une version d'avant. Un kit est mesuré tel qu'il est : copié,
lancé dans un autre processus, son modèle relu par son model_VAE_64.py. L'erreur est mesurée sur un
cinquième des images, jamais montrées : la somme, en moyenne par image, des carrés des écarts entre
ses 3×64×64 valeurs (de 0 à 1) et l'image décodée de mu.
"""
import argparse
import itertools
import json
import os
import re
import runpy
import sys
import tempfile
from functools import partial
from pathlib import Path

import draw_exemple
import kit
import numpy as np
import torch
from PIL import Image, ImageDraw

WORK = tempfile.TemporaryDirectory(prefix="benchmark_")      # effacé à la fin
KITS = {"kit": kit.ROOT}                                     # et, avec --ancien, un autre
options = argparse.Namespace(rapide=False, ancien=None, dossier=[], jeu=[])


# Les jeux : chaque fonction donne, l'une après l'autre, des images de 64×64×3 octets, sans fin
def clouds(rng, size):
    """Une image de taches colorées."""
    spots = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
    return spots.resize(size, Image.Resampling.BICUBIC)


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


def images_in(folder):
    """Les images d'un dossier."""
    model = module_of(kit.ROOT)
    return (np.asarray(model.read_image(file, 64)) for file in model.find_images(folder))


SETS = {"visages": (partial(images_in, draw_exemple.FOLDER), 600), "webcam": (webcam, 250),
        "pénombre": (partial(webcam, light=0.25), 250), "panoramique": (panning, 300),
        "irm": (mri, 1000), "dessins 120": (icons, 120), "dessins": (icons, 5000)}


def take(images, count):
    """Les premières images d'un jeu ; quelques-unes seulement avec --rapide."""
    return list(itertools.islice(images(), 40 if options.rapide else count))


def folder_of(images):
    """Un dossier qui contient ces images, en PNG."""
    folder = Path(tempfile.mkdtemp(dir=WORK.name))
    for k, image in enumerate(images):
        Image.fromarray(image).save(folder / f"image_{k:05}.png", compress_level=1)
    return folder


def module_of(root):
    """Ce que contient le model_VAE_64.py d'un kit."""
    return argparse.Namespace(**runpy.run_path(str(root / "model_VAE_64.py")))


# Lance train_VAE.py ; écrit l'heure de chaque pas de l'optimiseur
RUN = """
import json, runpy, time
from torch.optim import optimizer

steps = []
optimizer.register_optimizer_step_post_hook(lambda *_: steps.append(time.perf_counter()))
runpy.run_path("train_VAE.py", run_name="__main__")
print(json.dumps(steps))
"""


def train(root, images_folder, **zone):
    """Entraîne une copie du kit rangé dans `root`, sur deux cœurs, sans carte graphique. Rend vae et
    speed : images par seconde, d'après la durée médiane d'un pas."""
    folder = kit.copy_kit(tempfile.mkdtemp(dir=WORK.name), exemple=False, root=root)
    if options.rapide:
        zone["epochs"] = 2
    kit.edit_zone(folder / "train_VAE.py", images_folder=str(images_folder), **zone)
    (folder / "run.py").write_text(RUN, encoding="utf-8")
    done = kit.run(folder / "run.py", cwd=folder, timeout=3600, env={
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"), "CUDA_VISIBLE_DEVICES": ""})
    if done.returncode:
        sys.exit(done.stdout)
    steps = json.loads(done.stdout.splitlines()[-1])
    shown = int(re.search(r"(\d+) pour l'entraînement", done.stdout)[1]) * done.stdout.count("\nEpoch ")
    return argparse.Namespace(vae=module_of(folder).load_model(folder / "model_VAE_64.pt"),
                              speed=shown / len(steps) / np.median(np.diff(steps)))


@torch.no_grad()
def judge(vae, images):
    """(erreur, KL du slider le moins utile) d'un modèle, sur ces images."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mu, logvar = vae.encode(x)
    error = (vae.decode(mu) - x).square().sum(dim=(1, 2, 3)).mean().item()
    return error, (mu.square() + logvar.exp() - 1 - logvar).mean(dim=0).min().item() / 2


# Les tables : chaque fonction donne ses lignes, l'une après l'autre, d'abord l'en-tête
def quality():
    """L'erreur, et la KL du slider le moins utile."""
    yield ["jeu", *[f"erreur {name}" for name in KITS], *[f"KL {name}" for name in KITS],
           "erreur du kit/ancien"]
    ratios = []
    for name in options.jeu or (["visages"] if options.rapide else SETS):
        images = np.random.default_rng(0).permutation(take(*SETS[name]))
        unseen, folder = images[:len(images) // 5], folder_of(images[len(images) // 5:])
        errors, kls = zip(*[        # test_proportion : toutes pour l'entraînement, sauf une
            judge(train(root, folder, test_proportion=0.001).vae, unseen) for root in KITS.values()])
        ratios.append(errors[0] / errors[-1])
        yield [name, *errors, *kls, ratios[-1]]
    yield ["moyenne géométrique", *[""] * 2 * len(KITS), np.exp(np.log(ratios).mean())]


def speed():
    """Les images par seconde pendant l'apprentissage, 2 000 dessins, médiane de 5 à tour de rôle."""
    folder, runs = folder_of(take(icons, 2000)), {}
    for batch_size in 16, 64:
        for name, root in KITS.items():
            runs[f"{name}, batch_size = {batch_size}"] = partial(
                train, root, folder, epochs=2, batch_size=batch_size)
    speeds = [[run() for run in runs.values()] for _ in range(1 if options.rapide else 5)]
    yield ["", "images par seconde"]
    yield from zip(runs, np.median([[run.speed for run in row] for row in speeds], axis=0))


TABLES = {"qualite": quality, "vitesse": speed}


def main(arguments=None):
    """Calcule et affiche les tables demandées ; rend {nom : lignes}."""
    parser = argparse.ArgumentParser(description="Mesure le kit : toutes les tables, ou celles-là.")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--rapide", action="store_true", help="en minuscule : est-ce que tout marche ?")
    parser.add_argument("--ancien", type=Path, help="aussi la version du kit de ce dossier")
    parser.add_argument("--dossier", action="append", default=[], help="aussi les images de ce dossier")
    parser.add_argument("--jeu", action="append", default=[], help="seulement : " + ", ".join(SETS))
    parser.parse_args(arguments, namespace=options)
    SETS.update({Path(path).name: (partial(images_in, path), None) for path in options.dossier})
    KITS.update({"ancien": options.ancien.resolve()} if options.ancien else {})
    results = {}
    for name in options.tables or TABLES:
        print(f"\n{TABLES[name].__doc__}")
        results[name] = []
        for row in TABLES[name]():
            first, *others = [f"{x:.3g}" if isinstance(x, float) else x for x in row]
            print(f"{first:38}", *[f"{cell:>18}" for cell in others], flush=True)
            results[name].append(row)
    return results


if __name__ == "__main__":
    main()
