"""Le modèle : un Variational AutoEncoder (VAE) pour de petites images en couleur.

Ce fichier ne se lance pas : train_VAE.py et decode_VAE.py l'importent. On y trouve
- le réseau : Encoder (image -> mu, logvar), Decoder (z -> image), VAE (les deux ensemble) ;
- la lecture d'une image ;
- l'enregistrement et la lecture d'un modèle.

L'idée et les notations viennent de Kingma et Welling, « Auto-Encoding Variational Bayes »,
2013 (https://arxiv.org/abs/1312.6114).
"""
import contextlib
import functools
import io
import os
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn

torch.from_numpy(np.empty(0))    # échoue dès l'import si NumPy est trop récent pour ce PyTorch
warnings.filterwarnings("ignore", module="PIL")     # une image douteuse se lit sans commentaire


# %% Le réseau
# Entre les couches, SiLU : comme ReLU, mais un neurone éteint garde une pente et peut se rallumer.
class Encoder(nn.Sequential):
    """Compresse les images : N×3×S×S -> N×(2·latent_size), mu puis logvar. À 64×64, il a dix fois
    moins de poids que le décodeur : résumer est plus facile que dessiner."""

    def __init__(self, latent_size, images_size):
        side = images_size // 16
        super().__init__(            # (canaux avant, après, côté de la fenêtre) ; pour S = 64
            nn.Conv2d(3, 24, 4, stride=4), nn.SiLU(),                         # 24 × 16 × 16
            nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.SiLU(),             # 48 × 8 × 8
            nn.Conv2d(48, 96, 3, stride=2, padding=1), nn.SiLU(),             # 96 × 4 × 4
            nn.Flatten(),                                                     # 96·4·4
            nn.Linear(96 * side ** 2, 2 * latent_size))                       # 2·latent_size


class Decoder(nn.Sequential):
    """Le chemin inverse : N×latent_size -> N×3×S×S, ce que VAE.decode ajoute à l'image moyenne."""

    def __init__(self, latent_size, images_size):
        side = images_size // 16
        super().__init__(                                                     # pour S = 64
            nn.Linear(latent_size, 256), nn.SiLU(),                           # 256
            nn.Linear(256, 128 * side ** 2), nn.SiLU(),                       # 128·4·4
            nn.Unflatten(1, (128, side, side)),                               # 128 × 4 × 4
            nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1), nn.SiLU(),   # 64 × 8 × 8
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1), nn.SiLU(),    # 32 × 16 × 16
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1), nn.SiLU(),    # 16 × 32 × 32
            nn.ConvTranspose2d(16, 3, 4, stride=2, padding=1))                # 3 × 64 × 64


class VAE(nn.Module):
    """Encoder et Decoder, reliés par z : quelques nombres, tirés au hasard autour de mu, le résumé
    que fait l'encodeur.

    x : N×3×S×S, RVB, flottants de 0 à 1 (S = images_size) ; z, mu, logvar : N×latent_size.
    Lève ValueError si ces tailles ne sont pas de celles que le kit accepte."""

    def __init__(self, latent_size=4, images_size=64):
        if latent_size not in range(1, 257) or images_size not in range(16, 513, 16):
            raise ValueError(f"latent_size = {latent_size}, images_size = {images_size} : il faut "
                             "de 1 à 256 nombres, et un côté multiple de 16, de 16 à 512.")
        super().__init__()
        self.latent_size, self.images_size = latent_size, images_size
        self.encoder = Encoder(latent_size, images_size)
        self.decoder = Decoder(latent_size, images_size)
        self.mean = nn.Parameter(torch.zeros(3, images_size, images_size))   # logit(image moyenne)
        self.register_buffer("contrast", torch.tensor(1.0))       # enregistré, mais pas appris

    @torch.no_grad()
    def start_from(self, mean, contrast):
        """Part de l'image moyenne (3×S×S, de 0 à 1) et du contraste, l'écart type des images autour
        d'elle. Il ne reste à apprendre que ce qui distingue les images de leur moyenne : quand
        elles sont peu nombreuses, le réseau n'aurait pas le temps d'apprendre les deux."""
        self.mean.copy_(torch.logit(mean, eps=0.02))     # la sigmoïde à l'envers, de 0,02 à 0,98
        self.contrast.fill_(contrast)

    def encode(self, x):
        """La loi normale de z sachant x : (mu, logvar), moyenne et logarithme de la variance."""
        mean = torch.sigmoid(self.mean.detach())    # detach : l'encodeur ne la corrige pas
        return self.encoder((x - mean) / self.contrast).chunk(2, dim=1)         # coupé en deux

    def decode(self, z):
        """Les images que dessine le décodeur, de 0 à 1. Le 4 l'accélère : sans lui, un trait
        discret (la couleur de la peau) n'est parfois appris par aucun nombre de z."""
        return torch.sigmoid(4 * self.decoder(z) + self.mean)

    def forward(self, x):
        """(reconstruction, mu, logvar), avec z = mu + sigma·epsilon (article, éq. 10). Ce hasard
        apprend au décodeur à donner à des z voisins des images voisines."""
        mu, logvar = self.encode(x)
        z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
        return self.decode(z), mu, logvar


# %% Lire des images
EXEMPLE = Path(__file__).resolve().parent / "images" / "exemple"      # les images de départ


def find_images(folder):
    """Les fichiers du dossier et de ses sous-dossiers, ceux de l'étudiant ou, s'il n'y en a pas
    encore, les images de départ : une liste de Path, triée. Ce qui n'est pas une image y est aussi,
    sauf les fichiers cachés et ceux que le système ou les scripts y laissent d'eux-mêmes."""
    def unreadable(error):
        print(f"Dossier laissé de côté, il ne s'ouvre pas : {error.filename}")

    own, exemple, seen = [], [], set()
    for root, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = Path(root).resolve()
        if real in seen:             # déjà vu : un lien y ramène
            folders.clear()          # ne pas y redescendre
            continue
        seen.add(real)
        files = [Path(root, name) for name in names
                 if not name.startswith((".", "train_VAE", "decode_VAE"))
                 and name.lower() not in ("thumbs.db", "desktop.ini")]
        (exemple if real == EXEMPLE else own).extend(files)
    return sorted(own or exemple)


def read_image(path, images_size):
    """Lit une image, à l'endroit (EXIF), sur fond blanc si elle est transparente : le carré du
    milieu, réduit à images_size, une PIL.Image en RVB.

    Lève ValueError si ce n'est pas une image entière ; son texte dit pourquoi."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * images_size, 2 * images_size))   # un grand JPEG, lu plus vite
            image.load()                                             # échoue s'il est abîmé
            with contextlib.suppress(Exception):                     # EXIF abîmé : tant pis
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith(("I", "F")):    # gris de la science : 16, 32 bits, flottants
                low, high = grey_range(Path(path).parent)
                grey = np.nan_to_num((np.asarray(image, float) - low) / (high - low) * 255)
                image = Image.fromarray(grey.clip(0, 255).round().astype(np.uint8))
            image = ImageOps.fit(image.convert("RGBA"), (images_size, images_size))
    except UnidentifiedImageError as error:
        raise ValueError("pas une image, ou d'un format inconnu") from error
    except Exception as error:
        raise ValueError("image abîmée, incomplète ou trop grande") from error
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


@functools.cache
def grey_range(folder):
    """Le noir et le blanc des gris de ce dossier, (low, high), les mêmes pour toutes ses images (et
    calculés une seule fois : cache). Un fichier de 16 bits peut n'en employer que 12 sans le dire :
    le blanc est la plus petite des valeurs usuelles, 1, 255, 4095 ou 65535, qu'aucun gris ne
    dépasse."""
    low, high = 0, 1
    for path in folder.iterdir():
        with contextlib.suppress(Exception), Image.open(path) as image:   # abîmée : ignorée
            if image.mode.startswith(("I", "F")):
                grey = np.asarray(image, float)
                grey = grey[np.isfinite(grey)]
                low, high = min(low, grey.min()), max(high, grey.max())
    return low, min((white for white in (1, 255, 4095, 65535) if high <= white), default=high)


# %% Enregistrer et relire
def patiently(action, *args):
    """Appelle action(*args). Sous Windows, un antivirus bloque parfois un fichier tout neuf :
    retente pendant trois secondes."""
    for _ in range(30):
        try:
            return action(*args)
        except PermissionError:
            time.sleep(0.1)
    return action(*args)


def save_model(vae, path):
    """Enregistre les poids, les tailles et la description du réseau. Le fichier ne prend son nom
    qu'une fois entier : un arrêt ou un disque plein laisse l'ancien intact. Lève OSError."""
    content, beside = io.BytesIO(), Path(f"{path}.tmp")
    torch.save({"latent_size": vae.latent_size, "images_size": vae.images_size,
                "architecture": str(vae), "weights": vae.state_dict()}, content)
    try:
        beside.write_bytes(content.getvalue())
        patiently(os.replace, beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load_model(path):
    """Relit un modèle : un VAE en mode eval, sur le processeur. Aucun code du fichier ne s'exécute.

    Lève FileNotFoundError s'il n'y en a pas, ValueError si ce n'est pas un modèle de ce kit ; leur
    texte est une phrase."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"Il n'y a pas de modèle « {path} » : lancez d'abord train_VAE.py.")
    try:
        with patiently(zipfile.ZipFile, path) as archive:
            program = "constants.pkl" in str(archive.namelist())     # du code (TorchScript)
            size = sum(member.file_size for member in archive.infolist())
            inflated = size > os.path.getsize(path)                  # compressé : trop de mémoire
            if program or inflated or archive.testzip():             # testzip : abîmé
                raise ValueError                                     # que reprend le except
        saved = dict(torch.load(path, map_location="cpu", weights_only=True))
        vae = VAE(saved["latent_size"], saved["images_size"])
        vae.load_state_dict(saved["weights"])
        if saved["architecture"] != str(vae) or not all(
                weight.isfinite().all() for weight in vae.state_dict().values()):
            raise ValueError
    except Exception as error:
        raise ValueError(f"« {path} » n'est pas un modèle de ce kit, ou il est abîmé, ou "
                         "model_VAE_64.py a changé depuis : relancez train_VAE.py.") from error
    return vae.eval()


if __name__ == "__main__":
    print("Ce fichier ne se lance pas : lancez train_VAE.py, puis decode_VAE.py.")
