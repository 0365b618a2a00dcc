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
from kit import Screen, copy_kit, edit_zone, execute, wait_until, write_film
from model_VAE_64 import VAE, find_images, read_image, save_model
from PIL import Image
from torchvision.transforms.functional import to_pil_image, to_tensor

# Lance un script et écrit sans cesse dans un fichier ce que contient sa fenêtre, si elle reste devant les
# autres, et combien de fois elle a été regardée : en tout, et avant le dernier changement.
SPY = """
import json, os, runpy, sys, tkinter
script, out = sys.argv[1:]
mainloop, before, looks, changed = tkinter.Misc.mainloop, None, 0, 0

def widgets(parent):
    for widget in parent.winfo_children():
        seen = {"kind": widget.winfo_class(), "x": widget.winfo_rootx(), "y": widget.winfo_rooty(),
                "w": widget.winfo_width(), "h": widget.winfo_height(),
                "asked": [widget.winfo_reqwidth(), widget.winfo_reqheight()]}
        seen |= {key: str(widget.cget(key)) for key in ("text", "foreground") if key in widget.keys()}
        if seen["kind"] == "TLabel" and widget.cget("image"):
            seen["image"] = widget.cget("image")[0]             # pyimage1, puis pyimage2...
            seen["size"] = [widget.tk.call("image", side, seen["image"]) for side in ("width", "height")]
        if seen["kind"] == "TScale":
            seen["value"] = widget.get()
        yield seen
        yield from widgets(widget)

def spy(window):
    global before, looks, changed
    window.after(25, spy, window)
    if looks or window.focus_get():                             # pas avant d'avoir le clavier
        seen = {"topmost": window.attributes("-topmost"), "widgets": [*widgets(window)]}
        looks += 1
        if seen != before:
            before, changed = seen, looks
        with open(out + ".part", "w") as file:
            json.dump({"looks": looks, "changed": changed, **seen}, file)
        os.replace(out + ".part", out)

tkinter.Misc.mainloop = lambda window, n=0: (spy(window), mainloop(window, n))
runpy.run_path(script, run_name="__main__")
"""

# Un faux OpenCV : des fichiers disent si sa caméra est ouverte, muette, fermée
CAMERA = """
import time
from pathlib import Path
from unittest.mock import Mock
import numpy as np
here = Path(__file__).parent
CAP_PROP_FPS = 5

def read():
    time.sleep(1 / 30)
    return not (here / "muette").exists(), np.zeros((48, 64, 3), np.uint8)

def VideoCapture(source):
    while not (here / "ouverte").exists():
        time.sleep(0.05)
    return Mock(read=read, get=lambda what: 0, release=(here / "fermée").touch)
"""


def strong_vae(latent_size=4, images_size=64):
    """Un VAE non entraîné : chaque nombre se voit, z4 à peine, z2 pas ; l'encodeur sort des sliders."""
    torch.manual_seed(5)
    vae = VAE(latent_size, images_size).eval().requires_grad_(False)
    for weights in vae.decoder.parameters():
        weights *= 4
    vae.start_from(torch.full((1, 3, images_size, images_size), 0.5))
    vae.contrast.fill_(0.02)
    vae.encoder[-1].weight *= 12
    vae.decoder[0].weight[:, 1:2] *= 0.0005
    vae.decoder[0].weight[:, 3:4] *= 0.004
    return vae


class Fenetre:
    """decode_VAE.py dans un autre processus : ce qu'on y voit, la souris, le clavier."""

    def __init__(self, folder, screen, latent_size=4, images_size=64, **zone):
        self.folder, self.screen = folder, screen
        self.vae = strong_vae(latent_size, images_size)
        save_model(self.vae, folder / "model_VAE_64.pt")
        edit_zone(folder / "decode_VAE.py", latent_size=latent_size, images_size=images_size, **zone)
        self.out = folder.parent / "widgets.json"
        self.process = subprocess.Popen(
            [sys.executable, "-c", SPY, folder / "decode_VAE.py", self.out],
            env={**os.environ, **screen.env, "PYTHONIOENCODING": "utf-8"}, encoding="utf-8",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

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

    def state(self):
        return json.loads(self.out.read_text())

    def seen(self, kind):
        return [widget for widget in self.state()["widgets"] if widget["kind"] == kind]

    def numbers(self):
        return [scale["value"] for scale in self.seen("TScale")]

    def says(self, words):
        """Attend que la ligne de messages contienne ces mots ; rend sa couleur."""
        wait_until(lambda: words in self.seen("Label")[0]["text"])
        return self.seen("Label")[0]["foreground"]

    def calm(self):
        """Attend que plus rien ne change pendant vingt regards, une demi-seconde au moins."""
        start = self.state()["looks"]
        wait_until(lambda: self.state()["looks"] > max(start, self.state()["changed"]) + 20)

    def drawn(self):
        """Le numéro de l'image que montre la fenêtre, en comptant toutes celles qu'elle a dessinées."""
        return int(self.seen("TLabel")[0]["image"].removeprefix("pyimage"))

    def decode(self, *codes):
        return self.vae.decode(torch.tensor(codes, dtype=torch.float32))

    def reconstruct(self, original):
        return self.vae.decode(self.vae.encode(original[None])[0])[0]

    def shows(self, *images, place=0, limit=2):
        """Attend ces images (3×S×S), côte à côte, à l'écran : en grand, ou sous le slider `place`."""
        def difference():
            label = self.seen("TLabel")[place]
            width, height = label["size"]
            left = label["x"] + (label["w"] - width) // 2
            top = label["y"] + (0 if place else (label["h"] - height) // 2)
            seen = self.screen.picture((left, top, left + width, top + height))
            wanted = to_pil_image(torch.cat(images, dim=2)).resize((width, height))
            return np.abs(np.asarray(seen, float) - wanted).mean()
        wait_until(lambda: difference() < limit)

    def shows_pair(self, original, drawn, limit=2):
        """L'original à gauche, l'image dessinée à droite, du blanc entre eux."""
        self.shows(original, torch.ones_like(original)[:, :, ::16], drawn, limit=limit)

    def assert_fits(self, width, height):
        """Tout est entier, entre ces bornes ; les boutons et le message aussi (à son bord près)."""
        for kind in "TScale", "TLabelframe", "TButton", "Label":
            for widget in self.seen(kind):
                assert 0 <= widget["x"] and widget["x"] + widget["w"] <= width, widget
                assert 0 <= widget["y"] and widget["y"] + widget["h"] <= height, widget
                if kind in ("TButton", "Label"):
                    assert widget["asked"][0] <= widget["w"] + 2 and widget["asked"][1] <= widget["h"], widget
        assert len(self.seen("TButton")) == 5

    def key(self, *keys):
        self.screen.xdotool("key", "--delay", "30", *keys)

    def click(self, widget, x=None, times=1):
        x = widget["x"] + (widget["w"] // 2 if x is None else x)
        self.screen.xdotool("mousemove", x, widget["y"] + widget["h"] // 2,
                            "click", "--repeat", times, "--delay", 60, 1)


@pytest.fixture(scope="module")
def fenetre(tmp_path_factory, screen):
    """Une même fenêtre pour quatre tests, sur deux écrans à elle, côte à côte."""
    folder = copy_kit(tmp_path_factory.mktemp("fenêtre") / "mon kit été")
    (folder / "cv2.py").write_text(CAMERA, encoding="utf-8")
    with closing(Screen("2732x768")) as screen, Fenetre(folder, screen) as fenetre:
        yield fenetre


def test_sliders_by_mouse_and_keys(fenetre):
    """L'image et, sous chaque slider, ce qu'il change (z2 : inactif) suivent souris et flèches."""
    fenetre.assert_fits(1366, 728)                         # le premier des deux écrans
    assert fenetre.seen("TLabel")[0]["size"] >= [384, 384] and fenetre.numbers() == [0, 0, 0, 0]
    assert [label["text"] for label in fenetre.seen("TLabel")] == ["", "", "inactif", "", ""]
    fenetre.shows(*fenetre.decode([0, 0, 0, 0]))
    fenetre.shows(*fenetre.decode(*[[number, 0, 0, 0] for number in range(-3, 4)]), place=1, limit=8)

    scale = fenetre.seen("TScale")[2]
    x, y = scale["x"] + scale["w"] // 2, scale["y"] + scale["h"] // 2
    fenetre.screen.xdotool("mousemove", x, y, "mousedown", 1, "mousemove", x + 120, y, "mouseup", 1)
    fenetre.calm()
    z = fenetre.numbers()
    assert z == pytest.approx([0, 0, 120 / (scale["w"] - 30) * 6, 0], abs=0.1)
    fenetre.shows(*fenetre.decode(z))
    fenetre.key("End")
    fenetre.shows(*fenetre.decode(*[[number, 0, 3, 0] for number in range(-3, 4)]), place=1, limit=8)

    scale = fenetre.seen("TScale")[0]
    fenetre.click(scale, x=scale["w"] - 60)                # un clic à côté du bouton du slider
    wait_until(lambda: fenetre.numbers()[0] > 1.8)
    value = fenetre.numbers()[0]
    for arrow, step in ("Left", -0.1), ("Down", -0.1), ("Right", 0.1), ("Up", 0.1):
        value += step
        fenetre.key(arrow)
        wait_until(lambda: fenetre.numbers()[0] == pytest.approx(value))
    fenetre.key("Tab", "End", "Right")                     # au bout, il y reste
    wait_until(lambda: fenetre.numbers()[1] == 3)
    titles = [f"z{k} = {number:+.2f}" for k, number in enumerate(fenetre.numbers(), 1)]
    wait_until(lambda: [frame["text"] for frame in fenetre.seen("TLabelframe")] == titles)
    fenetre.click(scale, x=150, times=2)                   # un double clic
    wait_until(lambda: fenetre.numbers()[0] == 0)
    assert not fenetre.state()["topmost"], "la fenêtre reste devant les autres"


def test_it_glides(fenetre):
    """Au hasard (même en majuscules), tout à zéro : un chemin que l'œil suit ; un geste le prend en main."""
    for keys, moved in [(["h"], True), (["z"], False), (["Caps_Lock", "h", "Caps_Lock"], True)]:
        before = fenetre.drawn()
        fenetre.key(*keys)
        wait_until(lambda: any(fenetre.numbers()) == moved)
        fenetre.calm()
        assert fenetre.drawn() - before >= 15              # vingt pas
        fenetre.shows(*fenetre.decode(fenetre.numbers()))
        assert max(map(abs, fenetre.numbers())) < 4.5, "ce hasard n'est pas celui de z"
    fenetre.click(fenetre.seen("TButton")[1])
    fenetre.click(fenetre.seen("TScale")[3], x=60)
    fenetre.calm()
    assert fenetre.numbers()[3] < -1.5, "une main sur un slider l'emporte"


def test_real_images_challenge_and_saving(fenetre):
    """L'original à gauche, ce qu'en dessine le modèle à droite ; le défi, ses erreurs ; l'enregistrement."""
    def check(drawn, advice):
        fenetre.shows_pair(original, drawn)
        errors = [(image - original).square().sum().item() for image in (drawn, best)]
        fenetre.says(advice)
        said = re.findall(r"\d+\.\d", fenetre.seen("Label")[0]["text"])
        assert [float(number) for number in said] == pytest.approx(errors, rel=1e-3)

    for number, presses in (0, 1), (3, 3):                 # un appui, puis trois rapides
        original = to_tensor(read_image(find_images(fenetre.folder / "images")[number], 64))
        best = fenetre.reconstruct(original)
        fenetre.key(*["i"] * presses)
        check(best, "Défi : « Tout à zéro », puis")
    fenetre.click(fenetre.seen("TButton")[0])
    wait_until(lambda: not any(fenetre.numbers()))
    check(*fenetre.decode([0, 0, 0, 0]), "Bravo")
    fenetre.click(fenetre.seen("TScale")[0])
    fenetre.key("End")
    drawn, = fenetre.decode([3, 0, 0, 0])
    check(drawn, "Défi : retrouvez l'original")

    fenetre.screen.xdotool("keydown", "e", "sleep", 1.2, "keyup", "e")      # n'écrit qu'un fichier
    assert fenetre.says("Image enregistrée") == "black"
    path, = fenetre.folder.glob("decode_VAE_*_+3.00_+0.00_+0.00_+0.00.png")
    assert np.abs(np.asarray(Image.open(path), float) - to_pil_image(drawn).resize((512, 512))).mean() < 2
    fenetre.key("e")                                       # sous un nouveau nom
    wait_until(lambda: len([*fenetre.folder.glob("decode_VAE_*.png")]) == 2)
    fenetre.key("h")
    fenetre.says("Tirez un slider")


def test_silent_camera(fenetre):
    """La caméra s'ouvre : la fenêtre répond ; elle se tait : c'est dit, et elle est fermée ; puis Ctrl-C."""
    before = fenetre.numbers()
    fenetre.key("w")
    fenetre.says("Ouverture")
    fenetre.key("h")
    wait_until(lambda: fenetre.numbers() != before)
    fenetre.key("w")
    fenetre.says("Ouverture")
    (fenetre.folder / "ouverte").touch()
    fenetre.says("Touche w")
    (fenetre.folder / "fermée").unlink()                   # la première, que « Au hasard » a arrêtée
    (fenetre.folder / "muette").touch()
    assert fenetre.says("n'envoie plus d'image") == "red"
    wait_until((fenetre.folder / "fermée").exists)
    fenetre.process.send_signal(signal.SIGINT)
    fenetre.assert_ends()


def test_own_images_on_a_small_screen(folder, screen):
    """32 sliders tiennent sur un petit écran, ou sur sa moitié ; les images de l'étudiant viennent en
    boucle, sans les illisibles ; la fenêtre dit ce qui manque."""
    images = folder / "images"
    (images / "sous").mkdir()
    Image.new("RGB", (90, 50), "red").save(images / "b_rouge.png")
    Image.new("RGB", (9, 90), "blue").save(images / "sous" / "bleu.jpg")
    (images / "a.png").write_bytes(b"pas une image")
    (folder / "cv2.py").write_text("raise ImportError('pour le test')", encoding="utf-8")
    with closing(Screen("1024x600")) as screen, Fenetre(folder, screen, 32, 128) as fenetre:
        for color in (1, 0, 0), (0, 0, 1), (1, 0, 0):
            fenetre.key("i")
            original = torch.tensor(color).float()[:, None, None].expand(3, 128, 128)
            fenetre.shows_pair(original, fenetre.reconstruct(original))
        fenetre.assert_fits(1024, 560)
        assert fenetre.seen("TLabel")[0]["size"][1] >= 288
        fenetre.click(fenetre.seen("TScale")[-1], x=20)
        wait_until(lambda: fenetre.numbers()[-1] < -1)
        screen.xdotool("windowsize", screen.window("decode_VAE"), 683, 500)
        fenetre.calm()
        fenetre.assert_fits(700, 600)
        view = fenetre.seen("TLabel")[0]
        assert 300 < view["size"][0] <= view["w"] < 600
        folder.rename(folder.parent / "ailleurs")
        for key, words in ("i", "Aucune image"), ("w", "Il manque OpenCV"), ("e", "Impossible d'écrire"):
            fenetre.key(key)
            assert fenetre.says(words) == "red"


def test_webcam(folder, screen):
    """Un film, à sa vitesse, en miroir ; w l'ouvre ou le ferme, un slider l'arrête."""
    pictures = np.zeros((600, 120, 160, 3), np.uint8)
    pictures[:, :, :80, 2] = 255                           # rouge à gauche, bleu ou vert à droite
    pictures[:300, :, 80:, 0] = pictures[300:, :, 80:, 1] = 255
    blue, green = torch.zeros(2, 3, 64, 64)
    blue[0, :, 32:] = green[0, :, 32:] = blue[2, :, :32] = green[1, :, :32] = 1
    with Fenetre(folder, screen, 1, camera="film.avi") as fenetre:
        def opened():
            files = Path(f"/proc/{fenetre.process.pid}/fd").iterdir()
            return any("film.avi" in os.path.realpath(file) for file in files)

        fenetre.key("w")
        assert fenetre.says("camera = 'film.avi'") == "red"
        write_film(folder / "film.avi", pictures[290:310], fps=10)
        fenetre.key("w")
        start = time.monotonic()
        assert fenetre.says("Fin du film.") == "black" and time.monotonic() - start > 1.8
        fenetre.shows_pair(green, *fenetre.decode(fenetre.numbers()), limit=8)
        write_film(folder / "film.avi", pictures[:300], fps=10)      # trente secondes
        fenetre.key("w")
        fenetre.says("Touche w")
        assert opened()
        fenetre.click(fenetre.seen("TScale")[0], x=60)
        wait_until(lambda: not opened(), 10)
        fenetre.says("Bravo")
        fenetre.key("w")
        fenetre.says("Touche w")
        fenetre.key("w")                                   # arrêtée, elle laisse son image
        wait_until(lambda: not opened(), 10)
        fenetre.shows_pair(blue, *fenetre.decode(fenetre.numbers()), limit=8)
        fenetre.key("w")
        wait_until(opened)
        fenetre.key("alt+F4")                              # fermée pendant la webcam
        fenetre.assert_ends()


@pytest.mark.parametrize("zone, words", [
    ({"latent_size": 8}, ["latent_size = 8", "latent_size = 4", "zone ***"]),
    ({"images_size": 64.0}, ["images_size = 64.0", "train_VAE.py"]),
    ({"model_file": "absent.pt"}, ["Il n'y a pas de modèle", "absent.pt", "lancez d'abord train_VAE.py"]),
    ({"model_file": "README"}, ["« ", "README", "relancez train_VAE.py"]),
    ({}, ["depuis un bureau"]),                            # pas d'écran
    (None, ["python3-tk"])])                               # pas de tkinter
def test_wrong_model_or_library(folder, monkeypatch, zone, words):
    """Un autre modèle que celui de la zone, absent, étranger ; pas d'écran ni de tkinter : une phrase."""
    save_model(VAE(4, 64), folder / "model_VAE_64.pt")
    (folder / "README").write_text("bonjour")
    edit_zone(folder / "decode_VAE.py", **(zone or {}))
    monkeypatch.setenv("DISPLAY", "")
    if zone is None:
        monkeypatch.setitem(sys.modules, "tkinter", None)
    done = execute(folder / "decode_VAE.py")
    assert done.code == 1 and done.out.count("\n") <= 6, done.out
    assert all(word in done.out for word in words), done.out
