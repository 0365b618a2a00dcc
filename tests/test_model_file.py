"""Le fichier du modèle : relu à l'identique, ou refusé par une phrase ; toujours entier."""
import contextlib
import io
import os
import pickle
import subprocess
import sys
import time
import warnings
import zipfile

import numpy as np
import pytest
import torch

from kit import ROOT
from model_VAE_64 import MODEL_KIND, SIZES, VAE, load_model, save_model, write_safely


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """Les octets d'un petit modèle enregistré."""
    path = tmp_path_factory.mktemp("modèle") / "modèle.pt"
    torch.manual_seed(0)
    save_model(VAE(3, 32), path)
    return path.read_bytes()


def saved(**changes):
    """Ce que save_model met dans le fichier, avec quelques changements."""
    return {"kind": MODEL_KIND, "latent_size": 3, "images_size": 32,
            "architecture": str(VAE(3, 32)), "weights": VAE(3, 32).state_dict(), **changes}


def refused(path):
    """load_model refuse par une phrase en français, qui nomme le fichier, et rapidement."""
    start = time.monotonic()
    with warnings.catch_warnings(record=True) as noise, \
            pytest.raises(ValueError, match="n'est pas un modèle de ce kit") as error:
        warnings.simplefilter("always")
        load_model(path)
    assert not noise
    assert str(path) in str(error.value)
    assert time.monotonic() - start < 20
    return True


# Aller et retour -------------------------------------------------------------------------
@pytest.mark.parametrize("latent_size, images_size", [(1, 32), (4, 64), (32, 128)])
def test_round_trip(tmp_path, latent_size, images_size):
    """Mêmes tailles, mêmes poids, mêmes images ; prêt à servir, sans rien d'autre à côté."""
    vae, path = VAE(latent_size, images_size).eval(), tmp_path / "mon modèle été.pt"
    save_model(VAE(2, 32), path)                            # un modèle plus ancien, remplacé
    save_model(vae, path)
    again = load_model(str(path))
    assert (again.latent_size, again.images_size) == (latent_size, images_size)
    assert not again.training and {str(p.device) for p in again.parameters()} == {"cpu"}
    z = torch.randn(2, latent_size)
    assert torch.equal(vae.decode(z), again.decode(z))
    x = torch.rand(2, 3, images_size, images_size)
    assert torch.equal(vae.encode(x)[0], again.encode(x)[0])
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("images_size", SIZES)
def test_every_size(images_size):
    """Tous les côtés possibles : des images de la bonne taille ; dès 32, au moins 4×4 cases."""
    vae = VAE(2, images_size)
    reconstruction, mu, logvar = vae(torch.rand(1, 3, images_size, images_size))
    assert reconstruction.shape == (1, 3, images_size, images_size)
    assert mu.shape == logvar.shape == (1, 2)
    cells = next(layer for layer in vae.decoder if isinstance(layer, torch.nn.Unflatten))
    assert images_size < 32 or min(cells.unflattened_size[1:]) >= 4


def test_mean_image():
    """Sans rien avoir appris, le décodeur dessine la moyenne, que lui seul apprend ensuite."""
    images = np.random.default_rng(0).integers(40, 200, (50, 64, 64, 3), dtype=np.uint8)
    images[:, :32] //= 3                                    # le haut est plus sombre
    vae, mean = VAE(), torch.from_numpy(images.mean(axis=0) / 255).permute(2, 0, 1)
    vae.start_from(images)
    assert (vae.decode(torch.randn(5, 4)) - mean).abs().mean() < 0.05
    vae.encode(torch.rand(2, 3, 64, 64))[0].sum().backward()
    assert vae.mean.grad is None                            # sinon chaque pas dure 10 % de plus
    vae.decode(torch.zeros(1, 4)).sum().backward()
    assert vae.mean.grad.abs().sum() > 0


@pytest.mark.skipif(sys.platform == "win32", reason="les droits POSIX")
def test_readable_by_others(tmp_path):
    """Le professeur peut lire le modèle d'un étudiant : les droits habituels d'un fichier."""
    save_model(VAE(1, 16), tmp_path / "a.pt")
    (tmp_path / "b").touch()
    assert (tmp_path / "a.pt").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_no_model_yet(tmp_path):
    """Pas de fichier, un dossier, un lien rompu, un tube : pas encore de modèle, sans attendre."""
    (tmp_path / "dossier.pt").mkdir()
    names = ["absent.pt", "dossier.pt"]
    if sys.platform != "win32":
        (tmp_path / "lien.pt").symlink_to("nulle part")
        os.mkfifo(tmp_path / "tube.pt")
        names += ["lien.pt", "tube.pt"]
    for name in names:
        with pytest.raises(FileNotFoundError, match="Il n'y a pas encore de modèle"):
            load_model(tmp_path / name)


# Abîmé, étranger -------------------------------------------------------------------------
def test_truncated(tmp_path, content):
    """Coupé n'importe où, ou suivi d'autre chose que prévu."""
    for length in [0, 1, 100, len(content) // 2, len(content) - 1000, len(content) - 1]:
        (tmp_path / "a.pt").write_bytes(content[:length])
        assert refused(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(content[:1000] + content[1001:])
    assert refused(tmp_path / "a.pt")


def test_one_bit(tmp_path, content):
    """Un seul bit changé dans les poids : refusé (torch.load seul ne le verrait pas)."""
    path, rng = tmp_path / "a.pt", np.random.default_rng(0)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    for place in rng.integers(largest.header_offset + 200, largest.file_size, 20):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        assert refused(path)
    assert torch.load(path, weights_only=True)["kind"] == MODEL_KIND


@pytest.mark.parametrize("thing", [
    b"", b"bonjour\n" * 1000, b"\x89PNG\r\n\x1a\n" + bytes(5000), b"PK\x03\x04" + bytes(5000),
    b"PK\x05\x06" + bytes(18), pickle.dumps({"kind": MODEL_KIND})], ids=range(6))
def test_not_a_model(tmp_path, thing):
    """Vide, du texte, une image, une archive abîmée ou vide, un pickle."""
    (tmp_path / "a.pt").write_bytes(thing)
    assert refused(tmp_path / "a.pt")


@pytest.mark.parametrize("thing", [
    torch.zeros(3), [1, 2], None, {}, "un texte", VAE(3, 32).state_dict(), saved(kind="VAE_63"),
    saved(kind=None), saved(weights=None), saved(weights={}), saved(weights=[1]),
    saved(architecture=str(VAE(3, 32)).replace("SiLU", "ReLU")),
    saved(weights=VAE(4, 32).state_dict()), saved(weights=VAE(3, 64).state_dict()),
    saved(weights={**VAE(3, 32).state_dict(), "de trop": torch.zeros(1)}),
    saved(weights={"module." + k: v for k, v in VAE(3, 32).state_dict().items()}),
    saved(weights=dict(list(VAE(3, 32).state_dict().items())[1:]))],
    ids=lambda thing: type(thing).__name__)
def test_foreign(tmp_path, thing):
    """Un fichier de PyTorch qui n'est pas un modèle de ce kit, ou d'une autre architecture."""
    torch.save(thing, tmp_path / "a.pt")
    assert refused(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["latent_size", "images_size"])
@pytest.mark.parametrize("value", [0, -1, 10**9, 10**30, True, 4.0, 4.5, "4", None, [4],
                                   float("nan"), torch.tensor(4)], ids=str)
def test_wrong_sizes(tmp_path, name, value):
    """Des tailles absurdes dans le fichier n'occupent pas la mémoire."""
    torch.save(saved(**{name: value}), tmp_path / "a.pt")
    assert refused(tmp_path / "a.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(tmp_path, value):
    """Un apprentissage qui a divergé n'est pas un modèle."""
    vae = VAE(3, 32)
    with torch.no_grad():
        next(vae.parameters()).view(-1)[5] = value
    save_model(vae, tmp_path / "a.pt")
    assert refused(tmp_path / "a.pt")


def test_whole_module(tmp_path):
    """torch.save(vae) : un objet Python entier, refusé comme tout ce qui exécute du code."""
    torch.save(VAE(3, 32), tmp_path / "a.pt")
    assert refused(tmp_path / "a.pt")


class Trap:
    """Un objet dont la relecture par pickle crée un fichier."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("form", ["zip", "ancien", "pickle"])
def test_code_never_runs(tmp_path, form):
    """Un fichier fait pour exécuter du code est refusé, et son code ne tourne pas."""
    mark, path = tmp_path / "piégé", tmp_path / "a.pt"
    thing = saved(weights={**VAE(3, 32).state_dict(), "piège": Trap(mark)})
    if form == "pickle":
        path.write_bytes(pickle.dumps(thing))
    else:
        torch.save(thing, path, _use_new_zipfile_serialization=form == "zip")
    assert refused(path)
    assert not mark.exists()
    if form == "pickle":                                    # le piège marche, lui
        pickle.loads(path.read_bytes())
        assert mark.exists()


# L'écriture ------------------------------------------------------------------------------
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
def test_interrupted(tmp_path, content, error):
    """Un arrêt pendant l'écriture : l'ancien fichier est intact, il ne reste rien d'autre."""
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(error):
        with write_safely(tmp_path / "a.pt") as file:
            file.write(b"un morceau")
            raise error
    assert (tmp_path / "a.pt").read_bytes() == content
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("times", [0, 1, 3, 4])
def test_held_by_another_program(tmp_path, monkeypatch, times):
    """Un programme tient l'ancien fichier (Windows) : on réessaie, de plus en plus tard, puis
    PermissionError ; l'ancien est intact, pas de reste."""
    path, replace, slept = tmp_path / "a.pt", os.replace, []

    def held(*names):
        if len(slept) < times:
            raise PermissionError
        replace(*names)

    path.write_bytes(b"avant")
    monkeypatch.setattr(os, "replace", held)
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(PermissionError) if times > 3 else contextlib.nullcontext():
        with write_safely(path) as file:
            file.write(b"nouveau")
    assert slept == [0.1, 0.5, 2][:times] and os.listdir(tmp_path) == ["a.pt"]
    assert path.read_bytes() == (b"avant" if times > 3 else b"nouveau")


def test_two_at_once(tmp_path):
    """Deux programmes qui enregistrent sous le même nom : toujours un modèle entier."""
    code = ("import os, sys; sys.path.insert(0, sys.argv[1]); from model_VAE_64 import *\n"
            "vae = VAE(int(sys.argv[3]), 32); print('prêt'.encode(), flush=True)\n"
            "while not os.path.exists(sys.argv[2] + '.fin'): save_model(vae, sys.argv[2])")
    path, end = tmp_path / "a.pt", tmp_path / "a.pt.fin"
    save_model(VAE(1, 32), path)
    writers = [subprocess.Popen([sys.executable, "-c", code, ROOT, path, str(size)],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE) for size in (2, 3)]
    for writer in writers:
        writer.stdout.readline()
    seen = {load_model(path).latent_size for _ in range(30)}
    end.touch()
    assert [writer.communicate()[1] for writer in writers] == [b"", b""]
    end.unlink()
    assert seen | {1} == {1, 2, 3} and os.listdir(tmp_path) == ["a.pt"]


@pytest.fixture
def small_disk(tmp_path):
    """Un vrai disque de 3 Mio (tmpfs), que seul root sous Linux peut monter."""
    disk = tmp_path / "disque"
    disk.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("il faut être root sous Linux pour monter un petit disque")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk],
                      stderr=subprocess.DEVNULL).returncode:
        pytest.skip("mount est interdit ici (conteneur)")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_full_disk(small_disk):
    """Disque plein : OSError, l'ancien modèle se relit encore, pas de reste."""
    path = small_disk / "a.pt"
    save_model(VAE(1, 16), path)
    before = path.read_bytes()
    with pytest.raises(OSError):
        save_model(VAE(4, 64), path)
    assert path.read_bytes() == before and os.listdir(small_disk) == ["a.pt"]
    assert load_model(path).images_size == 16


def test_read_only_disk(small_disk):
    """Disque en lecture seule : OSError, l'ancien fichier est intact."""
    (small_disk / "a.pt").write_bytes(b"avant")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError):
        save_model(VAE(1, 16), small_disk / "a.pt")
    with pytest.raises(OSError):
        save_model(VAE(1, 16), small_disk / "absent" / "a.pt")
    assert (small_disk / "a.pt").read_bytes() == b"avant"
    assert os.listdir(small_disk) == ["a.pt"]
