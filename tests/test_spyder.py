"""Les scripts dans une vraie console de Spyder : F5 et F5 encore, les cellules, le bouton d'arrêt.

La console est celle que lance Spyder (spyder-kernels), dans les mêmes conditions ; à la place de
Spyder, ces tests. Les fenêtres s'ouvrent sur un écran virtuel ; la caméra est un film."""
import ast
import contextlib
import os
import re
import sys
import time
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
from kit import copy_kit, edit_zone, wait_until
from PIL import Image

jupyter_client = pytest.importorskip("jupyter_client", reason="pip install spyder-kernels")
if not find_spec("spyder_kernels"):     # sans l'importer : ces tests ne sont pas dans Spyder
    pytest.skip("pip install spyder-kernels", allow_module_level=True)

NOISE = re.compile(r"Traceback|%tb|[Ee]xception|Error|[Ww]arning|WARNING|SystemExit|\bat 0x")
# Ce que montre l'explorateur de variables tant qu'on ne l'a pas réglé autrement (Spyder 5 et 6).
EXPLORER = dict(check_all=False, excluded_names=[], exclude_private=True, exclude_uppercase=False,
                exclude_capitalized=False, exclude_unsupported=False, truncate=True, minmax=False,
                exclude_callables_and_modules=True, show_callable_attributes=True,
                show_special_attributes=False, filter_on=True)
# L'éditeur de Spyder, à qui %runfile et %runcell demandent le texte d'un fichier ou d'une cellule.
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
        self.client.wait_for_ready(timeout=120)
        self.execute(EDITOR)

    def start(self, code):
        self.text, self.pictures, self.request = "", 0, self.client.execute(code)

    def read(self):
        """Le message suivant de cette exécution ; faux si elle est finie."""
        while True:
            message = self.client.get_iopub_msg(timeout=300)
            if message["parent_header"].get("msg_id") == self.request:
                break
        content = message["content"]
        self.text += content.get("text", "") + "\n".join(content.get("traceback", []))
        self.pictures += "image/png" in content.get("data", {})
        return content.get("execution_state") != "idle"

    def wait_for(self, text):
        while text not in self.text:
            assert self.read(), self.text

    def finish(self, clean=True):
        """Ce qui s'est affiché, où rien n'est d'une erreur de Python ni de l'anglais de la console."""
        while self.read():
            pass
        # « Reloaded modules » : Spyder lui-même, qui recharge toujours torch.ops
        self.text = re.sub(r"\x1b\[4;\d+mReloaded modules.*\n", "", self.text)
        assert not (clean and NOISE.search(self.text)), self.text
        return self.text

    def execute(self, code, clean=True):
        self.start(code)
        return self.finish(clean)

    def f5(self, script, wdir=True):
        """Ce que Spyder écrit dans la console quand on appuie sur F5 ; sans attendre."""
        self.start(f"%runfile {str(script)!r}" + f" --wdir {str(script.parent)!r}" * wdir)

    def run(self, script):
        self.f5(script)
        return self.finish()

    def evaluate(self, expression):
        """La valeur qu'a cette expression dans la console."""
        return ast.literal_eval(self.execute(f"print(repr({expression}))").strip())

    def stop_button(self):
        self.manager.interrupt_kernel()


@contextlib.contextmanager
def opened(*args, **env):
    """Une console, fermée à la fin."""
    console = Console(*args, **env)
    try:
        yield console
    finally:
        console.client.stop_channels()
        console.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def console(tmp_path_factory):
    """La console que partagent les tests sans fenêtre, comme l'étudiant garde la sienne."""
    with opened(tmp_path_factory.mktemp("ailleurs")) as console:
        yield console


@pytest.fixture
def folder(tmp_path):
    """Un petit kit, vite entraîné, avec un film bleu à gauche, rouge à droite pour caméra."""
    folder = copy_kit(tmp_path / "mon kit été")
    for path in sorted((folder / "images" / "exemple").glob("*.png"))[64:]:
        path.unlink()
    picture = np.full((96, 128, 3), 30, np.uint8)
    picture[:, :64, 0] = picture[:, 64:, 2] = 220                # BGR
    writer = cv2.VideoWriter(str(folder / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 30, (128, 96))
    for _ in range(900):
        writer.write(picture)
    writer.release()
    edit_zone(folder / "record_images.py", images_size=32, camera="film.avi")
    edit_zone(folder / "train_VAE.py", images_size=32, epochs=2)
    edit_zone(folder / "decode_VAE.py", images_size=32)
    return folder


def losses_in(text):
    """[(epoch, loss)] des lignes d'epoch."""
    return [(int(epoch), float(loss)) for epoch, loss in re.findall(r"(?m)^Epoch (\d+)/.*?\bloss ([\d.]+)", text)]


# Sans fenêtre ----------------------------------------------------------------------------
def train(console, screen, folder, wdir, how):
    """train_VAE.py : les losses, et l'image du bilan dans la console aussi ; rend les losses."""
    console.f5(folder / "train_VAE.py", wdir)
    found = losses_in(console.finish())
    assert len(found) == 2 and console.pictures == 1 and "Bilan : " in console.text
    return found


def test_train(console, folder):
    """Dix F5 dans la même console, avec et sans dossier de travail : chaque fois les mêmes nombres ; ni
    fil ni dossier de travail ne changent."""
    state = "(__import__('threading').active_count(), __import__('os').getcwd())"
    found, before = train(console, None, folder, True, None), console.evaluate(state)
    for k in range(9):
        assert train(console, None, folder, k % 2, None) == found
    threads, place = console.evaluate(state)
    assert threads <= before[0] + 1 and place == before[1]


def test_explorer_and_cells(console, folder):
    """Après F5, l'explorateur de variables montre l'essentiel ; les cellules, l'une après l'autre,
    donnent les mêmes nombres."""
    script = folder / "train_VAE.py"
    console.execute("%reset -f")
    by_f5 = losses_in(console.run(script))
    console.execute(f"_kernel = get_ipython().kernel; _kernel.set_configuration("
                    f"dict(namespace_view_settings={EXPLORER}))")
    view = console.evaluate("_kernel.get_namespace_view()")
    shown = {name: (entry["type"], entry["size"]) for name, entry in view.items()}
    expected = {"images": ("Array of uint8", (64, 32, 32, 3)), "losses": ("list", 2), "paths": ("list", 64),
                "train_images": ("Array of uint8", (51, 32, 32, 3)), "latents": ("Array of float32", (64, 4)),
                "test_losses": ("list", 2), "latent_size": ("int", 1), "beta": ("int", 1)}
    assert {name: shown.get(name) for name in expected} == expected and shown["weights"][0] == "dict"
    latents = console.evaluate("latents.tolist()")

    console.execute("%reset -f")
    text, pictures = "", 0
    for cell in range(len(re.findall(r"(?m)^# %%", script.read_text(encoding="utf-8"))) + 1):
        text += console.execute(f"%runcell -i {cell} {str(script)!r}")
        pictures += console.pictures
    assert cell >= 4 and pictures == 1 and losses_in(text) == by_f5
    assert console.evaluate("latents.tolist()") == latents


def test_model_edited(console, folder):
    """Modifier model_VAE_64.py entre deux F5 compte : le modèle d'avant est refusé, puis remplacé ; une
    faute s'y voit ; F5 sur ce fichier dit quel script lancer."""
    module, script = folder / "model_VAE_64.py", folder / "train_VAE.py"
    text = module.read_text(encoding="utf-8")
    assert "train_VAE.py" in console.run(module)
    console.run(script)
    before = console.evaluate("sum(p.numel() for p in vae.parameters())")
    assert text.count("256") > 2
    module.write_text(re.sub(r"\b256\b(?=\)|, 128)", "200", text), encoding="utf-8")
    console.run(script)
    assert console.evaluate("sum(p.numel() for p in vae.parameters())") < before
    module.write_text(text, encoding="utf-8")
    edit_zone(folder / "decode_VAE.py", model_file="model_VAE_64.pt")
    assert "a changé" in console.run(folder / "decode_VAE.py")
    module.write_text("import torch\n\nVAE = torch.nn.Identiy\n", encoding="utf-8")     # une faute
    console.f5(script)
    assert "Identiy" in console.finish(clean=False) and console.evaluate("1 + 1") == 2


@pytest.mark.parametrize("script, values, words", [
    ("train_VAE", dict(latent_size=0), "latent_size = 0"), ("decode_VAE", dict(model_file="a.pt"), "a.pt"),
    ("record_images", dict(images_size=None), "images_size = None")])
def test_mistakes(console, folder, script, values, words):
    """Un message en français qui dit quoi, et rien d'autre : ni Traceback, ni « use %tb »."""
    edit_zone(folder / f"{script}.py", **values)
    assert words in console.run(folder / f"{script}.py") and console.evaluate("1 + 1") == 2


def test_stop_button(tmp_path, folder):
    """Arrêt pendant que PyTorch se charge : sans effet, rien ne reste à moitié chargé ; puis en plein
    entraînement : une phrase, un seul nombre. F5 sert encore."""
    script = folder / "train_VAE.py"
    edit_zone(script, epochs=5000)
    with opened(tmp_path) as console:
        console.f5(script)
        console.wait_for("Chargement")
        time.sleep(0.3)
        console.stop_button()
        console.wait_for("Epoch 2/5000")
        console.stop_button()
        text = console.finish()
        assert "Bilan : " in text and console.pictures == 1
        epoch, = re.findall(r"Arrêt demandé.* (\d+)\.", text)
        assert int(epoch) == console.evaluate("len(losses)") == len(losses_in(text)) < 5000
        edit_zone(script, epochs=1)
        assert len(losses_in(console.run(script))) == 1


# Les fenêtres ------------------------------------------------------------------------------
def end(console, screen, title, how):
    """Ferme la fenêtre (Alt+F4, comme la croix, ou le bouton d'arrêt) ; rend ce qui s'est affiché. Un
    ordinateur très chargé perd parfois un premier appui : on attend, puis on recommence."""
    def closed():
        return not screen.xdotool("search", "--onlyvisible", "--name", title)
    for _ in range(3):
        if how == "arrêt":
            console.stop_button()
        else:
            screen.xdotool("windowactivate", "--sync", screen.window(title), "key", "alt+F4")
        with contextlib.suppress(AssertionError):
            wait_until(closed, timeout=20)
            break
    return console.finish()


def record(console, screen, folder, wdir, how):
    """record_images.py : une image de plus, la bonne : le miroir, rouge à gauche."""
    before = set((folder / "images").glob("*.png"))
    console.f5(folder / "record_images.py", wdir)
    console.wait_for("Cliquez sur la fenêtre")
    window = screen.window("record_images")

    def saved():
        screen.xdotool("windowactivate", "--sync", window, "key", "s")
        time.sleep(1)
        return set((folder / "images").glob("*.png")) - before
    new = min(wait_until(saved))
    assert "enregistrée" in end(console, screen, "record_images", how)
    pixels = np.asarray(Image.open(new)).astype(int)
    assert new.name == f"image_{len(before) + 1:05d}.png" and pixels.shape == (32, 32, 3)
    assert (abs(pixels[4:28, 4:12] - [220, 30, 30]) < 60).all()


def decode(console, screen, folder, wdir, how):
    """decode_VAE.py : sa fenêtre s'ouvre et se ferme."""
    console.f5(folder / "decode_VAE.py", wdir)
    console.wait_for("La fenêtre est ouverte")
    screen.window("decode_VAE")
    assert "La fenêtre est fermée." in end(console, screen, "decode_VAE", how)


@pytest.mark.window
def test_windows(tmp_path, screen, folder):
    """Les trois scripts dans une même console, dans tous les ordres ; un modèle entraîné autrement que
    ne le dit la zone de decode_VAE.py : une phrase."""
    with opened(tmp_path, **screen.env) as console:
        for k, run in enumerate([train, decode, record, record, train, decode, decode] + [record, decode] * 3):
            run(console, screen, folder, k % 2, "arrêt" if k % 3 else "croix")
        edit_zone(folder / "decode_VAE.py", images_size=64)
        assert "images_size = 32" in console.run(folder / "decode_VAE.py")
