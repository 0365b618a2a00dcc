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
from torchvision.transforms.functional import to_pil_image, to_tensor

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


def train(folder, console=None, **zone):
    """Lance train_VAE.py dans ce processus ; rend ce que rend kit.execute."""
    kit.edit_zone(folder / "train_VAE.py", **zone)
    return kit.execute(folder / "train_VAE.py", console)


def rows_of(folder, model=MODEL):
    """Les lignes de latents.csv, sans la première ; leurs nombres sont ceux que donne le modèle."""
    vae = load_model(folder / model)
    with open(folder / "latents.csv", encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["image", *[f"z{k + 1}" for k in range(vae.latent_size)]]
    for path, *numbers in rows[::9]:
        mu = vae.encode(to_tensor(read_image(path, vae.images_size))[None])[0][0].tolist()
        assert mu == pytest.approx([float(number) for number in numbers], abs=2e-4)
    return rows


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
    lots changent à chaque epoch ; le modèle gardé a la moyenne glissante des poids."""
    minimised, biases, batches = [], [], []
    backward, step, forward = torch.Tensor.backward, torch.optim.Adam.step, VAE.forward

    def recorded(optimizer):
        norms = [weight.grad.norm() for weight in optimizer.param_groups[0]["params"]]
        assert torch.stack(norms).norm() < 1.001                # les gradients sont bornés
        step(optimizer)
        biases.append(optimizer.param_groups[0]["params"][-1].detach().numpy().copy())

    def seen(vae, x):
        if torch.is_grad_enabled():
            batches.append(x.mean(dim=(1, 2, 3)).tolist())
        return forward(vae, x)
    monkeypatch.setattr(torch.Tensor, "backward",
                        lambda loss: minimised.append(loss.item()) or backward(loss))
    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    monkeypatch.setattr(VAE, "forward", seen)
    done = train(folder, epochs=20, batch_size=20, learning_rate=0.01, beta=3)
    assert len(minimised) == 20 * 3                             # 48 images : 20, 20 et 8
    assert done.loss == pytest.approx(np.reshape(minimised, (20, 3)) @ [20, 20, 8] / 48, abs=0.006)
    shown = [sum(batches[3 * k:3 * k + 3], []) for k in range(20)]
    means = done.names["train_images"].mean(axis=(1, 2, 3)) / 255
    assert shown[0] != shown[1] and all(np.allclose(sorted(order), np.sort(means)) for order in shown)
    average = biases[0]
    for bias in biases[1:]:
        average = average + (bias - average) / (20 * 3 / 20)
    found = load_model(folder / MODEL).linear.bias.detach().numpy()
    assert np.abs(found - average).max() < 1e-4 < np.abs(biases[-1] - average).max()


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
    torch.testing.assert_close(names["kl_divergence"](mu, logvar), torch.from_numpy(kl).float())
    found = names["vae_loss"](lambda x: (x + 0.5, mu, logvar), torch.zeros(2, 3, 16, 16), 0.1)
    assert found.item() == pytest.approx(768 * 0.25 + 0.1 * np.sum(kl) / 2)
    put_images(folder, COLORS * 3)                  # très différentes : la KL pèse beta, pas plus
    names = train(folder, images_size=48).names
    assert names["mean_error"] > 243 and names["kl_weight"] == 3


def test_seed(folder):
    """La même graine redonne les mêmes nombres ; une autre, d'autres images de test et d'autres tirages ; le
    modèle d'avant est gardé."""
    first, before = train(folder), (folder / MODEL).read_bytes()
    again = train(folder)
    assert PREVIOUS in again.out and (folder / PREVIOUS).read_bytes() == before
    assert first.loss == again.loss and (first.names["latents"] == again.names["latents"]).all()
    assert torch.initial_seed() == 0
    other = train(folder, seed=7)
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
    rows = rows_of(folder, "modele_β.pt")
    assert len(rows) == 64 and not [row for row in rows if row[0][0] in "=+-@"]


# Le verdict, tel que le script le tire des courbes
VERDICT = re.search(r"(?ms)^def verdict.*?(?=^print)", (kit.ROOT / "train_VAE.py").read_text("utf-8"))[0]
DOWN = list(np.geomspace(200, 25, 20))


@pytest.mark.parametrize("words, losses, test_losses", [
    ("une seule epoch", [90], [95]), ("tout va bien", DOWN + [25] * 20, DOWN + [26] * 20),
    ("descend encore", DOWN[:2], DOWN[:2]), ("descend encore", DOWN[:5], DOWN[:5]),
    ("descend encore", [223, 141, 105, 84, 68, 62], [202, 121, 95, 77, 58.7, 52.9]),
    ("descend encore", DOWN, DOWN), ("descend encore", DOWN[:9], [2 * loss for loss in DOWN[:9]]),
    ("sur-apprentissage", DOWN + [25] * 20, DOWN + [25 + k for k in range(20)]),
    ("sur-apprentissage", DOWN + [25] * 20, DOWN[:18] + [34] * 22),
    ("tout va bien", DOWN + [25] * 20, DOWN[:19] + [31] * 21),
    ("instable", DOWN + [25] * 18 + [99] * 2, DOWN + [25] * 20), ("instable", DOWN + [2500], DOWN + [2500]),
    ("instable", [243, 300], [243, 400]), ("instable", DOWN + [36, 318] * 10, DOWN + [43] * 20),
    ("l'image moyenne", [243, 240, 239], [250, 245, 244])])
def test_verdict_of_curves(words, losses, test_losses):
    """Chaque phrase du bilan, d'après les deux courbes ; une seule à la fois."""
    names = dict(losses=losses, test_losses=test_losses, mean_error=243, test_images=[0] * 9,
                 train_images=[0] * 9, np=np)
    exec(VERDICT, names)
    assert words in names["verdict"](), names["verdict"]()


COLORS = [Image.new("RGB", (40, 40), color) for color in ("black", "white")]
FACES = [Image.open(file) for file in EXEMPLE[:40]]
STAINS = [Image.fromarray(stain).resize((40, 40)) for stain in
          np.random.default_rng(0).integers(0, 256, (40, 3, 3, 3), np.uint8)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("words, pictures, zone", [
    ("Il en faut au moins 2", [], {}), ("Il en faut au moins 2", COLORS[:1], {}),
    ("Bilan : trop peu", COLORS, {}), ("Bilan : trop peu", FACES[:3], {"test_proportion": 0.9}),
    ("Bilan : après une seule epoch", FACES, {"epochs": 1}),
    ("Bilan : le modèle ne fait guère mieux", FACES, {"learning_rate": 1e-8, "seed": 4, "epochs": 3}),
    ("sur-apprentissage", STAINS, {"epochs": 30, "learning_rate": 0.005}),
    ("descend encore", FACES, {"epochs": 20}), ("sur-apprentissage", FACES, {"epochs": 150}),
    *[("learning_rate", FACES, {"learning_rate": 100, "images_size": size, "epochs": 10})
      for size in (16, 32)]], ids=itertools.count())
def test_verdict(folder, words, pictures, zone):
    """Sans deux images, une phrase ; sinon, celle du bilan, qui dit vrai ; le modèle d'avant reste."""
    put_images(folder, pictures)
    save_model(VAE(1, 16), folder / MODEL)
    done = train(folder, **zone)
    assert words in done.out and done.out.count("Bilan : ") == (done.code == 0), done.out
    assert load_model(folder / (PREVIOUS if done.loss else MODEL)).latent_size == 1


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize("target, name, number, error, words, epochs", [
    (Image, "open", 9, KeyboardInterrupt(), "Arrêt demandé, avant", 0),
    (torch.Tensor, "backward", 2, KeyboardInterrupt(), "aucun nouveau modèle", 0),
    (torch.Tensor, "backward", 8, KeyboardInterrupt(), "le modèle de l'epoch 2", 2),
    (Path, "write_bytes", 1, FULL, "le disque est-il plein", 0),
    (Path, "write_bytes", 2, FULL, "Dernière epoch enregistrée : 1", 1)], ids=itertools.count())
def test_stop(folder, monkeypatch, target, name, number, error, words, epochs):
    """Un arrêt, un disque plein : une phrase. Le modèle de la dernière epoch finie est là, celui d'avant
    aussi ; après un arrêt, ses latents et le bilan."""
    save_model(VAE(1, 16), folder / MODEL)
    fail_at(monkeypatch, target, name, number, error)
    done = train(folder, epochs=500)
    assert done.out.count(words) == 1 and len(done.loss) == epochs
    goes_on = epochs > 0 and error is not FULL
    for found in (done.code == 0, "Bilan : " in done.out, (folder / "latents.csv").exists()):
        assert found == goes_on
    sizes = {path.name: load_model(path).latent_size for path in folder.glob("*.pt")}
    assert 1 in sizes.values() and (sizes.get(MODEL) == 4) == (epochs > 0)


@pytest.mark.parametrize("missing, cure", [
    ("torch.py", "l'environnement vae"), ("model_VAE_64.py", "décompressez tout le kit")])
def test_library(folder, missing, cure):
    """Une bibliothèque, une DLL, ou model_VAE_64.py manque : une phrase dit laquelle, et quoi faire."""
    (folder / missing).unlink(missing_ok=True)
    if missing == "torch.py":
        (folder / missing).write_text("raise OSError('no shm.dll')")
    result = kit.run(folder / "train_VAE.py")
    assert result.returncode == 1 and "Traceback" not in result.stdout
    assert cure in result.stdout and ("shm.dll" if missing == "torch.py" else "model_VAE_64") in result.stdout


def test_files_held(folder):
    """latents.csv et train_VAE.png ouverts dans un autre programme : dit une fois chacun, le bilan et le
    modèle sont là ; la fin n'invite pas à les regarder."""
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
    """Les images de départ : les lignes, les fichiers, un slider par caractéristique, la test loss."""
    folder, process = starter
    out = process.communicate()[0]
    losses = kit.losses_in(out)
    assert process.returncode == 0 and "Traceback" not in out, out
    assert "480 pour l'entraînement, 120 pour le test" in out and "Calcul sur : " in out
    assert len(losses["loss"]) == out.count("/16 ") == 16 and "descend encore" in out
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
    assert (kl.mean(dim=0).diff() < 0.1).all()              # le slider le plus utile d'abord


def test_picture(folder):
    """train_VAE.png, comme l'étudiant la voit : courbes, images de test, reconstructions, sliders, noms."""
    done = train(folder, images_size=64, epochs=6, seed=3)
    picture, vae, names = Image.open(folder / "train_VAE.png"), load_model(folder / MODEL), done.names
    kl, shown = names["kl"], torch.from_numpy(names["images"][:9]) / 255
    rows = [shown, vae.decode(vae.encode(shown)[0])] + [
        vae.decode(torch.eye(4)[k] * torch.linspace(-3, 3, 9)[:, None]) for k in range(4)]
    for k, row in enumerate(rows):
        expected = np.asarray(to_pil_image(torch.cat(list(row), dim=2)), int)
        found = picture.crop((130, 202 + 66 * k, 130 + 596, 202 + 66 * k + 64))
        found = np.hstack([np.asarray(found, int)[:, 66 * n + 2:66 * n + 66] for n in range(9)])
        assert np.abs(found - expected).max() < 3, k
    texts = ["images de test", "reconstructions"] + [f"z{k + 1} : -3 ... 3\nKL {kl[k]:.2f}" for k in range(4)]
    labels = [(220 + 66 * k, text, "black") for k, text in enumerate(texts)] + [
        (90, f"loss : {done.loss[-1]:.1f}", "blue"), (110, f"test loss : {done.test[-1]:.1f}", "darkorange")]
    for y, text, colour in labels:
        expected = Image.new("RGB", (120, 32 if y > 200 else 18), "white")
        ImageDraw.Draw(expected).text((0, 0), text, colour)
        assert picture.crop((8, y, 128, y + expected.height)).tobytes() == expected.tobytes(), text
    top = max(done.loss + done.test)
    for curve, colour in (done.loss, (0, 0, 255)), (done.test, (255, 140, 0)):
        y = 195 - 190 * curve[3] / top
        column = np.asarray(picture)[:200, 130 + 596 * 3 // 6]
        assert np.abs(np.flatnonzero((column == colour).all(axis=1)) - y).min() < 4


def test_picture_while_learning(folder):
    """Après chaque epoch, train_VAE.png est là, plus avancée : les courbes s'allongent, les images changent."""
    pictures = []

    class Console(io.StringIO):
        def write(self, text):
            if re.match("Epoch [3-6]/|Bilan", text):
                pictures.append(np.asarray(Image.open(folder / "train_VAE.png")))
            return super().write(text)
    train(folder, Console(), epochs=5)
    assert len(pictures) == 4
    ends = [np.flatnonzero((picture[:200] < 250).any(axis=(0, 2))).max() for picture in pictures]
    assert ends == sorted(set(ends)) and ends[0] < 300
    assert all((one[200:] != two[200:]).any() for one, two in itertools.pairwise(pictures))
