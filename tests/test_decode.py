"""decode_VAE.py : la vraie fenêtre, à la souris et au clavier, sur un écran virtuel."""
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kit import ROOT, Raw, Screen, copy_kit, edit_zone, run, wait_until
from model_VAE_64 import VAE, image_to_tensor, read_image, save_model, tensor_to_image

# Lance un script en écrivant dans un fichier, trente fois par seconde, ce que contient sa fenêtre
SPY = """
import json, os, runpy, sys, tkinter
script, out = sys.argv[1:]

def widgets(parent):
    for widget in parent.winfo_children():
        yield {"kind": widget.winfo_class(), "seen": widget.winfo_viewable(),
               "x": widget.winfo_rootx(), "y": widget.winfo_rooty(),
               "w": widget.winfo_width(), "h": widget.winfo_height(),
               "asked": [widget.winfo_reqwidth(), widget.winfo_reqheight()],
               **({"text": widget.cget("text")} if "text" in widget.keys() else {}),
               **({"image": str(widget.cget("image")[0]), "side": int(widget.tk.call(
                   "image", "height", widget.cget("image")))}
                  if "image" in widget.keys() and widget.cget("image") else {}),
               **({"value": widget.get()} if widget.winfo_class() == "TScale" else {})}
        yield from widgets(widget)

def spy(window):
    window.after(30, spy, window)
    try:
        with open(out + ".part", "w") as file:
            json.dump(list(widgets(window)), file)
        os.replace(out + ".part", out)
    except OSError:      # le test du disque plein
        pass

mainloop = tkinter.Misc.mainloop
def spied(window, n=0):
    window.bind("<F9>", lambda event: 1 / 0)      # pour le test d'une erreur dans la fenêtre
    spy(window)
    mainloop(window, n)
tkinter.Misc.mainloop = spied
runpy.run_path(script, run_name="__main__")
"""


def strong_vae(latent_size=4, images_size=64):
    """Un VAE non entraîné, mais dont chaque nombre se voit (sauf z2, qui ne change rien)."""
    torch.manual_seed(1)
    vae = VAE(latent_size, images_size).eval()
    linears = [layer for layer in vae.decoder.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for linear in linears:
            linear.weight *= 3
        list(vae.decoder.parameters())[-2].mul_(30)
        if latent_size > 1:
            linears[0].weight[:, 1] = 0
        last = [layer for layer in vae.encoder.modules() if isinstance(layer, nn.Linear)][-1]
        last.weight *= 1000
    return vae


class Fenetre:
    """decode_VAE.py dans un autre processus : ce qu'on y voit, la souris, le clavier."""

    def __init__(self, folder, screen, vae=None, **zone):
        self.folder, self.screen = folder, screen
        self.vae = vae or strong_vae()
        save_model(self.vae, folder / "model_VAE_64.pt")
        edit_zone(folder / "decode_VAE.py", latent_size=self.vae.latent_size,
                  images_size=self.vae.images_size, **zone)
        self.out = folder.parent / "widgets.json"
        self.out.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", SPY, str(folder / "decode_VAE.py"), str(self.out)],
            env={**os.environ, **screen.env, "PYTHONIOENCODING": "utf-8"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
        try:
            wait_until(lambda: self.out.exists() or self.process.poll() is not None, 60)
            wait_until(lambda: self.seen("TLabel", "image générée"), 20)
            self.calm()
        except BaseException:
            self.process.kill()
            print(self.process.communicate()[0])
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def close(self):
        """Ferme la fenêtre par sa croix ; rend ce que le script a écrit dans la console."""
        self.screen.xdotool("windowclose" if not self.screen.manager else "key", "alt+F4")
        return self.process.communicate(timeout=20)[0]

    def seen(self, kind, text=None):
        """Les widgets visibles de cette sorte, dans l'ordre (du texte `text`, une expression)."""
        return [widget for widget in json.loads(self.out.read_text())
                if widget["kind"] == kind and widget["seen"]
                and (text is None or re.search(text, widget["text"]))]

    def picture_label(self):
        return self.seen("TLabel", "image générée|reconstruction")[0]

    def strips(self):
        """Les rangées de petites images."""
        return [label for label in self.seen("TLabel", "^$") if "image" in label]

    def values(self):
        """Les nombres écrits à côté des sliders."""
        return [float(label["text"]) for label in self.seen("TLabel", r"^[+-]\d+\.\d\d$")]

    def status(self):
        """La ligne du bas."""
        return max(self.seen("TLabel"), key=lambda label: label["y"])["text"]

    def calm(self):
        """Attend que plus rien ne change, petites images comprises."""
        def unchanged():
            before = self.out.read_text()
            time.sleep(0.45)
            return before == self.out.read_text()
        wait_until(unchanged, 30)

    def look(self, label):
        """Les pixels de l'écran sous un ttk.Label à une image carrée, son texte exclu."""
        path = self.folder.parent / "screen.png"
        self.screen.picture(path)
        side = label["side"]
        margin = (label["w"] - side) // 2
        left, bottom = label["x"] + margin, label["y"] + label["h"] - margin
        return np.asarray(Image.open(path).convert("RGB").crop(
            (left, bottom - side, left + side, bottom)), dtype=float)

    def expected(self, z):
        """L'image que le modèle dessine pour z, agrandie à la taille de la fenêtre."""
        side = self.picture_label()["side"]
        with torch.inference_mode():
            picture = tensor_to_image(self.vae.decode(torch.tensor([z], dtype=torch.float32))[0])
        return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC), dtype=float)

    def shows(self, z, limit=1.5):
        """L'image à l'écran est celle de z (à l'arrondi des nombres affichés près)."""
        return abs(self.look(self.picture_label()) - self.expected(z)).mean() < limit

    def key(self, *keys):
        self.screen.xdotool("key", "--delay", "30", *keys)

    def click(self, widget, x=None, times=1):
        x = widget["x"] + (widget["w"] // 2 if x is None else x)
        self.screen.xdotool("mousemove", x, widget["y"] + widget["h"] // 2,
                            "click", "--repeat", times, "--delay", 60, 1)


@pytest.fixture(scope="module")
def shared(screen, tmp_path_factory):
    """Une fenêtre qui sert à plusieurs tests."""
    with Fenetre(copy_kit(tmp_path_factory.mktemp("decode") / "été"), screen, camera=7) as fenetre:
        yield fenetre


@pytest.fixture
def fenetre(shared):
    """La fenêtre partagée, tous les sliders à zéro."""
    shared.key("z")
    shared.calm()
    return shared


# ------------------------------------------------------------------ l'image et les sliders
def test_picture_is_there_from_the_start(fenetre):
    """Avant tout geste : l'image de z = 0, grande, et un slider par nombre, à zéro."""
    assert fenetre.picture_label()["side"] >= 384
    assert [scale["value"] for scale in fenetre.seen("TScale")] == [0, 0, 0, 0]
    assert fenetre.shows([0, 0, 0, 0])
    assert not fenetre.shows([3, 0, 0, 0], 6)          # ce que regarde le test se voit


def test_dragging(fenetre):
    """L'image suit la souris ; d'une rafale d'événements, la dernière position gagne."""
    scale = fenetre.seen("TScale")[2]
    x, y = scale["x"] + scale["w"] // 2, scale["y"] + scale["h"] // 2
    strips = [label["image"] for label in fenetre.strips()]
    before = int(fenetre.picture_label()["image"].removeprefix("pyimage"))
    moves = [word for move in range(300) for word in ("mousemove", x + move % 100, y)]
    fenetre.screen.xdotool("mousemove", x, y, "mousedown", 1, *moves, "mousemove", x + 120, y)
    wait_until(lambda: fenetre.values()[2] > 1.4)
    drawn = int(fenetre.picture_label()["image"].removeprefix("pyimage")) - before
    fenetre.screen.xdotool("mouseup", 1)
    fenetre.calm()
    z = [scale["value"] for scale in fenetre.seen("TScale")]
    assert z[2] == pytest.approx(120 / (scale["w"] - 12) * 6, abs=0.03)
    assert fenetre.values() == pytest.approx(z, abs=0.006) and z[:2] == [0, 0] and z[3] == 0
    assert fenetre.shows(z)
    assert 1 <= drawn < 290, "les événements d'une rafale ne sont pas réunis"
    after = [label["image"] for label in fenetre.strips()]
    assert len(after) == 4 and not set(after) & set(strips), "petites images pas redessinées"


def test_mouse_and_arrows_on_a_slider(fenetre):
    """Clic à côté du curseur : il y va. Flèches : un dixième. Double clic : zéro."""
    scale = fenetre.seen("TScale")[0]
    fenetre.click(scale, x=scale["w"] - 60)
    wait_until(lambda: fenetre.values()[0] > 2)
    value = fenetre.seen("TScale")[0]["value"]
    assert value == pytest.approx(((scale["w"] - 60 - 6) / (scale["w"] - 12) - 0.5) * 6, abs=0.05)
    fenetre.key("Left", "Left", "Down", "Right")
    wait_until(lambda: fenetre.seen("TScale")[0]["value"] == pytest.approx(value - 0.2))
    fenetre.key("Tab", "Up")
    wait_until(lambda: fenetre.seen("TScale")[1]["value"] == pytest.approx(0.1))
    fenetre.key("End")
    wait_until(lambda: fenetre.seen("TScale")[1]["value"] == 3)
    fenetre.key("Right")
    fenetre.click(scale, x=150, times=2)
    wait_until(lambda: fenetre.seen("TScale")[0]["value"] == 0)
    fenetre.calm()
    assert fenetre.values() == [0, 3, 0, 0]


def test_strips_and_sleeping_slider(fenetre):
    """Sous chaque slider, ce qu'il change de gauche à droite ; z2, sans effet, est « inactif »."""
    notes = fenetre.seen("TLabel", "^inactif$")
    scales = fenetre.seen("TScale")
    assert len(notes) == 1 and scales[0]["y"] < notes[0]["y"] < scales[1]["y"]
    strip = fenetre.strips()[0]
    assert strip["y"] > scales[0]["y"] and strip["w"] > 6.5 * strip["h"]
    path = fenetre.folder.parent / "screen.png"
    fenetre.screen.picture(path)
    left, top = strip["x"] + strip["w"] // 2, strip["y"] + strip["h"] // 2
    width, height = 7 * strip["side"], strip["side"]
    left, top = left - width // 2, top - height // 2
    seen = Image.open(path).convert("RGB").crop((left, top, left + width, top + height))
    with torch.inference_mode():
        z = torch.zeros(7, 4)
        z[:, 0] = torch.linspace(-3, 3, 7)
        wanted = torch.cat(list(fenetre.vae.decode(z)), dim=2)
    wanted = tensor_to_image(wanted).resize(seen.size, Image.Resampling.BICUBIC)
    assert abs(np.asarray(seen, float) - np.asarray(wanted, float)).mean() < 8
    assert abs(np.asarray(seen, float) - np.asarray(wanted, float)[:, ::-1]).mean() > 20


# ------------------------------------------------------------------ les boutons et leurs touches
def test_random_zero_and_bare_pixels(fenetre):
    """Au hasard, à zéro, pixels nus : au clavier puis à la souris."""
    fenetre.key("h")
    wait_until(lambda: any(fenetre.values()))
    fenetre.calm()
    first = fenetre.values()
    drawn = [scale["value"] for scale in fenetre.seen("TScale")]     # sans l'arrondi de l'affichage
    assert all(-6 < value < 6 for value in first) and len(set(drawn)) == 4
    assert fenetre.shows(drawn)
    fenetre.key("z")
    wait_until(lambda: not any(fenetre.values()))
    fenetre.click(fenetre.seen("TButton", "Au hasard")[0])
    wait_until(lambda: any(fenetre.values()))
    assert fenetre.values() != first
    fenetre.key("0")
    wait_until(lambda: not any(fenetre.values()))
    fenetre.key("h")
    wait_until(lambda: any(fenetre.values()))
    fenetre.click(fenetre.seen("TButton", "Tout à zéro")[0])
    wait_until(lambda: not any(fenetre.values()))
    fenetre.key("p")
    fenetre.calm()
    bare = fenetre.look(fenetre.picture_label())
    size = len(bare) / 64
    flat = bare[int(10 * size) + 2:int(11 * size) - 2, int(20 * size) + 2:int(21 * size) - 2]
    assert np.ptp(flat, axis=(0, 1)).max() == 0, "un pixel nu est un carré d'une seule couleur"
    fenetre.click(fenetre.seen("TCheckbutton", "Pixels nus")[0])
    fenetre.calm()
    assert fenetre.shows([0, 0, 0, 0])


def test_real_images(fenetre):
    """La touche i montre l'original à côté de sa reconstruction, et les nombres de l'encodeur,
    même au-delà de 3."""
    folder, seen, biggest = fenetre.folder / "images" / "exemple", [], 0
    for press in range(2):
        if press:
            fenetre.click(fenetre.seen("TButton", "Image réelle")[0])
        else:
            fenetre.key("i")
        fenetre.calm()
        label = fenetre.seen("TLabel", "original : ")[0]
        seen.append(label["text"].removeprefix("original : "))
        original = read_image(folder / seen[-1], 64)
        with torch.inference_mode():
            mu = fenetre.vae.encode(image_to_tensor(original)[None])[0][0].tolist()
        biggest = max(biggest, *map(abs, mu))
        assert fenetre.values() == pytest.approx(mu, abs=0.006)
        assert fenetre.shows(mu)
        enlarged = original.resize(2 * [label["side"]], Image.Resampling.BICUBIC)
        assert abs(fenetre.look(label) - np.asarray(enlarged, float)).mean() < 1
        assert label["side"] >= 384
        assert label["x"] + label["w"] <= fenetre.picture_label()["x"] + 1
    assert biggest > 3, "le test veut un nombre hors du slider"
    assert seen[0] != seen[1]
    fenetre.key("Right")                                    # ce n'est plus une reconstruction
    wait_until(lambda: fenetre.seen("TLabel", "image générée"))
    assert fenetre.seen("TLabel", "original : ") and not fenetre.seen("TLabel", "reconstruction")
    fenetre.key("z")
    wait_until(lambda: fenetre.seen("TLabel", "image générée"))
    assert not fenetre.seen("TLabel", "original")


def test_own_images_unreadable_and_none(folder, screen):
    """Les images de l'étudiant d'abord, en boucle, sans les illisibles ; aucune : un message."""
    images = folder / "images"
    (images / "sous").mkdir()
    Image.new("RGB", (90, 50), "red").save(images / "b_rouge.png")
    Image.new("RGB", (9, 90), "blue").save(images / "sous" / "bleu.jpg")
    (images / "a.png").write_bytes(b"pas une image")
    (images / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    with Fenetre(folder, screen) as fenetre:
        for name in "b_rouge.png", "bleu.jpg", "b_rouge.png":
            fenetre.key("i")
            label = wait_until(lambda: fenetre.seen("TLabel", f"original : {name}"))[0]
        fenetre.calm()
        assert fenetre.look(label).mean(axis=(0, 1)) == pytest.approx([255, 0, 0], abs=1)
        (images / "b_rouge.png").unlink()
        (images / "sous" / "bleu.jpg").unlink()
        fenetre.key("i")
        wait_until(lambda: fenetre.seen("TLabel", "original : visage_000.png"))
    edit_zone(folder / "decode_VAE.py", images_folder="rien du tout")
    with Fenetre(folder, screen) as fenetre:
        fenetre.key("i")
        wait_until(lambda: "Aucune image lisible" in fenetre.status()
                   and "rien du tout" in fenetre.status())
        fenetre.key("h")
        wait_until(lambda: any(fenetre.values()))


def test_saving_never_overwrites(fenetre):
    """Chaque image enregistrée a un nom nouveau et contient ce que montre la fenêtre."""
    kept = fenetre.folder / "decode_VAE_002.png"
    kept.write_bytes(b"hier")
    fenetre.key("e")
    wait_until(lambda: "decode_VAE_001.png" in fenetre.status())
    fenetre.key("h")
    wait_until(lambda: any(fenetre.values()))
    fenetre.calm()
    fenetre.click(fenetre.seen("TButton", "Enregistrer")[0])
    wait_until(lambda: "decode_VAE_003.png" in fenetre.status())
    assert kept.read_bytes() == b"hier"
    saved = np.asarray(Image.open(fenetre.folder / "decode_VAE_003.png"), float)
    assert saved.shape == fenetre.look(fenetre.picture_label()).shape
    assert abs(saved - fenetre.look(fenetre.picture_label())).max() <= 1
    assert abs(np.asarray(Image.open(fenetre.folder / "decode_VAE_001.png"), float)
               - fenetre.expected([0, 0, 0, 0])).max() <= 1


def test_full_disk(fenetre):
    """Disque plein en cours d'écriture : un message, aucun débris, et la fenêtre continue."""
    limit = ["prlimit", "--pid", str(fenetre.process.pid)]
    if subprocess.run([*limit, "--fsize=1000:"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("prlimit ne fonctionne pas ici")
    before = set(fenetre.folder.glob("decode_VAE_*.png"))
    fenetre.key("e")
    time.sleep(1)
    subprocess.run([*limit, "--fsize=unlimited:"], check=True)
    wait_until(lambda: "Impossible d'écrire" in fenetre.status())
    assert set(fenetre.folder.glob("decode_VAE_*.png")) == before
    fenetre.key("e")
    wait_until(lambda: "Image enregistrée" in fenetre.status())


# ------------------------------------------------------------------ la webcam
def write_film(path, frames=60):
    """Un film 160×120 : rouge à gauche, à droite bleu, puis vert dans la seconde moitié."""
    cv2 = pytest.importorskip("cv2")
    film = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (160, 120))
    for number in range(frames):
        frame = np.zeros((120, 160, 3), np.uint8)
        frame[:, :80, 2] = 255
        frame[:, 80:, 0 if number < frames // 2 else 1] = 255
        film.write(frame)
    film.release()


def opened(process, name):
    """Le processus a-t-il ce fichier ouvert ?"""
    links = [f"/proc/{process.pid}/fd/{fd}" for fd in os.listdir(f"/proc/{process.pid}/fd")]
    return any(os.path.islink(link) and name in os.readlink(link) for link in links)


def test_webcam(folder, screen):
    """Le film tient lieu de webcam : les sliders suivent, l'original est en miroir, couleurs
    justes ; la caméra est rendue quand on relâche le bouton, et à la fin du film."""
    write_film(folder / "film.avi", 120)
    with Fenetre(folder, screen, camera="film.avi") as fenetre:
        fenetre.click(fenetre.seen("TCheckbutton", "Webcam")[0])
        wait_until(lambda: fenetre.seen("TLabel", "^webcam$"))
        time.sleep(0.5)                                        # les deux images sont en place
        label = fenetre.seen("TLabel", "^webcam$")[0]
        assert opened(fenetre.process, "film.avi")
        seen = fenetre.look(label)
        third = len(seen) // 3
        assert seen[:, -third:].mean(axis=(0, 1)) == pytest.approx([255, 0, 0], abs=12)
        assert seen[:, :third].mean(axis=(0, 1)) == pytest.approx([0, 0, 255], abs=12)
        first = fenetre.values()
        assert any(first)
        wait_until(lambda: fenetre.values() != first, 15)      # la seconde moitié
        fenetre.key("w")
        wait_until(lambda: not opened(fenetre.process, "film.avi"))
        fenetre.calm()                                         # plus rien ne bouge
        assert fenetre.shows([scale["value"] for scale in fenetre.seen("TScale")])
        fenetre.key("w")                                       # et de nouveau, jusqu'à la fin
        wait_until(lambda: opened(fenetre.process, "film.avi"))
        wait_until(lambda: fenetre.status() == "Fin du film.", 30)
        assert not opened(fenetre.process, "film.avi")
        fenetre.key("w")
        wait_until(lambda: opened(fenetre.process, "film.avi"))
        text = fenetre.close()                                 # fermée pendant la webcam
        assert fenetre.process.returncode == 0
        assert text.splitlines() == ["Chargement de PyTorch...", "La fenêtre est ouverte.",
                                     "La fenêtre est fermée."]


def test_no_camera(fenetre):
    """Pas de caméra : un message, et tout le reste marche."""
    fenetre.key("w")
    wait_until(lambda: "camera = 7" in fenetre.status())
    fenetre.key("h")
    wait_until(lambda: any(fenetre.values()))


def test_no_opencv_error_and_interrupt(folder, screen):
    """Pas d'OpenCV, puis une erreur imprévue : dites dans la fenêtre, et tout le reste marche.
    Ctrl-C (ou le bouton d'arrêt de Spyder) ferme la fenêtre sans bruit."""
    (folder / "cv2.py").write_text("raise ImportError('pour le test')", encoding="utf-8")
    with Fenetre(folder, screen) as fenetre:
        fenetre.key("w")
        wait_until(lambda: "Il manque OpenCV" in fenetre.status())
        fenetre.key("F9")
        wait_until(lambda: "Erreur" in fenetre.status() and "division" in fenetre.status())
        fenetre.key("h")
        wait_until(lambda: any(fenetre.values()))
        fenetre.process.send_signal(signal.SIGINT)
        lines = fenetre.process.communicate(timeout=10)[0].splitlines()
        assert fenetre.process.returncode == 0 and lines[-1] == "La fenêtre est fermée."
        assert "ZeroDivisionError" in lines[-2], "l'erreur est aussi dans la console"
        assert len([line for line in lines if "Traceback" in line]) == 1


# ------------------------------------------------------------------ la taille de la fenêtre
@pytest.mark.parametrize("latent_size, images_size", [(1, 128), (16, 32), (32, 64)])
def test_every_slider_fits(folder, screen, latent_size, images_size):
    """De 1 à 32 sliders et leurs petites images tiennent sur un écran de 1366×768, quel que soit
    le côté des images."""
    with Fenetre(folder, screen, strong_vae(latent_size, images_size)) as fenetre:
        assert fenetre.shows([0] * latent_size)
        scales, strips = fenetre.seen("TScale"), fenetre.strips()
        assert len(scales) == len(strips) == latent_size
        bottom = max(label["y"] + label["h"] for label in fenetre.seen("TButton")) + 40
        for widget in scales + strips:
            assert 0 <= widget["x"] and widget["x"] + widget["w"] <= 1366
            assert 0 <= widget["y"] and widget["y"] + widget["h"] <= min(bottom, 720)
        fenetre.click(scales[-1], x=30)
        wait_until(lambda: fenetre.values()[-1] < -1)
        assert not any(fenetre.values()[:-1])
        fenetre.key("i")                      # deux images : chacune garde au moins 384 pixels
        wait_until(lambda: fenetre.seen("TLabel", "reconstruction"))
        assert fenetre.picture_label()["side"] >= 384


def test_buttons_and_messages_on_a_small_screen(folder):
    """Sur 1280×800, aucun bouton ne perd de lettre, ni la ligne du bas, même longue."""
    screen = Screen("1280x800")
    try:
        with Fenetre(folder, screen, camera="absent.mp4") as fenetre:
            fenetre.key("w")
            wait_until(lambda: "ne s'ouvre pas" in fenetre.status())
            fenetre.calm()
            buttons = fenetre.seen("TButton") + fenetre.seen("TCheckbutton")
            (message,) = fenetre.seen("TLabel", "ne s'ouvre pas")
            assert len(buttons) == 6 and message["y"] + message["h"] <= 800
            for widget in [*buttons, message]:
                assert widget["asked"][0] <= widget["w"] and widget["asked"][1] <= widget["h"]
                assert 0 <= widget["x"] and widget["x"] + widget["w"] <= 1280
    finally:
        screen.close()


def test_many_sliders_scroll(folder, screen):
    """Au-delà, les sliders défilent à la molette."""
    with Fenetre(folder, screen, strong_vae(100)) as fenetre:
        last = fenetre.seen("TScale")[-1]
        assert last["y"] > 768
        fenetre.screen.xdotool("mousemove", last["x"] + 20, 300,
                               "click", "--repeat", 200, "--delay", 5, 5)
        wait_until(lambda: fenetre.seen("TScale")[-1]["y"] < 700)


def test_picture_grows_with_the_window(folder):
    """Fenêtre agrandie, image agrandie ; à l'écran, elle reste celle du modèle."""
    screen = Screen("1920x1200")
    try:
        with Fenetre(folder, screen) as fenetre:
            before = fenetre.picture_label()["w"]
            screen.xdotool("windowsize", screen.window("decode_VAE"), 1900, 1100)
            wait_until(lambda: fenetre.picture_label()["w"] > before + 200)
            fenetre.calm()
            assert fenetre.shows([0, 0, 0, 0])
    finally:
        screen.close()


# ------------------------------------------------------------------ ce qui ne va pas
BAD = {
    "images_size": ["64", None, [64], 64.0, True, 0, -64, 70, 8, 1024, 10**9, Raw("float('nan')")],
    "latent_size": ["4", None, [4], 4.5, True, 0, -1, 257, 10**9, Raw("float('inf')")],
    "model_file": [None, 4, 4.5, True, [], Raw("b'x'"), "", "  ", Raw("{}"), ("a",), "absent.pt",
                   "a\0b.pt", "x" * 300],
    "images_folder": [None, 4, 4.5, True, [], Raw("b'x'"), "", "  ", Raw("{}"), ("a",)],
    "camera": [None, 4.5, True, False, -1, 100, 10**9, [], "", " ", Raw("float('nan')"), (0,)]}


def test_wrong_parameters(folder):
    """Chaque mauvaise valeur : une ligne qui nomme le paramètre et la valeur, avant PyTorch."""
    script = folder / "decode_VAE.py"
    (folder / "model_VAE_64.pt").write_bytes(b"")
    good = script.read_text(encoding="utf-8")
    trap = {"PYTHONPATH": str(folder / "piege")}       # importer torch ferait échouer le test
    (folder / "piege").mkdir()
    (folder / "piege" / "torch.py").write_text("raise SystemError", encoding="utf-8")
    for name, values in BAD.items():
        for value in values:
            edit_zone(script, **{name: value})
            result = run(script, env=trap)
            assert result.returncode == 1, (name, value)
            assert result.stdout.startswith(f"Paramètre {name} = "), result.stdout
            assert repr(eval(repr(value))) in result.stdout and "il faut" in result.stdout \
                or "n'existe pas encore" in result.stdout
            assert result.stdout.count("\n") == 1
            script.write_text(good, encoding="utf-8")


# Lance le script pour chaque dossier de la liste, dans le même Python (PyTorch est lent à charger)
EACH = """
import contextlib, io, json, runpy, sys
results = []
for script in sys.argv[1:]:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            runpy.run_path(script, run_name="__main__")
            code = 0
        except SystemExit as exit:
            code = exit.code
    results.append([code, text.getvalue()])
print(json.dumps(results))
"""


class Bomb:
    """Un objet dont la lecture par pickle crée un fichier."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_wrong_models(tmp_path):
    """Mauvaises tailles, fichier étranger, abîmé, piégé : une phrase, jamais de traceback."""
    vae = VAE(4, 64)
    good = tmp_path / "bon.pt"
    save_model(vae, good)
    data = good.read_bytes()
    saved = torch.load(good, weights_only=True)
    cases = {
        "taille": (dict(latent_size=8), data,
                   ["latent_size = 8", "latent_size = 4", "zone ***", "train_VAE.py"]),
        "image": (dict(images_size=128), data, ["images_size = 128", "images_size = 64"]),
        "deux": (dict(images_size=32, latent_size=2), data, ["images_size", "latent_size"]),
        "vide": ({}, b"", []), "texte": ({}, b"bonjour", []), "coupe": ({}, data[:-5000], []),
        "octet": ({}, data[:90000] + bytes([data[90000] ^ 255]) + data[90001:], []),
        "image.png": ({}, next((ROOT / "images" / "exemple").glob("*.png")).read_bytes(), []),
        "poids": ({}, saved["weights"], []), "autre": ({}, {**saved, "kind": "GAN"}, []),
        "ancien": ({}, {**saved, "weights": {"a": torch.zeros(3)}}, []),
        "bombe": ({}, {**saved, "extra": Bomb(str(tmp_path / "explosion"))}, []),
        "bombe_nue": ({}, Bomb(str(tmp_path / "explosion")), [])}
    scripts = []
    for name, (zone, content, _) in cases.items():
        folder = copy_kit(tmp_path / name, exemple=False)
        edit_zone(folder / "decode_VAE.py", **zone)
        if isinstance(content, bytes):
            (folder / "model_VAE_64.pt").write_bytes(content)
        else:
            torch.save(content, folder / "model_VAE_64.pt")
        scripts.append(str(folder / "decode_VAE.py"))
    output = subprocess.run([sys.executable, "-c", EACH, *scripts], text=True, timeout=120,
                            capture_output=True, env={**os.environ, "DISPLAY": ""})
    results = json.loads(output.stdout)
    for (name, (zone, _, words)), (code, text) in zip(cases.items(), results):
        lines = text.splitlines()[1:]                  # la première : Chargement de PyTorch...
        assert code == 1 and len(lines) == max(1, len(zone)), (name, text)
        assert "model_VAE_64.pt" in text and all(word in text for word in words), (name, text)
        assert "Traceback" not in text
    assert not (tmp_path / "explosion").exists(), "le code du fichier a été exécuté"


def test_no_display_no_tkinter(folder):
    """Sans écran, sans tkinter : une ligne qui dit quoi faire."""
    save_model(VAE(4, 64), folder / "model_VAE_64.pt")
    result = run(folder / "decode_VAE.py", env={"DISPLAY": ""})
    assert result.returncode == 1 and "La fenêtre ne s'ouvre pas" in result.stdout
    assert "Traceback" not in result.stdout and len(result.stdout.splitlines()) == 2
    (folder / "tkinter.py").write_text("raise ModuleNotFoundError(\"No module named 'tkinter'\", "
                                       "name='tkinter')", encoding="utf-8")
    result = run(folder / "decode_VAE.py")
    assert result.returncode == 1 and "python3-tk" in result.stdout
    assert "tkinter" in result.stdout and len(result.stdout.splitlines()) == 1


# ------------------------------------------------------------------ dans Spyder
def test_ten_runs_in_one_spyder_console(folder, screen):
    """Dix fois %runfile dans la même console : dix fenêtres, rien d'écrit d'étrange, la mémoire
    ne grandit pas ; puis le bouton d'arrêt, et la console répond encore."""
    pytest.importorskip("spyder_kernels")
    save_model(strong_vae(), folder / "model_VAE_64.pt")
    from jupyter_client import KernelManager
    from jupyter_client.kernelspec import KernelSpec
    manager = KernelManager()
    manager._kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "spyder_kernels.console", "-f", "{connection_file}"])
    errors = open(folder / "erreurs.txt", "w+", encoding="utf-8")
    manager.start_kernel(env={**os.environ, **screen.env}, stderr=errors)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(60)

        def execute(code, when_open=None):
            """Exécute `code` ; rend tout ce que la console a écrit."""
            request, text = client.execute(code), ""
            while True:
                message = client.get_iopub_msg(timeout=60)
                if message["parent_header"].get("msg_id") != request:
                    continue
                content = message["content"]
                text += content.get("text", "") + "\n".join(content.get("traceback", []))
                if "La fenêtre est ouverte." in content.get("text", "") and when_open:
                    screen.window("decode_VAE")
                    time.sleep(0.8)
                    when_open()
                    when_open = None
                if content.get("execution_state") == "idle":
                    return text

        def close():
            screen.xdotool("key", "i", "h")
            time.sleep(0.3)
            screen.xdotool("key", "alt+F4")

        memory = []
        for number in range(10):
            wdir = f" --wdir '{folder}'" if number % 2 else ""
            text = execute(f"%runfile '{folder / 'decode_VAE.py'}'{wdir}", close)
            assert text.split("\n")[:3] == ["Chargement de PyTorch...", "La fenêtre est ouverte.",
                                            "La fenêtre est fermée."], text
            rss = execute("import psutil; print('@', psutil.Process().memory_info().rss)")
            memory.append(int(rss.split("@")[1]) / 2**20)
        assert max(memory[6:]) - memory[3] < 15, f"la mémoire grandit : {memory} Mio"
        text = execute(f"%runfile '{folder / 'decode_VAE.py'}'", manager.interrupt_kernel)
        assert "La fenêtre est fermée." in text and "Error" not in text and "rror" not in text
        assert "42" in execute("print(6 * 7)")
        assert "4" in execute("print(vae.latent_size)")
        errors.seek(0)
        assert "invalid command" not in errors.read(), "une fenêtre fermée vit encore"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        errors.close()
