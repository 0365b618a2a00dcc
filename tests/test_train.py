"""train_VAE.py, le plus souvent lancé dans ce processus : c'est plus rapide, et l'on voit ses variables."""
import contextlib
import csv
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
from PIL import Image
from torchvision.transforms.functional import to_tensor

EXEMPLE = sorted((kit.ROOT / "images" / "exemple").iterdir())
MODEL, PREVIOUS = "model_VAE_64.pt", "model_VAE_64_precedent.pt"


@pytest.fixture
def folder(tmp_path):
    """Une copie du kit, avec 60 visages du jeu de départ pour images de l'étudiant, en 16×16."""
    folder = kit.copy_kit(tmp_path / "mon kit été", exemple=False)
    for file in EXEMPLE[:60]:
        shutil.copy(file, folder / "images")
    kit.edit_zone(folder / "train_VAE.py", images_size=16, epochs=2)
    return folder


def put_images(folder, pictures):
    """Remplace les images de l'étudiant par celles-ci."""
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()
    for k, picture in enumerate(pictures):
        picture.save(folder / "images" / f"{k:03}.png")


def train(folder, console=..., **zone):
    """Lance train_VAE.py dans ce processus ; rend ce que rend kit.execute."""
    kit.edit_zone(folder / "train_VAE.py", **zone)
    return kit.execute(folder / "train_VAE.py", console)


def rows_of(folder):
    """Les lignes de latents.csv, sans la première."""
    with open(folder / "latents.csv", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def fail_at(monkeypatch, target, name, number, error):
    """L'appel `number` de cette fonction lèvera cette erreur."""
    function, count = getattr(target, name), itertools.count(1)

    def called(*args, **kwargs):
        if next(count) == number:
            raise error
        return function(*args, **kwargs)
    monkeypatch.setattr(target, name, called)


@pytest.fixture(scope="module", autouse=True)
def starter(tmp_path_factory):
    """Un entraînement sur les images de départ, dans un autre processus, pendant les autres tests."""
    folder = kit.copy_kit(tmp_path_factory.mktemp("x") / "mon kit été")
    kit.edit_zone(folder / "train_VAE.py", epochs=16)
    process = subprocess.Popen([sys.executable, folder / "train_VAE.py"], cwd="/", encoding="utf-8",
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    yield folder, process
    process.kill()
    process.wait()


def test_learning(folder, monkeypatch):
    """Ce qui est affiché est ce que Adam minimise, la loss de l'article, avec un facteur sur la KL ; les
    axes d'une image sont permutés, non mélangés ; le modèle gardé a la moyenne glissante des poids."""
    minimised, biases, backward, step = [], [], torch.Tensor.backward, torch.optim.Adam.step

    def recorded(optimizer):
        step(optimizer)
        biases.append(optimizer.param_groups[0]["params"][-1].detach().numpy().copy())
    monkeypatch.setattr(torch.Tensor, "backward",
                        lambda loss: minimised.append(loss.item()) or backward(loss))
    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    done = train(folder, epochs=20, batch_size=20, learning_rate=0.01, beta=3)
    assert len(minimised) == 20 * 3                             # 48 images : 20, 20 et 8
    assert done.loss == pytest.approx(np.reshape(minimised, (20, 3)) @ [20, 20, 8] / 48, abs=0.006)
    average = biases[0]
    for count, bias in enumerate(biases[1:], 2):
        average = average + (bias - average) / min(count, 20 * 3 / 20)
    found = load_model(folder / MODEL).decoder[-1].bias.detach().numpy()
    assert np.abs(found - average).max() < 1e-5 < np.abs(biases[-1] - average).max()

    x = torch.stack([to_tensor(read_image(path, 16)) for path in done.names["paths"]])
    assert torch.equal(done.names["to_x"](done.names["images"]), x)
    mean_error = (x[12:] - x[12:].mean(dim=0)).square().sum(dim=(1, 2, 3)).mean().item()
    torch.manual_seed(5)
    found = done.names["vae_loss"](done.names["vae"], x, done.names["kl_weight"])
    torch.manual_seed(5)
    y, mu, logvar = done.names["vae"](x)
    kl = 0.5 * (mu ** 2 + logvar.exp() - 1 - logvar).sum(dim=1)
    expected = ((y - x) ** 2).sum(dim=(1, 2, 3)) + 3 * mean_error / 243 * kl
    torch.testing.assert_close(found, expected.mean())


def test_seed(folder):
    """La même graine redonne les mêmes nombres, une autre, d'autres ; le modèle d'avant est gardé."""
    first, before = train(folder), (folder / MODEL).read_bytes()
    again = train(folder)
    assert PREVIOUS in again.out and (folder / PREVIOUS).read_bytes() == before
    assert first.loss == again.loss and (first.names["latents"] == again.names["latents"]).all()
    assert train(folder, seed=1).loss != first.loss


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
    {"latent_size": 32, "batch_size": 256, "beta": 20},
    {"images_size": 48, "learning_rate": 0.005}, {"images_size": 128, "epochs": 2}], ids=str)
def test_ranges(folder, zone):
    """Aux bouts de chaque plage, la loss descend, et le modèle a les tailles demandées."""
    done = train(folder, **{"epochs": 5, **zone})
    assert done.loss[-1] < done.loss[0] and done.test[-1] < done.test[0], done.out
    vae = load_model(folder / MODEL)
    assert (vae.latent_size, vae.images_size) == (zone.get("latent_size", 4), zone.get("images_size", 16))


def test_faint_images(folder):
    """Des images presque toutes pareilles (3 % de l'énergie) : chaque slider sert quand même."""
    put_images(folder, [Image.open(file).convert("RGB").point(lambda value: 110 + 0.17 * value)
                        for file in EXEMPLE[:200]])
    done = train(folder, epochs=20, learning_rate=0.003)
    assert done.names["kl"].min() > 0.3 and "tout va bien" in done.out, done.names["kl"]


def test_own_images(folder):
    """Trois fichiers illisibles nommés ; dans un tableur, chemins inertes, bons nombres ; noms étranges."""
    for name in ("β.txt", "b.heic", "c.png", "d.mp4", ".DS_Store", "Thumbs.db"):
        (folder / "images" / name).write_bytes(b"\0\0\0\1Bud1")
    for name in ("=1+2.png", "+3.png", "-4.png", "@SUM(A1) 😀 Фото.png"):
        shutil.copy(EXEMPLE[99], folder / "images" / name)
    done = train(folder, model_file="modele_β.pt")
    assert "64 images" in done.out and "51 pour l'entraînement, 13 pour le test" in done.out
    line, = [line for line in done.out.splitlines() if "laissés de côté (4) : " in line]
    assert len(re.findall(r"[?bcd]\.\w+ \(", line)) == 3 and line.endswith("...")
    rows, vae = rows_of(folder), load_model(folder / "modele_β.pt")
    assert len(rows) == 64 and not [row for row in rows if row[0][0] in "=+-@"]
    for row in rows[::9]:
        mu = vae.encode(to_tensor(read_image(row[0], 16))[None])[0][0].tolist()
        assert mu == pytest.approx([float(number) for number in row[1:]], abs=2e-4)


COLORS = [Image.new("RGB", (40, 40), color) for color in ("black", "white")]
FACES = [Image.open(file) for file in EXEMPLE[:40]]
STAINS = [Image.fromarray(stain).resize((40, 40)) for stain in
          np.random.default_rng(0).integers(0, 256, (40, 3, 3, 3), np.uint8)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("words, pictures, zone", [
    ("Il en faut au moins 2", [], {}), ("Il en faut au moins 2", COLORS[:1], {}),
    ("Bilan : trop peu", COLORS, {}), ("Bilan : trop peu", FACES[:4], {}),
    ("Bilan : trop peu", FACES[:3], {"test_proportion": 0.9}),
    ("Bilan : le modèle ne fait pas mieux", FACES, {"learning_rate": 1e-8}),
    ("Bilan : la test loss finit bien plus haut", STAINS, {"epochs": 30, "learning_rate": 0.005}),
    ("Bilan : la loss et la test loss sont descendues", FACES, {"epochs": 8}),
    *[("learning_rate", FACES, {"learning_rate": rate, "images_size": size, "epochs": 10})
      for rate in (0.5, 3, 100) for size in (16, 32)]], ids=itertools.count())
def test_verdict(folder, words, pictures, zone):
    """Sans deux images, une phrase ; sinon, celle du bilan, qui dit vrai ; le modèle d'avant reste."""
    put_images(folder, pictures)
    save_model(VAE(1, 16), folder / MODEL)
    done = train(folder, **zone)
    assert words in done.out and done.out.count("Bilan : ") == (done.code == 0)
    assert ("tout va bien" in done.out) == ("descendues" in words)
    assert load_model(folder / (PREVIOUS if done.loss else MODEL)).latent_size == 1


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("target, name, number, error, words, epochs", [
    (Image, "open", 9, KeyboardInterrupt(), "Arrêt demandé, avant", 0),
    (torch.Tensor, "backward", 2, KeyboardInterrupt(), "aucun nouveau modèle", 0),
    (torch.Tensor, "backward", 8, KeyboardInterrupt(), "le modèle de l'epoch 2", 2),
    (torch.Tensor, "backward", 1, RuntimeError("can't allocate memory: 9 bytes"), "baissez batch_size", 0),
    (torch, "from_numpy", 1, RuntimeError("Numpy is not available"), "une bibliothèque (Numpy is", 0),
    (Path, "write_bytes", 1, FULL, "le disque est-il plein", 0),
    (Path, "write_bytes", 2, FULL, "Dernière epoch enregistrée : 1", 1)], ids=itertools.count())
def test_stop(folder, monkeypatch, target, name, number, error, words, epochs):
    """Un arrêt, plus de mémoire, un NumPy trop récent (Mac Intel), un disque plein : une phrase. Le modèle
    de la dernière epoch finie est là, celui d'avant aussi ; après un arrêt, ses latents et le bilan."""
    save_model(VAE(1, 16), folder / MODEL)
    fail_at(monkeypatch, target, name, number, error)
    done = train(folder, epochs=500)
    assert done.out.count(words) == 1 and len(done.loss) == epochs
    goes_on = epochs > 0 and error is not FULL
    for found in (done.code == 0, "Bilan : " in done.out, (folder / "latents.csv").exists()):
        assert found == goes_on
    sizes = {path.name: load_model(path).latent_size for path in folder.glob("*.pt")}
    assert 1 in sizes.values() and (sizes.get(MODEL) == 4) == (epochs > 0)


def test_stopped_early(folder, monkeypatch):
    """Arrêté quand la test loss, en retard, descend encore : ce n'est pas du sur-apprentissage."""
    fail_at(monkeypatch, torch.Tensor, "backward", 3 * 30 + 1, KeyboardInterrupt())
    done = train(folder, images_folder=str(EXEMPLE[0].parent), images_size=64, epochs=40)
    assert done.test[-1] > 1.3 * done.loss[-1] and "tout va bien" in done.out


@pytest.mark.parametrize("error", ["ImportError('No module named cv2')", "OSError('no shm.dll')"])
def test_library(folder, error):
    """Une bibliothèque, une DLL qui manque : une phrase dit quoi faire."""
    (folder / "torch.py").write_text(f"raise {error}")
    result = kit.run(folder / "train_VAE.py")
    assert result.returncode == 1 and result.stdout.count("\n") == 2
    for words in (error.split("'")[1], "l'environnement vae", "Redémarrer le noyau", "vc_redist"):
        assert words in result.stdout


def test_files_held(folder):
    """latents.csv et train_VAE.png ouverts dans un autre programme : le bilan et le modèle sont là."""
    for name in ("latents.csv", "train_VAE.png"):
        (folder / name).mkdir()
    done = train(folder)
    assert done.code == 0 and "Bilan : " in done.out and re.search("latents.csv.* tableur", done.out)
    assert load_model(folder / MODEL).latent_size == 4


def test_no_console(folder):
    """Pas de console (pythonw), ou une console fermée depuis : le modèle et ses latents sont là."""
    read, write = os.pipe()
    os.close(read)
    with contextlib.suppress(OSError), os.fdopen(write, "w") as closed:
        done = [train(folder, console, latent_size=size) for size, console in [(2, None), (3, closed)]]
    assert [run.code for run in done] == [0, 0] and len(rows_of(folder)) == 60
    assert [load_model(folder / name).latent_size for name in (PREVIOUS, MODEL)] == [2, 3]


def test_progress(folder, monkeypatch):
    """Jamais plus de quelques secondes sans une ligne, à la lecture comme pendant une longue epoch."""
    monkeypatch.setattr(time, "monotonic", itertools.count().__next__)       # chaque appel : une seconde
    out = train(folder, batch_size=1).out
    assert len(re.findall(r"lecture des images : \d+/60", out)) > 5
    assert len(re.findall(r"epoch 2 : \d+/48", out)) > 5


def test_starter_set(starter):
    """Les images de départ : les lignes, les fichiers, un slider par caractéristique, la test loss."""
    folder, process = starter
    out = process.communicate()[0]
    losses = kit.losses_in(out)
    assert process.returncode == 0 and "Traceback" not in out, out
    assert "480 pour l'entraînement, 120 pour le test" in out and "Calcul sur : " in out
    assert len(losses["loss"]) == out.count("/16 ") == 16 and "tout va bien" in out
    assert losses["loss"][-1] < 0.25 * losses["loss"][0] and losses["test"][-1] < 40
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {
        *kit.SCRIPTS, "images", "latents.csv", MODEL, "train_VAE.png"}
    with Image.open(folder / "train_VAE.png") as picture:
        assert picture.width > 600 and len(picture.convert("RGB").getcolors(10**6)) > 1000

    rows, vae = rows_of(folder), load_model(folder / MODEL)
    assert [row[0] for row in rows] == [str(folder / "images" / "exemple" / file.name) for file in EXEMPLE]
    numbers = np.hstack([np.array([row[1:] for row in rows], float), draw_exemple.features()])
    links = np.abs(np.corrcoef(numbers.argsort(axis=0).argsort(axis=0).T))[:4, 4:]
    assert sorted(links.argmax(axis=0)) == [0, 1, 2, 3] and links.max(axis=0).min() > 0.9, links
    assert np.diff(np.sort(links, axis=0)[-2:], axis=0).min() > 0.6, links
    x = torch.stack([to_tensor(read_image(row[0], 64)) for row in rows])
    with torch.no_grad():
        y, mu, logvar = vae(x)
    kl = (mu ** 2 + logvar.exp() - 1 - logvar) / 2
    loss = ((y - x) ** 2).sum(dim=(1, 2, 3)) + kl.sum(dim=1)
    assert kl.mean(dim=0).min() > 0.5 and loss.mean().item() == pytest.approx(losses["test"][-1], rel=0.1)
