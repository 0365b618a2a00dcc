"""Les scripts dans une vraie console de Spyder (spyder-kernels) : F5, les cellules, le bouton d'arrêt."""
import ast
import os
import re
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from kit import edit_zone, losses_in, write_film

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


@pytest.fixture(scope="module")
def console(tmp_path_factory):
    """La même console pour tous ces tests, comme pour une heure de cours."""
    console = Console(tmp_path_factory.mktemp("ailleurs"))
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


def test_f5_and_cells(console, folder):
    """F5, avec ou sans dossier de travail, et les cellules : mêmes nombres, et l'image du bilan ; le dossier
    de travail ne change pas."""
    script = folder / "train_VAE.py"
    text = console.f5(script)
    losses, latents = losses_in(text), console.evaluate("latents.tolist()")
    assert len(losses["loss"]) == 2 and "Bilan : " in text
    for wdir in (True, False):
        console.execute("import os; os.chdir(os.sep)")
        assert losses_in(console.f5(script, wdir=wdir)) == losses and console.pictures == 1
    assert console.evaluate("os.getcwd()") == os.sep
    text, pictures = "", 0
    console.execute("%reset -f")
    for number, cell in enumerate(re.split(r"(?m)^(?=# %%)", script.read_text(encoding="utf-8"))):
        # L'éditeur de Spyder, à qui %runcell demande le texte de la cellule
        console.execute("import spyder_kernels.customize.code_runner as _runner, types as _types\n"
                        "_runner.frontend_request = lambda **_: _types.SimpleNamespace("
                        f"run_cell=lambda *_: {cell!r})")
        text += console.execute(f"%runcell -i {number} {str(script)!r}")
        pictures += console.pictures
    assert number >= 4 and pictures == 1 and losses_in(text) == losses
    assert console.evaluate("latents.tolist()") == latents


def test_faults(console, folder):
    """Une faute dans la zone : un message, et la console vit ; modifier model_VAE_64.py compte, une faute s'y
    voit, le lancer dit quoi lancer."""
    module, script = folder / "model_VAE_64.py", folder / "train_VAE.py"
    assert "lancez train_VAE.py" in console.f5(module)
    console.f5(script)
    before = console.evaluate("sum(p.numel() for p in vae.parameters())")
    text = module.read_text(encoding="utf-8")
    module.write_text(re.sub(r"\b256\b(?=\)|, 128)", "200", text), encoding="utf-8")
    assert "a changé" in console.f5(folder / "decode_VAE.py")
    console.f5(script)
    assert console.evaluate("sum(p.numel() for p in vae.parameters())") < before
    for name, values, words in [("train_VAE.py", dict(latent_size=0), "latent_size = 0"),
                                ("decode_VAE.py", dict(model_file="a.pt"), "a.pt"),
                                ("record_images.py", dict(images_size=None), "images_size = None")]:
        edit_zone(folder / name, **values)
        assert words in console.f5(folder / name)
    edit_zone(script, latent_size=4)
    module.write_text("import torch\n\nVAE = torch.nn.Identiy\n", encoding="utf-8")     # une faute
    assert "Identiy" in console.f5(script, clean=False) and console.evaluate("1 + 1") == 2


def test_stop_button(console, folder):
    """Arrêt en plein entraînement : une phrase, le bilan ; et F5 marche encore."""
    script = folder / "train_VAE.py"
    edit_zone(script, epochs=5000)
    text = console.f5(script, ("Epoch 2/5000", console.manager.interrupt_kernel))
    assert "Bilan : " in text and console.pictures == 1
    epoch, = re.findall(r"Arrêt demandé.* (\d+)\.", text)
    assert int(epoch) == console.evaluate("len(losses)") == len(losses_in(text)["loss"]) < 5000
    edit_zone(script, epochs=1)
    assert len(losses_in(console.f5(script))["loss"]) == 1


def test_windows(console, screen, folder):
    """Les trois scripts dans une même console, dans tous les ordres, fenêtres fermées au clavier ou par le
    bouton d'arrêt : rien d'étrange ne s'affiche, et la mémoire ne grandit pas."""
    console.execute(f"import os, torch; os.environ.update({screen.env}); torch.set_num_threads(3)")
    memory, stop = [], False

    def use(title, *keys):
        screen.xdotool("windowactivate", "--sync", screen.window(title))
        console.manager.interrupt_kernel() if stop else screen.xdotool("key", *keys)

    runs = {"t": ("train_VAE", [], "Bilan : "),
            "r": ("record_images", [("Cliquez sur", lambda: use("record_images", "q"))], "Images enregistrées"),
            "d": ("decode_VAE", [("La fenêtre est ouverte", lambda: use("decode_VAE", "i", "h", "alt+F4"))],
                  "La fenêtre est fermée.")}
    for letter in "tdrrtddrdrd":
        name, steps, said = runs[letter]
        assert said in console.f5(folder / f"{name}.py", *steps)
        memory.append(console.evaluate("__import__('psutil').Process().memory_info().rss // 2**20"))
        stop = not stop
    assert max(memory) - memory[6] < 20, f"la mémoire grandit : {memory} Mio"
    assert console.evaluate("__import__('torch').get_num_threads()") == 3       # rendus par decode_VAE.py
