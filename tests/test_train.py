"""train_VAE.py, le plus souvent lancé dans ce processus : c'est plus rapide, et l'on voit ses variables."""
import csv
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import draw_exemple
import kit
import numpy as np
import pytest
import torch
from model_VAE_64 import VAE, load_model, read_image, save_model
from PIL import Image, ImageDraw
from torchvision.transforms.functional import to_tensor

EXEMPLE = sorted((kit.ROOT / "images" / "exemple").iterdir())
FACES = [Image.open(file) for file in EXEMPLE[:60]]
COLORS = [Image.new("RGB", (40, 40), color) for color in ("black", "white")]
MODEL = "model_VAE_64.pt"


def put_images(folder, pictures):
    """Ne laisse à l'étudiant que ces images."""
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()
    for k, picture in enumerate(pictures):
        picture.save(folder / "images" / f"{k:03}.png")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Une copie du kit, avec 60 visages du jeu de départ pour images de l'étudiant, en 16×16."""
    monkeypatch.setitem(sys.modules, "IPython.display", None)       # elle n'est là que dans Spyder
    folder = kit.copy_kit(tmp_path / "mon kit été", exemple=False)
    put_images(folder, FACES)
    kit.edit_zone(folder / "train_VAE.py", images_size=16, epochs=2)
    return folder


def train(folder, console=None, **zone):
    """Lance train_VAE.py dans ce processus ; rend ce que rend kit.execute."""
    kit.edit_zone(folder / "train_VAE.py", **zone)
    return kit.execute(folder / "train_VAE.py", console)


@pytest.fixture(scope="module", autouse=True)
def starter(tmp_path_factory):
    """Un entraînement sur les images de départ, dans un autre processus, pendant les autres tests."""
    folder = kit.copy_kit(tmp_path_factory.mktemp("x") / "mon kit été")
    kit.edit_zone(folder / "train_VAE.py", epochs=16)
    with subprocess.Popen([sys.executable, folder / "train_VAE.py"], cwd="/", encoding="utf-8",
                          env={**os.environ, "PYTHONIOENCODING": "utf-8"},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        yield folder, process
        process.kill()


def test_learning(folder, monkeypatch):
    """Ce qui est affiché est ce que Adam minimise, aucun gradient n'étant plus long que 1 ; les lots changent
    à chaque epoch ; le modèle gardé a la moyenne glissante des poids."""
    minimised, biases = [], []
    backward, step = torch.Tensor.backward, torch.optim.Adam.step

    def seen_backward(loss):
        minimised.append(loss.item())
        backward(loss)

    def seen_step(optimizer):
        weights = optimizer.param_groups[0]["params"]
        assert torch.stack([weight.grad.norm() for weight in weights]).norm() < 1.001
        step(optimizer)
        biases.append(weights[-1].detach().clone())
    monkeypatch.setattr(torch.Tensor, "backward", seen_backward)
    monkeypatch.setattr(torch.optim.Adam, "step", seen_step)
    done = train(folder, epochs=8, batch_size=10, learning_rate=0.01, beta=3)
    printed = np.reshape(minimised, (8, 5)) @ [10, 10, 10, 10, 8] / 48          # 48 images, en 5 lots
    assert done.loss == pytest.approx(printed, abs=0.006)
    one, two = [torch.cat(list(done.names["train_loader"])) for _ in range(2)]
    assert (one != two).any() and torch.equal(one.sort(dim=0)[0], two.sort(dim=0)[0])
    average = biases[0]
    for bias in biases[1:]:
        average = average + (bias - average) / 2                # sur 2 corrections : 40 / 20
    found = load_model(folder / MODEL).linear.bias
    assert (found - average).abs().max() < 1e-4 < (biases[-1] - average).abs().max()


def test_loss(folder):
    """La loss, à la main : l'erreur de chaque image, plus sa KL, que les images qui se ressemblent allègent."""
    names = train(folder, beta=3).names
    x = torch.stack([to_tensor(read_image(path, 16)) for path in names["paths"]])
    assert torch.equal(torch.from_numpy(names["images"]) / 255, x)          # les axes sont permutés
    assert len(names["test_images"]) == 12 and (names["images"][12:] == names["train_images"]).all()
    mean_error = (x[12:] - x[12:].mean(dim=0)).square().sum(dim=(1, 2, 3)).mean().item()
    assert names["kl_weight"] == pytest.approx(3 * mean_error / 243, rel=1e-4)
    mu, logvar = torch.tensor([[1.0, 0], [2, 0]]), torch.log(torch.tensor([[0.01, 1], [1, 4]]))
    kl = np.array([[0.01 - np.log(0.01), 0], [4, 3 - np.log(4)]]) / 2       # mu² + sigma² - 1 - ln(sigma²)
    assert np.allclose(names["kl_divergence"](mu, logvar), kl)
    found = names["vae_loss"](lambda x: (x + 0.5, mu, logvar), torch.zeros(2, 3, 16, 16), 0.1)
    assert found.item() == pytest.approx(768 * 0.25 + 0.1 * np.sum(kl) / 2)
    put_images(folder, COLORS * 3)                  # très différentes : la KL pèse beta, pas plus
    names = train(folder, images_size=48).names
    assert names["mean_error"] > 243 and names["kl_weight"] == 3


def test_seed(folder):
    """La même graine redonne les mêmes nombres ; une autre, d'autres images de test et d'autres tirages."""
    first, again, other = train(folder), train(folder), train(folder, seed=7)
    assert first.loss == again.loss and (first.names["latents"] == again.names["latents"]).all()
    assert other.names["paths"] != first.names["paths"] and torch.initial_seed() == 7


def test_axes(folder):
    """Tourner les axes garde les images ; des nombres mélangés se retrouvent, sauf s'il y en a peu."""
    names = train(folder).names
    vae, x, axes = names["vae"].requires_grad_(False), torch.rand(8, 3, 16, 16), torch.randn(4, 4)
    axes = torch.linalg.qr(axes)[0]
    mu, before = vae.encode(x)[0], vae.decode(vae.encode(x)[0])
    names["turn_axes"](vae, axes)
    torch.testing.assert_close(vae.encode(x)[0], mu @ axes, atol=1e-4, rtol=0)
    torch.testing.assert_close(vae.decode(vae.encode(x)[0]), before, atol=1e-4, rtol=0)
    numbers = 3 * torch.rand(500, 4, generator=torch.Generator().manual_seed(0)) - 1.5
    numbers[:, 1] *= 0.01
    mixing = torch.eye(4)
    mixing[np.ix_([0, 2, 3], [0, 2, 3])] = torch.linalg.qr(torch.randn(3, 3))[0]
    found = (mixing @ names["independent_axes"](numbers @ mixing)).abs()
    assert (found.max(dim=0).values > 0.99).all() and found[1, 1] == 1
    for mu in (numbers[:60], torch.zeros(99, 4)):
        assert torch.equal(names["independent_axes"](mu), torch.eye(4))


@pytest.mark.parametrize("zone", [
    {"latent_size": 1, "batch_size": 8, "beta": 0, "learning_rate": 0.0001},
    {"latent_size": 32, "batch_size": 256, "beta": 20}, {"images_size": 128, "learning_rate": 0.005}], ids=str)
def test_ranges(folder, zone):
    """Aux bouts de chaque plage, la loss descend, et le modèle a les tailles demandées."""
    done = train(folder, **{"epochs": 3, "images_size": 48, **zone})
    assert done.loss[-1] < done.loss[0] and done.test[-1] < done.test[0], done.out
    vae = load_model(folder / MODEL)
    assert (vae.latent_size, vae.images_size) == (zone.get("latent_size", 4), zone.get("images_size", 48))


def test_faint_images(folder):
    """Des images presque toutes pareilles (3 % de l'énergie) : chaque slider sert quand même."""
    put_images(folder, [face.point(lambda value: 110 + 0.17 * value) for face in FACES])
    done = train(folder, epochs=10, batch_size=4)
    assert done.names["kl"].min() > 1, done.names["kl"]


def test_own_images(folder):
    """Les fichiers illisibles comptés, trois nommés ; dans un tableur, chemins inertes, noms étranges."""
    for name in ("β.txt", "b.heic", "c.png", "d.mp4", ".DS_Store", "Thumbs.db"):
        (folder / "images" / name).write_bytes(b"\0\0\0\1Bud1")
    for name in ("=1+2.png", "+3.png", "-4.png", "@SUM(A1) 😀 Фото.png"):
        shutil.copy(EXEMPLE[99], folder / "images" / name)
    done = train(folder, model_file="modele_β.pt")
    assert "64 images" in done.out and "51 pour l'entraînement, 13 pour le test" in done.out
    line, = [line for line in done.out.splitlines() if "laissés de côté : 4, dont " in line]
    assert len(re.findall(r"[βbcd]\.\w+", line)) == 3 and line.count("exportez-la en JPEG") == 1
    _, *rows = csv.reader((folder / "latents.csv").read_text("utf-8").splitlines())
    assert len(rows) == 64 and not [row for row in rows if row[0][0] in "=+-@"]
    assert load_model(folder / "modele_β.pt").images_size == 16


DOWN = list(np.geomspace(200, 25, 20))
CURVES = [
    ("une seule epoch", [90], [95]), ("tout va bien", DOWN + [25] * 20, DOWN + [26] * 20),
    ("descend encore", [206, 184], [250, 228]), ("descend encore", DOWN[:5], DOWN[:5]),
    ("descend encore", [223, 141, 105, 84, 68, 62], [202, 121, 95, 77, 58.7, 52.9]),
    ("descend encore", DOWN, DOWN), ("descend encore", DOWN[:9], [2 * loss for loss in DOWN[:9]]),
    ("sur-apprentissage", DOWN + [25] * 20, DOWN + [25 + k / 4 for k in range(20)]),
    ("sur-apprentissage", DOWN + [25] * 20, DOWN[:18] + [34] * 22),
    ("tout va bien", DOWN + [25] * 20, DOWN[:19] + [31] * 21),
    ("instable", DOWN + [25] * 18 + [99] * 2, DOWN + [25] * 20), ("instable", DOWN + [2500], DOWN + [2500]),
    ("instable", [243, 300], [243, 400]), ("instable", DOWN + [36, 318] * 10, DOWN + [43] * 20),
    ("l'image moyenne", [243, 240, 239], [250, 245, 244])]


def test_verdict_of_curves(folder):
    """Chaque phrase du bilan, d'après les deux courbes ; une seule à la fois."""
    names = train(folder).names
    for words, losses, test_losses in CURVES:
        names.update(losses=losses, test_losses=test_losses, mean_error=243)
        assert words in names["verdict"](), (losses, test_losses)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("words, pictures, zone", [
    ("Il en faut au moins 2", [], {}), ("Il en faut au moins 2", COLORS[:1], {}),
    ("Bilan : trop peu", COLORS, {}), ("Bilan : trop peu", FACES[:3], {"test_proportion": 0.9}),
    ("Bilan : le modèle ne fait guère mieux", FACES, {"learning_rate": 1e-8, "epochs": 3}),
    ("descend encore", FACES, {"epochs": 16}),
    ("sur-apprentissage", FACES[:12], {"test_proportion": 0.5, "epochs": 40}),
    ("La loss vaut nan", FACES, {"learning_rate": 100, "epochs": 10})], ids=itertools.count())
def test_verdict(folder, words, pictures, zone):
    """Sans deux images, une phrase ; sinon, celle du bilan, qui dit vrai ; le modèle d'avant est gardé."""
    put_images(folder, pictures)
    save_model(VAE(1, 16), folder / MODEL)
    done = train(folder, **zone)
    assert words in done.out and done.out.count("Bilan : ") == (done.code == 0), done.out
    kept = "model_VAE_64_precedent.pt" if done.loss else MODEL
    assert load_model(folder / kept).latent_size == 1 and (kept in done.out or not done.loss)


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("target, name, number, error, words, epochs", [
    (Image, "open", 9, KeyboardInterrupt(), "Arrêt demandé, avant", 0),
    (torch.Tensor, "backward", 2, KeyboardInterrupt(), "aucun nouveau modèle", 0),
    (torch.Tensor, "backward", 8, KeyboardInterrupt(), "le modèle de l'epoch 2", 2),
    (Path, "write_bytes", 1, FULL, "le disque est-il plein", 0),
    (Path, "write_bytes", 2, FULL, "Dernière epoch enregistrée : 1", 1)], ids=itertools.count())
def test_stop(folder, monkeypatch, target, name, number, error, words, epochs):
    """Un arrêt, un disque plein, à l'appel `number` d'une fonction : une phrase. Le modèle de la dernière
    epoch finie est là, celui d'avant aussi ; après un arrêt, ses latents et le bilan."""
    function, calls = getattr(target, name), itertools.count(1)

    def stopped(*args, **kwargs):
        if next(calls) == number:
            raise error
        return function(*args, **kwargs)
    save_model(VAE(1, 16), folder / MODEL)
    monkeypatch.setattr(target, name, stopped)
    done = train(folder, epochs=500)
    assert done.out.count(words) == 1 and len(done.loss) == epochs
    goes_on = [done.code == 0, "Bilan : " in done.out, (folder / "latents.csv").exists()]
    assert goes_on == [epochs > 0 and error is not FULL] * 3
    if done.code == 0:                                      # le modèle de l'epoch finie, pas de la suivante
        vae, shown, reconstructions = map(done.names.get, ("vae", "shown", "reconstructions"))
        assert torch.allclose(vae.decode(vae.encode(shown)[0]), reconstructions, atol=1e-5)
    sizes = {path.name: load_model(path).latent_size for path in folder.glob("*.pt")}
    assert 1 in sizes.values() and (sizes.get(MODEL) == 4) == (epochs > 0)


def test_library(folder, monkeypatch):
    """model_VAE_64.py, une bibliothèque ou une DLL manque : une phrase dit laquelle, et quoi faire."""
    monkeypatch.setitem(sys.modules, "model_VAE_64", None)
    done = train(folder)
    assert done.code == 1 and re.search("Il manque .*model_VAE_64(?s:.*)décompressez tout le kit", done.out)
    (folder / "torch.py").write_text("raise OSError('no shm.dll')")
    monkeypatch.delitem(sys.modules, "torch")
    done = train(folder)
    assert done.code == 1 and re.search("Il manque .*no shm.dll(?s:.*)Visual C[+][+]", done.out)


def test_files_held(folder):
    """latents.csv et train_VAE.png ouverts ailleurs : dit une fois chacun ; bilan et modèle sont là."""
    for name in ("latents.csv", "train_VAE.png"):
        (folder / name).mkdir()
    done = train(folder)
    assert done.code == 0 and "Bilan : " in done.out and load_model(folder / MODEL).latent_size == 4
    for name in ("latents.csv", "train_VAE.png"):
        assert done.out.count(name) == 1 and f"{name} ne s'écrit pas" in done.out


def test_progress(folder, monkeypatch):
    """Jamais plus de quelques secondes sans une ligne, à la lecture comme pendant une longue epoch."""
    monkeypatch.setattr(time, "monotonic", itertools.count().__next__)       # chaque appel : une seconde
    out = train(folder, batch_size=1).out
    assert len(re.findall(r"lecture des images : \d+/60", out)) > 5
    assert len(re.findall(r"epoch 2 : \d+/48", out)) > 5
    remaining = [int(seconds) for seconds in re.findall(r"reste (\d+) s", out)]
    assert remaining[0] > 0 and remaining[-1] == 0


def test_starter_set(starter):
    """Les images de départ : les lignes que montre le README, aux nombres et au bilan près ; les fichiers, un
    slider par caractéristique, la test loss."""
    folder, process = starter
    out = process.communicate()[0]
    losses = kit.losses_in(out)
    shown = re.search(r"(?s)```text\n(.*?)```", (kit.ROOT / "README.md").read_text("utf-8"))[1]
    wanted = re.sub(r"(?<=Bilan : ).*|cpu|[\d.…]+", ".+", shown)
    assert process.returncode == 0 and re.fullmatch(wanted, out, re.DOTALL), out
    assert "480 pour l'entraînement, 120 pour le test" in out
    assert len(losses["loss"]) == out.count("/16 ") == 16 and losses["test"][-1] < 40, out
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {
        *kit.SCRIPTS, "images", "latents.csv", MODEL, "train_VAE.png"}

    head, *rows = csv.reader((folder / "latents.csv").read_text("utf-8").splitlines())
    assert head == ["image", "z1", "z2", "z3", "z4"]
    assert [row[0] for row in rows] == [str(folder / "images" / "exemple" / file.name) for file in EXEMPLE]
    numbers = np.array([row[1:] for row in rows], float)
    ranks = np.hstack([numbers, draw_exemple.features()]).argsort(axis=0).argsort(axis=0)
    links = np.abs(np.corrcoef(ranks.T))[:4, 4:]            # une ligne par slider
    assert sorted(links.argmax(axis=0)) == [0, 1, 2, 3] and links.max(axis=0).min() > 0.9, links
    assert np.diff(np.sort(links, axis=0)[-2:], axis=0).min() > 0.6, links
    x = torch.stack([to_tensor(Image.open(file)) for file in EXEMPLE])
    y, mu, logvar = load_model(folder / MODEL)(x)
    assert np.allclose(mu, numbers, atol=2e-4)
    kl = (mu ** 2 + logvar.exp() - 1 - logvar) / 2
    loss = (y - x).square().sum(dim=(1, 2, 3)) + kl.sum(dim=1)
    assert kl.mean(dim=0).min() > 0.5 and loss.mean().item() == pytest.approx(losses["test"][-1], rel=0.1)
    assert (kl.mean(dim=0).diff() < 0.1).all()              # le slider le plus utile d'abord


def test_picture(folder):
    """train_VAE.png : plus avancée après chaque epoch ; à la fin, avec les sliders et les noms."""
    during = []

    class Console(io.StringIO):
        def write(self, text):
            if re.match("Epoch [3-6]/|Bilan", text):
                during.append(np.asarray(Image.open(folder / "train_VAE.png")))
            return super().write(text)
    done = train(folder, Console(), images_size=64, epochs=6, seed=3)
    ends = [np.flatnonzero((picture[:200] < 250).any(axis=(0, 2))).max() for picture in during]
    assert len(during) == 5 and ends == sorted(set(ends)) and ends[0] < 300
    assert all((one[200:] != two[200:]).any() for one, two in itertools.pairwise(during))

    picture, vae = Image.open(folder / "train_VAE.png"), load_model(folder / MODEL)
    shown = torch.from_numpy(done.names["images"][:9]) / 255
    rows = [shown, vae.decode(vae.encode(shown)[0])] + [vae.traverse(torch.zeros(4), k, 9) for k in range(4)]
    for k, row in enumerate(rows):
        for n, image in enumerate(row):
            found = picture.crop((132 + 66 * n, 202 + 66 * k, 196 + 66 * n, 266 + 66 * k))
            assert (to_tensor(found) - image).abs().max() < 3 / 255, (k, n)
    margin = Image.new("RGB", (130, picture.height), "white")
    draw = ImageDraw.Draw(margin)
    draw.text((8, 90), f"loss : {done.loss[-1]:.1f}", "blue")
    draw.text((8, 110), f"test loss : {done.test[-1]:.1f}", "darkorange")
    sliders = [f"z{k + 1} : -3 ... 3\nKL {kl:.2f}" for k, kl in enumerate(done.names["kl"])]
    for k, name in enumerate(["images de test", "reconstructions", *sliders]):
        draw.text((8, 220 + 66 * k), name, "black")
    assert picture.crop(margin.getbbox()).tobytes() == margin.tobytes()
    column = np.asarray(picture)[:200, 130 + 596 * 3 // 5]
    for curve, colour in (done.loss, (0, 0, 255)), (done.test, (255, 140, 0)):
        y = 195 - 190 * curve[3] / max(done.loss + done.test)
        assert np.abs(np.flatnonzero((column == colour).all(axis=1)) - y).min() < 4
