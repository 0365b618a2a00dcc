"""Ce que partagent les tests : copier le kit, modifier la zone ***, lancer un script, un écran virtuel."""
import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["model_VAE_64.py", "record_images.py", "train_VAE.py", "decode_VAE.py"]


def copy_kit(folder, exemple=True):
    """Copie les quatre scripts (et le jeu de départ) dans `folder`, comme un étudiant le ferait."""
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name in SCRIPTS:
        shutil.copy(ROOT / name, folder)
    if exemple:
        shutil.copytree(ROOT / "images" / "exemple", folder / "images" / "exemple")
    return folder


def edit_zone(script, **values):
    """Remplace la valeur de chaque paramètre nommé, sur sa ligne `name = value  # commentaire`.

    Une valeur est écrite par repr() ; `Raw("float('nan')")` écrit un texte tel quel."""
    script = Path(script)
    text = script.read_text(encoding="utf-8")
    for name, value in values.items():
        text, count = re.subn(rf"(?m)^{name} = .*?(\s+#.*)?$",
                              lambda m: f"{name} = {value!r}{m.group(1) or ''}", text, count=1)
        assert count == 1, f"{name} n'est pas dans {script.name}"
    script.write_text(text, encoding="utf-8")


class Raw(str):
    """Un texte Python que edit_zone écrit sans guillemets."""
    __repr__ = str.__str__


def run(script, cwd=None, timeout=600, env=None, **options):
    """Lance un script comme le ferait un terminal ; rend le CompletedProcess (stdout et stderr réunis)."""
    return subprocess.run([sys.executable, str(script)], cwd=cwd, timeout=timeout, text=True, encoding="utf-8",
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env={**os.environ, "PYTHONIOENCODING": "utf-8", **(env or {})}, **options)


def write_film(path, pictures, fps=10, codec="FFV1"):
    """Un film AVI fait de ces images (BGR), sans perte ; rend son chemin."""
    import cv2
    size = pictures[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, size)
    for picture in pictures:
        writer.write(picture)
    writer.release()
    return str(path)


def execute(script, console=...):
    """Lance un script dans ce processus, sur cette console ou sur une qui n'a que les lettres de Windows ;
    rend ce qu'il y affiche (out), son code de sortie (code), ses variables (names)."""
    shown, code = io.TextIOWrapper(io.BytesIO(), "cp1252"), 0
    names = {"__name__": "__main__", "__file__": str(script)}
    path, model, handler = sys.path[:], sys.modules["model_VAE_64"], signal.getsignal(signal.SIGINT)
    try:
        with contextlib.redirect_stdout(shown if console is ... else console):
            exec(compile(script.read_text("utf-8"), script, "exec"), names)
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:           # sinon, tout pytest s'arrêterait
        code = "KeyboardInterrupt"
    finally:
        sys.path[:], sys.modules["model_VAE_64"] = path, model
    assert signal.getsignal(signal.SIGINT) is handler
    shown.flush()
    return SimpleNamespace(out=shown.buffer.getvalue().decode("cp1252"), code=code, names=names)


def wait_until(condition, timeout=30, every=0.05):
    """Attend que condition() soit vraie et rend sa valeur ; échoue après `timeout` secondes."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(every)
    raise AssertionError(f"rien en {timeout} s : {condition}")


class Screen:
    """Un écran virtuel (Xvfb) avec un gestionnaire de fenêtres, une souris et un clavier (xdotool)."""

    def __init__(self, size="1366x768"):
        read, write = os.pipe()
        self.server = subprocess.Popen(["Xvfb", "-displayfd", str(write), "-screen", "0", f"{size}x24"],
                                       pass_fds=[write], stderr=subprocess.DEVNULL)
        os.close(write)
        with os.fdopen(read) as pipe:
            self.display = ":" + pipe.readline().strip()
        self.env = {"DISPLAY": self.display}
        self.manager = None
        if shutil.which("openbox"):
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

    def picture(self, path):
        """Enregistre une image de tout l'écran (ImageMagick)."""
        subprocess.run(["import", "-window", "root", str(path)], env={**os.environ, **self.env}, check=True)

    def close(self):
        for process in (self.manager, self.server):
            if process:
                process.terminate()
                process.wait()
