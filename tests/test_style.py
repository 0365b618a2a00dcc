"""Les quatre scripts tels que Spyder les lit : sans avis dans la marge, du Python 3.10, la zone ***."""
import ast
import re
import shutil
import subprocess
import sys

import pytest
from kit import ROOT, SCRIPTS, Raw, edit_zone, run
from packaging.requirements import Requirement      # vient avec pytest

TEXT = {name: (ROOT / name).read_text(encoding="utf-8") for name in SCRIPTS}
TREE = {name: ast.parse(text, feature_version=(3, 10)) for name, text in TEXT.items()}
LESS = {"model_VAE_64.py": {"tkinter", "cv2", "model_VAE_64"}, "train_VAE.py": {"tkinter", "cv2"},
        "decode_VAE.py": set(), "record_images.py": {"torch", "torchvision", "model_VAE_64"}}
ZONE = re.compile(r"(?ms)^# \*{19,} PARAMÈTRES À MODIFIER \*{19,}\n(.*?)^# \*{60,}\n")


def modules(tree):
    """Les modules qu'un arbre importe, où que ce soit dedans."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


@pytest.mark.parametrize("tool", [["pyflakes"], ["pycodestyle", "--max-line-length=100",
                                                 "--ignore=E402,W503,W504,E226,E121,E123,E126"]])
def test_spyder_code_analysis(tool):
    """Spyder ne montre aucun avis de pyflakes, ni de pycodestyle (E402 : la zone *** d'abord)."""
    pytest.importorskip(tool[0], reason=f"il manque {tool[0]} (pip install {tool[0]})")
    result = subprocess.run([sys.executable, "-m", *tool, *SCRIPTS], cwd=ROOT, text=True, capture_output=True)
    assert result.stdout + result.stderr == ""


@pytest.mark.parametrize("name", SCRIPTS)
def test_imports(name):
    """La bibliothèque standard et les cinq autres ; IPython, dans Spyder seulement."""
    allowed = {"torch", "torchvision", "cv2", "numpy", "PIL", "model_VAE_64", "IPython"}
    assert set(modules(TREE[name])) <= (sys.stdlib_module_names | allowed) - LESS[name]
    in_spyder = [node for node in ast.walk(TREE[name]) if isinstance(node, ast.If)
                 and "spyder_kernels" in ast.unparse(node.test)]
    inside = [module for node in in_spyder for module in modules(node)]
    assert inside.count("IPython") == list(modules(TREE[name])).count("IPython")


@pytest.mark.parametrize("name", SCRIPTS[1:])
def test_zone(name):
    """Sous la docstring, avant les imports, chaque ligne : name = value   # *** a-b *** commentaire."""
    lines, = [found.splitlines() for found in ZONE.findall(TEXT[name])]
    assert [ast.unparse(node.targets[0]) for node in TREE[name].body[1:len(lines) + 1]] == [
        line.split(" = ")[0] for line in lines]
    for line in lines:
        value, comment = re.fullmatch(r"[a-z_]+ = (\S.*?) {2,}# (\S.*\S)", line).groups()
        value, ranges = ast.literal_eval(value), re.findall(r"^\*\*\* ([\d.]+)-([\d.]+) \*\*\* ", comment)
        assert len(ranges) == (type(value) is not str) and comment.count("***") == 2 * len(ranges)
        for low, high in ranges:
            assert float(low) <= value <= float(high)
    assert max(map(len, lines)) <= 64                 # ce que montre Spyder sur 1366 pixels
    for numbers in (True, False):                     # les commentaires, bien alignés
        assert len({line.index("# ") for line in lines if ("***" in line) == numbers}) == 1


# Des valeurs impossibles, pour chaque paramètre de chaque script
NUMBERS = [None, True, -1, "64", (0, 5), Raw("float('nan')"), 10**12]
NAMES = [None, 3, "absent", "a\0b", "images\test"]
CAMERA = [None, True, 4.5, -1, []]
BAD = {
    "train_VAE.py": {
        "images_size": [*NUMBERS, 0, 8, 63, 64.0], "latent_size": [*NUMBERS, 0, 33], "beta": NUMBERS,
        "epochs": [*NUMBERS, 0, 4.5], "batch_size": [*NUMBERS, 0, 4.5], "seed": [*NUMBERS, 4.5],
        "learning_rate": [*NUMBERS, 0, 101], "test_proportion": [*NUMBERS, 0, 1, 0.95],
        "images_folder": [*NAMES, "train_VAE.py"], "model_file": [*NAMES, "", "absent/a.pt", ".."]},
    "decode_VAE.py": {"camera": CAMERA},
    "record_images.py": {"images_folder": [None, 3], "camera": CAMERA, "images_size": [*NUMBERS, 0, 7, 1025]}}


@pytest.mark.parametrize("script, name", [(script, name) for script in BAD for name in BAD[script]])
def test_bad_values(folder, script, name):
    """Chaque valeur impossible : une phrase la nomme, avant PyTorch."""
    (folder / "torch.py").write_text("raise SystemError", encoding="utf-8")
    for value in BAD[script][name]:
        edit_zone(folder / script, **{name: value})
        done = run(folder / script)
        assert done.returncode == 1 == done.stdout.count("\n"), (value, done.stdout)
        assert re.match(rf"(Paramètre )?{name} = .*[iI]l ", done.stdout), (value, done.stdout)
        assert value != "images\test" or "/" in done.stdout
        assert value != (0, 5) or "virgule" in done.stdout or script == "record_images.py"
        assert value not in (4.5, 64.0) or "entier, sans point" in done.stdout or script != "train_VAE.py"


def test_zones_agree():
    """Un même paramètre a la même valeur dans tous les scripts."""
    found = [re.findall(r"(?m)^(\w+) = (.*?) +#", ZONE.search(TEXT[name])[1]) for name in SCRIPTS[1:]]
    values = set(sum(found, []))
    assert len(values) == len(dict(values)) < sum(map(len, found))


def test_environment():
    """environment.yml nomme ce que nomment les deux commandes du README ; Spyder par conda, NumPy et
    PyTorch par pip, les deux : un seul OpenMP. Sur un Mac Intel, et là seulement, le NumPy de son PyTorch."""
    commands = re.findall(r"(?m)^python3 .* -m pip install ([\w -]+)", (ROOT / "README.md").read_text("utf-8"))
    kit, tests = [set(command.split()) for command in commands]
    in_spyder = {"spyder-kernels", "pyflakes", "pycodestyle"}       # ils viennent avec Spyder
    assert kit | in_spyder | {"pytest"} == tests
    assert kit == {"torch", "torchvision", "opencv-python", "numpy", "pillow"}
    text = re.sub(" *#.*", "", (ROOT / "environment.yml").read_text("utf-8"))
    names = re.findall(r"(?m)^  - ([\w-]+)", text)
    assert names == ["conda-forge", "python", "spyder", "ipython", "pip", "pip"]
    pip = [Requirement(line) for line in re.findall(r"(?m)^      - (.*)", text)]
    for system, machine, pinned in [("darwin", "x86_64", 1), ("darwin", "arm64", 0), ("win32", "AMD64", 0)]:
        place = {"sys_platform": system, "platform_machine": machine}
        wanted = [word for word in pip if not word.marker or word.marker.evaluate(place)]
        assert {word.name for word in wanted} == tests - in_spyder
        assert sum(not word.specifier.contains("2.0.0") for word in wanted) == pinned


@pytest.mark.parametrize("name", SCRIPTS + ["README.md", "environment.yml"])
def test_french(name):
    """Aucun accent n'est perdu ; la console de Windows (cp1252) peut montrer chaque message."""
    data = (ROOT / name).read_bytes()
    assert not data.startswith(b"\xef\xbb\xbf") and b"\r" not in data and b"\t" not in data
    text = data.decode("utf-8")
    assert text.endswith("\n") and not text.endswith("\n\n")
    assert not re.search("Ã[\u0080-\u00bf©¨ª]|Â[«»°·]|â€|\ufffd|[\u0300-\u036f]", text)
    words = """apres entraine entrainement reseau modele parametre fenetre numero creer etre meme deja tres
        ca etudiant memoire fenetres numeros reseaux resultat donnees ecran oeil coeur noeud voeu"""
    assert not re.findall(rf"(?<![\w/.-])(?:{'|'.join(words.split())})(?![\w/])", text)
    for call in ast.walk(TREE.get(name, ast.Module([]))):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("print", "say", "stop"):
            ast.unparse(call).encode("cp1252")


def test_git():
    """Les huit noms du premier niveau ; les images d'une personne et les modèles restent hors de git."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("git manque, ou ce dossier n'est pas un dépôt")
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")[:-1]
    assert {path.split("/")[0] for path in listed if path[0] != "."} == {
        *SCRIPTS, "README.md", "images", "environment.yml", "tests"}
    private = ["visages/image_00001.png", "images/image_00001.png", "images/exemple/moi.png", "essai.pt",
               "train_VAE.png", "latents.csv", "photos/sous/dossier/a.jpg", "moi.mp4"]
    ignored = subprocess.run(["git", "check-ignore", "--no-index", *listed, *private], cwd=ROOT, text=True,
                             capture_output=True).stdout.splitlines()
    assert ignored == private
