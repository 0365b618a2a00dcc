"""Ce que le kit apprend, et à quelle vitesse : des tables, comparées au réseau habituel et à l'ACP.

    python tests/benchmark.py                       toutes (Linux, deux cœurs : 20 minutes)
    python tests/benchmark.py qualite vitesse       seulement celles-là
    python tests/benchmark.py --rapide              les mêmes, minuscules : est-ce que tout marche ?
    python tests/benchmark.py qualite --grand       avec 20 000 dessins au lieu de 5 000
    python tests/benchmark.py qualite --dossier D   avec, en plus, les images du dossier D
    python tests/benchmark.py qualite --jeu irm     sur ce jeu seulement

Le kit est mesuré tel qu'il est : ses scripts sont copiés, la zone *** modifiée, train_VAE.py lancé
dans un autre processus. Un « espion » le regarde travailler à travers ce qu'il affiche, et note
l'heure, sans rien y changer. L'erreur d'une image est la somme des carrés des écarts entre ses
3 × 64 × 64 valeurs (de 0 à 1) et l'image décodée de mu, celui que rend `encode` en mode eval ; celle
d'un modèle, la moyenne sur les images de test que le script a tirées. « ACP-4 » : l'analyse en
composantes principales, 4 nombres par image, ajustée sur les images d'entraînement.
"""
import argparse
import importlib.util
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
import draw_exemple  # noqa: E402
import kit  # noqa: E402

WORK = tempfile.TemporaryDirectory(prefix="benchmark_")      # effacé à la fin
options = argparse.Namespace(rapide=False, grand=False, dossier=[], jeu=[])


# Les jeux d'images : chaque fonction rend un tableau d'octets N×64×64×3
def shape(x, y, radii, angle=0):
    """Les sommets d'une forme : des rayons à angles égaux autour de (x, y)."""
    angles = angle + np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return [(x + r * np.cos(a), y + r * np.sin(a)) for r, a in zip(radii, angles)]


def clouds(rng, size):
    """Une image de taches colorées de toutes les tailles."""
    total = np.zeros((size, size, 3))
    for side in (3, 6, 12, 24, 48):
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        total += np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC), float) / side
    low, high = total.min(), total.max()
    return Image.fromarray(((total - low) * 255 / (high - low)).astype(np.uint8))


def faces(count=600):
    """Le jeu de départ, tel qu'il est dans le kit."""
    files = sorted(draw_exemple.FOLDER.glob("*.png"))[:count]
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def webcam(count=250):
    """Un film de webcam : une tête qui bouge devant une pièce, la lumière, le grain du capteur."""
    rng, images = np.random.default_rng(1), []
    room = clouds(rng, 192).point(lambda value: 40 + value // 2)
    draw = ImageDraw.Draw(room)
    draw.rectangle((15, 15, 70, 75), "#d5e6f2", "#54412f", 4)
    draw.rectangle((130, 60, 185, 66), "#6b4a2f")
    for k in range(6):
        draw.rectangle((134 + 8 * k, 36, 140 + 8 * k, 60), tuple(rng.integers(40, 220, 3)))
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).ellipse((8, 6, 56, 57), fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(1))
    for t in range(count):
        head = draw_exemple.draw_face(-0.8, np.sin(t / 19), np.sin(t / 11 + 1), np.sin(t / 13))
        side = int(64 * (1.6 + 0.35 * np.sin(t / 31)))
        corner = (int(96 + 40 * np.sin(t / 17) + 9 * np.sin(t / 5) - side / 2),
                  int(110 + 20 * np.sin(t / 23 + 1) - side / 2))
        frame = room.copy()
        frame.paste(head.resize((side, side)), corner, mask.resize((side, side)))
        pixels = np.asarray(frame.reduce(3), float) * (1 + 0.06 * np.sin(t / 40))
        images.append((pixels + rng.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8))
    return np.stack(images)


def dim_webcam(count=250):
    """Le même film dans la pénombre : le quart du contraste."""
    return (20 + webcam(count) / 4).astype(np.uint8)


def panning(count=300):
    """Un film panoramique : la caméra glisse et zoome sur un grand décor."""
    rng, images = np.random.default_rng(2), []
    scene = clouds(rng, 640)
    draw = ImageDraw.Draw(scene)
    for _ in range(120):
        (x, y), colour = rng.uniform(0, 640, 2), tuple(rng.integers(0, 256, 3))
        radii = [rng.uniform(8, 45)] * int(rng.choice([3, 4, 6, 40]))
        draw.polygon(shape(x, y, radii, rng.uniform(0, 6)), colour)
    for t in np.linspace(0, 4 * np.pi, count):
        x, y = 320 + 190 * np.sin(t) + 20 * np.sin(7 * t), 320 + 120 * np.sin(1.37 * t)
        r = 90 + 30 * np.sin(0.7 * t)
        images.append(np.asarray(scene.resize((64, 64), Image.Resampling.BOX,
                                              (x - r, y - r, x + r, y + r))))
    return np.stack(images)


def grey(image, rng, noise):
    """Une image 256×256 de gris, réduite à 64×64×3 ; `noise` : l'écart type du grain."""
    pixels = np.asarray(image.reduce(4), float) + rng.normal(0, noise, (64, 64))
    return np.repeat(pixels.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def mri(count=1000):
    """Des coupes de tête comme à l'IRM : crâne, cerveau, ventricules, taches ; grain variable."""
    rng, images = np.random.default_rng(3), []
    for _ in range(count):
        image, height = Image.new("L", (256, 256)), rng.uniform(-1, 1)
        draw, scale = ImageDraw.Draw(image), 128 * np.sqrt(1 - 0.8 * height ** 2)
        x0, y0, wide = *rng.normal(128, 4, 2), rng.uniform(0.9, 1.1)

        def ellipse(x, y, width, height, value):
            points = draw_exemple.ellipse(x0 + x, y0 + y, width, height)
            draw.polygon([tuple(point) for point in points], fill=int(value))

        ellipse(0, 0, 0.72 * scale * wide, 0.92 * scale, 220)
        ellipse(0, 0, 0.66 * scale * wide, 0.85 * scale, rng.uniform(70, 110))
        for _ in range(6):
            angle, radius = rng.uniform(0, 2 * np.pi), 0.55 * scale * rng.uniform() ** 0.5
            ellipse(radius * np.cos(angle), radius * np.sin(angle), 8, 8, rng.uniform(60, 150))
        if abs(height) < 0.6:
            ventricle = np.sqrt(1 - (height / 0.6) ** 2)
            for side in (-1, 1):
                ellipse(25 * side, 0, 15 * ventricle + 1, 45 * ventricle + 1, 20)
        images.append(grey(image, rng, rng.uniform(2, 12)))
    return np.stack(images)


def parts(count=150):
    """Des photos techniques en gris : anneaux, engrenages, boulons, éclairés de tous côtés."""
    rng, images = np.random.default_rng(4), []
    y, x = np.mgrid[-1:1:256j, -1:1:256j]
    for k in range(count):
        image = Image.new("L", (256, 256), 60)
        draw, r, turn = ImageDraw.Draw(image), rng.uniform(60, 110), rng.uniform(0, 2 * np.pi)
        x0, y0 = rng.uniform(116, 140, 2)
        teeth = int(rng.integers(8, 16))
        outline = [[r] * 60, [r, r, 0.8 * r, 0.8 * r] * teeth, [r] * 6][k % 3]
        draw.polygon(shape(x0, y0, outline, turn), fill=190)
        draw.polygon(shape(x0, y0, [0.72 * r] * 60), fill=[190, 160, 215][k % 3])
        hole = [rng.uniform(0.45, 0.65), 0.25, 0.4][k % 3] * r
        draw.polygon(shape(x0, y0, [hole] * 60), fill=60)
        light = rng.uniform(0, 2 * np.pi)
        shade = 1 + 0.35 * (x * np.cos(light) + y * np.sin(light))
        image = Image.fromarray((np.asarray(image) * shade).clip(0, 255).astype(np.uint8))
        images.append(grey(image, rng, 3))
    return np.stack(images)


def icons(count=5000, seed=5):
    """De petits dessins de couleurs très différentes, sur fond blanc, comme des émojis."""
    rng, images = np.random.default_rng(seed), []
    for _ in range(count):
        image = Image.new("RGB", (128, 128), "white")
        draw, r = ImageDraw.Draw(image), rng.uniform(38, 60)
        x, y, turn = *rng.uniform(58, 70, 2), rng.uniform(0, 2 * np.pi)
        for scale in (1, rng.uniform(0.4, 0.7)):
            corners = int(rng.integers(3, 8))
            radii = [[r] * 40, [r] * corners, [r, 0.5 * r] * corners][rng.integers(3)]
            colour = tuple(int(value) for value in rng.integers(0, 256, 3))
            draw.polygon(shape(x, y, [scale * radius for radius in radii], turn), colour)
        for side in (-1, 1) if rng.random() < 0.5 else ():
            draw.ellipse((x + 14 * side - 6, y - 15, x + 14 * side + 6, y - 1), "white", "black", 3)
        images.append(np.asarray(image.reduce(2)))
    return np.stack(images)


def digits(count=1797):
    """Des chiffres écrits à la main (si scikit-learn est installé)."""
    from sklearn.datasets import load_digits
    images = [Image.fromarray((16 * image).clip(0, 255).astype(np.uint8)).convert("RGB")
              for image in load_digits().images[:count]]
    return np.stack([np.asarray(image.resize((64, 64))) for image in images])


SETS = {"visages": faces, "webcam": webcam, "pénombre": dim_webcam, "panoramique": panning,
        "irm": mri, "pièces": parts, "dessins 120": lambda count=120: icons(count, 6), "dessins": icons}
if importlib.util.find_spec("sklearn"):
    SETS["chiffres"] = digits


def chosen_sets():
    """Les noms des jeux sur lesquels on entraîne."""
    return options.jeu or (["visages"] if options.rapide else list(SETS))


@cache
def images_of(name, count=None):
    """Les images d'un jeu de SETS (toutes, ou `count`)."""
    if count is None and options.rapide:
        count = 40
    elif count is None and name == "dessins" and options.grand:
        count = 20_000
    return SETS[name]() if count is None else SETS[name](count)


def real_folder(path):
    """Une fonction comme celles de SETS, qui lit les images d'un dossier de l'utilisateur."""
    def read(count=None):
        from model_VAE_64 import find_images, read_image
        own, exemple = find_images(path)
        return np.stack([np.asarray(read_image(file, 64)) for file in (own + exemple)[:count]])
    return read


@cache
def folder_of(name, count=None):
    """Un dossier qui contient les images d'un jeu, en PNG."""
    folder = Path(tempfile.mkdtemp(dir=WORK.name))
    for k, image in enumerate(images_of(name, count)):
        Image.fromarray(image).save(folder / f"image_{k:05}.png", compress_level=1)
    return folder


def split(images):
    """(entraînement, test) : le tirage de train_VAE.py, refait ici."""
    images = images[random.Random(zone("seed")).sample(range(len(images)), len(images))]
    count = min(max(1, round(len(images) * zone("test_proportion"))), len(images) - 1)
    return images[count:], images[:count]


# Le réseau habituel de ces kits, dans un script habituel
REFERENCE = '''
import random
import sys
import time
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

images_folder, model_file, epochs, seed, test_proportion = sys.argv[1:]
epochs, batch = int(epochs), 64


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 512), nn.ReLU())
        self.mu, self.logsigma = nn.Linear(512, 4), nn.Linear(512, 4)
        self.decoder = nn.Sequential(
            nn.Linear(4, 512), nn.ReLU(), nn.Linear(512, 4096), nn.ReLU(),
            nn.Unflatten(1, (64, 8, 8)),
            nn.ConvTranspose2d(64, 64, 3, 2, 1, 1), nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 3, 2, 1, 1), nn.ReLU(),
            nn.ConvTranspose2d(32, 3, 3, 2, 1, 1), nn.Sigmoid())

    def encode(self, x):
        hidden = self.encoder(x)
        return self.mu(hidden), 2 * self.logsigma(hidden)

    def decode(self, z):
        return self.decoder(z)


def vae_loss(x):
    mu, logvar = vae.encode(x)
    y = vae.decode(mu + torch.exp(logvar / 2) * torch.randn_like(mu))
    return ((y - x) ** 2).sum() + 0.5 * (mu ** 2 + logvar.exp() - 1 - logvar).sum()


torch.manual_seed(0)
files = sorted(Path(images_folder).iterdir())
files = random.Random(int(seed)).sample(files, len(files))
images = np.empty((len(files), 3, 64, 64), np.float32)
for k, file in enumerate(files):
    image = Image.open(file).convert("RGB").resize((64, 64))
    images[k] = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
count = min(max(1, round(len(images) * float(test_proportion))), len(images) - 1)
train_images, test_images, to_batch = images[count:], images[:count], torch.from_numpy
vae = VAE()
optimizer = torch.optim.Adam(vae.parameters(), 1e-3)
start = time.monotonic()
for epoch in range(1, epochs + 1):
    loss = test_loss = 0
    for x in DataLoader(to_batch(train_images), batch, shuffle=True):
        optimizer.zero_grad()
        error = vae_loss(x)
        error.backward()
        optimizer.step()
        loss += error.item()
    with torch.no_grad():
        for x in DataLoader(to_batch(test_images), batch):
            test_loss += vae_loss(x).item()
    print(f"Epoch {epoch}/{epochs} loss {loss / len(train_images):.2f} "
          f"test loss {test_loss / len(test_images):.2f}", flush=True)
torch.save(vae.state_dict(), model_file)
'''

# Lance un script et note ce qu'il fait, au moment où il l'affiche ; l'horloge s'arrête pendant que
# l'espion calcule. `watch` : « rien », « erreurs » (à chaque epoch) ou « lecture » (puis s'arrête).
SPY = """
import atexit, builtins, json, runpy, statistics, sys, time
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

report, watch, script, *sys.argv[1:] = sys.argv[1:]
seen, ticks, print_it = dict(times=[], errors=[], away=0), [], print
if watch == "lecture":                  # chargé d'avance : il reste la lecture des images
    import torchvision
    from PIL import Image, ImageCms, ImageDraw, ImageFont, ImageOps
register_optimizer_step_post_hook(lambda *_: ticks.append(time.perf_counter()))

def measure(images, vae, to_batch):
    error, kl = 0, 0
    vae.eval()
    with torch.no_grad():
        for k in range(0, len(images), 256):
            x = to_batch(images[k:k + 256])
            mu, logvar = vae.encode(x)
            error += (vae.decode(mu) - x).square().sum().item()
            kl = kl + (mu.square() + logvar.exp() - 1 - logvar).sum(dim=0) / 2
    vae.train()
    seen["errors"].append(error / len(images))
    seen["kl"] = (kl / len(images)).tolist()

def spy(*words, **keywords):
    print_it(*words, **keywords)
    now, text = time.monotonic(), " ".join(map(str, words))
    names = sys._getframe(1).f_globals
    if text.startswith("Chargement"):
        seen["started"] = now
    elif "pour l'entraînement" in text and "started" in seen:
        seen["loading"] = now - seen["started"]
        if watch == "lecture":
            sys.exit()
    elif text.startswith("Epoch") and "test loss" in text:
        seen["times"].append(now - names["start"] - seen["away"])
        if watch == "erreurs":
            measure(names["test_images"], names["vae"], names["to_batch"])
            seen["away"] += time.monotonic() - now
        seen["batch"] = names["batch"]

@atexit.register
def write():
    if len(ticks) > 1:
        step = statistics.median(b - a for a, b in zip(ticks, ticks[1:]))
        seen["images_per_second"] = seen["batch"] / step
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            seen["memory"] = int(line.split()[1]) / 1e6
    json.dump(seen, open(report, "w"))

builtins.print = spy
runpy.run_path(script, run_name="__main__")
"""


def zone(name):
    """La valeur d'un paramètre dans la zone *** de train_VAE.py."""
    text = (kit.ROOT / "train_VAE.py").read_text(encoding="utf-8")
    return eval(re.search(rf"(?m)^{name} = ([^#\n]*)", text)[1])


def launch(*command):
    """Lance Python sur deux cœurs, sans GPU ; rend la durée en secondes."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, *map(str, command)], text=True, encoding="utf-8",
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT,
                          env={"OMP_NUM_THREADS": "2", **os.environ, "CUDA_VISIBLE_DEVICES": "",
                               "PYTHONIOENCODING": "utf-8"})
    if done.returncode:
        raise RuntimeError(f"{command[-1]} : {done.stdout[-2000:]}")
    return time.monotonic() - start


def spied(watch, script, *arguments):
    """Lance un script sous les yeux de l'espion ; rend ce qu'il a noté, la durée du script entier
    (seconds) et jusqu'au modèle enregistré (until_saved)."""
    start = time.time()
    with tempfile.NamedTemporaryFile(dir=WORK.name) as report:
        seconds = launch("-c", SPY, report.name, watch, script, *arguments)
        seen = json.loads(Path(report.name).read_text())
    saved = max((file.stat().st_mtime for file in script.parent.glob("*.pt")), default=math.nan)
    return argparse.Namespace(**seen, seconds=seconds - seen["away"],
                              until_saved=saved - start - seen["away"])


def make_script(images_folder, **parameters):
    """Une copie du kit, sa zone *** modifiée ; rend le chemin de train_VAE.py."""
    script = kit.copy_kit(tempfile.mkdtemp(dir=WORK.name), exemple=False) / "train_VAE.py"
    if options.rapide and "epochs" not in parameters:
        parameters["epochs"] = 2
    kit.edit_zone(script, images_folder=str(images_folder), **parameters)
    return script


def reference_script(images_folder, epochs):
    """Le script de référence et ses arguments."""
    folder = Path(tempfile.mkdtemp(dir=WORK.name))
    (folder / "reference.py").write_text(REFERENCE, encoding="utf-8")
    return [folder / "reference.py", images_folder, folder / "reference.pt", epochs, zone("seed"),
            zone("test_proportion")]


@cache
def train_reference(name):
    """Entraîne la référence sur un jeu, autant d'epochs que le kit."""
    epochs = 2 if options.rapide else zone("epochs")
    return spied("erreurs", *reference_script(folder_of(name), epochs))


def train_kit(name, **parameters):
    """Entraîne le kit sur un jeu ; ajoute à ce que l'espion a noté le modèle relu (vae), son erreur
    (error) et la divergence KL de chacun de ses nombres (kl) sur les images de test."""
    return train_kit_once(name, tuple(sorted(parameters.items())))


@cache
def train_kit_once(name, parameters):
    from model_VAE_64 import load_model
    script = make_script(folder_of(name), **dict(parameters))
    run = spied("erreurs", script)
    run.vae = load_model(script.with_name(zone("model_file")))
    x = to_tensor(split(images_of(name))[1])
    with torch.no_grad():
        mu, logvar = run.vae.encode(x)
        run.error = squared_error(run.vae.decode(mu), x)
        run.kl = ((mu.square() + logvar.exp() - 1 - logvar).mean(dim=0) / 2).tolist()
    # Le même nombre que chez l'espion : c'est donc bien le même tirage, le même modèle.
    assert math.isclose(run.error, run.errors[-1], rel_tol=1e-3), (run.error, run.errors[-1])
    return run


def to_tensor(images):
    """Des octets N×64×64×3 en tenseur N×3×64×64, de 0 à 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def squared_error(y, x):
    """L'erreur moyenne par image."""
    return ((y - x) ** 2).sum().item() / len(x)


@cache
def pca_error(name, components=4):
    """L'erreur de test de l'ACP ; 0 composante : celle de l'image moyenne."""
    train, test = (to_tensor(images).flatten(1) for images in split(images_of(name)))
    mean = train.mean(dim=0)
    test = test - mean
    if not components:
        return squared_error(test, 0 * test)
    torch.manual_seed(0)
    axes = torch.pca_lowrank(train - mean, components + 8, center=False, niter=6)[2][:, :components]
    return squared_error(test @ axes @ axes.T, test)


def geometric_mean(values):
    return math.exp(statistics.fmean(map(math.log, values)))


# Les tables : chaque fonction rend (titre, en-têtes, lignes)
def quality():
    """Points 1, 2, 3 : l'erreur de test, les sliders morts."""
    rows = []
    for name in chosen_sets():
        run, reference, pca = train_kit(name), train_reference(name), pca_error(name)
        rows.append((name, len(images_of(name)), pca, reference.errors[-1], run.error,
                     run.error / pca, run.error / reference.errors[-1], reference.errors[-1] / pca,
                     min(run.kl), sum(kl < 0.5 for kl in run.kl),
                     sum(kl < 0.5 for kl in reference.kl)))
        print("  ", name, *map(write_number, rows[-1][1:]), file=sys.stderr, flush=True)
    ratios = [[row[k] for row in rows] for k in (5, 6, 7)]
    rows.append(("moyenne géométrique", *[""] * 4, *map(geometric_mean, ratios), *[""] * 3))
    rows.append(("le pire", *[""] * 4, *map(max, ratios), min(row[8] for row in rows[:-1]),
                 max(row[9] for row in rows[:-1]), max(row[10] for row in rows[:-1])))
    return (f"Erreur de test, {zone('epochs')} epochs, 4 nombres par image (buts : kit/ACP au plus "
            "0,9 et 0,5 en moyenne ; kit/réf. au plus 0,75 et 0,35 ; KL au moins 0,5)",
            ["jeu", "images", "ACP-4", "réf.", "kit", "kit/ACP", "kit/réf.", "réf./ACP",
             "KL le plus bas", "sliders morts", "morts, réf."], rows)


def delay():
    """Point 6 (et 5) : le temps pour atteindre l'erreur finale de la référence ; tout le script."""
    rows = []
    for name in chosen_sets():
        run, reference = train_kit(name), train_reference(name)
        reached = [seconds for seconds, error in zip(run.times, run.errors)
                   if error <= reference.errors[-1]]
        rows.append((name, reference.times[-1], reached[0] if reached else "jamais",
                     reached[0] / reference.times[-1] if reached else "", run.times[-1],
                     reference.seconds, run.seconds, run.seconds / reference.seconds))
    ratios = [[row[k] for row in rows if row[k] != ""] or [math.nan] for k in (3, 7)]
    for title, summary in ("moyenne géométrique", geometric_mean), ("le pire", max):
        rows.append((title, "", "", summary(ratios[0]), "", "", "", summary(ratios[1])))
    return ("Temps d'entraînement jusqu'à l'erreur finale de la référence (but : un quart), et du "
            "script entier, en secondes",
            ["jeu", "réf.", "kit : atteinte à", "rapport", "kit : fini à", "script réf.",
             "script kit", "rapport"], rows)


def regress(train_z, train_y, test_z):
    """Régression à noyau gaussien ; sa largeur et sa régularisation au mieux des images
    d'entraînement, chacune prédite par les autres."""
    train_z, test_z = ((z - train_z.mean(0)) / train_z.std(0) for z in (train_z, test_z))
    best = math.inf, None
    for width in (0.7, 1, 1.5, 2, 3, 5):
        kernel, test_kernel = (np.exp(-np.square(z[:, None] - train_z).sum(2) / 2 / width ** 2)
                               for z in (train_z, test_z))
        for ridge in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
            inverse = np.linalg.inv(kernel + ridge * np.eye(len(kernel)))
            weights = inverse @ (train_y - train_y.mean())
            left_out = np.square(weights / np.diag(inverse)).mean()
            if left_out < best[0]:
                best = left_out, test_kernel @ weights + train_y.mean()
    return best[1]


def mutual_information(a, b, bins=20):
    """L'information mutuelle de deux nombres, en nats, d'après un histogramme."""
    joint = np.histogram2d(a, b, bins)[0] / len(a)
    independent = joint.sum(1, keepdims=True) * joint.sum(0)
    return (joint[joint > 0] * np.log(joint[joint > 0] / independent[joint > 0])).sum()


def starter():
    """Point 4 : les quatre nombres contiennent-ils les quatre traits dessinés ?"""
    run, features = train_kit("visages"), draw_exemple.features()[:len(images_of("visages"))]
    with torch.no_grad():
        z, test_z = (run.vae.encode(to_tensor(images))[0].numpy().astype(float)
                     for images in split(images_of("visages")))
    # L'information mutuelle, sur des visages neufs : 20 × 20 cases demandent beaucoup d'images.
    fresh = np.random.default_rng(7).uniform(-1, 1, (100 if options.rapide else 4000, 4))
    faces = np.stack([np.asarray(draw_exemple.draw_face(*values)) for values in fresh])
    with torch.no_grad():
        fresh_z = run.vae.encode(to_tensor(faces))[0].numpy()
    rows, r2s, gaps = [], [], []
    for k, name in enumerate(draw_exemple.FEATURE_NAMES):
        y, test_y = split(features[:, k])
        r2s.append(1 - np.square(regress(z, y, test_z) - test_y).mean() / test_y.var())
        entropy = mutual_information(fresh[:, k], fresh[:, k])
        shared = [mutual_information(fresh_z[:, j], fresh[:, k]) / entropy for j in range(4)]
        gaps.append(sorted(shared)[-1] - sorted(shared)[-2])
        rows.append((name, r2s[-1], *shared, gaps[-1]))
    rows.append(("moyenne", statistics.fmean(r2s), *[""] * 4, statistics.fmean(gaps)))
    return ("Jeu de départ : chaque trait dessiné, retrouvé à partir de mu (but : R² au moins "
            "0,95) ; information mutuelle avec chaque nombre, en part de l'entropie du trait, et "
            "son écart (MIG, Chen et al. 2018)",
            ["trait", "R²", "z1", "z2", "z3", "z4", "MIG"], rows)


def speed():
    """Point 5 : kit et référence à tour de rôle, sur 2 000 dessins."""
    folder = folder_of("dessins", 40 if options.rapide else 2000)
    epochs, rounds = (2, 1) if options.rapide else (zone("epochs"), 2)
    runs = {"référence": [], "kit": []}
    for _ in range(rounds):
        for name, script in [("référence", reference_script(folder, epochs)),
                             ("kit", [make_script(folder, epochs=epochs)])]:
            runs[name].append(spied("rien", *script))
    rows = [(name, *(statistics.median(values) for values in zip(*(
        (run.images_per_second, run.times[-1] / epochs, run.until_saved, run.seconds)
        for run in some))))
        for name, some in runs.items()]
    (_, *a), (_, *b) = rows
    rows.append(("rapport", *(ours / theirs for ours, theirs in zip(b, a))))
    return (f"Vitesse, 2 000 dessins, {epochs} epochs, 2 cœurs, médiane de {rounds} (buts : 2 fois "
            "plus d'images par seconde, au plus la moitié du temps)",
            ["", "images d'entraînement par s", "une epoch avec test et bilan, s",
             "du début au modèle enregistré, s", "script entier (kit : et latents.csv), s"], rows)


def plain_loading(folder):
    """Les images d'un dossier lues par la boucle la plus simple ; rend la durée."""
    start = time.monotonic()
    files = sorted(folder.iterdir())
    images = np.empty((len(files), 64, 64, 3), np.float32)
    for k, file in enumerate(files):
        images[k] = np.asarray(Image.open(file).convert("RGB").resize((64, 64)), np.float32) / 255
    return time.monotonic() - start


def loading():
    """Point 7 : la lecture des images, la mémoire."""
    small = folder_of("dessins", 40 if options.rapide else 20_000)
    large = Path(tempfile.mkdtemp(dir=WORK.name))
    photo = clouds(np.random.default_rng(8), 400 if options.rapide else 4000)
    photo = photo.crop((0, 0, photo.width, photo.height * 3 // 4))
    for k in range(3 if options.rapide else 12):
        photo.effect_spread(2 + k).save(large / f"photo_{k}.jpg", quality=90)
    rows = []
    for name, folder in ("PNG 64×64", small), ("JPEG 12 mégapixels", large):
        script, times = make_script(folder), {"boucle": [], "kit": []}
        for _ in range(1 if options.rapide else 3):
            times["boucle"].append(plain_loading(folder))
            times["kit"].append(spied("lecture", script).loading)
        plain, ours = (statistics.median(some) for some in times.values())
        rows.append((f"{len(list(folder.iterdir()))} {name} : secondes", plain, ours, plain / ours))
    reference = spied("rien", *reference_script(small, 1))
    run = spied("rien", make_script(small, epochs=1))
    rows.append((f"mémoire, {len(list(small.iterdir()))} images, 1 epoch : Go", reference.memory,
                 run.memory, reference.memory / run.memory))
    return ("Lecture des images et mémoire de tout le script (buts : 2 fois plus vite, 3 fois plus "
            "vite, moins de 1,5 Go)", ["", "boucle simple ou réf.", "kit", "rapport"], rows)


def growth():
    """Point 8 : une epoch, selon le nombre d'images et leur taille."""
    counts, sizes, some = ((250, 500, 1000, 2000, 5000, 20_000), (32, 64, 128, 256), 500)
    if options.rapide:
        counts, sizes, some = (40,), (32,), 20
    rows = []
    for count, size in [(n, 64) for n in counts] + [(some, s) for s in sizes]:
        run = spied("rien", make_script(folder_of("dessins", count), images_size=size,
                                        epochs=2 if count > 3000 else 4))
        epoch = statistics.median(b - a for a, b in zip(run.times, run.times[1:]))
        rows.append((f"{count} images de {size}×{size}", run.batch, epoch, run.images_per_second,
                     1e9 * epoch / (count * size ** 2)))
    return ("Une epoch (entraînement, test et bilan), selon le nombre d'images et images_size",
            ["", "lot", "s par epoch", "images d'entraînement par s", "ns par pixel"], rows)


def detail(x):
    """Ce qu'une image a de détails : l'écart moyen entre pixels voisins (du bruit en a trop)."""
    return (x.diff(dim=2).abs().mean() + x.diff(dim=3).abs().mean()).item()


def variants():
    """Point 9 : epochs, beta et latent_size autres que ceux par défaut, sur le jeu de départ."""
    rows, pca, mean = [], pca_error("visages"), pca_error("visages", 0)
    x = to_tensor(split(images_of("visages"))[1])
    changes = [{"epochs": 5}, {}, {"epochs": 200}, {"beta": 0.1}, {"beta": 20},
               {"latent_size": 1}, {"latent_size": 16}, {"latent_size": 32}]
    for change in [{"epochs": 1, "beta": 20}] if options.rapide else changes:
        run = train_kit("visages", **change)
        torch.manual_seed(0)
        with torch.no_grad():
            drawn = run.vae.decode(torch.randn(100, run.vae.latent_size))
        rows.append((", ".join(f"{k} = {v}" for k, v in change.items()) or "par défaut", run.error,
                     run.error / pca, run.error / mean, min(run.errors), detail(drawn) / detail(x),
                     sum(kl < 0.5 for kl in run.kl), sum(run.kl), run.times[-1]))
        print(f"  {rows[-1][0]} : {run.error:.1f}", file=sys.stderr, flush=True)
    return ("Jeu de départ, d'autres paramètres (« détails » : ceux des images tirées au hasard, "
            "rapportés à ceux des vraies ; plus de 1, c'est du bruit)",
            ["", "erreur", "/ACP-4", "/image moyenne", "erreur la plus basse", "détails",
             "sliders morts", "KL totale", "s"], rows)


def camera():
    """record_images.py : voir bench_record.py."""
    import bench_record
    return "record_images.py, sur un seul cœur", ["", "mesure"], bench_record.rows()


def window():
    """decode_VAE.py : voir bench_decode.py."""
    import bench_decode
    rows = [row for size in (64, 256) for row in bench_decode.rows(size)]
    return ("decode_VAE.py, temps de réponse en ms (but : moins de 16 à images_size 64)",
            ["", "médiane", "95 % sous"], rows)


TABLES = {"qualite": quality, "delai": delay, "depart": starter, "vitesse": speed,
          "chargement": loading, "croissance": growth, "parametres": variants,
          "camera": camera, "fenetre": window}


def write_number(value):
    """Trois chiffres significatifs, à la française ; un texte reste tel quel."""
    if not isinstance(value, (int, float)) or isinstance(value, int) or not math.isfinite(value):
        return str(value)
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}".replace(".", ",")


def print_table(title, header, rows):
    """Une table en colonnes alignées."""
    cells = [[write_number(value) for value in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    print(f"\n{title}")
    for row in cells:
        first, *others = (f"{cell:{'<' if k == 0 else '>'}{width}}"
                          for k, (cell, width) in enumerate(zip(row, widths)))
        print("  ".join([first, *others]), flush=True)


def main(arguments=None):
    """Calcule et affiche les tables demandées ; rend {nom : (titre, en-têtes, lignes)}."""
    parser = argparse.ArgumentParser(description="Mesure le kit.")
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--rapide", action="store_true", help="de tout petits jeux, 2 epochs")
    parser.add_argument("--grand", action="store_true", help="20 000 dessins au lieu de 5 000")
    parser.add_argument("--dossier", action="append", default=[], help="un dossier d'images")
    parser.add_argument("--jeu", action="append", default=[], help=", ".join(SETS))
    parser.parse_args(arguments, namespace=options)
    for path in options.dossier:
        SETS[Path(path).name] = real_folder(path)
    for names, known in (options.tables, TABLES), (options.jeu, SETS):
        if set(names) - set(known):
            parser.error(f"inconnu : {', '.join(set(names) - set(known))} "
                         f"(il y a {', '.join(known)})")
    results = {}
    for name in options.tables or TABLES:
        start = time.monotonic()
        results[name] = TABLES[name]()
        print_table(*results[name])
        print(f"({name} : {time.monotonic() - start:.0f} s)", flush=True)
    return results


if __name__ == "__main__":
    main()
