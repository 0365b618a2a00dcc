"""record_images.py : la vraie fenêtre (Xvfb), de vraies touches (xdotool), une caméra imitée, dont
chaque image porte son numéro, en damier de 4 × 4 cases, que l'on lit dans les fichiers et à l'écran."""
import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from kit import NO_OPENCV, ROOT, edit_zone, run, wait_until, write_film
from PIL import Image

cv2 = pytest.importorskip("cv2", reason=NO_OPENCV)

RED, GREY = (220, 0, 0), (60, 60, 60)
GRAIN = np.random.default_rng(0).integers(0, 100, (128, 128, 3), np.uint8)
OPENING = ["Ouverture de la caméra...",
           "Cliquez sur la fenêtre, puis maintenez « s » pour enregistrer ; « q » pour finir."]
FAKE = """
import os, threading, time
import cv2
from PIL import Image
from test_record import number_picture

words = os.environ["FAKE"].split()

class Camera:
    number = 0
    def open(self, source):
        return threading.current_thread() is threading.main_thread()    # macOS y tient
    def get(self, prop):
        return float("nan")
    def read(self):
        time.sleep(3600 if "muette" in words or "coupée" in words and self.number == 60 else
                   0.1 if "lente" in words else 1 / 30)
        self.number += "fixe" not in words
        dark = "noire" in words or "tardive" in words and self.number < 60
        return "débranchée" not in words or self.number < 45, number_picture(self.number) // (22 if dark else 1)
    def release(self):
        print("libre")

def slow(function, word, seconds):
    return lambda *arguments: (time.sleep(word in words and seconds), function(*arguments))[1]

def upper_key(delay):       # ce que rend Windows sous Verr. Maj.
    code = wait_key(delay)
    return ord(chr(code).upper()) if "majuscules" in words and code > 0 else code

wait_key = slow(cv2.waitKeyEx, "écran", 0.02)
cv2.VideoCapture, cv2.waitKeyEx = Camera, upper_key
Image.Image.save = slow(Image.Image.save, "disque", 0.1)
cv2.setWindowProperty = lambda title, *what: print("devant" if what == (cv2.WND_PROP_TOPMOST, 1) else what)
"""     # sitecustomize.py : une caméra, un écran, un disque qui ne font pas toujours ce qu'on attend


def number_picture(number):
    """Une image de 160 × 128 qui porte `number` (12 bits) dans son carré du milieu."""
    bits = np.array([number >> k & 1 for k in range(12)] + [1, 0, 0, 1], np.uint8).reshape(4, 4)
    picture = np.full((128, 160, 3), (255, 0, 255), np.uint8)       # hors du carré : magenta
    picture[:, 16:144] = np.kron(150 * bits, np.ones((32, 32), np.uint8))[:, :, None] + GRAIN
    return picture


def read_number(square):
    """Le numéro que porte une image enregistrée ou montrée ; None si elle n'en porte pas."""
    step = len(square) // 4
    bits = (square[step // 2::step, step // 2::step, 1][:, ::-1] > 125).ravel()
    if bits[12:].tolist() == [True, False, False, True]:
        return sum(int(bit) << k for k, bit in enumerate(bits[:12]))


class Recorder:
    """record_images.py en marche ; fake : les travers de la caméra ; window : attendre une image."""

    def __init__(self, at_end, screen, folder, fake="", window=True, images_folder="images", **zone):
        script, self.images = folder / "record_images.py", folder / images_folder
        edit_zone(script, images_folder=str(images_folder), **zone)
        self.screen, self.fake = screen, fake
        env = {**os.environ, **screen.env, "PYTHONIOENCODING": "cp1252",
               "XDG_SESSION_TYPE": "wayland"}           # Qt s'en plaindrait
        if fake is not None:
            (folder / "sitecustomize.py").write_text(FAKE, encoding="utf-8")
            env.update(FAKE=fake, PYTHONPATH=f"{folder}{os.pathsep}{ROOT / 'tests'}")
        for timeout in (10, 30):        # parfois blanche : « En cas de problème », dans README.md
            self.process = subprocess.Popen([sys.executable, script], env=env, stderr=subprocess.STDOUT,
                                            stdout=subprocess.PIPE, text=True, encoding="cp1252")
            at_end.callback(self.process.kill)
            with contextlib.suppress(AssertionError):
                if not window or wait_until(self.is_shown, timeout):
                    return
            self.process.kill()
        pytest.fail("La fenêtre reste blanche.")

    def is_shown(self):
        """Vrai quand une image de la caméra est là ; retient où est l'intérieur de la fenêtre."""
        window = self.screen.window("record_images")
        self.screen.xdotool("windowactivate", "--sync", window)
        corner = self.screen.xdotool("mousemove", "--window", window, 0, 0, "getmouselocation")
        self.x, self.y = map(int, re.match(r"x:(\d+) y:(\d+)|", corner).groups(0))
        return self.frame_is(GREY) and self.image().max() > 30

    def picture(self):
        """Ce que montre la fenêtre, en tableau RVB : une image de la caméra, un cadre, un texte."""
        return np.asarray(self.screen.picture((self.x, self.y, self.x + 408, self.y + 440)))

    def image(self):
        return self.picture()[12:396, 12:396]

    def says(self, count):
        """Vrai si le texte de la fenêtre annonce ce nombre d'images."""
        text = np.full((440, 408, 3), GREY, np.uint8)
        cv2.putText(text, f"Images : {count}    s : enregistrer    q : quitter", (12, 424),
                    cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
        return np.array_equal(self.picture()[396:], text[396:])

    def frame_is(self, color):
        return tuple(self.picture()[8, 8].tolist()) == color

    def shown(self):
        """Le numéro de l'image que montre la fenêtre."""
        return wait_until(lambda: read_number(self.image()))

    def press(self):
        """Un appui bref ; attend son image, et que la touche soit tenue pour relâchée."""
        before = len(os.listdir(self.images))
        self.screen.xdotool("key", "s")
        wait_until(lambda: len(os.listdir(self.images)) > before and self.frame_is(GREY))

    def hold(self):
        """Maintient « s » ; rend les numéros montrés autour de l'appui, puis du relâchement."""
        shown = [self.shown()]
        self.screen.xdotool("keydown", "s")
        shown.append(self.shown())
        wait_until(lambda: self.shown() > shown[1] + 4, 1.2)        # l'image bouge aussitôt
        wait_until(lambda: self.shown() > shown[1] + 45 and self.frame_is(RED))
        shown.append(self.shown())
        self.screen.xdotool("keyup", "s")
        shown.append(self.shown())
        wait_until(lambda: self.frame_is(GREY))
        return shown

    def numbers(self):
        """Les numéros des images enregistrées, qui sont toutes entières."""
        return [read_number(np.asarray(Image.open(path).convert("RGB")))
                for path in sorted(self.images.glob("image_0*.png"))]

    def end(self, *keys):
        """Tape ces touches, attend la fin ; rend les lignes de la console, caméra libérée."""
        self.screen.xdotool("key", *keys)
        output = self.process.communicate(timeout=60)[0].splitlines()
        if self.fake is not None:
            assert "devant" in output and ("libre" in output) != (self.fake in ("muette", "coupée"))
        return [line for line in output if line not in ("libre", "devant")]

    def count(self, total):
        return f"Images enregistrées dans {self.images} : {total} ({total} en tout)."


@pytest.fixture
def record(screen, folder):
    """record(**zone) lance record_images.py dans le dossier de l'étudiant."""
    repeat_rate(screen, 250, 33)
    with contextlib.ExitStack() as at_end:
        at_end.callback(screen.xdotool, "keyup", "s")
        yield lambda **options: Recorder(at_end, screen, folder, **options)


def repeat_rate(screen, delay, interval):
    """Règle la répétition du clavier (ce que fait `xset r rate`), en millisecondes."""
    x11 = ctypes.CDLL("libX11.so.6")
    x11.XOpenDisplay.restype = ctypes.c_void_p
    display = ctypes.c_void_p(x11.XOpenDisplay(screen.display.encode()))
    assert x11.XkbSetAutoRepeatRate(display, 0x100, delay, interval)
    x11.XCloseDisplay(display)


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


@pytest.mark.parametrize("size", [8, 64, 128])
def test_the_window_shows_what_is_saved(record, size):
    """Le carré du milieu, réduit par moyennes, en miroir, bonnes couleurs ; un petit écran suffit."""
    recorder = record(fake="fixe", images_size=size)
    assert recorder.says(0) and recorder.y + 440 < 1080 / 2        # 1920 × 1080 à 200 %
    window = recorder.image()
    recorder.press()
    with Image.open(recorder.images / "image_00001.png") as saved:
        assert (saved.format, saved.mode, saved.size) == ("PNG", "RGB", (size, size))
        saved = np.asarray(saved)
    assert np.array_equal(window, saved.repeat(384 // size, axis=0).repeat(384 // size, axis=1))
    square = number_picture(0)[:, 16:144, ::-1].reshape(size, 128 // size, size, 128 // size, 3)
    assert np.abs(saved - square.mean(axis=(1, 3))[:, ::-1]).max() <= 1
    assert recorder.end("q") == [*OPENING, recorder.count(1)]


@pytest.mark.parametrize("delay, interval, fake", [
    (500, 33, ""), (250, 8, "tardive"), (250, 200, ""), (250, 33, "écran"), (500, 33, "disque"),
    (1500, 33, "lente")])
def test_hold(record, screen, delay, interval, fake):
    """Toutes les images de l'appui au relâchement, cadre rouge ; touche qui se répète plus ou moins vite, écran,
    disque ou caméra lents, début noir."""
    repeat_rate(screen, delay, interval)
    recorder = record(fake=fake)
    before_press, after_press, before_release, after_release = recorder.hold()
    output, saved = recorder.end("q"), recorder.numbers()
    assert output == [*OPENING, recorder.count(len(saved))]
    assert saved == list(range(saved[0], saved[-1] + 1))
    fps, late = 10 if fake == "lente" else 30, {"lente": 1, "disque": 7}.get(fake, 3)       # en images
    assert before_press <= saved[0] <= after_press + late
    assert before_release - 1 - interval * fps / 1000 <= saved[-1] <= after_release + late


@pytest.mark.parametrize("fake", ["", "majuscules"])
def test_short_presses(record, fake):
    """Un appui bref enregistre exactement une image, même sous Verr. Maj. ; les flèches, aucune."""
    recorder = record(fake=fake)
    recorder.press()
    recorder.screen.xdotool("key", "Left", "F4", "a", "Right")      # 0xFF53 : finit comme « S », 0x53
    recorder.press()
    assert recorder.end("s", "q") == [*OPENING, recorder.count(3)]      # la dernière y est aussi
    assert recorder.numbers() == sorted(set(recorder.numbers()))


def test_two_holds(record, screen):
    """Maintenue deux fois de suite : rien de ce qui passe entre les deux n'est enregistré."""
    recorder = record()
    release, press = recorder.hold()[-1] + 2, recorder.hold()[0]
    recorder.end("q")
    assert release < press and not set(recorder.numbers()) & set(range(release, press))


@pytest.mark.parametrize("way, fake, said", [
    ("Escape", "", []), ("alt+F4", "", []), ("alt+F4", "coupée", []), ("", "", ["Arrêt demandé."])])
def test_ways_to_end(record, way, fake, said):
    """Échap, Alt+F4 (la croix), même quand la caméra se tait, Ctrl-C : un bilan, et rien d'autre."""
    recorder = record(fake=fake)
    recorder.press()
    wait_until(lambda: not fake or recorder.shown() == 60)
    if not way:
        recorder.process.send_signal(signal.SIGINT)
    assert recorder.end(*way.split()) == [*OPENING, *said, recorder.count(1)]
    assert recorder.process.returncode == 0


@pytest.mark.parametrize("fps, images, seconds", [(10, 60, 6), (1000, 150, 5), (0.1, 90, 3)])
def test_film(record, folder, fps, images, seconds):
    """Un film, même noir, passe jusqu'au bout à sa vitesse, ou, s'il en annonce une folle, à 30 par s."""
    write_film(folder / "film.avi", np.zeros((images, 128, 160, 3), np.uint8), fps)
    start = time.monotonic()
    recorder = record(camera="film.avi", window=False, fake=None)
    assert recorder.end() == [*OPENING, "Fin du film.", recorder.count(0)]
    assert recorder.process.returncode == 0 and seconds < time.monotonic() - start < seconds + 15


def test_numbering(record, folder):
    """La numérotation continue après la plus haute ; rien n'est touché ; tout nom convient."""
    images = folder / "été à la plage/forêt n° 1"
    images.mkdir(parents=True)
    others = {"image_00041.png", "image_7.png", "photo.JPG", "image_tard.png", "image_99999.jpeg"}
    for other in others:
        shutil.copy(ROOT / "images" / "exemple" / "visage_000.png", images / other)
    content = (images / "photo.JPG").read_bytes()
    recorder = record(images_folder="été à la plage/forêt n° 1")
    assert recorder.says(2)
    recorder.press()
    wait_until(lambda: recorder.says(3))
    shutil.copy(images / "photo.JPG", images / "image_00043.png")       # venue entre-temps
    recorder.press()
    assert " : 2 (4 en tout)" in recorder.end("q")[-1]
    new = {"image_00042.png", "image_00043.png", "image_00044.png"}
    assert {path.name for path in images.iterdir()} == others | new
    for other in [*others, "image_00043.png"]:
        assert (images / other).read_bytes() == content


def test_full_disk(record, screen, small_disk):
    """Disque plein : une phrase, ce qui est enregistré est entier, rien de commencé ne reste."""
    (small_disk / "autre").write_bytes(bytes(2_700_000))
    recorder = record(images_folder=small_disk)
    recorder.press()
    screen.xdotool("keydown", "s")
    output, numbers = recorder.end(), recorder.numbers()
    assert recorder.process.returncode == 1 and None not in numbers
    assert 1 < len(numbers) == len(os.listdir(small_disk)) - 1
    assert f"Impossible d'écrire dans {small_disk}" in output[2]
    assert output[-1] == recorder.count(len(numbers))


@pytest.mark.parametrize("fake, camera, said", [
    (None, 9, "ne s'ouvre pas"), (None, "absent.mp4", "ne s'ouvre pas"), ("muette", 0, "Depuis 5 s"),
    ("noire", 0, "Depuis 5 s"), ("débranchée", 0, "Depuis 5 s")])
def test_cameras_that_fail(record, fake, camera, said):
    """Absente ; muette, noire, débranchée : une phrase, ce qu'il faut vérifier, rien d'OpenCV."""
    recorder = record(fake=fake, camera=camera, window=False)
    output, opening = recorder.end(), OPENING[:1 if fake is None else 2]
    assert recorder.process.returncode == 1 and output[-1] == recorder.count(0)
    assert output[:len(opening)] == opening and said in output[len(opening)]
    assert len(output) == len(opening) + 5
    for word in ("branchée", "volet", "Teams", "Windows", "macOS", f"camera = {camera!r}"):
        assert word in "\n".join(output)
