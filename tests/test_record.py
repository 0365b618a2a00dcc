"""record_images.py : la vraie fenêtre (Xvfb), de vraies touches (xdotool), une caméra que le test commande :
chaque lettre qu'il lui écrit est une image, dont le bleu dit le numéro, dans les fichiers et à l'écran."""
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from kit import NO_OPENCV, ROOT, Screen, edit_zone, run, wait_until, write_film
from PIL import Image

cv2 = pytest.importorskip("cv2", reason=NO_OPENCV)

RED, GREY = [220, 0, 0], [60, 60, 60]
GRAIN = np.random.default_rng(0).integers(0, 100, (128, 128, 3), np.uint8)
OPENING = ["Ouverture de la caméra...", "(devant)",
           "Cliquez sur la fenêtre, puis maintenez « s » pour enregistrer ; « q » pour finir."]
FAKE = """
import os, threading, time
import cv2
from PIL import Image
from test_record import numbered

fake, wait_key, save = os.environ["FAKE"], cv2.waitKeyEx, Image.Image.save

class Camera:
    number = 0
    def open(self, source):
        return threading.current_thread() is threading.main_thread()    # macOS y tient
    def get(self, prop):
        return float("nan")
    def read(self):
        self.number += 1
        if fake in ("noire", "débranchée"):
            time.sleep(1 / 30)
            return fake == "noire", numbered(0) // 22
        return os.read(0, 1) != b"", numbered(self.number)              # attend une lettre
    def release(self):
        print("(libérée)")

def windows_key(delay):             # une horloge lente, et des majuscules sous Verr. Maj.
    time.sleep(0.02)
    code = wait_key(delay)
    return ord(chr(code).upper()) if code > 0 else code

def full_disk(image, path):
    save(image, path)
    if path.name == "image_00003.png":
        os.truncate(path, 99)
        raise OSError

cv2.VideoCapture = Camera
cv2.setWindowProperty = lambda *what: print("(devant)" if what[1:] == (cv2.WND_PROP_TOPMOST, 1) else what)
if fake == "Windows":
    cv2.waitKeyEx = windows_key
if fake == "disque lent":
    Image.Image.save = lambda *arguments: (time.sleep(0.15), save(*arguments))
if fake == "disque plein":
    Image.Image.save = full_disk
"""     # sitecustomize.py, que Python lit avant record_images.py


def numbered(number):
    """L'image de ce numéro, 160 × 128 ; hors de son carré du milieu, du magenta."""
    picture = np.full((128, 160, 3), (255, 0, 255), np.uint8)
    picture[:, 16:144] = GRAIN
    picture[:, 16:144, 0] = number
    return picture


class Recorder:
    """record_images.py en marche ; fake : les travers de la caméra, de l'ordinateur ; None : les vrais."""

    def __init__(self, at_end, screen, folder, fake="", images_folder="images", **zone):
        edit_zone(folder / "record_images.py", images_folder=images_folder, **zone)
        self.screen, self.images = screen, folder / images_folder
        self.sent = 1                           # le numéro de la dernière image envoyée
        env = {**os.environ, **screen.env, "PYTHONIOENCODING": "cp1252"}
        if fake is not None:
            (folder / "sitecustomize.py").write_text(FAKE, encoding="utf-8")
            env.update(FAKE=fake, PYTHONPATH=f"{folder}{os.pathsep}{ROOT / 'tests'}")
        self.process = subprocess.Popen(
            [sys.executable, folder / "record_images.py"], env=env, encoding="cp1252",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        at_end.callback(self.process.kill)

    def opened(self):
        """Attend que la fenêtre soit à sa place, avec une image ; rend ce Recorder."""
        window = self.screen.window("record_images")
        self.screen.xdotool("windowactivate", "--sync", window)

        def in_place():
            corner = self.screen.xdotool("mousemove", "--window", window, 0, 0, "getmouselocation")
            if found := re.match(r"x:(\d+) y:(\d+)", corner):
                self.x, self.y = map(int, found.groups())
            return found and self.picture()[8, 8].tolist() == GREY
        os.write(self.process.stdin.fileno(), b"i")
        wait_until(in_place)
        self.send(0)
        return self

    def send(self, count):
        """La caméra envoie ces images ; attend que la fenêtre montre la dernière."""
        os.write(self.process.stdin.fileno(), b"i" * count)
        self.sent += count
        wait_until(lambda: self.picture()[12, 12, 2] == self.sent)

    def send_until(self, color):
        """Envoie des images une à une, jusqu'à ce que le cadre soit de cette couleur."""
        wait_until(lambda: self.send(1) or self.picture()[8, 8].tolist() == color)

    def picture(self):
        """Ce que montre la fenêtre, en tableau RVB : une image de la caméra, un cadre, un texte."""
        return np.asarray(self.screen.picture((self.x, self.y, self.x + 408, self.y + 440)))

    def says(self, count):
        """Vrai si le texte de la fenêtre annonce ce nombre d'images."""
        text = np.full((440, 408, 3), GREY, np.uint8)
        cv2.putText(text, f"Images : {count}    s : enregistrer    q : quitter", (12, 424),
                    cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
        return np.array_equal(self.picture()[396:], text[396:])

    def tap(self):
        """Un appui bref ; attend qu'il soit enregistré, et la touche tenue pour relâchée."""
        before = len(self.files())
        self.screen.xdotool("key", "s")
        wait_until(lambda: len(self.files()) > before)
        self.send_until(GREY)

    def files(self):
        return sorted(self.images.glob("image_0*.png"))

    def numbers(self):
        """Les numéros des images enregistrées, qui sont toutes entières."""
        return [np.asarray(Image.open(path).convert("RGB"))[0, 0, 2] for path in self.files()]

    def end(self, *keys):
        """Tape ces touches (sinon : Ctrl-C), débranche la caméra ; rend les lignes de la console."""
        self.screen.xdotool("key", *keys) if keys else self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=60)[0].splitlines()

    def report(self, total):
        return f"Images enregistrées dans {self.images} : {total} ({total} en tout)."


@pytest.fixture
def record(screen, folder):
    """record(**zone) lance record_images.py dans le dossier de l'étudiant."""
    with contextlib.ExitStack() as at_end:
        at_end.callback(screen.xdotool, "keyup", "s")
        yield lambda screen=screen, **options: Recorder(at_end, screen, folder, **options)


@pytest.mark.parametrize("code, display, words", [
    ("raise ImportError('No module cv2')", None, "bibliothèque : No module cv2. Lancez Spyder"),
    ("currentUIFramework = str", None, "désinstallez opencv-python-headless"),
    ("", "", "Aucun écran : "), ("", ":987", "Aucun écran : ")])
def test_nothing_to_show_with(folder, tmp_path, screen, code, display, words):
    """Sans OpenCV, ses fenêtres, ou écran : une phrase. Ses réglages précèdent son import."""
    (tmp_path / "cv2.py").write_text(
        "import os\nassert os.environ['OPENCV_VIDEOIO_MSMF_ENABLE_HW_TRANSFORMS'] == '0'\n" + code)
    display = screen.display if display is None else display
    output = run(folder / "record_images.py", env={"PYTHONPATH": str(tmp_path), "DISPLAY": display})
    assert words in output.stdout and output.stdout.count("\n") == 1 == output.returncode


@pytest.mark.parametrize("size, keys, said", [(8, [], ["Arrêt demandé."]), (64, ["Escape"], [])])
def test_the_window_shows_what_is_saved(record, size, keys, said):
    """Le carré du milieu, réduit par moyennes, en miroir, bonnes couleurs ; un petit écran suffit. Ctrl-C
    et Échap : un bilan, et rien d'autre."""
    recorder = record(images_size=size).opened()
    assert recorder.y + 440 < 1080 / 2              # 1920 × 1080 à 200 %
    window = recorder.picture()[12:396, 12:396]
    recorder.tap()
    output = [*OPENING, *said, "(libérée)", recorder.report(1)]
    assert recorder.end(*keys) == output and recorder.process.returncode == 0
    with Image.open(recorder.images / "image_00001.png") as saved:
        assert (saved.format, saved.mode, saved.size) == ("PNG", "RGB", (size, size))
        saved = np.asarray(saved)
    assert np.array_equal(window, saved.repeat(384 // size, axis=0).repeat(384 // size, axis=1))
    square = numbered(1)[:, 16:144, ::-1].reshape(size, 128 // size, size, 128 // size, 3)
    assert np.abs(saved - square.mean(axis=(1, 3))[:, ::-1]).max() <= 1


@pytest.mark.parametrize("fake, delay, interval", [("", 1000, 200), ("", 250, 8), ("Windows", 500, 33)])
def test_held_and_tapped(record, fake, delay, interval):
    """« s » maintenue : les images de l'appui au relâchement, cadre rouge, aucune autre ; brève : une seule.
    Répétée plus ou moins vite ; Windows a une horloge lente, et des majuscules sous Verr. Maj."""
    with contextlib.closing(Screen(delay=delay, interval=interval)) as screen:
        recorder = record(screen, fake=fake).opened()
        screen.xdotool("keydown", "s")
        recorder.send_until(RED)
        first = recorder.sent
        time.sleep(0.5)                                      # le cadre s'éteint avant la première répétition
        recorder.send(20)
        wait_until(lambda: len(recorder.files()) > 20)
        recorder.send_until(RED)
        last = recorder.sent
        screen.xdotool("keyup", "s")
        recorder.send_until(GREY)
        held = recorder.numbers()
        assert held == list(range(held[0], held[-1] + 1))
        assert held[0] <= first and last <= held[-1] < recorder.sent
        tapped = recorder.sent
        screen.xdotool("key", "s")
        time.sleep(0.1)
        recorder.send_until(GREY)                            # venues après l'appui : pas enregistrées
        assert recorder.says(len(held) + 1)                  # déjà comptée
        wait_until(lambda: len(recorder.files()) > len(held))
        screen.xdotool("key", "Left", "F4", "a", "Right")    # 0xFF53 finit comme « S », 0x53
        recorder.send_until(GREY)
        screen.xdotool("key", "s")
        time.sleep(0.1)                                      # une main ne tape pas plus vite
        assert recorder.end("q")[-1] == recorder.report(len(held) + 2)
        assert recorder.numbers() == [*held, tapped, recorder.sent]            # le dernier appui aussi


def test_slow_disk(record, screen):
    """Un disque lent ne fige ni l'image, ni le cadre ; « q » attend que toutes les images soient écrites."""
    recorder = record(fake="disque lent").opened()
    screen.xdotool("keydown", "s")
    recorder.send_until(RED)
    recorder.send(45)
    wait_until(recorder.files)                              # maintenue, et non brève
    recorder.send_until(RED)
    screen.xdotool("keyup", "s")
    recorder.send_until(GREY)
    assert len(recorder.files()) < 25
    assert recorder.end("q")[-1] == recorder.report(len(recorder.files()))
    numbers = recorder.numbers()
    assert numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 45


@pytest.mark.parametrize("fps, images, seconds", [(10, 60, 6), (1000, 90, 3), (0.1, 30, 1)])
def test_film(folder, screen, fps, images, seconds):
    """Un film, même noir, passe jusqu'au bout à sa vitesse, ou, s'il en annonce une folle, à 30 par s."""
    write_film(folder / "film.avi", np.zeros((images, 128, 160, 3), np.uint8), fps)
    edit_zone(folder / "record_images.py", camera="film.avi")
    start = time.monotonic()
    done = run(folder / "record_images.py", env=screen.env, timeout=60)
    assert time.monotonic() - start > seconds and done.returncode == 0
    assert done.stdout.splitlines()[2:] == [
        "Fin du film.", f"Images enregistrées dans {folder / 'images'} : 0 (0 en tout)."]


def test_numbering(record, folder):
    """La numérotation continue après la plus haute ; rien n'est touché ; tout nom convient. La croix finit."""
    images = folder / "été à la plage/forêt n° 1"
    images.mkdir(parents=True)
    others = {"image_00041.png", "image_7.png", "photo.JPG", "image_tard.png", "image_99999.jpeg"}
    for other in others:
        shutil.copy(ROOT / "images" / "exemple" / "visage_000.png", images / other)
    content = (images / "photo.JPG").read_bytes()
    recorder = record(images_folder="été à la plage/forêt n° 1").opened()
    assert recorder.says(2)
    recorder.tap()
    assert recorder.says(3)
    shutil.copy(images / "photo.JPG", images / "image_00043.png")       # venue entre-temps
    recorder.tap()
    recorder.screen.xdotool("key", "alt+F4")
    recorder.process.wait(30)                               # même quand la caméra se tait
    assert " : 2 (4 en tout)" in recorder.end()[-1] and recorder.process.returncode == 0
    new = {"image_00042.png", "image_00043.png", "image_00044.png"}
    assert {path.name for path in images.iterdir()} == others | new
    for other in [*others, "image_00043.png"]:
        assert (images / other).read_bytes() == content


def test_full_disk(record, screen):
    """Disque plein : une phrase, ce qui est enregistré est entier, rien de commencé ne reste."""
    recorder = record(fake="disque plein").opened()
    screen.xdotool("keydown", "s")
    os.write(recorder.process.stdin.fileno(), b"i" * 100)
    assert recorder.process.wait(30) == 1 and len(recorder.numbers()) == 2
    output = recorder.end()
    assert f"Impossible d'écrire dans {recorder.images}" in output[len(OPENING)]
    assert output[-1] == recorder.report(2)


@pytest.mark.parametrize("fakes, camera, opening, trouble", [
    ([None], 9, 1, "ne s'ouvre pas"), ([None], "absent.mp4", 1, "ne s'ouvre pas"),
    (["", "noire", "débranchée"], 0, 3, "Depuis 5 s")])
def test_cameras_that_fail(record, fakes, camera, opening, trouble):
    """Absente ; muette, noire, débranchée (les trois à la fois) : ce qu'il faut vérifier, rien d'OpenCV."""
    for recorder in [record(fake=fake, camera=camera) for fake in fakes]:
        assert recorder.process.wait(60) == 1
        text = recorder.process.stdout.read().replace("(libérée)\n", "")
        said = text.splitlines()
        assert said[:opening] == OPENING[:opening] and said[-1] == recorder.report(0)
        assert trouble in said[opening] and len(said) == opening + 5
        for word in ("branchée", "volet", "Teams", "Windows", "macOS", f"camera = {camera!r}"):
            assert word in text
