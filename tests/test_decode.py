"""decode_VAE.py : la vraie fenêtre, à la souris et au clavier, sur un écran virtuel."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import edit_zone, execute, wait_until, write_film
from model_VAE_64 import VAE, find_images, read_image, save_model
from PIL import Image
from torchvision.transforms.functional import to_pil_image, to_tensor

# Lance un script, arrêté (en vain) pendant que sa fenêtre se construit ; écrit sans cesse dans un
# fichier ce qu'elle contient : combien de grandes images ont été dessinées, et ses widgets.
SPY = """
import json, os, runpy, signal, sys, time, tkinter
from PIL import ImageTk
script, out, drawn = sys.argv[1], sys.argv[2], 0
photo, title, mainloop = ImageTk.PhotoImage, tkinter.Wm.title, tkinter.Misc.mainloop
exec(os.environ["PREPARE"])

def count(image, **options):
    global drawn
    drawn += image.height > 150
    return photo(image, **options)

def widgets(parent):
    for widget in parent.winfo_children():
        it = {"kind": widget.winfo_class(), "x": widget.winfo_rootx(), "y": widget.winfo_rooty(),
              "w": widget.winfo_width(), "h": widget.winfo_height(), "asked": widget.winfo_reqwidth()}
        it |= {key: str(widget.cget(key)) for key in ("text", "foreground", "image") if key in widget.keys()}
        if it.get("image"):
            it["size"] = [int(widget.tk.call("image", what, widget["image"])) for what in ("width", "height")]
        yield it | ({"value": widget.get()} if it["kind"] == "TScale" else {})
        yield from widgets(widget)

def spy(window):
    window.after(25, spy, window)
    with open(out + ".part", "w") as file:
        json.dump([drawn, *widgets(window)], file)
    os.replace(out + ".part", out)

ImageTk.PhotoImage = count
tkinter.Wm.title = lambda *words: (signal.raise_signal(signal.SIGINT), title(*words))
tkinter.Misc.mainloop = lambda window, n=0: (spy(window), mainloop(window, n))
runpy.run_path(script, run_name="__main__")
"""

# Une caméra qui s'ouvre quand le test le veut, dont des images sont étranges, puis qui se tait
CAMERA = """
import cv2, numpy as np
from unittest.mock import Mock

def frames():
    for number in range(40):
        image = np.full((48, 64, 3), number, np.uint8)
        yield from [(True, image), (True, image[:, :, 0]), (True, image[:0]), (True, None), cv2.error("odd")]
        time.sleep(1 / 30)
    while True:
        yield False, None

def open_camera(source):
    while not os.path.exists(script + ".ouverte"):
        time.sleep(0.05)
    return Mock(read=Mock(side_effect=frames()))
cv2.VideoCapture = open_camera
"""
GAP = torch.ones(3, 64, 4)     # entre l'original et l'image dessinée


def strong_vae(latent_size=4, images_size=64):
    """Un VAE non entraîné : chaque nombre se voit, sauf z2, et l'encodeur sort des sliders."""
    torch.manual_seed(1)
    vae = VAE(latent_size, images_size).eval().requires_grad_(False)
    for weights in vae.decoder.parameters():
        weights *= 4
    vae.encoder[-1].weight *= 1000
    vae.contrast.fill_(0.14)
    if latent_size > 1:
        vae.decoder[0].weight[:, 1] = 0
    return vae


class Fenetre:
    """decode_VAE.py dans un autre processus : ce qu'on y voit, la souris, le clavier."""

    def __init__(self, folder, screen, vae=None, prepare="", **zone):
        self.folder, self.screen, self.vae = folder, screen, vae or strong_vae()
        save_model(self.vae, folder / "model_VAE_64.pt")
        edit_zone(folder / "decode_VAE.py", latent_size=self.vae.latent_size,
                  images_size=self.vae.images_size, **zone)
        self.out = folder.parent / "widgets.json"
        self.process = subprocess.Popen(
            [sys.executable, "-c", SPY, str(folder / "decode_VAE.py"), str(self.out)],
            env={**os.environ, **screen.env, "PYTHONIOENCODING": "utf-8", "PREPARE": prepare},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8")

    def __enter__(self):
        wait_until(lambda: self.out.exists() or self.process.poll() is not None, 90)
        self.calm()
        return self

    def __exit__(self, *_):
        self.process.kill()
        print(self.process.communicate()[0])

    def assert_ends(self):
        """Le script finit bien, et n'a écrit que ses trois lignes."""
        text = self.process.communicate(timeout=60)[0]
        assert self.process.returncode == 0 and text.count("\n") == 3, text
        assert "fermez-la avant de relancer" in text and "La fenêtre est fermée." in text

    def seen(self, kind):
        return [widget for widget in json.loads(self.out.read_text())[1:] if widget["kind"] == kind]

    def drawn(self):
        return json.loads(self.out.read_text())[0]

    def numbers(self):
        return [scale["value"] for scale in self.seen("TScale")]

    def view(self):
        return max(self.seen("TLabel"), key=lambda label: label["size"][1])

    def says(self, words):
        """Attend que la ligne de messages contienne ces mots ; rend sa couleur."""
        wait_until(lambda: words in self.seen("Label")[0]["text"])
        return self.seen("Label")[0]["foreground"]

    def errors(self):
        """Les deux erreurs que dit la ligne de messages."""
        return [float(number) for number in re.findall(r"\d+\.\d+", self.seen("Label")[0]["text"])]

    def calm(self):
        """Attend que plus rien ne change, petites images comprises."""
        def unchanged():
            before = self.out.read_text()
            time.sleep(0.5)
            return before == self.out.read_text()
        wait_until(unchanged)

    def decode(self, *codes):
        return self.vae.decode(torch.tensor(codes, dtype=torch.float32))

    def shows(self, images, label=None, limit=2):
        """Ces images (3×S×S), côte à côte, sont à l'écran, au milieu du label (la grande image)."""
        label = label or self.view()
        width, height = label["size"]
        left, top = label["x"] + (label["w"] - width) // 2, label["y"] + (label["h"] - height) // 2
        seen = self.screen.picture((left, top, left + width, top + height))
        wanted = to_pil_image(torch.cat(list(images), dim=2)).resize((width, height))
        return np.abs(np.asarray(seen, float) - wanted).mean() < limit

    def key(self, *keys):
        self.screen.xdotool("key", "--delay", "30", *keys)

    def hold(self, key):
        self.screen.xdotool("keydown", key, "sleep", 1.2, "keyup", key)

    def click(self, widget, x=None, times=1):
        x = widget["x"] + (widget["w"] // 2 if x is None else x)
        self.screen.xdotool("mousemove", x, widget["y"] + widget["h"] // 2,
                            "click", "--repeat", times, "--delay", 60, 1)


@pytest.fixture
def fenetre(folder, screen):
    with Fenetre(folder, screen) as fenetre:
        yield fenetre


def test_sliders_by_mouse_and_keys(fenetre):
    """L'image et, sous chaque slider, ce qu'il change (z2 : inactif) suivent souris et flèches."""
    assert fenetre.view()["size"] >= [384, 384] and fenetre.numbers() == [0, 0, 0, 0]
    assert fenetre.shows(fenetre.decode([0, 0, 0, 0]))
    assert not fenetre.shows(fenetre.decode([3, 0, 0, 0]), limit=6)
    strips = [label for label in fenetre.seen("TLabel") if label["size"][1] < 100]
    assert [strip["text"] for strip in strips] == ["", "inactif", "", ""]
    images = fenetre.decode(*[[number, 0, 0, 0] for number in range(-3, 4)])
    assert fenetre.shows(images, strips[0], 8) and not fenetre.shows(images.flip(0), strips[0], 20)
    scale, before = fenetre.seen("TScale")[2], fenetre.drawn()
    x, y = scale["x"] + scale["w"] // 2, scale["y"] + scale["h"] // 2
    moves = [word for move in range(300) for word in ("mousemove", x + move % 100, y)]
    fenetre.screen.xdotool("mousemove", x, y, "mousedown", 1, *moves, "mousemove", x + 120, y, "mouseup", 1)
    fenetre.calm()
    z = fenetre.numbers()
    assert z[2] == pytest.approx(120 / (scale["w"] - 30) * 6, abs=0.1) and z[:2] + z[3:] == [0, 0, 0]
    assert fenetre.shows(fenetre.decode(z))
    assert 1 <= fenetre.drawn() - before < 290, "les événements d'une rafale ne sont pas réunis"
    scale = fenetre.seen("TScale")[0]
    fenetre.click(scale, x=scale["w"] - 60)                # un clic à côté du curseur
    wait_until(lambda: fenetre.numbers()[0] > 1.8)
    value = fenetre.numbers()[0]
    fenetre.key("Left", "Left", "Down", "Right")
    wait_until(lambda: fenetre.numbers()[0] == pytest.approx(value - 0.2))
    fenetre.key("Tab", "End", "Right")
    wait_until(lambda: fenetre.numbers()[1] == 3)
    fenetre.click(scale, x=150, times=2)                   # un double clic
    wait_until(lambda: fenetre.numbers()[0] == 0)


def test_it_glides(fenetre):
    """Au hasard, tout à zéro : un chemin que l'œil suit ; un autre geste le prend en main."""
    for key in "h", "z":
        before = fenetre.drawn()
        fenetre.key(key)
        wait_until(lambda: any(fenetre.numbers()) == (key == "h"))
        fenetre.calm()
        assert fenetre.drawn() - before >= 5, "sur une machine libre, plus de vingt"
        assert fenetre.shows(fenetre.decode(fenetre.numbers()))
    fenetre.click(fenetre.seen("TButton")[1])
    wait_until(lambda: any(fenetre.numbers()))
    fenetre.click(fenetre.seen("TScale")[3], x=60)
    fenetre.calm()
    assert fenetre.numbers()[3] < -1.5, "une main sur un slider l'emporte"


def test_real_images_and_challenge(fenetre):
    """L'original à gauche, à droite ce que le modèle en dessine ; puis le défi et ses deux erreurs."""
    path = find_images(fenetre.folder / "images")[0]
    original = to_tensor(read_image(path, 64))
    mu = fenetre.vae.encode(original[None])[0][0].tolist()
    assert max(map(abs, mu)) > 3, "le test veut un nombre hors du slider"
    fenetre.click(fenetre.seen("TButton")[2])
    wait_until(lambda: fenetre.numbers() == pytest.approx(mu, abs=1e-3))
    fenetre.calm()
    drawn, blank = fenetre.decode(mu, [0, 0, 0, 0])
    best, mine = [(image - original).square().sum().item() for image in (drawn, blank)]
    assert fenetre.shows([original, GAP, drawn]) and fenetre.view()["size"][1] >= 384
    assert fenetre.errors() == pytest.approx([best, best], rel=1e-3)
    fenetre.key("z")
    wait_until(lambda: not any(fenetre.numbers()))
    fenetre.calm()
    assert fenetre.shows([original, GAP, blank])
    assert fenetre.errors() == pytest.approx([mine, best], rel=1e-3)
    fenetre.key("h")
    fenetre.says("Défi")                # la fenêtre dit que l'on peut y jouer
    fenetre.calm()
    assert fenetre.shows(fenetre.decode(fenetre.numbers())) and not fenetre.errors()


def test_own_images_none_and_no_opencv(folder, screen):
    """Les images de l'étudiant d'abord, en boucle, sans les illisibles ; aucune : un message."""
    images = folder / "images"
    (images / "sous").mkdir()
    Image.new("RGB", (90, 50), "red").save(images / "b_rouge.png")
    Image.new("RGB", (9, 90), "blue").save(images / "sous" / "bleu.jpg")
    (images / "a.png").write_bytes(b"pas une image")
    (folder / "cv2.py").write_text("raise ImportError('pour le test')", encoding="utf-8")
    with Fenetre(folder, screen) as fenetre:
        for color in (1, 0, 0), (0, 0, 1), (1, 0, 0):
            fenetre.key("i")
            fenetre.calm()
            original = torch.tensor(color).float()[:, None, None].expand(3, 64, 64)
            assert fenetre.shows([original, GAP, *fenetre.decode(fenetre.numbers())])
        (images / "b_rouge.png").unlink()
        (images / "sous" / "bleu.jpg").unlink()
        fenetre.key("i")
        assert fenetre.says("Aucune image lisible") != "black"
        fenetre.key("w")
        fenetre.says("Il manque OpenCV")


def test_saving(fenetre):
    """Un nom nouveau ; une touche maintenue n'écrit qu'un fichier ; disque plein : un message."""
    kept = fenetre.folder / "decode_VAE_001_+0.00_+0.00_+0.00_+0.00.png"
    kept.write_bytes(b"hier")
    fenetre.key("h")
    fenetre.calm()
    fenetre.hold("e")
    path = fenetre.folder / "_".join(["decode_VAE_002", *(f"{z:+.2f}" for z in fenetre.numbers())])
    assert fenetre.says(path.name + ".png") == "black" and kept.read_bytes() == b"hier"
    wanted = to_pil_image(fenetre.decode(fenetre.numbers())[0]).resize((512, 512))
    assert np.abs(np.asarray(Image.open(f"{path}.png"), float) - wanted).mean() < 2
    resource, buttons = pytest.importorskip("resource"), fenetre.seen("TButton")      # pas sous Windows
    limit = resource.RLIMIT_FSIZE
    resource.prlimit(fenetre.process.pid, limit, (30000, -1))
    fenetre.key("e")
    assert fenetre.says("Impossible d'écrire") != "black" and fenetre.seen("TButton") == buttons
    assert len(list(fenetre.folder.glob("decode_VAE_*.png"))) == 2
    resource.prlimit(fenetre.process.pid, limit, (-1, -1))
    fenetre.key("e")
    fenetre.says("decode_VAE_003")


def test_webcam(folder, screen):
    """Un film, à sa vitesse, en miroir ; w, même maintenue, l'ouvre ou le ferme, un slider l'arrête."""
    pictures = np.zeros((120, 120, 160, 3), np.uint8)      # 12 s
    pictures[:, :, :80, 2] = 255                           # rouge à gauche, à droite bleu, puis vert
    pictures[:60, :, 80:, 0] = pictures[60:, :, 80:, 1] = 255
    with Fenetre(folder, screen, camera="film.avi") as fenetre:
        fenetre.key("w")
        assert fenetre.says("camera = 'film.avi'") != "black"
        write_film(folder / "film.avi", pictures, fps=10)

        def opened():
            files = Path(f"/proc/{fenetre.process.pid}/fd").iterdir()
            return any("film.avi" in os.path.realpath(file) for file in files)
        fenetre.hold("w")
        fenetre.says("Touche w")
        first, original = fenetre.numbers(), torch.zeros(3, 64, 64)
        original[2, :, :32] = original[0, :, 32:] = 1
        assert opened() and fenetre.shows([original, GAP, *fenetre.decode(first)], limit=8)
        wait_until(lambda: fenetre.numbers() != pytest.approx(first, abs=0.5))      # seconde moitié
        fenetre.click(fenetre.seen("TScale")[0], x=60)
        wait_until(lambda: not opened())
        fenetre.says("Défi")
        fenetre.key("w")                                   # et de nouveau, jusqu'à la fin
        start = time.monotonic()
        assert fenetre.says("Fin du film.") == "black" and time.monotonic() - start > 10
        fenetre.key("w")
        wait_until(opened)
        fenetre.hold("w")
        wait_until(lambda: not opened())
        fenetre.key("w")
        wait_until(opened)
        fenetre.key("alt+F4")                              # fermée pendant la webcam
        fenetre.assert_ends()


def test_odd_camera(folder, screen):
    """La caméra s'ouvre : la fenêtre répond ; une image étrange est passée ; le silence ; Ctrl-C."""
    with Fenetre(folder, screen, prepare=CAMERA, camera=0) as fenetre:
        fenetre.key("w")
        fenetre.says("Ouverture")
        fenetre.key("w")
        fenetre.says("Tirez un slider")
        fenetre.key("w", "h")
        wait_until(lambda: any(fenetre.numbers()))
        fenetre.calm()
        fenetre.key("w")
        fenetre.says("Ouverture")
        drawn = fenetre.drawn()
        (folder / "decode_VAE.py.ouverte").touch()
        fenetre.says("Touche w")
        assert fenetre.says("n'envoie pas d'image") != "black" and fenetre.drawn() > drawn + 20
        fenetre.process.send_signal(signal.SIGINT)
        fenetre.assert_ends()


@pytest.mark.parametrize("latent_size, images_size", [(1, 128), (16, 32), (32, 64)])
def test_everything_fits(folder, screen, latent_size, images_size):
    """De 1 à 32 sliders, leurs petites images, les boutons et les messages tiennent en 1366×768."""
    with Fenetre(folder, screen, strong_vae(latent_size, images_size)) as fenetre:
        fenetre.key("i")
        fenetre.says("Défi : « Tout")
        fenetre.calm()
        for kind in "TScale", "TLabelframe", "TButton", "Label":
            for widget in fenetre.seen(kind):
                assert 0 <= widget["x"] and widget["x"] + widget["w"] <= 1366, widget
                assert 0 <= widget["y"] and widget["y"] + widget["h"] <= 768 - 40, widget
                assert widget["asked"] <= widget["w"], widget
        assert fenetre.view()["size"][1] >= 384
        fenetre.click(fenetre.seen("TScale")[-1], x=20)
        wait_until(lambda: fenetre.numbers()[-1] < -1)


@pytest.mark.parametrize("zone, words", [
    ({"latent_size": 8}, ["latent_size = 8", "latent_size = 4", "zone ***"]),
    ({"images_size": "64"}, ["images_size = '64'", "images_size = 64", "train_VAE.py"]),
    ({"model_file": "absent.pt"}, ["Il n'y a pas", "absent.pt"]), ({"model_file": "README"}, ["README"]),
    ({"model_file": "images"}, ["Il n'y a pas"]), ({}, ["depuis un bureau"]), (None, ["python3-tk"])])
def test_wrong_model_or_library(folder, monkeypatch, zone, words):
    """Un autre modèle que celui de la zone, absent, étranger ; pas d'écran ni de tkinter : une phrase."""
    save_model(VAE(4, 64), folder / "model_VAE_64.pt")
    (folder / "README").write_text("bonjour")
    edit_zone(folder / "decode_VAE.py", **(zone or {}))
    monkeypatch.setenv("DISPLAY", "")
    if zone is None:
        monkeypatch.setitem(sys.modules, "tkinter", None)       # elle manque
    done = execute(folder / "decode_VAE.py")
    assert done.code == 1 and done.out.count("\n") == 2, done.out
    assert all(word in done.out for word in words), done.out
