"""README.md contre le code : commandes, noms, valeurs, messages, images, exemple, réponses."""
import ast
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import kit

README = (kit.ROOT / "README.md").read_text(encoding="utf-8")
CODE = {name: (kit.ROOT / name).read_text(encoding="utf-8") for name in kit.SCRIPTS}
EVERYTHING = "\n".join([*CODE.values(), (kit.ROOT / ".gitignore").read_text(encoding="utf-8"),
                        *os.listdir(kit.ROOT / "images" / "exemple")])
BLOCKS = dict(re.findall(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S))
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S)
ZONE = {name: re.search(r"# \*{9,} PARAM.*?\n(.*?)# \*{9,}", CODE[name], re.S).group(1)
        for name in kit.SCRIPTS[1:]}
# Les expériences : [(ce que l'on change, la loss que donne la réponse)]
EXPERIMENTS = [("epochs = 40", re.findall(r"^Epoch 40/40   loss (\S+)", README, re.M)[0])]
for change, answer in re.findall(r"^\*\*\d\. (.*?)<details>(.*?)</details>", README, re.M | re.S):
    changes = re.findall(r"`(\w+ = [^`]+|0 \* [^`]+)`", change)
    EXPERIMENTS += zip(changes, re.findall(r"(?:finit|puis) à (\d+)", answer))


def test_short_and_plain():
    """4 300 mots au plus, une seule sorte d'apostrophe, aucun chemin d'une machine."""
    assert len(README.split()) <= 4300 and not re.search(r"’|/(home|root|tmp|work|Users)/|C:\\", README)
    assert all(len(line) <= 110 or line[0] in "|!" for line in PROSE.splitlines())
    titles = re.findall(r"^## (.+)$", PROSE, re.M)
    assert titles[:6] == ["Quoi", "Pourquoi", "Pour qui", "Prérequis", "Pour l'enseignant", "Contenu"]
    assert "Exemple de problèmes éthiques" in titles and titles[-1] == "In English"


def test_commands():
    """En haut : chaque ligne pour Linux et macOS fait son environnement ; trois pour Windows, sans « && »."""
    commands = re.findall(r"^python3 -m venv \.venv && \.venv/bin/python -m pip install (.+?) "
                          r"&& \.venv/bin/python (.+)$", README[:2000], re.M)
    assert [what for _, what in commands] == ["train_VAE.py", "-m pytest tests"]
    libraries = commands[0][0]
    assert ("```\npy -3.12 -m venv .venv\n.venv\\Scripts\\python -m pip install " + libraries
            + "\n.venv\\Scripts\\python train_VAE.py\n```") in README[:2000]
    assert re.findall(r"^\.venv/bin/python -m pip (.+)$", README, re.M) == [
        f'download -d paquets {libraries} spyder "ipython<9"',
        f'install --no-index --find-links paquets {libraries} spyder "ipython<9"', 'install spyder "ipython<9"']
    for name in re.findall(r"python3? ([\w/.]+\.py)", README):
        assert (kit.ROOT / name).is_file(), name
    assert "de 3.10 à" in README                        # test_style.py le vérifie


def test_links_and_pictures():
    """Chaque lien mène à un titre ; chaque image existe, légère, refaite par make_captures.py."""
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
               for title in re.findall(r"^#+ (.+)$", PROSE, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors
    pictures = [kit.ROOT / path for path in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)]
    assert set(pictures) == set((kit.ROOT / "tests" / "captures").iterdir())
    maker = (kit.ROOT / "tests" / "make_captures.py").read_text(encoding="utf-8")
    for path in pictures:
        with Image.open(path) as image:
            moving = getattr(image, "n_frames", 1) > 10
        assert path.name in maker and moving == (path.suffix == ".gif") and image.width <= 1000, path
        assert path.stat().st_size < (1_500_000 if moving else 150_000), path


def test_values_and_names():
    """Chaque « paramètre = valeur » est d'une zone, qui l'accepte ; chaque nom cité existe."""
    for span in re.findall(r"`([^`\n]+)`", PROSE):
        if found := re.fullmatch(r"(\w+) = ([^…]+)", span):
            name, value = found.groups()
            assert any(f"\n{name} = " in f"\n{zone}" for zone in ZONE.values()), span
            for low, high in re.findall(rf'\("{name}", {name}, (.+?), (.+?)\)', CODE["train_VAE.py"]):
                assert eval(low) <= float(value) <= eval(high), span
        elif re.fullmatch(r"[\w/.]+\.(py|yml|png|pt|csv)", span):
            assert (kit.ROOT / span).exists() or span in EVERYTHING + BLOCKS["python"] + "essai.pt", span
        elif re.fullmatch(r"[a-z]+_[a-z_]+|\d \* .+", span):       # d'une formule, le nombre peut changer
            assert span.lstrip("0") in EVERYTHING, span
    for button in ["Tout à zéro", "Au hasard", "Image réelle", "Webcam", "Enregistrer"]:
        assert f"**{button}**" in README and button in CODE["decode_VAE.py"]


def test_messages():
    """Chaque message du dépannage, et la phrase du bilan, sont dans le code, mot pour mot."""
    part = README.split("\n## En cas de problème")[1].split("\n## ")[0]
    messages = re.findall(r"`([^`]+)`", " ".join(re.findall(r"^\| (`.*?) \|", part, re.M)))
    messages += re.findall(r"^Bilan : (.+)$", BLOCKS["text"], re.M)
    texts = [str(node.value) for code in CODE.values() for node in ast.walk(ast.parse(code))
             if isinstance(node, ast.Constant)]
    absent = [message for message in messages if not any(message in text for text in texts)]
    assert len(messages) > 15 and not absent


def test_numbers():
    """Les nombres que le texte tire du code et de ceux qu'il a déjà donnés."""
    assert "= 16 " in ZONE["train_VAE.py"] and "par epoch : 30." in README and "ici 1 200 fois" in README
    flat = " ".join(README.split())
    split = re.search(r"([\d,]+) = ([\d,]+) d'erreur \+ ([\d,]+) de KL", flat).groups()
    loss, error, kl = (float(number.replace(",", ".")) for number in split)
    assert loss == round(error + kl, 1) and f"test loss {loss}" in BLOCKS["text"]
    assert f"√({error:.0f}/12 288) = {(error / (3 * 64 ** 2)) ** 0.5:.3f}".replace(".", ",") in flat
    assert f"donnent {(0.01 - np.log(0.01)) / 2:.1f}".replace(".", ",") in flat      # mu = 1, sigma = 0,1
    assert "divisée par 243" in flat and "/ 243" in EVERYTHING


def test_csv_example(tmp_path):
    """L'exemple, tel quel, sur trois groupes bien séparés : une carte, et des couleurs par groupe."""
    images = np.arange(90) % 3
    z = np.random.default_rng(0).normal(0, 0.1, (90, 4)) + 2 * np.eye(3, 4)[images]
    Image.new("RGB", (64, 64), "black").save(tmp_path / "été.png")
    lines = ["image,z1,z2,z3,z4"] + [f"{tmp_path / 'été.png'}," + ",".join(map(str, row)) for row in z]
    (tmp_path / "latents.csv").write_text("\n".join(lines), encoding="utf-8")
    subprocess.run([sys.executable, "-W", "error", "-c", BLOCKS["python"]], cwd=tmp_path, check=True)
    assert len(Image.open(tmp_path / "carte.png").getcolors(2**24)) >= 5     # le fond, les visages, trois cadres


@pytest.mark.skipif("EXPERIENCES" not in os.environ, reason="plusieurs minutes : EXPERIENCES=1")
@pytest.mark.parametrize("change, loss", EXPERIMENTS)
def test_experiments(folder, change, loss):
    """Refaite, l'expérience donne à peu près la loss de la réponse (une minute chacune au plus)."""
    shutil.copytree(folder / "images/exemple", folder / "cinquante", ignore=lambda _, names: sorted(names)[50:])
    if change.startswith("0 *"):                 # « sans le décodeur » : 4 * devient 0 *
        network = CODE["model_VAE_64.py"].replace("4" + change[1:], change)
        (folder / "model_VAE_64.py").write_text(network, encoding="utf-8")
    else:
        name, value = change.split(" = ")
        kit.edit_zone(folder / "train_VAE.py", **{name: ast.literal_eval(value)})
    found = kit.losses_in(kit.run(folder / "train_VAE.py").stdout)["loss"][-1]
    assert len(EXPERIMENTS) == 9 and found == pytest.approx(float(loss), rel=0.12)
