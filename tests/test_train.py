"""train_VAE.py, lancé comme le fait un étudiant, depuis un autre dossier que le sien."""
import ast
import contextlib
import csv
import itertools
import multiprocessing
import random
import re
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch
from PIL import Image

import benchmark
import kit
from model_VAE_64 import VAE, image_to_tensor, load_model, read_image, save_model, write_safely

LINE = re.compile(r"Epoch (\d+)/(\d+) .*?\bloss +([\d.]+) .*?test loss +([\d.]+)")


def put_images(folder, count, size=(40, 30), name="image_{:03d}.png"):
    """Met `count` images différentes dans folder/images, sans le jeu de départ."""
    rng = np.random.default_rng(count)
    for k in range(count):
        pixels = np.full((size[1], size[0], 3), rng.integers(0, 256, 3), np.uint8)
        pixels[:, : rng.integers(1, size[0])] = rng.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / "images" / name.format(k))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(dossier, sortie) d'un entraînement court sur une partie du jeu de départ."""
    folder = kit.copy_kit(tmp_path_factory.mktemp("x") / "mon kit été")
    for path in sorted((folder / "images" / "exemple").iterdir())[150:]:
        path.unlink()
    kit.edit_zone(folder / "train_VAE.py", epochs=8)
    result = kit.run(folder / "train_VAE.py", cwd="/")
    assert result.returncode == 0, result.stdout
    return folder, result.stdout


def test_console(trained):
    """L'appareil, combien d'images et d'où, une ligne par epoch, un bilan en une phrase."""
    folder, out = trained
    assert "Calcul sur : " in out and "150 images" in out and "exemple" in out
    assert "120 pour l'entraînement, 30 pour le test" in out and "jeu de départ" in out
    lines = LINE.findall(out)
    assert [line[:2] for line in lines] == [(str(k), "8") for k in range(1, 9)]
    losses, test_losses = [[float(line[k]) for line in lines] for k in (2, 3)]
    assert losses[-1] < 0.9 * losses[0] and test_losses[-1] < 0.9 * test_losses[0]
    assert len(re.findall(r"^Bilan : ", out, re.M)) == 1 and "Traceback" not in out


def test_results(trained):
    """Le modèle se relit, l'image a la bonne taille, latents.csv a une ligne par image."""
    folder, out = trained
    vae = load_model(folder / "model_VAE_64.pt")
    assert (vae.latent_size, vae.images_size, vae.training) == (4, 64, False)
    with Image.open(folder / "train_VAE.png") as picture:
        assert picture.width > 600 and picture.height > 200 + 6 * 64
        assert len(picture.convert("RGB").getcolors(10**6)) > 1000       # ni blanche, ni vide
    with open(folder / "latents.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "z1", "z2", "z3", "z4"] and len(rows) == 151
    assert all((folder / row[0]).is_file() for row in rows[1:])
    assert np.array([row[1:] for row in rows[1:]], float).std(axis=0).max() > 0.1
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == sorted(
        kit.SCRIPTS + ["images", "latents.csv", "model_VAE_64.pt", "train_VAE.png"])


def test_refine(trained):
    """Hors de l'apprentissage, encode affine mu : sur des visages jamais vus, la moitié au moins de
    ce que gagneraient les meilleurs nombres ; avec ou sans gradient, seuls ou ensemble."""
    vae = load_model(trained[0] / "model_VAE_64.pt")
    files = sorted((kit.ROOT / "images" / "exemple").iterdir())[300:340]
    x = torch.stack([image_to_tensor(read_image(file, 64)) for file in files])
    mu = vae.encode(x)[0]
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(vae.encode(x + 0)[0], mu)
    torch.testing.assert_close(vae.encode(x[:1])[0], mu[:1], atol=1e-3, rtol=0)
    guess, best = vae.train().encode(x)[0].detach(), mu.clone().requires_grad_()
    optimizer = torch.optim.Adam([best], 0.01)
    for _ in range(300):
        optimizer.zero_grad()
        (vae.decode(best) - x).square().sum().backward()
        optimizer.step()
    first, refined, lowest = [(vae.decode(z) - x).square().sum().item() for z in (guess, mu, best)]
    assert first - refined > 0.5 * (first - lowest) > 0, (first, refined, lowest)


def test_refine_asleep():
    """Un décodeur qui dessine toujours la même image : mu reste un nombre."""
    vae = VAE(2, 32).eval()
    for weight in vae.decoder.parameters():
        weight.data.zero_()
    assert vae.encode(torch.rand(3, 3, 32, 32))[0].abs().max() < 1


def test_turn():
    """Tourner les axes : les images et leurs reconstructions sont les mêmes, mu a tourné, la KL totale
    n'a presque pas changé."""
    torch.manual_seed(0)
    vae, x = VAE(5, 32).eval(), torch.rand(8, 3, 32, 32)
    axes = torch.linalg.qr(torch.randn(5, 5))[0]
    mu, before, kl = vae.encode(x)[0], vae.decode(vae.encode(x)[0]), total_kl(vae, x)
    vae.turn(axes)
    torch.testing.assert_close(vae.encode(x)[0], mu @ axes, atol=1e-4, rtol=0)
    torch.testing.assert_close(vae.decode(vae.encode(x)[0]), before, atol=1e-4, rtol=0)
    torch.testing.assert_close(total_kl(vae, x), kl, rtol=0.01, atol=0)     # logvar : à peu près
    assert (mu - mu @ axes).abs().max() > 0.01


def total_kl(vae, x):
    """La divergence KL moyenne d'une image, tous sliders ensemble."""
    mu, logvar = vae.encode(x)
    return ((mu.square() + logvar.exp() - 1 - logvar) / 2).sum(dim=1).mean()


def independent_axes(mu):
    """La fonction de train_VAE.py, seule (le script, lui, entraîne)."""
    tree = ast.parse((kit.ROOT / "train_VAE.py").read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if getattr(node, "name", "") == "independent_axes"]
    names = {"torch": torch, "np": np, "latent_size": mu.shape[1]}
    exec(compile(tree, "train_VAE.py", "exec"), names)
    return names["independent_axes"](mu)


def test_independent_axes():
    """Des nombres indépendants, mélangés par une rotation, se retrouvent chacun sur un axe ; le
    slider endormi ne s'y mêle pas."""
    torch.manual_seed(0)
    numbers = 3 * torch.rand(500, 5) - 1.5
    numbers[:, 1] = 0.01 * torch.randn(500)
    mixing = torch.eye(5)
    mixing[np.ix_([0, 2, 3, 4], [0, 2, 3, 4])] = torch.linalg.qr(torch.randn(4, 4))[0]
    axes = independent_axes(numbers @ mixing)
    found = (mixing @ axes).abs()
    assert (found.max(dim=0).values > 0.99).all() and found[1, 1] == 1
    torch.testing.assert_close(axes @ axes.T, torch.eye(5))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mu, turned", [
    (torch.zeros(99, 4), False), (torch.ones(1, 4), False), (torch.eye(4)[:3], False),
    (torch.full((99, 4), torch.nan), False), (torch.linspace(-2, 2, 84).repeat(4, 1).T, True)],
    ids=["endormis", "1", "3", "nan", "égaux"])
def test_no_axes(mu, turned):
    """Tous les sliders endormis ou trop peu d'images : rien ne tourne. Tous égaux : pas d'erreur."""
    axes = independent_axes(mu)
    torch.testing.assert_close(axes @ axes.T, torch.eye(4))
    assert torch.equal(axes, torch.eye(4)) != turned


def test_axes_turned_at_the_end(folder):
    """train_VAE.py tourne les axes une fois, après la dernière epoch, avant d'enregistrer le modèle :
    sur le premier, la plus grande KL."""
    put_images(folder, 120)
    with open(folder / "model_VAE_64.py", "a", encoding="utf-8") as file:
        file.write("turn = VAE.turn\n"
                   "VAE.turn = lambda vae, axes: print('axes', *axes.shape) or turn(vae, axes)\n")
    kit.edit_zone(folder / "train_VAE.py", epochs=4, latent_size=6)
    out = kit.run(folder / "train_VAE.py").stdout
    assert re.search(r"Epoch 4/4 [^\n]*\naxes 6 6\nBilan", out) and out.count("axes 6 6") == 1, out
    vae = load_model(folder / "model_VAE_64.pt").train()
    files = random.Random(0).sample(sorted((folder / "images").glob("*.png")), 120)[24:]
    mu, logvar = vae.encode(torch.stack([image_to_tensor(read_image(file, 64)) for file in files]))
    kl = ((mu.square() + logvar.exp() - 1 - logvar) / 2).mean(dim=0)
    assert torch.equal(kl, kl.sort(descending=True).values) and kl[0] > 0.5, kl


def test_own_images_first(folder):
    """Dès que l'étudiant a ses images, même dans un sous-dossier, le jeu de départ ne sert plus."""
    (folder / "images" / "été").mkdir()
    put_images(folder, 12, name="été/photo {:02d}.bmp")
    (folder / "images" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    kit.edit_zone(folder / "train_VAE.py", epochs=1)
    out = kit.run(folder / "train_VAE.py", cwd="/").stdout
    assert "12 images" in out and "laissés de côté (1) : " in out and ".DS_Store" in out
    assert "jeu de départ" not in out


@pytest.mark.parametrize("count", [0, 1, 2, 3, 9])
def test_few_images(tmp_path, count):
    """0 ou 1 image : une phrase ; 2 et plus : un entraînement."""
    folder = kit.copy_kit(tmp_path / "mon kit", exemple=False)
    put_images(folder, count)
    kit.edit_zone(folder / "train_VAE.py", epochs=2)
    result = kit.run(folder / "train_VAE.py")
    assert "Traceback" not in result.stdout
    assert (result.returncode == 0) == (count >= 2) == (folder / "model_VAE_64.pt").exists()
    if count < 2:
        assert "record_images.py" in result.stdout and "au moins 2" in result.stdout


@pytest.mark.parametrize("images_size, latent_size", [(32, 1), (48, 2), (128, 32), (256, 4)])
def test_sizes(tmp_path, images_size, latent_size):
    """D'autres tailles d'images et d'autres nombres de sliders."""
    folder = kit.copy_kit(tmp_path / "kit", exemple=False)
    put_images(folder, 10, size=(300, 200), name="image_{:03d}.jpg")
    kit.edit_zone(folder / "train_VAE.py", epochs=1, images_size=images_size, latent_size=latent_size)
    result = kit.run(folder / "train_VAE.py")
    assert result.returncode == 0, result.stdout
    vae = load_model(folder / "model_VAE_64.pt")
    assert (vae.latent_size, vae.images_size) == (latent_size, images_size)


ODD = [None, "", "64", [], [64], (), {}, b"64", True, 4.5, -1, -0.5, float("nan"), float("inf"),
       10**12, 1e300]
NUMBERS = ["images_size", "latent_size", "epochs", "batch_size", "learning_rate", "beta",
           "test_proportion", "seed"]
BAD = {name: ODD + [0] * (name not in ("beta", "seed")) for name in NUMBERS}
for name in ("learning_rate", "beta"):
    BAD[name].remove(4.5)
BAD["images_size"] += [63, 8, 20, 100, 65]
BAD["images_folder"] = [None, "", " ", "absent", 3, [], b"images", "a\0b", "x" * 5000, True, 1.5, {}, "train_VAE.py"]
BAD["model_file"] = [None, "absent/a.pt", "", 3, [], b"m.pt", "a\0b.pt", True, 1.5, {}, "train_VAE.py", "modele", ".."]


@pytest.mark.parametrize("name", BAD)
def test_bad_parameters(folder, name):
    """Chaque valeur impossible : une phrase avec le paramètre et sa valeur, avant PyTorch."""
    script = folder / "train_VAE.py"
    text = script.read_text(encoding="utf-8")
    assert len(BAD[name]) >= 10
    for value in BAD[name]:
        script.write_text(text, encoding="utf-8")
        shown = kit.Raw(f"float('{value}')") if value != value or value == float("inf") else value
        kit.edit_zone(script, **{name: shown})
        start = time.monotonic()
        result = kit.run(script, cwd="/")
        assert result.returncode == 1 and "Traceback" not in result.stdout, (name, value, result.stdout)
        assert f"Paramètre {name} = {value!r}" in result.stdout and result.stdout.count("\n") == 1
        assert time.monotonic() - start < 1.5, "le contrôle vient après PyTorch"


@pytest.mark.parametrize("name, comma", [("beta", True), ("test_proportion", True), ("epochs", False)])
def test_decimal_comma(folder, name, comma):
    """« 0,5 » est pour Python le couple (0, 5) : le message nomme la virgule."""
    kit.edit_zone(folder / "train_VAE.py", **{name: (0, 5)})
    out = kit.run(folder / "train_VAE.py").stdout
    assert f"Paramètre {name} = (0, 5)" in out and ("avec un point, sans virgule" in out) == comma
    assert ("un nombre entier de" in out) != comma


@pytest.mark.parametrize("name", ["train_VAE.py", "decode_VAE.py"])
def test_numpy_too_new(folder, name):
    """Un PyTorch qui ne sait pas lire ce NumPy (Mac Intel) : une phrase à l'import, rien d'autre."""
    if name == "decode_VAE.py":
        pytest.importorskip("tkinter")
    (folder / "model_VAE_64.pt").touch()
    (folder / "lancer.py").write_text(f"""import runpy, torch
def from_numpy(array):
    raise RuntimeError("Numpy is not available")
torch.from_numpy = from_numpy
runpy.run_path({name!r}, run_name="__main__")
""", encoding="utf-8")
    result = kit.run("lancer.py", cwd=folder)
    lines = result.stdout.splitlines()
    assert result.returncode == 1 and lines[0] == "Chargement de PyTorch..." and len(lines) == 2
    assert lines[1].startswith("Il manque une bibliothèque (Numpy is not available). Lancez Spyder")


def start(folder, **zone):
    """Lance train_VAE.py sans l'attendre."""
    kit.edit_zone(folder / "train_VAE.py", **zone)
    return subprocess.Popen([sys.executable, "-u", str(folder / "train_VAE.py")], text=True,
                            encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def read_until(process, text):
    """Lit la sortie jusqu'à une ligne qui contient `text` ; rend ce qui a été lu."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


@pytest.mark.parametrize("moment, after", [("Chargement", 1), ("Calcul sur", 0), ("Epoch 2/", 0.1)])
def test_ctrl_c(folder, moment, after):
    """Ctrl-C au chargement, pendant la première epoch ou plus tard : une phrase ; dès qu'une epoch
    est finie, le modèle, ses latents et le bilan aussi."""
    for left in reversed(range(3 if moment == "Chargement" else 1)):
        process = start(folder, epochs=500)
        read_until(process, moment)
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        try:
            out = process.communicate(timeout=60)[0]
            break
        except subprocess.TimeoutExpired:     # un import avale parfois un Ctrl-C (1 fois sur 70)
            process.kill()
            process.communicate()
            assert left, "Ctrl-C n'arrête rien"
    learned = moment.startswith("Epoch")
    assert process.returncode == (0 if learned else 1), out
    assert "Traceback" not in out and "Arrêt demandé" in out, out
    assert ("Bilan" in out) == learned == (folder / "latents.csv").exists()
    if learned:
        epoch, = re.findall(r"Arrêt demandé pendant l'epoch (\d+)", out)
        assert f"Le modèle de l'epoch {epoch} est enregistré dans « model_VAE_64.pt »" in out
        Image.open(folder / "train_VAE.png").load()
        vae = load_model(folder / "model_VAE_64.pt")
        rows = list(csv.reader((folder / "latents.csv").read_text("utf-8").splitlines()))[1:]
        assert len(rows) == 600
        x = image_to_tensor(read_image(folder / rows[7][0], 64))
        assert np.allclose(vae.encode(x[None])[0][0].detach(), [*map(float, rows[7][1:])], atol=2e-4)


@pytest.mark.parametrize("pause", [0.005, 0.02, 0.05, 0.3])
def test_ctrl_c_twice(folder, pause):
    """Deux Ctrl-C de suite : un nouveau modèle est enregistré, et les deux d'avant ne sont perdus
    que si celui-ci les remplace."""
    models = [folder / "model_VAE_64.pt", folder / "model_VAE_64_precedent.pt"]
    for model, latent_size in zip(models, (1, 2)):
        save_model(VAE(latent_size, 64), model)
    process = start(folder, epochs=500)
    read_until(process, "Epoch 2/")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
    out = process.communicate(timeout=60)[0]
    script, _, leaving = out.partition("decode_VAE.py.")     # après : Python lui-même qui s'en va
    assert "Traceback" not in script and "Arrêt demandé" in script, out
    assert "train_VAE" not in leaving, out
    saved = "est enregistré dans" in out
    assert saved or pause < 0.05
    assert [load_model(model).latent_size for model in models] == ([4, 1] if saved else [1, 2])


def test_previous_model_is_kept(trained):
    """Un nouvel entraînement garde le modèle d'avant sous un autre nom, et le dit."""
    folder, _ = trained
    before = (folder / "model_VAE_64.pt").read_bytes()
    kit.edit_zone(folder / "train_VAE.py", epochs=1, latent_size=2)
    out = kit.run(folder / "train_VAE.py").stdout
    assert "model_VAE_64_precedent.pt" in out
    assert (folder / "model_VAE_64_precedent.pt").read_bytes() == before
    assert load_model(folder / "model_VAE_64.pt").latent_size == 2


def function_of_script(name, **names):
    """Une fonction de train_VAE.py, sans lancer le script ; `names` : les variables qu'elle lit."""
    tree = ast.parse((kit.ROOT / "train_VAE.py").read_text(encoding="utf-8"))
    (function,) = [node for node in tree.body if getattr(node, "name", "") == name]
    exec(compile(ast.Module([function], []), name, "exec"), names)
    return names[name]


VERDICTS = {"bien plus haute que la loss : sur-apprentissage": [([30, 20, 10], [30, 22, 14])],
            "remonte : sur-apprentissage": [([30, 28, 26], [31, 29, 32]),
                                            ([30, 20, 10], [30, 20, 24])],
            "n'est pas vraiment descendue": [([30, 29.9], [31, 30.9]), ([5, 5, 5], [5, 5, 5]),
                                             ([20, 21, 22], [20, 21, 22])],
            "descendait encore": [([30, 20, 10], [30, 20, 10]), ([30, 20], [30, 25])],
            "une seule epoch": [([30], [30]), ([30], [50])],
            "aucun slider ne sert": [([30, 10, 10], [30, 11, 10.9], [0.01, 0.09]),
                                      ([5, 0.1, 0.001], [5, 0.1, 0.01], [0, 0])],
            "la loss en dit peu": [([6, 9, 8], [6, 9, 8], [1, 2], 0.03)],
            "tout va bien": [([30, 10, 10], [30, 11, 10.9])]}


@pytest.mark.parametrize("words, curves", [(words, curves) for words, several in VERDICTS.items()
                                           for curves in several])
def test_verdict(words, curves):
    """La phrase du bilan, pour des courbes de toutes les formes."""
    losses, test_losses, kl, contrast = curves + ((), (), [0.01, 2], 0.2)[len(curves):]
    verdict = function_of_script("verdict", losses=losses, test_losses=test_losses,
                                 vae=types.SimpleNamespace(contrast=torch.tensor(contrast)),
                                 kl_of_sliders=lambda: torch.tensor(kl))
    assert words in verdict()


def test_faint_images(folder):
    """Sur des images presque toutes pareilles aussi (3 % de l'énergie du jeu de départ), les quatre
    sliders s'éveillent et l'erreur descend loin sous celle de l'image moyenne."""
    files = sorted((kit.ROOT / "images" / "exemple").iterdir())[:200]
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    images = (110 + images * 0.17).astype(np.uint8)
    for file, image in zip(files, images):
        Image.fromarray(image).save(folder / "images" / file.name)
    assert kit.run(folder / "train_VAE.py").returncode == 0
    vae, x = load_model(folder / "model_VAE_64.pt"), torch.tensor(images).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        mu, logvar = vae.encode(x)
        kl = function_of_script("kl_divergence")(mu, logvar).mean(dim=0)
        error = (vae.decode(mu) - x).square().sum()
    assert kl.min() > 0.5 and error < 0.4 * (x - x.mean(dim=0)).square().sum(), (kl, error)


def test_long_steps(folder):
    """Peu d'images très différentes, learning_rate au bout de sa plage : la loss descend quand même,
    logvar est borné."""
    for k, image in enumerate(benchmark.icons(120)):
        Image.fromarray(image).save(folder / "images" / f"{k}.png")
    kit.edit_zone(folder / "train_VAE.py", learning_rate=0.005, epochs=15)
    result = kit.run(folder / "train_VAE.py")
    assert result.returncode == 0, result.stdout
    losses = [float(loss) for _, _, loss, _ in LINE.findall(result.stdout)]
    assert len(losses) == 15 and losses[-1] < losses[0] < 1000, losses
    assert load_model(folder / "model_VAE_64.pt").encode(100 * torch.randn(9, 3, 64, 64))[1].max() <= 0.5


def test_kl_slope():
    """kl_slope adoucit la pente de la KL, pas la loss affichée : erreur au carré + beta · KL."""
    vae, x, slopes = VAE(2, 16), torch.rand(5, 3, 16, 16), []
    for kl_slope in (1, 0.25):
        vae.zero_grad()
        mu, logvar = vae.encode(x)
        kl = 3 * (mu.square() + logvar.exp() - 1 - logvar).sum() / 2
        vae_loss = function_of_script(
            "vae_loss", vae=lambda x: (x + 0.1, mu, logvar), beta=3,
            kl_divergence=function_of_script("kl_divergence"))
        loss = vae_loss(x, kl_slope)
        torch.testing.assert_close(loss, (0.01 * x.numel() + kl) / 5)
        loss.backward()
        slopes.append(vae.encoder[-1].weight.grad)
    torch.testing.assert_close(slopes[1], 0.25 * slopes[0])


def test_save_vae_twice(tmp_path):
    """Un Ctrl-C pendant la première sauvegarde la fait refaire : le modèle d'avant reste gardé."""
    path = tmp_path / "model_VAE_64.pt"
    save_model(VAE(1, 16), path)
    before = path.read_bytes()
    save_vae = function_of_script("save_vae", previous_model=before, saved_epoch=0, model_path=path,
                                  vae=VAE(2, 16), save_model=save_model, write_safely=write_safely,
                                  uninterrupted=contextlib.nullcontext)
    for _ in range(2):
        save_vae()
        assert (tmp_path / "model_VAE_64_precedent.pt").read_bytes() == before
        assert load_model(path).latent_size == 2


def test_table_held(folder):
    """latents.csv ne peut pas s'écrire (ouvert dans un tableur) : le bilan et le modèle sont là."""
    put_images(folder, 30)
    (folder / "latents.csv").mkdir()
    kit.edit_zone(folder / "train_VAE.py", epochs=2)
    result = kit.run(folder / "train_VAE.py")
    assert result.returncode == 1 and "Traceback" not in result.stdout, result.stdout
    assert "Bilan : " in result.stdout and "latents.csv ouvert dans un tableur ?" in result.stdout
    assert "Le modèle de l'epoch 2 est enregistré" in result.stdout
    assert load_model(folder / "model_VAE_64.pt").latent_size == 4


def test_nothing_learned_is_lost(tmp_path):
    """Un entraînement tué net avant sa première sauvegarde ne touche à aucun modèle gardé."""
    folder = kit.copy_kit(tmp_path / "kit", exemple=False)
    put_images(folder, 40)
    for beta in (1, 2):
        kit.edit_zone(folder / "train_VAE.py", epochs=1, beta=beta)
        assert kit.run(folder / "train_VAE.py").returncode == 0
    models = [folder / "model_VAE_64.pt", folder / "model_VAE_64_precedent.pt"]
    before = [model.read_bytes() for model in models]
    for pause in (0, 0.3, 1):
        process = start(folder, epochs=500)
        read_until(process, "Epoch 2/")
        time.sleep(pause)
        process.kill()
        process.wait()
        assert [model.read_bytes() for model in models] == before


def test_loss_not_a_number(tmp_path):
    """learning_rate = 100 : une phrase qui le nomme, et le modèle d'avant reste."""
    folder = kit.copy_kit(tmp_path / "kit", exemple=False)
    put_images(folder, 60)
    kit.edit_zone(folder / "train_VAE.py", epochs=1)
    assert kit.run(folder / "train_VAE.py").returncode == 0
    before = (folder / "model_VAE_64.pt").read_bytes()
    kit.edit_zone(folder / "train_VAE.py", learning_rate=100, epochs=20)
    result = kit.run(folder / "train_VAE.py")
    assert result.returncode == 1 and "Traceback" not in result.stdout
    assert "learning_rate = 100" in result.stdout.splitlines()[-1]
    assert (folder / "model_VAE_64.pt").read_bytes() == before


def save_for_ever(path, ready):
    """Enregistre sans fin des modèles numérotés (dans un processus que le test tue)."""
    vae = VAE(4, 64)
    for k in itertools.count():
        vae.contrast.fill_(k)
        save_model(vae, path)
        ready.set()


@pytest.mark.skipif(sys.platform != "linux", reason="il faut fork()")
def test_killed(tmp_path):
    """Tué net (kill -9) à cinquante moments : le modèle est toujours entier."""
    context = multiprocessing.get_context("fork")
    rng, counts = np.random.default_rng(0), []
    for k in range(50):
        ready = context.Event()
        process = context.Process(target=save_for_ever, args=(tmp_path / "m.pt", ready))
        process.start()
        assert ready.wait(30)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        counts.append(float(load_model(tmp_path / "m.pt").contrast))
    assert max(counts) >= 1 and len(counts) == 50


def test_two_trainings_at_once(folder):
    """Deux entraînements dans le même dossier ne s'abîment pas l'un l'autre."""
    put_images(folder, 40)
    processes = [start(folder, epochs=20) for _ in range(2)]
    outs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outs
    load_model(folder / "model_VAE_64.pt")
    Image.open(folder / "train_VAE.png").load()
    assert len((folder / "latents.csv").read_text(encoding="utf-8").splitlines()) == 41
    assert not list(folder.glob(".*"))


@pytest.fixture
def small_disk(tmp_path):
    """Un petit disque de 8 Mo (tmpfs) ; démonté à la fin."""
    disk = tmp_path / "disque"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk],
                      stderr=subprocess.DEVNULL).returncode:
        pytest.skip("il faut être administrateur pour monter un petit disque")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("case", ["plein", "protégé"])
def test_disk(small_disk, case):
    """Disque plein ou protégé : une phrase, et le modèle d'avant reste lisible."""
    folder = kit.copy_kit(small_disk / "kit", exemple=False)
    put_images(folder, 20)
    kit.edit_zone(folder / "train_VAE.py", epochs=1)
    assert kit.run(folder / "train_VAE.py").returncode == 0
    before = (folder / "model_VAE_64.pt").read_bytes()
    if case == "plein":
        with open(folder / "gros fichier", "wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(b"\0" * 4096)
    else:
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    result = kit.run(folder / "train_VAE.py")
    assert result.returncode == 1 and "Traceback" not in result.stdout, result.stdout
    assert result.stdout.count("Impossible d'écrire") == 1
    assert (folder / "model_VAE_64.pt").read_bytes() == before


def test_not_enough_memory(tmp_path):
    """Plus d'images que de mémoire : refusé avant de lire, avec le chiffre et le remède."""
    folder = kit.copy_kit(tmp_path / "kit", exemple=False)
    put_images(folder, 1)
    available = int(re.search(r"MemAvailable: +(\d+)", open("/proc/meminfo").read())[1]) * 1024
    for k in range(available // (512 * 512 * 3) * 11 // 10):
        (folder / "images" / f"{k}.png").symlink_to(folder / "images" / "image_000.png")
    kit.edit_zone(folder / "train_VAE.py", images_size=512)
    result = kit.run(folder / "train_VAE.py")
    assert result.returncode == 1 and "Pas assez de mémoire" in result.stdout
    assert " Go" in result.stdout and "images_size" in result.stdout


@pytest.mark.parametrize("beta", [0, 0.1, 20])
def test_beta(tmp_path, beta):
    """De 0 à 20, beta laisse l'apprentissage stable."""
    folder = kit.copy_kit(tmp_path / "kit", exemple=False)
    put_images(folder, 80)
    kit.edit_zone(folder / "train_VAE.py", epochs=8, beta=beta)
    lines = LINE.findall(kit.run(folder / "train_VAE.py").stdout)
    assert len(lines) == 8 and float(lines[-1][2]) < float(lines[0][2])
