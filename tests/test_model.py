"""Le réseau, calculé à la main ; le fichier du modèle : relu à l'identique, ou refusé par une phrase."""
import inspect
import os
import time
import zipfile

import model_VAE_64
import pytest
import torch
from model_VAE_64 import VAE, load_model, save_model, signature


def new_vae(latent_size=3, images_size=32):
    """Un VAE parti de quelques images, et dont les deux chemins dessinent déjà quelque chose."""
    torch.manual_seed(0)
    vae = VAE(latent_size, images_size).eval().requires_grad_(False)
    vae.start_from(torch.rand(9, 3, images_size, images_size))
    vae.linear.weight.normal_(0, 0.3)
    for layer in vae.decoder[-1], vae.encoder[-1]:
        layer.weight.mul_(20)
    return vae


def saved(**changes):
    """Ce que save_model met dans le fichier, avec quelques changements."""
    return {"latent_size": 3, "images_size": 32, "weights": new_vae().state_dict(),
            "signature": signature(new_vae()), **changes}


def assert_refused(path, thing):
    """load_model refuse le fichier (où l'on écrit `thing`) par une phrase en français, qui le nomme."""
    path.write_bytes(thing) if isinstance(thing, bytes) else torch.save(thing, path)
    with pytest.raises(ValueError, match="n'est pas un modèle de ce kit") as error:
        load_model(path)
    assert str(path) in str(error.value) and "relancez train_VAE.py" in str(error.value)


def test_formulas(monkeypatch):
    """start_from, encode, decode, traverse et forward, chacun contre son calcul à la main."""
    vae, x, z = new_vae(), torch.rand(5, 3, 32, 32), torch.randn(5, 3)
    vae.start_from(x)
    assert vae.contrast.item() == pytest.approx((x - x.mean(dim=0)).std(correction=0).item(), rel=1e-5)
    mean = torch.sigmoid(vae.linear.bias.view(3, 32, 32))
    torch.testing.assert_close(mean, x.mean(dim=0))
    torch.testing.assert_close(torch.cat(vae.encode(x), dim=1), vae.encoder((x - mean) / vae.contrast))
    torch.testing.assert_close(vae.decode(z), torch.sigmoid(4 * vae.decoder(z) + torch.logit(mean)))
    vae.linear.weight.normal_()
    straight = (z @ vae.linear.weight.T + vae.linear.bias).view(5, 3, 32, 32)
    torch.testing.assert_close(vae.decode(z), torch.sigmoid(4 * vae.decoder(z) + straight))
    codes = torch.tensor([[1, -3, 2], [1, 0, 2], [1, 3, 2]])
    torch.testing.assert_close(vae.traverse([1.0, 9, 2], 1, 3), vae.decode(codes.float()))
    monkeypatch.setattr(vae, "encode", lambda x: (torch.full((5, 3), 2.0), torch.full((5, 3), 9.0).log()))
    monkeypatch.setattr(torch, "randn_like", lambda mu: torch.full_like(mu, 0.5))
    torch.testing.assert_close(vae(x)[0], vae.decode(torch.full((5, 3), 3.5)))   # 2 + 3 × 0,5 (sigma = 3)


@pytest.mark.parametrize("latent_size, images_size", [(1, 16), (4, 64), (32, 48), (2, 256)])
def test_round_trip(tmp_path, latent_size, images_size):
    """Le modèle relu a les mêmes tailles, dessine et encode pareil, et n'apprend plus."""
    vae, path = new_vae(latent_size, images_size), tmp_path / "mon modèle été.pt"
    save_model(VAE(2, 32), path)                            # un modèle plus ancien, remplacé
    save_model(vae, path)
    again, x = load_model(str(path)), torch.rand(1, 3, images_size, images_size)
    assert (again.latent_size, again.images_size) == (latent_size, images_size)
    assert not again.training and not any(weight.requires_grad for weight in again.parameters())
    mu, logvar = again.encode(x)
    assert again.decode(mu).shape == x.shape and mu.shape == logvar.shape == (1, latent_size)
    assert torch.equal(vae.decode(mu), again.decode(mu)) and torch.equal(vae.encode(x)[1], logvar)
    assert os.listdir(tmp_path) == [path.name]


def test_trained_on_a_graphics_card(tmp_path):
    """Un modèle entraîné sur une carte graphique s'ouvre sur un ordinateur qui n'en a pas."""
    save_model(new_vae(), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():                         # dans data.pkl, des mots de 3 lettres
            new.writestr(name, old.read(name).replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:0"))
    assert (tmp_path / "b.pt").read_bytes().count(b"cuda:0") > 0
    assert {weight.device.type for weight in load_model(tmp_path / "b.pt").parameters()} == {"cpu"}


@pytest.mark.parametrize("old, new", [("4 * self.decoder", "0 * self.decoder"), ("/ self.contrast", ""),
                                      ("nn.SiLU(),", "nn.ReLU(),"), ("drawn + self", "drawn - self")])
def test_edited_network(tmp_path, old, new):
    """Un modèle d'avant un changement des formules ou des couches est refusé : il dessinerait autre chose."""
    save_model(new_vae(), tmp_path / "a.pt")
    code, edited = inspect.getsource(model_VAE_64), {"__name__": "edited", "__file__": model_VAE_64.__file__}
    assert old in code
    exec(code.replace(old, new), edited)
    with pytest.raises(ValueError, match="model_VAE_64.py a changé"):
        edited["load_model"](tmp_path / "a.pt")


def test_refused(tmp_path):
    """Vide, coupé, autre chose ; d'un autre réseau, ou dont les nombres n'en sont pas : une phrase."""
    path = tmp_path / "a.pt"
    save_model(new_vae(), path)
    whole, weights = path.read_bytes(), saved()["weights"]
    for thing in [
            b"", b"bonjour\n" * 1000, b"PK\5\6" + bytes(18), bytes(range(256)) * 20,
            whole[:1000] + whole[1001:], whole[:100], whole[:len(whole) // 2], whole[:-1],
            torch.zeros(3), {}, weights, torch.nn.Linear(2, 2),
            *[saved(latent_size=value) for value in (0, 4, "3", None)],
            *[saved(images_size=value) for value in (33, 64, 10**9)],
            saved(weights=None), saved(weights=VAE(4, 32).state_dict()), saved(signature=torch.ones(1, 3)),
            saved(weights={**weights, "de trop": torch.zeros(1)}),
            saved(weights={**weights, "linear.bias": torch.full((3072,), torch.nan)})]:
        assert_refused(path, thing)


def test_trapped(tmp_path, monkeypatch):
    """Un fichier fait pour exécuter du code (ici, créer un fichier) est refusé, et rien n'en est exécuté."""
    class Trap:
        def __reduce__(self):
            return open, ("piégé", "w")
    monkeypatch.chdir(tmp_path)
    assert_refused(tmp_path / "a.pt", saved(piège=Trap()))
    assert not os.path.exists("piégé")


def test_held_by_another_program(tmp_path, monkeypatch):
    """Un programme tient le fichier (Windows) : on réessaie deux secondes au moins, puis PermissionError.
    L'ancien modèle est là jusqu'à ce que le nouveau soit entier : tuer le script ne l'abîme pas."""
    path, slept, replace = tmp_path / "a.pt", [], os.replace

    def held(source, target):
        assert (load_model(source).latent_size, load_model(path).latent_size) == (2, 1)
        if len(slept) < 33:
            raise PermissionError
        replace(source, target)
    save_model(VAE(1, 16), path)
    monkeypatch.setattr(os, "replace", held)
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(PermissionError):
        save_model(VAE(2, 16), path)
    assert sum(slept) > 2 and load_model(path).latent_size == 1
    save_model(VAE(2, 16), path)                            # relâché après 33 essais en tout
    assert load_model(path).latent_size == 2
