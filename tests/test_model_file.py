"""Le fichier du modèle : relu à l'identique, ou refusé par une phrase ; toujours entier."""
import contextlib
import io
import itertools
import multiprocessing
import os
import pickle
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
from model_VAE_64 import VAE, load_model, save_model


def saved(**changes):
    """Ce que save_model met dans le fichier, avec quelques changements."""
    return {"latent_size": 3, "images_size": 32, "architecture": str(VAE(3, 32)),
            "weights": VAE(3, 32).state_dict(), **changes}


def assert_refused(path):
    """load_model refuse le fichier par une phrase en français, qui le nomme."""
    with pytest.raises(ValueError, match="n'est pas un modèle de ce kit") as error:
        load_model(path)
    assert str(path) in str(error.value) and "relancez train_VAE.py" in str(error.value)


# Aller et retour -------------------------------------------------------------------------
@pytest.mark.parametrize("latent_size, images_size", [(1, 16), (4, 64), (32, 48), (2, 256)])
def test_round_trip(tmp_path, latent_size, images_size):
    """Mêmes tailles, mêmes images ; prêt à servir, sur le processeur, sans rien d'autre à côté."""
    vae, path = VAE(latent_size, images_size).eval(), tmp_path / "mon modèle été.pt"
    vae.start_from(torch.rand(3, images_size, images_size), contrast=0.2)
    save_model(VAE(2, 32), path)                            # un modèle plus ancien, remplacé
    save_model(vae, path)
    again = load_model(str(path))
    assert (again.latent_size, again.images_size) == (latent_size, images_size)
    assert not again.training and {p.device.type for p in again.parameters()} == {"cpu"}
    x, z = torch.rand(2, 3, images_size, images_size), torch.randn(2, latent_size)
    assert torch.equal(vae.decode(z), again.decode(z)) and vae.decode(z).shape == x.shape
    assert torch.equal(vae.encode(x)[0], again.encode(x)[0]) and vae(x)[1].shape == z.shape
    assert again.contrast.item() == pytest.approx(0.2) and os.listdir(tmp_path) == [path.name]


def test_start():
    """Sans rien avoir appris, le décodeur dessine l'image moyenne, que lui seul apprend ensuite."""
    vae, mean = VAE(), torch.rand(3, 64, 64) * 0.8 + 0.1
    vae.start_from(mean, contrast=0.2)
    assert (vae.decode(torch.zeros(5, 4)) - mean).abs().mean() < 0.1
    vae.encode(torch.rand(2, 3, 64, 64))[0].sum().backward()
    assert vae.mean.grad is None
    vae.decode(torch.zeros(1, 4)).sum().backward()
    assert vae.mean.grad.abs().sum() > 0


def test_no_model_yet(tmp_path):
    """Pas de fichier, ou un dossier : pas encore de modèle."""
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match="Il n'y a pas encore de modèle"):
            load_model(path)


# Abîmé, étranger -------------------------------------------------------------------------
@pytest.mark.parametrize("latent_size, images_size", [
    (0, 32), (3, 33), (257, 32), (4.5, 32), ("3", 32), (None, 32), (3, 10**9), (3, [32])])
def test_wrong_sizes(tmp_path, latent_size, images_size):
    """Des tailles impossibles, ou qui ne sont pas celles des poids."""
    torch.save(saved(latent_size=latent_size, images_size=images_size), tmp_path / "a.pt")
    assert_refused(tmp_path / "a.pt")


def weights(change=lambda tensor: tensor):
    """Les poids d'un petit modèle, le premier changé."""
    state = VAE(3, 32).state_dict()
    return {**state, "mean": change(state["mean"])}


@pytest.mark.parametrize("thing", [
    torch.zeros(3), None, {}, "un texte", weights(), VAE(3, 32), torch.nn.Linear(2, 2).state_dict(),
    saved(weights=None), saved(weights={}), saved(weights=VAE(4, 32).state_dict()),
    saved(weights={**weights(), "de trop": torch.zeros(1)}),
    saved(weights={f"module.{name}": value for name, value in weights().items()}),
    saved(architecture=str(VAE(3, 32)).replace("SiLU", "ReLU", 1)), saved(architecture=None),
    saved(weights=weights(lambda tensor: tensor * torch.nan)),
    saved(weights=weights(lambda tensor: tensor + torch.inf)),
    saved(weights=weights(lambda tensor: tensor.double() + 1e300))],        # fini, mais pas en float32
    ids=lambda thing: type(thing).__name__)
def test_foreign(tmp_path, thing):
    """Un fichier de PyTorch qui n'est pas un modèle de ce kit, d'un autre réseau ou qui a divergé."""
    torch.save(thing, tmp_path / "a.pt")
    assert_refused(tmp_path / "a.pt")


def test_damaged(tmp_path):
    """Vide, autre chose, coupé n'importe où, un octet de trop ou changé : refusé."""
    path = tmp_path / "a.pt"
    save_model(VAE(3, 32), path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    things = [b"", b"bonjour\n" * 1000, b"\x89PNG\r\n\x1a\n" + bytes(5000), b"PK\5\6" + bytes(18),
              rng.bytes(5000), pickle.dumps(saved()), whole[:1000] + whole[1001:]]
    things += [whole[:length] for length in (1, 100, len(whole) // 2, len(whole) - 1)]
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    for place in largest.header_offset + rng.integers(200, largest.file_size, 10):
        things.append(whole[:place] + bytes([whole[place] ^ 1 << rng.integers(8)]) + whole[place + 1:])
    for thing in things:
        path.write_bytes(thing)
        assert_refused(path)


class Trap:
    """Un objet dont la relecture par pickle crée un fichier."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("form", ["zip", "ancien", "pickle", "TorchScript"])
def test_code_never_runs(tmp_path, monkeypatch, form):
    """Un fichier fait pour exécuter du code est refusé, et son code ne tourne pas ; une archive
    TorchScript n'arrive même pas à torch.load."""
    mark, path = tmp_path / "piégé", tmp_path / "a.pt"
    thing = saved(weights={**weights(), "piège": Trap(mark)})
    if form == "pickle":
        path.write_bytes(pickle.dumps(thing))
    elif form == "TorchScript":
        torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1)).save(path)
        monkeypatch.setattr(torch, "load", lambda *_, **__: mark.touch())
    else:
        torch.save(thing, path, _use_new_zipfile_serialization=form == "zip")
    assert_refused(path)
    assert not mark.exists()


def test_inflated(tmp_path, monkeypatch):
    """Des membres comprimés, qui occuperaient bien plus de mémoire que le fichier : refusé avant."""
    content = io.BytesIO()
    torch.save(saved(weights=weights(lambda tensor: torch.zeros(2_000_000))), content)
    with zipfile.ZipFile(content) as old, zipfile.ZipFile(
            tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    monkeypatch.setattr(zipfile.ZipFile, "testzip", None)
    monkeypatch.setattr(torch, "load", None)
    assert os.path.getsize(tmp_path / "a.pt") < 2_000_000
    assert_refused(tmp_path / "a.pt")


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
        ready.wait()
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        assert load_model(tmp_path / "m.pt").latent_size == 4


@pytest.mark.parametrize("times, kept", [(0, False), (1, False), (3, False), (99, True)])
def test_held_by_another_program(tmp_path, monkeypatch, times, kept):
    """Un programme tient l'ancien fichier (Windows) : on réessaie, de plus en plus tard, puis
    PermissionError ; l'ancien est intact, pas de reste."""
    path, replace, slept = tmp_path / "a.pt", os.replace, []

    def held(*names):
        if len(slept) < times:
            raise PermissionError
        replace(*names)
    save_model(VAE(1, 16), path)
    monkeypatch.setattr(os, "replace", held)
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(PermissionError) if kept else contextlib.nullcontext():
        save_model(VAE(2, 16), path)
    assert load_model(path).latent_size == (1 if kept else 2) and os.listdir(tmp_path) == ["a.pt"]
    assert slept == sorted(slept)[:times] or sum(slept) > 2


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
