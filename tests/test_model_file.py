"""Le fichier du modèle : relu à l'identique, ou refusé par une phrase ; toujours entier."""
import contextlib
import io
import multiprocessing
import os
import pickle
import sys
import time
import zipfile

import model_VAE_64
import numpy as np
import pytest
import torch
from model_VAE_64 import VAE, load_model, save_model


def saved(change=lambda tensor: tensor, **changes):
    """Ce que save_model met dans le fichier, avec quelques changements."""
    weights = VAE(3, 32).state_dict()
    return {"latent_size": 3, "images_size": 32, "architecture": str(VAE(3, 32)),
            "weights": {**weights, "mean": change(weights["mean"])}, **changes}


def assert_refused(path, thing=None):
    """load_model refuse le fichier (où l'on écrit `thing`) par une phrase en français, qui le nomme."""
    if isinstance(thing, bytes):
        path.write_bytes(thing)
    elif thing is not None:
        torch.save(thing, path)
    with pytest.raises(ValueError, match="n'est pas un modèle de ce kit") as error:
        load_model(path)
    assert str(path) in str(error.value) and "relancez train_VAE.py" in str(error.value)


@pytest.mark.parametrize("latent_size, images_size", [(1, 16), (4, 64), (32, 48), (2, 256)])
def test_round_trip(tmp_path, latent_size, images_size):
    """Mêmes tailles, mêmes images ; prêt à servir, sur le processeur, sans rien d'autre à côté. Avant
    d'apprendre, le décodeur dessine l'image moyenne."""
    vae, path = VAE(latent_size, images_size).eval(), tmp_path / "mon modèle été.pt"
    mean, x = torch.rand(4, 3, images_size, images_size)[:2] * 0.8 + 0.1
    vae.start_from(mean, contrast=0.2)
    save_model(VAE(2, 32), path)                            # un modèle plus ancien, remplacé
    save_model(vae, path)
    again = load_model(str(path))
    assert (again.latent_size, again.images_size) == (latent_size, images_size)
    assert not again.training and {p.device.type for p in again.parameters()} == {"cpu"}
    drawn, (mu, logvar) = again.decode(torch.zeros(2, latent_size)), again.encode(x[None])
    assert drawn.shape == (2, 3, images_size, images_size) and mu.shape == (1, latent_size)
    assert (drawn - mean).abs().mean() < 0.1
    assert torch.equal(vae.decode(mu), again.decode(mu)) and torch.equal(vae.encode(x[None])[1], logvar)
    assert again.contrast.item() == pytest.approx(0.2) and os.listdir(tmp_path) == [path.name]


def test_no_model_yet(tmp_path):
    """Pas de fichier, ou un dossier : pas encore de modèle."""
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match="Il n'y a pas "):
            load_model(path)


# Abîmé, étranger -------------------------------------------------------------------------
@pytest.mark.parametrize("thing", [
    torch.zeros(3), {}, saved()["weights"], VAE(3, 32), torch.nn.Linear(2, 2).state_dict(),
    *[saved(latent_size=value) for value in (0, 4, 257, 4.5, "3", None)],
    *[saved(images_size=value) for value in (33, 64, 10**9, [32])],
    saved(weights=None), saved(weights={}), saved(weights=VAE(4, 32).state_dict()),
    saved(weights={**saved()["weights"], "de trop": torch.zeros(1)}),
    saved(architecture=str(VAE(3, 32)).replace("SiLU", "ReLU", 1)), saved(architecture=None),
    saved(lambda tensor: tensor * torch.nan), saved(lambda tensor: tensor + torch.inf),
    saved(lambda tensor: tensor.double() + 1e300)], ids=lambda thing: type(thing).__name__)
def test_foreign(tmp_path, thing, monkeypatch):
    """Un fichier de PyTorch qui n'est pas un modèle de ce kit, ou d'un autre réseau, ou dont les nombres
    n'en sont pas, même une fois en float32."""
    monkeypatch.setitem(sys.modules, "model_VAE_64", model_VAE_64)     # un autre test l'a relu : pickle
    assert_refused(tmp_path / "a.pt", thing)


def test_damaged(tmp_path):
    """Vide, autre chose, coupé n'importe où, un octet de moins, un bit changé : refusé."""
    path, rng = tmp_path / "a.pt", np.random.default_rng(0)
    save_model(VAE(3, 32), path)
    whole = path.read_bytes()
    for thing in (b"", b"bonjour\n" * 1000, b"PK\5\6" + bytes(18), rng.bytes(5000), pickle.dumps(saved()),
                  whole[:1000] + whole[1001:], whole[:100], whole[:len(whole) // 2], whole[:-1]):
        assert_refused(path, thing)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    for place in largest.header_offset + rng.integers(200, largest.file_size, 10):
        assert_refused(path, whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1:])


class Trap:
    """Un objet dont la relecture par pickle crée un fichier."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("form", ["zip", "ancien", "TorchScript", "comprimé"])
def test_trapped(tmp_path, monkeypatch, form):
    """Un fichier fait pour exécuter du code, ou pour prendre bien plus de mémoire que sa taille : refusé,
    rien ne s'exécute ; les deux derniers n'arrivent même pas à torch.load."""
    mark, path, content = tmp_path / "piégé", tmp_path / "a.pt", io.BytesIO()
    if form in ("zip", "ancien"):
        torch.save(saved(piège=Trap(mark)), path, _use_new_zipfile_serialization=form == "zip")
    else:
        torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1)).save(path)
        torch.save(saved(lambda tensor: torch.zeros(2_000_000)), content)
        monkeypatch.setattr(torch, "load", lambda *_, **__: mark.touch())
    if form == "comprimé":
        with zipfile.ZipFile(content) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _: mark.touch())
    assert_refused(path)
    assert not mark.exists()


# L'écriture ------------------------------------------------------------------------------
def save_for_ever(path, ready):
    """Enregistre sans fin des modèles (dans un processus que le test tue)."""
    while True:
        save_model(VAE(4, 64), path)
        ready.set()


@pytest.mark.skipif(sys.platform != "linux", reason="il faut fork()")
def test_killed(tmp_path):
    """Tué net (kill -9) à vingt moments : le modèle est toujours entier."""
    context, rng = multiprocessing.get_context("fork"), np.random.default_rng(0)
    for _ in range(20):
        ready = context.Event()
        process = context.Process(target=save_for_ever, args=(tmp_path / "m.pt", ready))
        process.start()
        assert ready.wait(60)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        assert load_model(tmp_path / "m.pt").latent_size == 4


@pytest.mark.parametrize("times", [0, 1, 3, 99])
def test_held_by_another_program(tmp_path, monkeypatch, times):
    """Un programme tient l'ancien fichier (Windows) : on réessaie pendant deux secondes, puis
    PermissionError ; l'ancien est intact, pas de reste."""
    path, replace, slept = tmp_path / "a.pt", os.replace, []

    def held(*names):
        if len(slept) < times:
            raise PermissionError
        replace(*names)
    save_model(VAE(1, 16), path)
    monkeypatch.setattr(os, "replace", held)
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(PermissionError) if times == 99 else contextlib.nullcontext():
        save_model(VAE(2, 16), path)
    assert load_model(path).latent_size == (1 if times == 99 else 2) and os.listdir(tmp_path) == ["a.pt"]
    assert sum(slept) > 2 or len(slept) == times


def test_read_while_held(tmp_path, monkeypatch):
    """Un programme tient le modèle juste après son écriture (Windows) : on attend qu'il le rende."""
    real_open, slept = open, []

    def held(*args, **options):
        if len(slept) < 5:
            raise PermissionError
        return real_open(*args, **options)
    save_model(VAE(3, 16), tmp_path / "a.pt")
    monkeypatch.setattr("builtins.open", held)
    monkeypatch.setattr(time, "sleep", slept.append)
    assert load_model(tmp_path / "a.pt").latent_size == 3 and len(slept) == 5


@pytest.mark.parametrize("case", ["plein", "protégé"])
def test_disk(small_disk, case):
    """Disque plein ou protégé : OSError, l'ancien modèle se relit encore, pas de reste."""
    disk, protect = small_disk
    save_model(VAE(1, 16), disk / "a.pt")
    if case == "protégé":
        protect()
    with pytest.raises(OSError):
        save_model(VAE(4, 64 if case == "protégé" else 128), disk / "a.pt")
    assert load_model(disk / "a.pt").latent_size == 1 and os.listdir(disk) == ["a.pt"]
