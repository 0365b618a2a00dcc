"""Les quatre scripts tels que Spyder les lit : sans avis dans la marge, du Python 3.10, la zone ***."""
import ast
import re
import shutil
import subprocess
import sys
from unittest.mock import patch

import pytest
from kit import ROOT, SCRIPTS, copy_kit, edit_zone, execute
from packaging.requirements import Requirement      # vient avec pytest

TEXT = {name: (ROOT / name).read_text("utf-8") for name in [*SCRIPTS, "README.md", "environment.yml"]}
LIBRARIES = {"model_VAE_64.py": {"torch", "numpy", "PIL"}, "record_images.py": {"cv2", "PIL", "tkinter"},
             "train_VAE.py": {"torch", "torchvision", "numpy", "PIL", "model_VAE_64", "IPython"},
             "decode_VAE.py": {"torch", "torchvision", "numpy", "PIL", "model_VAE_64", "cv2", "tkinter"}}


@pytest.mark.parametrize("tool", [["pyflakes"], ["pycodestyle", "--max-line-length=100",
                                                 "--ignore=E402,W503,W504,E226,E121,E123,E126"]])
def test_spyder_code_analysis(tool):
    """Spyder ne montre aucun avis de pyflakes, ni de pycodestyle (E402 : la zone *** d'abord)."""
    pytest.importorskip(tool[0], reason=f"il manque {tool[0]} (pip install {tool[0]})")
    result = subprocess.run([sys.executable, "-m", *tool, *SCRIPTS], cwd=ROOT, text=True, capture_output=True)
    assert result.stdout + result.stderr == ""


@pytest.mark.parametrize("name", SCRIPTS)
def test_imports(name):
    """Du Python 3.10, qui n'importe que la bibliothèque standard et ce qu'il faut à ce script-là."""
    ast.parse(TEXT[name], feature_version=(3, 10))
    imported = set(re.findall(r"(?m)^ *(?:import|from) (\w+)", TEXT[name]))
    assert imported - (sys.stdlib_module_names - {"tkinter"}) <= LIBRARIES[name]


def test_zones():
    """Sous la docstring d'abord. Chaque ligne : name = value   # *** a-b *** commentaire, avec a-b pour un
    nombre ; un même paramètre a la même valeur dans tous les scripts."""
    values = {}
    for script in SCRIPTS[1:]:
        below = TEXT[script].split('"""', 2)[2]
        zone = re.match(r"(?s)\n# \*{19,} PARAMÈTRES À MODIFIER \*{19,}\n(.*?)# \*{60,}\n", below)[1]
        for line in zone.splitlines():
            assert len(line) <= 64                    # ce que montre Spyder sur 1366 pixels
            name, value, comment = re.fullmatch(r"([a-z_]+) = (\S.*?) {2,}# (\S.*)", line).groups()
            assert values.setdefault(name, value) == value
            limits = re.match(r"\*\*\* ([\d.]+)-([\d.]+) \*\*\* \w", comment)
            assert value[0] == '"' or float(limits[1]) <= float(value) <= float(limits[2])


# Des valeurs impossibles, pour chaque paramètre de chaque script
NUMBERS = [None, True, -1, "64", (0, 5), 10**12]
NAMES = [None, 3, "absent", "a\0b", "images\test"]
CAMERA = [None, True, 4.5, -1, []]
BAD = {
    "train_VAE.py": {
        "images_size": [*NUMBERS, 0, 8, 72, 64.0], "latent_size": [*NUMBERS, 0, 33], "beta": NUMBERS,
        "epochs": [*NUMBERS, 0, 4.5], "batch_size": [*NUMBERS, 0, 4.5], "seed": [*NUMBERS, 4.5],
        "learning_rate": [*NUMBERS, 0, 101], "test_proportion": [*NUMBERS, 0, 1, 0.95],
        "images_folder": [*NAMES, "train_VAE.py"], "model_file": [*NAMES, "", "absent/a.pt", ".."]},
    "decode_VAE.py": {"camera": CAMERA},
    "record_images.py": {"images_folder": [None, 3], "camera": CAMERA, "images_size": [*NUMBERS, 0, 7, 1025]}}
ADVICE = {"images\test": "/", (0, 5): "virgule", 4.5: "entier, sans point", 64.0: "entier, sans point"}


@pytest.mark.parametrize("script, name", [(script, name) for script in BAD for name in BAD[script]])
@patch.dict("os.environ")
@patch.dict("sys.modules", torch=None, model_VAE_64=None)
def test_bad_values(tmp_path, script, name):
    """Chaque valeur impossible : une phrase la nomme et dit ce qu'il faut, avant PyTorch."""
    folder = copy_kit(tmp_path, exemple=False)
    for value in BAD[script][name]:
        edit_zone(folder / script, **{name: value})
        done = execute(folder / script)
        assert done.code == 1 == done.out.count("\n"), (value, done.out)
        assert re.match(rf"Paramètre {name} = .*[iI]l ", done.out), (value, done.out)
        assert script != "train_VAE.py" or ADVICE.get(value, "") in done.out, (value, done.out)


def test_environment():
    """environment.yml nomme ce que nomment les deux commandes du README ; Spyder par conda, NumPy et
    PyTorch par pip, les deux : un seul OpenMP. Sur un Mac Intel, et là seulement, le NumPy de son PyTorch."""
    commands = re.findall(r"(?m)^python3 .* -m pip install ([\w -]+)", TEXT["README.md"])
    kit, tests = [set(command.split()) for command in commands]
    assert kit == {"torch", "torchvision", "opencv-python", "numpy", "pillow"}
    assert tests == kit | {"pytest", "spyder-kernels", "pyflakes", "pycodestyle"}
    conda, pip = re.sub(" *#.*", "", TEXT["environment.yml"]).split("- pip:")
    assert re.findall(r"- ([\w-]+)", conda) == ["conda-forge", "python", "spyder", "ipython", "pip"]
    pip = [Requirement(line) for line in re.findall("- (.*)", pip)]
    for system, machine, pinned in [("darwin", "x86_64", 1), ("darwin", "arm64", 0), ("win32", "AMD64", 0)]:
        place = {"sys_platform": system, "platform_machine": machine}
        wanted = [word for word in pip if not word.marker or word.marker.evaluate(place)]
        assert {word.name for word in wanted} == kit | {"pytest"}
        assert sum(not word.specifier.contains("2.0.0") for word in wanted) == pinned


@pytest.mark.parametrize("name", TEXT)
def test_french(name):
    """Aucun accent n'est perdu ; la console de Windows (cp1252) peut montrer chaque message."""
    text = (ROOT / name).read_bytes().decode("utf-8")
    assert not re.search("Ã[\u0080-\u00bf©¨ª]|Â[«»°·]|â€|[\ufffd\ufeff\u0300-\u036f\r\t]|\n\n$", text)
    words = """apres entraine entrainement reseau modele parametre fenetre numero creer etre meme deja tres
        ca etudiant memoire fenetres numeros reseaux resultat donnees ecran oeil coeur noeud voeu"""
    assert not re.findall(rf"(?<![\w/.-])(?:{'|'.join(words.split())})(?![\w/])", text)
    assert name == "README.md" or text.encode("cp1252")


def test_git():
    """Les huit noms du premier niveau ; les images d'une personne et les modèles restent hors de git."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("git manque, ou ce dossier n'est pas un dépôt")
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")[:-1]
    assert {path.split("/")[0] for path in listed if path[0] != "."} == {*TEXT, "images", "tests"}
    private = ["visages/image_00001.png", "images/image_00001.png", "images/exemple/moi.png", "essai.pt",
               "train_VAE.png", "latents.csv", "photos/sous/dossier/a.jpg", "moi.mp4"]
    ignored = subprocess.run(["git", "check-ignore", "--no-index", *listed, *private], cwd=ROOT, text=True,
                             capture_output=True).stdout.splitlines()
    assert ignored == private
