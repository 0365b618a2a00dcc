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
from kit import ROOT, edit_zone, run, wait_until, write_film
from PIL import Image

RED, GREY = (220, 0, 0), (60, 60, 60)
GRAIN = np.random.default_rng(0).integers(0, 100, (128, 128, 3), np.uint8)
OPENING = ["Ouverture de la caméra...",
           "Cliquez sur la fenêtre, puis maintenez « s » pour enregistrer ; « q » pour finir."]
FAKE = """
import os, signal, threading, time
import cv2, numpy as np
from test_record import number_picture

words, rename = os.environ["FAKE"].split(), os.rename

class Camera:
    number = 0

    def open(self, source):
        return threading.current_thread() is threading.main_thread()    # macOS y tient

    def get(self, prop):
        return float("nan")

    def read(self):
        time.sleep(3600 if "muette" in words else "film" not in words and 1 / 30)
        if "dort" in words:             # la première à s'endormir, la dernière à se réveiller
            words.remove("dort")
            time.sleep(0.3)
            signal.raise_signal(signal.SIGSTOP)
            time.sleep(0.3)
        self.number += "fixe" not in words
        frame = number_picture(self.number)
        if "noire" in words or "tardive" in words and self.number < 60:
            frame //= 22
        if "débranchée" in words and self.number > 45 or "film" in words and self.number > 120:
            frame = None
        if "étrange" in words:          # six images ; une image vide ; rien ; une erreur
            frame = [frame, frame[:, :, 0], frame[:, :, :1], np.dstack([frame, frame[:, :, :1]]),
                     frame.astype(np.uint16) * 257, cv2.resize(frame, (320, 256)), frame[:0], None,
                     frame / 255][self.number % 9]
        return frame is not None, frame

    def release(self):
        print("libre")

def slow(hidden, path):
    time.sleep("lent" in words and 0.1)
    if "sommeil" in words and path.name == "image_00020.png":
        words.append("dort")
    if "antivirus" in words and path.name == "image_00005.png":
        words.remove("antivirus")
        raise PermissionError(13, "The process cannot access the file", hidden)
    rename(hidden, path)

cv2.VideoCapture, os.rename = Camera, slow
"""     # sitecustomize.py : une caméra, un disque qui ne font pas toujours ce qu'on attend d'eux


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
        return self.frame_is(GREY) and self.picture()[16:528, 16:528].max() > 30

    def picture(self):
        """Ce que montre la fenêtre, en tableau RVB."""
        return np.asarray(self.screen.picture((self.x, self.y, self.x + 544, self.y + 588)))

    def frame_is(self, color):
        return tuple(self.picture()[8, 8].tolist()) == color

    def shown(self):
        """Le numéro de l'image que montre la fenêtre."""
        return wait_until(lambda: read_number(self.picture()[16:528, 16:528]))

    def press(self):
        """Un appui bref ; attend son image, et que la touche soit tenue pour relâchée."""
        before = len(self.numbers())
        self.screen.xdotool("key", "s")
        wait_until(lambda: len(self.numbers()) > before and self.frame_is(GREY))

    def hold(self):
        """Maintient « s » ; rend les numéros montrés autour de l'appui, puis du relâchement."""
        shown = [self.shown()]
        self.screen.xdotool("keydown", "s")
        shown.append(self.shown())
        wait_until(lambda: len(self.numbers()) > 40 and self.frame_is(RED))
        shown.append(self.shown())
        self.screen.xdotool("keyup", "s")
        wait_until(lambda: self.frame_is(GREY))
        return [*shown, self.shown()]

    def numbers(self):
        """Les numéros des images enregistrées, qui sont toutes entières."""
        return [read_number(np.asarray(Image.open(path).convert("RGB")))
                for path in sorted(self.images.glob("image_0*.png"))]

    def end(self, *keys):
        """Tape ces touches, attend la fin ; rend les lignes de la console, caméra libérée."""
        self.screen.xdotool("key", *keys)
        output = self.process.communicate(timeout=40)[0].splitlines()
        assert "libre" in output or self.fake in (None, "muette")
        return [line for line in output if line != "libre"]

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
    ("raise ImportError('No module cv2')", ":0", "bibliothèque (No module cv2). Lancez Spyder"),
    ("currentUIFramework = str", ":0", "désinstallez opencv-python-headless"),
    ("", "", "Aucun écran : ")])
def test_nothing_to_show_with(folder, tmp_path, code, display, words):
    """Sans OpenCV, ses fenêtres, ou écran : une phrase. Ses réglages précèdent son import."""
    (tmp_path / "cv2.py").write_text(
        "import os\nassert os.environ['OPENCV_VIDEOIO_MSMF_ENABLE_HW_TRANSFORMS'] == '0'\n" + code)
    output = run(folder / "record_images.py", env={"PYTHONPATH": str(tmp_path), "DISPLAY": display})
    assert words in output.stdout and output.stdout.count("\n") == 1 == output.returncode


@pytest.mark.parametrize("size", [8, 64, 128])
def test_the_window_shows_what_is_saved(record, size):
    """Le carré du milieu, réduit par moyennes, en miroir, bonnes couleurs ; le compte change."""
    recorder = record(fake="fixe", images_size=size)
    window = recorder.picture()
    recorder.press()
    with Image.open(recorder.images / "image_00001.png") as saved:
        assert (saved.format, saved.mode, saved.size) == ("PNG", "RGB", (size, size))
        saved = np.asarray(saved)
    large = saved.repeat(512 // size, axis=0).repeat(512 // size, axis=1)
    assert np.array_equal(window[16:528, 16:528], large)
    square = number_picture(0)[:, 16:144, ::-1].reshape(size, 128 // size, size, 128 // size, 3)
    assert np.abs(saved - square.mean(axis=(1, 3))[:, ::-1]).max() <= 1
    wait_until(lambda: not np.array_equal(window[528:], recorder.picture()[528:]))
    assert recorder.end("q") == [*OPENING, recorder.count(1)]


@pytest.mark.parametrize("delay, interval, fake, lost", [
    (500, 33, "", set()), (1000, 100, "", set()), (250, 25, "tardive antivirus", set()),
    (250, 25, "étrange", {6, 7, 8})])
def test_hold(record, screen, delay, interval, fake, lost):
    """Toutes les images de l'appui au relâchement, sans trou, cadre rouge, même si un antivirus tient un
    fichier, ou après un début noir ; grises ou de 16 bits aussi ; rien de vide ou en erreur."""
    repeat_rate(screen, delay, interval)
    recorder = record(fake=fake)
    before_press, after_press, before_release, after_release = recorder.hold()
    saved = recorder.numbers()
    assert recorder.end("q") == [*OPENING, recorder.count(len(saved))]
    assert saved == sorted(set(saved)) and not list(recorder.images.glob(".*"))
    assert {number % 9 for number in set(range(saved[0], saved[-1])) - set(saved)} == lost
    assert before_press <= saved[0] <= after_press + 1 + len(lost)
    assert before_release - 1 - len(lost) <= saved[-1] <= after_release


def test_short_presses(record):
    """Un appui bref enregistre exactement une image, même en majuscules ; les flèches, aucune."""
    recorder = record()
    recorder.press()
    recorder.screen.xdotool("key", "Caps_Lock")
    recorder.press()
    recorder.screen.xdotool("key", "Caps_Lock", "Left", "F4", "a", "Right")     # 0xFF53 : « S »
    recorder.press()
    assert recorder.end("s", "q") == [*OPENING, recorder.count(4)]      # la dernière y est aussi
    assert recorder.numbers() == sorted(set(recorder.numbers()))


def test_sleep_and_kill(record, screen):
    """L'ordinateur dort 6 s : l'enregistrement continue, sans trou ; tué net, il laisse tout entier."""
    recorder = record(fake="sommeil")
    screen.xdotool("keydown", "s")
    wait_until(lambda: os.waitpid(recorder.process.pid, os.WUNTRACED | os.WNOHANG)[0])      # il dort
    time.sleep(6)
    recorder.process.send_signal(signal.SIGCONT)
    before = len(recorder.numbers())
    wait_until(lambda: len(recorder.numbers()) > before + 20)
    recorder.process.kill()
    recorder.process.wait()
    saved = recorder.numbers()
    assert saved == list(range(saved[0], saved[-1] + 1))


@pytest.mark.parametrize("way, said", [("Escape", []), ("alt+F4", []), ("", ["Arrêt demandé."])])
def test_ways_to_end(record, way, said):
    """Échap, Alt+F4 (la croix), Ctrl-C : un bilan, et rien d'autre en console."""
    recorder = record()
    recorder.press()
    if not way:
        recorder.process.send_signal(signal.SIGINT)
    assert recorder.end(*way.split()) == [*OPENING, *said, recorder.count(1)]
    assert recorder.process.returncode == 0


@pytest.mark.parametrize("fake, seconds", [(None, 6), ("film", 4)])
def test_film(record, folder, fake, seconds):
    """Un film, même noir, passe jusqu'au bout à sa vitesse ; s'il n'a pas d'heures (nan), lentement."""
    write_film(folder / "film.avi", np.zeros((60, 128, 160, 3), np.uint8))
    start = time.monotonic()
    recorder = record(camera="film.avi", window=False, fake=fake)
    assert recorder.end() == [*OPENING, "Fin du film.", recorder.count(0)]
    assert recorder.process.returncode == 0 and time.monotonic() - start > seconds


def test_numbering(record, folder):
    """La numérotation continue après la plus haute ; rien n'est touché ; tout nom convient."""
    images = folder / "été à la plage/Фото 😀"
    images.mkdir(parents=True)
    others = {"image_00041.png", "image_7.png", "photo.JPG", "image_tard.png", "image_99999.jpeg"}
    for other in others:
        shutil.copy(ROOT / "images" / "exemple" / "visage_000.png", images / other)
    content = (images / "photo.JPG").read_bytes()
    recorder = record(images_folder="été à la plage/Фото 😀")
    recorder.press()
    shutil.copy(images / "photo.JPG", images / "image_00043.png")       # venue entre-temps
    recorder.press()
    assert " : 2 (4 en tout)" in recorder.end("q")[-1]
    new = {"image_00042.png", "image_00043.png", "image_00044.png"}
    assert {path.name for path in images.iterdir()} == others | new
    for other in [*others, "image_00043.png"]:
        assert (images / other).read_bytes() == content


def test_full_disk(record, screen, small_disk):
    """Disque plein : une phrase, ce qui est enregistré est entier, rien de commencé ne reste."""
    recorder = record(images_folder=small_disk, images_size=256)
    recorder.press()
    screen.xdotool("keydown", "s")
    output, numbers = recorder.end(), recorder.numbers()
    assert recorder.process.returncode == 1 and None not in numbers
    assert 1 < len(numbers) == len(os.listdir(small_disk))
    assert f"Impossible d'écrire dans {small_disk}" in output[2]
    assert output[3] == recorder.count(len(numbers))


@pytest.mark.parametrize("fake, camera, said", [
    (None, 9, "ne s'ouvre pas"), (None, "absent.mp4", "ne s'ouvre pas"), ("muette", 0, "Depuis 5 s"),
    ("noire", 0, "Depuis 5 s"), ("débranchée", 0, "Depuis 5 s")])
def test_cameras_that_fail(record, fake, camera, said):
    """Absente ; muette, noire, débranchée : une phrase, ce qu'il faut vérifier, rien d'OpenCV."""
    recorder = record(fake=fake, camera=camera, window=False)
    output, opening = recorder.end(), OPENING[:1 if fake is None else 2]
    assert recorder.process.returncode == 1 and output[-1] == recorder.count(0)
    assert output[:len(opening)] == opening and said in output[len(opening)]
    assert len(output) == len(opening) + 6
    for word in ("branchée", "volet", "Teams", "Windows", "macOS", f"camera = {camera!r}"):
        assert word in "\n".join(output)


def test_slow_disk(record):
    """Un disque bien trop lent : rien d'après le relâchement, et le compte dit ce qui manque."""
    recorder = record(fake="lent")
    after_release = recorder.hold()[-1]
    output = recorder.end("q")
    numbers = recorder.numbers()
    assert numbers == sorted(set(numbers)) and numbers[-1] <= after_release
    assert output[-2] == recorder.count(len(numbers))
    lost, = map(int, re.findall(r"Images perdues.*: (\d+)\.", output[-1]))
    assert lost > 0 and len(numbers) + lost == numbers[-1] - numbers[0] + 1
