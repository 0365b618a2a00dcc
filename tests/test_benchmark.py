"""Le benchmark, en tout petit : chaque table sort, avec des nombres qui en sont."""
import math
import sys

import benchmark
import numpy as np
import pytest

# « camera » et « fenetre » pilotent de vraies fenêtres : test_record.py et test_decode.py le font.
NAMES = [name for name in benchmark.TABLES if name not in ("camera", "fenetre")]


@pytest.mark.parametrize("name", benchmark.SETS)
def test_sets(name):
    """Un jeu : des octets N×64×64×3, toujours les mêmes, des images toutes différentes."""
    images = benchmark.SETS[name](12)
    assert images.shape == (12, 64, 64, 3) and images.dtype == np.uint8
    assert len(np.unique(images, axis=0)) == 12
    assert (images == benchmark.SETS[name](12)).all()


@pytest.mark.skipif(sys.platform != "linux", reason="la mémoire est lue dans /proc")
def test_tables(capsys):
    """Toutes les tables, avec de tout petits jeux ; le modèle relu a l'erreur vue par l'espion."""
    results = benchmark.main(["--rapide", *NAMES])
    assert list(results) == NAMES
    for name, (title, header, rows) in results.items():
        for row in rows:
            assert len(row) == len(header), name
            assert all(math.isfinite(x) for x in row if not isinstance(x, str)), (name, row)
    row = results["qualite"][2][0]
    assert all(error > 0 for error in row[2:5]) and row[5] == pytest.approx(row[4] / row[2])
    shown = capsys.readouterr().out
    assert all(title in shown for title, _, _ in results.values())


def test_measures():
    """Les mesures, sur des cas dont on connaît la réponse."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 4))
    y = np.sin(z[:, 0]) + z[:, 1] * z[:, 2]
    assert np.square(benchmark.regress(z[:300], y[:300], z[300:]) - y[300:]).mean() < 0.05 * y.var()
    a, b = rng.uniform(size=(2, 20_000))
    assert benchmark.mutual_information(a, a) == pytest.approx(math.log(20), abs=0.01)
    assert benchmark.mutual_information(a, b) < 0.02
    train, test = benchmark.split(np.arange(100))
    assert len(test) == 20 and sorted([*train, *test]) == list(range(100))
    assert list(test) != sorted(test)
