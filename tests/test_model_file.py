"""Le fichier du modèle : relu à l'identique, ou refusé par une phrase ; toujours entier."""
import contextlib
import io
import os
import time
import zipfile

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
    """Mêmes tailles, mêmes images, sur le processeur. Avant d'apprendre, il dessine l'image moyenne."""
    torch.manual_seed(0)
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
    assert (drawn - mean).abs().mean() < 0.15
    assert torch.equal(vae.decode(mu), again.decode(mu)) and torch.equal(vae.encode(x[None])[1], logvar)
    assert again.contrast.item() == pytest.approx(0.2) and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("thing", [
    torch.zeros(3), {}, saved()["weights"], torch.nn.Linear(2, 2),
    *[saved(latent_size=value) for value in (0, 4, "3", None)],
    *[saved(images_size=value) for value in (33, 64, 10**9)],
    saved(weights=None), saved(weights=VAE(4, 32).state_dict()),
    saved(weights={**saved()["weights"], "de trop": torch.zeros(1)}),
    saved(architecture=str(VAE(3, 32)).replace("SiLU", "ReLU", 1)),
    saved(lambda tensor: tensor * torch.nan), saved(lambda tensor: tensor.double() + 1e300)])
def test_foreign(tmp_path, thing):
    """Pas un modèle de ce kit, ou d'un autre réseau, ou dont les nombres n'en sont pas, en float32."""
    assert_refused(tmp_path / "a.pt", thing)


def test_damaged(tmp_path):
    """Vide, autre chose, coupé n'importe où, un octet de moins, un bit changé : refusé."""
    path, rng = tmp_path / "a.pt", np.random.default_rng(0)
    save_model(VAE(3, 32), path)
    whole = path.read_bytes()
    for thing in (b"", b"bonjour\n" * 1000, b"PK\5\6" + bytes(18), rng.bytes(5000),
                  whole[:1000] + whole[1001:], whole[:100], whole[:len(whole) // 2], whole[:-1]):
        assert_refused(path, thing)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    for place in largest.header_offset + rng.integers(200, largest.file_size, 10):
        assert_refused(path, whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1:])


class Trap:
    """Un objet dont la relecture par pickle crée un fichier dans le dossier courant."""

    def __reduce__(self):
        return open, ("piégé", "w")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("form", ["zip", "ancien", "TorchScript", "comprimé"])
def test_trapped(tmp_path, monkeypatch, form):
    """Fait pour exécuter du code ou remplir la mémoire : refusé, les deux derniers avant torch.load."""
    monkeypatch.chdir(tmp_path)
    if form in ("zip", "ancien"):
        torch.save(saved(piège=Trap()), "a.pt", _use_new_zipfile_serialization=form == "zip")
    elif form == "TorchScript":
        torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1)).save("b.pt")
    else:
        torch.save(saved(lambda tensor: torch.zeros(2_000_000)), "b.pt")
    if os.path.exists("b.pt"):
        method = zipfile.ZIP_DEFLATED if form == "comprimé" else zipfile.ZIP_STORED
        with zipfile.ZipFile("b.pt") as old, zipfile.ZipFile("a.pt", "w", method) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        monkeypatch.setattr(torch, "load", lambda *_, **__: open("piégé", "w"))
    assert_refused(tmp_path / "a.pt")
    assert not os.path.exists("piégé")


@pytest.mark.parametrize("module, name, times", [
    (os, "replace", 3), (os, "replace", 99), (zipfile, "ZipFile", 5)])
def test_held_by_another_program(tmp_path, monkeypatch, module, name, times):
    """Le modèle ne prend son nom qu'une fois entier : tuer le script ne l'abîme pas. Un programme tient
    le fichier (Windows) : on réessaie deux secondes au moins, puis PermissionError ; l'ancien reste."""
    path, slept, action = tmp_path / "a.pt", [], getattr(module, name)

    def held(*args, **options):
        if len(slept) < times:
            raise PermissionError
        assert name != "replace" or load_model(args[0]).latent_size == 2
        return action(*args, **options)
    save_model(VAE(1, 16), path)
    monkeypatch.setattr(module, name, held)
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(PermissionError) if times == 99 else contextlib.nullcontext():
        save_model(VAE(2, 16), path)
    assert load_model(path).latent_size == (1 if times == 99 else 2) and os.listdir(tmp_path) == ["a.pt"]
    assert sum(slept) > 2 if times == 99 else len(slept) == times


def test_full_disk(small_disk):
    """Disque plein : OSError, l'ancien modèle se relit encore, pas de reste."""
    path = small_disk / "a.pt"
    save_model(VAE(1, 16), path)
    with pytest.raises(OSError):
        save_model(VAE(4, 128), path)
    assert load_model(path).latent_size == 1 and os.listdir(small_disk) == ["a.pt"]
