"""Entraîne un VAE sur les images d'un dossier, sans aucune étiquette.

À chaque epoch, le modèle voit une fois toutes les images d'entraînement ; la « test loss » est
mesurée sur des images mises de côté, qu'il ne voit jamais. Le script laisse à côté de lui
- model_VAE_64.pt : le modèle, que decode_VAE.py ouvre ;
- train_VAE.png : les courbes, des reconstructions, l'effet des sliders ;
- latents.csv : pour chaque image, son chemin et les latent_size nombres qui la résument.

Six parties : 1. Les images ; 2. La loss ; 3. L'image du bilan ; 4. L'apprentissage ; 5. Les axes ;
6. Le bilan.
"""
# ******************************* PARAMÈTRES À MODIFIER *******************************
images_folder = "images"         # dossier des images (les sous-dossiers sont lus aussi)
model_file = "model_VAE_64.pt"   # fichier où le modèle est enregistré
images_size = 64                 # *** 48-256 *** côté des images en pixels, multiple de 16
latent_size = 4                  # *** 1-32 *** combien de nombres résument une image
epochs = 40                      # *** 5-200 *** combien de fois le modèle voit chaque image
batch_size = 16                  # *** 8-256 *** combien d'images avant chaque correction
learning_rate = 0.002            # *** 0.0001-0.005 *** longueur des pas d'apprentissage
beta = 1                         # *** 0.1-20 *** poids de la divergence KL dans la loss
test_proportion = 0.2            # *** 0.1-0.5 *** part des images mises de côté pour le test
seed = 0                         # *** 0-1000 *** un autre nombre : un autre tirage au hasard
# *************************************************************************************

# %% Les préparatifs (à lire en dernier)
import contextlib
import csv
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

folder = Path(__file__).resolve().parent
sys.path.insert(0, str(folder))               # pour trouver model_VAE_64.py, d'où que l'on lance
sys.modules.pop("model_VAE_64", None)         # relu à chaque fois : il a pu être modifié
if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(errors="replace")     # une lettre inconnue de la console devient « ? »


def say(message, silence=0):
    """Affiche un message, sauf si le dernier date de moins de `silence` secondes."""
    if time.monotonic() >= say.last + silence:
        say.last = time.monotonic()
        with contextlib.suppress(OSError):        # une console fermée n'arrête pas l'entraînement
            print(message, flush=True)


say.last = 0        # une variable rangée dans la fonction : l'heure du dernier message


def stop(message):
    """Affiche un message et termine le script (code 0 dans Spyder, où 1 serait une erreur)."""
    say(message)
    sys.exit(0 if "spyder_kernels" in sys.modules else 1)


# Les paramètres, vérifiés avant les longues secondes où PyTorch se charge
for name, types, low, high in [
        ("images_size", [int], 16, 512), ("latent_size", [int], 1, 32),
        ("epochs", [int], 1, 100_000), ("batch_size", [int], 1, 10_000),
        ("learning_rate", [int, float], 1e-8, 100), ("beta", [int, float], 0, 1_000_000),
        ("test_proportion", [float], 0.001, 0.9), ("seed", [int], 0, 2**32)]:
    value = globals().get(name)       # la valeur de la variable qui porte ce nom
    if type(value) not in types or not low <= value <= high:
        stop(f"Paramètre {name} = {value!r} : dans la zone ***, il faut « {name} = » suivi d'un "
             f"nombre {'entier ' if types == [int] else ''}de {low} à {high} (un point, pas de "
             "virgule).")
for name in "images_folder", "model_file":
    value = globals().get(name)
    if type(value) is not str or not value.strip() or not value.isprintable():   # \t : tabulation
        stop(f"Paramètre {name} = {value!r} : dans la zone ***, il faut « {name} = » suivi d'un "
             "nom entre guillemets (et / entre les dossiers, non \\).")
if images_size % 16:
    stop(f"Paramètre images_size = {images_size} : il faut un multiple de 16 (32, 48, 64, 128...), "
         "car le réseau divise ce côté par 16.")
if not os.path.isdir(folder / images_folder):
    stop(f"Paramètre images_folder = {images_folder!r} : il n'y a pas de dossier de ce nom. "
         "Créez-le, mettez-y des images, ou enregistrez-en avec record_images.py.")
model_path = folder / model_file
previous_path = model_path.with_name(f"{model_path.stem}_precedent.pt")
try:
    if model_path.suffix != ".pt":
        raise OSError
    Path(f"{previous_path}.tmp").touch()      # un nom impossible, un dossier protégé : le dire
    Path(f"{previous_path}.tmp").unlink()     # avant l'entraînement, pas après
except OSError:
    stop(f"Paramètre model_file = {model_file!r} : impossible d'écrire ce fichier. Il faut un nom "
         "qui finit par .pt, pas trop long, dans un dossier qui existe et n'est pas protégé.")
del name, types, low, high, value      # l'explorateur de variables ne montre que ce qui parle

on_stop = signal.signal(signal.SIGINT, signal.SIG_IGN)     # un arrêt laisserait PyTorch à moitié là
say("Chargement de PyTorch...")
try:
    import numpy as np
    import torch
    from PIL import Image, ImageDraw
    from torch.nn.functional import interpolate
    from torch.optim.swa_utils import AveragedModel
    from torch.utils.data import DataLoader
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid
    from model_VAE_64 import VAE, find_images, load_model, patiently, read_image, save_model
except (ImportError, OSError, RuntimeError) as error:
    stop(f"Il manque une bibliothèque ({error}). Lancez Spyder depuis l'environnement vae "
         "(README.md, « Installer ») ; si c'est fait, menu Console > Redémarrer le noyau. Sous "
         "Windows, s'il est question de DLL : installez Visual C++, "
         "https://aka.ms/vs/17/release/vc_redist.x64.exe")
finally:
    signal.signal(signal.SIGINT, on_stop)                  # l'arrêt agit de nouveau


# %% 1. Les images
files = find_images(folder / images_folder)
random.Random(seed).shuffle(files)     # que le test ne soit ni un seul dossier, ni un bout de film
paths, passed_over = [], []
try:
    images = np.empty((len(files), images_size, images_size, 3), np.uint8)        # N×S×S×3
    for path in files:
        say(f"   lecture des images : {len(paths)}/{len(files)}", silence=5)
        try:
            images[len(paths)] = read_image(path, images_size)
            paths.append(path)
        except ValueError as error:               # un fichier illisible n'arrête rien
            passed_over.append(f"{path.name} ({error})")
except KeyboardInterrupt:
    stop("Arrêt demandé, avant l'entraînement.")
except MemoryError:
    stop("Pas assez de mémoire pour autant d'images : baissez images_size.")
if passed_over:
    say(f"Fichiers laissés de côté ({len(passed_over)}) : {', '.join(passed_over[:3])}"
        f"{', ...' if len(passed_over) > 3 else ''}")
if len(paths) < 2:
    stop(f"Images dans « {images_folder} » : {len(paths)}. Il en faut au moins 2 (200, c'est "
         "bien) : enregistrez-en avec record_images.py, ou copiez-y les vôtres.")
images = images[:len(paths)]
test_count = min(max(1, round(len(images) * test_proportion)), len(images) - 1)
test_images, train_images = images[:test_count], images[test_count:]
say(f"{len(images)} images de « {os.path.commonpath([path.parent for path in paths])} » : "
    f"{len(train_images)} pour l'entraînement, {len(test_images)} pour le test.")


def to_x(batch):
    """Des octets N×S×S×3 -> x : N×3×S×S, de 0 à 1 (permuter les axes, pas reshape !), sur device,
    la carte graphique ou le processeur (partie 4)."""
    return torch.as_tensor(batch).to(device).permute(0, 3, 1, 2) / 255


# %% 2. La loss
def kl_divergence(mu, logvar):
    """De combien la loi normale de chaque nombre de z (moyenne mu, variance exp(logvar)) s'écarte
    de N(0, 1) : leur divergence KL, N×latent_size, en nats, car le logarithme est népérien (Kingma
    et Welling 2013, annexe B). La loss la garde petite : z reste autour de 0, où sont les sliders.
    """
    return (mu.square() + logvar.exp() - 1 - logvar) / 2


def vae_loss(vae, x, kl_weight):
    """La loss moyenne d'un lot : la somme des erreurs au carré de chaque image, plus kl_weight fois
    sa divergence KL (Kingma et Welling 2013, éq. 10, pour des pixels de loi normale ; kl_weight est
    le beta de Higgins et al. 2017, ou moins, voir la partie 4)."""
    reconstruction, mu, logvar = vae(x)
    error = (reconstruction - x).square().sum()
    return (error + kl_weight * kl_divergence(mu, logvar).sum()) / len(x)


# %% 3. L'image du bilan, train_VAE.png, refaite après chaque epoch (à lire en dernier)
@torch.no_grad()
def encode(vae, images):
    """mu et logvar de toutes ces images : deux tenseurs N×latent_size."""
    codes = [vae.encode(to_x(batch)) for batch in DataLoader(images, 64)]
    return [torch.cat(some).cpu() for some in zip(*codes)]     # tous les mu, puis tous les logvar


def draw_curves(draw, width, height):
    """La loss (en bleu) et la test loss (en orange) à chaque epoch, sur width × height pixels."""
    low, high = min(losses + test_losses), max(losses + test_losses)
    scale = height / (high - low or 1)                           # pixels par unité (ou 1)
    for value in np.linspace(low, high, 5):
        y = 20 + scale * (high - value)
        draw.line((60, y, width, y), "#dddddd")
        draw.text((50, y), f"{value:.4g}", "black", anchor="rm")
    draw.text((width, height + 30), f"epoch {len(losses)}", "black", anchor="rm")
    for curve, name, colour, y in [(losses, "loss", "#1f77b4", 30),
                                   (test_losses, "test loss", "#ff7f0e", 50)]:
        points = [(60 + (width - 60) * k / max(1, len(curve) - 1), 20 + scale * (high - value))
                  for k, value in enumerate(curve)]
        draw.line(points, colour, 3)
        draw.text((width - 10, y), f"{name} : {curve[-1]:.1f}", colour, anchor="rm")


@torch.no_grad()
def save_report(vae, kl):
    """Dessine les courbes, des images de test au-dessus de leur reconstruction, l'effet de chaque
    slider et sa KL (près de 0, il ne sert pas) ; enregistre et rend cette PIL.Image."""
    columns, side, step = 9, 64, 66             # step : une image et sa marge
    x = to_x(test_images[:columns])
    rows = {"images de test": x, "reconstructions": vae.decode(vae.encode(x)[0])}
    for k in range(latent_size):
        z = torch.zeros(columns, latent_size, device=device)
        z[:, k] = torch.linspace(-3, 3, columns)
        rows[f"z{k + 1} : -3 ... 3\nKL {kl[k]:.2f}"] = vae.decode(z)
    report = Image.new("RGB", (130 + columns * step, 220 + len(rows) * step), "white")
    draw = ImageDraw.Draw(report)
    draw_curves(draw, report.width - 10, 180)
    for k, (label, row) in enumerate(rows.items()):
        row = make_grid(interpolate(row.cpu(), (side, side), mode="area"), columns, pad_value=1)
        report.paste(to_pil_image(row), (128, 218 + k * step))
        draw.text((8, 238 + k * step), label, "black")
    with contextlib.suppress(OSError):      # ouverte dans un autre programme : la prochaine fois
        report.save(folder / "train_VAE.png")
    return report


# %% 4. L'apprentissage
torch.manual_seed(seed)
device = ("cuda" if torch.cuda.is_available() else
          "mps" if torch.backends.mps.is_available() else "cpu")
try:
    torch.ones(1, device=device) + 1
except RuntimeError:                  # une carte graphique trop ancienne pour ce PyTorch
    device = "cpu"
train_loader = DataLoader(train_images, batch_size, shuffle=True)       # les lots, tirés au hasard
test_loader = DataLoader(test_images, batch_size)

# Le départ : l'image moyenne, et de combien les images s'en écartent (500 suffisent pour le savoir)
vae = VAE(latent_size, images_size)
mean_image = torch.from_numpy(train_images.mean(axis=0)).float().permute(2, 0, 1) / 255
gaps = to_x(train_images[:500]).cpu() - mean_image
vae.start_from(mean_image, contrast=max(gaps.std().item(), 0.001))
vae.to(device)
optimizer = torch.optim.Adam(vae.parameters(), learning_rate)

# L'erreur que l'on ferait en dessinant toujours l'image moyenne ; pour les images de départ, 243.
# Si elle est plus petite (petites images, ou qui se ressemblent), il y a moins à gagner : la KL
# pèse moins dans la loss. Sinon, un slider coûterait plus de KL qu'il n'ôterait d'erreur : aucun ne
# servirait.
mean_error = gaps.square().sum(dim=(1, 2, 3)).mean().item()
kl_weight = beta * min(1, mean_error / 243)

# Chaque correction secoue un peu les poids. Le modèle que l'on teste et que l'on garde est une
# copie plus stable, dont chaque poids est une moyenne : de toutes ses valeurs d'abord, puis, après
# le vingtième des corrections, une moyenne glissante, où les plus anciennes s'oublient.
window = max(1, epochs * len(train_loader) / 20)
average = AveragedModel(vae, avg_fn=lambda mean, weight, count:
                        mean + (weight - mean) / min(count + 1, window))

say(f"Calcul sur : {device}, {len(train_loader)} corrections par epoch.")
if len(train_loader) > 500 and batch_size < 64:
    say("C'est beaucoup : avec batch_size = 64, l'entraînement irait presque deux fois plus vite.")
losses, test_losses, start = [], [], time.monotonic()
try:
    for epoch in range(1, epochs + 1):
        total = 0
        for k, batch in enumerate(train_loader):
            loss = vae_loss(vae, to_x(batch), kl_weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(vae)
            total += loss.item() * len(batch)
            say(f"   epoch {epoch} : {k}/{len(train_loader)}", silence=5)
        with torch.no_grad():
            test_total = sum(vae_loss(average.module, to_x(batch), kl_weight).item() * len(batch)
                             for batch in test_loader)
        if not math.isfinite(total + test_total):
            stop(f"La loss vaut {total + test_total} : l'apprentissage a divergé, learning_rate = "
                 f"{learning_rate} est sans doute trop grand (ou beta = {beta}).")
        if epoch == 1 and model_path.exists():         # le modèle d'avant n'est pas perdu
            patiently(os.replace, model_path, previous_path)
            say(f"Le modèle précédent est gardé dans « {previous_path.name} ».")
        save_model(average.module, model_path)
        losses.append(total / len(train_images))
        test_losses.append(test_total / len(test_images))
        left = (time.monotonic() - start) / epoch * (epochs - epoch)
        say(f"Epoch {epoch}/{epochs}   loss {losses[-1]:.2f}   test loss {test_losses[-1]:.2f}   "
            f"reste {left:.0f} s")
        kl = kl_divergence(*encode(average.module, images[:500])).mean(dim=0)
        save_report(average.module, kl)
except KeyboardInterrupt:             # le carré rouge de Spyder, ou Ctrl-C
    if not losses:
        stop("Arrêt demandé pendant la première epoch : aucun nouveau modèle n'est enregistré.")
    say(f"Arrêt demandé : voici le modèle de l'epoch {len(losses)}.")
except OSError as error:
    stop(f"Impossible d'enregistrer « {model_file} » ({error.strerror}) : le disque est-il plein, "
         "le dossier protégé, le fichier tenu par un autre programme ? Dernière epoch enregistrée "
         f": {len(losses) or 'aucune'}.")
except RuntimeError as error:
    if "memory" not in str(error):
        raise
    stop("Pas assez de mémoire : baissez batch_size ou images_size.")

del path, batch, total, test_total, start, k        # comme plus haut
vae, device = load_model(model_path), "cpu"         # celui de la dernière epoch finie


# %% 5. Les axes : pour que chaque slider ait si possible sa caractéristique (peut se sauter)
# Ce n'est plus le VAE : la loss ne dit guère où placer les axes de z, et plusieurs sliders se
# partagent souvent une caractéristique. Un mélange de nombres indépendants suit en général une loi
# plus gaussienne, plus en cloche, que chacun d'eux : on tourne les axes jusqu'à ceux où les nombres
# des images sont le moins gaussiens (« FastICA », Hyvärinen 1999).
def orthogonal(matrix):
    """La matrice la plus proche dont les colonnes sont perpendiculaires et de longueur 1."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def independent_axes(mu):
    """Les axes sur lesquels les nombres des images (mu : N×latent_size) sont à peu près le plus
    indépendants : une matrice orthogonale, un axe par colonne."""
    awake = (mu.std(dim=0, correction=0) > 0.3).nonzero()[:, 0]   # les sliders qui servent
    axes = torch.eye(latent_size)
    if len(mu) > 20 * len(awake) > 0:                  # avec moins d'images, ce serait du hasard
        white = orthogonal((mu - mu.mean(dim=0))[:, awake].double()) * len(mu) ** 0.5   # variance 1
        turn = torch.eye(len(awake)).double()
        for _ in range(100):                           # le point fixe de l'article, avec tanh
            y = torch.tanh(white @ turn)
            turn = orthogonal(white.T @ y / len(y) - turn * (1 - y.square()).mean(dim=0))
        axes[awake[:, None], awake] = turn.float()
    return axes


@torch.no_grad()
def turn_axes(vae, axes):
    """mu devient mu @ axes ; logvar, logvar @ axes² (au carré, élément par élément : à peu près).
    L'encodeur finit, et le décodeur commence, par une couche linéaire : toutes deux tournées,
    decode(mu) ne change pas."""
    for weight in vae.encoder[-1].parameters():        # les poids, puis les biais
        mu, logvar = weight.chunk(2)                   # ceux dont sort mu, ceux dont sort logvar
        weight.copy_(torch.cat([axes.T @ mu, axes.T.square() @ logvar]))
    vae.decoder[0].weight.copy_(vae.decoder[0].weight @ axes)


mu, logvar = encode(vae, train_images)
axes = independent_axes(mu)
kl = kl_divergence(mu @ axes, logvar @ axes.square()).mean(dim=0)
turn_axes(vae, axes[:, kl.argsort(descending=True)])            # le plus utile d'abord

# %% 6. Le bilan
if min(test_count, len(train_images)) < 5:
    verdict = "trop peu d'images de test, ou d'entraînement, pour juger."
elif min(losses[-1], test_losses[-1]) > 0.95 * mean_error:
    verdict = (f"le modèle ne fait pas mieux que de toujours dessiner l'image moyenne (erreur "
               f"{mean_error:.2f}) : changez learning_rate, beta ou epochs.")
elif (test_losses[-1] > 1.05 * min(test_losses)       # remontée, ou trop haute sans plus descendre
      or test_losses[-1] > max(1.3 * losses[-1], 0.97 * test_losses[-2:][0])):
    verdict = ("la test loss finit bien plus haut que la loss, ou remonte : sur-apprentissage. Il "
               "faudrait plus d'images.")
else:
    verdict = "la loss et la test loss sont descendues toutes les deux, tout va bien."
say(f"Bilan : {verdict}")
mu, logvar = encode(vae, images)
latents, kl = mu.numpy(), kl_divergence(mu, logvar).mean(dim=0).numpy()
report = save_report(vae, kl)
# L'explorateur de variables de Spyder ne montre pas vae : voici ses poids, en tableaux.
weights = {name: tensor.numpy() for name, tensor in vae.state_dict().items()}
try:
    save_model(vae, model_path)          # aux axes tournés
    with open(folder / "latents.csv", "w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image"] + [f"z{k + 1}" for k in range(latent_size)])
        writer.writerows([path] + [f"{number:.4f}" for number in numbers]
                         for path, numbers in sorted(zip(paths, latents.tolist())))
except OSError as error:
    say(f"Le modèle est gardé, mais un fichier ne s'écrit pas ({error}) : est-il ouvert dans un "
        "tableur, ou le disque est-il plein ?")
say(f"Le modèle est dans « {model_file} ». À voir : train_VAE.png et latents.csv. La suite : "
    "decode_VAE.py.")
if "spyder_kernels" in sys.modules:      # dans Spyder : le panneau « Graphiques »
    from IPython.display import display
    display(report)
