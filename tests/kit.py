"""Ce que partagent les tests : copier le kit, modifier la zone ***, lancer un script, un écran virtuel."""
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import ImageGrab

ROOT = Path(__file__).resolve().parent.parent
NO_OPENCV = "il manque OpenCV, ou ce qu'il lui faut (apt-get install libgl1)"
SCRIPTS = ["model_VAE_64.py", "record_images.py", "train_VAE.py", "decode_VAE.py"]


def copy_kit(folder, exemple=True, root=ROOT):
    """Copie les quatre scripts (et le jeu de départ) dans `folder`, comme un étudiant le ferait."""
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name in SCRIPTS:
        shutil.copy(root / name, folder)
    if exemple:
        shutil.copytree(ROOT / "images" / "exemple", folder / "images" / "exemple")
    return folder


def edit_zone(script, **values):
    """Remplace la valeur de chaque paramètre nommé, sur sa ligne `name = value  # commentaire`."""
    script = Path(script)
    text = script.read_text(encoding="utf-8")
    for name, value in values.items():
        text, count = re.subn(rf"(?m)^{name} = .*?(\s+#.*)?$",
                              lambda m: f"{name} = {value!r}{m.group(1) or ''}", text, count=1)
        assert count == 1, f"{name} n'est pas dans {script.name}"
    script.write_text(text, encoding="utf-8")


def run(script, timeout=600, env=None):
    """Lance un script comme le ferait un terminal ; rend le CompletedProcess (stdout et stderr réunis)."""
    return subprocess.run([sys.executable, str(script)], timeout=timeout, encoding="utf-8",
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env={**os.environ, "PYTHONIOENCODING": "utf-8", **(env or {})})


def write_film(path, pictures, fps=10):
    """Écrit un film AVI fait de ces images (BGR), sans perte."""
    cv2 = pytest.importorskip("cv2", reason=NO_OPENCV)
    size = pictures[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), fps, size)
    for picture in pictures:
        writer.write(picture)
    writer.release()


def losses_in(text):
    """Les nombres des lignes d'epoch : une liste pour loss, une pour test."""
    lines = re.findall(r"(?m)^Epoch (\d+)/\d+\b.*?\bloss +(\S+)\b.*?\btest loss +(\S+)", text)
    assert [int(line[0]) for line in lines] == [*range(1, len(lines) + 1)]
    return {"loss": [float(line[1]) for line in lines], "test": [float(line[2]) for line in lines]}


def execute(script, console=None):
    """Lance un script dans ce processus ; rend ce qu'il affiche (out), son code de sortie (code), ses variables
    (names), ses losses."""
    shown, code = console or io.StringIO(), 0
    names = {"__name__": "__main__", "__file__": str(script)}
    path, model = sys.path[:], sys.modules["model_VAE_64"]
    try:
        with contextlib.redirect_stdout(shown):
            exec(compile(script.read_text("utf-8"), script, "exec"), names)
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:           # sinon, tout pytest s'arrêterait
        code = "KeyboardInterrupt"
    finally:
        sys.path[:], sys.modules["model_VAE_64"] = path, model
    out = shown.getvalue()
    return SimpleNamespace(out=out, code=code, names=names, **losses_in(out))


def wait_until(condition, timeout=30):
    """Attend que condition() soit vraie et rend sa valeur ; échoue après `timeout` secondes."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"rien en {timeout} s : {condition}")


class Screen:
    """Un écran virtuel (Xvfb) avec un gestionnaire de fenêtres, une souris et un clavier (xdotool), qui
    répète une touche tenue après `delay`, puis toutes les `interval` millisecondes."""

    def __init__(self, size="1366x768", delay=250, interval=33):
        self.server = subprocess.Popen(["Xvfb", "-displayfd", "1", "-screen", "0", f"{size}x24", "-ardelay",
                                        str(delay), "-arinterval", str(interval)], text=True,
                                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.display = ":" + self.server.stdout.readline().strip()
        self.env = {"DISPLAY": self.display}
        self.manager = subprocess.Popen(["openbox"], env={**os.environ, **self.env},
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def xdotool(self, *words):
        """xdotool avec ces mots ; rend ce qu'il écrit."""
        return subprocess.run(["xdotool", *map(str, words)], env={**os.environ, **self.env},
                              text=True, capture_output=True, timeout=30).stdout.strip()

    def window(self, title, timeout=60):
        """L'identifiant de la fenêtre visible dont le titre contient `title`, attendue si besoin."""
        found = wait_until(lambda: self.xdotool("search", "--onlyvisible", "--name", title), timeout)
        return found.split()[-1]

    def picture(self, box=None):
        """L'image RVB de tout l'écran, ou de ce rectangle."""
        return ImageGrab.grab(box, xdisplay=self.display).convert("RGB")

    def close(self):
        for process in (self.manager, self.server):
            process.terminate()
            process.wait()
