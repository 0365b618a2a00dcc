"""Les scripts dans une vraie console de Spyder : F5 et F5 encore, les cellules, le bouton d'arrêt.

La console est celle que lance Spyder (spyder-kernels), dans les mêmes conditions ; à la place de
Spyder, ces tests. Les fenêtres s'ouvrent sur un écran virtuel ; la caméra est un film."""
import ast
import contextlib
import csv
import os
import re
import shutil
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from kit import edit_zone, wait_until
from PIL import Image

jupyter_client = pytest.importorskip("jupyter_client", reason="pip install spyder-kernels")
pytest.importorskip("spyder_kernels", reason="pip install spyder-kernels")

NOISE = re.compile(r"Traceback|%tb|[Ee]xception|Error|[Ww]arning|WARNING|SystemExit|\bat 0x")
# Ce que montre l'explorateur de variables tant qu'on ne l'a pas réglé autrement (Spyder 5 et 6).
EXPLORER = dict(check_all=False, excluded_names=[], exclude_private=True, exclude_uppercase=False,
                exclude_capitalized=False, exclude_unsupported=False, truncate=True, minmax=False,
                exclude_callables_and_modules=True, show_callable_attributes=True,
                show_special_attributes=False, filter_on=True)
# L'éditeur de Spyder, à qui %runcell demande le texte d'une cellule.
EDITOR = r"""
import spyder_kernels.customize.code_runner as _runner
class _Editor:
    def get_file_code(self, filename, save_all=True):
        with open(filename, encoding="utf-8") as file:
            return file.read()
    def run_cell(self, cell, filename):
        import re
        return re.split(r"(?m)^(?=# ?%%)", self.get_file_code(filename))[cell]
_runner.frontend_request = lambda *_, editor=_Editor(), **__: editor
"""


class Console:
    """Une console : `execute` attend la fin et rend ce qui s'affiche ; ou `start`, `finish`."""

    def __init__(self, cwd, **env):
        self.manager = jupyter_client.KernelManager()
        self.manager.kernel_spec.argv = [sys.executable, "-m", "spyder_kernels.console",
                                         "-f", "{connection_file}"]
        self.manager.start_kernel(cwd=str(cwd), env={
            **os.environ, "SPY_UMR_ENABLED": "True", "SPY_UMR_VERBOSE": "True",
            "SPY_RUN_LINES_O": "", "MPLBACKEND": "", "OMP_NUM_THREADS": "1", **env})
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.execute(EDITOR)

    def start(self, code):
        self.text, self.pictures, self.request = "", 0, self.client.execute(code)

    def read(self, timeout=90):
        """Le message suivant de cette exécution ; faux si elle est finie."""
        while True:
            message = self.client.get_iopub_msg(timeout=timeout)
            if message["parent_header"].get("msg_id") == self.request:
                break
        content = message["content"]
        self.text += content.get("text", "") + "\n".join(content.get("traceback", []))
        self.pictures += "image/png" in content.get("data", {})
        return content.get("execution_state") != "idle"

    def wait_for(self, text):
        while text not in self.text:
            assert self.read(), self.text

    def finish(self):
        while self.read():
            pass
        # « Reloaded modules » : Spyder lui-même, qui recharge toujours torch.ops
        self.text = re.sub(r"\x1b\[4;\d+mReloaded modules.*\n", "", self.text)
        return self.text

    def execute(self, code):
        self.start(code)
        return self.finish()

    def evaluate(self, expression):
        """La valeur qu'a cette expression dans la console."""
        shown = self.text, self.pictures
        value = ast.literal_eval(self.execute(f"print(repr({expression}))").strip())
        self.text, self.pictures = shown
        return value

    def stop_button(self):
        self.manager.interrupt_kernel()

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@contextlib.contextmanager
def opened(*args, **env):
    console = Console(*args, **env)
    try:
        yield console
    finally:
        console.close()


@pytest.fixture(scope="module")
def console(tmp_path_factory, screen):
    """La console que partagent la plupart des tests, comme l'étudiant garde la sienne."""
    with opened(tmp_path_factory.mktemp("ailleurs"), **screen.env) as console:
        yield console


@pytest.fixture
def folder(folder):
    """Un petit kit, vite entraîné, avec un film bleu à gauche, rouge à droite pour caméra."""
    for path in sorted((folder / "images" / "exemple").glob("*.png"))[64:]:
        path.unlink()
    picture = np.full((96, 128, 3), 30, np.uint8)
    picture[:, :64, 0] = picture[:, 64:, 2] = 220                # BGR
    writer = cv2.VideoWriter(str(folder / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 30,
                             (128, 96))
    for _ in range(600):
        writer.write(picture)
    writer.release()
    edit_zone(folder / "record_images.py", images_size=32, camera="film.avi")
    edit_zone(folder / "train_VAE.py", images_size=32, epochs=2)
    edit_zone(folder / "decode_VAE.py", images_size=32)
    return folder


def f5(script, wdir=True):
    """Ce que Spyder écrit dans la console quand on appuie sur F5."""
    return f"%runfile {str(script)!r}" + f" --wdir {str(script.parent)!r}" * wdir


def clean(text):
    """Rend `text`, où rien n'est d'une erreur de Python ni de l'anglais de la console."""
    assert not NOISE.search(text), text
    return text


def on_screen(text):
    """Les lignes telles qu'on les voit : après un retour chariot, on écrit par-dessus."""
    lines = []
    for line in text.split("\n"):
        shown = ""
        for piece in line.split("\r"):
            shown = piece + shown[len(piece):]
        lines.append(shown.rstrip())
    return lines


def losses_in(text):
    """[(epoch, epochs, loss, test loss)] des lignes d'epoch."""
    return [tuple(map(float, found)) for found in re.findall(
        r"(?m)^Epoch (\d+)/(\d+) .*?\bloss ([\d.]+) .*?\btest loss ([\d.]+)", text)]


def no_window(screen, title):
    return not screen.xdotool("search", "--onlyvisible", "--name", title)


# ---------------------------------------------------------------- F5, dix fois

def press(screen, title, *keys):
    """Tape ces touches dans la fenêtre."""
    window = screen.window(title)
    screen.xdotool("windowactivate", "--sync", window)
    time.sleep(0.4)
    for key in keys:
        screen.xdotool("key", key)
        time.sleep(0.3)
    return window


def record(console, screen, folder, wdir, close):
    """record_images.py : une image de plus, la bonne, puis « q » ou Alt+F4 (comme la croix)."""
    before = set((folder / "images").glob("*.png"))
    console.start(f5(folder / "record_images.py", wdir))
    console.wait_for("Cliquez sur la fenêtre")
    press(screen, "record_images", "s")
    wait_until(lambda: len(set((folder / "images").glob("*.png")) - before) == 1)
    screen.xdotool("key", "q" if close == "q" else "alt+F4")
    text = clean(console.finish())
    assert no_window(screen, "record_images")
    (new,) = set((folder / "images").glob("*.png")) - before
    assert new.name == f"image_{len(before) + 1:05d}.png"
    pixels = np.asarray(Image.open(new)).astype(int)
    assert pixels.shape == (32, 32, 3)
    assert (abs(pixels[4:28, 4:12] - [220, 30, 30]) < 60).all()      # le miroir : rouge à gauche
    assert (pixels[4:28, 20:28, 2] > 150).all() and (pixels[4:28, 20:28, 0] < 90).all()
    assert f"1 image enregistrée dans {folder / 'images'} ({len(before) + 1} en tout)." in text


def train(console, screen, folder, wdir, close):
    """train_VAE.py : les losses, le tableau et l'image, celle-ci dans la console aussi."""
    (folder / "latents.csv").unlink(missing_ok=True)
    text = clean(console.execute(f5(folder / "train_VAE.py", wdir)))
    lines = losses_in(text)
    assert [line[:2] for line in lines] == [(1, 2), (2, 2)]
    assert lines[1][2] < lines[0][2] < 3000
    assert console.evaluate("[round(loss, 2) for loss in losses]") == [line[2] for line in lines]
    own = sorted((folder / "images").glob("*.png"))
    expected = own if len(own) > 1 else sorted((folder / "images" / "exemple").glob("*.png"))
    with open(folder / "latents.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "z1", "z2", "z3", "z4"]
    assert sorted(row[0] for row in rows[1:]) == [str(p.relative_to(folder)) for p in expected]
    assert console.pictures == 1 and Image.open(folder / "train_VAE.png").width > 600
    assert console.evaluate("str(folder)") == str(folder)


def decode(console, screen, folder, wdir, close):
    """decode_VAE.py : l'image enregistrée est celle que dessine le modèle du moment, pour z nul.

    Sa fenêtre est fermée (Alt+F4, comme la croix), ou détruite par le système (windowclose)."""
    before = set(folder.glob("decode_VAE_*.png"))
    console.start(f5(folder / "decode_VAE.py", wdir))
    console.wait_for("La fenêtre est ouverte.")
    window = press(screen, "decode_VAE", "e")
    new, = wait_until(lambda: set(folder.glob("decode_VAE_*.png")) - before)
    screen.xdotool(*(["key", "alt+F4"] if close == "q" else ["windowclose", window]))
    text = clean(console.finish())
    assert no_window(screen, "decode_VAE")
    assert on_screen(text)[-3:] == ["La fenêtre est ouverte.", "La fenêtre est fermée.", ""]
    with Image.open(new) as image:
        seen = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BOX)).tolist()
    assert console.evaluate(f'''
        (torch.tensor({seen}).permute(2, 0, 1) / 255
         - load_model(folder / model_file).decode(torch.zeros(1, 4))[0]).abs().mean().item() < 0.02
        '''.replace("\n", " ").strip())


ORDER = [train, decode, record, record, train, decode, train, decode, decode, record, train]


@pytest.mark.parametrize("wdir", [True, False])
def test_any_order(tmp_path, screen, folder, wdir):
    """Onze F5 dans la même console, avec et sans dossier de travail : chaque fois bien."""
    edit_zone(folder / "train_VAE.py", test_proportion=0.4)
    with opened(tmp_path, **screen.env) as console:
        for number, run in enumerate(ORDER):
            run(console, screen, folder, wdir, "q" if number % 2 else "croix")
        expected = folder if wdir else tmp_path                 # les scripts ne changent pas cela
        assert console.evaluate("__import__('os').getcwd()") == str(expected)
        threads = console.evaluate("__import__('threading').active_count()")
        train(console, screen, folder, wdir, None)
        assert console.evaluate("__import__('threading').active_count()") <= threads


# ---------------------------------------------------------------- l'explorateur et les cellules

def test_explorer_and_cells(console, folder):
    """Après F5, l'explorateur de variables montre l'essentiel ; les cellules, l'une après l'autre,
    donnent les mêmes nombres."""
    script = folder / "train_VAE.py"
    console.execute("%reset -f")
    by_f5 = losses_in(clean(console.execute(f5(script, wdir=False))))
    console.execute(f"_kernel = get_ipython().kernel; _kernel.set_configuration("
                    f"dict(namespace_view_settings={EXPLORER}))")
    view = console.evaluate("_kernel.get_namespace_view()")
    shown = {name: (entry["type"], entry["size"]) for name, entry in view.items()}
    for name, expected in {
            "images": ("Array of uint8", (64, 32, 32, 3)),
            "train_images": ("Array of uint8", (51, 32, 32, 3)),
            "test_images": ("Array of uint8", (13, 32, 32, 3)),
            "latents": ("Array of float32", (64, 4)),
            "losses": ("list", 2), "test_losses": ("list", 2), "paths": ("list", 64),
            "epochs": ("int", 1), "latent_size": ("int", 1), "beta": ("int", 1)}.items():
        assert shown[name] == expected
    assert shown["weights"][0] == "dict"            # vae lui-même y est caché, parce qu'appelable
    assert console.evaluate("type(vae).__name__") == "VAE" and "vae" not in shown
    latents = console.evaluate("latents.tolist()")

    console.execute("%reset -f")
    text, count = "", len(re.findall(r"(?m)^# %%", script.read_text(encoding="utf-8"))) + 1
    assert count >= 5
    for cell in range(count):
        text += clean(console.execute(f"%runcell -i {cell} {str(script)!r}"))
    assert console.pictures == 1        # la dernière cellule montre train_VAE.png
    assert losses_in(text) == by_f5
    assert console.evaluate("latents.tolist()") == latents


@pytest.mark.parametrize("name", ["record_images", "decode_VAE"])
def test_window_cells(console, screen, folder, name):
    """Les cellules des deux autres scripts : la fenêtre s'ouvre, se ferme, le bilan s'affiche."""
    if name == "decode_VAE":
        edit_zone(folder / "train_VAE.py", epochs=1)
        clean(console.execute(f5(folder / "train_VAE.py")))
    console.execute("%reset -f")
    script, text, windows = folder / f"{name}.py", "", 0
    cells = re.split(r"(?m)^(?=# %%)", script.read_text(encoding="utf-8"))
    for cell, code in enumerate(cells):
        console.start(f"%runcell -i {cell} {str(script)!r}")
        if re.search(r"(?m)^    window = Window\(\)|cv2.VideoCapture\(\)$", code):
            press(screen, name, "alt+F4")
            windows += 1
        text += clean(console.finish())
    assert windows == 1 and no_window(screen, name)
    end = "La fenêtre est fermée." if name == "decode_VAE" else "Aucune image enregistrée"
    assert end in text


# ---------------------------------------------------------------- le bouton d'arrêt

def test_stop_button(console, screen, folder):
    """Arrêt pendant la lecture, l'entraînement, l'enregistrement, la fenêtre : une ligne en
    français, et la console sert encore."""
    script = folder / "train_VAE.py"
    clean(console.execute(f5(script)))
    content = (folder / "model_VAE_64.pt").read_bytes()
    edit_zone(script, epochs=5000, images_size=64)

    console.start(f5(script))                               # pendant l'entraînement
    console.wait_for("Epoch 2/5000")
    console.stop_button()
    text = clean(console.finish())
    done = int(losses_in(text)[-1][0])
    epoch, = map(int, re.findall(r"Arrêt demandé pendant l'epoch (\d+)\.", text))
    assert done <= epoch <= done + 1 and epoch < 5000
    assert f"Le modèle de l'epoch {epoch} est enregistré dans « model_VAE_64.pt »." in text
    assert len(console.evaluate("losses")) == done
    assert console.evaluate("vae.images_size") == 64

    console.start(f5(folder / "decode_VAE.py"))             # ... qui dit l'écart avec la zone
    assert "a été entraîné avec images_size = 64" in clean(console.finish())
    edit_zone(folder / "decode_VAE.py", images_size=64)
    for name, opening, said in [
            ("decode_VAE", "La fenêtre est ouverte.", "La fenêtre est fermée."),
            ("record_images", "Cliquez sur la fenêtre", "Arrêt demandé.")]:
        for _ in range(2):
            console.start(f5(folder / f"{name}.py"))
            console.wait_for(opening)
            screen.window(name)
            start = time.monotonic()
            console.stop_button()
            text = clean(console.finish())
            assert time.monotonic() - start < 3
            assert said in on_screen(text) and no_window(screen, name)

    many = folder / "images" / "beaucoup"                   # pendant la lecture des images
    many.mkdir()
    Image.effect_noise((1500, 1500), 90).save(many / "0.png")
    for k in range(1, 400):
        os.link(many / "0.png", many / f"{k}.png")
    console.start(f5(script))
    console.wait_for("Lecture des images")
    console.stop_button()
    text = clean(console.finish())
    assert on_screen(text)[-2:] == ["Arrêt demandé. Aucun nouveau modèle n'est enregistré.", ""]
    shutil.rmtree(many)
    edit_zone(script, epochs=1)
    assert len(losses_in(clean(console.execute(f5(script))))) == 1
    assert (folder / "model_VAE_64.pt").read_bytes() != content


def test_stop_button_while_torch_loads(tmp_path, folder):
    """PyTorch arrêté en plein chargement ne peut plus se charger : le message dit quoi faire."""
    (folder / "torch.py").write_text(
        "import sys\nsys.loads = getattr(sys, 'loads', 0) + 1\n"
        "raise [KeyboardInterrupt, ImportError('torch can only be initialized once per process'),\n"
        "       RuntimeError('already has a docstring'), OSError('WinError 126')][sys.loads - 1]\n")
    with opened(tmp_path) as console:
        text = clean(console.execute(f5(folder / "train_VAE.py")))
        assert on_screen(text)[1:] == ["Arrêt demandé, avant le début.", ""]
        for error in ("once per process", "already has a docstring", "WinError 126"):
            text = on_screen(console.execute(f5(folder / "train_VAE.py")))
            assert text[1].startswith("Il manque une bibliothèque (") and error in text[1]
            assert "menu Console > Redémarrer le noyau" in text[1] and text[2:] == [""]


# ---------------------------------------------------------------- model_VAE_64.py modifié

def test_model_edited(console, folder):
    """Modifier model_VAE_64.py entre deux F5 compte ; le modèle d'avant est alors refusé."""
    clean(console.execute(f5(folder / "train_VAE.py")))
    before = console.evaluate("sum(p.numel() for p in vae.parameters())")
    module = folder / "model_VAE_64.py"
    text, count = re.subn(r"\b256\b(?=\)?, (?:nn|128))", "200", module.read_text(encoding="utf-8"))
    if not count:
        text, count = re.subn(r"(nn\.Linear\(.*?)\b256\b", r"\g<1>200", text)
    assert count
    module.write_text(text, encoding="utf-8")
    os.utime(module, (time.time() + 5,) * 2)

    text = clean(console.execute(f5(folder / "decode_VAE.py")))
    assert f"« {folder / 'model_VAE_64.pt'} »" in text and "relancez train_VAE.py" in text
    assert len(on_screen(text)) == 3                        # chargement, message, fin de ligne
    clean(console.execute(f5(folder / "train_VAE.py")))
    assert console.evaluate("sum(p.numel() for p in vae.parameters())") != before

    module.write_text("import torch\n\nVAE = torch.nn.Identiy\n", encoding="utf-8")     # une faute
    os.utime(module, (time.time() + 10,) * 2)
    assert "Identiy" in console.execute(f5(folder / "train_VAE.py"))    # ici l'erreur est utile
    assert console.evaluate("1 + 1") == 2


# ---------------------------------------------------------------- les erreurs d'un étudiant

@pytest.mark.parametrize("script, values, words", [
    ("train_VAE", dict(latent_size=0), "latent_size = 0"),
    ("train_VAE", dict(images_size=65), "images_size = 65"),
    ("train_VAE", dict(beta="1"), "beta = '1'"),
    ("train_VAE", dict(images_folder="imagess"), "imagess"),
    ("train_VAE", dict(learning_rate=1e5), "learning_rate"),
    ("decode_VAE", dict(model_file="rien.pt"), "rien.pt"),
    ("decode_VAE", dict(model_file="film.avi"), "film.avi"),
    ("decode_VAE", dict(latent_size=2.5), "latent_size = 2.5"),
    ("record_images", dict(images_size=None), "images_size = None"),
    ("record_images", dict(camera="absent.mp4"), "La caméra ne s'ouvre pas")])
def test_mistakes(console, folder, script, values, words):
    """Un message en français qui dit quoi, et rien d'autre : ni Traceback, ni « use %tb »."""
    edit_zone(folder / f"{script}.py", **values)
    text = clean(console.execute(f5(folder / f"{script}.py")))
    assert words in text and console.pictures == 0
    assert console.evaluate("1 + 1") == 2


# ---------------------------------------------------------------- la progression

def test_progress(console, folder):
    """Une epoch longue montre son avance sur une seule ligne, remplacée par la suivante ; dans un
    fichier, presque rien de plus que les epochs."""
    script = folder / "train_VAE.py"
    code = script.read_text(encoding="utf-8")
    assert code.count("time.monotonic() + 2\n") == 1     # secondes avant de montrer l'avance
    script.write_text(code.replace("time.monotonic() + 2\n", "time.monotonic()\n"),
                      encoding="utf-8")
    edit_zone(script, images_size=128, epochs=2, batch_size=8)
    text = clean(console.execute(f5(script)))
    assert "Lecture des images : 0/64" in text
    assert "Epoch 1/2 en cours" in text and "Epoch 2/2 en cours" in text
    assert "en cours" not in "".join(on_screen(text)) and "Lecture" not in "".join(on_screen(text))
    lines = [line for line in on_screen(text) if line.startswith("Epoch")]
    assert len(lines) == 2
    for line in lines:
        assert re.fullmatch(r"Epoch [12]/2   loss [\d.]+   test loss [\d.]+   reste \S+", line)

    log = folder / "journal.txt"
    with open(log, "wb") as file:
        subprocess.run([sys.executable, script], stdout=file, stderr=file,
                       env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"})
    text = log.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 15 and "\r" not in text and text.count("en cours") <= 2
    assert len(losses_in(text)) == 2
