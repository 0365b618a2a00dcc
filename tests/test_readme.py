"""README.md contre le code : commandes, noms, valeurs, intervalles, messages, images, exemple."""
import ast
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from kit import ROOT, SCRIPTS

README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = {name: (ROOT / name).read_text(encoding="utf-8") for name in SCRIPTS}
EVERYTHING = "\n".join(CODE.values()) + (ROOT / ".gitignore").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S)
SPANS = re.findall(r"`([^`\n]+)`", PROSE)
VALUE = "\0"     # dans un texte du code : ce qui change d'une fois à l'autre


def plain(text):
    """Sur une seule ligne, une espace entre les mots."""
    return " ".join(text.split())


def text_of(node):
    """Le texte qu'écrit une expression ; VALUE pour ce que seule l'exécution dira."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return VALUE


TEXTS = {name: {text_of(node) for node in ast.walk(ast.parse(code))} for name, code in CODE.items()}


def in_code(message, name):
    """Vrai si un texte du script contient, dans l'ordre, ce qui n'est pas « … » dans message."""
    pieces = [re.escape(piece.strip()) for piece in plain(message).split("…")]
    assert max(map(len, pieces)) > 12, message
    return any(re.search(".*?".join(pieces), plain(text)) for text in TEXTS[name])


def writes(line):
    """Vrai si un texte du code peut donner cette ligne de console, et d'autres ce qu'il y insère."""
    line = plain(line).replace("…", "x")
    for text in {text for name in SCRIPTS for whole in TEXTS[name] for text in whole.split("\n")}:
        found = len(text.replace(VALUE, "")) > 6 and re.fullmatch(
            "(.+?)".join(map(re.escape, plain(text).split(VALUE))), line)
        if found and all(len(inserted) < 25 or writes(inserted) for inserted in found.groups()):
            return True
    return False


def zone(name):
    """La zone *** d'un script : {paramètre: (valeur, intervalle ou "")}, tels qu'ils sont écrits."""
    lines = re.search(r"# \*{9,} PARAM.*?\n(.*?)# \*{9,}", CODE[name], re.S).group(1)
    found = re.findall(r"^(\w+) = (.+?) +# (.*)$", lines, re.M)
    return {key: (value, "".join(re.findall(r"\*\*\* (.+?) \*\*\*", comment)))
            for key, value, comment in found}


ZONES = {name: zone(name) for name in SCRIPTS if name != "model_VAE_64.py"}


def tables(title):
    """Les lignes des tableaux d'une partie : des listes de cellules."""
    part = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", README, re.M | re.S).group(1)
    return [re.split(r" +\| +", line.strip("| "))
            for line in part.splitlines() if line.startswith("| ")]


def test_two_commands():
    """Deux lignes « python -m pip install » et pas une de plus, tôt dans la page."""
    lines = README.splitlines()
    commands = [(k, line) for k, line in enumerate(lines) if line.startswith("python -m pip install")]
    assert [line.split(" && ")[1] for _, line in commands] == ["python train_VAE.py",
                                                               "python -m pytest tests"]
    assert commands[-1][0] < 30
    first, second = [line.split(" && ")[0].split()[4:] for _, line in commands]
    environment = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert "name: vae\n" in environment
    conda, pip = [re.findall(rf"^ {{{spaces}}}- ([\w-]+)(?!.*:$)", environment.split("dependencies:")[1],
                             re.M) for spaces in (2, 6)]
    assert conda == ["python", "spyder", "ipython", "pip"]
    assert pip.count("numpy") == 2                           # une ligne de plus pour le Mac Intel
    assert sorted(set(pip)) == sorted(first + ["pytest"])   # spyder-kernels vient avec spyder
    assert sorted(second) == sorted(set(pip) | {"spyder-kernels"})
    for text in set.union(*TEXTS.values()):                 # ce que disent aussi les messages
        for told in re.findall(r"pip install ([\w -]+)", text):
            assert set(told.split()) <= set(first), told


def test_other_commands():
    """Les fichiers que nomment les commandes sont là ; l'environnement porte son nom."""
    assert "conda env create -f environment.yml\nconda activate vae\nspyder\n" in README
    for name in re.findall(r"python3? ([\w/.]+\.py)", README):
        assert (ROOT / name).is_file(), name


def test_links():
    """Chaque lien du sommaire mène à un titre, chaque image existe, petite et lisible."""
    titles = re.findall(r"^#+ (.+)$", PROSE, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    links = re.findall(r"\]\(#([^)]+)\)", README)
    assert len(links) > 12 and set(links) <= anchors, set(links) - anchors
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert len(set(pictures)) == len(pictures) >= 5
    for path in pictures:
        assert (ROOT / path).stat().st_size < 150_000, path
        with Image.open(ROOT / path) as image:
            assert image.width <= 1000 and len(image.convert("RGB").getcolors(2**24)) > 100, path
    names = {path.name for path in (ROOT / "tests" / "captures").iterdir()}
    assert names == {path.split("/")[-1] for path in pictures}
    maker = (ROOT / "tests" / "make_captures.py").read_text(encoding="utf-8")
    assert all(f'"{name}"' in maker for name in names)


def test_sections():
    """Les parties attendues, et l'anglais pour finir."""
    titles = re.findall(r"^## (.+)$", PROSE, re.M)
    for title in ["Quoi", "Pourquoi", "Pour qui", "Prérequis", "Contenu"]:
        assert title in titles
    assert any("éthiques" in title for title in titles) and titles[-1] == "In English"


def test_zone_tables():
    """Les tableaux de paramètres disent ce que disent les zones : noms, valeurs, intervalles."""
    told = {}
    for row in tables("5. La zone des paramètres"):
        if row[0].startswith("`") and row[0].endswith(".py`"):
            script = told.setdefault(row[0].strip("`"), {})
        elif row[0].startswith("`"):
            script[row[0].strip("`")] = row[1].strip("`"), row[2].strip("–")
    assert told == ZONES


def test_values_can_be_typed():
    """Chaque « paramètre = valeur » est un paramètre d'une zone, et le script accepte la valeur."""
    assignments = [span for span in SPANS if re.fullmatch(r"\w+ = [^…]+", span)]
    assert len(assignments) >= 15
    for span in assignments:
        name, value = span.split(" = ")
        owners = [script for script in ZONES if name in ZONES[script]]
        assert owners, span
        if name in ZONES["train_VAE.py"] and name not in ("images_folder", "model_file"):
            value = ast.literal_eval(value)
            low, high = re.search(rf'"{name}", \[[\w, ]+\], (.+?), (.+?)\)', CODE["train_VAE.py"]).groups()
            assert isinstance(value, tuple) or eval(low) <= value <= eval(high), span


def test_experiments():
    """Au moins huit expériences, numérotées ; chacune nomme un paramètre ou un bouton."""
    rows = [row for row in tables("6. Treize expériences") if row[0].isdigit()]
    assert [int(row[0]) for row in rows] == list(range(1, 14))
    assert all(re.search(r"`\w+ = .+?`|«", row[1]) for row in rows)


def test_names():
    """Les fichiers et les noms cités existent : sur le disque, ou dans le code."""
    for span in SPANS:
        if re.fullmatch(r"[\w/.]+\.(py|yml|png|pt|csv|md|avi)", span):
            assert (ROOT / span).exists() or span in EVERYTHING or "_precedent" in span, span
        elif re.fullmatch(r"[a-z]+_[a-z_]+", span):
            assert span in EVERYTHING, span
    assert "_precedent.pt" in EVERYTHING
    window = " ".join(TEXTS["decode_VAE.py"])
    for button in ["Tout à zéro", "Au hasard", "Image réelle", "Webcam", "Pixels nus", "Enregistrer"]:
        assert f"« {button} »" in README and button in window
    assert "inactif" in window and "« inactif »" in README
    assert len(list((ROOT / "images" / "exemple").glob("*.png"))) == 600 and "600 visages" in README


def test_console():
    """Chaque ligne de l'exemple de console peut sortir du code."""
    console = next(text for language, text in BLOCKS if language == "text")
    lines = [line for line in console.splitlines() if line != "..."]
    assert len(lines) >= 7
    for line in lines:
        assert writes(line), line


def test_messages():
    """Les messages de dépannage sont ceux du code, mot pour mot ; « … » remplace le reste."""
    rows = [row for row in tables("En cas de problème") if row[0].startswith("`")]
    assert len(rows) >= 10
    for message, script, answer in rows:
        names = re.findall(r"\w+\.py", script)
        assert names and answer
        for name in names:
            assert in_code(message.strip("`"), name), (name, message)


def test_csv_example(tmp_path):
    """L'exemple, tel quel : les plus proches d'abord, trois groupes faits comme il faut."""
    example = next(text for language, text in BLOCKS if language == "python")
    assert {line.split()[1] for line in example.splitlines() if line.startswith("import")} == {"csv", "numpy"}
    random = np.random.default_rng(0)
    group = np.arange(90) % 3
    z = random.normal(0, 0.3, (90, 4)) + 3 * np.eye(3, 4)[group]
    lines = ["image,z1,z2,z3,z4"] + [f"images/été {k}.png," + ",".join(f"{v:.4f}" for v in row)
                                     for k, row in enumerate(z)]
    (tmp_path / "latents.csv").write_text("\n".join(lines), encoding="utf-8")
    result = subprocess.run([sys.executable, "-X", "utf8", "-W", "error", "-c", example], cwd=tmp_path,
                            text=True, encoding="utf-8", capture_output=True)
    assert result.returncode == 0, result.stderr
    near = re.findall(r"^([\d.]+) +images/été (\d+)\.png$", result.stdout, re.M)
    assert len(near) == 5 and near[0] == ("0.00", "0") and {int(k) % 3 for _, k in near} == {0}
    assert [d for d, _ in near] == sorted(d for d, _ in near)
    found = [{int(k) % 3 for k in re.findall(r"été (\d+)", line)}
             for line in result.stdout.splitlines() if line.startswith("Groupe")]
    assert sorted(map(sorted, found)) == [[0], [1], [2]]


@pytest.mark.parametrize("name", SCRIPTS)
def test_oldest_python(name):
    """Les scripts se lisent avec le plus ancien Python annoncé."""
    assert "Python 3.10 ou plus récent" in README
    ast.parse(CODE[name], feature_version=(3, 10))


def test_discretion():
    """Aucun chemin d'une machine, et pas de ligne trop longue hors des tableaux."""
    assert not re.search(r"/(home|root|tmp|work|Users)/|C:\\", README)
    for line in PROSE.splitlines():
        assert len(line) <= 110 or line.startswith(("|", "![")), line
