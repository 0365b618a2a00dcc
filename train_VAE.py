"""Entraîne un VAE sur les images d'un dossier, sans aucune étiquette.

À chaque epoch, le modèle voit une fois toutes les images d'entraînement ; la « test loss » est
mesurée sur des images mises de côté, qu'il ne voit jamais. Le script laisse à côté de lui
- model_VAE_64.pt : le modèle, que decode_VAE.py ouvre ;
- train_VAE.png, refait à chaque epoch : les courbes, des reconstructions, l'effet des sliders ;
- latents.csv : pour chaque image, son chemin et les latent_size nombres qui la résument.
Le cœur du script est la partie « L'apprentissage » ; le reste lit, montre, range et protège.
"""
import contextlib
import csv
import io
import math
import os
import random
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

# ******************************* PARAMÈTRES À MODIFIER *******************************
images_folder = "images"         # dossier des images (les sous-dossiers sont lus aussi)
model_file = "model_VAE_64.pt"   # fichier où le modèle est enregistré
images_size = 64                 # *** 32-256 *** côté des images en pixels, multiple de 16
latent_size = 4                  # *** 1-32 *** combien de nombres résument une image
epochs = 40                      # *** 5-200 *** combien de fois le modèle voit chaque image
batch_size = 64                  # *** 8-256 *** images par pas, au plus (moins s'il y en a peu)
learning_rate = 0.002            # *** 0.0001-0.005 *** longueur des pas d'apprentissage
beta = 1                         # *** 0.1-20 *** poids de la divergence KL dans la loss
test_proportion = 0.2            # *** 0.1-0.5 *** part des images mises de côté pour le test
seed = 0                         # *** 0-1000 *** un autre nombre : un autre tirage au hasard
# *************************************************************************************

folder = Path(__file__).resolve().parent
in_spyder = "spyder_kernels" in sys.modules


def stop(message):
    """Affiche un message clair et termine le script (par 0 dans Spyder, où 1 serait une erreur)."""
    print(message)
    sys.exit(0 if in_spyder else 1)


for name, types, low, high in [
        ("images_size", [int], 16, 512), ("latent_size", [int], 1, 256),
        ("epochs", [int], 1, 100_000), ("batch_size", [int], 1, 10_000),
        ("learning_rate", [int, float], 1e-8, 100), ("beta", [int, float], 0, 1_000_000),
        ("test_proportion", [float], 0.001, 0.9), ("seed", [int], 0, 2**32)]:
    value = globals()[name]       # la valeur de la variable qui porte ce nom
    if type(value) not in types or not low <= value <= high:
        stop(f"Paramètre {name} = {value!r} : il faut un nombre {'entier ' * (float not in types)}"
             f"de {low} à {high}{', avec un point, sans virgule' * (float in types)}. "
             "Corrigez-le dans la zone ***.")
if images_size % 16:
    stop(f"Paramètre images_size = {images_size} : il faut un multiple de 16 (32, 48, 64, 128, "
         "256...), car le réseau divise ce côté plusieurs fois par deux.")
if (type(images_folder) is not str or not images_folder.strip()
        or not os.path.isdir(folder / images_folder)):
    stop(f"Paramètre images_folder = {images_folder!r} : il n'y a pas de dossier de ce nom. "
         "Créez-le, mettez-y des images, ou enregistrez-en avec record_images.py.")
if (type(model_file) is not str or not model_file.endswith(".pt") or "\0" in model_file
        or os.path.isdir(folder / model_file) or not os.path.isdir((folder / model_file).parent)):
    stop(f"Paramètre model_file = {model_file!r} : il faut un nom de fichier entre guillemets "
         "qui finit par .pt, dans un dossier qui existe.")

# %% Les bibliothèques
try:
    print("Chargement de PyTorch...", flush=True)
    sys.path.insert(0, str(folder))           # pour trouver model_VAE_64.py, d'où que l'on lance
    sys.modules.pop("model_VAE_64", None)     # relu à chaque fois : il a pu être modifié
    import numpy as np
    import torch
    from PIL import Image, ImageDraw, ImageFont
    from torchvision.utils import make_grid
    from model_VAE_64 import (VAE, find_images, read_image, save_model, tensor_to_image,
                              write_safely)
except (ImportError, OSError, RuntimeError) as error:     # absente, abîmée, ou arrêtée en chemin
    stop(f"Il manque une bibliothèque ({error}). Lancez Spyder depuis l'environnement vae "
         "(README.md, « Installer ») ; si c'est fait, menu Console > Redémarrer le noyau.")
except KeyboardInterrupt:
    stop("Arrêt demandé, avant le début.")


# %% Les petits outils
def what_is_saved():
    """Une phrase : ce que l'on retrouvera sur le disque après un arrêt."""
    if not saved_epoch:
        return "Aucun nouveau modèle n'est enregistré."
    return f"Le modèle de l'epoch {saved_epoch} est enregistré dans « {model_file} »."


@contextlib.contextmanager
def clear_messages():
    """Remplace par une phrase l'arrêt demandé, les erreurs de disque et le manque de mémoire."""
    try:
        yield
    except KeyboardInterrupt:
        stop(f"\nArrêt demandé. {what_is_saved()}")
    except OSError:
        stop(f"\nImpossible d'écrire dans « {folder} ». Le disque est-il plein, le dossier "
             "protégé, latents.csv ouvert dans un tableur ? " + what_is_saved())
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        stop(f"\nPas assez de mémoire : baissez batch_size ou images_size. {what_is_saved()}")


@contextlib.contextmanager
def uninterrupted():
    """Ici, un Ctrl-C est ignoré : ce qui est commencé ne reste pas à moitié fait."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


class Progress:
    """Montre où l'on en est, si cela dure plus de deux secondes."""

    def __init__(self):
        self.next = time.monotonic() + 2

    def show(self, text):
        if time.monotonic() > self.next:
            live = in_spyder or sys.stdout.isatty()      # sinon un fichier : peu de lignes
            print(f"{text:<48}", end="\r" if live else "\n", flush=True)
            self.next = time.monotonic() + (0.3 if live else 20)


def free_memory():
    """La mémoire vive disponible, en octets (sur macOS : celle de la machine)."""
    if sys.platform == "win32":
        import ctypes
        status = (ctypes.c_uint64 * 8)(64)       # MEMORYSTATUSEX : sa taille, puis les mesures
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return status[2]
    if sys.platform == "linux":
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def load_images(files):
    """Lit les images dans un ordre tiré au hasard : (tableau N×S×S×3 d'octets, leurs N chemins).
    Les fichiers qui ne sont pas des images sont laissés de côté, une ligne dit lesquels."""
    needed = len(files) * images_size ** 2 * 3
    if needed > free_memory():
        stop(f"Pas assez de mémoire : {len(files)} images de {images_size}×{images_size} prennent "
             f"{needed / 1e9:.1f} Go, il en reste {free_memory() / 1e9:.1f}. Mettez moins d'images "
             f"dans « {images_folder} », ou baissez images_size.")
    images = np.empty((len(files), images_size, images_size, 3), np.uint8)
    paths, passed_over, progress = [], [], Progress()
    for k, path in enumerate(random.Random(seed).sample(files, len(files))):
        progress.show(f"Lecture des images : {k}/{len(files)}")
        try:
            images[len(paths)] = read_image(path, images_size)
            paths.append(path)
        except Exception as error:               # un fichier illisible n'arrête rien
            name = os.fsencode(path.name).decode("utf-8", "replace")
            passed_over.append(f"{name} ({error})")
    if passed_over:
        print(f"Fichiers laissés de côté ({len(passed_over)}) : " + ", ".join(passed_over[:3])
              + ", ..." * (len(passed_over) > 3))
    return images[:len(paths)], paths


def choose_device():
    """L'accélérateur de l'ordinateur (CUDA, MPS, XPU) s'il y en a un qui marche, sinon le CPU."""
    try:
        device = (torch.accelerator.current_accelerator() if hasattr(torch, "accelerator")
                  else torch.device("cuda"))             # PyTorch d'avant la 2.6
        torch.zeros(1, device=device) + 1                # échoue s'il est absent ou trop ancien
        return device or torch.device("cpu")
    except (RuntimeError, AssertionError):
        return torch.device("cpu")


def to_batch(images):
    """Des octets N×S×S×3 en tenseur N×3×S×S, de 0 à 1 (permuter les axes, pas reshape !)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(device).float() / 255


def in_parts(images):
    """Coupe des images en parts d'un demi-million de pixels environ, pour ménager la mémoire."""
    return np.array_split(images, math.ceil(len(images) * images_size ** 2 / 2 ** 19))


@torch.no_grad()
def encode(images):
    """mu (affiné, en mode eval) et logvar pour des images : deux tenseurs N×latent_size."""
    codes = [vae.encode(to_batch(part)) for part in in_parts(images)]
    return [torch.cat(some).cpu() for some in zip(*codes)]


def independent_axes(mu):
    """Les axes sur lesquels les nombres des images (mu : N×latent_size) sont le plus indépendants :
    une matrice orthogonale, un axe par colonne. Un mélange de nombres indépendants suit en général
    une loi plus gaussienne, plus en cloche, que chacun d'eux : on va vers la moins gaussienne
    (« FastICA », Hyvärinen 1999)."""
    def orthogonal(matrix):            # la plus proche à colonnes perpendiculaires, de longueur 1
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u @ vh

    axes = torch.eye(latent_size)
    awake = mu.std(dim=0, correction=0) > 0.3          # un slider endormi ne se mêle pas aux autres
    if len(mu) > 20 * awake.sum() > 0:                 # avec moins d'images, ce serait du hasard
        # white : mu, sans corrélation et de variance 1 (la KL l'en approche déjà)
        white = orthogonal((mu - mu.mean(dim=0))[:, awake].double()) * len(mu) ** 0.5
        turn = torch.eye(white.shape[1]).double()
        for _ in range(100):                           # le point fixe de l'article, avec tanh
            y = torch.tanh(white @ turn)
            turn = orthogonal(white.T @ y / len(y) - turn * (1 - y.square()).mean(dim=0))
        axes[np.ix_(awake, awake)] = turn.float()
    return axes


def turn_axes():
    """Tourne les axes de z, pour que chaque slider ait si possible sa caractéristique, et range les
    sliders par KL décroissante. La loss, elle, ne dit guère où placer les axes : entre sliders
    éveillés, les tourner ne la change presque pas."""
    mu, logvar = encode(train_images[:2000])
    axes = independent_axes(mu)
    kl = kl_divergence(mu @ axes, logvar @ axes.square()).mean(dim=0)
    vae.turn(axes[:, kl.argsort(descending=True)].to(device))


def draw_curves(size):
    """Les courbes de la loss et de la test loss, en fonction de l'epoch : une PIL.Image."""
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    left, top, right, bottom = 80, 15, size[0] - 200, size[1] - 25
    low, high = min(losses + test_losses), max(losses + test_losses)
    scale = (bottom - top) / (high - low or 1)             # pixels par unité de loss
    for value in np.linspace(low, high, 5):
        y = bottom - scale * (value - low)
        draw.line((left, y, right, y), "#dddddd")
        draw.text((left - 8, y), f"{value:.4g}", "#444444", font, anchor="rm")
    draw.text((left, bottom + 5), "epoch 1", "#444444", font)
    draw.text((right, bottom + 5), f"epoch {len(losses)}", "#444444", font, anchor="ra")
    for curve, colour, label, y in [(losses, "#1f77b4", "loss", top),
                                    (test_losses, "#ff7f0e", "test loss", top + 20)]:
        points = [(left + (right - left) * k / max(1, len(curve) - 1),
                   bottom - scale * (value - low))
                  for k, value in enumerate(curve)]
        draw.line(points * 2 if len(points) == 1 else points, colour, 3)
        draw.text((right + 15, y), f"{label} : {curve[-1]:.1f}", colour, font)
    return picture


def kl_of_sliders():
    """La KL de chaque slider, en nats, moyenne sur des images de test : latent_size nombres."""
    return kl_divergence(*encode(test_images[:128])).mean(dim=0)


@torch.no_grad()
def draw_report(columns=9, cell=64):
    """Les courbes, des images de test au-dessus de leur reconstruction, l'effet des sliders."""
    x, kl = to_batch(test_images[:columns]), kl_of_sliders()
    rows = [("images de test", x), ("reconstructions", vae.decode(vae.encode(x)[0]))]
    for k in range(min(latent_size, 32)):
        z = torch.zeros(columns, latent_size, device=device)
        z[:, k] = torch.linspace(-3, 3, columns)
        rows.append((f"z{k + 1} : -3 ... 3\nKL {kl[k]:.2f}", vae.decode(z)))
    width = columns * (cell + 2) + 2
    picture = Image.new("RGB", (130 + width, 200 + len(rows) * (cell + 6)), "white")
    picture.paste(draw_curves((picture.width, 190)))
    for k, (label, row) in enumerate(rows):
        row = torch.nn.functional.interpolate(row.cpu(), (cell, cell), mode="area")
        y = 200 + k * (cell + 6)
        picture.paste(tensor_to_image(make_grid(row, columns, pad_value=1)), (130, y))
        ImageDraw.Draw(picture).text((8, y + 18), label, "#444444", ImageFont.load_default(13))
    return picture


def verdict():
    """Comment l'apprentissage s'est passé, d'après les courbes et les sliders : une phrase."""
    if len(test_losses) == 1:
        return "une seule epoch, c'est trop peu pour juger : il en faudrait plus."
    if kl_of_sliders().max() < 0.5:
        return ("aucun slider ne sert : changez beta, epochs ou learning_rate, ou prenez des "
                "images moins semblables.")
    if vae.contrast < 0.04:                      # le jeu de départ : 0.14
        return ("vos images se ressemblent tant que la loss en dit peu : jugez sur les "
                "reconstructions, dans train_VAE.png, ou variez davantage les images.")
    first, half, last = (test_losses[k] for k in (0, (len(test_losses) - 1) // 2, -1))
    if losses[-1] < losses[0] and last > 1.05 * min(test_losses):     # remontée de 5 %
        return ("la test loss remonte : sur-apprentissage. Il faudrait plus d'images, ou moins "
                "d'epochs.")
    if last > 1.3 * losses[-1]:                  # 30 % au-dessus de la loss
        return ("la test loss reste bien plus haute que la loss : sur-apprentissage. Il faudrait "
                "plus d'images (moins d'epochs n'aideraient que si la test loss remontait).")
    if last > 0.99 * first:                      # moins de 1 % de baisse en tout
        return "la test loss n'est pas vraiment descendue : changez epochs ou learning_rate."
    if half - last >= 0.08 * (first - last):     # la seconde moitié : 8 % de la descente, ou plus
        return "la test loss descendait encore : plus d'epochs feraient mieux."
    return "la loss et la test loss sont descendues ensemble, tout va bien."


def save_vae():
    """Enregistre le modèle ; la première fois, garde d'abord celui d'avant sous un autre nom."""
    with uninterrupted():
        if previous_model and not saved_epoch:
            previous_path = model_path.with_name(f"{model_path.stem}_precedent.pt")
            with write_safely(previous_path) as file:
                file.write(previous_model)
            print(f"Le modèle précédent est gardé dans « {previous_path.name} ».")
        save_model(vae, model_path)


def save_report():
    """Enregistre l'image du bilan, et la rend. Si un autre programme la tient, tant pis."""
    picture = draw_report()
    with contextlib.suppress(OSError):
        with write_safely(folder / "train_VAE.png", pauses=[0.1]) as file:
            picture.save(file, "PNG", compress_level=1)
    return picture


# %% Les images : celles de l'étudiant, ou le jeu de départ s'il n'y en a pas encore
saved_epoch = 0               # la dernière epoch enregistrée
with clear_messages():
    own_files, exemple_files = find_images(folder / images_folder)
    images, paths = load_images(own_files)
    if not paths and exemple_files:
        print(f"Pas encore d'images à vous dans « {images_folder} » : voici le jeu de départ.")
        images, paths = load_images(exemple_files)
    if len(paths) < 2:
        stop(f"Images dans « {images_folder} » : {len(paths)}. Il en faut au moins 2 (200, c'est "
             "bien) : enregistrez-en avec record_images.py, ou copiez-y les vôtres.")

    # load_images a mélangé les images : la fin d'un film, trop semblable, ferait un mauvais test.
    test_count = min(max(1, round(len(images) * test_proportion)), len(images) - 1)
    test_images, train_images = images[:test_count], images[test_count:]
    print(f"{len(images)} images de « {os.path.commonpath([path.parent for path in paths])} » : "
          f"{len(train_images)} pour l'entraînement, {test_count} pour le test.")


# %% L'apprentissage
def kl_divergence(mu, logvar):
    """La divergence KL de N(mu, exp(logvar)) à N(0, 1), en nats (logarithme népérien), pour chaque
    nombre : N×latent_size (Kingma et Welling 2013, annexe B)."""
    return (mu.square() + logvar.exp() - 1 - logvar) / 2


def vae_loss(x, kl_slope=1):
    """La loss moyenne d'un lot N×3×S×S : la somme des erreurs au carré de chaque image, plus beta
    fois sa divergence KL (Kingma et Welling 2013, éq. 10 ; beta : Higgins et al. 2017).
    `kl_slope`, de 0 à 1, réduit la part de la KL dans la correction du réseau, pas dans la loss."""
    reconstruction, mu, logvar = vae(x)
    error, kl = (reconstruction - x).square().sum(), beta * kl_divergence(mu, logvar).sum()
    kl = kl_slope * kl + (1 - kl_slope) * kl.detach()
    return (error + kl) / len(x)


def value_of(loss):
    """La loss en nombre ordinaire ; arrête tout si ce n'en est plus un (nan ou infini)."""
    value = loss.item()
    if not math.isfinite(value):
        stop(f"La loss vaut {value} : l'apprentissage a divergé, learning_rate = {learning_rate} "
             f"est sans doute trop grand (ou beta = {beta}). Baissez-le et relancez. "
             + what_is_saved())
    return value


with clear_messages():
    model_path = folder / model_file
    previous_model = model_path.read_bytes() if model_path.exists() else None
    torch.manual_seed(seed)
    device = choose_device()
    vae = VAE(latent_size, images_size)
    vae.start_from(train_images)
    # 1, ou moins si les images se ressemblent plus que celles du jeu de départ (contraste 0.14)
    balance = min(1, vae.contrast.item() / 0.14)
    vae.to(device)
    batch = min(batch_size, max(4, len(train_images) // 32))   # peu d'images : de petits lots
    print(f"Calcul sur : {device}, par lots de {batch} images.")
    steps = epochs * math.ceil(len(train_images) / batch)
    # Un grand lot indique mieux la direction : ses pas sont plus longs (Malladi et al. 2022).
    max_lr = learning_rate * max(1, batch / 16) ** 0.5
    # weight_decay : les poids qui ne servent à rien s'effacent, le modèle invente moins de détails.
    # fused : le même calcul en une seule passe sur les poids, plus vite (PyTorch 2.6 ou après).
    optimizer = torch.optim.AdamW(vae.parameters(), max_lr, weight_decay=0.03,
                                  fused=hasattr(torch, "accelerator"))
    # Des pas courts, vite plus longs, puis de plus en plus courts (Smith et Topin 2017).
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), 1 - step / steps))
    losses, test_losses = [], []
    start = saved_time = time.monotonic()
    try:
        for epoch in range(1, epochs + 1):
            progress, total = Progress(), 0
            for indices in torch.randperm(len(train_images)).split(batch):
                # Entre des images qui se ressemblent, redessiner l'écart rapporte si peu que la KL
                # endormirait les sliders : elle pèse moins, surtout au début (balance puissance 8,
                # puis 2 à la fin), pour qu'ils servent avant de coûter (Bowman et al. 2016).
                done = scheduler.last_epoch / steps      # de 0 à 1 : last_epoch compte les pas
                kl_slope = max(0.05, balance ** (8 - 6 * done))
                loss = vae_loss(to_batch(train_images[indices.numpy()]), kl_slope)
                total += value_of(loss) * len(indices)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                progress.show(f"Epoch {epoch}/{epochs} en cours")
            with torch.no_grad():
                test_total = sum(value_of(vae_loss(to_batch(part))) * len(part)
                                 for part in in_parts(test_images))
            losses.append(total / len(train_images))
            test_losses.append(test_total / len(test_images))
            left = timedelta(seconds=round((time.monotonic() - start) / epoch * (epochs - epoch)))
            print(f"Epoch {epoch}/{epochs}   loss {losses[-1]:.2f}   "
                  f"test loss {test_losses[-1]:.2f}   reste {left}", flush=True)
            if time.monotonic() > saved_time + 10:
                save_vae()
                saved_epoch, saved_time = epoch, time.monotonic()
            save_report()
    except KeyboardInterrupt:                    # un arrêt n'empêche pas le bilan
        if not test_losses:
            raise
        print(f"\nArrêt demandé pendant l'epoch {epoch}.")
    with uninterrupted():
        turn_axes()
        save_vae()
        saved_epoch = epoch

# %% Le bilan
with clear_messages():
    print(f"Bilan : {verdict()}")
    vae.eval()            # l'apprentissage est fini : encode affine maintenant ses réponses
    report = save_report()
    if in_spyder:
        from IPython.display import display
        display(report)
    latents, progress = [], Progress()
    for part in in_parts(images):
        progress.show(f"Calcul de latents.csv : {sum(map(len, latents))}/{len(images)}")
        latents.append(encode(part)[0].numpy())
    latents = np.concatenate(latents)
    # L'explorateur de variables de Spyder ne montre pas vae : voici ses poids, en tableaux.
    weights = {name: tensor.cpu().numpy() for name, tensor in vae.state_dict().items()}
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["image"] + [f"z{k + 1}" for k in range(latent_size)])
    for path, mu in sorted(zip(paths, latents.tolist())):
        name = path.relative_to(folder) if path.is_relative_to(folder) else path
        writer.writerow([name] + [f"{number:.4f}" for number in mu])
    with write_safely(folder / "latents.csv") as file:
        file.write(table.getvalue().encode("utf-8", "replace"))
    print(f"{what_is_saved()} À voir : train_VAE.png et latents.csv. La suite : decode_VAE.py.")
