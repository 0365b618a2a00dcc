"""record_images.py : la vraie fenêtre (Xvfb), de vraies touches (xdotool), une caméra imitée.

Chaque image de la caméra porte son numéro en damier de 4 × 4 cases : on lit dans les fichiers, et
dans la fenêtre, lesquelles sont là. Rien ne se mesure à la montre : un ordinateur chargé passe."""
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from kit import ROOT, Raw, edit_zone, run, wait_until
from PIL import Image, ImageGrab

RED, GREY = (220, 0, 0), (60, 60, 60)
OPENING = ["Ouverture de la caméra...",
           "Cliquez sur la fenêtre, puis maintenez « s » pour enregistrer ; « q » pour finir."]
ODD = [None, True, 4.5, Raw("nan"), [], b"images", -1]
FAKE = """
import os, threading, time
import cv2, numpy as np
from test_record import number_picture

words, rename = os.environ["FAKE"].split(), os.rename

class Camera:
    number = 0

    def open(self, source):
        assert threading.current_thread() is threading.main_thread()
        return "absente" not in words

    def get(self, prop):
        return float("nan")

    def read(self):
        time.sleep(3600 if "muette" in words else "film" not in words and 1 / 30)
        self.number += 1
        frame = number_picture(self.number)
        if "noire" in words or "tardive" in words and self.number < 60:
            frame //= 22
        if "débranchée" in words and self.number > 45:
            frame = None
        if "étrange" in words:          # neuf images ; à la dixième, une erreur
            frame = [frame, frame[:, :, 0], frame[:, :, :1], np.dstack([frame, frame[:, :, :1]]),
                     frame.astype(np.uint16) * 257, cv2.resize(frame, (320, 256)), frame[:0], None,
                     frame / 255][self.number % 10]
        return frame is not None, frame

    def release(self):
        print("libre")

def slow(hidden, path):
    time.sleep("lent" in words and 0.1)
    if "antivirus" in words and path.name == "image_00005.png":
        words.remove("antivirus")
        raise PermissionError(13, "The process cannot access the file", hidden)
    rename(hidden, path)

cv2.VideoCapture, os.rename = Camera, slow
"""     # sitecustomize.py : une caméra, un disque qui ne font pas toujours ce qu'on attend d'eux


def number_picture(number):
    """Une image de 160 × 128 qui porte `number` (12 bits) dans son carré du milieu."""
    bits = np.array([number >> k & 1 for k in range(12)] + [1, 0, 0, 1], np.uint8).reshape(4, 4)
    picture = np.full((128, 160, 3), 90, np.uint8)
    picture[:, 16:144] = np.kron(40 + 170 * bits, np.ones((32, 32), np.uint8))[:, :, None]
    return picture


def read_number(square):
    """Le numéro que porte une image enregistrée ou montrée ; None si elle n'en porte pas."""
    step = len(square) // 4
    bits = (square[step // 2::step, step // 2::step, 1][:, ::-1] > 125).ravel()
    if bits[12:].tolist() == [True, False, False, True]:
        return sum(int(bit) << k for k, bit in enumerate(bits[:12]))


def write_film(path, pictures, fps=10, codec="FFV1"):
    """Un film AVI fait de ces images (BGR), sans perte ; rend son chemin."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps,
                             pictures[0].shape[1::-1])
    for picture in pictures:
        writer.write(picture)
    writer.release()
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """Le dossier d'un étudiant (nom avec espaces et accent), réduit à record_images.py."""
    folder = tmp_path / "mon kit été"
    folder.mkdir()
    shutil.copy(ROOT / "record_images.py", folder)
    return folder


class Recorder:
    """Un record_images.py en marche sur un écran virtuel ; fake : les travers de la caméra."""

    def __init__(self, screen, folder, fake="", window=True, images_folder="images", **zone):
        edit_zone(folder / "record_images.py", images_folder=str(images_folder), **zone)
        self.screen, self.folder, self.fake = screen, folder, fake
        self.images = folder / images_folder
        self.env = {**os.environ, **screen.env, "PYTHONIOENCODING": "cp1252",
                    "PYTHONUNBUFFERED": "1", "XDG_SESSION_TYPE": "wayland"}     # Qt s'en plaindrait
        if fake is not None:
            (folder / "sitecustomize.py").write_text(FAKE, encoding="utf-8")
            self.env["FAKE"] = fake
            self.env["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT / "tests")])
        self.start()
        if window:
            try:
                wait_until(self.is_shown, timeout=10)
            except AssertionError:      # blanche : « En cas de problème », dans README.md
                self.process.kill()
                self.process.communicate()
                self.start()
                wait_until(self.is_shown)

    def start(self):
        """Lance le script."""
        self.process = subprocess.Popen(
            [sys.executable, str(self.folder / "record_images.py")], env=self.env, text=True,
            encoding="cp1252", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def is_shown(self):
        """Vrai quand une image de la caméra est là ; retient où est l'intérieur de la fenêtre."""
        window = self.screen.window("record_images")
        self.screen.xdotool("windowactivate", "--sync", window)
        corner = self.screen.xdotool("mousemove", "--window", window, 0, 0, "getmouselocation")
        self.x, self.y = map(int, re.match(r"x:(\d+) y:(\d+)|", corner).groups(0))
        return self.frame_is(GREY) and self.picture()[16:528, 16:528].max() > 30

    def picture(self):
        """Ce que montre la fenêtre, en tableau RVB."""
        box = (self.x, self.y, self.x + 544, self.y + 588)
        return np.asarray(ImageGrab.grab(box, xdisplay=self.screen.display).convert("RGB"))

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

    def hold(self, images=40):
        """Maintient « s » jusqu'à ce que tant d'images de plus soient là ; rend les numéros que
        montre la fenêtre avant et après l'appui, avant et après le relâchement."""
        shown, goal = [self.shown()], images + len(self.numbers())
        self.screen.xdotool("keydown", "s")
        shown.append(self.shown())
        wait_until(lambda: len(self.numbers()) > goal)
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
        assert "libre" in output or self.fake in (None, "muette", "absente")
        return [line for line in output if line != "libre"]

    def count(self, total):
        s = "s" * (total > 1)
        return f"{total or 'Aucune'} image{s} enregistrée{s} dans {self.images} ({total} en tout)."


@pytest.fixture
def record(screen, folder):
    """record(**zone) lance record_images.py dans le dossier de l'étudiant."""
    started = []

    def start(**options):
        started.append(Recorder(screen, folder, **options))
        return started[-1]

    repeat_rate(screen, 250, 33)
    yield start
    screen.xdotool("keyup", "s")
    for recorder in started:
        recorder.process.kill()
        recorder.process.communicate()


def repeat_rate(screen, delay, interval):
    """Règle la répétition du clavier (ce que fait `xset r rate`), en millisecondes."""
    x11 = ctypes.CDLL("libX11.so.6")
    x11.XOpenDisplay.restype = ctypes.c_void_p
    display = ctypes.c_void_p(x11.XOpenDisplay(screen.display.encode()))
    assert x11.XkbSetAutoRepeatRate(display, 0x100, delay, interval)
    x11.XCloseDisplay(display)


@pytest.mark.parametrize("name, values", [
    ("images_folder", ODD + [0, "", "  ", "images\test"]),
    ("images_size", ODD + ["64", 0, 7, 1025, 64.0]),
    ("camera", ODD + ["", " ", 100])])
def test_bad_values(folder, name, values):
    """Une mauvaise valeur, une ligne qui manque : une phrase qui nomme le paramètre."""
    script = folder / "record_images.py"
    for value in values:
        edit_zone(script, **{name: Raw("float('nan')") if value == "nan" else value})
        output = run(script)
        assert output.returncode == 1 and output.stdout.count("\n") == 1
        assert output.stdout.startswith(f"{name} = {value!r} : il faut ")
    assert name != "images_folder" or "avec / et non \\" in output.stdout
    script.write_text(re.sub(rf"(?m)^{name} = .*\n", "", script.read_text(encoding="utf-8")),
                      encoding="utf-8")
    assert run(script).stdout.startswith(f"Il manque la ligne « {name} = ... »")


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


@pytest.mark.window
@pytest.mark.parametrize("camera", [9, "absent.mp4", "record_images.py"])
def test_real_opencv_without_camera(record, camera):
    """Une caméra, un film qui n'existent pas : nos lignes seules ; console pleine : rien."""
    recorder = record(camera=camera, window=False, fake=None)
    output = recorder.end()
    assert recorder.process.returncode == 1 and len(output) == 7
    assert output[1] == "La caméra ne s'ouvre pas. Vérifiez :" and repr(camera) in output[2]
    with open("/dev/full", "wb") as full:
        result = subprocess.run(recorder.process.args, env=recorder.env, stdout=full,
                                stderr=subprocess.PIPE)
    assert result.returncode == 1 and result.stderr == b""


@pytest.mark.window
@pytest.mark.parametrize("size", [64, 8, 1024])
def test_the_window_shows_what_is_saved(record, tmp_path, size):
    """Le carré du milieu, réduit par moyennes, en miroir, bonnes couleurs ; le compte change."""
    frame = np.full((256, 320, 3), (255, 0, 255), np.uint8)     # hors du carré : magenta
    frame[:, 32:288] = (0, 0, 255)                              # le carré : rouge...
    frame[:128, 32:160] = (255, 0, 0)                           # ... en haut à gauche : bleu
    frame[128:, 160:288, 1] = np.arange(128 * 128).reshape(128, 128) * 91 % 251     # et du grain
    film = write_film(tmp_path / "film.avi", [frame] * 300)
    frame = cv2.VideoCapture(film).read()[1]
    recorder = record(camera=film, images_size=size, fake=None)
    window = recorder.picture()
    recorder.press()
    with Image.open(recorder.images / "image_00001.png") as saved:
        assert (saved.format, saved.mode, saved.size) == ("PNG", "RGB", (size, size))
        saved = np.asarray(saved)
    if size < 512:
        step = 256 // size
        large = saved.repeat(512 // size, axis=0).repeat(512 // size, axis=1)
        assert np.array_equal(window[16:528, 16:528], large)
        square = frame[:, 32:288, ::-1].reshape(size, step, size, step, 3)
        assert np.abs(saved - square.mean(axis=(1, 3))[:, ::-1]).max() <= 1
    wait_until(lambda: not np.array_equal(window[528:], recorder.picture()[528:]))
    assert recorder.end("q") == [*OPENING, recorder.count(1)]


@pytest.mark.window
@pytest.mark.parametrize("delay, interval", [(500, 33), (250, 25), (1000, 100)])
def test_hold(record, screen, delay, interval):
    """Maintenue : toutes les images de l'appui au relâchement, sans trou, cadre rouge."""
    repeat_rate(screen, delay, interval)
    recorder = record()
    before_press, after_press, before_release, after_release = recorder.hold()
    saved = recorder.numbers()
    assert recorder.end("q") == [*OPENING, recorder.count(len(saved))]
    assert saved == list(range(saved[0], saved[-1] + 1))
    assert before_press <= saved[0] <= after_press + 1
    assert before_release - 1 <= saved[-1] <= after_release


@pytest.mark.window
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


@pytest.mark.window
def test_a_machine_that_sleeps(record, screen):
    """Tout se fige 6 s pendant l'enregistrement : il continue, sans trou."""
    recorder = record()
    screen.xdotool("keydown", "s")
    wait_until(lambda: len(recorder.numbers()) > 20 and recorder.frame_is(RED))
    recorder.process.send_signal(signal.SIGSTOP)
    time.sleep(6)
    recorder.process.send_signal(signal.SIGCONT)
    before = len(recorder.numbers())
    wait_until(lambda: len(recorder.numbers()) > before + 20)
    screen.xdotool("keyup", "s")
    assert recorder.end("q")[:2] == OPENING
    saved = recorder.numbers()
    assert saved == list(range(saved[0], saved[-1] + 1))


@pytest.mark.window
@pytest.mark.parametrize("way", ["q", "Escape", "alt+F4", "Ctrl-C"])
def test_ways_to_end(record, way):
    """Chaque façon de finir (Alt+F4 est la croix) : un bilan, et rien d'autre en console."""
    recorder = record()
    recorder.press()
    if way == "Ctrl-C":
        recorder.process.send_signal(signal.SIGINT)
    output = recorder.end(*[way] * (way != "Ctrl-C"))
    assert output == OPENING + ["Arrêt demandé."] * (way == "Ctrl-C") + [recorder.count(1)]
    assert recorder.process.returncode == 0


@pytest.mark.window
def test_end_of_the_film(record, tmp_path):
    """Six secondes de noir au début d'un film : il passe jusqu'au bout, à sa vitesse."""
    dark = [np.zeros((128, 160, 3), np.uint8)] * 60
    start = time.monotonic()
    recorder = record(camera=write_film(tmp_path / "nuit.avi", dark), window=False, fake=None)
    assert recorder.end() == [*OPENING, "Fin du film.", recorder.count(0)]
    assert recorder.process.returncode == 0 and time.monotonic() - start > 6


@pytest.mark.window
@pytest.mark.parametrize("name", ["été à la plage/Фото 😀", "absolu"])
def test_numbering(record, folder, tmp_path, name):
    """La numérotation continue après la plus haute ; rien n'est touché ; tout chemin convient."""
    images = tmp_path / name if name == "absolu" else folder / name
    images.mkdir(parents=True)
    others = {"image_00041.png", "image_7.png", "photo.JPG", "image_tard.png", "image_99999.jpeg"}
    for other in others:
        shutil.copy(ROOT / "images" / "exemple" / "visage_000.png", images / other)
    content = (images / "photo.JPG").read_bytes()
    recorder = record(images_folder=images if name == "absolu" else name)
    recorder.press()
    shutil.copy(images / "photo.JPG", images / "image_00043.png")       # venue entre-temps
    recorder.press()
    assert "2 images enregistrées" in recorder.end("q")[-1]
    new = {"image_00042.png", "image_00043.png", "image_00044.png"}
    assert {path.name for path in images.iterdir()} == others | new
    for other in [*others, "image_00043.png"]:
        assert (images / other).read_bytes() == content


@pytest.mark.window
def test_kill(record, screen):
    """kill -9 pendant un enregistrement : chaque image est entière."""
    recorder = record(images_size=256)
    screen.xdotool("keydown", "s")
    wait_until(lambda: len(list(recorder.images.glob("*.png"))) > 20)
    recorder.process.kill()
    recorder.process.wait()
    numbers = recorder.numbers()
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@pytest.mark.window
@pytest.mark.parametrize("case", ["disque plein", "lecture seule"])
def test_folder_that_takes_nothing(record, screen, folder, case):
    """Disque plein, dossier protégé : une phrase, ce qui est enregistré est entier."""
    images = folder / "disque"
    images.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(images)],
                      capture_output=True).returncode:
        pytest.skip("il faut pouvoir monter un petit disque (mount tmpfs, en administrateur)")
    try:
        recorder = record(images_folder="disque")
        recorder.press()
        if case == "lecture seule":
            subprocess.run(["mount", "-o", "remount,ro", str(images)], check=True)
        screen.xdotool("keydown", "s")
        output = recorder.end()
        screen.xdotool("keyup", "s")
        numbers = recorder.numbers()
        assert recorder.process.returncode == 1 and None not in numbers
        assert (len(numbers) > 1) == (case == "disque plein")
        assert len(numbers) == len(list(images.iterdir()))      # rien de commencé ne reste
        assert output[2].startswith(f"Impossible d'écrire dans {images} : vérifiez ")
        assert output[3] == recorder.count(len(numbers))
    finally:
        subprocess.run(["umount", str(images)])


@pytest.mark.window
def test_cameras_that_fail(record, screen):
    """Absente, muette, noire, débranchée : une phrase et ce qu'il faut vérifier ; « q » répond."""
    silent = "Depuis 5 secondes, la caméra n'envoie que du noir, ou rien. Vérifiez :"
    first = record(fake="muette", window=False)
    screen.xdotool("windowactivate", "--sync", screen.window("record_images"))
    wait_until(lambda: screen.xdotool("key", "q") or first.process.poll() is not None)
    assert first.end() == [*OPENING, first.count(0)]
    recorders = {fake: record(fake=fake, window=False)
                 for fake in ("absente", "muette", "noire", "débranchée")}
    for fake, recorder in recorders.items():
        output = recorder.end()
        expected = [*OPENING, silent] if fake != "absente" else [
            OPENING[0], "La caméra ne s'ouvre pas. Vérifiez :"]
        assert recorder.process.returncode == 1
        assert output[:len(expected)] == expected and output[-1] == recorder.count(0)
        checks = "\n".join(output[len(expected):-1])
        for word in ("branchée", "volet", "Teams", "Windows", "macOS", "camera = 0"):
            assert word in checks


@pytest.mark.window
@pytest.mark.parametrize("fake", ["étrange", "tardive antivirus"])
def test_odd_frames_odd_disk(record, fake):
    """Images grises, de 16 bits, vides, erreurs ; début noir ; fichier un instant tenu."""
    recorder = record(fake=fake)
    recorder.hold()
    numbers = recorder.numbers()
    assert recorder.end("q") == [*OPENING, recorder.count(len(numbers))]
    missing = set(range(numbers[0], numbers[-1])) - set(numbers)
    assert {n % 10 for n in missing} == ({6, 7, 8, 9} if fake == "étrange" else set())
    assert numbers == sorted(set(numbers)) and not list(recorder.images.glob(".*"))


@pytest.mark.window
def test_slow_disk(record):
    """Un disque bien trop lent : rien d'après le relâchement, et le compte dit ce qui manque."""
    recorder = record(fake="lent")
    after_release = recorder.hold()[-1]
    output = recorder.end("q")
    numbers = recorder.numbers()
    assert numbers == sorted(set(numbers)) and numbers[-1] <= after_release
    assert output[-2] == recorder.count(len(numbers))
    lost, = map(int, re.findall(r"Images perdues, le disque étant .*: (\d+)\.", output[-1]))
    assert lost > 0 and len(numbers) + lost == numbers[-1] - numbers[0] + 1


@pytest.mark.window
def test_odd_film(record, folder):
    """Un film sans vitesse ni heures (nan) passe à une vitesse saine."""
    (folder / "film.mp4").touch()
    recorder = record(fake="film", camera="film.mp4")
    start, first = time.monotonic(), recorder.shown()
    number = wait_until(lambda: recorder.shown() > first + 30 and recorder.shown())
    assert number - first < 60 * (time.monotonic() - start)
    assert recorder.end("q") == [*OPENING, recorder.count(0)]
