"""Les quatre scripts tels que Spyder les lit : sans avertissement, du Python 3.10, la zone ***."""
import ast
import re
import shutil
import subprocess
import sys

import pytest
from kit import ROOT, SCRIPTS
from packaging.requirements import Requirement      # vient avec pytest

TEXT = {name: (ROOT / name).read_text(encoding="utf-8") for name in SCRIPTS}
TREE = {name: ast.parse(text) for name, text in TEXT.items()}
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = {"torch", "torchvision", "cv2", "numpy", "PIL"}
STARS = "# ******************************* PARAMÈTRES À MODIFIER *******************************"
LESS = {"model_VAE_64.py": {"tkinter"}, "train_VAE.py": {"tkinter", "cv2"}, "decode_VAE.py": set(),
        "record_images.py": {"torch", "torchvision", "model_VAE_64"}}     # ce qui n'y entre pas

# Ce qui est venu après Python 3.10, et après les bibliothèques d'il y a deux ans (PyTorch 2.5,
# torchvision 0.20, OpenCV 4.10, NumPy 2.0, Pillow 11), et pourrait tenter.
TOO_NEW = {
    "Python 3.11": """tomllib ExceptionGroup BaseExceptionGroup TaskGroup StrEnum contextlib.chdir
        math.cbrt math.exp2 typing.Self datetime.UTC hashlib.file_digest add_note
        sys.exception logging.getLevelNamesMapping""",
    "Python 3.12": "itertools.batched Path.walk calendar.Month os.listdrives math.sumprod",
    "Python 3.13": "copy.replace os.process_cpu_count from_uri full_match",
    "Python 3.14": "annotationlib compression concurrent.interpreters move_into copy_into",
    "PyTorch 2.6 et suivantes": "torch.accelerator torch.optim.Muon torch.serialization.skip_data",
    "NumPy 2.1 et suivantes": "np.unstack np.cumulative_sum np.cumulative_prod",
    "Pillow 12 et suivantes": "ImageText"}
ARGUMENTS = {"delete_on_close", "walk_up", "recurse_symlinks", "deterministic"}   # mots-clés
UNGUARDED = {"train_VAE.py": {"torch.accelerator": 'hasattr(torch, "accelerator")'}}


def imports(tree):
    """Les modules qu'un script importe, où que ce soit dedans."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module


def zone(name):
    """Les lignes de la zone ***, ou None."""
    lines = TEXT[name].splitlines()
    if STARS not in lines:
        return None
    start = lines.index(STARS)
    end = lines.index("# " + "*" * (len(STARS) - 2))
    return lines[start + 1:end]


@pytest.mark.parametrize("tool", [["pyflakes"], ["pycodestyle", "--max-line-length=100"]])
def test_spyder_code_analysis(tool):
    """pyflakes et pycodestyle, dont Spyder montre les avis dans la marge, n'ont rien à dire."""
    pytest.importorskip(tool[0], reason=f"il manque {tool[0]} (pip install {tool[0]})")
    result = subprocess.run([sys.executable, "-m", *tool, *SCRIPTS], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.stdout == "" and result.returncode == 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_oldest_python(name):
    """Syntaxe de Python 3.10, et rien de plus récent, ni dans les bibliothèques, sans garde-fou."""
    ast.parse(TEXT[name], feature_version=(3, 10))
    names = {node.name for node in ast.walk(TREE[name]) if isinstance(node, ast.alias)}
    names |= {node.id for node in ast.walk(TREE[name]) if isinstance(node, ast.Name)}
    for node in ast.walk(TREE[name]):
        if isinstance(node, ast.Attribute):
            names |= {node.attr, ast.unparse(node)}
        assert not isinstance(node, getattr(ast, "TryStar", ())), "except* est de Python 3.11"
        if isinstance(node, ast.keyword):
            assert node.arg not in ARGUMENTS
        if isinstance(node, ast.JoinedStr):     # les guillemets répétés sont de Python 3.12
            source = ast.get_source_segment(TEXT[name], node)
            assert sys.version_info < (3, 12) or '"{"' not in source
    for since, words in TOO_NEW.items():
        for word in names & set(words.split()):
            guard = UNGUARDED.get(name, {}).get(word)
            assert guard and guard in TEXT[name], f"{word} : {since}"


def test_oldest_python_according_to_vermin():
    """vermin, s'il est installé, trouve lui aussi que Python 3.10 suffit."""
    pytest.importorskip("vermin", reason="il manque vermin (pip install vermin)")
    result = subprocess.run([sys.executable, "-c", "import vermin; vermin.main()", "-t=3.10-",
                             "--violations", *SCRIPTS], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_imports(name):
    """La bibliothèque standard et les cinq autres ; IPython dans Spyder seulement."""
    found = set(imports(TREE[name]))
    roots = {module.split(".")[0] for module in found} - set(sys.stdlib_module_names)
    allowed = PACKAGES | ({"model_VAE_64"} if name != "model_VAE_64.py" else set())
    assert roots - {"IPython"} <= allowed - LESS[name]
    assert not {module.split(".")[0] for module in found} & LESS[name]
    inside = {module for node in ast.walk(TREE[name])
              if isinstance(node, ast.If) and ast.unparse(node.test) == "in_spyder"
              for module in imports(node)}
    assert {module for module in found if module.startswith("IPython")} == inside <= {
        "IPython.display"}
    if name != "model_VAE_64.py":
        # Le lent (PyTorch, OpenCV...) n'arrive qu'après la vérification des paramètres.
        first = min(node.lineno for node in ast.walk(TREE[name])
                    if isinstance(node, (ast.Import, ast.ImportFrom))
                    and set(imports(ast.Module([node], []))) - set(sys.stdlib_module_names))
        checks = [node.lineno for node in TREE[name].body if isinstance(node, (ast.If, ast.For))
                  for call in ast.walk(node) if isinstance(call, ast.Call)
                  and ast.unparse(call.func) == "stop"]
        assert len(checks) >= 3 and min(checks) < first


def test_top_level():
    """Les huit noms, et rien d'autre que ce que git ignore."""
    try:
        listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"],
                                cwd=ROOT, text=True, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("ce dossier n'est pas un dépôt git")
    top = {path.split("/")[0].strip('"') for path in listed.splitlines()}
    assert {name for name in top if not name.startswith(".")} == {
        *SCRIPTS, "README.md", "images", "environment.yml", "tests"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_known_traps(name):
    """Ce qui a perdu d'autres kits (voir aussi les tests de chaque script)."""
    calls = [node for node in ast.walk(TREE[name]) if isinstance(node, ast.Call)]
    called = {ast.unparse(call.func) for call in calls}
    assert not called & {"os.chdir", "cv2.imread", "cv2.imwrite", "pickle.load", "pickle.loads",
                         "exec", "eval", "input", "exit", "quit", "os._exit"}
    assert not any(keyword.arg == "strict" and ast.unparse(keyword.value) == "False"
                   for call in calls if ast.unparse(call.func).endswith("load_state_dict")
                   for keyword in call.keywords)
    for call in calls:
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if ast.unparse(call.func) == "torch.load":
            assert keywords["weights_only"] == "True" and keywords["map_location"] == "'cpu'"
        if ast.unparse(call.func) == "sys.exit":     # d'un texte, Spyder ferait du bruit
            assert [ast.unparse(arg) for arg in call.args] in (
                ["0 if in_spyder else 1"], ["0 if 'spyder_kernels' in sys.modules else 1"])
    assert "__name__" not in TEXT[name]             # tout est au premier niveau : F5, F9, cellules
    # 64 ne se lit qu'une fois par script : dans la zone (ou comme valeur par défaut du modèle).
    sizes = [node for node in ast.walk(TREE[name]) if isinstance(node, ast.Assign)
             and ast.unparse(node.targets[0]) == "images_size"]
    assert len(sizes) == (name != "model_VAE_64.py")


@pytest.mark.parametrize("name", SCRIPTS[1:])
def test_zone(name):
    """Chaque ligne de la zone : name = value   # *** a-b *** un commentaire français."""
    lines = zone(name)
    assert lines and TEXT[name].splitlines().index(STARS) < 30
    columns = set()
    for line in lines:
        match = re.fullmatch(r"([a-z_]+) = (\S.*?)(\s{2,})# (\S.*\S)", line)
        assert match, line
        parameter, value, _, comment = match.groups()
        ast.literal_eval(value)
        columns.add(match.start(4))
        ranges = re.findall(r"\*\*\* ([\d.]+)-([\d.]+) \*\*\*", comment)
        assert comment.count("***") == 2 * len(ranges) and len(ranges) <= 1
        if type(ast.literal_eval(value)) is not str:
            (low, high), = ranges
            assert line.rindex("***") < 60            # ce que montre Spyder sur 1366 pixels : 64
            assert float(low) <= ast.literal_eval(value) <= float(high) and float(low) < float(high)
    assert len(columns) == 1                          # les commentaires, bien alignés
    order = [ast.unparse(node.targets[0]) for node in TREE[name].body
             if isinstance(node, ast.Assign)]
    count = len(lines)
    assert order[:count] == [line.split(" = ")[0] for line in lines]


def test_zones_agree():
    """Un même paramètre a la même valeur et le même intervalle dans tous les scripts."""
    seen = {}
    for name in SCRIPTS[1:]:
        for line in zone(name):
            parameter, value = re.match(r"(\w+) = (.*?)\s+#", line).groups()
            known = seen.setdefault(parameter, (value, re.findall(r"\*\*\*.*\*\*\*", line)))
            assert known == (value, re.findall(r"\*\*\*.*\*\*\*", line)), parameter
    assert seen["images_size"][0] == "64" and seen["latent_size"][0] == "4"
    assert seen["beta"][0] == "1" and seen["test_proportion"][0] == "0.2"


def test_environment():
    """environment.yml nomme ce que nomment les deux commandes du README, et Spyder par conda."""
    commands = re.findall(r"(?m)^python -m pip install ([\w -]+)", README)
    assert len(commands) == 2
    kit, tests = [set(command.split()) for command in commands]
    assert kit == {"torch", "torchvision", "opencv-python", "numpy", "pillow"}
    assert tests == kit | {"pytest", "spyder-kernels"}
    lines = [line.split("#")[0].rstrip() for line in
             (ROOT / "environment.yml").read_text(encoding="utf-8").splitlines()]
    conda = [line[4:] for line in lines[lines.index("dependencies:"):] if re.match("  - ", line)]
    pip = [Requirement(line[8:]) for line in lines if re.match("      - ", line)]
    # Python, Spyder et pip par conda ; NumPy et PyTorch par pip, les deux : un seul OpenMP.
    assert [re.split("[=<>]", word)[0] for word in conda] == ["python", "spyder", "ipython", "pip",
                                                               "pip:"]
    everywhere = [str(word) for word in pip if not word.marker]
    assert sorted(everywhere) == sorted(tests - {"spyder-kernels"})   # il vient avec Spyder
    # Sur un Mac Intel, et là seulement, le NumPy que PyTorch 2.2 sait lire.
    intel_mac = {"sys_platform": "darwin", "platform_machine": "x86_64"}
    special, = [word for word in pip if word.marker]
    assert special.name == "numpy" and "1.26.4" in special.specifier
    assert "2.0.0" not in special.specifier and special.marker.evaluate(intel_mac)
    for other in ({"platform_machine": "arm64"}, {"sys_platform": "linux"},
                  {"sys_platform": "win32", "platform_machine": "AMD64"}):
        assert not special.marker.evaluate(intel_mac | other)
    channels = lines[lines.index("channels:") + 1:lines.index("dependencies:")]
    assert channels == ["  - conda-forge"]


@pytest.mark.parametrize("name", SCRIPTS + ["README.md", "environment.yml"])
def test_french(name):
    """Les accents sont entiers ; la console de Windows (cp1252) peut montrer chaque message."""
    data = (ROOT / name).read_bytes()
    assert not data.startswith(b"\xef\xbb\xbf") and b"\r" not in data and b"\t" not in data
    text = data.decode("utf-8")
    assert text.endswith("\n") and not text.endswith("\n\n")
    assert not re.search("Ã[\u0080-\u00bf©¨ª]|Â[«»°·]|â€|\ufffd|[\u0300-\u036f]", text)
    # Des mots que l'on tape volontiers sans accent, ou sans œ.
    for word in """apres entraine entrainement reseau modele parametre fenetre numero creer etre
            meme deja tres ca etudiant memoire fenetres numeros images? reseaux resultat
            donnees ecran camera oeil coeur noeud voeu""".split():
        if word not in ("images?", "camera"):         # camera est un paramètre
            assert not re.search(rf"(?<![\w/.-]){word}(?![\w/])", text), word
    if name in SCRIPTS:
        for node in ast.walk(TREE[name]):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "stop"):
                for part in ast.walk(node):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        part.value.encode("cp1252")


def test_gitignore(tmp_path):
    """Les images d'une personne, dans n'importe quel dossier, et les modèles restent hors de git."""
    if not shutil.which("git"):
        pytest.skip("il manque git")
    shutil.copy(ROOT / ".gitignore", tmp_path)
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    private = ["visages/image_00001.png", "images/image_00001.png", "images/exemple/moi.png",
               "essai.pt", "train_VAE.png", "latents.csv", "mes images/sous/dossier/a.jpg",
               "moi.mp4"]
    public = ["images/exemple/visage_000.png", "tests/kit.py", "tests/captures/train.png",
              ".ci/run", "train_VAE.py", "README.md", "environment.yml"]
    ignored = subprocess.run([*git, "check-ignore", *private, *public], text=True,
                             capture_output=True).stdout.splitlines()
    assert [name.strip('"') for name in ignored] == private
