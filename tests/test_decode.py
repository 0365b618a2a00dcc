"""decode_VAE.py : la vraie fenêtre, à la souris et au clavier, sur un écran virtuel."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import Screen, edit_zone, execute, wait_until, write_film
from model_VAE_64 import VAE, find_images, read_image, save_model
from PIL import Image
from torchvision.transforms.functional import to_pil_image, to_tensor

# Lance un script et écrit sans cesse dans un fichier ce que contient sa fenêtre : combien de grandes
# images ont été dessinées, si elle reste devant les autres, et ses widgets.
SPY = """
import json, os, runpy, sys, time, tkinter
from PIL import ImageTk
script, out, drawn = sys.argv[1], sys.argv[2], 0
photo, mainloop = ImageTk.PhotoImage, tkinter.Misc.mainloop
exec(os.environ["PREPARE"])

def count(image, **options):
    global drawn
    drawn += image.height > 150
    return photo(image, **options)

def widgets(parent):
    for widget in parent.winfo_children():
        it = {"kind": widget.winfo_class(), "x": widget.winfo_rootx(), "y": widget.winfo_rooty(), "w": widget.winfo_width(),
              "h": widget.winfo_height(), "asked": [widget.winfo_reqwidth(), widget.winfo_reqheight()]}
        it |= {key: str(widget.cget(key)) for key in ("text", "foreground", "image") if key in widget.keys()}
        if it.get("image"):
            it["size"] = [int(widget.tk.call("image", what, widget["image"])) for what in ("width", "height")]
        yield it | ({"value": widget.get()} if it["kind"] == "TScale" else {})
        yield from widgets(widget)

def spy(window):
    window.after(25, spy, window)
    if not os.path.exists(out) and not window.focus_get():      # pas avant d'avoir le clavier
        return
    with open(out + ".part", "w") as file:
        json.dump([drawn, window.attributes("-topmost"), *widgets(window)], file)
    os.replace(out + ".part", out)

ImageTk.PhotoImage = count
tkinter.Misc.mainloop = lambda window, n=0: (spy(window), mainloop(window, n))
runpy.run_path(script, run_name="__main__")
"""

# Une caméra qui s'ouvre quand le test le veut, donne une seconde d'images, puis ne répond plus
CAMERA = """
import cv2, numpy as np
from unittest.mock import Mock

def frames():
    for number in range(40):
        time.sleep(1 / 30)
        yield True, np.full((48, 64, 3), number, np.uint8)
    while not os.path.exists(script + ".fin"):
        time.sleep(0.05)
    while True:
        yield False, None

def open_camera(source):
    while not os.path.exists(script + ".ouverte"):
        time.sleep(0.05)
    return Mock(read=Mock(side_effect=frames()), release=lambda: open(script + ".fermée", "w").close())
cv2.VideoCapture = open_camera
"""
GAP = torch.ones(3, 64, 4)     # entre l'original et l'image dessinée


def strong_vae(latent_size=4, images_size=64):
    """Un VAE non entraîné : chaque nombre se voit, sauf z2, et l'encodeur sort des sliders."""
    torch.manual_seed(1)
    vae = VAE(latent_size, images_size).eval().requires_grad_(False)
    for weights in vae.decoder.parameters():
        weights *= 4
    vae.encoder[-1].weight *= 50
    for weights in vae.linear.parameters():
        weights *= 0
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
        self.screen.xdotool("windowactivate", "--sync", self.screen.window("decode_VAE"))
        wait_until(self.out.exists)
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
        return [widget for widget in json.loads(self.out.read_text())[2:] if widget["kind"] == kind]

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
        """Ces images (3×S×S), côte à côte, sont à l'écran, au milieu du label (ou en haut d'une bande)."""
        label = label or self.view()
        width, height = label["size"]
        left = label["x"] + (label["w"] - width) // 2
        top = label["y"] + ((label["h"] - height) // 2 if height > 100 else 0)
        seen = self.screen.picture((left, top, left + width, top + height))
        wanted = to_pil_image(torch.cat(list(images), dim=2)).resize((width, height))
        return np.abs(np.asarray(seen, float) - wanted).mean() < limit

    def key(self, *keys):
        self.screen.xdotool("key", "--delay", "30", *keys)

    def hold(self, key):
        self.screen.xdotool("keydown", key, "sleep", 1.2, "keyup", key)

    def resize(self, width, height):
        self.screen.xdotool("windowsize", self.screen.window("decode_VAE"), width, height)
        self.calm()

    def strips(self):
        return [label for label in self.seen("TLabel") if label["size"][1] < 100]

    def fits(self, width, height):
        """Tout est entier, entre ces bornes ; la ligne de messages aussi."""
        for kind in "TScale", "TLabelframe", "TButton", "Label":
            for widget in self.seen(kind):
                assert 0 <= widget["x"] and widget["x"] + widget["w"] <= width, widget
                assert 0 <= widget["y"] and widget["y"] + widget["h"] <= height, widget
                assert kind not in ("TButton", "Label") or widget["asked"] <= [widget["w"], widget["h"]], widget
        return len(self.seen("TButton")) == 5

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
    assert [strip["text"] for strip in fenetre.strips()] == ["", "inactif", "", ""]
    images = fenetre.decode(*[[number, 0, 0, 0] for number in range(-3, 4)])
    assert fenetre.shows(images, fenetre.strips()[0], 8)
    assert not fenetre.shows(images.flip(0), fenetre.strips()[0], 20)
    scale, before = fenetre.seen("TScale")[2], fenetre.drawn()
    x, y = scale["x"] + scale["w"] // 2, scale["y"] + scale["h"] // 2
    moves = [word for move in range(300) for word in ("mousemove", x + move % 100, y)]
    fenetre.screen.xdotool("mousemove", x, y, "mousedown", 1, *moves, "mousemove", x + 120, y, "mouseup", 1)
    fenetre.calm()
    z = fenetre.numbers()
    assert z[2] == pytest.approx(120 / (scale["w"] - 30) * 6, abs=0.1) and z[:2] + z[3:] == [0, 0, 0]
    assert fenetre.shows(fenetre.decode(z))
    assert 1 <= fenetre.drawn() - before < 290, "les événements d'une rafale ne sont pas réunis"
    fenetre.key("End")
    wait_until(lambda: fenetre.numbers()[2] == 3)
    fenetre.calm()
    moved = fenetre.decode(*[[number, 0, 3, 0] for number in range(-3, 4)])
    assert fenetre.shows(moved, fenetre.strips()[0], 8)
    assert not fenetre.shows(images, fenetre.strips()[0], 12), "la bande ignore les autres sliders"
    scale = fenetre.seen("TScale")[0]
    fenetre.click(scale, x=scale["w"] - 60)                # un clic à côté du curseur
    wait_until(lambda: fenetre.numbers()[0] > 1.8)
    value = fenetre.numbers()[0]
    fenetre.key("Left", "Left", "Down", "Right")
    wait_until(lambda: fenetre.numbers()[0] == pytest.approx(value - 0.2))
    fenetre.key("Up")
    wait_until(lambda: fenetre.numbers()[0] == pytest.approx(value - 0.1))
    titles = [f"z{k} = {number:+.2f}" for k, number in enumerate(fenetre.numbers(), 1)]
    assert [frame["text"] for frame in fenetre.seen("TLabelframe")] == titles
    fenetre.key("Tab", "End", "Right")
    wait_until(lambda: fenetre.numbers()[1] == 3)
    fenetre.click(scale, x=150, times=2)                   # un double clic
    wait_until(lambda: fenetre.numbers()[0] == 0)
    assert not json.loads(fenetre.out.read_text())[1], "la fenêtre reste devant les autres"


def test_it_glides(fenetre):
    """Au hasard (même en majuscules), tout à zéro : un chemin que l'œil suit ; un geste le prend en main."""
    for keys, moved in [(["h"], True), (["z"], False), (["Caps_Lock", "h", "Caps_Lock"], True)]:
        before = fenetre.drawn()
        fenetre.key(*keys)
        wait_until(lambda: any(fenetre.numbers()) == moved)
        fenetre.calm()
        assert fenetre.drawn() - before >= 5, "sur une machine libre, vingt"
        assert fenetre.shows(fenetre.decode(fenetre.numbers()))
        assert max(map(abs, fenetre.numbers())) < 4.5, "ce hasard n'est pas celui de z"
    fenetre.click(fenetre.seen("TButton")[1])
    fenetre.click(fenetre.seen("TScale")[3], x=60)
    fenetre.calm()
    assert fenetre.numbers()[3] < -1.5, "une main sur un slider l'emporte"


def test_real_images_and_challenge(fenetre):
    """L'original à gauche, à droite ce que le modèle en dessine ; le défi, ses erreurs, ce qu'on enregistre."""
    def press_for_image(number, presses):
        """« Image réelle », pressé tant de fois de suite, mène à cette image ; rend l'original."""
        original = to_tensor(read_image(find_images(fenetre.folder / "images")[number], 64))
        mu = fenetre.vae.encode(original[None])[0][0].tolist()
        assert max(map(abs, mu)) > 3, "le test veut un nombre hors du slider"
        fenetre.key(*["i"] * presses)
        wait_until(lambda: fenetre.numbers() == pytest.approx(mu, abs=1e-3))
        fenetre.calm()
        check([original, *fenetre.decode(mu, mu)], "Défi : « Tout à zéro », puis")
        return original, *fenetre.decode(mu)

    def check(images, advice):
        original, drawn, best = images
        assert fenetre.shows([original, GAP, drawn]) and fenetre.view()["size"][1] >= 384
        errors = [(image - original).square().sum().item() for image in (drawn, best)]
        assert fenetre.errors() == pytest.approx(errors, rel=1e-3)
        fenetre.says(advice)

    original, best = press_for_image(0, 1)
    fenetre.click(fenetre.seen("TButton")[0])
    wait_until(lambda: not any(fenetre.numbers()))
    fenetre.calm()
    check([original, *fenetre.decode([0, 0, 0, 0]), best], "Bravo")
    fenetre.key("End")
    wait_until(lambda: fenetre.numbers()[0] == 3)
    fenetre.calm()
    drawn, = fenetre.decode([3, 0, 0, 0])
    check([original, drawn, best], "Défi : retrouvez l'original")
    fenetre.key("e")
    fenetre.says("Image enregistrée")
    path, = fenetre.folder.glob("decode_VAE_*_+3.00_+0.00_+0.00_+0.00.png")
    assert np.abs(np.asarray(Image.open(path), float) - to_pil_image(drawn).resize((512, 512))).mean() < 2
    press_for_image(5, 5)                                  # cinq appuis rapides
    fenetre.key("h")
    fenetre.says("Tirez un slider")
    fenetre.calm()
    assert fenetre.shows(fenetre.decode(fenetre.numbers())) and not fenetre.errors()


def test_own_images_none_and_no_opencv(folder, screen):
    """Les images de l'étudiant d'abord, en boucle, sans les illisibles ; aucune, ou pas d'OpenCV : un message."""
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
        assert fenetre.says("Il manque OpenCV") != "black"


def test_saving(fenetre):
    """Chaque fois un nom nouveau ; une touche maintenue n'écrit qu'un fichier ; disque plein : un message."""
    def saved():
        return sorted(fenetre.folder.glob("decode_VAE_*.png"))
    fenetre.hold("e")
    assert fenetre.says("Image enregistrée") == "black" and len(saved()) == 1
    fenetre.key("e")
    wait_until(lambda: len(saved()) == 2)
    resource, buttons = pytest.importorskip("resource"), fenetre.seen("TButton")      # pas sous Windows
    resource.prlimit(fenetre.process.pid, resource.RLIMIT_FSIZE, (30000, -1))
    time.sleep(1)
    fenetre.key("e")
    assert fenetre.says("Impossible d'écrire") != "black" and fenetre.seen("TButton") == buttons
    assert len(saved()) == 2
    resource.prlimit(fenetre.process.pid, resource.RLIMIT_FSIZE, (-1, -1))
    fenetre.key("e")
    wait_until(lambda: len(saved()) == 3)
    fenetre.says(saved()[2].name)


def test_webcam(folder, screen):
    """Un film, à sa vitesse, en miroir ; w, même maintenue, l'ouvre ou le ferme, un slider l'arrête."""
    pictures = np.zeros((120, 120, 160, 3), np.uint8)      # 12 s
    pictures[:, :, :80, 2] = 255                           # rouge à gauche, à droite bleu, puis vert
    pictures[:60, :, 80:, 0] = pictures[60:, :, 80:, 1] = 255
    with Fenetre(folder, screen, camera="film.avi") as fenetre:
        fenetre.key("i", "z")
        fenetre.says("Erreur")
        fenetre.calm()
        fenetre.key("w")
        assert fenetre.says("camera = 'film.avi'") != "black"
        original = to_tensor(read_image(find_images(folder / "images")[0], 64))
        assert fenetre.shows([original, GAP, *fenetre.decode([0, 0, 0, 0])]), "le défi est perdu"
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
        wait_until(lambda: not opened(), 4)        # bien avant la fin du film
        fenetre.says("Défi")
        fenetre.key("w")                                   # et de nouveau, jusqu'à la fin
        start = time.monotonic()
        assert fenetre.says("Fin du film.") == "black" and 10 < time.monotonic() - start < 25
        write_film(folder / "film.avi", pictures, fps=1000)            # une vitesse invraisemblable
        fenetre.key("w")
        fenetre.says("Touche w")
        start = time.monotonic()
        fenetre.says("Fin du film.")
        assert time.monotonic() - start > 2.5
        write_film(folder / "film.avi", pictures, fps=10)
        fenetre.key("w")
        fenetre.says("Touche w")
        fenetre.hold("w")                                  # arrêtée, elle laisse son image
        wait_until(lambda: not opened(), 4)        # bien avant la fin du film
        fenetre.calm()
        assert fenetre.shows([original, GAP, *fenetre.decode(fenetre.numbers())], limit=8)
        fenetre.key("w")
        wait_until(opened)
        fenetre.key("alt+F4")                              # fermée pendant la webcam
        fenetre.assert_ends()


def test_silent_camera(folder, screen):
    """La caméra s'ouvre : la fenêtre répond ; son silence est dit, et de nouveau ; Ctrl-C ferme la fenêtre."""
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
        assert fenetre.says("n'envoie plus d'image") != "black" and fenetre.drawn() > drawn + 20
        fenetre.key("w")
        fenetre.says("Ouverture")
        assert fenetre.says("ne s'ouvre pas") != "black"
        (folder / "decode_VAE.py.fin").touch()
        wait_until((folder / "decode_VAE.py.fermée").exists)
        fenetre.process.send_signal(signal.SIGINT)
        fenetre.assert_ends()


@pytest.mark.parametrize("latent_size, images_size, size", [
    (1, 128, "1366x768"), (32, 64, "1366x768"), (16, 32, "1024x600"), (4, 64, "2732x768")])
def test_everything_fits(folder, latent_size, images_size, size, request):
    """De 1 à 32 sliders, les boutons et les messages tiennent à l'écran, au premier de deux, et à moitié."""
    request.getfixturevalue("screen")                      # ou le test est passé
    width, height = map(int, size.split("x"))
    with closing(Screen(size)) as screen, Fenetre(folder, screen, strong_vae(latent_size, images_size)) as fenetre:
        fenetre.key("i")
        fenetre.says("Défi : « Tout")
        fenetre.calm()
        assert fenetre.fits(min(width, 1366), height - 40) and fenetre.view()["size"][1] >= 0.48 * height
        fenetre.click(fenetre.seen("TScale")[-1], x=20)
        wait_until(lambda: fenetre.numbers()[-1] < -1)
        fenetre.resize(683, height - 100)
        assert fenetre.fits(700, height) and 300 < fenetre.view()["size"][0] <= fenetre.view()["w"] < 600


@pytest.mark.parametrize("zone, words", [
    ({"latent_size": 8}, ["latent_size = 8", "latent_size = 4", "zone ***"]),
    ({"images_size": "64"}, ["images_size = '64'", "images_size = 64", "train_VAE.py"]),
    ({"images_size": 64.0}, ["images_size = 64.0"]), ({"latent_size": True}, ["latent_size = True"]),
    ({"camera": None}, ["camera = None"]),
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
    assert done.code == 1 and done.out.count("\n") <= 6, done.out
    assert all(word in done.out for word in words), done.out
