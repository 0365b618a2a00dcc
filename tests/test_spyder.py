"""Les scripts dans une vraie console de Spyder (spyder-kernels) : F5, les cellules, le bouton d'arrêt."""
import ast
import contextlib
import os
import re
import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest
from kit import edit_zone, losses_in, wait_until, write_film

jupyter_client = pytest.importorskip("jupyter_client", reason="pip install spyder-kernels")
if not find_spec("spyder_kernels"):     # sans l'importer : ces tests ne sont pas dans Spyder
    pytest.skip("pip install spyder-kernels", allow_module_level=True)

NOISE = re.compile(r"Traceback|%tb|[Ee]xception|Error|[Ww]arning|WARNING|SystemExit|\bat 0x|invalid command")


class Console:
    """Une console de Spyder, où rien d'étrange ne doit s'afficher."""

    def __init__(self, cwd):
        env = {**os.environ, "SPY_UMR_ENABLED": "True", "SPY_UMR_VERBOSE": "True"}
        del env["PYTEST_CURRENT_TEST"]      # sinon, elle ne montre pas ce qu'écrivent Tk, OpenCV...
        self.manager = jupyter_client.KernelManager()
        self.manager.kernel_spec.argv = [sys.executable, "-m", "spyder_kernels.console",
                                         "-f", "{connection_file}"]
        self.manager.start_kernel(cwd=str(cwd), env=env)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    def execute(self, code, *steps, clean=True):
        """Exécute du code ; rend ce qui s'affiche. Une étape : (texte qui s'affiche, geste à faire)."""
        self.text, self.pictures, steps = "", 0, list(steps)

        def show(message):
            content = message["content"]
            self.text += content.get("text", "") + "\n".join(content.get("traceback", []))
            self.pictures += "image/png" in content.get("data", {})
            while steps and steps[0][0] in self.text:
                steps.pop(0)[1]()
        self.client.execute_interactive(code, output_hook=show, timeout=300)
        # « Reloaded modules » : Spyder lui-même, qui recharge toujours torch.ops
        self.text = re.sub(r"\x1b\[4;\d+mReloaded modules.*\n", "", self.text)
        assert not steps and not (clean and NOISE.search(self.text)), self.text
        return self.text

    def f5(self, script, *steps, wdir=True, **options):
        """Ce que Spyder fait quand on appuie sur F5."""
        wdir = f" --wdir {str(script.parent)!r}" * wdir
        return self.execute(f"%runfile {str(script)!r}{wdir}", *steps, **options)

    def evaluate(self, expression):
        """La valeur qu'a cette expression dans la console."""
        return ast.literal_eval(self.execute(f"print(repr({expression}))").strip())


@pytest.fixture
def console(tmp_path):
    console = Console(tmp_path)
    yield console
    console.client.stop_channels()
    console.manager.shutdown_kernel(now=True)


@pytest.fixture
def folder(folder):
    """Un petit kit, vite entraîné, avec un film pour caméra."""
    for path in sorted((folder / "images" / "exemple").glob("*.png"))[64:]:
        path.unlink()
    write_film(folder / "film.avi", np.full((300, 96, 128, 3), 99, np.uint8))
    edit_zone(folder / "record_images.py", images_size=32, camera="film.avi")
    edit_zone(folder / "train_VAE.py", images_size=32, epochs=2)
    edit_zone(folder / "decode_VAE.py", images_size=32)
    return folder


def train(console, folder, wdir, *_):
    """train_VAE.py : les losses, et l'image du bilan dans la console aussi ; rend les losses."""
    found = losses_in(console.f5(folder / "train_VAE.py", wdir=wdir))
    assert len(found["loss"]) == 2 and console.pictures == 1 and "Bilan : " in console.text
    return found


def test_train(console, folder):
    """Six F5, avec et sans dossier de travail : mêmes nombres ; une faute dans la zone : un message."""
    state = "(__import__('threading').active_count(), __import__('os').getcwd())"
    found, before = train(console, folder, True), console.evaluate(state)
    for k in range(5):
        assert train(console, folder, k % 2) == found
    threads, place = console.evaluate(state)
    assert threads <= before[0] + 1 and place == before[1]
    for script, values, words in [("train_VAE", dict(latent_size=0), "latent_size = 0"),
                                  ("decode_VAE", dict(model_file="a.pt"), "a.pt"),
                                  ("record_images", dict(images_size=None), "images_size = None")]:
        edit_zone(folder / f"{script}.py", **values)
        assert words in console.f5(folder / f"{script}.py") and console.evaluate("1 + 1") == 2


def test_explorer_and_cells(console, folder):
    """L'explorateur de variables montre l'essentiel ; les cellules donnent les mêmes nombres que F5."""
    script = folder / "train_VAE.py"
    by_f5 = losses_in(console.f5(script))
    arrays = console.evaluate("[(a.dtype.name, *a.shape) for a in (images, train_images, latents, kl)]")
    assert arrays == [("uint8", 64, 3, 32, 32), ("uint8", 51, 3, 32, 32), ("float32", 64, 4), ("float32", 4)]
    types = console.evaluate("[type(x).__name__ for x in (losses, test_losses, paths, weights)]")
    assert types == ["list", "list", "list", "dict"]
    latents = console.evaluate("latents.tolist()")

    text, pictures = "", 0
    console.execute("%reset -f")
    for number, cell in enumerate(re.split(r"(?m)^(?=# %%)", script.read_text(encoding="utf-8"))):
        # L'éditeur de Spyder, à qui %runcell demande le texte de la cellule
        console.execute("import spyder_kernels.customize.code_runner as _runner, types as _types\n"
                        "_runner.frontend_request = lambda **_: _types.SimpleNamespace("
                        f"run_cell=lambda *_: {cell!r})")
        text += console.execute(f"%runcell -i {number} {str(script)!r}")
        pictures += console.pictures
    assert number >= 4 and pictures == 1 and losses_in(text) == by_f5
    assert console.evaluate("latents.tolist()") == latents


def test_model_edited(console, folder):
    """Modifier model_VAE_64.py entre deux F5 compte, une faute s'y voit ; F5 y dit quoi lancer."""
    module, script = folder / "model_VAE_64.py", folder / "train_VAE.py"
    text = module.read_text(encoding="utf-8")
    assert "train_VAE.py" in console.f5(module)
    console.f5(script)
    before = console.evaluate("sum(p.numel() for p in vae.parameters())")
    module.write_text(re.sub(r"\b256\b(?=\)|, 128)", "200", text), encoding="utf-8")
    assert "a changé" in console.f5(folder / "decode_VAE.py")
    console.f5(script)
    assert console.evaluate("sum(p.numel() for p in vae.parameters())") < before
    module.write_text("import torch\n\nVAE = torch.nn.Identiy\n", encoding="utf-8")     # une faute
    assert "Identiy" in console.f5(script, clean=False) and console.evaluate("1 + 1") == 2


def test_stop_button(console, folder):
    """Arrêt en plein entraînement : une phrase, le bilan ; et F5 marche encore."""
    def stop():
        time.sleep(0.3)
        console.manager.interrupt_kernel()
    script = folder / "train_VAE.py"
    edit_zone(script, epochs=5000)
    text = console.f5(script, ("Epoch 2/5000", stop))
    assert "Bilan : " in text and console.pictures == 1
    epoch, = re.findall(r"Arrêt demandé.* (\d+)\.", text)
    assert int(epoch) == console.evaluate("len(losses)") == len(losses_in(text)["loss"]) < 5000
    edit_zone(script, epochs=1)
    assert len(losses_in(console.f5(script))["loss"]) == 1


def press(screen, title, *keys):
    screen.xdotool("windowactivate", "--sync", screen.window(title), "key", *keys)


def close(console, screen, title, stop):
    """Ferme la fenêtre, par le bouton d'arrêt ou Alt+F4 ; très chargé, un ordinateur perd un appui."""
    for _ in range(3):
        console.manager.interrupt_kernel() if stop else press(screen, title, "alt+F4")
        with contextlib.suppress(AssertionError):
            return wait_until(lambda: not screen.xdotool("search", "--onlyvisible", "--name", title), 20)


def record(console, folder, wdir, screen, stop):
    """record_images.py : une image de plus."""
    before = set((folder / "images").glob("*.png"))

    def save():
        press(screen, "record_images", "s")
        time.sleep(1)
        return set((folder / "images").glob("*.png")) - before

    def save_and_close():
        wait_until(save)
        close(console, screen, "record_images", stop)
    text = console.f5(folder / "record_images.py", ("Cliquez sur la fenêtre", save_and_close), wdir=wdir)
    new = min(set((folder / "images").glob("*.png")) - before)
    assert "enregistrée" in text and new.name == f"image_{len(before) + 1:05d}.png"


def decode(console, folder, wdir, screen, stop):
    """decode_VAE.py : sa fenêtre s'ouvre, et se ferme pendant que les sliders glissent."""
    def glide_and_close():
        press(screen, "decode_VAE", "i", "h")
        close(console, screen, "decode_VAE", stop)
    text = console.f5(folder / "decode_VAE.py", ("La fenêtre est ouverte", glide_and_close), wdir=wdir)
    assert "La fenêtre est fermée." in text


def test_windows(console, screen, folder):
    """Les scripts dans une même console, dans tous les ordres : la mémoire ne grandit pas."""
    console.execute(f"import os; os.environ.update({screen.env})")
    memory = []
    for k, run in enumerate([train, decode, record, record, train, decode, decode] + [record, decode] * 3):
        run(console, folder, k % 2, screen, k % 3)
        memory.append(console.evaluate("__import__('psutil').Process().memory_info().rss // 2**20"))
    assert max(memory) - memory[6] < 20, f"la mémoire grandit : {memory} Mio"
