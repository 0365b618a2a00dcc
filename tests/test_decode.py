"""decode_VAE.py : la vraie fenêtre, à la souris et au clavier, sur un écran virtuel."""
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from kit import Raw, Screen, copy_kit, edit_zone, run, wait_until
from model_VAE_64 import VAE, find_images, read_image, save_model
from PIL import Image
from torchvision.transforms.functional import to_pil_image, to_tensor

# Lance un script en écrivant sans cesse dans un fichier ce que contient sa fenêtre : ses widgets, et
# combien de grandes images ont été dessinées. PREPARE est un texte Python exécuté avant.
SPY = """
import json, os, runpy, sys, time, tkinter
from PIL import ImageTk
script, out, drawn = sys.argv[1], sys.argv[2], 0
exec(os.environ.get("PREPARE", ""))

class Counted(ImageTk.PhotoImage):
    def __init__(self, image, **options):
        global drawn
        super().__init__(image, **options)
        drawn += image.height > 150
ImageTk.PhotoImage = Counted

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

mainloop = tkinter.Misc.mainloop
tkinter.Misc.mainloop = lambda window, n=0: (spy(window), mainloop(window, n))
runpy.run_path(script, run_name="__main__")
"""

# Une caméra qui met quatre secondes à s'ouvrir, dont une image sur deux est étrange, puis qui se tait
CAMERA = """
import cv2, numpy as np
class Camera:
    number, isOpened, release = 0, lambda self: True, lambda self: None
    grey = np.full((48, 64), 60, np.uint8)
    odd = [grey, grey[:0], None, grey.astype(np.uint16), 1 / 3, grey[:, :, None]]
    def __init__(self, source):
        time.sleep(4)
    def read(self):
        time.sleep(1 / 30)
        self.number += 1
        if self.number > 90:
            return False, None
        if self.number % 22 == 0:
            raise cv2.error("Unknown C++ exception from OpenCV code")
        return True, [np.full((48, 64, 3), self.number, np.uint8), self.odd[self.number // 2 % 6]][self.number % 2]
cv2.VideoCapture = Camera
"""
GAP = torch.ones(3, 64, 4)     # entre l'original et l'image dessinée
window = pytest.mark.window


def strong_vae(latent_size=4, images_size=64):
    """Un VAE non entraîné, mais dont chaque nombre se voit (sauf z2, qui ne change rien), et dont
    l'encodeur rend des nombres qui sortent des sliders."""
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
        self.out.unlink(missing_ok=True)
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

    def seen(self, kind):
        return [widget for widget in json.loads(self.out.read_text())[1:] if widget["kind"] == kind]

    def drawn(self):
        return json.loads(self.out.read_text())[0]

    def numbers(self):
        return [scale["value"] for scale in self.seen("TScale")]

    def view(self):
        return max((label for label in self.seen("TLabel")), key=lambda label: label["size"][1])

    def status(self):
        return self.seen("Label")[0]["text"]

    def says(self, words, timeout=30):
        """Attend que la ligne de messages contienne ces mots ; rend sa couleur."""
        wait_until(lambda: words in self.status(), timeout)
        return self.seen("Label")[0]["foreground"]

    def calm(self):
        """Attend que plus rien ne change, petites images comprises."""
        def unchanged():
            before = self.out.read_text()
            time.sleep(0.5)
            return before == self.out.read_text()
        wait_until(unchanged, 30)

    def decode(self, *codes):
        return self.vae.decode(torch.tensor(codes, dtype=torch.float32))

    def shows(self, images, label=None, limit=2):
        """Ces images (3×S×S), côte à côte, sont à l'écran, au milieu du label (la grande image)."""
        label = label or self.view()
        self.screen.picture(self.folder.parent / "screen.png")
        width, height = label["size"]
        left, top = label["x"] + (label["w"] - width) // 2, label["y"] + (label["h"] - height) // 2
        seen = Image.open(self.folder.parent / "screen.png").convert("RGB")
        wanted = to_pil_image(torch.cat(list(images), dim=2)).resize((width, height))
        return np.abs(np.asarray(seen.crop((left, top, left + width, top + height)), float) - wanted).mean() < limit

    def key(self, *keys):
        self.screen.xdotool("key", "--delay", "30", *keys)

    def hold(self, key):
        self.screen.xdotool("keydown", key, "sleep", 1.2, "keyup", key)

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
    """La fenêtre partagée, sans original, tous les sliders à zéro."""
    shared.key("h")
    wait_until(lambda: any(shared.numbers()))
    shared.key("z")
    wait_until(lambda: not any(shared.numbers()))
    shared.calm()
    return shared


# ------------------------------------------------------------------ l'image et les sliders
@window
def test_sliders_by_mouse_and_keys(fenetre):
    """L'image de z = 0 est là dès le début ; elle suit la souris et les flèches."""
    assert fenetre.view()["size"] >= [384, 384] and fenetre.numbers() == [0, 0, 0, 0]
    assert fenetre.shows(fenetre.decode([0, 0, 0, 0]))
    assert not fenetre.shows(fenetre.decode([3, 0, 0, 0]), limit=6)
    scale, before = fenetre.seen("TScale")[2], fenetre.drawn()
    x, y = scale["x"] + scale["w"] // 2, scale["y"] + scale["h"] // 2
    moves = [word for move in range(300) for word in ("mousemove", x + move % 100, y)]
    fenetre.screen.xdotool("mousemove", x, y, "mousedown", 1, *moves, "mousemove", x + 120, y, "mouseup", 1)
    fenetre.calm()
    z = fenetre.numbers()
    assert z[2] == pytest.approx(120 / (scale["w"] - 30) * 6, abs=0.1) and z[:2] + z[3:] == [0, 0, 0]
    assert fenetre.shows(fenetre.decode(z)) and fenetre.seen("TLabelframe")[2]["text"] == f"z3 = {z[2]:+.2f}"
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


@window
def test_strips_and_sleeping_slider(fenetre):
    """Sous chaque slider, ce qu'il change de gauche à droite ; z2, sans effet, est « inactif »."""
    strips = [label for label in fenetre.seen("TLabel") if label["size"][1] < 100]
    assert [strip["text"] for strip in strips] == ["", "inactif", "", ""]
    images = fenetre.decode(*[[number, 0, 0, 0] for number in range(-3, 4)])
    assert fenetre.shows(images, strips[0], 8) and not fenetre.shows(images.flip(0), strips[0], 20)


# ------------------------------------------------------------------ les boutons et leurs touches
@window
def test_it_glides(fenetre):
    """Au hasard, tout à zéro : un chemin que l'œil suit ; un autre geste le prend en main."""
    for key in "h", "z":
        before = fenetre.drawn()
        fenetre.key(key)
        wait_until(lambda: any(fenetre.numbers()) == (key == "h"))
        fenetre.calm()
        assert fenetre.drawn() - before >= 5, "sur une machine libre, plus de vingt"
        assert any(fenetre.numbers()) == (key == "h")
        assert fenetre.shows(fenetre.decode(fenetre.numbers()))
    fenetre.click(fenetre.seen("TButton")[1])
    wait_until(lambda: any(fenetre.numbers()))
    fenetre.click(fenetre.seen("TScale")[3], x=60)
    fenetre.calm()
    assert fenetre.numbers()[3] < -1.5, "une main sur un slider l'emporte"


def errors(fenetre):
    """Les deux erreurs que dit la ligne de messages."""
    return [float(word.rstrip(".")) for word in fenetre.status().split() if word[0].isdigit()]


@window
def test_real_images_and_challenge(fenetre):
    """L'original à gauche, à droite ce que le modèle en dessine ; puis le défi."""
    seen = []
    for path in find_images(fenetre.folder / "images")[:2]:
        original = to_tensor(read_image(path, 64))
        mu = fenetre.vae.encode(original[None])[0][0].tolist()
        fenetre.click(fenetre.seen("TButton")[2])
        wait_until(lambda: fenetre.numbers() == pytest.approx(mu, abs=1e-3))
        fenetre.calm()
        seen += fenetre.numbers()
        assert fenetre.numbers() == pytest.approx(mu, abs=1e-3) and fenetre.view()["size"][1] >= 384
        drawn, blank = fenetre.decode(mu, [0, 0, 0, 0])
        assert fenetre.shows([original, GAP, drawn])
        best, mine = [(image - original).square().sum().item() for image in (drawn, blank)]
        assert errors(fenetre) == pytest.approx([best, best], rel=1e-3)
    assert max(map(abs, seen)) > 3, "le test veut un nombre hors du slider"
    fenetre.key("z")
    fenetre.calm()
    assert fenetre.shows([original, GAP, blank]) and errors(fenetre) == pytest.approx([mine, best], rel=1e-3)
    fenetre.click(fenetre.seen("TScale")[0], x=40)
    wait_until(lambda: errors(fenetre)[0] != pytest.approx(mine, rel=1e-3))
    fenetre.key("h")
    fenetre.calm()
    assert fenetre.shows(fenetre.decode(fenetre.numbers()))
    assert "Défi" in fenetre.status(), "la fenêtre dit que l'on peut y jouer"


@window
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


@window
def test_saving(fenetre):
    """Un nom nouveau, qui porte les nombres ; une touche maintenue n'écrit qu'un fichier ; disque
    plein : un message d'une autre couleur, aucun débris, rien ne bouge, et la fenêtre continue."""
    kept = fenetre.folder / "decode_VAE_001_+0.00_+0.00_+0.00_+0.00.png"
    kept.write_bytes(b"hier")
    fenetre.key("h")
    fenetre.calm()
    fenetre.hold("e")
    path = fenetre.folder / "_".join(["decode_VAE_002", *(f"{z:+.2f}" for z in fenetre.numbers())])
    assert fenetre.says(path.name + ".png") == "black" and kept.read_bytes() == b"hier"
    wanted = to_pil_image(fenetre.decode(fenetre.numbers())[0]).resize((512, 512))
    assert np.abs(np.asarray(Image.open(f"{path}.png"), float) - wanted).mean() < 2
    limit, buttons = ["prlimit", "--pid", str(fenetre.process.pid)], fenetre.seen("TButton")
    if subprocess.run([*limit, "--fsize=30000:"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("prlimit ne fonctionne pas ici")
    fenetre.key("e")
    time.sleep(1)      # l'espion non plus ne peut pas écrire
    subprocess.run([*limit, "--fsize=unlimited:"], check=True)
    assert fenetre.says("Impossible d'écrire") != "black" and fenetre.seen("TButton") == buttons
    assert len(list(fenetre.folder.glob("decode_VAE_*.png"))) == 2
    fenetre.key("e")
    fenetre.says("decode_VAE_003")


# ------------------------------------------------------------------ la webcam
def write_film(path):
    """Un film de 10 s : rouge à gauche, à droite bleu, puis vert dans la seconde moitié."""
    cv2 = pytest.importorskip("cv2")
    film = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (160, 120))
    for number in range(300):
        frame = np.zeros((120, 160, 3), np.uint8)
        frame[:, :80, 2] = 255
        frame[:, 80:, number // 150] = 255
        film.write(frame)
    film.release()


@window
def test_webcam(folder, screen):
    """Le film tient lieu de webcam : les sliders suivent, l'original est en miroir, couleurs
    justes ; w, même maintenue, l'ouvre ou la ferme une fois ; une main sur un slider l'arrête."""
    write_film(folder / "film.avi")
    with Fenetre(folder, screen, camera="film.avi") as fenetre:
        def opened():
            links = os.listdir(f"/proc/{fenetre.process.pid}/fd")
            return "film.avi" in str([os.path.realpath(f"/proc/{fenetre.process.pid}/fd/{fd}") for fd in links])
        fenetre.hold("w")
        fenetre.says("Touche w")
        first, original = fenetre.numbers(), torch.zeros(3, 64, 64)
        original[2, :, :32] = original[0, :, 32:] = 1
        assert opened() and fenetre.shows([original, GAP, *fenetre.decode(first)], limit=8)
        wait_until(lambda: fenetre.numbers() != pytest.approx(first, abs=0.5), 15)   # seconde moitié
        fenetre.click(fenetre.seen("TScale")[0], x=60)
        wait_until(lambda: not opened())
        wait_until(lambda: "Touche w" not in fenetre.status())
        fenetre.key("w")                                       # et de nouveau, jusqu'à la fin
        start = time.monotonic()
        assert fenetre.says("Fin du film.") == "black" and time.monotonic() - start > 8
        fenetre.key("w")
        wait_until(opened)
        screen.xdotool("key", "alt+F4")                        # fermée pendant la webcam
        text = fenetre.process.communicate(timeout=20)[0]
        assert fenetre.process.returncode == 0 and len(text.splitlines()) == 3, text
        assert "fermez-la avant de relancer" in text and "La fenêtre est fermée." in text


@window
def test_bad_camera(folder, screen, fenetre):
    """Des images étranges sont passées, le silence termine, en une phrase ; pendant que la caméra
    s'ouvre, la fenêtre répond, et chaque appui compte ; s'il n'y en a pas, une phrase."""
    fenetre.key("w")
    assert fenetre.says("camera = 7") != "black"
    with Fenetre(folder, screen, prepare=CAMERA, camera=0) as fenetre:
        fenetre.key("w")
        fenetre.says("Ouverture")
        fenetre.key("w")
        wait_until(lambda: "Ouverture" not in fenetre.status(), 3.8)
        fenetre.key("w", "h")
        wait_until(lambda: any(fenetre.numbers()), 3.8)
        fenetre.key("w")
        fenetre.says("Touche w")
        drawn = fenetre.drawn()
        assert fenetre.says("n'envoie pas d'image") != "black" and fenetre.drawn() > drawn + 30


# ------------------------------------------------------------------ la taille de la fenêtre
@window
@pytest.mark.parametrize("latent_size, images_size, size",
                         [(1, 128, "1366x768"), (16, 32, "1024x600"), (32, 64, "1366x768")])
def test_everything_fits(folder, latent_size, images_size, size):
    """De 1 à 32 sliders, leurs petites images, les boutons et les messages tiennent à l'écran."""
    screen, (width, height) = Screen(size), map(int, size.split("x"))
    try:
        with Fenetre(folder, screen, strong_vae(latent_size, images_size)) as fenetre:
            fenetre.key("i")
            fenetre.says("Défi : « Tout")
            fenetre.calm()
            for kind in "TScale", "TLabelframe", "TButton", "Label":
                for widget in fenetre.seen(kind):
                    assert 0 <= widget["x"] and widget["x"] + widget["w"] <= width, widget
                    assert 0 <= widget["y"] and widget["y"] + widget["h"] <= height - 40, widget
                    assert widget["asked"] <= widget["w"], widget
            assert fenetre.view()["size"][1] >= (384 if width > 1024 else 250)
            fenetre.click(fenetre.seen("TScale")[-1], x=20)
            wait_until(lambda: fenetre.numbers()[-1] < -1)
    finally:
        screen.close()


# ------------------------------------------------------------------ ce qui ne va pas
@pytest.mark.parametrize("name, values", [
    ("model_file", [None, 4, "", "  ", "a\0b.pt", Raw("b'x'")]),
    ("images_folder", [None, 4.5, "", Raw('"images\\test"')]),
    ("camera", [None, 4.5, True, -1, 100, "", Raw("float('nan')"), (0,)]),
    ("images_size", []), ("latent_size", [])])
def test_wrong_zone(folder, name, values):
    """Une mauvaise valeur, une ligne effacée : une phrase qui nomme le paramètre, avant PyTorch."""
    script = folder / "decode_VAE.py"
    good = script.read_text(encoding="utf-8")
    (folder / "torch.py").write_text("raise SystemError", encoding="utf-8")
    for value in values:
        edit_zone(script, **{name: value})
        result = run(script)
        assert result.returncode == 1 and result.stdout.startswith(f"Paramètre {name} = "), result.stdout
        assert "avec /" in result.stdout and result.stdout.count("\n") == 1, result.stdout
    script.write_text(good.replace(f"\n{name} = ", "\n# "), encoding="utf-8")
    result = run(script)
    assert result.returncode == 1 and f"Il manque la ligne « {name} = ... »" in result.stdout, result.stdout


@pytest.mark.parametrize("zone, words", [
    ({"latent_size": 8}, ["latent_size = 8", "latent_size = 4", "zone ***", "train_VAE.py"]),
    ({"images_size": "64"}, ["images_size = '64'", "images_size = 64"]), ({}, ["python3-tk"]),
    ({"model_file": "absent.pt"}, ["absent.pt", "train_VAE.py"]), ({"model_file": "README"}, ["README"])])
def test_wrong_model_or_library(folder, zone, words):
    """Un autre modèle que celui de la zone, absent, étranger ; pas de tkinter : une phrase."""
    save_model(VAE(4, 64), folder / "model_VAE_64.pt")
    (folder / "README").write_text("bonjour")
    edit_zone(folder / "decode_VAE.py", **zone)
    if not zone:
        (folder / "tkinter.py").write_text("raise ImportError('No module named tkinter')")
    result = run(folder / "decode_VAE.py", env={"DISPLAY": ""})
    assert result.returncode == 1 and all(word in result.stdout for word in words), result.stdout
    assert len(result.stdout.splitlines()) == 2 and "Traceback" not in result.stdout


# ------------------------------------------------------------------ dans Spyder
@window
def test_runs_in_one_spyder_console(folder, screen):
    """%runfile encore et encore dans la même console : rien d'étrange, la mémoire ne grandit pas ;
    puis le bouton d'arrêt, pendant que la fenêtre se construit et après."""
    if not find_spec("spyder_kernels"):
        pytest.skip("pip install spyder-kernels")
    save_model(strong_vae(), folder / "model_VAE_64.pt")
    from jupyter_client import KernelManager
    from jupyter_client.kernelspec import KernelSpec
    manager = KernelManager()
    manager._kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "spyder_kernels.console", "-f", "{connection_file}"])
    with open(folder / "erreurs.txt", "w+", encoding="utf-8") as errors:
        manager.start_kernel(env={**os.environ, **screen.env}, stderr=errors)
        client = manager.client()
        client.start_channels()

        def execute(code, when_open=None):
            """Exécute `code` ; rend tout ce que la console a écrit."""
            request, text, message = client.execute(code), "", {"content": {}}
            while message["content"].get("execution_state") != "idle":
                message = client.get_iopub_msg(timeout=60)
                if message["parent_header"].get("msg_id") != request:
                    message = {"content": {}}
                content = message["content"]
                text += content.get("text", "") + "\n".join(content.get("traceback", []))
                if "La fenêtre est ouverte" in content.get("text", ""):
                    time.sleep(1)
                    when_open()
            return text

        try:
            client.wait_for_ready(60)
            script, memory = f"%runfile '{folder / 'decode_VAE.py'}'", []
            execute("import os, signal, psutil, tkinter; title = tkinter.Wm.wm_title")
            for number in range(6):
                if number == 4:
                    execute("def stopped(*words):\n    os.kill(os.getpid(), signal.SIGINT)\n"
                            "    return title(*words)\ntkinter.Wm.title = stopped")
                text = execute(script, manager.interrupt_kernel if number > 3 else lambda: screen.xdotool(
                    "key", "i", "h", "sleep", 0.3, "key", "alt+F4"))
                assert len(text.splitlines()) == 3 and "La fenêtre est fermée." in text, text
                memory.append(int(execute("print(psutil.Process().memory_info().rss // 2**20)")))
            assert max(memory) - memory[1] < 20, f"la mémoire grandit : {memory} Mio"
            assert "4" in execute("print(vae.latent_size)")
            errors.seek(0)
            assert "invalid command" not in errors.read(), "une fenêtre fermée vit encore"
        finally:
            client.stop_channels()
            manager.shutdown_kernel(now=True)
