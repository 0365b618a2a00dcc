"""Le modèle : un Variational AutoEncoder (VAE) pour de petites images en couleur.

Ce fichier ne se lance pas : train_VAE.py et decode_VAE.py l'importent. On y trouve
- le réseau : Encoder (image -> mu, logvar), Decoder (z -> image), VAE (les deux ensemble) ;
- le passage d'un fichier à une image, d'une image à un tenseur, et retour ;
- l'enregistrement et la lecture d'un modèle.

L'idée et les notations viennent de Kingma et Welling, « Auto-Encoding Variational Bayes »,
2013 (https://arxiv.org/abs/1312.6114).
"""
import contextlib
import io
import logging
import os
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn
from torchvision.transforms import functional

torch.from_numpy(np.empty(0))    # échoue dès l'import si NumPy est trop récent pour ce PyTorch

MODEL_KIND = "VAE_64"     # écrit dans chaque modèle enregistré, vérifié à la lecture
SIZES = range(16, 513, 16)    # côtés possibles d'une image : le réseau les divise par 8 ou par 16
LATENT_SIZES = range(1, 257)  # nombres de sliders possibles

# Pillow et PyTorch se taisent : les scripts disent eux-mêmes quels fichiers sont illisibles.
logging.getLogger("PIL").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="PIL|torch.serialization")


# %% Le réseau
def first_stride(images_size):
    """Le pas s de la première convolution. Une petite image garde ainsi assez de cases, 4×4 à 32,
    pour que le décodeur place ce qu'il dessine : avec 2×2, la moitié des sliders dormaient."""
    return 4 if images_size >= 64 else 2


# Entre les couches, SiLU : comme ReLU, mais lisse, si bien qu'aucun neurone ne reste éteint.
class Encoder(nn.Sequential):
    """Compresse les images : N×3×S×S -> N×(2·latent_size), mu puis logvar. À 64×64, il a dix fois
    moins de poids que le décodeur : résumer est plus facile que dessiner."""

    def __init__(self, latent_size, images_size):
        s = first_stride(images_size)
        super().__init__(
            nn.Conv2d(3, 24, s, stride=s), nn.SiLU(),                        # 24 × S/s × S/s
            nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.SiLU(),            # 48 × S/2s × S/2s
            nn.Conv2d(48, 96, 3, stride=2, padding=1), nn.SiLU(),            # 96 × S/4s × S/4s
            nn.Flatten(),                                                    # 96·(S/4s)²
            nn.Linear(96 * (images_size // (4 * s)) ** 2, 2 * latent_size))  # 2·latent_size


class Decoder(nn.Sequential):
    """Le chemin inverse : N×latent_size -> N×3×S×S. À la fin, GLU multiplie une moitié des nombres,
    des couleurs, par l'autre, des masques de 0 à 1 (Dauphin et al. 2017) : les formes qui bougent
    restent nettes. PixelShuffle range les 3·s² nombres de chaque case en un carré de s×s pixels
    (Shi et al. 2016) : plus rapide qu'une ConvTranspose2d."""

    def __init__(self, latent_size, images_size):
        s = first_stride(images_size)
        side = images_size // (4 * s)
        super().__init__(
            nn.Linear(latent_size, 256), nn.SiLU(),                          # 256
            nn.Linear(256, 128 * side ** 2), nn.SiLU(),                      # 128·(S/4s)²
            nn.Unflatten(1, (128, side, side)),                              # 128 × S/4s × S/4s
            nn.ConvTranspose2d(128, 48, 4, stride=2, padding=1), nn.SiLU(),  # 48 × S/2s × S/2s
            nn.ConvTranspose2d(48, 24, 4, stride=2, padding=1), nn.SiLU(),   # 24 × S/s × S/s
            nn.Conv2d(24, 6 * s * s, 3, padding=1), nn.GLU(dim=1),           # 3·s² × S/s × S/s
            nn.PixelShuffle(s))                                              # 3 × S × S


class VAE(nn.Module):
    """Encoder et Decoder, reliés par quelques nombres tirés au hasard autour de mu.

    x : N×3×S×S, RVB, flottants de 0 à 1 (S = images_size) ; z, mu, logvar : N×latent_size.
    Lève ValueError si le réseau ne peut pas prendre ces tailles.
    """

    def __init__(self, latent_size=4, images_size=64):
        if type(latent_size) is not int or latent_size not in LATENT_SIZES:
            raise ValueError(f"latent_size = {latent_size!r} : il faut un nombre entier "
                             f"de {LATENT_SIZES[0]} à {LATENT_SIZES[-1]}.")
        if type(images_size) is not int or images_size not in SIZES:
            raise ValueError(f"images_size = {images_size!r} : il faut un multiple de 16 "
                             f"de {SIZES[0]} à {SIZES[-1]}, par exemple 32, 64, 128 ou 256.")
        super().__init__()
        self.latent_size, self.images_size = latent_size, images_size
        self.encoder = Encoder(latent_size, images_size)
        self.decoder = Decoder(latent_size, images_size)
        # L'image moyenne, avant la sigmoïde : apprise. Et l'écart type des images autour d'elle :
        # un buffer, enregistré avec les poids, mais que l'apprentissage ne change pas.
        self.mean = nn.Parameter(torch.zeros(3, images_size, images_size))
        self.register_buffer("contrast", torch.ones(()))

    @torch.no_grad()
    def start_from(self, images):
        """Prépare le réseau aux images d'entraînement (octets, N×S×S×3) : sans avoir rien appris,
        le décodeur dessine déjà à peu près leur moyenne, et l'encodeur voit ce qui s'en écarte.
        Avec peu d'images, l'entraînement ne passe pas ses quelques pas à apprendre leur moyenne.
        """
        mean = images.mean(axis=0) / 255
        self.mean.copy_(torch.logit(torch.from_numpy(mean).permute(2, 0, 1), eps=0.02))
        some = images[:6_144_000 // images[0].size]      # 500 images de 64×64 suffisent
        self.contrast.fill_(max(0.01, (some / 255 - mean).std()))

    @torch.no_grad()
    def turn(self, axes):
        """Tourne les axes de z : mu devient mu @ axes (une matrice orthogonale), et logvar, à peu
        près, logvar @ axes² (la variance de a·z est a² fois celle de z). L'encodeur finit, et le
        décodeur commence, par une couche linéaire : elles tournent, les images ne changent pas."""
        for weight in self.encoder[-1].parameters():     # les poids, puis les biais
            weight.copy_(torch.block_diag(axes.T, axes.T.square()) @ weight)     # mu, puis logvar
        self.decoder[0].weight.copy_(self.decoder[0].weight @ axes)

    def encode(self, x):
        """La loi de z sachant x, N(mu, exp(logvar)) : (mu, logvar).
        L'apprentissage prend la réponse de l'encodeur ; ensuite (mode eval), mu est affiné."""
        mean = torch.sigmoid(self.mean.detach())   # detach : un repère ; seul decode l'apprend
        mu, logvar = self.encoder((x - mean) / self.contrast).chunk(2, dim=1)
        logvar = logvar.clamp(max=0.5)     # sans cette borne, exp(logvar) s'emballe parfois
        if not self.training:              # par parts, pour ménager la mémoire
            mu = torch.cat([self.refine(*part) for part in zip(mu.split(32), x.split(32))])
        return mu, logvar

    @torch.inference_mode(False)    # des gradients, même là où l'appelant s'en passe
    @torch.enable_grad()
    def refine(self, mu, x, steps=3):
        """Rapproche decode(mu) de x, sans changer le réseau : une descente de gradient, sur les
        nombres de chaque image (Kim et al. 2018, « Semi-Amortized Variational Autoencoders »).
        L'encodeur devine d'un coup d'œil, et vise un peu à côté sur une image jamais vue."""
        for _ in range(steps):
            mu = mu.detach().clone().requires_grad_()
            y = self.decode(mu)
            error = (y - x).square().sum() + 0.05 * mu.square().sum()    # et mu reste près de 0
            gradient, = torch.autograd.grad(error, mu)
            # Le long du gradient, l'erreur est presque une parabole : le pas va au minimum, -b/2a.
            nudge = 0.01 * nn.functional.normalize(gradient, dim=1)
            change = (self.decode(mu - nudge) - y).flatten(1) / 0.01
            mu = mu - gradient / (2 * (change.square().sum(dim=1, keepdim=True) + 0.05))
        return mu.detach()

    def decode(self, z):
        """Les images que dessine le décodeur, de 0 à 1. (4 : sans cet élan, un trait discret, comme
        la couleur de la peau, passe parfois inaperçu au début, et aucun slider ne l'apprend.)"""
        return torch.sigmoid(4 * self.decoder(z) + self.mean)

    def forward(self, x):
        """(reconstruction, mu, logvar), avec z = mu + sigma·epsilon (article, éq. 10)."""
        mu, logvar = self.encode(x)
        z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
        return self.decode(z), mu, logvar


# %% Des images et des tenseurs
def find_images(folder):
    """Tous les fichiers sous `folder` (sous-dossiers compris) : (ceux de l'étudiant, ceux de
    `folder`/exemple), deux listes de Path triées. Ce qui n'est pas une image y est aussi."""
    exemple = Path(folder, "exemple")
    files = sorted(Path(root, name) for root, _, names in os.walk(folder) for name in names)
    return ([file for file in files if exemple not in file.parents],
            [file for file in files if exemple in file.parents])


@contextlib.contextmanager
def silence():
    """Fait taire les bibliothèques : libtiff écrit droit sur la sortie d'erreur (le fichier 2)."""
    try:
        stderr = os.dup(2)
    except OSError:                                   # il n'y en a pas (IDLE sous Windows)
        stderr = os.open(os.devnull, os.O_WRONLY)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def read_image(path, images_size):
    """Lit n'importe quelle image, à l'endroit (EXIF) : une PIL.Image en RVB, images_size de côté.

    Lève ValueError si `path` n'est pas une image entière ; son texte dit pourquoi."""
    if not os.path.isfile(path):
        raise ValueError("pas un fichier")            # un lien rompu, un périphérique...
    try:
        with silence(), Image.open(path) as image:
            image.draft("RGB", (2 * images_size, 2 * images_size))   # JPEG : décodage réduit
            image.load()                              # échoue si le fichier est abîmé
            with contextlib.suppress(Exception):      # EXIF abîmé : tant pis
                ImageOps.exif_transpose(image, in_place=True)
            return central_square(image, images_size)
    except UnidentifiedImageError as error:
        raise ValueError("pas une image, ou d'un format inconnu") from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ValueError("image trop grande") from error
    except Exception as error:
        raise ValueError("image abîmée, incomplète ou illisible") from error


def central_square(image, size):
    """Le carré central d'une PIL.Image de n'importe quel mode, en RVB, réduit à size×size."""
    if image.mode.startswith(("I", "F")):             # gris sur 16 ou 32 bits, ou flottants
        image = image.convert("F")
    elif image.has_transparency_data:                 # sur fond blanc
        transparent = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(transparent, mask=transparent)
    else:
        image = image.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    image = image.resize((size, size), Image.Resampling.BICUBIC,
                         box=(left, top, left + side, top + side), reducing_gap=2)
    if image.mode == "F":                             # du plus sombre au plus clair : 0 à 255
        values = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        values -= values.min()
        values *= 255 / (values.max() or 1)
        image = Image.fromarray(values.round().astype(np.uint8)).convert("RGB")
    return image


def image_to_tensor(image):
    """Une PIL.Image S×S -> un tenseur 3×S×S, de 0 à 1."""
    return functional.to_tensor(image)


def tensor_to_image(x):
    """Un tenseur 3×S×S, de 0 à 1 -> une PIL.Image S×S."""
    return functional.to_pil_image(x.detach().cpu().clamp(0, 1).mul(255).round().byte())


# %% Enregistrer et relire
@contextlib.contextmanager
def write_safely(path, pauses=(0.1, 0.5, 2)):
    """Ouvre un fichier à écrire qui ne prend le nom `path` qu'une fois complet : un arrêt ou un
    disque plein laisse l'ancien intact. Si un autre programme tient l'ancien (Windows), réessaie
    après chaque pause, en secondes. Lève OSError si l'écriture échoue."""
    aside = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        for pause in (*pauses, None):
            try:
                os.replace(aside, path)
                break
            except PermissionError:
                if pause is None:
                    raise
                time.sleep(pause)
    finally:
        aside.unlink(missing_ok=True)


def save_model(vae, path):
    """Enregistre les poids, la description du réseau et ses tailles dans un fichier, toujours
    entier."""
    content = io.BytesIO()
    torch.save({"kind": MODEL_KIND, "latent_size": vae.latent_size,
                "images_size": vae.images_size, "architecture": str(vae),
                "weights": vae.state_dict()}, content)
    with write_safely(path) as file:
        file.write(content.getvalue())


def load_model(path):
    """Relit un modèle : un VAE en mode eval, sur le processeur.

    Lève FileNotFoundError s'il n'y en a pas, ValueError (avec une phrase en français) si le
    fichier est abîmé ou n'est pas un modèle de ce kit. Aucun code du fichier n'est exécuté."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"Il n'y a pas encore de modèle « {path} ».")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():             # vérifie chaque octet, torch.load ne le fait pas
                raise ValueError("abîmé")
        saved = dict(torch.load(path, map_location="cpu", weights_only=True))
        vae = VAE(saved["latent_size"], saved["images_size"])
        vae.load_state_dict(saved["weights"])
        if (saved["kind"] != MODEL_KIND or saved["architecture"] != str(vae)    # couche changée
                or not all(weight.isfinite().all() for weight in saved["weights"].values())):
            raise ValueError("un autre réseau, ou des poids qui ne sont pas des nombres")
    except Exception as error:
        raise ValueError(f"« {path} » n'est pas un modèle de ce kit, ou il est abîmé, ou "
                         "model_VAE_64.py a changé depuis : relancez train_VAE.py.") from error
    return vae.eval()
