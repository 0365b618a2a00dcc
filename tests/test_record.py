"""record_images.py : la vraie fenêtre (Xvfb), de vraies touches (xdotool), un film pour caméra.

Chaque image du film porte son numéro en damier de 4 × 4 cases : on lit dans les fichiers
enregistrés lesquelles des images du film y sont."""
import ctypes
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings

import cv2
import numpy as np
import pytest
from kit import ROOT, Raw, edit_zone, wait_until
from PIL import Image, ImageGrab

FPS = 60
RED, GREY = (220, 0, 0), (60, 60, 60)
OPENING = ["Ouverture de la caméra...",
           "Cliquez sur la fenêtre, puis maintenez « s » pour enregistrer ; « q » pour finir."]


# ---------------------------------------------------------------- les outils

def number_picture(number, width=160, height=128):
    """Une image de film qui porte `number` (12 bits) dans son carré du milieu."""
    bits = np.array([number >> k & 1 for k in range(12)] + [1, 0, 0, 1], np.uint8).reshape(4, 4)
    picture = np.full((height, width), 90, np.uint8)
    left = (width - height) // 2
    picture[:, left:left + height] = np.kron(40 + 170 * bits, np.ones((height // 4,) * 2, np.uint8))
    return cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)


def read_number(path):
    """Le numéro que porte une image enregistrée."""
    with Image.open(path) as image:
        square = np.asarray(image.convert("L").resize((64, 64)))[:, ::-1]
    bits = (square[8::16, 8::16] > 125).ravel()
    assert bits[12:].tolist() == [True, False, False, True], path
    return sum(int(bit) << k for k, bit in enumerate(bits[:12]))


def write_film(path, pictures, fps=FPS, codec="MJPG"):
    """Un film AVI fait de ces images (BGR)."""
    writer = None
    for picture in pictures:
        if writer is None:
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps,
                                     picture.shape[1::-1])
            assert writer.isOpened()
        writer.write(picture)
    writer.release()


@pytest.fixture
def folder(tmp_path):
    """Le dossier d'un étudiant (nom avec espaces et accent), réduit à record_images.py."""
    folder = tmp_path / "mon kit été"
    (folder / "images" / "exemple").mkdir(parents=True)
    shutil.copy(ROOT / "record_images.py", folder)
    return folder


@pytest.fixture(scope="session")
def film(tmp_path_factory):
    """Un film de 40 secondes dont chaque image porte son numéro ; l'image 0 n'y est pas."""
    path = tmp_path_factory.mktemp("film") / "film numéroté.avi"
    write_film(path, (number_picture(n) for n in range(1, 40 * FPS)))
    return path


class Recorder:
    """Un record_images.py en marche sur un écran virtuel."""

    def __init__(self, screen, folder, command=None, env=None, window=True, **zone):
        edit_zone(folder / "record_images.py", **zone)
        self.screen, self.folder = screen, folder
        self.images = folder / str(zone.get("images_folder", "images"))
        self.command = command or [sys.executable, str(folder / "record_images.py")]
        self.env = {**os.environ, **screen.env, "PYTHONIOENCODING": "utf-8",
                    "PYTHONUNBUFFERED": "1", **(env or {})}
        self.start()
        if window:
            try:
                wait_until(self.is_shown, timeout=10)
            except AssertionError:      # blanche : « En cas de problème », dans README.md
                warnings.warn("fenêtre restée blanche : lancée une seconde fois")
                self.process.kill()
                self.process.wait()
                self.start()
                wait_until(self.is_shown)
            time.sleep(0.2)

    def start(self):
        """Lance le script."""
        self.process = subprocess.Popen(self.command, text=True, encoding="utf-8", env=self.env,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def is_shown(self):
        """Vrai quand la première image est là ; retient où est l'intérieur de la fenêtre."""
        self.window = self.screen.window("record_images")    # celle d'avant peut tarder à partir
        self.screen.xdotool("windowactivate", self.window)
        corner = self.screen.xdotool("mousemove", "--window", self.window, 0, 0, "getmouselocation")
        found = re.match(r"x:(\d+) y:(\d+)", corner)
        if not found:
            return False
        self.x, self.y = map(int, found.groups())
        return self.pixel(8, 8) == GREY == self.pixel(300, 600)

    def key(self, *names):
        self.screen.xdotool("key", *names)

    def picture(self):
        """Ce que montre la fenêtre, en tableau RVB."""
        image = ImageGrab.grab((self.x, self.y, self.x + 544, self.y + 608),
                               xdisplay=self.screen.display)
        return np.asarray(image.convert("RGB"))

    def pixel(self, x, y):
        return tuple(self.picture()[y, x].tolist())

    def files(self):
        return sorted(self.images.glob("image_*.png"))

    def numbers(self):
        return [read_number(path) for path in self.files()]

    def end(self, timeout=20):
        """Attend la fin ; rend les lignes écrites dans la console."""
        try:
            return self.process.communicate(timeout=timeout)[0].splitlines()
        finally:
            self.process.kill()

    def quit(self):
        self.key("q")
        return self.end()


@pytest.fixture
def record(screen, folder, film):
    """record(**zone) lance record_images.py dans le kit de l'étudiant, le film pour caméra."""
    started = []

    def start(**options):
        started.append(Recorder(screen, **{"folder": folder, "camera": str(film), **options}))
        return started[-1]

    yield start
    screen.xdotool("keyup", "s")
    for recorder in started:
        recorder.process.kill()
        recorder.process.wait()


def repeat_rate(screen, delay, interval):
    """Règle la répétition du clavier (ce que fait `xset r rate`), en millisecondes."""
    x11 = ctypes.CDLL("libX11.so.6")
    x11.XOpenDisplay.restype = ctypes.c_void_p
    display = ctypes.c_void_p(x11.XOpenDisplay(screen.display.encode()))
    assert x11.XkbSetAutoRepeatRate(display, 0x100, delay, interval)
    x11.XCloseDisplay(display)


# ---------------------------------------------------------------- 1 et 5 : l'image

def test_the_window_shows_what_is_saved(record, folder, tmp_path):
    """Grand, tel quel : le carré du milieu, réduit par moyennes, en miroir, aux bonnes couleurs."""
    yy, xx = np.mgrid[:256, :320]
    frame = np.zeros((256, 320, 3), np.uint8)
    frame[...] = (255, 0, 255)                                  # hors du carré : magenta
    frame[:, 32:288] = (0, 0, 255)                              # le carré : rouge...
    frame[:128, 32:160] = (255, 0, 0)                           # ... en haut à gauche : bleu
    frame[128:, 160:288, 1] = (xx * 37 + yy * 91)[128:, 160:288] % 251      # et du grain
    write_film(tmp_path / "film.avi", [frame] * 600, codec="FFV1")      # sans perte
    frame = cv2.VideoCapture(str(tmp_path / "film.avi")).read()[1]
    recorder = record(camera=str(tmp_path / "film.avi"))
    window = recorder.picture()
    recorder.key("s")
    path, = wait_until(recorder.files)
    saved = Image.open(path)
    assert (saved.format, saved.mode, saved.size) == ("PNG", "RGB", (64, 64))
    saved = np.asarray(saved)

    large = window[16:16 + 512, 16:16 + 512]
    assert np.array_equal(large, saved.repeat(8, axis=0).repeat(8, axis=1))
    square = frame[:, 32:288, ::-1].astype(float)               # de BVR à RVB
    average = square.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))[:, ::-1]
    assert np.abs(saved - average).max() <= 1
    assert np.abs(saved[10, 55] - np.array([0, 0, 255])).max() <= 2         # bleu : à droite
    assert np.abs(saved[10, 10] - np.array([255, 0, 0])).max() <= 2         # rouge : à gauche
    assert window[8, 8].tolist() == list(GREY) and window[-4, 300].tolist() == list(GREY)
    before = window[528:]
    assert (before == 255).all(axis=-1).sum() > 500             # du texte blanc sous l'image
    wait_until(lambda: not np.array_equal(before, recorder.picture()[528:]))    # le compte change
    recorder.quit()


def test_sign_while_recording(record, screen):
    """Tout le tour de l'image est rouge pendant l'enregistrement, et lui seul."""
    recorder = record()
    assert recorder.pixel(8, 8) == GREY
    screen.xdotool("keydown", "s")
    wait_until(lambda: recorder.pixel(8, 8) == RED, timeout=5)
    screen.xdotool("keyup", "s")
    wait_until(lambda: recorder.pixel(8, 8) == GREY, timeout=5)
    recorder.quit()


@pytest.mark.parametrize("size", [8, 96, 1024])
def test_other_sizes(record, size):
    """images_size change la taille des fichiers ; la fenêtre reste grande."""
    recorder = record(images_size=size)
    recorder.key("s")
    path, = wait_until(recorder.files)
    with Image.open(path) as image:
        assert image.size == (size, size)
    assert "Geometry: 544x608" in recorder.screen.xdotool("getwindowgeometry", recorder.window)
    recorder.quit()


# ---------------------------------------------------------------- 2 : la touche « s »

@pytest.mark.parametrize("delay, interval", [(500, 100), (250, 25), (660, 40), (1000, 33)])
def test_hold(record, screen, delay, interval):
    """Toutes les images entre la première répétition et le relâchement, aucune bien après."""
    repeat_rate(screen, delay, interval)
    recorder = record()
    down = time.time()
    screen.xdotool("keydown", "s")
    time.sleep(delay / 1000 + 1.5)
    screen.xdotool("keyup", "s")
    up = time.time()
    time.sleep(0.6)
    output = recorder.quit()
    # l'image n du film passe à l'instant start + n / FPS ; un fichier est écrit peu après
    files = recorder.files()
    saved = recorder.numbers()
    start = min(path.stat().st_mtime - n / FPS for path, n in zip(files, saved))
    first = down + delay / 1000
    expected = [n for n in range(1, 40 * FPS) if first + 0.05 < start + n / FPS < up - 0.02]
    kept = len(set(saved) & set(expected)) / len(expected)
    late = start + max(saved) / FPS - up
    early = [n for n in saved if start + n / FPS < first - 0.02]
    print(f"répétition {delay} ms puis {interval} ms : {len(expected)} images attendues, "
          f"{kept:.1%} enregistrées, dernière {late * 1000:+.0f} ms après le relâchement")
    assert len(saved) == len(set(saved)) and saved == sorted(saved)
    assert len(expected) > 60 and kept >= 0.95
    assert late < 0.2
    assert len(early) == 1                                      # celle de l'appui
    assert output[-1] == (f"{len(saved)} images enregistrées dans {recorder.images} "
                          f"({len(saved)} en tout).")


def test_a_machine_that_freezes(record, screen):
    """Tout se fige 0,8 s pendant l'enregistrement : aucune image n'est perdue."""
    repeat_rate(screen, 250, 40)
    recorder = record()
    screen.xdotool("keydown", "s")
    wait_until(lambda: len(recorder.files()) > 10)
    recorder.process.send_signal(signal.SIGSTOP)
    time.sleep(0.8)
    recorder.process.send_signal(signal.SIGCONT)
    time.sleep(0.8)
    screen.xdotool("keyup", "s")
    time.sleep(0.4)
    recorder.quit()
    numbers = recorder.numbers()[1:]                            # après l'image de l'appui
    assert len(numbers) > 85 and numbers == list(range(numbers[0], numbers[-1] + 1))


def test_short_presses(record, screen):
    """Un appui bref enregistre exactement une image, même en majuscules ; les flèches, aucune."""
    recorder = record()
    for total, keys in enumerate([["s"], ["s"], ["s"], ["shift+s"], ["S"]], start=1):
        recorder.key(*keys)
        time.sleep(0.4)
        assert len(recorder.files()) == total
    recorder.key("Caps_Lock")
    recorder.key("s")
    time.sleep(0.4)
    recorder.key("Caps_Lock")
    assert len(recorder.files()) == 6
    recorder.key("Right", "Left", "Up", "F4", "a", "space")     # Right a le code 0xFF53 : « S »
    time.sleep(0.4)
    assert len(recorder.files()) == 6 and recorder.process.poll() is None
    assert recorder.numbers() == sorted(set(recorder.numbers()))
    recorder.quit()


# ---------------------------------------------------------------- 3 : la fin

@pytest.mark.parametrize("way", ["q", "Q", "Escape", "cross", "interrupt"])
def test_ways_to_end(record, screen, way):
    """Chaque façon de finir : aussitôt, fenêtre fermée, un bilan, et rien d'autre en console."""
    recorder = record(env={"XDG_SESSION_TYPE": "wayland"})      # où Qt voudrait se plaindre
    recorder.key("s")
    wait_until(recorder.files)
    start = time.monotonic()
    if way == "cross":
        screen.xdotool("mousemove", recorder.x + 544 - 11, recorder.y - 10, "click", 1)
    elif way == "interrupt":
        recorder.process.send_signal(signal.SIGINT)
    else:
        recorder.key(way)
    output = recorder.end()
    assert time.monotonic() - start < 2
    assert output == OPENING + ["Arrêt demandé."] * (way == "interrupt") + [
        f"1 image enregistrée dans {recorder.images} (1 en tout)."]
    assert recorder.process.returncode == 0


def test_end_of_the_film(record, tmp_path):
    """Un film passe à sa propre vitesse, toutes ses images passent, et sa fin est normale."""
    write_film(tmp_path / "court.avi", (number_picture(n) for n in range(1, 91)), fps=30)
    start = time.monotonic()
    recorder = record(camera=str(tmp_path / "court.avi"))
    output = recorder.end()
    assert 3 <= time.monotonic() - start < 8
    assert recorder.process.returncode == 0
    assert output == OPENING + ["Fin du film.",
                                f"Aucune image enregistrée dans {recorder.images} (0 en tout)."]


def test_film_that_starts_in_the_dark(record, tmp_path):
    """Six secondes de noir au début d'un film : il passe jusqu'au bout."""
    dark = np.zeros((128, 160, 3), np.uint8)
    write_film(tmp_path / "nuit.avi", (dark if n < 60 else number_picture(n) for n in range(65)),
               fps=10)
    recorder = record(camera=str(tmp_path / "nuit.avi"))
    assert "Fin du film." in recorder.end()
    assert recorder.process.returncode == 0


# ---------------------------------------------------------------- 4 : les fichiers

def test_numbering_goes_on(record, folder):
    """La numérotation continue après la plus haute ; rien n'est touché."""
    others = {"image_00041.png": b"hier", "image_7.png": b"sept", "photo.JPG": b"p",
              "note.txt": b"n", "image_99999.jpeg": b"j"}
    for name, content in others.items():
        (folder / "images" / name).write_bytes(content)
    recorder = record()
    recorder.key("s")
    time.sleep(0.4)
    recorder.key("s")
    time.sleep(0.4)
    output = recorder.quit()
    assert output[-1] == f"2 images enregistrées dans {recorder.images} (6 en tout)."
    assert {path.name for path in recorder.images.iterdir()} == {
        *others, "exemple", "image_00042.png", "image_00043.png"}
    for name, content in others.items():
        assert (folder / "images" / name).read_bytes() == content


HEAD = """
__file__ = "record_images.py"
exec(open(__file__, encoding="utf-8").read().split("# %% L'enregistrement")[0])
import numpy as np
"""     # les fonctions de record_images.py et son dossier, sans la fenêtre


def saver(folder, screen, code):
    """Un programme qui dispose de save_image() et de next_number comme record_images.py."""
    return subprocess.Popen([sys.executable, "-c", HEAD + code], cwd=folder, text=True,
                            env={**os.environ, **screen.env}, stdout=subprocess.PIPE)


def test_several_recordings_at_once(folder, screen):
    """Quatre enregistrements dans le même dossier : aucune image n'en écrase une autre."""
    code = """
for value in range(150):
    next_number = save_image(np.full((64, 64, 3), (value, {k}, 7), np.uint8), next_number) + 1
"""
    savers = [saver(folder, screen, code.replace("{k}", str(k))) for k in range(4)]
    assert [process.wait(60) for process in savers] == [0] * 4
    seen = set()
    for path in (folder / "images").glob("image_*.png"):
        with Image.open(path) as image:
            seen.add(image.getpixel((0, 0)))
    assert seen == {(7, k, value) for k in range(4) for value in range(150)}
    assert {path.suffix for path in (folder / "images").iterdir()} <= {".png", ""}


def whole(images):
    """Le nombre d'images d'un dossier, toutes lisibles jusqu'au bout ; à part, rien de visible."""
    for path in images.iterdir():
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        else:
            assert path.name == "exemple" or re.fullmatch(r"\.image_\d+\.part", path.name), path
    return len(list(images.glob("*.png")))


def test_kill_while_writing(folder, screen):
    """kill -9 au milieu des écritures, quinze fois : chaque fichier est entier."""
    code = """
noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
while True:
    next_number = save_image(noise, next_number) + 1
    print("une de plus", flush=True)
"""
    total = 0
    for seed in range(15):
        process = saver(folder, screen, code)
        process.stdout.readline()
        time.sleep(random.Random(seed).uniform(0, 0.1))
        process.kill()
        process.wait()
        total, before = whole(folder / "images"), total
        assert total > before


def test_kill_the_recorder(record, screen):
    """kill -9 pendant un vrai enregistrement, puis un autre enregistrement : rien ne manque."""
    repeat_rate(screen, 200, 30)
    totals = [0]
    for _ in range(3):
        recorder = record()
        screen.xdotool("keydown", "s")
        wait_until(lambda: len(recorder.files()) > totals[-1] + 15)
        recorder.process.kill()
        recorder.process.wait()
        screen.xdotool("keyup", "s")
        totals.append(whole(recorder.images))
    assert totals == sorted(set(totals))


# ---------------------------------------------------------------- 6 : les dossiers

@pytest.mark.parametrize("name", ["été à la plage/mes images", "absolu"])
def test_paths(record, folder, film, tmp_path, name):
    """Accents, espaces, sous-dossier à créer, chemin absolu, film à côté du script."""
    (folder / "film d'été.avi").write_bytes(film.read_bytes())
    images_folder = str(tmp_path / "à part") if name == "absolu" else name
    recorder = record(images_folder=images_folder, camera="film d'été.avi")
    recorder.key("s")
    assert wait_until(recorder.files)[0].name == "image_00001.png"
    recorder.quit()
    assert recorder.images == (tmp_path / "à part" if name == "absolu" else folder / name)


@pytest.mark.parametrize("case", ["disque plein", "lecture seule"])
def test_folder_that_takes_nothing(record, screen, folder, case):
    """Disque plein, dossier protégé : un message, ce qui est enregistré est entier."""
    images = folder / "disque"
    images.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(images)],
                      capture_output=True).returncode:
        pytest.skip("il faut pouvoir monter un petit disque (mount tmpfs, en administrateur)")
    try:
        repeat_rate(screen, 200, 30)
        recorder = record(images_folder="disque")
        recorder.key("s")
        wait_until(recorder.files)
        if case == "lecture seule":
            subprocess.run(["mount", "-o", "remount,ro", str(images)], check=True)
        screen.xdotool("keydown", "s")
        output = recorder.end()
        screen.xdotool("keyup", "s")
        total = whole(images)
        assert recorder.process.returncode == 1
        assert total > 1 if case == "disque plein" else total == 1
        assert not list(images.glob(".*"))                      # rien de commencé ne reste
        assert output[len(OPENING):] == [
            f"{total} image{'s' * (total > 1)} enregistrée{'s' * (total > 1)} dans {images} "
            f"({total} en tout).",
            f"Impossible d'écrire dans {images} : vérifiez que le disque n'est pas plein et que "
            "le dossier n'est pas protégé en écriture."]
    finally:
        subprocess.run(["umount", str(images)])


def test_folder_that_is_a_file(record, folder):
    """images_folder désigne un fichier : un message avant d'ouvrir la caméra."""
    recorder = record(images_folder="record_images.py", window=False)
    assert recorder.end() == ["images_folder = 'record_images.py' : impossible d'ouvrir le dossier "
                              f"{folder / 'record_images.py'}."]
    assert recorder.process.returncode == 1


# ---------------------------------------------------------------- 7 : la caméra

FAKE = """
import runpy, sys, threading, time
import cv2, numpy as np

class Camera:
    def open(self, source):
        assert source == 0 and threading.current_thread() is threading.main_thread()
        self.start = time.monotonic()
        return {case!r} != "absente"

    def get(self, prop):
        return 30.0

    def read(self):
        time.sleep(1 / 30)
        if {case!r} == "muette":
            time.sleep(3600)
        lit = {case!r} == "débranchée" and time.monotonic() - self.start < 1.5
        noise = np.random.default_rng(0).integers(0, 12, (480, 640, 3), np.uint8)
        return (lit or {case!r} == "noire"), noise + np.uint8(150 * lit)

    def release(self):
        print("libre")

cv2.VideoCapture = Camera
sys.argv = [{script!r}]
runpy.run_path({script!r}, run_name="__main__")
"""     # une caméra qui ne donne pas ce qu'on attend d'elle


def fake_camera(record, folder, case, **options):
    """record_images.py avec une caméra absente, muette, noire ou débranchée au bout de 1,5 s."""
    code = FAKE.format(case=case, script=str(folder / "record_images.py"))
    return record(command=[sys.executable, "-c", code], camera=0, **options)


def test_cameras_that_fail(record, folder):
    """Absente, muette, noire, débranchée : après 5 s, un message qui dit quoi vérifier."""
    expected = {"absente": "La caméra ne s'ouvre pas. Vérifiez :",
                "muette": "La caméra n'envoie pas d'image depuis 5 secondes. Vérifiez :",
                "noire": "La caméra ne donne que du noir depuis 5 secondes. Vérifiez :",
                "débranchée": "La caméra n'envoie pas d'image depuis 5 secondes. Vérifiez :"}
    start = time.monotonic()
    recorders = {case: fake_camera(record, folder, case, window=False) for case in expected}
    for case, message in expected.items():
        output = recorders[case].end()
        assert time.monotonic() - start < 15
        assert recorders[case].process.returncode == 1
        assert ("libre" in output) == (case != "muette")        # bloquée
        output = [line for line in output if line != "libre"]
        opened = OPENING if case != "absente" else OPENING[:1]
        assert output[:len(opened)] == opened
        assert output[len(opened)].startswith("Aucune image enregistrée dans ")
        assert output[len(opened) + 1] == message
        checks = "\n".join(output[len(opened) + 2:])
        for word in ("branchée", "volet", "Teams", "Windows :", "macOS :", "camera", "ici 0"):
            assert word in checks
        assert "Traceback" not in checks and len(output) < 12


def test_unplugged_while_recording(record, folder, screen):
    """Débranchée pendant l'enregistrement : ce qui est enregistré reste, et le bilan le dit."""
    repeat_rate(screen, 200, 30)
    recorder = fake_camera(record, folder, "débranchée", window=False)
    window = screen.window("record_images")
    screen.xdotool("windowactivate", "--sync", window, "keydown", "s")
    output = recorder.end()
    screen.xdotool("keyup", "s")
    total = whole(recorder.images)
    assert total > 5
    assert f"{total} images enregistrées dans {recorder.images} ({total} en tout)." in output
    assert "libre" in output


def test_silent_camera_can_be_left(record, folder, screen):
    """La fenêtre répond même quand la caméra ne répond pas : « q » finit aussitôt."""
    recorder = fake_camera(record, folder, "muette", window=False)
    screen.xdotool("windowactivate", "--sync", screen.window("record_images"))
    start = time.monotonic()
    recorder.key("q")
    output = recorder.end()
    assert time.monotonic() - start < 2.5 and recorder.process.returncode == 0
    assert output == OPENING + [f"Aucune image enregistrée dans {recorder.images} (0 en tout)."]


@pytest.mark.parametrize("camera", [9, 97, "absent.mp4", "record_images.py"])
def test_real_opencv_without_camera(record, camera):
    """Une caméra qui n'existe pas, un film absent ou qui n'en est pas un : nos lignes, rien
    d'OpenCV."""
    recorder = record(camera=camera, window=False)
    output = recorder.end()
    assert recorder.process.returncode == 1
    film = type(camera) is str
    assert output[0] == OPENING[0] and repr(camera) in output[-1]
    assert ("ce film ne s'ouvre pas" if film else "La caméra ne s'ouvre pas. Vérifiez :") in output[2]
    assert len(output) == (3 if film else 8)


# ---------------------------------------------------------------- 8 : les systèmes

def test_settings_before_opencv(record, folder, tmp_path):
    """Les réglages d'OpenCV (Windows, console) sont posés avant qu'il soit importé."""
    (tmp_path / "cv2.py").write_text("""
import os
for name in ("VIDEOIO_MSMF_ENABLE_HW_TRANSFORMS", "LOG_LEVEL", "FFMPEG_LOGLEVEL"):
    print(name, os.environ["OPENCV_" + name])
raise ImportError("No module named 'cv2'")
""")
    recorder = record(window=False, env={"PYTHONPATH": str(tmp_path)})
    assert recorder.end() == [
        "VIDEOIO_MSMF_ENABLE_HW_TRANSFORMS 0", "LOG_LEVEL SILENT", "FFMPEG_LOGLEVEL -8",
        "Il manque une bibliothèque (No module named 'cv2'). Lancez Spyder depuis l'environnement "
        "vae (README.md, « Installer »)."]


def test_without_a_screen(record):
    """Linux sans écran : une ligne (sans elle, Qt tue Python)."""
    recorder = record(window=False, env={"DISPLAY": "", "WAYLAND_DISPLAY": ""})
    assert recorder.end() == ["Aucun écran : lancez record_images.py depuis un bureau, "
                              "sa fenêtre en a besoin."]
    assert recorder.process.returncode == 1


# ---------------------------------------------------------------- les paramètres

ODD = [None, True, 4.5, Raw("float('nan')"), Raw("float('inf')"), [], {}, b"images", -1, 10**12]


@pytest.mark.parametrize("name, values", [
    ("images_folder", ODD + [0, "", "  "]),
    ("images_size", ODD + ["64", "", 0, 7, 1025, 64.0]),
    ("camera", ODD + ["", " ", 100])])
def test_bad_parameters(record, name, values):
    """Une mauvaise valeur : un message qui nomme le paramètre, avant tout le reste."""
    assert len(values) >= 10
    for value in values:
        recorder = record(window=False, **{name: value})
        output = recorder.end()
        assert recorder.process.returncode == 1
        assert len(output) == 1 and output[0].startswith(f"{name} = {value!r} : il faut ".replace(
            "float('nan')", "nan").replace("float('inf')", "inf"))


# ---------------------------------------------------------------- Spyder

@pytest.fixture
def console(screen, tmp_path):
    """Une vraie console de Spyder ; console(code) l'exécute et rend ce qu'elle affiche."""
    pytest.importorskip("spyder_kernels")
    client_module = pytest.importorskip("jupyter_client")
    manager = client_module.KernelManager()
    command = [sys.executable, "-m", "spyder_kernels.console", "-f", "{connection_file}"]
    manager.kernel_spec.argv = command
    manager.start_kernel(env={**os.environ, **screen.env, "SPY_UMR_ENABLED": "True"},
                         cwd=str(tmp_path))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)

    class Console:
        pid = manager.provisioner.pid

        def start(self, code):
            self.text, self.id = "", client.execute(code)

        def finish(self, timeout=30):
            end = time.monotonic() + timeout
            while time.monotonic() < end:
                message = client.get_iopub_msg(timeout=timeout)
                if message["parent_header"].get("msg_id") != self.id:
                    continue
                content = message["content"]
                self.text += content.get("text", "") + "\n".join(content.get("traceback", []))
                if content.get("execution_state") == "idle":
                    return self.text
            raise AssertionError("la console ne répond plus")

        def __call__(self, code):
            self.start(code)
            return self.finish()

        interrupt = staticmethod(manager.interrupt_kernel)

        def files(self):
            """Les fichiers que la console tient ouverts."""
            links = [f"/proc/{self.pid}/fd/{n}" for n in os.listdir(f"/proc/{self.pid}/fd")]
            return [os.readlink(link) for link in links if os.path.exists(link)]

    yield Console()
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("wdir", [True, False])
def test_spyder_console(console, screen, folder, film, wdir):
    """Cinq fois dans la même console de Spyder, finies de trois façons."""
    script = folder / "record_images.py"
    edit_zone(script, camera=str(film))
    run = f"%runfile {str(script)!r}" + f" --wdir {str(folder)!r}" * wdir
    for turn in range(1, 6):
        console.start(run)
        window = screen.window("record_images")
        screen.xdotool("windowactivate", "--sync", window)
        time.sleep(0.5)
        screen.xdotool("key", "s")
        wait_until(lambda: len(list((folder / "images").glob("*.png"))) == turn)
        assert any(film.name in name for name in console.files())
        start = time.monotonic()
        if turn % 2:
            console.interrupt()
        else:
            screen.xdotool("key", "alt+F4" if turn == 2 else "q")
        text = console.finish()
        assert time.monotonic() - start < 2
        assert not any(film.name in name for name in console.files())       # caméra libérée
        assert not screen.xdotool("search", "--onlyvisible", "--name", "record_images")
        assert f"1 image enregistrée dans {folder / 'images'} ({turn} en tout)." in text
        assert ("Arrêt demandé." in text) == bool(turn % 2)
        assert "Traceback" not in text and "exception" not in text
    assert console("print(recorded, next_number)").strip() == "1 6"
    edit_zone(script, images_size=4.5)
    assert "images_size = 4.5 : il faut" in console(run)
    edit_zone(script, images_size=64, camera=9)
    text = console(run)
    assert "La caméra ne s'ouvre pas." in text and "Traceback" not in text
    assert "%tb" not in text
